cimport cython

from iostreamsrv.sansio.search cimport find

cdef class Region:
    cdef public long long left

cdef class ReadBuffer:
    cdef object _data
    cdef Py_ssize_t _start
    cdef readonly Py_ssize_t size
    cdef object _needle
    cdef Py_ssize_t _searched

    cpdef feed(self, bytes chunk)
    @cython.locals(start=Py_ssize_t, end=Py_ssize_t, whole=bytes, raw=cython.p_const_char)
    cpdef bytes take(self, Py_ssize_t count)
    cpdef bytes peek(self, Py_ssize_t count)
    @cython.locals(start=Py_ssize_t, begin=Py_ssize_t, found=Py_ssize_t, count=Py_ssize_t)
    cpdef bytes take_until(self, bytes needle, object limit)
    cpdef Py_ssize_t search(self, object pattern, Py_ssize_t limit) except -2
    @cython.locals(start=Py_ssize_t)
    cpdef bytearray contents(self)
    cpdef unread(self, bytes taken)
    cpdef truncate(self, Py_ssize_t count)
    cpdef clear(self)

cdef class WriteBuffer:
    cdef object _pieces
    cdef Py_ssize_t _offset
    cdef readonly long long size
    cdef readonly long long in_files
    cdef readonly Py_ssize_t files

    @cython.locals(count=Py_ssize_t)
    cpdef append(self, object data)
    cpdef append_file(self, Region region)
    cpdef peek(self)
    cpdef _join(self)
    cpdef advance(self, Py_ssize_t count)
    cpdef truncate(self, Py_ssize_t count)
