from iostreamsrv.streams.transports.base cimport Transport

cdef class SocketCarrier(Transport):
    cdef readonly object socket
    cdef int _last
    cdef bint _known

    cdef Py_ssize_t _receive(self, char* place, Py_ssize_t size) except -1
    cdef Py_ssize_t _transmit(self, const char* place, Py_ssize_t size) except -1
