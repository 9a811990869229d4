cimport cython

from iostreamsrv.streams.donefuture cimport make_done
from iostreamsrv.streams.hub cimport Hub
from iostreamsrv.streams.sending cimport SendSide

cdef int CLOSED

cdef class WriteSide(SendSide):
    @cython.locals(hub=Hub, sent=Py_ssize_t)
    cpdef write(self, object data)
    cdef bint _finish_close(self) except -1
    cdef bint _send_close_notify(self) except -1
    cdef bint _loses_bytes(self) except -1
