# cython: language_level=3, binding=False
"""The compiled twin of polling.py: the same names and meanings, with the system calls of Linux."""

import select
import time

from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EINTR, errno

from iostreamsrv.streams.readiness cimport Dispatched

cdef extern from *:
    """
    #ifdef __linux__
    #include <sys/epoll.h>
    #include <time.h>
    #define IOSTREAMSRV_LINUX 1
    typedef struct epoll_event iostreamsrv_event;
    /* As time.monotonic computes it, or the two would differ by a rounding error. */
    static double iostreamsrv_monotonic(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (double)((long long)now.tv_sec * 1000000000 + now.tv_nsec) / 1e9;
    }
    static int iostreamsrv_poll(int epoll, iostreamsrv_event *events, int most) {
        return epoll_wait(epoll, events, most, 0);
    }
    #define iostreamsrv_number(event) ((event).data.fd)
    #else
    #define IOSTREAMSRV_LINUX 0
    typedef struct { unsigned int events; } iostreamsrv_event;
    #define iostreamsrv_monotonic() 0.0
    #define iostreamsrv_poll(epoll, events, most) 0
    #define iostreamsrv_number(event) 0
    #endif
    """
    bint IOSTREAMSRV_LINUX
    ctypedef struct iostreamsrv_event:
        unsigned int events
    double iostreamsrv_monotonic() noexcept
    int iostreamsrv_poll(int, iostreamsrv_event*, int) noexcept
    int iostreamsrv_number(iostreamsrv_event) noexcept

cdef enum:
    MOST = 1024  # events of one poll; the rest is reported by the next one

cdef object _monotonic = time.monotonic if IOSTREAMSRV_LINUX else None
cdef object _Epoll = getattr(select, "epoll", None) if IOSTREAMSRV_LINUX else None


cpdef double read_clock(object clock) except? -1:
    """The time of ``clock``."""
    return iostreamsrv_monotonic() if clock is _monotonic else clock()


cpdef bint poll(object epoll, list streams, list due) except -1:
    """Append to ``due`` each of ``streams`` that is ready, with its events in ``due_events``."""
    cdef iostreamsrv_event events[MOST]
    cdef int count, i
    cdef bint known = True
    if _Epoll is None or type(epoll) is not _Epoll:
        for number, reported in epoll.poll(0):
            known &= _add(streams, number, reported, due)
        return known
    count = iostreamsrv_poll(epoll.fileno(), events, MOST)
    if count < 0:
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)
        PyErr_CheckSignals()
        return True
    for i in range(count):
        known &= _add(streams, iostreamsrv_number(events[i]), events[i].events, due)
    return known


cdef bint _add(list streams, int number, unsigned int events, list due) except -1:
    """Return whether the descriptor is known."""
    cdef Dispatched stream = <Dispatched>streams[number] if 0 <= number < len(streams) else None
    if stream is None:
        return False
    if not stream.due_events:
        due.append(stream)
    stream.due_events |= events
    return True
