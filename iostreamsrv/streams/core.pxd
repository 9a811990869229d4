from iostreamsrv.sansio.buffers cimport ReadBuffer, WriteBuffer
from iostreamsrv.sansio.reads cimport Read
from iostreamsrv.streams.hub cimport Hub
from iostreamsrv.streams.readiness cimport Dispatched
from iostreamsrv.streams.transports.base cimport Transport

cdef extern from *:
    ctypedef bint flag "unsigned char"  # a bint takes four bytes, of each connection

cpdef fail(object future, object error)

cdef class _Overridable:
    cdef object _method
    cdef object _name
    cdef public object __doc__

cdef class StreamCore(Dispatched):
    # the small ones first, so that nothing is between them
    cdef public flag cork
    cdef public flag allow_half_open
    cdef public flag has_handler
    cdef public flag _readable
    cdef public flag _transport_buffered
    cdef public flag _unoffered
    cdef public flag _held_back
    cdef public flag _reads_watched
    cdef public flag _sending_eof
    cdef public flag _nodelay
    cdef public flag _layered
    cdef public signed char _phase
    cdef public short _budget
    cdef public unsigned short _recv_until_eagain
    cdef public object io_loop
    cdef public object error
    cdef public object close_reason
    cdef public Py_ssize_t max_buffer_size
    cdef public object max_write_buffer_size
    cdef public Py_ssize_t read_chunk_size
    cdef public object linger
    cdef public object id
    cdef public long long bytes_read
    cdef public long long bytes_written
    cdef public double opened_at
    cdef public object own_timeouts
    cdef public object callback_context
    cdef public Hub _hub
    cdef public double _received_at
    cdef public double _sent_at
    cdef public object _data
    cdef public ReadBuffer _buffer
    cdef public Read _read
    cdef public object _read_future
    cdef public object _read_timer
    cdef public double _read_since
    cdef public object _eof
    cdef public object _unread_timer
    cdef public object _corked
    cdef public Py_ssize_t _corked_size
    cdef public WriteBuffer _output
    cdef public long long _committed_until
    cdef public object _progress_watch
    cdef public object _unsent_futures
    cdef public object _written_before
    cdef public object _connect_future
    cdef public object _close_callback
    cdef public object _owner
    cdef public object _closing
    cdef public object _assigned
    cdef public object _transport
    cdef public Transport _io

    cpdef _choose_carrier(self)
    cpdef _closed_error(self, object operation)
    cdef _close_descriptor(self)
