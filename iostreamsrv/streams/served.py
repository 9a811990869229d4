"""What a server and its streams use of each other: all of it, and nothing else.

A stream knows no server. It has an owner, which it tells of its end and asks for what is decided for all streams. A
server uses the public names of a stream and those of :class:`ServedStream`. These have no underscore, as other modules
use them, but they are not for users: they are in no reference, and may change.
"""

import asyncio
from asyncio import Future
from collections.abc import Callable
from contextvars import Context
from typing import Any, NamedTuple, Protocol, Self

from ..errors import CloseReason
from ..events import EventKind
from ..runtime.loops import asyncio_loop


class StreamSettings(Protocol):
    """The options of a server that its streams are made with; `ServerOptions` has them."""

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


class StreamOwner(Protocol):
    """What a stream uses of the server that it belongs to.

    :ivar closes_in_order: whether ``close()`` of a stream is to do what ``aclose()`` does.
    """

    closes_in_order: bool

    @property
    def write_timeout(self) -> float | None:
        """Seconds, for streams that have no write timeout set by ``set_timeouts()``."""

    def report(
        self, stream: Any, kind: EventKind, level: int, text: str, reason: CloseReason | None, error: Any
    ) -> None:
        """Report a problem of ``stream`` as an event."""

    async def wait_draining(self) -> None:
        """Return when the server begins to shut down."""

    def close_gracefully(self, stream: Any, reason: CloseReason) -> None:
        """Close the stream as ``aclose()`` does, in the background."""

    def close_if_answered(self, stream: Any) -> bool:
        """While the server shuts down: the handler has written since its last read, and reads again. Whether the stream
        is closed for that."""

    def stream_closed(self, stream: Any) -> None:
        """The stream's descriptor has been closed. Called once."""

    def stream_replaced(self, old: Any, new: Any) -> None:
        """``new`` has taken the place, and the ``id``, of ``old``: TLS has started."""


class Activity(NamedTuple):
    """When a stream was last active, in its loop's time.

    :ivar received_at: when bytes last came, or the stream was made.
    :ivar sent_at: when bytes last left, or the stream was made.
    :ivar read_since: when the pending read, or the one before, began to wait.
    :ivar read: the future of the pending read, or of one that was cancelled and after which nothing has come.
    """

    received_at: float
    sent_at: float
    read_since: float
    read: "Future[Any] | None"


class ServedStream(Protocol):
    """What a server uses of a stream, besides the public names.

    :ivar callback_context: what this client's callbacks run in; see :mod:`iostreamsrv.runtime.contexts`.
    :ivar has_handler: for the server to set: whether a task handles this client.
    :ivar own_timeouts: by their name, what ``set_timeouts()`` has set; None for nothing.
    """

    callback_context: Context | None
    has_handler: bool
    own_timeouts: dict[str, float | None] | None

    @classmethod
    def for_client(
        cls, connection: Any, address: Any, settings: StreamSettings, owner: StreamOwner, context: Context
    ) -> Self:
        """A stream for a connection that was accepted."""

    def set_proxied(self, info: Any) -> None:
        """The connection is a proxy's: set ``proxy``, and the address of the client if ``info`` has one."""

    # what it does, and has done

    def activity(self) -> Activity:
        """When it was last active."""

    def receive_progress(self) -> int:
        """A number that grows with whatever is received."""

    def send_progress(self) -> int:
        """A number that grows with whatever the peer takes of what is queued."""

    def unacknowledged(self) -> int:
        """Bytes that the kernel has, and that would be lost if the peer broke the connection now."""

    def has_pending_input(self) -> bool:
        """Whether bytes wait that are still to be dispatched."""

    def read_has_begun(self) -> bool:
        """Whether something has come of what the pending read waits for."""

    def is_waiting(self) -> bool:
        """Whether it only waits for a message of which nothing has come yet."""

    def has_close_callback(self) -> bool:
        """Whether there is a close callback that has not been called."""

    def queued_writes(self) -> "list[Future[Any]]":
        """The futures of the writes that wait in the queue."""

    def when_read_done(self, look: Callable[[], None]) -> None:
        """Call ``look`` when the pending read is done, or the task that awaits it."""

    def write_shared(self, data: bytes) -> None:
        """``write()`` without a future, for the same data to many streams."""

    # for deadlines

    def shift_times(self, later: Callable[[float], float]) -> None:
        """The process did not run for a while: move the times of :meth:`activity` that count for deadlines."""

    def count_as_received(self) -> None:
        """Input waits in the kernel for a busy handler: it counts as received now."""

    # for a shutdown

    def track_answers(self, on: bool) -> None:
        """Begin, or go on, to note what is written between two reads; or stop."""

    def is_unanswered(self) -> bool:
        """Whether something was read since :meth:`track_answers`, and no answer to it written."""

    def has_lingered(self, seconds: float) -> bool:
        """Whether the peer has had all for so long, and has not ended its side."""

    # how it ends

    def terminate(self, reason: CloseReason, error: BaseException | None = None) -> None:
        """Close the stream now, as ``close()`` does."""

    def discard_output(self) -> None:
        """Of a closed stream: close the descriptor, whatever is still to be sent."""

    def abort_with(self, reason: CloseReason, error: BaseException | None = None) -> None:
        """Close the stream now with a reset, as ``abort()`` does."""

    def close_or_abort(self, reason: CloseReason) -> None:
        """Close the stream now; with a reset, if something that was written is lost."""

    def close_in_background(self, reason: CloseReason) -> "asyncio.Task[None] | None":
        """Begin to do what ``aclose()`` does; its task, or None if the stream is closing already."""


def loop_of(stream: Any) -> asyncio.AbstractEventLoop:
    """The asyncio loop of a stream."""
    return asyncio_loop(stream.io_loop)
