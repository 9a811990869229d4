"""The fields of a stream, its descriptor, and what both its sides need."""

import errno
import itertools
from asyncio import Future, TimerHandle
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar, cast

from tornado.ioloop import IOLoop

from ..errors import CloseReason, Operation, StreamClosedError
from ..sansio.buffers import ReadBuffer, WriteBuffer
from ..sansio.reads import Read
from .file_region import FileRegion
from .hub import Hub, hub_of
from .progress import ProgressWatch
from .readiness import URGENT
from .served import StreamOwner
from .state import CLOSED, FINISHING, OPEN
from .transports.base import Carrier, Transport
from .transports.custom import CustomTransport

INLINE_BUDGET = 16
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


def _keep_descriptor() -> None:
    """What closes a descriptor that is not the stream's any more."""


# Users override Tornado's ``read_from_fd`` and ``write_to_fd``, which move the bytes of a stream: in a subclass, or by
# assigning to one stream, even while it is in use. To look for that with each receive would cost as much as making a
# bound method does. So a stream looks once, when it gets its transport, and these two methods are descriptors that tell
# it when they are assigned to later.

F = TypeVar("F", bound=Callable[..., Any])

_ours: set[Callable[..., Any]] = set()


class _Overridable:
    """A method of a class that tells an object when it is assigned to."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self._name = method.__name__
        self.__doc__ = method.__doc__

    def __get__(self, stream: Any, owner: type | None = None) -> Any:
        if stream is None:
            return self._method
        assigned = stream._assigned
        return assigned[self._name] if assigned and self._name in assigned else self._method.__get__(stream)

    def __set__(self, stream: Any, value: Any) -> None:
        stream._assigned = {**(stream._assigned or {}), self._name: value}
        stream._choose_carrier()

    def __delete__(self, stream: Any) -> None:
        del stream._assigned[self._name]
        stream._choose_carrier()


def overridable(method: F) -> F:
    """Mark a method that does no more than to call the stream's transport, so that it may be left out."""
    _ours.add(method)
    return cast(F, _Overridable(method))


def _overridden(stream: Any) -> tuple[bool, bool]:
    """Whether the ``read_from_fd`` and the ``write_to_fd`` of a stream are its user's."""
    kind, assigned = type(stream), stream._assigned or ()
    return (
        kind.read_from_fd not in _ours or "read_from_fd" in assigned,
        kind.write_to_fd not in _ours or "write_to_fd" in assigned,
    )


class StreamCore:
    """What a stream has before it can read or write. Its base is `object`: Tornado's classes are bases of the public
    classes only, so that a compiler can take the engine for extension types, whose first base must be one."""

    __slots__ = (
        "_assigned",
        "_budget",
        "_buffer",
        "_close_callback",
        "_closing",
        "_committed_until",
        "_connect_future",
        "_corked",
        "_corked_size",
        "_data",
        "_eof",
        "_held_back",
        "_hub",
        "_io",
        "_layered",
        "_owner",
        "_phase",
        "_progress_watch",
        "_read",
        "_read_future",
        "_read_since",
        "_read_timer",
        "_readable",
        "_reads_watched",
        "_received_at",
        "_recv_until_eagain",
        "_sending_eof",
        "_sent_at",
        "_transport",
        "_transport_buffered",
        "_unoffered",
        "_unread_timer",
        "_unsent_futures",
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
        self._transport_buffered = False  # nor is a short read: the transport holds bytes that it has not given
        # Events that say that a short read is no sign that there is no more: an end was announced, or urgent data.
        self._recv_until_eagain = 0
        self._eof: CloseReason | None = None  # how the peer's side ended
        self._unread_timer: TimerHandle | None = None  # an end behind unread bytes is about to be that of the stream
        self._unoffered = False  # there are bytes that the pending read has not been offered
        self._held_back = False  # nothing is received until the transport's own output has left
        self._reads_watched = False
        self._budget = INLINE_BUDGET
        # writing
        self._corked: list[bytes] | None = None  # to be sent at the end of the hub's run
        self._corked_size = 0
        # what waits for room in the kernel; None while there is room
        self._write_buffer: WriteBuffer | None = None
        self._committed_until = 0  # value of bytes_written at which all that was reported done has left
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
        self._close_callback: tuple[Context, Callable[[], None]] | None = None
        self.callback_context: Context | None = None  # what a server's client has; see the module contexts
        self.has_handler = False  # a task of the server's is at work for it
        self._owner: StreamOwner | None = None
        self._closing: Future[None] | None = None  # aclose() is under way; done when it is over
        self._phase = OPEN  # see the module state
        self._assigned: dict[str, Any] | None = None  # methods that were assigned to this stream
        self._attach(self._new_transport())

    # ---- the transport

    def _new_transport(self) -> Transport:
        """What the stream begins with: its own methods, for a stream of another kind."""
        return CustomTransport(self)

    def _attach(self, transport: Transport) -> None:
        """Receive and send by ``transport``."""
        self._transport = transport
        self._layered = transport.layered
        if not transport.empties:
            self._recv_until_eagain |= URGENT
        self._choose_carrier()

    def _choose_carrier(self) -> None:
        """Choose what each message passes: the user's own methods, if there are such, or the transport."""
        receives, sends = _overridden(self)
        if receives:
            self._recv_until_eagain |= URGENT  # it may give less than there is
        self._io: Carrier = CustomTransport(self) if receives or sends else self._transport.carrier()

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
        self.close_fd = _keep_descriptor  # type: ignore[method-assign]

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Receive up to ``len(buf)`` bytes into ``buf``.

        :returns: how many; 0 at the end of the stream; None where there are none now.
        :raises OSError: the stream will be closed with it.
        """
        raise NotImplementedError

    def write_to_fd(self, data: bytes | bytearray | memoryview) -> int | None:
        """Send what can be sent of ``data`` now.

        :returns: how many bytes; None or 0 where none can be sent now (`BlockingIOError` says the same).
        :raises OSError: the stream will be closed with it.
        """
        raise NotImplementedError

    def get_fd_error(self) -> Exception | None:
        """The error pending on the descriptor, if any."""
        return self._transport.error()

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
        waiting = self._write_buffer
        return self._corked_size + (0 if waiting is None else waiting.size + self._transport.own_output())

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
        return self._phase >= FINISHING

    def __repr__(self) -> str:
        state = f"closed, {self.close_reason}" if self._phase == CLOSED else "open"
        return f"<{type(self).__name__} {self.id} {state}>"

    # ---- what both sides need

    def _closed_error(self, operation: Operation) -> StreamClosedError:
        reason = self.close_reason or self._eof or CloseReason.LOCAL
        return StreamClosedError(self.error, operation, reason, self.id)

    def _call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        if not self._hub.loop.is_closed():
            self._hub.loop.call_soon(callback, *args, context=Context())

    def dispatch(self, events: int) -> None:
        """For the hub: go on with what waits for ``events``."""
        raise NotImplementedError

    def _dispatch_not_open(self, events: int) -> None:
        """A dispatch of a stream that is connecting, or closed and delivering what it owes."""
        raise NotImplementedError

    def uncork(self) -> None:
        """Send what was corked, at the end of the hub's run or earlier."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the stream now."""
        raise NotImplementedError

    def terminate(self, reason: CloseReason, error: BaseException | None = None) -> None:
        """Close the stream now."""
        raise NotImplementedError

    def _close_descriptor(self) -> None:
        """Close the descriptor: all committed output has left."""
        raise NotImplementedError
