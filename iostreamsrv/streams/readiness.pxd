cdef class Dispatched:
    cdef public unsigned int due_events
    cdef public int hub_key
    cpdef dispatch(self, unsigned int events)
    cdef uncork(self)
