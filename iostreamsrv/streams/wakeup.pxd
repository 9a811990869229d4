cpdef resolve_now(object future, object result)
cpdef fail_now(object future, object error)
