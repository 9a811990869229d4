cimport cython

from iostreamsrv.streams.polling cimport poll, read_clock
from iostreamsrv.streams.readiness cimport Dispatched

cdef class Hub:
    cdef public bint inherited
    cdef public bint checked
    cdef public object io_loop
    cdef public object loop
    cdef public object time
    cdef public object wall_time
    cdef public double now
    cdef public object done
    cdef public object pending
    cdef public bint running
    cdef public bint timed
    cdef public bint others_pending
    cdef public Dispatched dispatching
    cdef public list corked
    cdef public list _due
    cdef public Py_ssize_t _remaining
    cdef public bint _scheduled
    cdef public double _turn_ends
    cdef public int _slice_checks
    cdef object __weakref__

    cpdef bint watch_reads(self, Dispatched stream) except -1
    cpdef bint watch_writes(self, Dispatched stream) except -1
    cpdef unwatch(self, Dispatched stream)
    cpdef check(self)
    cpdef dispatch_again(self, Dispatched stream)
    @cython.locals(now=double)
    cpdef bint within_slice(self) except -1
    cpdef bint slice_is_over(self, double began) except -1
    cpdef _schedule(self)
    cpdef _enqueue(self, Dispatched stream, unsigned int events)
    @cython.locals(now=double, end=double, count=Py_ssize_t, at=Py_ssize_t, due=list, events=cython.uint, stream=Dispatched)
    cpdef _run(self)
    @cython.locals(corked=list, at=Py_ssize_t, stream=Dispatched)
    cpdef _uncork(self)

cdef class EpollHub(Hub):
    cdef public object _epoll
    cdef public list _streams
    cdef public Py_ssize_t _count
    cdef public object _keeper
    cdef public bint _stale
    cdef public object _warnings

    @cython.locals(number=int)
    cpdef _register(self, Dispatched stream, unsigned int events)
    @cython.locals(number=int)
    cdef bint _has(self, Dispatched stream) except -1

cdef class LoopHub(Hub):
    cdef public dict _wanted
    cdef public object _dispatching
