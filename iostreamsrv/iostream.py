"""Streams: what a handler reads from and writes to.

:class:`BaseIOStream` is the engine: one pending read, a queue of writes, a dispatch when the hub has news. It knows no sockets;
:class:`IOStream` and :class:`PipeIOStream` give it a descriptor. The names and meanings are Tornado's, and so are the base
classes, for ``isinstance``; none of their code or fields is used.

How a stream lives, in the order of the code below:

*Reading.* A read that the buffer or the socket can satisfy at once returns a finished future. Otherwise it is *the* pending
read, and the next dispatch goes on with it. Nothing is received unless somebody reads: the kernel's buffer, and then the peer,
waits. ``_readable`` says whether the kernel may have bytes; a read that returns less than was asked for has emptied it.

*Writing.* What the kernel takes at once is done at once. The rest is queued, each write with a future for its last byte. While a
stream is being dispatched and has unread input, writes are **corked**: appended, reported done, and sent together at
the end of the dispatch, so that pipelined requests are answered by one system call. What was reported done is owed: ``close()``
delivers it even so.

*Ending.* ``close()`` ends a stream now, ``aclose()`` after what is queued has left and the peer had time to read it, ``abort()``
with a reset. All meet in ``_close``, which keeps the first reason.
"""

import asyncio
import errno
import io
import itertools
import math
import os
import socket
import sys
import time
from asyncio import Future
from collections import deque
from collections.abc import Callable
from re import Pattern
from types import MethodType, TracebackType
from typing import Any, Self, cast

import tornado.iostream
from tornado.ioloop import IOLoop
from tornado.log import gen_log

from . import hub as hubs
from .errors import (
    CloseReason,
    ConcurrentReadError,
    Operation,
    OptionError,
    StreamBufferFullError,
    StreamClosedError,
    StreamTimeoutError,
    UnsatisfiableReadError,
    reason_for,
)
from .hub import HANGUP, READABLE, WRITABLE, complete, hub_of
from .options import check_size, check_timeout
from .sansio.buffers import ReadBuffer, WriteBuffer
from .sansio.reads import (
    MORE,
    Discard,
    Matcher,
    More,
    Read,
    ReadBytes,
    ReadInto,
    ReadMatch,
    ReadPartial,
    ReadUntil,
    ReadUntilClose,
    ReadUntilRegex,
)

__all__ = ["BaseIOStream", "IOStream", "PipeIOStream"]

MAX_BUFFER_SIZE = 100 * 1024 * 1024
"""Tornado's default for a stream made by hand. `TCPServer` gives its streams 1 MiB."""

READ_CHUNK_SIZE = 65536
"""Most that is received at once. Above 128 KiB malloc maps and unmaps memory for each call, at a quarter of the speed."""

CORK_SIZE = 65536
"""Corked bytes that are sent without waiting for the end of the dispatch."""

RECEIVES_PER_TURN = 4
"""Calls to receive after which a read that is still not satisfied lets other streams have their turn."""

INLINE_READS = 16
"""Reads in a row that may be satisfied without the task being suspended, so that a peer who sends faster than the
handler reads cannot keep the loop for itself (asyncio would not see a timer before the handler waits for something)."""

LINGER_SECONDS = 2.0
LINGER_BYTES = 1 << 20
"""How long, and for how many bytes, ``aclose()`` goes on receiving after its half-close. Closing a socket with unread
input makes the kernel send a reset, which can destroy the last reply on its way (nginx: lingering_close)."""

CLOSE_TIMEOUT = 30.0
"""Default bound of ``aclose()``, in seconds."""

_ids = itertools.count(1)


class BaseIOStream(tornado.iostream.BaseIOStream):
    """Reads and writes a non-blocking descriptor; subclasses say which.

    A subclass overrides :meth:`fileno`, :meth:`close_fd`, :meth:`read_from_fd`, :meth:`write_to_fd` and perhaps
    :meth:`get_fd_error`. Must be made where a loop is current, and used in that loop's thread.

    :param max_buffer_size: most bytes to hold unread; default (None) 100 MiB, ``math.inf`` for no limit. A read that
        needs more closes the stream, reason ``buffer_full``.
    :param read_chunk_size: most bytes to receive at once; default 64 KiB, never over half of ``max_buffer_size``.
    :param max_write_buffer_size: most bytes to queue; default (None) no limit. A write beyond it raises
        `StreamBufferFullError`; a single larger write into an empty queue is taken.
    :param cork: whether writes made while input waits to be read are sent together (see :meth:`write`).
    :raises OptionError: a size is not a positive number.

    :ivar io_loop: the `IOLoop` of the stream.
    :ivar error: what closed the stream, or None after an orderly close.
    :ivar close_reason: a `CloseReason` once the stream is closed, None before.
    :ivar id: a number no other stream of this process has.
    :ivar opened_at: when the stream was made, `time.time`.
    :ivar bytes_read: received so far, the unread ones included.
    :ivar bytes_written: taken by the kernel so far.
    """

    __slots__ = (
        "_buffer",
        "_close_callback",
        "_closed",
        "_closing",
        "_connect_future",
        "_corked",
        "_corked_size",
        "_data",
        "_eof",
        "_hangup",
        "_hub",
        "_inline_reads",
        "_on_end",
        "_output",
        "_owed",
        "_read",
        "_read_future",
        "_read_timer",
        "_readable",
        "_reads_watched",
        "_received_at",
        "_sending_eof",
        "_write_futures",
        "_writes_watched",
        "bytes_read",
        "bytes_written",
        "close_reason",
        "cork",
        "error",
        "hub_key",
        "id",
        "io_loop",
        "max_buffer_size",
        "max_write_buffer_size",
        "opened_at",
        "read_chunk_size",
    )

    io_loop: IOLoop
    error: BaseException | None
    close_reason: CloseReason | None
    max_buffer_size: int
    max_write_buffer_size: int | None

    def __init__(
        self,
        max_buffer_size: float | None = None,
        read_chunk_size: int | None = None,
        max_write_buffer_size: float | None = None,
        *,
        cork: bool = True,
    ) -> None:
        self.io_loop = IOLoop.current()
        self.max_buffer_size = check_size("max_buffer_size", max_buffer_size) or MAX_BUFFER_SIZE
        chunk = check_size("read_chunk_size", read_chunk_size) or READ_CHUNK_SIZE
        self.read_chunk_size = min(chunk, max(1, self.max_buffer_size // 2))
        self.max_write_buffer_size = check_size("max_write_buffer_size", max_write_buffer_size)
        self.cork = cork
        self._start(hub_of(self.io_loop))

    def _start(self, hub: hubs.Hub) -> None:
        self.id = next(_ids)
        self.opened_at = time.time()
        self.error = None
        self.close_reason = None
        self.bytes_read = 0
        self.bytes_written = 0
        self.hub_key = -1
        self._hub = hub
        self._received_at = time.monotonic()
        self._data: dict[Any, Any] | None = None
        # reading
        self._buffer = ReadBuffer()
        self._read: Read | None = None
        self._read_future: Future[Any] | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._readable = True  # bytes may be there already, and their edge past
        self._hangup = False  # an end was announced: a short read is no sign that the kernel has no more
        self._eof = False
        self._reads_watched = False
        self._inline_reads = INLINE_READS
        # writing
        self._corked: list[bytes] | None = None  # to be sent at the end of the hub's run
        self._corked_size = 0
        self._output: WriteBuffer | None = None  # what waits for room in the kernel: None while there is room
        self._owed = 0  # value of bytes_written at which all that was reported done has left
        self._write_futures: deque[tuple[int, Future[None]]] | None = None
        self._writes_watched = False
        self._sending_eof = False
        # the ends
        self._connect_future: Future[Any] | None = None
        self._close_callback: Callable[[], None] | None = None
        self._on_end: Callable[[BaseIOStream], None] | None = None
        self._closing = False
        self._closed = False

    # ---- the descriptor, for subclasses

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        raise NotImplementedError

    def close_fd(self) -> None:
        """Close the descriptor. Called once, by the stream."""
        raise NotImplementedError

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Receive up to ``len(buf)`` bytes into ``buf``.

        :returns: how many; 0 at the end of the stream; None where there are none now.
        :raises OSError: the stream will be closed with it.
        """
        raise NotImplementedError

    def write_to_fd(self, data: bytes | memoryview) -> int | None:  # type: ignore[override]
        """Send what can be sent of ``data`` now.

        :returns: how many bytes; None or 0 where none can be sent now (`BlockingIOError` says the same).
        :raises OSError: the stream will be closed with it.
        """
        raise NotImplementedError

    def get_fd_error(self) -> Exception | None:
        """The error pending on the descriptor, if any."""
        return None

    def _receive(self, size: int) -> bytes | None:
        """Up to ``size`` bytes, b"" at the end of the stream, None where there are none now."""
        scratch = bytearray(size)
        with memoryview(scratch) as view:
            count = self.read_from_fd(view)
        return None if count is None else bytes(scratch[:count])

    def _shutdown_writes(self) -> None:
        """Send the end of the stream. For the transports that have a half-close."""
        raise OSError(errno.EOPNOTSUPP, f"{type(self).__name__} has no half-close")

    # ---- state

    @property
    def data(self) -> dict[Any, Any]:
        """A dict for whatever the application wants to keep with the stream, made when first asked for."""
        if self._data is None:
            self._data = {}
        return self._data

    @property
    def buffered(self) -> int:
        """Bytes received and not read; they stay readable after the stream was closed."""
        return self._buffer.size

    @property
    def idle_time(self) -> float:
        """Seconds since bytes last came in, or since the stream was made."""
        return time.monotonic() - self._received_at

    @property
    def real_error(self) -> BaseException | None:
        """The same as ``error``, under the name that `StreamClosedError` has for it."""
        return self.error

    def reading(self) -> bool:
        """Whether a read is pending."""
        return self._read_future is not None and not self._read_future.done()

    def writing(self) -> bool:
        """Whether written bytes wait to be taken by the kernel."""
        return self._corked is not None or (self._output is not None and self._output.size > 0)

    def closed(self) -> bool:
        """Whether the stream was closed. Bytes that came before can still be read."""
        return self._closed

    def set_nodelay(self, value: bool) -> None:
        """Turn Nagle's algorithm off (True) or on, where the transport has it."""

    def __repr__(self) -> str:
        state = f"closed, {self.close_reason}" if self._closed else "open"
        return f"<{type(self).__name__} {self.id} {state}>"

    # ---- reading

    def read_until(
        self, delimiter: bytes, max_bytes: int | None = None, *, timeout: float | None = None
    ) -> "Future[bytes]":
        """Read up to and including ``delimiter``.

        :param delimiter: one byte or more.
        :param max_bytes: close the stream (reason ``buffer_full``) when the first ``max_bytes`` have no delimiter.
        :param timeout: seconds; None for no limit. Afterwards the stream goes on and no byte is lost.
        :raises ConcurrentReadError: another read is pending.
        :raises StreamClosedError: at the call, when the stream is closed and holds no such bytes.
        :raises StreamTimeoutError: from the future.
        """
        return self._start_read(ReadUntil.of(delimiter, max_bytes), timeout)

    def read_until_regex(
        self, regex: bytes | Pattern[bytes], max_bytes: int | None = None, *, timeout: float | None = None
    ) -> "Future[bytes]":
        """Read up to and including the first match of ``regex``.

        The pattern is searched for in the first ``max_bytes`` only (None: ``max_buffer_size``). Each time bytes arrive it is searched from
        the beginning, so give ``max_bytes`` for a pattern that backtracks. Otherwise as :meth:`read_until`.
        """
        return self._start_read(ReadUntilRegex.of(regex, max_bytes), timeout)

    def read_bytes(self, num_bytes: int, partial: bool = False, *, timeout: float | None = None) -> "Future[bytes]":
        """Read ``num_bytes`` bytes, or with ``partial`` as many as there are, at least one and at most ``num_bytes``.

        Raises and ``timeout`` as :meth:`read_until`.
        """
        read = ReadPartial.of(num_bytes) if partial else ReadBytes.of(num_bytes)
        if not num_bytes:
            return self._finished(b"")
        if partial and self._readable and 0 < self._buffer.size < num_bytes and self._read is None:
            self._receive_ahead()
        return self._start_read(read, timeout)

    def read_into(
        self, buf: bytearray | memoryview, partial: bool = False, *, timeout: float | None = None
    ) -> "Future[int]":
        """Read into ``buf`` until it is full, or with ``partial`` until it has at least one byte; gives the number of bytes.

        ``buf`` shows the bytes as they come, and can be resized again as soon as the future is done. What a read
        that times out or is cancelled had put there is put back for the next read.
        Raises and ``timeout`` as :meth:`read_until`.
        """
        if not len(buf):
            return self._finished(0)
        read = ReadInto(buf, partial)
        if self._buffer.size and self._read is None and read.take(self._buffer) is not MORE:
            return self._finished(read.filled)
        return self._start_read(read, timeout)

    def read_until_close(self, *, timeout: float | None = None) -> "Future[bytes]":
        """Read all until the end of the stream: at most ``max_buffer_size`` bytes.

        A reset counts as an end; another error fails the read. Raises and ``timeout`` as :meth:`read_until`.
        """
        return self._start_read(_UNTIL_CLOSE, timeout)

    def read_until_match(self, match: Matcher, *, timeout: float | None = None) -> "Future[Any]":
        """Read whatever ``match`` makes of the bytes.

        :param match: called with a ``bytearray`` of all that is buffered, whenever there is more of it. It returns None to wait
            for more bytes, or ``(consumed, result)``: ``consumed`` bytes are removed and the read gives ``result``. It must neither
            change the ``bytearray`` nor keep it. What it raises, the read raises; the bytes stay.

        Raises and ``timeout`` as :meth:`read_until`. ::

            def frame(buffer):  # a length byte, then so many bytes
                if buffer and len(buffer) > buffer[0]:
                    return 1 + buffer[0], bytes(buffer[1 : 1 + buffer[0]])

            payload = await stream.read_until_match(frame)
        """
        return self._start_read(ReadMatch(match), timeout)

    def _start_read(self, read: Read, timeout: float | None) -> "Future[Any]":
        if self._read is not None:
            self._expect_no_read()
        if timeout is not None:
            timeout = check_timeout("timeout", timeout)
        if self._buffer.size or self._readable or self._eof or self._closed:
            if self._inline_reads > 0 or self._closed:
                self._inline_reads -= 1
                try:
                    result = self._attempt(read)
                except Exception as error:
                    return self._failed_inline(read, error)
                if result is not MORE:
                    return self._finished(result)
                if self._closed or self._eof:
                    return self._read_at_end(read)
            if self._readable or self._buffer.size:
                self._hub.dispatch_again(self)
        future: Future[Any] = Future(loop=self._hub.loop)
        self._read = read
        self._read_future = future
        if timeout is not None:
            self._read_timer = self._hub.loop.call_later(timeout, self._read_timed_out, future, timeout)
        if not self._reads_watched and self._connect_future is None:
            self._reads_watched = self._hub.watch_reads(self)
        return future

    def _finished(self, result: Any) -> "Future[Any]":
        """A future that is done: also to be asked first whether a read may be made at all."""
        if self._read is not None:
            self._expect_no_read()
        if self._close_callback is not None:
            self._look_for_end_later()
        future: Future[Any] = Future(loop=self._hub.loop)
        future.set_result(result)
        return future

    def _failed(self, error: BaseException) -> "Future[Any]":
        future: Future[Any] = Future(loop=self._hub.loop)
        future.set_exception(error)
        future.exception()  # it may go unawaited without a complaint, like every future a close fails
        return future

    def _failed_inline(self, read: Read, error: Exception) -> "Future[Any]":
        """What a read returns, or raises, that failed before it was pending."""
        read.abandon(self._buffer)
        if isinstance(error, UnsatisfiableReadError | StreamBufferFullError):
            self._close_for_limit(error)
            return self._failed(self._closed_error("read"))
        if isinstance(error, OSError):
            raise error
        return self._failed(error)  # raised by the function of read_until_match

    def _read_at_end(self, read: Read) -> "Future[Any]":
        """What a read returns that began when no more bytes could come."""
        result = read.finish(self._buffer)
        if result is not MORE:
            return self._finished(result)
        read.abandon(self._buffer)
        raise self._closed_error("read")

    def _expect_no_read(self) -> None:
        """Clear away a read whose future was cancelled; any other is in the way of a new one."""
        assert self._read_future is not None
        if not self._read_future.done():
            if self._closed:
                raise self._closed_error("read")
            raise ConcurrentReadError
        self._abandon_read()

    def _abandon_read(self) -> None:
        read = self._read
        self._forget_read()
        if read is not None:
            read.abandon(self._buffer)

    def _forget_read(self) -> None:
        self._read = self._read_future = None
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _read_timed_out(self, future: "Future[Any]", timeout: float) -> None:
        if self._read_future is future:
            self._read_timer = None
            self._abandon_read()
            if not future.done():
                future.set_exception(StreamTimeoutError("read", timeout))

    def _attempt(self, read: Read) -> Any | More:
        """The result of ``read`` from what is buffered and what can be received without waiting, or MORE."""
        buffer = self._buffer
        if buffer.size:
            result = read.take(buffer)
            if result is not MORE:
                return result
        turns = RECEIVES_PER_TURN
        while self._readable and turns:
            turns -= 1
            chunk = self._receive_some()
            if chunk is None:
                break
            if not buffer.size:
                result = read.accept(chunk)
                if result is not MORE:
                    return result
            buffer.feed(chunk)
            result = read.take(buffer)
            if result is not MORE:
                return result
            if buffer.size > self.max_buffer_size:
                raise StreamBufferFullError("Reached maximum read buffer size", "read")
        return MORE

    def _receive_some(self) -> bytes | None:
        """Receive once. None where nothing came: none there now, the end, or an error that closed the stream."""
        size = self.read_chunk_size
        buffered = self._buffer.size
        if buffered:
            size = max(1, min(size, self.max_buffer_size + 1 - buffered))
        try:
            chunk = self._receive(size)
        except BlockingIOError:
            chunk = None
        except OSError as error:
            self._receive_failed(error)
            return None
        if not chunk:
            self._readable = False
            if chunk is not None:
                self._input_ended()
            return None
        if len(chunk) < size and not self._hangup:
            self._readable = False
        self.bytes_read += len(chunk)
        self._received_at = self._hub.now
        return chunk

    def _receive_failed(self, error: OSError) -> None:
        self._readable = False
        reason = reason_for(error)
        self._close(reason, error)
        if reason is not CloseReason.RESET:
            raise error

    def _receive_ahead(self) -> None:
        """Receive into the buffer, for no read in particular."""
        chunk = self._receive_some()
        if chunk is not None:
            self._buffer.feed(chunk)

    def _input_ended(self) -> None:
        """The peer has sent its last byte."""
        self._eof = True
        self.uncork()
        if self._output is None and not self._closing:
            self._close(CloseReason.EOF)
        else:  # what is queued still goes out; _flush closes then
            self._end_read(None)

    def _end_read(self, error: BaseException | None) -> None:
        """Answer the pending read, for which no more bytes will come."""
        read, future = self._read, self._read_future
        if read is None or future is None:
            return
        if future.done():
            self._abandon_read()
        elif error is None or reason_for(error) is CloseReason.RESET:
            # Its result may be in the buffer. It is taken from there when no task runs, so that the reader gets it
            # or, being cancelled first, leaves it.
            self._call_soon(self._settle_read, future)
        else:
            self._fail_read(self._closed_error("read"))

    def _settle_read(self, future: "Future[Any]") -> None:
        read = self._read
        if self._read_future is not future or read is None:
            return
        if future.done():
            return self._abandon_read()
        buffer = self._buffer
        try:
            result = read.take(buffer) if buffer.size else MORE
            if result is MORE:
                result = read.finish(buffer)
        except Exception:
            result = MORE
        if result is MORE:
            self._fail_read(self._closed_error("read"))
        else:
            self._forget_read()
            complete(future, result)

    def _fail_read(self, error: BaseException) -> None:
        future = self._read_future
        self._abandon_read()
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()

    # ---- dispatching

    def dispatch(self, events: int) -> None:
        """For the hub: go on with what waits for ``events``."""
        if self._closed or self._connect_future is not None:
            return self._dispatch_at_the_ends()
        if events != READABLE:
            if events & HANGUP:
                self._hangup = True
            if self._output is not None and events & ~READABLE:
                self._flush()
            if self._closed or events == WRITABLE:
                return None
        self._readable = True
        read, future = self._read, self._read_future
        if read is None or future is None:
            if self._close_callback is not None:
                self._look_for_end()
            return None
        if future.done():  # cancelled; what has come stays where it is
            return self._abandon_read()
        try:
            result = self._attempt(read)
        except Exception as error:
            return self._failed_in_dispatch(error)
        if result is MORE:
            return self._wait_for_more()
        self._read = self._read_future = None
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        self._inline_reads = INLINE_READS
        complete(future, result)
        if self._close_callback is not None:
            self._look_for_end_later()
        return None

    def _dispatch_at_the_ends(self) -> None:
        if self._closed:
            self._deliver_owed()
        else:
            self._connected()

    def _wait_for_more(self) -> None:
        if self._readable:
            self._hub.dispatch_again(self)
        elif not self._reads_watched and not self._closed:
            self._reads_watched = self._hub.watch_reads(self)

    def _failed_in_dispatch(self, error: Exception) -> None:
        if isinstance(error, UnsatisfiableReadError):
            self._close_for_limit(error)
        elif isinstance(self._read, ReadMatch) and not isinstance(error, OSError | StreamBufferFullError):
            self._fail_read(error)  # the function's own trouble: the stream goes on
        else:
            if isinstance(error, StreamBufferFullError):
                self._close_for_limit(error)
            gen_log.warning("error on read: %s", error)
            self._close(reason_for(error), error)

    def _close_for_limit(self, error: UnsatisfiableReadError | StreamBufferFullError) -> None:
        if isinstance(error, UnsatisfiableReadError):
            gen_log.info("Unsatisfiable read, closing connection: %s", error)
        else:
            gen_log.error("%s", error)
        self._close(CloseReason.BUFFER_FULL, error)

    def _look_for_end_later(self) -> None:
        if self._readable or not self._reads_watched:
            self._hub.dispatch_again(self)

    def _look_for_end(self) -> None:
        """With nobody reading, notice the end all the same, for the close callback: by receiving, when nothing is buffered."""
        if self._buffer.size or self._closed:
            return
        if self._readable:
            try:
                self._receive_ahead()
            except OSError as error:
                gen_log.warning("error on read: %s", error)
        if not self._reads_watched and not self._closed:
            self._reads_watched = self._hub.watch_reads(self)

    # ---- writing

    def write(self, data: bytes | bytearray | memoryview) -> "Future[None]":
        """Write ``data``; the future is done when the kernel has taken all of it, or, corked, at once.

        Bytes that the kernel does not take now are queued: ``bytes`` by reference, anything else as a copy, so that the caller may
        change it as soon as this returns.

        **Cork.** While requests wait that have already arrived, on this stream or on others of the loop, writes are
        *corked*: done at once, and sent together when those have been dispatched, at most some milliseconds later, or at 64 KiB. So
        "done" means *accepted and owed*: ``close()`` still delivers it. ``await stream.drain()`` says that the kernel has
        it; ``cork=False`` makes every write mean that.

        :raises StreamClosedError: at the call, when the stream is closed; from the future, when it is closed before.
        :raises StreamBufferFullError: ``max_write_buffer_size`` bytes are queued; nothing of ``data`` was taken.
        """
        if self._closed or self._closing or self._sending_eof:
            raise self._closed_error("write")
        if type(data) is not bytes:
            data = _as_bytes(data)
        if self._output is None:
            hub = self._hub
            if (hub.crowded or self._buffer.size or self._corked is not None) and self._cork(data):
                return hub.done
            if self._corked is not None:
                self.uncork()
        if self._output is None:
            if self._closed:
                return self._failed(self._closed_error("write"))
            try:
                sent = self.write_to_fd(data) or 0
            except OSError as error:
                sent = self._send_failed(error)
            self.bytes_written += sent
            if sent == len(data):
                return self._hub.done
            if self._closed:
                return self._failed(self._closed_error("write"))
            data = memoryview(data)[sent:]
            self._wait_for_room()
        return self._queue(data)

    def _cork(self, data: bytes | bytearray | memoryview) -> bool:
        """Keep ``data`` for the end of the hub's run, if there is one and it is not too much."""
        hub = self._hub
        size = self._corked_size + len(data)
        if not hub.running or not self.cork or size > CORK_SIZE:
            return False
        if type(data) is not bytes:
            data = bytes(data)
        self._corked_size = size
        if self._corked is None:
            self._corked = [data]
            hub.corked.append(self)
        else:
            self._corked.append(data)
        return True

    def uncork(self) -> None:
        """For the hub, and for whoever must have everything sent before he goes on: send what was corked."""
        corked = self._corked
        if corked is None:
            return
        self._corked = None
        data = corked[0] if len(corked) == 1 else b"".join(corked)
        self._corked_size = 0
        try:
            sent = self.write_to_fd(data) or 0
        except OSError as error:
            sent = self._send_failed(error)
        self.bytes_written += sent
        if sent < len(data) and not self._closed:
            self._wait_for_room().append(memoryview(data)[sent:])
            self._owed = self.bytes_written + len(data) - sent

    def _queue(self, data: bytes | bytearray | memoryview) -> "Future[None]":
        output = self._output
        assert output is not None
        limit = self.max_write_buffer_size
        if limit is not None and output.size and output.size + len(data) > limit:
            raise StreamBufferFullError(
                f"Reached maximum write buffer size: {output.size} of {limit} bytes are queued", "write"
            )
        output.append(data)
        return self._future_of_queued()

    def drain(self) -> "Future[None]":
        """Done when the kernel has taken all that was written before.

        :raises StreamClosedError: as :meth:`write`.
        """
        self.uncork()
        if self._closed:
            return self._failed(self._closed_error("write"))
        return self._hub.done if self._output is None else self._future_of_queued()

    def send_eof(self) -> "Future[None]":
        """Half-close: after all that was written the peer reads the end of the stream; reading goes on.

        The future is done when the end was sent. Writes raise `StreamClosedError` from now on.

        :raises StreamClosedError: the stream is closed.
        :raises OSError: the transport has no half-close (pipes).
        """
        if self._closed:
            raise self._closed_error("write")
        if not self._sending_eof:
            self.uncork()
            if self._output is None and not self._closed:
                self._shutdown_writes()
            self._sending_eof = True
        return self.drain()

    def _send_failed(self, error: OSError) -> int:
        """The 0 bytes that a failed attempt to send has sent. What is not merely "not now" closes the stream."""
        if isinstance(error, BlockingIOError):
            return 0
        reason = reason_for(error)
        if reason is not CloseReason.RESET:
            gen_log.warning("Write error on %s: %s", self.fileno(), error)
        self._rescue_input()
        self._corked = self._output = None
        self._close(reason, error)
        return 0

    def _rescue_input(self) -> None:
        """Bytes that came before the connection broke are still to be read."""
        try:
            while self._buffer.size < self.max_buffer_size and (chunk := self._receive(self.read_chunk_size)):
                self._buffer.feed(chunk)
                self.bytes_read += len(chunk)
        except OSError:
            pass

    def _wait_for_room(self) -> WriteBuffer:
        """Where to queue what the kernel has no room for; _flush goes on with it."""
        if self._output is None:
            self._output = WriteBuffer()
        if not self._writes_watched:
            self._writes_watched = self._hub.watch_writes(self)
            self._reads_watched = self._writes_watched or self._reads_watched
        return self._output

    def _future_of_queued(self) -> "Future[None]":
        """Done when all that is queued now has left."""
        assert self._output is not None
        future: Future[None] = Future(loop=self._hub.loop)
        if self._write_futures is None:
            self._write_futures = deque()
        self._write_futures.append((self.bytes_written + self._output.size, future))
        return future

    def _flush(self) -> None:
        """Send what is queued, as far as the kernel takes it."""
        output = self._output
        assert output is not None
        while output.size:
            with output.peek() as piece:
                try:
                    sent = self.write_to_fd(piece) or 0
                except OSError as error:
                    sent = self._send_failed(error)
            self.bytes_written += sent
            if self._output is not output:
                return  # an error closed the stream
            if not sent:
                self._wait_for_room()
                break
            output.advance(sent)
        else:
            self._output = None
        self._settle_writes()
        if self._output is None:
            self._all_sent()

    def _settle_writes(self) -> None:
        futures = self._write_futures
        while futures and futures[0][0] <= self.bytes_written:
            _, future = futures.popleft()
            if not future.done():
                future.set_result(None)
        if not futures:
            self._write_futures = None

    def _all_sent(self) -> None:
        if self._sending_eof and not self._closed:
            self._try_shutdown_writes()
        if self._eof and not self._closing:
            self._close(CloseReason.EOF)

    def _try_shutdown_writes(self) -> None:
        try:
            self._shutdown_writes()
        except OSError as error:
            self._close(reason_for(error), error)

    # ---- ending

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` once the stream is closed, for whatever reason; None takes it back.

        A stream with a close callback notices the peer's end also while nobody reads: it then receives one chunk ahead.
        So a peer that half-closes after its request is taken as gone, as with Tornado.
        """
        self._close_callback = callback
        if self._closed:
            self._run_close_callback()
        elif callback is not None and self._connect_future is None:
            self._hub.dispatch_again(self)

    def close(
        self,
        exc_info: None
        | bool
        | BaseException
        | tuple[type[BaseException] | None, BaseException | None, TracebackType | None] = False,
    ) -> None:
        """Close the stream now.

        A pending read and the writes whose futures are not done fail with `StreamClosedError`; what was reported done is
        delivered. Closing a closed stream does nothing. To have everything delivered: :meth:`aclose`.

        :param exc_info: what to set ``error`` to: an exception, a ``sys.exc_info()`` tuple, or True for the current one.
        """
        if isinstance(exc_info, tuple):
            error = exc_info[1]
        elif isinstance(exc_info, BaseException):
            error = exc_info
        else:
            error = sys.exception() if exc_info else None
        self._close(CloseReason.LOCAL, error)

    async def aclose(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """Close the stream in order: send what is queued, half-close, let the peer read it, close.

        After the half-close the peer has 2 s to end its side; up to 1 MiB that it still sends is thrown away. A pending read fails
        at once. Bytes that are buffered stay readable.

        :param timeout: seconds for all of it, then the stream is closed as by :meth:`close`; None for no limit but the 2 s.
        """
        await self._aclose(CloseReason.LOCAL, timeout)

    async def _aclose(self, reason: CloseReason, timeout: float | None) -> None:
        if self._closed or self._closing:
            return
        if timeout is not None:
            timeout = check_timeout("timeout", timeout)
        self._closing = True
        self.close_reason = reason
        self._fail_read(self._closed_error("read"))
        try:
            async with asyncio.timeout(timeout):
                await self.drain()
                if not self._eof:
                    await self._linger()
        except (TimeoutError, OSError):
            pass
        finally:
            self._close(reason)

    async def _linger(self) -> None:
        if not self._sending_eof:
            self._shutdown_writes()
            self._sending_eof = True
        await self._start_read(Discard(self._buffer, LINGER_BYTES), LINGER_SECONDS)

    def abort(self) -> None:
        """Close the stream now and throw away what is queued; a TCP peer gets a reset. Reason ``aborted``."""
        self._corked = self._output = None
        self._close(CloseReason.ABORTED)

    def _closed_error(self, operation: Operation) -> StreamClosedError:
        reason = self.close_reason or (CloseReason.EOF if self._eof else CloseReason.LOCAL)
        return StreamClosedError(self.error, operation, reason)

    def _close(self, reason: CloseReason, error: BaseException | None = None) -> None:
        """Every stream ends here, whoever ended it."""
        if self._corked is not None:
            self.uncork()  # which may find the stream broken, and close it
        if self._closed:
            return
        self._closed = True
        self._readable = False
        self.close_reason = self.close_reason or reason
        self.error = error
        self._end_read(error)
        self._keep_what_is_owed()
        self._fail_writes()
        if self._output is None:
            self._close_descriptor()
        else:
            self._hub.loop.call_later(CLOSE_TIMEOUT, self._give_up_owed)
        if self._close_callback is not None:
            self._run_close_callback()

    def _keep_what_is_owed(self) -> None:
        """Of what is queued, what was reported done still leaves, as the kernel finds room."""
        if self._output is not None:
            self._output.truncate(max(0, self._owed - self.bytes_written))
            if not self._output.size:
                self._output = None

    def _deliver_owed(self) -> None:
        if self._output is not None:
            self._flush()
            if self._output is None:
                self._close_descriptor()

    def _give_up_owed(self) -> None:
        if self._output is not None:
            self._output = None
            self._close_descriptor()

    def _fail_writes(self) -> None:
        futures = [future for _, future in self._write_futures or ()]
        self._write_futures = None
        if self._connect_future is not None:
            futures.append(self._connect_future)
            self._connect_future = None
            operation: Operation = "connect"
        else:
            operation = "write"
        for future in futures:
            if not future.done():
                future.set_exception(self._closed_error(operation))
                future.exception()

    def _close_descriptor(self) -> None:
        self._hub.unwatch(self)
        self.close_fd()
        if self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end(self)

    def _run_close_callback(self) -> None:
        callback, self._close_callback = self._close_callback, None
        if callback is not None:
            self.io_loop.add_callback(callback)

    def _call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        if not self._hub.loop.is_closed():
            self._hub.loop.call_soon(callback, *args)

    # ---- connecting (sockets only, but the writes of all wait for it)

    def _connected(self) -> None:
        raise NotImplementedError


_UNTIL_CLOSE = ReadUntilClose()


def _as_bytes(data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
    """``data`` such that ``len`` counts bytes."""
    if isinstance(data, memoryview):
        return data.cast("B") if data.c_contiguous else data.tobytes()
    if isinstance(data, bytes | bytearray):
        return data
    raise TypeError(f"can only write bytes, bytearray or memoryview, not {type(data).__name__}")


class IOStream(BaseIOStream, tornado.iostream.IOStream):
    """A stream on a socket.

    :param socket: connected, or new and then given to :meth:`connect`. It is made non-blocking and belongs to the stream.
    :ivar socket: that socket, None once closed.

    The other parameters are those of `BaseIOStream`.
    """

    __slots__ = ("_remote_address", "socket")

    def __init__(
        self,
        socket: socket.socket,
        max_buffer_size: float | None = None,
        read_chunk_size: int | None = None,
        max_write_buffer_size: float | None = None,
        *,
        cork: bool = True,
    ) -> None:
        self.socket = socket
        socket.setblocking(False)
        self._remote_address: Any = None
        BaseIOStream.__init__(self, max_buffer_size, read_chunk_size, max_write_buffer_size, cork=cork)

    def fileno(self) -> int:
        return -1 if self.socket is None else self.socket.fileno()

    def close_fd(self) -> None:
        self.socket.close()
        self.socket = cast(Any, None)

    def get_fd_error(self) -> Exception | None:
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return OSError(number, os.strerror(number)) if number else None

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        try:
            return self.socket.recv_into(buf)
        except BlockingIOError:
            return None

    def write_to_fd(self, data: bytes | memoryview) -> int | None:  # type: ignore[override]
        return self.socket.send(data)

    def _receive(self, size: int) -> bytes | None:
        # bytes straight from the socket, unless somebody has a read_from_fd of their own, perhaps on this very stream
        method = self.read_from_fd
        if type(method) is MethodType and method.__func__ is _READ_FROM_SOCKET:
            return self.socket.recv(size)
        return BaseIOStream._receive(self, size)

    def _shutdown_writes(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    @property
    def local_address(self) -> Any:
        """This end's address, as `socket.socket.getsockname` gives it; None once closed."""
        return None if self.socket is None else self.socket.getsockname()

    @property
    def remote_address(self) -> Any:
        """The peer's address as `socket.socket.getpeername` gives it; kept after closing if it was ever asked for, else None."""
        if self._remote_address is None and self.socket is not None:
            try:
                self._remote_address = self.socket.getpeername()
            except OSError:
                pass
        return self._remote_address

    def set_nodelay(self, value: bool) -> None:
        """Turn Nagle's algorithm off (True: small writes leave at once) or on. Only TCP has it; others ignore it."""
        if self.socket is None or self.socket.family not in (socket.AF_INET, socket.AF_INET6):
            return
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1 if value else 0)
        except OSError as error:
            # EINVAL: the connection broke, which the next operation will say better.
            if error.errno != errno.EINVAL and reason_for(error) is not CloseReason.RESET:
                raise

    def connect(self, address: Any, server_hostname: str | None = None) -> "Future[Self]":  # type: ignore[override]
        """Connect the socket; the future gives the stream itself.

        Writes may be made at once: they go out once connected, after the future is done. A host name in ``address`` is
        resolved by the operating system, which blocks the loop.

        :param address: as for `socket.socket.connect`.
        :param server_hostname: of no meaning without TLS.
        :raises StreamClosedError: from the future; ``operation`` is "connect" and ``real_error`` says why.
        """
        future: Future[Self] = Future(loop=self._hub.loop)
        self._connect_future = future
        self._readable = False
        self._output = WriteBuffer()  # for what is written meanwhile
        try:
            self.socket.connect(address)
        except BlockingIOError:
            pass
        except OSError as error:
            self._close(reason_for(error), error)
            return future
        # Not before: an unconnected socket reports a hangup.
        self._writes_watched = self._hub.watch_writes(self)
        self._reads_watched = self._writes_watched
        return future

    def _connected(self) -> None:
        future = self._connect_future
        assert future is not None
        error = self.get_fd_error()
        if error is None:
            try:
                self._remote_address = self.socket.getpeername()
            except OSError as problem:  # a Unix socket whose listener's queue is full says so only here
                error = problem
        if error is not None:
            return self._close(reason_for(error), error)
        self._connect_future = None
        if not future.done():
            future.set_result(self)
        self.dispatch(READABLE | WRITABLE)
        if self._sending_eof and self._output is None and not self._closed:
            self._try_shutdown_writes()

    def start_tls(self, *args: Any, **kwargs: Any) -> Any:
        """Not in this release: TLS is to come.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("this release of iostreamsrv has no TLS")


_READ_FROM_SOCKET = IOStream.read_from_fd


class PipeIOStream(BaseIOStream, tornado.iostream.PipeIOStream):
    """A stream on one end of a pipe, to read from or to write to. Not on Windows.

    :param fd: the descriptor, such as `os.pipe` gives. It is made non-blocking and belongs to the stream.
    :ivar fd: that descriptor.

    The other parameters are those of `BaseIOStream`.
    """

    __slots__ = ("_file", "fd")

    def __init__(
        self,
        fd: int,
        max_buffer_size: float | None = None,
        read_chunk_size: int | None = None,
        max_write_buffer_size: float | None = None,
        *,
        cork: bool = True,
    ) -> None:
        if sys.platform == "win32":
            raise OSError(errno.EOPNOTSUPP, "pipes cannot be polled on Windows")
        self.fd = fd
        self._file = io.FileIO(fd, "r+")
        os.set_blocking(fd, False)
        BaseIOStream.__init__(self, max_buffer_size, read_chunk_size, max_write_buffer_size, cork=cork)

    def fileno(self) -> int:
        return -1 if self._file.closed else self.fd

    def close_fd(self) -> None:
        self._file.close()

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        try:
            return self._file.readinto(buf)
        except OSError as error:
            if error.errno == errno.EBADF and not self._hangup:
                return None  # the writing end: nothing to read, as long as the reader is there
            raise

    def write_to_fd(self, data: bytes | memoryview) -> int | None:  # type: ignore[override]
        return os.write(self.fd, data)
