cimport cython

cdef Py_ssize_t _HEADER, _PIECE
cdef int _DATA

cdef class RecordFeed:
    cdef readonly object object
    cdef public bint has_input
    cdef readonly object _incoming
    cdef object _direct
    cdef object _chunk
    cdef Py_ssize_t _at
    cdef Py_ssize_t _missing
    cdef Py_ssize_t _size
    cdef bint _handshaken
    cdef long long _moved

    cpdef feed(self, object ciphertext)
    cpdef copy_input(self)
    @cython.locals(at=Py_ssize_t, missing=Py_ssize_t, left=Py_ssize_t, end=Py_ssize_t, begins=bint)
    cdef bint _feed_record(self) except -1
    cdef _give(self, object part)
    cdef _read_long_records(self, object space)

cdef class TLSEngine(RecordFeed):
    cdef readonly object outgoing
    cdef readonly bint by_name
    cdef public bint may_answer
    cdef bint _server_side
    cdef bint _speaks_first
    cdef bint _inside
    cdef int _empty
    cdef bint _tired
    cdef bytes _kept
    cdef object _end
    cdef bint _fed_all
    cdef list _encrypted
    cdef bytes _tickets

    cpdef feed_end(self)
    @cython.locals(ciphertext=bytes)
    cpdef bytes take_outgoing(self)
    cpdef bint handshake(self) except -1
    cdef bint _shake_hands(self) except -1
    @cython.locals(length=Py_ssize_t, record=bytes)
    cpdef bytes decrypt(self, bytes ciphertext, Py_ssize_t size)
    @cython.locals(records=list)
    cpdef bytes read(self, Py_ssize_t size)
    @cython.locals(filled=Py_ssize_t, whole=bint)
    cpdef read_into(self, object space)
    cdef bytes _read_without_input(self, Py_ssize_t size)
    @cython.locals(count=Py_ssize_t, most=Py_ssize_t, more=bint, work=int, record=bytes)
    cdef Py_ssize_t _read_records(self, Py_ssize_t size, list records, object space, Py_ssize_t filled) except -1
    cdef int _brought_nothing(self, object error, int work) except? -1000000
    cdef _read_nothing(self, object error)
    cdef _refuse(self)
    cdef bytes _read_end(self, object end)
    @cython.locals(size=Py_ssize_t)
    cpdef write(self, object data)
    cpdef close(self)
