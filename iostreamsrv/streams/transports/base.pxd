cdef class Transport:
    pass
