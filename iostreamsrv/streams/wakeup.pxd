cpdef resolve_now(object future, object result)
