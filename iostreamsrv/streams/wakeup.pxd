cpdef resolve_now(object future, object result, object error=*)
