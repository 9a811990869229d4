"""What happens to a server's connections, as data, for whoever wants to know. ::

    def count(event):
        closed[event.reason] += 1

    server.events.subscribe(count, "close")

The log is one subscriber, the first of each server: it writes what went wrong to Tornado's loggers, at a limited rate.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import tornado.iostream
from tornado.log import app_log, gen_log

from .errors import CloseReason, OptionError
from .loglimit import LogLimit

__all__ = ["Event", "EventKind", "Events", "Log"]

EventKind = Literal["listen", "open", "close", "reject", "error", "limit", "shutdown"]
"""``listen``: clients are accepted at an address. ``open``: a client is given to its handler. ``close``: its descriptor
is closed; also that of one who did not get as far as a handler. ``reject``: a client was turned away, as the server is
full. ``error``: something went wrong, in a handler, in TLS, in a PROXY header, or with a system call. ``limit``: one
was reached, of a stream's buffer, of connections, of descriptors, or of how slowly a client may take what a stream that
is being closed still has for it. ``shutdown``: the server begins to shut down, or cuts off clients that are not done in
time."""

KINDS: tuple[EventKind, ...] = get_args(EventKind)
ROUTINE: tuple[EventKind, ...] = ("listen", "open", "close")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    :ivar kind: what sort of thing, an :data:`EventKind`.
    :ivar text: what, for people; it names the client.
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
    at: float = field(default_factory=time.time)


Listener = Callable[[Event], object]


class Log:
    """Writes events to Tornado's loggers: what a handler raised to ``tornado.application``, all else to
    ``tornado.general``.

    :param limited: whether lines of one kind may come ten at once and one a second, and more of them are only counted.
        What a handler raised is never left out.
    """

    def __init__(self, limited: bool) -> None:
        self._limits: dict[tuple[EventKind, CloseReason | None, int], LogLimit] | None = {} if limited else None

    def __call__(self, event: Event) -> None:
        if event.kind == "error" and event.reason is CloseReason.HANDLER_ERROR:
            app_log.log(event.level, "%s", event.text, exc_info=event.error)
            return
        left_out = self._left_out(event)
        if left_out is not None:
            more = f" (and {left_out} lines like this one before)" if left_out else ""
            gen_log.log(event.level, "%s%s", event.text, more)

    def _left_out(self, event: Event) -> int | None:
        if self._limits is None or event.kind in ROUTINE:
            return 0
        key = event.kind, event.reason, event.level
        if key not in self._limits:
            self._limits[key] = LogLimit()
        return self._limits[key].take()


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

        It is called at once, in the loop's thread, so it had better be short. What it raises is logged.

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
            return gen_log.isEnabledFor(logging.DEBUG)
        return bool(listeners)

    def emit(self, event: Event) -> None:
        """Tell those who want to know."""
        for listener in self._listeners[event.kind]:
            try:
                listener(event)
            except Exception:
                app_log.error("Exception in callback %r for an event: %s", listener, event.text, exc_info=True)


WITHOUT_SERVER = Events(limited=False)
"""Of streams and sockets that no server has: their log is Tornado's."""
