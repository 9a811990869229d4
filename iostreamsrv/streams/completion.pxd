cimport cython

from iostreamsrv.sansio.reads cimport Read, ReadInto
from iostreamsrv.streams.donefuture cimport done_future
from iostreamsrv.streams.hub cimport Hub
from iostreamsrv.streams.pending cimport PendingSide
from iostreamsrv.streams.wakeup cimport is_done, make_pending, resolve_now

cdef int CLOSED, INLINE_BUDGET
cdef unsigned int BROKEN, HANGUP, READABLE, WRITABLE
cdef object MORE

cdef class CompletionSide(PendingSide):
    @cython.locals(hub=Hub)
    cdef _begin_read(self, Read read, object timeout, ReadInto into=*)
    cdef _done_future(self, object result)
    cdef _failed_inline(self, Read read, object error)
    cdef _read_after_eof(self, Read read)
    @cython.locals(read=Read)
    cdef dispatch(self, unsigned int events)
    @cython.locals(read=Read)
    cdef _wait_for_more(self)
