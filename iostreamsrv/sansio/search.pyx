# cython: language_level=3, binding=False
"""The compiled twin of search.py: the same name and meaning, without the interpreter's parsing of arguments."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <string.h>
    static inline Py_ssize_t iostreamsrv_find(const char *data, Py_ssize_t size, const char *needle, Py_ssize_t length) {
        const char *found = length == 1 ? memchr(data, needle[0], size) : memmem(data, size, needle, length);
        return found ? found - data : -1;
    }
    """
    Py_ssize_t iostreamsrv_find(const char*, Py_ssize_t, const char*, Py_ssize_t) noexcept


cpdef Py_ssize_t find(bytes data, bytes needle, Py_ssize_t begin=0) except -2:
    """Where ``needle`` begins in ``data``, or -1."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t found
    if begin < 0 or begin > size:
        return -1
    found = iostreamsrv_find(
        PyBytes_AS_STRING(data) + begin, size - begin, PyBytes_AS_STRING(needle), PyBytes_GET_SIZE(needle)
    )
    return found if found < 0 else begin + found
