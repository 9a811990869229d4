# cython: language_level=3, binding=False
"""The compiled twin of carrier.py: system calls without the parsing, the timeouts and the locking of `socket.socket`.

The descriptor is read from the socket with each call, so a socket that other code closes is EBADF here as well. Where it
stands in CPython's struct is probed when this is imported; where the probe fails, and for subclasses of `socket.socket`
and objects that only resemble one, their own methods are called.

The interpreter's lock is kept: the calls never block, and to release it costs more than most of them.
"""

import socket

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EINTR, errno

from iostreamsrv.streams.transports.base cimport Transport

cdef extern from *:
    """
    #include <sys/socket.h>
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0
    #endif
    typedef struct { PyObject_HEAD int sock_fd; } iostreamsrv_socket;
    #define iostreamsrv_descriptor(sock) (((iostreamsrv_socket *)(sock))->sock_fd)
    static char iostreamsrv_scratch[65 << 10];
    """
    ctypedef Py_ssize_t ssize_t
    int iostreamsrv_descriptor(PyObject*)
    char* iostreamsrv_scratch
    ssize_t c_recv "recv"(int, void*, size_t, int) noexcept
    ssize_t c_send "send"(int, const void*, size_t, int) noexcept
    int MSG_NOSIGNAL
    int _PyBytes_Resize(PyObject**, Py_ssize_t) except -1

cdef enum:
    SCRATCH = 65 << 10  # four whole records of TLS fit
    LARGE = 1 << 14  # a receive that follows one of this size goes straight to where it stays

cdef object _Socket = socket.socket
cdef object _close = socket.SocketType.close
cdef bint _knows_sockets = False


def _probe():
    global _knows_sockets
    with socket.socket() as sock:
        _knows_sockets = iostreamsrv_descriptor(<PyObject*>sock) == sock.fileno()


_probe()


cdef class SocketCarrier(Transport):
    """Receives from a socket, sends to it, and closes it."""

    def __init__(self, sock):
        self.socket = sock
        self._known = _knows_sockets and type(sock) is _Socket

    def carrier(self):
        """This object, without the calls of Python's sockets."""
        return self

    cpdef recv(self, Py_ssize_t size):
        """Up to ``size`` bytes; b"" at EOF."""
        cdef ssize_t count
        cdef PyObject* shrinking
        if not self._known:
            return self.socket.recv(size)
        if self._last >= LARGE or size > SCRATCH:
            chunk = PyBytes_FromStringAndSize(NULL, size)
            count = self._receive(PyBytes_AS_STRING(chunk), size)
            self._last = <int>min(count, LARGE)
            if count < size >> 1:
                return PyBytes_FromStringAndSize(PyBytes_AS_STRING(chunk), count)
            if count < size:
                shrinking = <PyObject*>chunk
                Py_INCREF(chunk)
                chunk = None
                _PyBytes_Resize(&shrinking, count)
                chunk = <object>shrinking
                Py_DECREF(chunk)
            return chunk
        count = self._receive(iostreamsrv_scratch, size)
        self._last = <int>count
        return PyBytes_FromStringAndSize(iostreamsrv_scratch, count)

    cpdef recv_into(self, object buffer):
        """As :meth:`recv`, into ``buffer``; return how many bytes."""
        cdef Py_buffer view
        if not self._known:
            return self.socket.recv_into(buffer)
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            return self._receive(<char*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef Py_ssize_t _receive(self, char* place, Py_ssize_t size) except -1:
        cdef ssize_t count
        while True:
            count = c_recv(iostreamsrv_descriptor(<PyObject*>self.socket), place, size, 0)
            if count >= 0:
                return count
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()

    cpdef Py_ssize_t send(self, object data) except? -1:
        """Send what can be sent now; return how many bytes."""
        cdef Py_buffer view
        if not self._known:
            return self.socket.send(data)
        if type(data) is bytes:
            return self._transmit(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self._transmit(<char*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef Py_ssize_t _transmit(self, const char* place, Py_ssize_t size) except -1:
        cdef ssize_t count
        while True:
            count = c_send(iostreamsrv_descriptor(<PyObject*>self.socket), place, size, MSG_NOSIGNAL)
            if count >= 0:
                return count
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()

    def close(self):
        """What ``close()`` of `socket.socket` does, without its two Python frames."""
        sock = self.socket
        if type(sock) is not _Socket or sock._io_refs:
            sock.close()
        else:
            sock._closed = True
            _close(sock)
