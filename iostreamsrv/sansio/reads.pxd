cimport cython

from iostreamsrv.sansio.buffers cimport ReadBuffer
from iostreamsrv.sansio.search cimport find

cdef class Read:
    cdef readonly bint plain
    cdef public bint restarted
    cdef readonly bint unfinished

    cpdef take(self, ReadBuffer buffer)
    cpdef accept(self, bytes chunk)
    cpdef finish(self, ReadBuffer buffer)
    cpdef abandon(self, ReadBuffer buffer)

cdef class ReadUntil(Read):
    cdef readonly bytes delimiter
    cdef readonly object max_bytes

    @cython.locals(delimiter=bytes)
    cpdef accept(self, bytes chunk)
    cpdef take(self, ReadBuffer buffer)

cdef class ReadUntilRegex(Read):
    cdef readonly object pattern
    cdef readonly object max_bytes

    cpdef take(self, ReadBuffer buffer)

cdef class ReadBytes(Read):
    cdef readonly object count

    cpdef take(self, ReadBuffer buffer)

cdef class ReadPartial(Read):
    cdef readonly object count

    cpdef accept(self, bytes chunk)
    cpdef take(self, ReadBuffer buffer)

cdef class ReadInto(Read):
    cdef readonly object target
    cdef readonly object partial
    cdef readonly Py_ssize_t filled

    cpdef fill(self, object receive)
    cpdef abandon(self, ReadBuffer buffer)

cdef class ReadUntilClose(Read):
    cpdef take(self, ReadBuffer buffer)
    cpdef finish(self, ReadBuffer buffer)

cdef class ReadMatch(Read):
    cdef readonly object match

    cpdef take(self, ReadBuffer buffer)

cdef class Discard(Read):
    cdef public Py_ssize_t keep
    cdef readonly Py_ssize_t limit

    cpdef take(self, ReadBuffer buffer)
    cpdef finish(self, ReadBuffer buffer)
