"""The fields of a stream, its descriptor, and what both its sides need."""

import errno
import itertools
from asyncio import Future, TimerHandle
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, ClassVar

import tornado.iostream
from tornado.ioloop import IOLoop

from ..errors import CloseReason, Operation, StreamClosedError, StreamError, of_stream
from ..events import UNOWNED_EVENTS, Event, EventKind
from ..sansio.buffers import ReadBuffer, WriteBuffer
from ..sansio.reads import Read
from .file_region import FileRegion
from .hub import URGENT, Hub, hub_of
from .progress import ProgressWatch
from .served import StreamOwner

INLINE = 16
"""Reads and writes in a row that are done at once before a look at the clock: when the loop's turn is old, the next one
waits for the next turn. So a peer who is faster than the handler cannot keep the loop for itself: asyncio sees no timer
before the handler waits for something."""

_ids = itertools.count(1)


def fail(future: "Future[Any]", error: BaseException) -> None:
    """Have ``future`` raise ``error``, if it is not done. It may go unawaited without a complaint.

    It raises a `RuntimeError` in place of what would mean something else to the coroutine that awaits it, or to its
    loop: that an iteration is over, or that it was cancelled. Python does the same for its generators (PEP 479).
    """
    if not future.done():
        if isinstance(error, _ENDS_OF_ITERATION) or not isinstance(error, Exception):
            cause, error = error, RuntimeError(f"a function raised {type(error).__name__}")
            error.__cause__ = cause
        future.set_exception(error)
        future.exception()


_ENDS_OF_ITERATION = StopIteration, StopAsyncIteration


def _leave_alone() -> None:
    """What closes a descriptor that is not the stream's any more."""


class StreamCore(tornado.iostream.BaseIOStream):
    """What there is of a stream before it can read or write. Tornado's class is the base for ``isinstance`` only."""

    __slots__ = (
        "_buffer",
        "_close_callback",
        "_closed",
        "_closing",
        "_connect_future",
        "_corked",
        "_corked_size",
        "_data",
        "_end_timer",
        "_eof",
        "_hangup",
        "_hub",
        "_inline",
        "_leaving",
        "_more_inside",
        "_owed",
        "_owner",
        "_progress_watch",
        "_read",
        "_read_future",
        "_read_since",
        "_read_timer",
        "_readable",
        "_reads_watched",
        "_received_at",
        "_sending_eof",
        "_sent_at",
        "_unsent_futures",
        "_untried",
        "_write_buffer",
        "_written_before",
        "allow_half_open",
        "bytes_read",
        "bytes_written",
        "callback_context",
        "close_reason",
        "cork",
        "error",
        "has_handler",
        "hub_key",
        "id",
        "io_loop",
        "linger",
        "max_buffer_size",
        "max_write_buffer_size",
        "opened_at",
        "own_timeouts",
        "read_chunk_size",
    )

    io_loop: IOLoop
    error: BaseException | None
    close_reason: CloseReason | None
    max_buffer_size: int
    max_write_buffer_size: int | None
    read_chunk_size: int
    cork: bool
    allow_half_open: bool
    linger: float

    @staticmethod
    def _hub_of(io_loop: IOLoop) -> Hub:
        return hub_of(io_loop)

    def _start(
        self,
        io_loop: IOLoop,
        max_buffer_size: int,
        read_chunk_size: int,
        max_write_buffer_size: int | None,
        cork: bool,
        allow_half_open: bool,
        linger: float,
    ) -> None:
        """The constructor, for arguments that have been checked."""
        self.io_loop = io_loop
        self.max_buffer_size = max_buffer_size
        # A chunk near the limit would go over it with bytes that nobody asked for.
        self.read_chunk_size = min(read_chunk_size, max(1, max_buffer_size // 2))
        self.max_write_buffer_size = max_write_buffer_size
        self.cork = cork
        self.allow_half_open = allow_half_open
        self.linger = linger
        self.id = next(_ids)
        self.error = None
        self.close_reason = None
        self.bytes_read = 0
        self.bytes_written = 0
        self.hub_key = -1
        self._hub: Hub = self._hub_of(io_loop)
        self.opened_at = self._hub.wall_time()
        self._received_at = self._hub.time()
        self._sent_at = self._received_at
        self._data: dict[Any, Any] | None = None
        # reading
        self._buffer = ReadBuffer()
        self._read: Read | None = None
        self._read_future: Future[Any] | None = None
        self._read_timer: TimerHandle | None = None
        self._read_since = self._received_at  # when the pending read, or the one before, began to wait
        self._readable = True  # bytes may be there already, and their edge past
        self._more_inside = False  # a short read is no sign of it, as this stream holds bytes that it has not given
        # Events that say that a short read is no sign that there is no more: an end was announced, or urgent data.
        self._hangup = 0
        self._eof: CloseReason | None = None  # how the peer's side ended
        self._end_timer: TimerHandle | None = None  # an end behind unread bytes is about to be that of the stream
        self._untried = False  # there are bytes that the pending read has not been offered
        self._reads_watched = False
        self._inline = INLINE
        # writing
        self._corked: list[bytes] | None = None  # to be sent at the end of the hub's run
        self._corked_size = 0
        # what waits for room in the kernel; None while there is room
        self._write_buffer: WriteBuffer | None = None  # type: ignore[assignment]
        self._owed = 0  # value of bytes_written at which all that was reported done has left
        self._progress_watch: ProgressWatch | None = None
        # what waits for bytes_written to come that far, and the file, if it is one's last byte
        self._unsent_futures: deque[tuple[int, Future[Any], FileRegion | None]] | None = None
        self._sending_eof = False
        # while there is a server
        self.own_timeouts: dict[str, float | None] | None = None  # in place of the server's
        self._written_before: int | None = None  # while the server shuts down: as of the last read's end
        # the ends
        self._connect_future: Future[Any] | None = None
        # with the context that it is to be called in
        self._close_callback: tuple[Context, Callable[[], None]] | None = None  # type: ignore[assignment]
        self.callback_context: Context | None = None  # what a server's client has; see the module contexts
        self.has_handler = False  # a task of the server's is at work for it
        self._owner: StreamOwner | None = None
        self._closing: Future[None] | None = None  # aclose() is under way; done when it is over
        self._leaving = False  # close() was called, and does what aclose() does
        self._closed = False

    # ---- the descriptor, for subclasses

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        raise NotImplementedError

    def close_fd(self) -> None:
        """Close the descriptor. Called once, by the stream."""
        raise NotImplementedError

    def lose_descriptor(self) -> None:
        """For the hub: somebody else has closed the descriptor, and another one may have its number by now."""
        self._forget_descriptor()
        self._corked = self._write_buffer = None
        self.terminate(CloseReason.LOCAL, OSError(errno.EBADF, "the descriptor was closed by somebody else"))

    def _forget_descriptor(self) -> None:
        """Have the number left alone by :meth:`close_fd`."""
        self.close_fd = _leave_alone  # type: ignore[method-assign]

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Receive up to ``len(buf)`` bytes into ``buf``.

        :returns: how many; 0 at the end of the stream; None where there are none now.
        :raises OSError: the stream will be closed with it.
        """
        raise NotImplementedError

    def write_to_fd(self, data: bytes | bytearray | memoryview) -> int | None:  # type: ignore[override]
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
        self._hangup |= URGENT  # whoever wrote read_from_fd may give less than there is
        scratch = bytearray(size)
        with memoryview(scratch) as view:
            count = self.read_from_fd(view)
        return None if count is None else bytes(scratch[:count])

    _has_half_close: ClassVar[bool] = False
    """Whether the transport can end one direction, and :meth:`_shutdown_writes` is there to do it."""

    def _shutdown_writes(self) -> None:
        """Send the end of the stream."""
        raise NotImplementedError

    def set_nodelay(self, value: bool) -> None:
        """Turn Nagle's algorithm off (True) or on, where the transport has it."""

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
    def queued(self) -> int:
        """Bytes that were written, and that the kernel has not taken yet."""
        return self._corked_size + (0 if self._write_buffer is None else self._write_buffer.size)

    @property
    def idle_time(self) -> float:
        """Seconds since bytes last came in, or since the stream was made."""
        return self._hub.time() - self._received_at

    @property
    def write_idle_time(self) -> float:
        """Seconds since bytes last went out, or since the stream was made."""
        return self._hub.time() - self._sent_at

    @property
    def real_error(self) -> BaseException | None:
        """The same as ``error``, under the name that `StreamClosedError` has for it."""
        return self.error

    def closed(self) -> bool:
        """Whether the stream was closed. Bytes that came before can still be read."""
        return self._closed or self._leaving

    def __repr__(self) -> str:
        state = f"closed, {self.close_reason}" if self._closed else "open"
        return f"<{type(self).__name__} {self.id} {state}>"

    # ---- what both sides need

    def _may_go_on(self) -> bool:
        """Whether another read or write may be done at once."""
        if self._inline <= 0 and self._hub.may_go_on():
            self._inline = INLINE
        return self._inline > 0

    def _closed_error(self, operation: Operation) -> StreamClosedError:
        reason = self.close_reason or self._eof or CloseReason.LOCAL
        return StreamClosedError(self.error, operation, reason, self.id)

    def _failed(self, error: BaseException) -> "Future[Any]":
        future: Future[Any] = Future(loop=self._hub.loop)
        fail(future, self._own(error))
        return future

    def _own(self, error: BaseException) -> BaseException:
        """``error``, which is this stream's from now on, unless it is another one's or a user's."""
        return of_stream(error, self.id) if isinstance(error, StreamError) else error

    def _report(
        self, kind: EventKind, level: int, text: str, reason: CloseReason | None, error: BaseException | None
    ) -> None:
        """Report a problem as an event: of the owner's, if there is one."""
        if self._owner is None:
            UNOWNED_EVENTS.emit(Event(kind, text, level, self, None, reason, error))
        else:
            self._owner.report(self, kind, level, text, reason, error)

    def _call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        if not self._hub.loop.is_closed():
            self._hub.loop.call_soon(callback, *args, context=Context())

    def dispatch(self, events: int) -> None:
        """For the hub: go on with what waits for ``events``."""
        raise NotImplementedError

    def _dispatch_at_the_ends(self, events: int) -> None:
        """A dispatch of a stream that is connecting, or closed and delivering what it owes."""
        raise NotImplementedError

    def uncork(self) -> None:
        """For the hub, and for whoever must have everything sent before going on: send what was corked."""
        raise NotImplementedError

    def forget_output(self) -> None:
        """For the hub, in a forked child: send nothing of what waits, as the parent does."""
        self._corked = self._write_buffer = None
        self._corked_size = 0

    def terminate(self, reason: CloseReason, error: BaseException | None = None) -> None:
        """Every stream ends here, whoever ended it."""
        raise NotImplementedError

    def _close_descriptor(self) -> None:
        """The very end: nothing is owed any more."""
        raise NotImplementedError
