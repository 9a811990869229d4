from iostreamsrv.streams.reading cimport ReadSide

cdef class CloseSide(ReadSide):
    pass
