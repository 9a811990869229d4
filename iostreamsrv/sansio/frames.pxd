cimport cython

from iostreamsrv.sansio.buffers cimport ReadBuffer
from iostreamsrv.sansio.reads cimport Read
from iostreamsrv.sansio.search cimport find

cdef class ReadDelimited(Read):
    cdef readonly bytes delimiter
    cdef readonly object max_size
    cdef readonly object limit
    cdef readonly object parse

    @cython.locals(end=Py_ssize_t)
    cpdef accept(self, bytes chunk)
    @cython.locals(line=bytes)
    cpdef take(self, ReadBuffer buffer)

cdef class ReadPrefixed(Read):
    cdef readonly Py_ssize_t head
    cdef readonly object max_size
    cdef readonly object unpack

    @cython.locals(head=Py_ssize_t)
    cpdef accept(self, bytes chunk)
    @cython.locals(head=Py_ssize_t)
    cpdef take(self, ReadBuffer buffer)
