"""What happens to a server's connections, as data, for whoever wants to know. ::

    def count(event):
        closed[event.reason] += 1

    server.events.subscribe(count, "close")

The log is one subscriber, the first of each server: it writes what went wrong to the loggers
``iostreamsrv.application`` and ``iostreamsrv.general``, at a limited rate.
"""

import logging
from asyncio import CancelledError
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import tornado.iostream

from .errors import CloseReason, OptionError
from .runtime.addresses import show
from .runtime.clock import current_wall_time
from .runtime.contexts import run_in
from .runtime.logs import LogRateLimit, application, general
from .runtime.text import printable

__all__ = ["Event", "EventKind", "Events", "Log"]

EventKind = Literal["listen", "open", "close", "reject", "error", "limit", "reload", "shutdown"]
"""``listen``: clients are accepted at an address. ``open``: a client is given to its handler. ``close``: its descriptor
is closed; also that of one who did not get as far as a handler. ``reject``: a client was turned away, as the server is
full. ``error``: something went wrong, in a handler, in TLS, in a PROXY header, or with a system call. ``limit``: one
was reached, of a stream's buffer, of connections, of descriptors, or of how slowly a client may take what a stream that
is being closed still has for it. ``reload``: certificates were read again; the level is ``INFO`` where they are in
force, and ``error`` says why they are not. ``shutdown``: the server begins to shut down, or cuts off clients that are
not done in time."""

KINDS: tuple[EventKind, ...] = get_args(EventKind)
ROUTINE: tuple[EventKind, ...] = ("listen", "open", "close")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    :ivar kind: what sort of thing, an :data:`EventKind`.
    :ivar text: what, for people; it names the client. What a peer has put into it and cannot be printed is escaped.
    :ivar level: how bad that is, as `logging` has it.
    :ivar stream: whose it is; None where it is the server's. Its counters, times and unread bytes are still there when
        it is closed: ``bytes_read``, ``bytes_written``, ``opened_at``, ``buffered``.
    :ivar address: the client's, as the handler got it; None where there is no client.
    :ivar reason: why the stream was closed, or is about to be; None where it goes on.
    :ivar error: the exception behind it, if there is one.
    :ivar at: when, `time.time`.
    """

    kind: EventKind
    text: str
    level: int = logging.DEBUG
    stream: tornado.iostream.BaseIOStream | None = None
    address: Any = None
    reason: CloseReason | None = None
    error: BaseException | None = None
    at: float = field(default_factory=current_wall_time)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", printable(self.text))


Listener = Callable[[Event], object]


class Log:
    """Writes events to the loggers: what a handler raised to ``iostreamsrv.application``, with its traceback, all else
    to ``iostreamsrv.general``.

    The records have the fields ``event`` (the kind), ``peer`` (the client's address, for people), ``reason`` and
    ``stream_id``; None where there is none.

    :param limited: whether lines of one kind may come ten at once and one a second, and more of them are only counted.
    """

    def __init__(self, limited: bool) -> None:
        self._limits: dict[tuple[EventKind, CloseReason | None, int], LogRateLimit] | None = {} if limited else None

    def __call__(self, event: Event) -> None:
        left_out = self._left_out(event)
        if left_out is None:
            return
        more = f" (and {left_out} lines like this one before)" if left_out else ""
        raised = event.kind == "error" and event.reason is CloseReason.HANDLER_ERROR
        (application if raised else general).log(
            event.level,
            "%s%s",
            event.text,
            more,
            exc_info=event.error if raised else None,
            extra={
                "event": event.kind,
                "peer": None if event.address is None else show(event.address),
                "reason": None if event.reason is None else str(event.reason),
                "stream_id": getattr(event.stream, "id", None),
            },
        )

    def _left_out(self, event: Event) -> int | None:
        if self._limits is None or event.kind in ROUTINE or event.kind == "reload":  # which no client can cause
            return 0
        key = event.kind, event.reason, event.level
        if key not in self._limits:
            self._limits[key] = LogRateLimit()
        return self._limits[key].admit()


class Events:
    """Who is told of what. A server has one, as ``server.events``.

    :param limited: whether its log is; see `Log`.
    :ivar log: the subscriber that writes the log. ``events.unsubscribe(events.log)`` silences the server.
    """

    def __init__(self, limited: bool = True) -> None:
        self.log = Log(limited)
        self._listeners: dict[EventKind, tuple[Listener, ...]] = dict.fromkeys(KINDS, (self.log,))

    def subscribe(self, listener: Listener, *kinds: EventKind) -> None:
        """Call ``listener`` with each `Event` of these kinds; of all, if none is named.

        It is called at once, in the loop's thread, so it had better be short. What it raises is logged. What happens to
        a client it is told of in that client's context (`contextvars`).

        :raises OptionError: there is no such kind.
        """
        for kind in kinds:
            if kind not in KINDS:
                raise OptionError("kinds", kind, f"there are {', '.join(KINDS)}")
        for kind in kinds or KINDS:
            if listener not in self._listeners[kind]:
                self._listeners[kind] += (listener,)

    def unsubscribe(self, listener: Listener) -> None:
        """No longer call ``listener``; nothing, if it is not called."""
        for kind, listeners in self._listeners.items():
            self._listeners[kind] = tuple(each for each in listeners if each != listener)

    def wanted(self, kind: EventKind) -> bool:
        """Whether anybody would see such an event: what comes with every connection is not made for nobody."""
        listeners = self._listeners[kind]
        if listeners == (self.log,) and kind in ROUTINE:
            return general.isEnabledFor(logging.DEBUG)
        return bool(listeners)

    def emit(self, event: Event) -> None:
        """Tell those who want to know: of a client, in the context of its callbacks."""
        context: Context | None = getattr(event.stream, "callback_context", None)
        if context is None:
            self._tell(event)
        else:
            run_in(context, self._tell, event)

    def _tell(self, event: Event) -> None:
        for listener in self._listeners[event.kind]:
            try:
                listener(event)
            except (Exception, CancelledError) as error:
                text = f"Exception in callback {listener!r} for an event: {event.text}"
                raised = CloseReason.HANDLER_ERROR
                self.log(Event("error", text, logging.ERROR, event.stream, event.address, raised, error))


WITHOUT_SERVER = Events(limited=False)
"""Of streams and sockets that no server has."""
