"""The interface between a server and its streams: all of it, and nothing else.

A stream knows no server. It has an owner: it reports its close to the owner, and asks it for settings that apply to
all streams. A server uses the public names of a stream and those of :class:`ServedStream`. The latter have no
underscore, because other modules use them; but they are not public: no reference lists them, and they may change.
"""

import asyncio
from asyncio import Future
from collections.abc import Callable
from contextvars import Context
from typing import Any, NamedTuple, Protocol, Self

from tornado.ioloop import IOLoop

from ..errors import CloseReason
from ..events import EventKind
from .detached import DetachedStream


class StreamSettings(Protocol):
    """The options of a server that its streams are created with; `ServerOptions` has them."""

    @property
    def max_buffer_size(self) -> int: ...

    @property
    def read_chunk_size(self) -> int: ...

    @property
    def max_write_buffer_size(self) -> int | None: ...

    @property
    def cork(self) -> bool: ...

    @property
    def allow_half_open(self) -> bool: ...

    @property
    def linger(self) -> float: ...

    @property
    def nodelay(self) -> bool: ...


class StreamOwner(Protocol):
    """What a stream uses of the server that it belongs to.

    :ivar closes_in_order: whether ``close()`` of a stream does what ``aclose()`` does.
    """

    closes_in_order: bool

    @property
    def write_timeout(self) -> float | None:
        """Seconds, for streams whose ``set_timeouts()`` has set no write timeout."""

    @property
    def handshake_timeout(self) -> float | None:
        """Seconds for a ``start_tls()`` without ``timeout``."""

    def report(
        self, stream: Any, kind: EventKind, level: int, text: str, reason: CloseReason | None, error: Any
    ) -> None:
        """Report a problem of ``stream`` as an event."""

    async def wait_draining(self) -> None:
        """Return when the server begins to shut down."""

    def close_gracefully(self, stream: Any, reason: CloseReason) -> None:
        """Close the stream as ``aclose()`` does, in the background."""

    def close_if_answered(self, stream: Any) -> bool:
        """Called during a shutdown when the handler has written since its last read, and reads again. Close the stream
        if it may be closed; return whether it was."""

    def stream_closed(self, stream: Any) -> None:
        """The stream's descriptor has been closed. Called once."""

    def stream_replaced(self, old: Any, new: Any) -> None:
        """``new`` replaces ``old`` and has its ``id``: TLS has started."""


class Activity(NamedTuple):
    """When a stream was last active, in its loop's time.

    :ivar received_at: when bytes were last received, or the stream was made.
    :ivar sent_at: when bytes were last sent, or the stream was made.
    :ivar read_since: when the pending read, or the one before, began to wait.
    :ivar read: the future of the pending read; or of a cancelled one, if nothing was received since.
    """

    received_at: float
    sent_at: float
    read_since: float
    read: "Future[Any] | None"


class ServedStream(Protocol):
    """What a server uses of a stream, besides the public names.

    :ivar callback_context: the context in which this client's callbacks run; see :mod:`iostreamsrv.runtime.contexts`.
    :ivar has_handler: set by the server: whether a task handles this client.
    :ivar own_timeouts: what ``set_timeouts()`` has set, by name; None if nothing.
    """

    callback_context: Context | None
    has_handler: bool
    own_timeouts: dict[str, float | None] | None

    @classmethod
    def for_client(
        cls,
        connection: Any,
        address: Any,
        settings: StreamSettings,
        owner: StreamOwner,
        context: Context,
        io_loop: IOLoop,
    ) -> Self:
        """Make the stream of an accepted connection, which is non-blocking and has the options of ``settings``."""

    def set_proxied(self, info: Any) -> None:
        """The connection is a proxy's: set ``proxy``, and the address of the client if ``info`` has one."""

    def restore(self, detached: DetachedStream) -> None:
        """Go on where another stream on the same socket has stopped. To be called before the first read."""

    # activity

    def activity(self) -> Activity:
        """When the stream was last active."""

    def receive_progress(self) -> int:
        """A number that grows with whatever is received."""

    def send_progress(self) -> int:
        """A number that grows with whatever the peer takes of the queue."""

    def unacknowledged(self) -> int:
        """Bytes that the kernel has taken, and that would be lost if the connection broke now."""

    def has_pending_input(self) -> bool:
        """Whether bytes have arrived that were not dispatched yet."""

    def read_has_begun(self) -> bool:
        """Whether a part of what the pending read waits for has arrived."""

    def is_waiting(self) -> bool:
        """Whether the stream only waits for a message, and no part of it has arrived."""

    def has_close_callback(self) -> bool:
        """Whether a close callback is set and was not called yet."""

    def queued_writes(self) -> "list[Future[Any]]":
        """The futures of the writes that wait in the queue."""

    def when_read_done(self, look: Callable[[], None]) -> None:
        """Call ``look`` when the pending read is done; if a task awaits it, when that task has ended."""

    # for deadlines

    def shift_times(self, later: Callable[[float], float]) -> None:
        """Move the times of :meth:`activity` that count for deadlines: the process did not run for a while."""

    def count_as_received(self) -> None:
        """Count input that waits in the kernel, for a busy handler, as received now."""

    # for a shutdown

    def track_answers(self, on: bool) -> None:
        """Record, or stop recording, what is written between two reads. May be called again at any time."""

    def is_unanswered(self) -> bool:
        """Whether something was read since :meth:`track_answers`, and nothing was written after it."""

    def has_lingered(self, seconds: float) -> bool:
        """Whether the peer has had all output for ``seconds``, and has not sent EOF."""

    # closing

    def terminate(self, reason: CloseReason, error: BaseException | None = None) -> None:
        """Close the stream now, as ``close()`` does."""

    def discard_output(self) -> None:
        """Close the descriptor of a closed stream; what is still to be sent is lost."""

    def abort_with(self, reason: CloseReason, error: BaseException | None = None) -> None:
        """Close the stream now with a reset, as ``abort()`` does."""

    def close_or_abort(self, reason: CloseReason) -> None:
        """Close the stream now; with a reset, if written bytes are lost."""

    def close_in_background(self, reason: CloseReason) -> "asyncio.Task[None] | None":
        """Start a task that does what ``aclose()`` does; None if the stream is closing already."""


def loop_of(stream: Any) -> asyncio.AbstractEventLoop:
    """The asyncio loop of a stream."""
    loop: asyncio.AbstractEventLoop = stream.io_loop.asyncio_loop
    return loop
