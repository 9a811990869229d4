cpdef make_pending(object type_)
cpdef bint is_done(object future) except -1
cpdef resolve_now(object future, object result, object error=*)
