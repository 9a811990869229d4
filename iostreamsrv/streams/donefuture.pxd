cpdef done_future(object loop, object result)
