"""Private names of Tornado's streams."""

from typing import Protocol

from .missing import Missing


class Stream(Protocol):
    """What these names are made of."""

    bytes_written: int

    @property
    def queued(self) -> int:
        """Bytes that wait for the kernel."""

    @property
    def buffered(self) -> int:
        """Bytes that were received and not read."""

    def closed(self) -> bool:
        """Whether the stream is closed."""

    def enqueue(self, data: bytes | bytearray | memoryview) -> None:
        """Queue ``data`` for the next write."""

    def take_buffered(self, count: int) -> bytes:
        """Remove and return received bytes."""


class WriteQueue:
    """What ``stream._write_buffer`` is: it takes data for the next ``stream.write()``, also for one of ``b""``."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Queue ``data``; a large view by reference, so it may not change before it is sent."""
        self._stream.enqueue(data)

    def __len__(self) -> int:
        return self._stream.queued


class TornadoStreamNames:
    """The private names of Tornado's streams that others use; see :mod:`iostreamsrv.compat`."""

    __slots__ = ()

    @property
    def _write_buffer(self: Stream) -> WriteQueue | None:
        return None if self.closed() else WriteQueue(self)

    @property
    def _total_write_index(self: Stream) -> int:
        return self.bytes_written + self.queued

    @_total_write_index.setter
    def _total_write_index(self: Stream, value: int) -> None:
        """It is counted anyway."""

    @property
    def _read_buffer_size(self: Stream) -> int:
        return self.buffered

    @_read_buffer_size.setter
    def _read_buffer_size(self: Stream, value: int) -> None:
        """It is counted anyway."""

    def _consume(self: Stream, loc: int) -> bytes:
        return self.take_buffered(loc)

    _add_io_state = Missing()
    _after_user_read_buffer = Missing()
    _check_closed = Missing()
    _check_max_bytes = Missing()
    _closed = Missing()
    _connecting = Missing()
    _do_ssl_handshake = Missing()
    _find_read_pos = Missing()
    _finish_read = Missing()
    _finish_ssl_connect = Missing()
    _handle_connect = Missing()
    _handle_events = Missing()
    _handle_read = Missing()
    _handle_write = Missing()
    _handshake_reading = Missing()
    _handshake_writing = Missing()
    _is_connreset = Missing()
    _maybe_add_error_listener = Missing()
    _read_buffer = Missing()
    _read_bytes = Missing()
    _read_delimiter = Missing()
    _read_from_buffer = Missing()
    _read_max_bytes = Missing()
    _read_partial = Missing()
    _read_regex = Missing()
    _read_to_buffer = Missing()
    _read_to_buffer_loop = Missing()
    _read_until_close = Missing()
    _signal_closed = Missing()
    _ssl_accepting = Missing()
    _ssl_connect_future = Missing()
    _ssl_options = Missing()
    _start_read = Missing()
    _state = Missing()
    _total_write_done_index = Missing()
    _try_inline_read = Missing()
    _user_read_buffer = Missing()
    _write_futures = Missing()
