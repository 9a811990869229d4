# cython: language_level=3, binding=False
"""The compiled twin of wakeup.py: the same names and meanings.

A `PendingFuture` has its one callback in two fields, without a list. A task that awaits it leaves a builtin method there;
its C definition tells whether it is a task's wake-up, without a look at its name. To step the task it is called with some
finished future of asyncio's own: CPython's task looks there only for an exception, and then asks what it awaits, which is
our future, for the result.
"""

import asyncio
import types

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF

from .eager import TASK_WAKEUP, WAKEUP, step_watched

from iostreamsrv.streams.donefuture cimport (
    PYGEN_ERROR,
    PYGEN_NEXT,
    PYGEN_RETURN,
    PyErr_SetObject,
    PySendResult,
    PyTypeObject,
    end_of_iteration,
)

cdef extern from "Python.h":
    PyObject* Py_TYPE(object)
    int PyCFunction_CheckExact(object)
    int PyContext_Enter(object) except -1
    int PyContext_Exit(object) except -1
    object PyContext_CopyCurrent()
    PyObject* PyObject_GenericGetAttr(PyObject*, PyObject*) except NULL
    int PyObject_GenericSetAttr(PyObject*, PyObject*, PyObject*) except -1
    Py_ssize_t PyVectorcall_NARGS(size_t)

cdef extern from *:
    """
    #define iostreamsrv_method(function) ((void *)((PyCFunctionObject *)(function))->m_ml)

    /* A function without arguments that returns what it was made for: nothing is called faster. */
    static PyObject *iostreamsrv_get(PyObject *self, PyObject *unused) {
        Py_INCREF(self);
        return self;
    }
    static PyMethodDef iostreamsrv_get_loop = {"get_loop", iostreamsrv_get, METH_NOARGS, "The loop of the stream."};
    #define iostreamsrv_getter(loop) PyCFunction_New(&iostreamsrv_get_loop, loop)

    /* How a task gives its callback: with one argument, and with the name of one keyword. */
    #define iostreamsrv_is_one(count) (PyVectorcall_NARGS(count) == 1)
    static int iostreamsrv_only(PyObject *names, PyObject *name) {
        static PyObject *known;  /* each task gives the same tuple */
        if (names == known)
            return 1;
        if (PyTuple_GET_SIZE(names) != 1 || PyUnicode_Compare(PyTuple_GET_ITEM(names, 0), name))
            return 0;
        Py_INCREF(names);
        Py_XSETREF(known, names);
        return 1;
    }
    static void iostreamsrv_call_by_vector(PyTypeObject *type, Py_ssize_t offset) {
        type->tp_vectorcall_offset = offset;
        type->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL;
    }
    """
    bint iostreamsrv_is_one(size_t)
    bint iostreamsrv_only(PyObject*, object)
    void iostreamsrv_call_by_vector(PyTypeObject*, Py_ssize_t)
    void* iostreamsrv_method(PyObject*)
    object iostreamsrv_getter(object)

EAGER_WAKEUP = WAKEUP is not None
debugging = False

cdef object _Future = asyncio.Future
cdef object _CancelledError = asyncio.CancelledError
cdef object _InvalidStateError = asyncio.InvalidStateError
cdef void* _wakeup = iostreamsrv_method(<PyObject*>WAKEUP) if WAKEUP is not None else NULL


cdef object _make_finished():
    loop = asyncio.new_event_loop()
    future = _Future(loop=loop)
    future.set_result(None)
    loop.close()
    return future


cdef object _finished = _make_finished()

cdef enum:
    PENDING
    FINISHED
    FAILED
    CANCELLED


@cython.final
@cython.freelist(8)
cdef class CallbackAdder:
    """The method ``add_done_callback`` of a `PendingFuture`, bound. A task calls it for each read: this takes a third of
    what Python's own methods take to be bound, and to find a keyword."""

    cdef void* _vectorcall
    cdef PendingFuture _future

    def __call__(self, callback, *, context=None):
        self._future._add(callback, context)


cdef object _add_now(PyObject* self, PyObject** arguments, size_t count, PyObject* names):
    cdef PendingFuture future = (<CallbackAdder>self)._future
    if iostreamsrv_is_one(count) and (names is NULL or iostreamsrv_only(names, "context")):
        future._add(<object>arguments[0], None if names is NULL else <object>arguments[1])
    else:
        _call_adder(<CallbackAdder>self, arguments, count, names)


cdef _call_adder(CallbackAdder adder, PyObject** arguments, size_t count, PyObject* names):
    """A call that is not a task's."""
    cdef Py_ssize_t positional = PyVectorcall_NARGS(count)
    given = [<object>arguments[at] for at in range(positional)]
    keywords = {}
    if names is not NULL:
        for at, name in enumerate(<object>names):
            keywords[name] = <object>arguments[positional + at]
    adder.__call__(*given, **keywords)


cdef _enable_vectorcall():
    cdef CallbackAdder adder = CallbackAdder.__new__(CallbackAdder)
    iostreamsrv_call_by_vector(<PyTypeObject*>CallbackAdder, <char*>&adder._vectorcall - <char*><PyObject*>adder)


_enable_vectorcall()


@cython.final
@cython.freelist(1024)
cdef class PendingFuture:
    """An `asyncio.Future`, for one task that waits. It passes for one in ``isinstance``, ``asyncio.isfuture``, ``wait``,
    ``gather``, ``wait_for`` and `tornado.gen`."""

    cdef readonly object _loop
    cdef object _loop_getter
    cdef public bint _asyncio_future_blocking
    cdef char _phase
    cdef object _value  # the result, the exception, or the message of a cancel
    cdef object _traceback
    cdef object _callback
    cdef object _context
    cdef list _more  # further callbacks, with their contexts
    cdef dict __dict__
    cdef object __weakref__

    @property
    def __class__(self):
        return _Future

    @property
    def _callbacks(self):
        return None if self._callback is None else [(self._callback, self._context), *(self._more or ())]

    @property
    def _state(self):
        return ("PENDING", "FINISHED", "FINISHED", "CANCELLED")[self._phase]

    def __repr__(self):
        state = ("pending", "finished", "finished", "cancelled")[self._phase]
        what = "" if self._phase in (PENDING, CANCELLED) else f" {'result' if self._phase == FINISHED else 'exception'}={self._value!r}"
        return f"<PendingFuture {state}{what}>"

    def get_loop(self):
        """The loop of the stream."""
        return self._loop

    def done(self):
        """Whether it has a result or an exception, or is cancelled."""
        return self._phase != PENDING

    def cancelled(self):
        """Whether it is cancelled."""
        return self._phase == CANCELLED

    def cancel(self, msg=None):
        """Cancel it, unless it is done; return whether it was not."""
        if self._phase != PENDING:
            return False
        self._phase = CANCELLED
        self._value = msg
        self._schedule_callbacks()
        return True

    def result(self):
        """The result. Raises the exception, or `asyncio.InvalidStateError` if there is neither."""
        if self._phase == FINISHED:
            return self._value
        if self._phase == FAILED:
            raise self._value.with_traceback(self._traceback)
        raise self._missing("Result is not set.")

    def exception(self):
        """The exception, or None if there is a result. Raises `asyncio.InvalidStateError` if there is neither."""
        if self._phase == FINISHED:
            return None
        if self._phase == FAILED:
            return self._value
        raise self._missing("Exception is not set.")

    cdef object _missing(self, text):
        if self._phase == PENDING:
            return _InvalidStateError(text)
        return self._make_cancelled_error()

    def _make_cancelled_error(self):
        """For `asyncio.gather`."""
        return _CancelledError() if self._value is None else _CancelledError(self._value)

    cdef _raise(self):
        """As :meth:`result`, of a future that is done without one; no frame of this module gets into the traceback."""
        if self._phase == FAILED:
            error = self._value.with_traceback(self._traceback)
        else:
            error = self._missing("")
        PyErr_SetObject(Py_TYPE(error), <PyObject*>error)

    def set_result(self, result):
        """Make it done. Raises `asyncio.InvalidStateError` if it is done already."""
        self._begin_to_end()
        self._phase = FINISHED
        self._value = result
        self._schedule_callbacks()

    def set_exception(self, exception):
        """Make it done, with an exception. Raises as :meth:`set_result`."""
        self._begin_to_end()
        if isinstance(exception, type):
            exception = exception()
        if not isinstance(exception, BaseException):
            raise TypeError("invalid exception object")
        if isinstance(exception, StopIteration):
            cause, exception = exception, RuntimeError("StopIteration cannot be raised into a future")
            exception.__cause__ = cause
        self._phase = FAILED
        self._value = exception
        self._traceback = exception.__traceback__
        self._schedule_callbacks()

    cdef _begin_to_end(self):
        if self._phase != PENDING:
            raise _InvalidStateError("invalid state")

    def add_done_callback(self, callback, *, context=None):
        """Call ``callback`` with this future in the loop's next turn after it is done."""
        self._add(callback, context)

    cdef _add(self, callback, context):
        if context is None:
            context = PyContext_CopyCurrent()
        if self._phase != PENDING:
            self._loop.call_soon(callback, self, context=context)
        elif self._callback is None:
            self._callback = callback
            self._context = context
        else:
            if self._more is None:
                self._more = []
            self._more.append((callback, context))

    def remove_done_callback(self, callback):
        """Forget a callback; return how often it was there."""
        before = self._callbacks or []
        after = [entry for entry in before if entry[0] != callback]
        self._callback, self._context = after[0] if after else (None, None)
        self._more = after[1:] or None
        return len(before) - len(after)

    cdef _schedule_callbacks(self):
        entries = self._callbacks
        self._callback = self._context = self._more = None
        for callback, context in entries or ():
            self._loop.call_soon(callback, self, context=context)

    cdef bint _steps_task(self) noexcept:
        """Whether its only callback is a task's wake-up."""
        return (
            self._callback is not None
            and self._more is None
            and PyCFunction_CheckExact(self._callback)
            and iostreamsrv_method(<PyObject*>self._callback) == _wakeup
        )

    cdef _resolve(self, result, error):
        if self._phase != PENDING or not self._steps_task() or not EAGER_WAKEUP:
            return self.set_result(result) if error is None else self.set_exception(error)
        if error is None:
            self._phase = FINISHED
            self._value = result
        else:
            self._phase = FAILED
            self._value = error
            self._traceback = error.__traceback__
        self._step_task()

    cdef _step_task(self):
        callback, context = self._callback, self._context
        self._callback = self._context = None
        if debugging:
            return step_watched(self._loop, callback, context, _finished)
        PyContext_Enter(context)
        try:
            callback(_finished)
        finally:
            PyContext_Exit(context)

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if self._phase == PENDING:
            self._asyncio_future_blocking = True
            return self
        raise StopIteration(self.result())


cdef PySendResult _send(PyObject* self, PyObject* value, PyObject** result) except? PYGEN_ERROR:
    cdef PendingFuture future = <PendingFuture>self
    result[0] = NULL
    if future._phase == PENDING:
        future._asyncio_future_blocking = True
        Py_INCREF(future)
        result[0] = <PyObject*>future
        return PYGEN_NEXT
    if future._phase != FINISHED:
        future._raise()
        return PYGEN_ERROR
    Py_INCREF(future._value)
    result[0] = <PyObject*>future._value
    return PYGEN_RETURN


cdef PyObject* _next(PyObject* self) except? NULL:
    cdef PendingFuture future = <PendingFuture>self
    if future._phase == PENDING:
        future._asyncio_future_blocking = True
        Py_INCREF(future)
        return <PyObject*>future
    if future._phase != FINISHED:
        future._raise()
        return NULL
    return end_of_iteration(future._value)


# A task asks for these three attributes with each read, by the interned name. To find them as all others takes longer
# than all else that this future does.

cdef str _BLOCKING = "_asyncio_future_blocking"
cdef str _GET_LOOP = "get_loop"
cdef str _ADD = "add_done_callback"


cdef PyObject* _get_attribute(PyObject* self, PyObject* name) except NULL:
    cdef PendingFuture future = <PendingFuture>self
    cdef CallbackAdder adder
    cdef object found
    if name == <PyObject*>_BLOCKING:
        found = future._asyncio_future_blocking
    elif name == <PyObject*>_GET_LOOP:
        found = future._loop_getter
    elif name == <PyObject*>_ADD:
        adder = CallbackAdder.__new__(CallbackAdder)
        adder._vectorcall = <void*>_add_now
        adder._future = future
        found = adder
    else:
        return PyObject_GenericGetAttr(self, name)
    Py_INCREF(found)
    return <PyObject*>found


cdef int _set_attribute(PyObject* self, PyObject* name, PyObject* value) except -1:
    if name == <PyObject*>_BLOCKING and value == <PyObject*>False:
        (<PendingFuture>self)._asyncio_future_blocking = False
        return 0
    return PyObject_GenericSetAttr(self, name, value)


(<PyTypeObject*>PendingFuture).tp_getattro = _get_attribute
(<PyTypeObject*>PendingFuture).tp_setattro = _set_attribute
(<PyTypeObject*>PendingFuture).tp_as_async.am_send = _send
(<PyTypeObject*>PendingFuture).tp_iternext = _next


@cython.final
cdef class _PendingFutures:
    cdef object _loop
    cdef object _loop_getter

    def __init__(self, loop):
        self._loop = loop
        self._loop_getter = iostreamsrv_getter(loop)

    cdef PendingFuture make(self):
        cdef PendingFuture future = PendingFuture.__new__(PendingFuture)
        future._loop = self._loop
        future._loop_getter = self._loop_getter
        return future

    def __call__(self):
        return self.make()


def pending_future_type(loop):
    """Makes futures of ``loop`` for pending reads."""
    return _PendingFutures(loop)


cpdef make_pending(object type_):
    """A future of the type that :func:`pending_future_type` has given."""
    return (<_PendingFutures>type_).make() if type(type_) is _PendingFutures else type_()


cpdef bint is_done(object future) except -1:
    """Whether a future of a stream is done."""
    return (<PendingFuture>future)._phase != PENDING if type(future) is PendingFuture else future.done()


cpdef resolve_now(object future, object result, object error=None):
    """Set the result of ``future``, or ``error``. If its only callback is a task's wake-up, step that task now."""
    if type(future) is PendingFuture:
        return (<PendingFuture>future)._resolve(result, error)
    wakeup = None
    callbacks = future._callbacks
    if EAGER_WAKEUP and callbacks is not None and len(callbacks) == 1:
        callback, context = callbacks[0]
        if type(callback) is types.BuiltinMethodType and callback.__name__ == TASK_WAKEUP:
            future.remove_done_callback(callback)
            wakeup = callback
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
        future.exception()
    if wakeup is None:
        return
    if debugging:
        step_watched(future.get_loop(), wakeup, context, future)
    else:
        context.run(wakeup, future)
