"""The fields of a stream, its descriptor, and what reading and writing share."""

import errno
import itertools
from asyncio import Future, Handle, TimerHandle
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
from .readiness import URGENT, Dispatched
from .served import StreamOwner
from .state import CLOSED, FINISHING, OPEN
from .transports.base import Carrier, Transport
from .transports.custom import CustomTransport

INLINE_BUDGET = 16
"""Reads and writes in a row that may be done at once before the stream checks the clock. If the loop's turn has lasted
too long, the next one waits for the next turn. Otherwise a peer that is faster than the handler would keep the loop
busy: asyncio runs no timer until the handler waits for something."""

_ids = itertools.count(1)


def fail(future: "Future[Any]", error: BaseException) -> None:
    """Set the exception of ``future``, if it is not done. asyncio does not complain if the future is never awaited.

    A `StopIteration`, and an error that is no `Exception`, become a `RuntimeError`, as in Python's generators (PEP
    479): the coroutine that awaits the future would take them for the end of an iteration, or for its cancellation.
    """
    if not future.done():
        if isinstance(error, _ENDS_OF_ITERATION) or not isinstance(error, Exception):
            cause, error = error, RuntimeError(f"a function raised {type(error).__name__}")
            error.__cause__ = cause
        future.set_exception(error)
        future.exception()


_ENDS_OF_ITERATION = StopIteration, StopAsyncIteration


def _keep_descriptor() -> None:
    """The ``close_fd`` of a stream that has lost its descriptor: do nothing."""


# Users override Tornado's ``read_from_fd`` and ``write_to_fd``, which move the bytes of a stream: in a subclass, or by
# assigning to one stream, even while it is in use. A check with each receive would cost as much as making a bound
# method. So a stream checks once, when it gets its transport; and the two methods are descriptors that notify the
# stream of later assignments.

F = TypeVar("F", bound=Callable[..., Any])

_ours: set[Callable[..., Any]] = set()


class _Overridable:
    """A method that notifies its stream when it is assigned to."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self._name = method.__name__
        self.__doc__ = method.__doc__

    def __get__(self, stream: Any, owner: type | None) -> Any:
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
    """Mark a method that only calls the stream's transport. The stream bypasses it unless it is overridden."""
    _ours.add(method)
    return cast(F, _Overridable(method))


class StreamCore(Dispatched):
    """The fields and the transport of a stream, without reads and writes.

    Tornado's classes are bases of the public classes only. So the engine can be compiled to extension types, which need
    an extension type as their first base.
    """

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
        "_nodelay",
        "_output",
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
        "_written_before",
        "allow_half_open",
        "bytes_read",
        "bytes_written",
        "callback_context",
        "close_reason",
        "cork",
        "error",
        "has_handler",
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
        # A larger chunk could exceed the limit with bytes that no read asked for.
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
        self.due_events = 0
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
        self._readable = True  # bytes may have arrived before the hub watches: they cause no event
        self._transport_buffered = False  # the transport holds received bytes: a short read does not mean "no more"
        # Events after which a short read does not mean "no more" either: EOF was announced, or urgent data.
        self._recv_until_eagain = 0
        self._eof: CloseReason | None = None  # how the peer's side ended
        self._unread_timer: Handle | None = None  # closes a stream whose bytes before EOF stay unread
        self._unoffered = False  # the buffer has bytes that the pending read has not seen
        self._held_back = False  # nothing is received until the transport's own output is sent
        self._reads_watched = False
        self._budget = INLINE_BUDGET
        # writing
        # to be sent at the end of the hub's run: one write, as most streams have, without a list
        self._corked: bytes | list[bytes] | None = None
        self._corked_size = 0
        # output that waits for room in the kernel; None while there is room
        self._output: WriteBuffer | None = None
        self._committed_until = 0  # value of bytes_written at which all that was reported done is sent
        self._progress_watch: ProgressWatch | None = None
        # for each future the value of bytes_written at which it is done, and the file, if it is for a file's last byte
        self._unsent_futures: deque[tuple[int, Future[Any], FileRegion | None]] | None = None
        self._sending_eof = False
        self._nodelay = False  # small writes leave at once, for certain
        # while there is a server
        self.own_timeouts: dict[str, float | None] | None = None  # in place of the server's
        self._written_before: int | None = None  # while the server shuts down: bytes written when the last read ended
        # opening and closing
        self._connect_future: Future[Any] | None = None
        # with the context in which it is called
        self._close_callback: tuple[Context, Callable[[], None]] | None = None
        self.callback_context: Context | None = None  # only for a server's client; see the module contexts
        self.has_handler = False  # a task of the server handles this client
        self._owner: StreamOwner | None = None
        self._closing: Future[None] | None = None  # aclose() is running; done when it has ended
        self._phase = OPEN  # see the module state
        self._assigned: dict[str, Any] | None = None  # methods that were assigned to this stream
        self._attach(self._new_transport())

    # ---- the transport

    def _new_transport(self) -> Transport:
        """The first transport of the stream. Here it calls the methods that a subclass overrides."""
        return CustomTransport(self)

    def _attach(self, transport: Transport) -> None:
        """Use ``transport`` from this call on."""
        self._transport = transport
        self._layered = transport.layered
        if not transport.empties:
            self._recv_until_eagain |= URGENT
        self._choose_carrier()

    def _choose_carrier(self) -> None:
        """Choose what receives and sends: the methods that the user has overridden, or else the transport."""
        kind, assigned = type(self), self._assigned or ()
        receives = kind.read_from_fd not in _ours or "read_from_fd" in assigned
        sends = kind.write_to_fd not in _ours or "write_to_fd" in assigned
        if receives:
            self._recv_until_eagain |= URGENT  # the user's method may give less than there is
        self._io: Carrier = CustomTransport(self) if receives or sends else self._transport.carrier()

    # ---- the descriptor, for subclasses

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        raise NotImplementedError

    def close_fd(self) -> None:
        """Close the descriptor. Called once, by the stream."""
        raise NotImplementedError

    def lose_descriptor(self) -> None:
        """For the hub: other code has closed the descriptor, and its number may already belong to another one."""
        self._forget_descriptor()
        self._corked = self._output = None
        self.terminate(CloseReason.LOCAL, OSError(errno.EBADF, "the descriptor was closed by other code"))

    def _forget_descriptor(self) -> None:
        """Keep :meth:`close_fd` from closing this number."""
        self.close_fd = _keep_descriptor  # type: ignore[method-assign]

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Receive up to ``len(buf)`` bytes into ``buf``.

        :returns: the number of bytes; 0 at EOF; None if there are none now.
        :raises OSError: the stream is closed with this error.
        """
        raise NotImplementedError

    def write_to_fd(self, data: bytes | bytearray | memoryview) -> int | None:
        """Send as much of ``data`` as can be sent now.

        :returns: the number of bytes; None or 0 if none can be sent now (`BlockingIOError` means the same).
        :raises OSError: the stream is closed with this error.
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
        """A dict for the application's own data about this client; created when first used."""
        if self._data is None:
            self._data = {}
        return self._data

    @property
    def buffered(self) -> int:
        """Bytes received and not yet read. They stay readable after the stream is closed."""
        return self._buffer.size

    @property
    def queued(self) -> int:
        """Bytes that were written and that the kernel has not yet taken."""
        waiting = self._output
        return self._corked_size + (0 if waiting is None else waiting.size + self._transport.own_output())

    @property
    def idle_time(self) -> float:
        """Seconds since bytes were last received, or since the stream was made."""
        return self._hub.time() - self._received_at

    @property
    def write_idle_time(self) -> float:
        """Seconds since bytes were last sent, or since the stream was made."""
        return self._hub.time() - self._sent_at

    @property
    def real_error(self) -> BaseException | None:
        """The same as ``error``, under the name that `StreamClosedError` uses."""
        return self.error

    def closed(self) -> bool:
        """Whether the stream is closed. Bytes that were received before can still be read."""
        return self._phase >= FINISHING

    def __repr__(self) -> str:
        state = f"closed, {self.close_reason}" if self._phase == CLOSED else "open"
        return f"<{type(self).__name__} {self.id} {state}>"

    # ---- for reading and writing

    def _closed_error(self, operation: Operation) -> StreamClosedError:
        reason = self.close_reason or self._eof or CloseReason.LOCAL
        return StreamClosedError(self.error, operation, reason, self.id)

    def _call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        if not self._hub.loop.is_closed():
            self._hub.loop.call_soon(callback, *args, context=Context())

    def dispatch(self, events: int) -> None:
        """For the hub: continue what waits for ``events``."""
        raise NotImplementedError

    def _dispatch_not_open(self, events: int) -> None:
        """Dispatch a stream that is connecting, or that is closed and still sends committed output."""
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
        """Close the descriptor: all committed output is sent."""
        raise NotImplementedError
