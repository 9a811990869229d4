from iostreamsrv.sansio.buffers cimport ReadBuffer, WriteBuffer
from iostreamsrv.sansio.reads cimport Read
from iostreamsrv.streams.hub cimport Hub
from iostreamsrv.streams.readiness cimport Dispatched
from iostreamsrv.streams.transports.base cimport Transport

cpdef fail(object future, object error)

cdef class _Overridable:
    cdef object _method
    cdef object _name
    cdef public object __doc__

cdef class StreamCore(Dispatched):
    cdef public object io_loop
    cdef public object error
    cdef public object close_reason
    cdef public Py_ssize_t max_buffer_size
    cdef public object max_write_buffer_size
    cdef public Py_ssize_t read_chunk_size
    cdef public bint cork
    cdef public bint allow_half_open
    cdef public object linger
    cdef public object id
    cdef public long long bytes_read
    cdef public long long bytes_written
    cdef public object opened_at
    cdef public object own_timeouts
    cdef public object callback_context
    cdef public bint has_handler
    cdef public Hub _hub
    cdef public double _received_at
    cdef public double _sent_at
    cdef public object _data
    cdef public ReadBuffer _buffer
    cdef public Read _read
    cdef public object _read_future
    cdef public object _read_timer
    cdef public double _read_since
    cdef public bint _readable
    cdef public bint _transport_buffered
    cdef public unsigned int _recv_until_eagain
    cdef public object _eof
    cdef public object _unread_timer
    cdef public bint _unoffered
    cdef public bint _held_back
    cdef public bint _reads_watched
    cdef public int _budget
    cdef public object _corked
    cdef public Py_ssize_t _corked_size
    cdef public WriteBuffer _output
    cdef public long long _committed_until
    cdef public object _progress_watch
    cdef public object _unsent_futures
    cdef public bint _sending_eof
    cdef public bint _nodelay
    cdef public object _written_before
    cdef public object _connect_future
    cdef public object _close_callback
    cdef public object _owner
    cdef public object _closing
    cdef public int _phase
    cdef public object _assigned
    cdef public object _transport
    cdef public bint _layered
    cdef public Transport _io

    cpdef _choose_carrier(self)
    cpdef _closed_error(self, object operation)
    cdef _close_descriptor(self)
