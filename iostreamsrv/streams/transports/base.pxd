cdef class Transport:
    cpdef recv(self, Py_ssize_t size)
    cpdef recv_into(self, object buffer)
    cpdef Py_ssize_t send(self, object data) except? -1
