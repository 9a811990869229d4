# cython: language_level=3, binding=False
"""The compiled twin of backlog.py: the connection is non-blocking from the start, nothing is asked of the kernel again
that the listener knows, and an empty queue is no exception.

The fields of `socket.socket` are written directly, in the struct that CPython has for it. Where they stand is probed
when this is imported; where the probe fails, and for listeners that are not our own kind or have an ``accept`` of their
own, ``listener.accept()`` is called.
"""

import socket
import sys
from types import MethodType

from cpython.object cimport PyObject, PyTypeObject
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memcpy

from iostreamsrv.runtime.kernel import ListeningSocket

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <sys/socket.h>
    #include <unistd.h>

    /* The part of CPython's struct that has been the same since 3.11, and all that it may have. */
    typedef struct { int fd, family, type, proto; } iostreamsrv_head;
    #define IOSTREAMSRV_MOST 40
    #define iostreamsrv_fields(sock) ((char *)(sock) + sizeof(PyObject))
    #define iostreamsrv_head_of(sock) ((iostreamsrv_head *)iostreamsrv_fields(sock))

    static int iostreamsrv_accept(int fd, struct sockaddr_storage *address) {
        socklen_t size = sizeof *address;
    #if defined(__linux__) && defined(SOCK_NONBLOCK)
        return accept4(fd, (struct sockaddr *)address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    #else
        errno = ENOSYS;
        return -1;
    #endif
    }
    #if defined(__linux__) && defined(SOCK_NONBLOCK)
    #define IOSTREAMSRV_CAN 1
    #else
    #define IOSTREAMSRV_CAN 0
    #endif
    """
    ctypedef struct iostreamsrv_head:
        int fd, family, type, proto
    int IOSTREAMSRV_MOST, IOSTREAMSRV_CAN
    char* iostreamsrv_fields(PyObject*)
    iostreamsrv_head* iostreamsrv_head_of(PyObject*)
    cdef struct sockaddr_storage:
        unsigned short ss_family
    int EWOULDBLOCK
    int iostreamsrv_accept(int, sockaddr_storage*) noexcept

cdef extern from "<netinet/in.h>" nogil:
    cdef struct in_addr:
        unsigned int s_addr
    cdef struct in6_addr:
        pass
    cdef struct sockaddr_in:
        unsigned short sin_port
        in_addr sin_addr
    cdef struct sockaddr_in6:
        unsigned short sin6_port
        unsigned int sin6_flowinfo, sin6_scope_id
        in6_addr sin6_addr
    unsigned short ntohs(unsigned short)
    unsigned int ntohl(unsigned int)
    const char* inet_ntop(int, const void*, char*, unsigned int)
    int AF_INET, AF_INET6

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int)

cdef extern from "Python.h":
    ctypedef object (*newfunc)(PyTypeObject*, PyObject*, PyObject*)  # a new reference
    ctypedef struct TypeWithNew "PyTypeObject":
        newfunc tp_new
        Py_ssize_t tp_basicsize
    int PySys_Audit(const char*, const char*, ...) except -1

cdef object _Socket = socket.socket
cdef object _accept = socket.socket.accept
cdef tuple _nothing = ()
cdef bint _knows_sockets = False
cdef Py_ssize_t _size = 0  # of the struct's fields
cdef char[64] _fields  # those of a socket that is non-blocking


cdef object _made(int fd, int family, int type, int proto):
    """A `socket.socket` on ``fd``, as its constructor makes it."""
    cdef iostreamsrv_head* head
    cdef object sock = (<TypeWithNew*>_Socket).tp_new(<PyTypeObject*>_Socket, <PyObject*>_nothing, NULL)
    sock._io_refs = 0
    sock._closed = False
    memcpy(iostreamsrv_fields(<PyObject*>sock), _fields, _size)
    head = iostreamsrv_head_of(<PyObject*>sock)
    head.fd = fd
    head.family = family
    head.type = type
    head.proto = proto  # nothing fails from here on: now the descriptor is the object's
    return sock


def _probe():
    """Whether a socket that is made here is like one that Python makes."""
    global _knows_sockets, _size
    cdef iostreamsrv_head* head
    base = _Socket.__mro__[1]
    _size = (<TypeWithNew*>base).tp_basicsize - sizeof(PyObject)
    if not IOSTREAMSRV_CAN or base.__module__ != "_socket" or _size not in (IOSTREAMSRV_MOST - 8, IOSTREAMSRV_MOST):
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as known:
        known.setblocking(False)
        head = iostreamsrv_head_of(<PyObject*>known)
        if (head.fd, head.family, head.type, head.proto) != (known.fileno(), known.family, known.type, known.proto):
            return
        memcpy(_fields, iostreamsrv_fields(<PyObject*>known), _size)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
            made = _made(other.detach(), socket.AF_INET, socket.SOCK_STREAM, 0)
        with made:
            try:
                made.recv(1)
            except OSError:  # it is not connected: this error is made by what stands in the struct
                _knows_sockets = made.fileno() > 0 and made.gettimeout() == 0 and made.family == socket.AF_INET


if sys.implementation.name == "cpython":
    _probe()


cdef class Backlog:
    """Connections that wait to be accepted."""

    cdef object _listener
    cdef bint _blocking
    cdef bint _ours
    cdef int _type
    cdef int _proto
    cdef unsigned int _last  # the IPv4 address of the last client: most come again
    cdef str _last_name

    def __init__(self, listener, blocking):
        self._listener = listener
        self._blocking = blocking
        self._ours = (
            _knows_sockets
            and not blocking
            and type(listener) in (_Socket, ListeningSocket)
            and listener.family in (socket.AF_INET, socket.AF_INET6)
        )
        if self._ours:
            self._type, self._proto = int(listener.type), listener.proto

    cpdef accept(self):
        """Accept one connection; return it and its address, None if none waits."""
        cdef int fd
        cdef sockaddr_storage address
        method = self._listener.accept
        if not self._ours or type(method) is not MethodType or method.__func__ is not _accept:
            return self._accept_by(method)
        while True:
            fd = iostreamsrv_accept(iostreamsrv_head_of(<PyObject*>self._listener).fd, &address)
            if fd >= 0:
                break
            if errno == EAGAIN or errno == EWOULDBLOCK:
                return None
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()
        try:
            connection = _made(fd, address.ss_family, self._type, self._proto)
        except BaseException:
            c_close(fd)
            raise
        PySys_Audit("socket.__new__", "Oiii", <PyObject*>connection, <int>address.ss_family, self._type, self._proto)
        if address.ss_family == AF_INET:
            return connection, self._ipv4(<sockaddr_in*>&address)
        return connection, self._ipv6(<sockaddr_in6*>&address)

    cdef _accept_by(self, method):
        try:
            connection, address = method()
        except BlockingIOError:
            return None
        if not self._blocking:
            connection.setblocking(False)
        return connection, address

    cdef _ipv4(self, sockaddr_in* address):
        cdef char[64] name
        if self._last_name is None or self._last != address.sin_addr.s_addr:
            inet_ntop(AF_INET, &address.sin_addr, name, sizeof(name))
            self._last_name = (<bytes>name).decode("ascii")
            self._last = address.sin_addr.s_addr
        return self._last_name, ntohs(address.sin_port)

    cdef _ipv6(self, sockaddr_in6* address):
        cdef char[64] name
        inet_ntop(AF_INET6, &address.sin6_addr, name, sizeof(name))
        port, flow, scope = ntohs(address.sin6_port), ntohl(address.sin6_flowinfo), address.sin6_scope_id
        return (<bytes>name).decode("ascii"), port, flow, scope
