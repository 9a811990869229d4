cimport cython

from iostreamsrv.sansio.reads cimport Read
from iostreamsrv.streams.receiving cimport ReceiveSide

cdef int CLOSED
cdef unsigned int BROKEN, ENDED
cdef object MORE

cdef class PendingSide(ReceiveSide):
    cdef _has_answered(self)
    cdef _expect_no_read(self)
    @cython.locals(read=Read)
    cdef _abandon_read(self)
    cdef _forget_read(self)
    cdef _input_ended(self)
    cdef _finish_read_at_eof(self, object error)
    cdef _read_to_settle(self, object error)
    cdef _dispatch_without_read(self)
    cpdef _poll_for_eof_soon(self)
