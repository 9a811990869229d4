cimport cython

from iostreamsrv.streams.donefuture cimport make_done
from iostreamsrv.streams.hub cimport Hub
from iostreamsrv.streams.sending cimport SendSide

cdef int CLOSED

cdef class WriteSide(SendSide):
    @cython.locals(hub=Hub, sent=Py_ssize_t)
    cpdef write(self, object data)
    @cython.locals(hub=Hub, sent=Py_ssize_t)
    cdef bint write_shared(self, bytes data) except -1
    cdef bint _finish_close(self) except -1
    cdef bint _send_close_notify(self) except -1
    cdef bint _loses_bytes(self) except -1

@cython.locals(stream=WriteSide, taken=Py_ssize_t)
cpdef Py_ssize_t write_to_each(list streams, bytes data, object left_out, list full) except -1
