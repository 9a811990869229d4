cimport cython

from iostreamsrv.streams.hub cimport Hub
from iostreamsrv.streams.sending cimport SendSide

cdef class WriteSide(SendSide):
    @cython.locals(hub=Hub, sent=Py_ssize_t)
    cpdef write(self, object data)
