cimport cython

from iostreamsrv.sansio.buffers cimport WriteBuffer
from iostreamsrv.streams.core cimport StreamCore
from iostreamsrv.streams.hub cimport Hub

cdef int CLOSED, INLINE_BUDGET
cdef Py_ssize_t _CORK_SIZE

cdef class SendSide(StreamCore):
    cdef bint _has_budget(self) except -1
    cpdef _failed_future(self, object error)
    @cython.locals(hub=Hub, size=Py_ssize_t, count=Py_ssize_t)
    cdef bint _cork(self, object data) except -1
    @cython.locals(sent=Py_ssize_t, data=bytes)
    cdef uncork(self)
    @cython.locals(hub=Hub, sent=Py_ssize_t)
    cdef Py_ssize_t _send(self, object data) except -1
    cdef _send_failed(self, object error)
    cdef bint _must_yield(self) except -1
    cdef _done_next_turn(self, object result=*)
    cdef _queue(self, object data)
    cdef _flush_now(self)
    cdef _check_room(self, WriteBuffer output, long long size)
    cdef WriteBuffer _wait_for_room(self)
    cdef _future_of_queued(self, object region=*, long long remaining=*)
    @cython.locals(output=WriteBuffer)
    cdef _flush(self)
    @cython.locals(sent=Py_ssize_t)
    cdef bint _send_first(self, WriteBuffer output) except -1
    cdef _settle_writes(self)
    cdef _all_sent(self)
    cdef _close_if_ended(self)
