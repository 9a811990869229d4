# cython: language_level=3, binding=False
"""The compiled twin of donefuture.py: the same names and meanings.

A coroutine that awaits one of these futures gets its result without a Python frame and without the loop: by ``am_send``
up to CPython 3.11, by ``tp_iternext`` from 3.12 on. Cython makes slots for ``__next__`` that raise `StopIteration`;
ours need no exception object for most results, so they are set by hand.
"""

import asyncio

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF

cdef object _Future = asyncio.Future
cdef object _InvalidStateError = asyncio.InvalidStateError


@cython.freelist(256)
cdef class DoneFuture:
    """A finished `asyncio.Future`: it has a future's methods, and passes for one in ``isinstance``,
    ``asyncio.isfuture``, ``wait``, ``gather``, ``wait_for`` and `tornado.gen`."""

    cdef readonly object _loop
    cdef object _value

    _asyncio_future_blocking = False  # asyncio.isfuture() checks for this attribute
    _callbacks = None

    @property
    def __class__(self):
        return _Future

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration(self._value)

    def __repr__(self):
        return f"<DoneFuture finished result={self._value!r}>"

    def get_loop(self):
        """The loop of the stream."""
        return self._loop

    def done(self):
        """True."""
        return True

    def cancelled(self):
        """False."""
        return False

    def cancel(self, msg=None):
        """False: it is done already."""
        return False

    def result(self):
        """The result."""
        return self._value

    def exception(self):
        """None."""

    def add_done_callback(self, callback, *, context=None):
        """Call ``callback`` with this future in the loop's next turn."""
        self._loop.call_soon(callback, self, context=context)

    def remove_done_callback(self, callback):
        """0: no callback is kept."""
        return 0

    def set_result(self, result):
        """Raise `asyncio.InvalidStateError`."""
        raise _InvalidStateError("it is done already")

    def set_exception(self, exception):
        """Raise `asyncio.InvalidStateError`."""
        raise _InvalidStateError("it is done already")


cdef PySendResult _send(PyObject* self, PyObject* value, PyObject** result) except? PYGEN_ERROR:
    cdef object found = (<DoneFuture>self)._value
    Py_INCREF(found)
    result[0] = <PyObject*>found
    return PYGEN_RETURN


cdef PyObject* _next(PyObject* self) except? NULL:
    return end_of_iteration((<DoneFuture>self)._value)


(<PyTypeObject*>DoneFuture).tp_as_async.am_send = _send
(<PyTypeObject*>DoneFuture).tp_iternext = _next


cpdef done_future(object loop, object result):
    """A future of ``loop`` that is done."""
    cdef DoneFuture future = DoneFuture.__new__(DoneFuture)
    future._loop = loop
    future._value = result
    return future


@cython.final
cdef class _DoneFutures:
    cdef object _loop

    def __init__(self, loop):
        self._loop = loop

    def __call__(self):
        return done_future(self._loop, None)


cpdef make_done(object type_):
    """A future of the type that :func:`done_future_type` has given."""
    return done_future((<_DoneFutures>type_)._loop, None) if type(type_) is _DoneFutures else type_()


def done_future_type(loop):
    """Makes done futures of ``loop``."""
    return _DoneFutures(loop)
