"""What makes an object awaitable in C, for the futures of the compiled core."""

from cpython.object cimport PyObject

cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    ctypedef PySendResult (*sendfunc)(PyObject*, PyObject*, PyObject**) except? PYGEN_ERROR
    ctypedef struct PyAsyncMethods:
        sendfunc am_send
    ctypedef PyObject* (*iternextfunc)(PyObject*) except? NULL
    ctypedef PyObject* (*getattrofunc)(PyObject*, PyObject*) except NULL
    ctypedef int (*setattrofunc)(PyObject*, PyObject*, PyObject*) except -1
    ctypedef struct PyTypeObject:
        PyAsyncMethods* tp_as_async
        iternextfunc tp_iternext
        getattrofunc tp_getattro
        setattrofunc tp_setattro
    PyObject* PyExc_StopIteration
    int PyTuple_Check(PyObject*)
    int PyExceptionInstance_Check(PyObject*)
    void PyErr_SetObject(PyObject*, PyObject*)

cdef inline PyObject* end_of_iteration(object value) except? NULL:
    """End an iteration whose result is ``value``. NULL without an exception means None."""
    if value is not None:
        if PyTuple_Check(<PyObject*>value) or PyExceptionInstance_Check(<PyObject*>value):
            stop = StopIteration(value)  # otherwise it would be taken for the arguments, or for the exception itself
            PyErr_SetObject(PyExc_StopIteration, <PyObject*>stop)
        else:
            PyErr_SetObject(PyExc_StopIteration, <PyObject*>value)
    return NULL

cpdef done_future(object loop, object result)
cpdef make_done(object type_)
