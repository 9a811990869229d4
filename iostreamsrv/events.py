"""Events: what happens to a server's connections, as objects for subscribers. ::

    def count(event):
        closed[event.reason] += 1

    server.events.subscribe(count, "close")

The log is the first subscriber of each server. It writes errors and limits to the loggers ``iostreamsrv.general`` and
``iostreamsrv.application``, at a limited rate.
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
"""``listen``: the server accepts clients at an address. ``open``: a client is passed to its handler. ``close``: a
client's descriptor was closed, also if the client never reached a handler. ``reject``: a client was rejected because
the server is full. ``error``: an error in a handler, in TLS, in a PROXY header, or of a system call. ``limit``: a limit
was reached, of a stream's buffer, of connections or of descriptors; or a client receives the rest of the data too
slowly while its stream is being closed. ``reload``: certificates were read again; with the level ``INFO`` they are in
use, otherwise ``error`` is the reason why not. ``shutdown``: the server starts to shut down, or closes clients that did
not finish in time."""

KINDS: tuple[EventKind, ...] = get_args(EventKind)
DEBUG_KINDS: tuple[EventKind, ...] = ("listen", "open", "close")
"""Kinds that belong to normal operation, and are logged at the level ``DEBUG``."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    :ivar kind: the kind of event, an :data:`EventKind`.
    :ivar text: a description with the client's address. Characters from a peer that are not printable are escaped.
    :ivar level: the severity, as in `logging`.
    :ivar stream: the client's stream; None for an event of the server. The counters, times and unread bytes of a closed
        stream are still available: ``bytes_read``, ``bytes_written``, ``opened_at``, ``buffered``.
    :ivar address: the client's address as passed to the handler; None if there is no client.
    :ivar reason: why the stream was or will be closed; None if it stays open.
    :ivar error: the exception that caused the event, or None.
    :ivar groups: the names of the groups that a closed stream was in.
    :ivar at: the time of the event, in seconds since the epoch as `time.time`.
    """

    kind: EventKind
    text: str
    level: int = logging.DEBUG
    stream: tornado.iostream.BaseIOStream | None = None
    address: Any = None
    reason: CloseReason | None = None
    error: BaseException | None = None
    groups: tuple[object, ...] = ()
    at: float = field(default_factory=current_wall_time)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", printable(self.text))


Listener = Callable[[Event], object]


class Log:
    """Writes events to the loggers: exceptions of a handler with their traceback to ``iostreamsrv.application``, all
    others to ``iostreamsrv.general``.

    The log records have the attributes ``event`` (the kind), ``peer`` (the client's address as text), ``reason`` and
    ``stream_id``; each may be None.

    :param limited: whether to limit the rate: ten lines of one kind at once, then one per second. Lines above the limit
        are only counted.
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
        if self._limits is None or event.kind in DEBUG_KINDS or event.kind == "reload":  # a client cannot cause these
            return 0
        key = event.kind, event.reason, event.level
        if key not in self._limits:
            self._limits[key] = LogRateLimit()
        return self._limits[key].admit()


class Events:
    """The event subscriptions of a server: ``server.events``.

    :param limited: whether to limit the rate of the log; see `Log`.
    :ivar log: the subscriber that writes the log. ``events.unsubscribe(events.log)`` silences the server.
    """

    def __init__(self, limited: bool = True) -> None:
        self.log = Log(limited)
        self._listeners: dict[EventKind, tuple[Listener, ...]] = dict.fromkeys(KINDS, (self.log,))

    def subscribe(self, listener: Listener, *kinds: EventKind) -> None:
        """Call ``listener`` with each `Event` of the given kinds; without kinds, of all kinds.

        The call is immediate and in the loop's thread, so it should be fast. Its exceptions are logged. For an event of
        a client, it is made in that client's context (`contextvars`).

        :param listener: a plain function of one argument, the event.
        :raises OptionError: a kind does not exist.
        """
        for kind in kinds:
            if kind not in KINDS:
                raise OptionError("kinds", kind, f"there are {', '.join(KINDS)}")
        for kind in kinds or KINDS:
            if listener not in self._listeners[kind]:
                self._listeners[kind] += (listener,)

    def unsubscribe(self, listener: Listener) -> None:
        """Stop calling ``listener``. Does nothing if it is not subscribed."""
        for kind, listeners in self._listeners.items():
            self._listeners[kind] = tuple(each for each in listeners if each != listener)

    def wanted(self, kind: EventKind) -> bool:
        """Whether an event of this kind has a subscriber. Events of every connection are not created without one; the
        log counts as one only if it logs ``DEBUG``."""
        listeners = self._listeners[kind]
        if listeners == (self.log,) and kind in DEBUG_KINDS:
            return general.isEnabledFor(logging.DEBUG)
        return bool(listeners)

    def emit(self, event: Event) -> None:
        """Call the subscribers, for an event of a client in the context of its callbacks."""
        context: Context | None = getattr(event.stream, "callback_context", None)
        if context is None:
            self._call_listeners(event)
        else:
            run_in(context, self._call_listeners, event)

    def _call_listeners(self, event: Event) -> None:
        for listener in self._listeners[event.kind]:
            try:
                listener(event)
            except (Exception, CancelledError) as error:
                text = f"Exception in callback {listener!r} for an event: {event.text}"
                raised = CloseReason.HANDLER_ERROR
                self.log(Event("error", text, logging.ERROR, event.stream, event.address, raised, error))


UNOWNED_EVENTS = Events(limited=False)
"""The events of streams and sockets that belong to no server."""
