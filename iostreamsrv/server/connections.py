"""The connections of a server: admitted, served, closed.

Each has a permit while its descriptor is open: an entry in ``Connections.open``. ``Connections.stream_closed`` is the
only exit, for every close reason; it releases the permit. :mod:`iostreamsrv.server.connection` has what comes
before a client's handler, :mod:`iostreamsrv.server.handlers` the handler and what follows, and
:mod:`iostreamsrv.server.shutdown` the shutdown of all.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Container, Coroutine
from contextvars import Context
from typing import Any

from tornado.ioloop import IOLoop

from ..errors import CloseReason
from ..events import Event, EventKind, Events
from ..iostream import BaseIOStream, IOStream, SSLIOStream
from ..options import ServerOptions
from ..runtime.addresses import show
from ..runtime.cleanup import may_end_with_loop
from ..streams.served import loop_of
from .close_reports import CloseReports
from .connection import Connection, ConnectionSetup
from .deadlines import Deadlines
from .groups import Groups
from .handlers import HandlerMethods, Handlers, client_name
from .limits import ConnectionLimits, host_of
from .watchdog import watch

MAX_REJECTING = 64
"""Most clients in ``handle_reject`` at a time. Any more are closed without a call."""


class Connections:
    """All clients of a server, from accept to close.

    :param server: has the methods that are called for clients.
    :param overrides: whether users have written the method of this name.
    :param is_idle: whether a stream has no request in progress, so that a shutdown may close it.
    :param may_close: whether a shutdown may close a stream whose handler has answered and reads again.
    :param closes_in_order: whether ``close()`` of a stream does what ``aclose()`` does.
    :param on_capacity: called when there is room again for a waiting client.
    :ivar open: the streams that have a permit, by id.
    :ivar rejected: the streams that are open only for ``handle_reject``, by id.
    :ivar queued: connections that a shutdown has accepted and that wait for a permit.
    :ivar starting: the tasks that read a PROXY header.
    :ivar handshakes: the TLS handshakes that a handler waits for.
    :ivar handlers: runs the handlers.
    :ivar handling: the handlers' tasks, and the stream that each was called with.
    :ivar closing: the tasks that close streams or run ``handle_close``.
    :ivar limits: decides how many connections there may be.
    :ivar draining: whether the server is shutting down.
    :ivar closes_answered: in a shutdown: the ids of the streams that are closed as soon as their handler has answered.
    :ivar cancel_reason: the close reason for the stream of a cancelled handler.
    :ivar may_block: whether handlers run in the loop, so that the watchdog is needed. True unless set.
    :ivar shutdown_callers: the tasks that wait for a shutdown. It does not wait for them: they may be handlers.
    """

    def __init__(
        self,
        server: HandlerMethods,
        options: ServerOptions,
        *,
        overrides: Callable[[str], bool],
        is_idle: Callable[[IOStream], bool],
        may_close: Callable[[IOStream], bool],
        closes_in_order: bool,
        on_capacity: Callable[[], None],
    ) -> None:
        self.server = server
        self.options = options
        self.events = Events()
        self.open: dict[int, IOStream] = {}
        self.rejected: dict[int, IOStream] = {}
        self.queued: deque[tuple[ConnectionSetup, Context, socket.socket, Any]] = deque()
        self.starting: dict[asyncio.Task[None], None] = {}  # not sets: these go by addresses, and so by chance
        self.handshakes: dict[asyncio.Future[SSLIOStream], None] = {}
        self.handling: dict[asyncio.Future[Any], IOStream] = {}
        self.closing: dict[asyncio.Task[Any], None] = {}
        self.limits = ConnectionLimits(self.open, options, self.events, on_capacity, self._max_rejecting)
        self.deadlines = Deadlines(options, self.open, self.rejected)
        self.groups = Groups(self.open, self.deadlines.armed)
        self.draining = False
        self.closes_answered: Container[int] = ()
        self.cancel_reason = CloseReason.SHUTDOWN
        self.shutdown_callers: set[asyncio.Task[Any] | None] = set()
        self.is_idle = is_idle
        self.may_close = may_close
        self.closes_in_order = closes_in_order
        self.may_block = True
        self.overrides = overrides
        self._draining_waiters: dict[asyncio.Future[None], None] = {}
        self._reports = CloseReports(self)
        self._loop: asyncio.AbstractEventLoop | None = None  # of the last client
        self._io_loop: IOLoop
        self.handlers = Handlers(self)

    def set_options(self, options: ServerOptions) -> None:
        """Apply new options."""
        self.options = self.deadlines.options = options
        self.deadlines.restart()
        self.limits.set_options(options)

    @property
    def write_timeout(self) -> float | None:
        """See `StreamOwner`."""
        return self.options.write_timeout

    @property
    def handshake_timeout(self) -> float | None:
        """See `StreamOwner`."""
        return self.options.handshake_timeout

    def is_rejected(self, stream: BaseIOStream) -> bool:
        """Whether the stream is open only for ``handle_reject``."""
        return stream.id in self.rejected

    def _open_with_id(self, id: int) -> IOStream | None:
        return self.open.get(id) or self.rejected.get(id)

    def is_open(self, stream: BaseIOStream) -> bool:
        """Whether the stream, or one that has replaced it, is open."""
        return self._open_with_id(stream.id) is not None

    def current(self, stream: IOStream) -> IOStream:
        """The stream, or the one that has replaced it by ``start_tls()``."""
        # Almost always it is in ``open``, or closed, and no client is rejected.
        return self.open.get(stream.id) or (self.rejected and self.rejected.get(stream.id)) or stream

    def count(self) -> int:
        """The number of clients, including those not admitted yet, and closed ones whose handler is still running."""
        closed = sum(not self.is_open(stream) for stream in self.handling.values())
        return len(self.open) + len(self.queued) + closed

    # ---- admission

    def accepted(self, setup: ConnectionSetup, context: Context, connection: socket.socket, address: Any) -> None:
        """Take an accepted connection, from a client or from a proxy in front of one.

        :param context: each client's callbacks run in a copy of it.
        """
        if self.draining and not self.limits.has_place():  # only a shutdown accepts without capacity
            if self.limits.has_descriptor_for(len(self.queued)):
                self.queued.append((setup, context, connection, address))
                self.limits.look_again(self._accept_queued)
            else:
                connection.close()
            return
        stream = self.new_stream(connection, address, context)
        has_room = self.options.when_full == "wait" or self.limits.has_capacity() or self._make_room_for(address)
        if has_room:
            self.open[stream.id] = stream
        if self.limits.siblings is not None:
            self.limits.siblings.opened(len(self.open))
        if not has_room and not self._reject(stream, address, "max_connections"):
            return
        if setup.trusted is not None or setup.certificates is not None:
            Connection(self, setup, stream).start(address)
        elif self.options.max_connections_per_ip is None or self.admit(stream, address):
            self.handlers.call(stream, address)

    def new_stream(self, connection: socket.socket, address: Any, context: Context) -> IOStream:
        """A stream for a client. It has no place among the open ones yet."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._io_loop = loop, IOLoop.current()
        stream = IOStream.for_client(connection, address, self.options, self, context.copy(), self._io_loop)
        if self.deadlines.run(loop) and self.may_block:
            watch(loop, self)
        return stream

    def _accept_queued(self) -> None:
        while self.queued and self.limits.has_place():
            self.accepted(*self.queued.popleft())
        if self.queued:
            self.limits.look_again(self._accept_queued)

    def _make_room_for(self, address: Any) -> bool:
        """Evict a client, unless the new one would be rejected anyway; return whether one was evicted."""
        options = self.options
        if options.when_full != "evict" or self.draining:  # in a shutdown the connected clients may finish
            return False
        if options.proxy_protocol is None and self.limits.ip_limit_reached(host_of(address)):
            return False
        return self.limits.evict(self._is_evictable)

    def _is_evictable(self, stream: IOStream) -> bool:
        """Whether the server waits for the client, not the client for the server."""
        return stream.reading() or stream.writing() or self.deadlines.is_armed(stream)

    def admit(self, stream: IOStream, address: Any) -> bool:
        """Apply ``max_connections_per_ip``, once the client's address is known; return whether to go on.

        Go on also for a client that was rejected before and waits for ``handle_reject``.
        """
        if self.options.max_connections_per_ip is None or self.is_rejected(stream):
            return True
        host = host_of(address)
        if self.limits.ip_limit_reached(host):
            return self._reject(stream, address, "max_connections_per_ip")
        self.limits.count(stream, host)
        return True

    def _max_rejecting(self) -> int:
        return MAX_REJECTING if self.overrides("handle_reject") else 0

    def _reject(self, stream: IOStream, address: Any, limit: str) -> bool:
        """Reject a client; return whether to call ``handle_reject``. Otherwise the stream is closed."""
        self.open.pop(stream.id, None)
        value = getattr(self.options, limit) or self.limits.capacity
        text = f"{client_name(stream)} is rejected: {limit} is {value}"
        self.events.emit(Event("reject", text, logging.INFO, stream, address, CloseReason.REJECTED))
        if stream.closed() or len(self.rejected) >= self._max_rejecting():  # a subscriber may have closed it
            stream.terminate(CloseReason.REJECTED)
            return False
        self.rejected[stream.id] = stream
        self.limits.wake_waiting()
        return True

    def set_up(self, serving: Coroutine[Any, Any, None], stream: IOStream) -> None:
        """Run ``serve`` of a connection in a task, in an empty context."""
        task = loop_of(stream).create_task(serving, context=Context())
        may_end_with_loop(task)
        self.starting[task] = None
        task.add_done_callback(self.starting.pop, context=Context())

    # ---- reports

    def report(
        self, stream: IOStream, kind: EventKind, level: int, text: str, reason: CloseReason | None, error: Any
    ) -> None:
        """Report a problem of a stream as an event, with its client's address."""
        address = stream.remote_address
        text = f"{text} ({show(address) or 'a client of a Unix socket'})"
        self.events.emit(Event(kind, text, level, stream, address, reason, error))

    @property
    def watched(self) -> bool:
        """Whether there may be clients, for the watchdog."""
        return self.deadlines.running

    def client_of(self, task: Any) -> IOStream | None:
        """The stream that ``task`` serves as its handler."""
        stream = self.handling.get(task)
        return None if stream is None else self.current(stream)

    def has(self, stream: BaseIOStream, caller: Any) -> bool:
        """Whether ``stream`` is open here, or ``caller``, an object that works for it, is a part of this."""
        if type(caller) in (Connection, Handlers, CloseReports):
            return caller.owner is self
        return caller is self or self._open_with_id(stream.id) is stream

    def blocked(self, stream: IOStream, where: str, seconds: float) -> None:
        """Report that the code that serves ``stream`` has blocked the loop for ``seconds``."""
        self.limits.blocked()
        stream = self.current(stream)
        name = client_name(stream)
        text = f"{where} has blocked the loop for {seconds:.1f} s, and all clients with it, serving {name}"
        self.events.emit(Event("error", text, logging.WARNING, stream, stream.remote_address))

    # ---- close

    def close_gracefully(self, stream: IOStream, reason: CloseReason) -> None:
        """Close a stream in the background: its client reads everything that was written, then EOF."""
        closing = stream.close_in_background(reason)
        if closing is not None:
            self.keep(closing)

    def keep(self, task: "asyncio.Task[Any]") -> None:
        """Make a shutdown wait for ``task``, which closes a stream or runs ``handle_close``."""
        may_end_with_loop(task)
        self.closing[task] = None
        task.add_done_callback(self.closing.pop, context=Context())

    def stream_replaced(self, old: IOStream, new: IOStream) -> None:
        """See `StreamOwner`."""
        (self.rejected if self.is_rejected(new) else self.open)[new.id] = new
        self.deadlines.replaced(new)
        self.groups.replace(new)

    def stream_closed(self, stream: IOStream) -> None:
        """The only exit: called once for every accepted stream, after its descriptor is closed."""
        before_handler = self.deadlines.forget(stream)
        if self.open.pop(stream.id, None) is None:
            self.rejected.pop(stream.id, None)
            before_handler = True
        self.limits.discount(stream)
        groups = self.groups.forget(stream)
        self._reports.add(stream, not before_handler, groups)
        self.limits.wake_waiting()
        if self.queued:
            loop = loop_of(stream)
            if not loop.is_closed():
                loop.call_soon(self._accept_queued, context=Context())

    # ---- while the server shuts down

    async def wait_draining(self) -> None:
        """Return when the server begins to shut down."""
        if not self.draining:
            waiting = asyncio.get_running_loop().create_future()
            self._draining_waiters[waiting] = None
            try:
                await waiting
            finally:
                del self._draining_waiters[waiting]

    def begin_draining(self) -> None:
        """Begin a shutdown: `wait_draining` returns."""
        self.draining = True
        self.track_answers()
        for waiting in self._draining_waiters:
            if not waiting.done() and not waiting.get_loop().is_closed():
                waiting.set_result(None)

    def end_draining(self) -> None:
        """End a shutdown: clients that are still connected are served as before."""
        self.draining, self.closes_answered = False, ()
        for stream in self.open.values():
            stream.track_answers(False)

    def track_answers(self) -> None:
        """Record which handlers answer."""
        for stream in self.open.values():
            stream.track_answers(True)

    def close_if_answered(self, stream: IOStream) -> bool:
        """See `StreamOwner`."""
        if stream.id not in self.closes_answered or not self.may_close(stream):
            return False
        self.close_gracefully(stream, CloseReason.SHUTDOWN)
        return True
