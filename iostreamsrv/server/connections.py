"""The clients of a server: admitted, greeted, handled, finished.

Each has a permit while its descriptor is open: it is one of ``Clients.open``. ``Clients._finish`` is the only exit,
whatever ended a stream: there the permit is given back.
"""

import asyncio
import inspect
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextvars import Context
from typing import Any, Protocol

import tornado.iostream
from tornado import gen

from ..errors import CloseReason, FramingError, StreamClosedError
from ..events import Event, EventKind, Events
from ..iostream import BaseIOStream, IOStream
from ..options import ServerOptions
from ..runtime.addresses import show
from ..runtime.cleanup import given_up
from ..runtime.contexts import run_for
from ..streams.served import loop_of
from .deadlines import Deadlines
from .faults import fault
from .groups import Groups
from .handshake import Greeter, client
from .limits import Permits, host_of
from .watchdog import watch

GOODBYES = 64
"""Rejected clients that are told so at a time. Who comes on top of them is closed without a word."""

GOODBYE_TIMEOUT = 2.0
"""Seconds for telling one."""

CANCEL_PATIENCE = 1.0
"""Seconds that a cancelled handler has for its last words; whoever takes longer is left alone."""

SHUTDOWN_LINGER = 0.2
"""Seconds that a client whose kernel has all that was sent may keep a shutdown waiting for its end. A close cannot
destroy anything on its way any more."""

LAST_TURNS = 0.1
"""Seconds that handlers have to notice that their streams are closed, when they have had their time after a cancel."""


class Serving(Protocol):
    """What a server does with its clients, which users write."""

    def handle_stream(self, stream: IOStream, address: Any) -> Awaitable[None] | None:
        """Serve one."""

    def handle_reject(self, stream: IOStream, address: Any) -> Awaitable[None] | None:
        """Turn one away."""

    def handle_close(self, stream: IOStream, reason: CloseReason) -> Awaitable[None] | None:
        """One was served, and has ended."""


class Clients:
    """All clients of a server, from the accept to the end.

    :param server: whose methods are called for them.
    :param closes: whether the server has a ``handle_close`` of its own; likewise ``rejects`` and ``handle_reject``.
    :param asks_nothing: whether a shutdown need not wait for this stream.
    :param may_end: whether a shutdown may close this stream, whose handler has answered and reads again.
    :param closes_in_order: whether ``close()`` of a stream does what ``aclose()`` does.
    :param may_block: whether handlers run in the loop, so that it is to be watched.
    :param on_place: is called when a place has become free that a newcomer was refused for.
    :ivar open: the streams, by their id.
    :ivar draining: whether the server is shutting down.
    :ivar permits: how many there may be.
    :ivar asking: the tasks that wait for a shutdown, which does not wait for them: handlers may be among them.
    """

    def __init__(
        self,
        server: Serving,
        options: ServerOptions,
        *,
        closes: Callable[[], bool],
        rejects: Callable[[], bool],
        asks_nothing: Callable[[IOStream], bool],
        may_end: Callable[[IOStream], bool],
        closes_in_order: bool,
        may_block: bool,
        on_place: Callable[[], None],
    ) -> None:
        self.options = options
        self.events = Events()
        self.open: dict[int, IOStream] = {}
        self.permits = Permits(self.open, options, self.events, on_place, lambda: GOODBYES if rejects() else 0)
        self.draining = False
        self.closes_in_order = closes_in_order
        self._may_block = may_block
        self._draining_waited: set[asyncio.Future[None]] = set()
        self._ends_answered = False  # the time has passed in which a request may still begin
        self._server = server
        self._closes = closes
        self._rejects = rejects
        self._asks_nothing = asks_nothing
        self._may_end = may_end
        self._rejected: dict[int, IOStream] = {}
        self.deadlines = Deadlines(options, self.open, self._rejected)
        self.groups = Groups(self.open, self.served)
        # those who were in the kernel's queue
        self._queued: deque[tuple[Greeter, Context, socket.socket, Any]] = deque()
        self._handling: dict[asyncio.Future[Any], IOStream] = {}
        self._closing: set[asyncio.Task[Any]] = set()
        self.asking: set[asyncio.Task[Any] | None] = set()
        self._end = CloseReason.SHUTDOWN  # what a cancelled handler's stream ends with
        self._ended: deque[tuple[IOStream, bool]] = deque()  # to be told of, and whether it had a handler
        self._telling = False
        # One bound method for all streams: a new one for every stream costs 64 bytes.
        self._on_handled = self._handled

    def set_options(self, options: ServerOptions) -> None:
        """From now on."""
        self.options = self.deadlines.options = options
        self.deadlines.restart()
        self.permits.set_options(options)

    def served(self, streams: Iterable[IOStream]) -> list[IOStream]:
        """Those of ``streams`` that have got as far as their handler."""
        return [stream for stream in streams if not self.deadlines.in_phase(stream)]

    # ---- admitted

    def accepted(self, greeter: Greeter, context: Context, connection: socket.socket, address: Any) -> None:
        """There is a connection: of a client, or of a proxy in front of one.

        :param context: what its callbacks are to have a copy of.
        """
        if not self.permits.may_accept():  # only a shutdown accepts all the same
            if self.permits.has_descriptor_for(len(self._queued)):
                self._queued.append((greeter, context, connection, address))
            else:
                connection.close()
            return
        stream = IOStream.for_client(connection, address, self.options, self, context.copy())
        loop = loop_of(stream)
        if self.deadlines.run(loop) and self._may_block:
            watch(loop, self)
        if self.permits.is_free() or self._make_room_for(address):
            self.open[stream.id] = stream
        elif not self._reject(stream, address, "max_connections"):
            return
        greeter.greet(stream, address)

    def _make_room_for(self, address: Any) -> bool:
        """By an eviction; but nobody has to go for a client who would be rejected all the same."""
        options = self.options
        if options.when_full != "evict" or self.draining:  # who is in may finish
            return False
        if options.proxy_protocol is None and self.permits.has_its_share(host_of(address)):
            return False
        return self.permits.evict(self._keeps_waiting)

    def _keeps_waiting(self, stream: IOStream) -> bool:
        return stream.reading() or stream.writing() or self.deadlines.in_phase(stream)

    def known(self, stream: IOStream, address: Any) -> bool:
        """The address of a client is known: whether it may go on."""
        if self.options.max_connections_per_ip is None or stream.id in self._rejected:
            return True
        host = host_of(address)
        if self.permits.has_its_share(host):
            return self._reject(stream, address, "max_connections_per_ip")
        self.permits.count(stream, host)
        return True

    def _reject(self, stream: IOStream, address: Any, limit: str) -> bool:
        """Turn a client away; whether it is still to be told so."""
        self.open.pop(stream.id, None)
        text = f"{client(stream)} is rejected: {limit} is {getattr(self.options, limit) or self.permits.most}"
        event = Event("reject", text, logging.INFO, stream, address, CloseReason.REJECTED)
        self.events.emit(event)
        if stream.closed() or not self._rejects() or len(self._rejected) >= GOODBYES:  # closed by who was told
            stream.terminate(CloseReason.REJECTED)
            return False
        self._rejected[stream.id] = stream
        self.permits.offer()
        return True

    # ---- handled

    def greeted(self, stream: IOStream, address: Any) -> None:
        """A client has passed, and is to be served, or to be told why not."""
        if stream.id in self._rejected:
            self.deadlines.begin(stream, CloseReason.REJECTED, "write", GOODBYE_TIMEOUT)
            self._call("handle_reject", stream, address)
            return
        if not self.events.wanted("open") or self._announce(stream, address):
            self._call("handle_stream", stream, address)

    def _announce(self, stream: IOStream, address: Any) -> bool:
        """Tell of a client; whether it is still there, as a listener may have closed it."""
        self.deadlines.begin(stream, CloseReason.LOCAL, "read", None)  # so that it ends as one without a handler
        self.events.emit(Event("open", f"{client(stream)} is connected", stream=stream, address=address))
        return not stream.closed() and self.deadlines.end(stream)

    def _call(self, name: str, stream: IOStream, address: Any) -> None:
        context = stream.callback_context
        assert context is not None
        try:
            result = context.run(getattr(self._server, name), stream, address)
            if result is None:
                return self._returned(self._successor(stream))
            coroutine = _coroutine(result)
            if stream.id in self._rejected:
                coroutine = _goodbye(coroutine)
            handling = loop_of(stream).create_task(coroutine, context=context)
        except (Exception, asyncio.CancelledError) as error:
            return self._handler_failed(self._successor(stream), name, error)
        self._handling[handling] = stream
        self._successor(stream).has_handler = True
        handling.add_done_callback(self._on_handled, context=context)

    def _successor(self, stream: IOStream) -> IOStream:
        """The one that ``start_tls()`` has put in its place, perhaps."""
        return self.open.get(stream.id) or self._rejected.get(stream.id) or stream

    def _returned(self, stream: IOStream) -> None:
        """A plain function has: it may have left the stream to others, but not that of a client who is not to stay."""
        if stream.id in self._rejected:
            self.close_gracefully(stream, CloseReason.REJECTED)

    def _handled(self, handling: "asyncio.Future[Any]") -> None:
        """A handler has ended."""
        stream = self._successor(self._handling.pop(handling))
        stream.has_handler = False
        rejected = stream.id in self._rejected
        if handling.cancelled() and isinstance(handling, asyncio.Task) and handling.cancelling():
            self.close_gracefully(stream, self._end)
        elif (error := _error_of(handling)) is not None:
            self._handler_failed(stream, "handle_reject" if rejected else "handle_stream", error)
        elif rejected:
            self.close_gracefully(stream, CloseReason.REJECTED)
        elif self.options.close_on_return:
            self._retire_unless_read(stream)
        if not (stream.id in self.open or stream.id in self._rejected):
            stream.callback_context = None

    def _retire_unless_read(self, stream: IOStream) -> None:
        """Close ``stream``, whose handler has returned, unless somebody reads it: then look again when that is over."""
        if stream.closed() or stream.has_close_callback():
            return
        if stream.reading():
            stream.when_read_done(lambda: self._retire_unless_read(self._successor(stream)))
        else:
            self.close_gracefully(stream, CloseReason.LOCAL)

    def _handler_failed(self, stream: IOStream, name: str, error: BaseException) -> None:
        if type(error) is StreamClosedError and error.stream_id == stream.id:  # how most handlers end
            return self.close_gracefully(stream, CloseReason.LOCAL)
        reason, telling = fault(stream, error)
        if reason is CloseReason.HANDLER_ERROR:
            self._raised(name, stream, error)
        elif isinstance(telling, tornado.iostream.StreamBufferFullError):
            self._complain("limit", stream, f"closing {client(stream)}: {telling}", reason, telling)
        elif isinstance(telling, FramingError):
            self._complain("error", stream, f"closing {client(stream)}: {telling}", reason, telling, logging.INFO)
        self.close_gracefully(stream, reason)

    def _complain(
        self,
        kind: EventKind,
        stream: IOStream,
        text: str,
        reason: CloseReason,
        error: BaseException,
        level: int = logging.WARNING,
    ) -> None:
        self.events.emit(Event(kind, text, level, stream, stream.remote_address, reason, error))

    def _raised(self, name: str, stream: IOStream, error: BaseException) -> None:
        """What users wrote has a fault."""
        text = f"Exception in callback {name} for {client(stream)}"
        self._complain("error", stream, text, CloseReason.HANDLER_ERROR, error, logging.ERROR)

    def report(
        self,
        stream: IOStream,
        kind: EventKind,
        level: int,
        text: str,
        reason: CloseReason | None,
        error: BaseException | None,
    ) -> None:
        """A stream reports a problem."""
        address = stream.remote_address
        text = f"{text} ({show(address) or 'a client of a Unix socket'})"
        self.events.emit(Event(kind, text, level, stream, address, reason, error))

    @property
    def write_timeout(self) -> float | None:
        """For streams that have none of their own."""
        return self.options.write_timeout

    # ---- watched

    @property
    def watched(self) -> bool:
        """Whether there may be clients, for the watchdog."""
        return self.deadlines.running

    def client_of(self, task: Any) -> IOStream | None:
        """The stream that ``task`` serves as its handler."""
        return self._handling.get(task)

    def has(self, stream: BaseIOStream) -> bool:
        """Whether ``stream`` is open."""
        return (self.open.get(stream.id) or self._rejected.get(stream.id)) is stream

    def blocked(self, stream: IOStream, where: str, seconds: float) -> None:
        """What serves ``stream`` has blocked the loop for so long."""
        stream = self._successor(stream)
        text = f"{where} has blocked the loop for {seconds:.1f} s, and all clients with it, serving {client(stream)}"
        self.events.emit(Event("error", text, logging.WARNING, stream, stream.remote_address))

    # ---- finished

    def close_gracefully(self, stream: IOStream, reason: CloseReason) -> None:
        """Close a stream in order, so that its client reads all that was written and then EOF."""
        closing = stream.close_in_background(reason)
        if closing is not None:
            self._keep(closing)

    def _keep(self, task: "asyncio.Task[Any]") -> None:
        self._closing.add(task)
        task.add_done_callback(self._closing.discard, context=Context())

    def stream_replaced(self, old: IOStream, new: IOStream) -> None:
        """TLS has started: ``new`` has the ``id`` of ``old``."""
        (self._rejected if new.id in self._rejected else self.open)[new.id] = new
        self.deadlines.replaced(new)
        self.groups.replace(new)

    def stream_closed(self, stream: IOStream) -> None:
        """The only exit: every accepted stream comes by, once, when its descriptor has been closed."""
        before_handler = self.deadlines.forget(stream)
        if self.open.pop(stream.id, None) is None:
            self._rejected.pop(stream.id, None)
            before_handler = True
        self.permits.discount(stream)
        self.groups.forget(stream)
        self._ended.append((stream, not before_handler))
        if not self._telling:
            self._tell_of_ends()
        self.permits.offer()
        if self._queued:
            loop = loop_of(stream)
            if not loop.is_closed():
                loop.call_soon(self._accept_queued, context=Context())

    def _accept_queued(self) -> None:
        while self._queued and self.permits.may_accept():
            self.accepted(*self._queued.popleft())

    def _tell_of_ends(self) -> None:
        """One after the other, never one within another: who is told of an end may speak to all the others, find them
        broken, and so end them. A hundred such calls within each other are more than Python's stack takes.
        """
        self._telling = True
        try:
            while self._ended:
                stream, handled = self._ended.popleft()
                if self.events.wanted("close"):
                    self._tell_of_close(stream)
                if handled and self._closes():
                    run_for(stream, self._call_handle_close, stream)
                if not stream.has_handler:
                    # Nothing runs there any more, and a variable may keep the stream.
                    stream.callback_context = None
        finally:
            self._telling = False

    def _tell_of_close(self, stream: IOStream) -> None:
        reason, address = stream.close_reason, stream.remote_address
        text = f"{client(stream)} is closed: {reason}{f' ({stream.error})' if stream.error else ''}"
        self.events.emit(Event("close", text, logging.DEBUG, stream, address, reason, stream.error))

    def _call_handle_close(self, stream: IOStream) -> None:
        assert stream.close_reason is not None
        try:
            result = self._server.handle_close(stream, stream.close_reason)
            if result is not None:
                handling = _coroutine(result)
                closed = loop_of(stream).create_task(self._closed(stream, handling))
                # A task that is cancelled before its first step, as at the end of a loop, would never await it.
                closed.add_done_callback(lambda _: handling.close())
                self._keep(closed)
        except (Exception, asyncio.CancelledError) as error:
            self._raised("handle_close", stream, error)

    async def _closed(self, stream: IOStream, handling: Awaitable[None]) -> None:
        try:
            await handling
        except Exception as error:
            self._raised("handle_close", stream, error)

    # ---- ended, all of them

    def all_gone(self) -> bool:
        """Whether there is none, and nothing to be done for one, but for clients whose handlers ask."""
        asking = [self._handling[task] for task in self._handling.keys() & self.asking]
        streams = len(self.open) - sum(stream.id in self.open for stream in asking)
        return not (
            streams
            or self._queued
            or self._rejected
            or len(self._handling) > len(asking)
            or self._closing - self.asking
        )

    async def wait_draining(self) -> None:
        """Return when the server begins to shut down."""
        if not self.draining:
            waiting = asyncio.get_running_loop().create_future()
            self._draining_waited.add(waiting)
            try:
                await waiting
            finally:
                self._draining_waited.discard(waiting)

    def begin_draining(self) -> None:
        """The server begins to shut down."""
        self.draining = True
        self.note_written()
        for waiting in self._draining_waited:
            if not waiting.done() and not waiting.get_loop().is_closed():
                waiting.set_result(None)

    def end_draining(self) -> None:
        """It is over: whoever is left goes on as before."""
        self.draining = self._ends_answered = False
        for stream in self.open.values():
            stream.track_answers(False)

    def note_written(self) -> None:
        """See who answers from now on."""
        for stream in self.open.values():
            stream.track_answers(True)

    def end_lingering(self, seconds: float) -> None:
        """Close the streams whose client has had all for so long, and has not ended its side."""
        for stream in [*self.open.values(), *self._rejected.values()]:
            if stream.has_lingered(seconds):
                stream.terminate(CloseReason.SHUTDOWN)

    def end_waiting(self, idle: float) -> None:
        """Close the streams that merely wait for their client, and those who have not begun with their handshake; from
        now on also those whose handler has answered and reads again."""
        self._ends_answered = True
        for stream in list(self.open.values()):
            if self.deadlines.in_phase(stream):
                if stream.idle_time >= idle:
                    stream.terminate(CloseReason.SHUTDOWN)
            elif stream.close_reason is not None or not self._asks_nothing(stream):
                continue
            elif stream.idle_time >= idle or not stream.is_unanswered():
                self._end_waiting(stream)

    def _end_waiting(self, stream: IOStream) -> None:
        if not self._may_end(stream):
            return
        if stream.unacknowledged():
            self.close_gracefully(stream, CloseReason.SHUTDOWN)
        else:
            stream.terminate(CloseReason.SHUTDOWN)

    def close_if_answered(self, stream: IOStream) -> bool:
        """The handler has answered, and reads again: whether its stream is closed for that."""
        if not self._ends_answered or not self._may_end(stream):
            return False
        self.close_gracefully(stream, CloseReason.SHUTDOWN)
        return True

    def count(self) -> int:
        """How many there are, those included who are still to be taken in, or have gone while their handler works."""
        known = self.open.keys() | self._rejected.keys()
        gone = sum(stream.id not in known for stream in self._handling.values())
        return len(self.open) + len(self._queued) + gone

    async def end_all(self, greeters: list[Greeter], reason: CloseReason, gently: bool = False) -> None:
        """Cancel all handlers and close all streams; return when the handlers have ended.

        :param gently: let the handlers have their last words before the streams are closed.
        """
        self._end = reason
        while self._queued:
            self._queued.pop()[2].close()
        spared = {asyncio.current_task(), *self.asking}
        ending: list[asyncio.Future[Any]] = [*self._handling.keys() - spared, *self._closing - spared]
        for task in ending:
            task.cancel()
        for greeter in greeters:
            ending += greeter.cancel()
        late = {each for each in ending if each in given_up}  # they have had their time
        if gently:
            late |= await _wait([*{*ending} - late])
            closing = [*self._closing - spared]
            await _wait(closing, SHUTDOWN_LINGER)  # for the clients to read them
            self.end_lingering(SHUTDOWN_LINGER)  # who has all
            await _wait(closing, CANCEL_PATIENCE - SHUTDOWN_LINGER)
        for stream in [*self.open.values(), *self._rejected.values()]:
            if gently:
                stream.close_or_abort(reason)
                stream.discard_output()
            else:
                stream.terminate(reason)
        self._end = CloseReason.SHUTDOWN
        late |= await _wait([*{*ending, *self._closing - spared} - late])
        given_up.update(await _wait([*late], LAST_TURNS))


def _error_of(handling: "asyncio.Future[Any]") -> BaseException | None:
    """What it raised, a `CancelledError` of what it waited for included."""
    try:
        return handling.exception()
    except asyncio.CancelledError as error:
        return error


async def _wait(
    futures: Sequence["asyncio.Future[Any]"], timeout: float = CANCEL_PATIENCE
) -> "set[asyncio.Future[Any]]":
    """Those that are not done by then."""
    return (await asyncio.wait(futures, timeout=timeout))[1] if futures else set()


async def _wait_for(result: Any) -> None:
    """A coroutine of one stream's own: a future may be anybody's, even one that several handlers return."""
    await gen.convert_yielded(result)


async def _goodbye(handling: Awaitable[None]) -> None:
    """No longer than its stream may live: or else each client that is turned away could leave a task behind."""
    try:
        async with asyncio.timeout(GOODBYE_TIMEOUT) as limit:
            await handling
    except TimeoutError:
        if not limit.expired():
            raise


def _coroutine(result: Any) -> Coroutine[Any, Any, None]:
    return result if inspect.iscoroutine(result) else _wait_for(result)
