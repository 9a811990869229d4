from iostreamsrv.streams.reading cimport ReadSide

cdef class CloseSide(ReadSide):
    cdef _close_when_sent(self)
    cdef _close_descriptor(self)
