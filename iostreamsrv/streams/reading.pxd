from iostreamsrv.sansio.reads cimport ReadUntil
from iostreamsrv.streams.completion cimport CompletionSide

cdef ReadUntil _last_until

cdef class ReadSide(CompletionSide):
    pass
