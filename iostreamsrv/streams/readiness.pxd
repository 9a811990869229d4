cdef class Dispatched:
    cdef public int hub_key
    cpdef dispatch(self, unsigned int events)
    cpdef uncork(self)
