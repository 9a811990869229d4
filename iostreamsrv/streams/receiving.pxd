cimport cython

from iostreamsrv.sansio.buffers cimport ReadBuffer
from iostreamsrv.sansio.reads cimport Read, ReadInto
from iostreamsrv.streams.hub cimport Hub
from iostreamsrv.streams.transports.tls cimport TLSTransport
from iostreamsrv.streams.writing cimport WriteSide

cdef int RECEIVES_PER_TURN
cdef unsigned int ENDED
cdef object MORE

cdef class ReceiveSide(WriteSide):
    @cython.locals(buffer=ReadBuffer, turns=int, chunk=bytes)
    cdef _attempt(self, Read read, bint untried)
    @cython.locals(hub=Hub, turns=int, began=double)
    cdef _attempt_into(self, ReadInto read)
    @cython.locals(size=Py_ssize_t, buffered=Py_ssize_t, hub=Hub, chunk=bytes)
    cdef _receive_some(self, bint ahead=*)
    @cython.locals(transport=TLSTransport)
    cdef _receive_layered(self, Py_ssize_t size, object space=*)
    cdef _receive_failed(self, object error)
    cdef _input_ended(self)
    cdef _receive_ahead(self)
