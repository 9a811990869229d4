cdef class Dispatched:
    cdef public unsigned int due_events
    cdef public int hub_key
    cdef dispatch(self, unsigned int events)
    cdef uncork(self)
