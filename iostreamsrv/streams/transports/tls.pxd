cimport cython

from iostreamsrv.sansio.tls cimport TLSEngine
from iostreamsrv.streams.transports.base cimport Transport

cdef Py_ssize_t _CIPHERTEXT, _PLAINTEXT

cdef class TLSTransport(Transport):
    cdef readonly object below
    cdef readonly TLSEngine engine
    cdef readonly bint handshaken
    cdef readonly bint incomplete
    cdef readonly bint spoke_last
    cdef readonly bint stuck
    cdef Transport _raw
    cdef object _ciphertext
    cdef Py_ssize_t _accepted
    cdef bint _pending
    cdef bint _ended
    cdef bint _truncated
    cdef bint _close_notify_made
    cdef bint _silent

    @cython.locals(engine=TLSEngine, drained=bint, plaintext=bytes, chunk=bytes)
    cpdef recv(self, Py_ssize_t size)
    @cython.locals(engine=TLSEngine, drained=bint)
    cpdef recv_into(self, object buffer)
    cdef _input_ended(self)
    cdef _send_answers(self)
    @cython.locals(engine=TLSEngine, received=Py_ssize_t)
    cdef _receive_into(self, object space)
    cpdef bint pending(self)
    @cython.locals(size=Py_ssize_t, sent=Py_ssize_t)
    cpdef Py_ssize_t send(self, object data) except? -1
    @cython.locals(sent=Py_ssize_t)
    cpdef bint flush(self) except -1
    cpdef Py_ssize_t own_output(self) except? -1
    cdef Py_ssize_t _unsent_ciphertext(self) except -1
