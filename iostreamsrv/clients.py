"""The clients of a server: admitted, greeted, handled, finished.

Each has a permit while its descriptor is open: it is one of ``Clients.open``, whose number is what ``max_connections``
limits. Where a full server lets newcomers wait, the permit is there before the accept, so that the kernel's backlog is
the queue. ``Clients._finish`` is the only exit, whatever ended a stream: there the permit is given back.
"""

import asyncio
import inspect
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address
from itertools import islice
from typing import Any, Protocol

import tornado.iostream
from tornado import gen

from .addresses import show
from .deadlines import Deadlines
from .descriptors import default_connections
from .engine.base import CLOSE_TIMEOUT
from .errors import CloseReason, StreamTimeoutError, reason_for
from .events import Event, Events
from .greeting import Greeter
from .iostream import BaseIOStream, IOStream
from .options import ServerOptions
from .registry import Groups

GOODBYES = 64
"""Rejected clients that are told so at a time. Who comes on top of them is closed without a word."""

GOODBYE_TIMEOUT = 2.0
"""Seconds for telling one."""

CANCEL_PATIENCE = 1.0
"""Seconds that a cancelled handler has for its last words; whoever takes longer is left alone."""

CANDIDATES = 64
"""Streams that are found at once when one must go, so that a rush does not look at all of them for each newcomer."""


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
    :param on_place: is called when a place has become free that a newcomer was refused for.
    :ivar open: the streams, by their id.
    :ivar draining: is set when the server begins to shut down.
    :ivar most: how many there may be.
    :ivar asking: the tasks that wait for a shutdown, which does not wait for them: handlers may be among them.
    """

    def __init__(
        self,
        server: Serving,
        options: ServerOptions,
        *,
        closes: Callable[[], bool],
        rejects: Callable[[], bool],
        on_place: Callable[[], None],
    ) -> None:
        self.options = options
        self.events = Events()
        self.open: dict[int, IOStream] = {}
        self.draining = asyncio.Event()
        self.most = options.max_connections or 1
        self._server = server
        self._closes = closes
        self._rejects = rejects
        self._on_place = on_place
        self._rejected: dict[int, IOStream] = {}
        self.deadlines = Deadlines(options, self.open, self._rejected)
        self.groups = Groups(self.open, asyncio.get_running_loop)
        self._of_host: Counter[str] = Counter()
        self._candidates: list[tuple[IOStream, float]] = []
        self._wanted = False  # somebody waits for a place
        self._handling: dict[asyncio.Future[Any], IOStream] = {}
        self._closing: set[asyncio.Task[Any]] = set()
        self.asking: set[asyncio.Task[Any] | None] = set()
        self._end = CloseReason.SHUTDOWN  # what a cancelled handler's stream ends with
        # One bound method for all streams: a new one for every stream costs 64 bytes.
        self._on_handled = self._handled

    def set_options(self, options: ServerOptions) -> None:
        """From now on."""
        self.options = self.deadlines.options = options
        self.deadlines.restart()
        self.count_places()
        self._of_host = Counter()
        if options.max_connections_per_ip is not None:
            for stream in self.open.values():
                if (host := host_of(stream.remote_address)) is not None:
                    self._of_host[host] += 1

    def count_places(self) -> None:
        """How many there are may depend on the limit of descriptors, which may have changed."""
        self.most = int(self.options.max_connections or default_connections())
        self._offer_place()

    def served(self) -> list[IOStream]:
        """The streams that have got as far as their handler."""
        return [stream for stream in self.open.values() if not self.deadlines.in_phase(stream)]

    # ---- admitted

    def has_place(self) -> bool:
        """Whether one more may be accepted; if not, ``on_place`` is called later."""
        if len(self.open) < self.most or self.options.when_full != "wait":
            return True
        if not self._wanted:
            self._wanted = True
            self._say_full("new ones wait")
        return False

    def _say_full(self, consequence: str) -> None:
        text = f"there are {len(self.open)} connections (max_connections): {consequence}"
        self.events.emit(Event("limit", text, logging.WARNING))

    def _offer_place(self) -> None:
        if self._wanted and len(self.open) < self.most:
            self._wanted = False
            self._on_place()

    def accepted(self, greeter: Greeter, connection: socket.socket, address: Any) -> None:
        """There is a connection: of a client, or of a proxy in front of one."""
        stream = IOStream._of_client(connection, address, self.options, self)
        self.deadlines.run(stream._hub.loop)
        if len(self.open) < self.most or (self.options.when_full == "evict" and self._evict()):
            self.open[stream.id] = stream
        elif not self._reject(stream, address, "max_connections"):
            return
        greeter.greet(stream, address)

    def known(self, stream: IOStream, address: Any) -> bool:
        """The address of a client is known: whether it may go on."""
        limit = self.options.max_connections_per_ip
        if limit is None or stream.id in self._rejected:
            return True
        host = host_of(address)
        if host is None:
            return True
        if self._of_host[host] >= limit:
            return self._reject(stream, address, "max_connections_per_ip")
        self._of_host[host] += 1
        return True

    def _reject(self, stream: IOStream, address: Any, limit: str) -> bool:
        """Turn a client away; whether it is still to be told so."""
        self.open.pop(stream.id, None)
        text = f"{show(address)} is rejected: {limit} is {getattr(self.options, limit) or self.most}"
        event = Event("reject", text, logging.INFO, stream, address, CloseReason.REJECTED)
        self.events.emit(event)
        if stream.closed() or not self._rejects() or len(self._rejected) >= GOODBYES:  # closed by who was told
            stream._close(CloseReason.REJECTED)
            return False
        self._rejected[stream.id] = stream
        self._offer_place()
        return True

    def _evict(self) -> bool:
        """Close, of those who keep their handler waiting, the one who has done so for the longest time."""
        for _ in range(2):
            while self._candidates:
                stream, since = self._candidates.pop()
                if not stream.closed() and stream._received_at == since and self._keeps_waiting(stream):
                    stream._close(CloseReason.EVICTED)
                    stream._give_up_owed()
                    return True
            waiting = sorted(filter(self._keeps_waiting, self.open.values()), key=lambda each: each._received_at)
            self._candidates = [(each, each._received_at) for each in islice(waiting, CANDIDATES)][::-1]
        return False

    def _keeps_waiting(self, stream: IOStream) -> bool:
        return stream.reading() or stream.writing() or self.deadlines.in_phase(stream)

    # ---- handled

    def greeted(self, stream: IOStream, address: Any) -> None:
        """A client has passed, and is to be served, or to be told why not."""
        if stream.id in self._rejected:
            self.deadlines.begin(stream, CloseReason.REJECTED, "write", GOODBYE_TIMEOUT)
            self._call("handle_reject", stream, address)
            return
        if self.events.wanted("open"):
            self.events.emit(Event("open", f"{client(stream)} is connected", stream=stream, address=address))
        self._call("handle_stream", stream, address)

    def _call(self, name: str, stream: IOStream, address: Any) -> None:
        try:
            result = getattr(self._server, name)(stream, address)
            if result is None:
                return self._returned(stream)
            handling = stream._hub.loop.create_task(_coroutine(result))
        except Exception as error:
            return self._handler_failed(stream, name, error)
        self._handling[handling] = stream
        handling.add_done_callback(self._on_handled)

    def _returned(self, stream: IOStream) -> None:
        """A plain function has: it may have left the stream to others, but not that of a client who is not to stay."""
        if stream.id in self._rejected:
            self._retire(stream, CloseReason.REJECTED)

    def _handled(self, handling: "asyncio.Future[Any]") -> None:
        """A handler has ended."""
        stream = self._handling.pop(handling)
        stream = self.open.get(stream.id, stream)  # start_tls() has put another one in its place, perhaps
        rejected = stream.id in self._rejected
        if handling.cancelled():
            if isinstance(handling, asyncio.Task) and handling.cancelling():
                stream._close(self._end)
            else:  # by what it waited for
                self._retire(stream, CloseReason.HANDLER_ERROR)
        elif (error := handling.exception()) is not None:
            self._handler_failed(stream, "handle_reject" if rejected else "handle_stream", error)
        elif rejected:
            self._retire(stream, CloseReason.REJECTED)
        elif self.options.close_on_return and not stream.reading() and stream._close_callback is None:
            self._retire(stream, CloseReason.LOCAL)

    def _handler_failed(self, stream: IOStream, name: str, error: BaseException) -> None:
        if isinstance(error, tornado.iostream.StreamClosedError):
            reason = CloseReason.LOCAL
        elif isinstance(error, tornado.iostream.StreamBufferFullError):
            reason = reason_for(error)
            self._complain("limit", stream, f"closing {client(stream)}: {error}", reason, error)
        elif isinstance(error, ssl.SSLError):  # of its start_tls(), which has said so
            reason = CloseReason.TLS_ERROR
        elif isinstance(error, StreamTimeoutError):
            reason = CloseReason.READ_TIMEOUT
        else:
            reason = CloseReason.HANDLER_ERROR
            self._raised(name, stream, error)
        self._retire(stream, reason)

    def _complain(
        self,
        kind: Any,
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

    # ---- finished

    def _retire(self, stream: IOStream, reason: CloseReason) -> None:
        """Close a stream in order, so that its client reads all that was written and then the end."""
        if not stream.closed():
            self._keep(stream._hub.loop.create_task(stream._aclose(reason, CLOSE_TIMEOUT)))

    def _keep(self, task: "asyncio.Task[Any]") -> None:
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _replace(self, stream: IOStream) -> None:
        (self._rejected if stream.id in self._rejected else self.open)[stream.id] = stream
        self.groups.replace(stream)

    def _finish(self, stream: BaseIOStream) -> None:
        """The only exit: every accepted stream comes by, once, when its descriptor has been closed."""
        assert isinstance(stream, IOStream)
        before_handler = self.deadlines.forget(stream)
        if self.open.pop(stream.id, None) is None:
            self._rejected.pop(stream.id, None)
            before_handler = True
        elif self._of_host and (host := host_of(stream.remote_address)) is not None:
            self._leave_host(host)
        self.groups.forget(stream)
        if self.events.wanted("close"):
            self._tell_of_close(stream)
        if not before_handler and self._closes():
            self._call_handle_close(stream)
        self._offer_place()

    def _leave_host(self, host: str) -> None:
        self._of_host[host] -= 1
        if self._of_host[host] <= 0:
            del self._of_host[host]

    def _tell_of_close(self, stream: IOStream) -> None:
        reason, address = stream.close_reason, stream.remote_address
        text = f"{client(stream)} is closed: {reason}{f' ({stream.error})' if stream.error else ''}"
        self.events.emit(Event("close", text, logging.DEBUG, stream, address, reason, stream.error))

    def _call_handle_close(self, stream: IOStream) -> None:
        assert stream.close_reason is not None
        try:
            result = self._server.handle_close(stream, stream.close_reason)
            if result is not None:
                self._keep(stream._hub.loop.create_task(self._closed(stream, _coroutine(result))))
        except Exception as error:
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
        return not (streams or self._rejected or len(self._handling) > len(asking) or self._closing - self.asking)

    def end_waiting(self, idle: float) -> None:
        """Close the streams that merely wait for their client, and those who have not begun with their handshake."""
        for stream in list(self.open.values()):
            if self.deadlines.in_phase(stream):
                if stream.idle_time >= idle:
                    stream._close(CloseReason.SHUTDOWN)
            elif stream._merely_waits():
                stream._close(CloseReason.SHUTDOWN)

    async def end_all(self, greeters: list[Greeter], reason: CloseReason, gently: bool = False) -> None:
        """Cancel all handlers and close all streams; return when the handlers have ended.

        :param gently: let the handlers have their last words before the streams are closed.
        """
        self._end = reason
        spared = {asyncio.current_task(), *self.asking}
        ending: list[asyncio.Future[Any]] = [*self._handling.keys() - spared, *self._closing - spared]
        for task in ending:
            task.cancel()
        for greeter in greeters:
            ending += greeter.cancel()
        if gently:
            await _wait(ending)
        for stream in [*self.open.values(), *self._rejected.values()]:
            stream._close(reason)
        self._end = CloseReason.SHUTDOWN
        await _wait([*ending, *self._closing - spared])


async def _wait(futures: list["asyncio.Future[Any]"]) -> None:
    if futures:
        await asyncio.wait(futures, timeout=CANCEL_PATIENCE)


async def _wait_for(future: Awaitable[Any]) -> None:
    """A coroutine of one stream's own: the future may be anybody's, even one that several handlers return."""
    await future


def _coroutine(result: Any) -> Any:
    return result if inspect.iscoroutine(result) else _wait_for(gen.convert_yielded(result))


def host_of(address: Any) -> str | None:
    """Whom an address belongs to: an IPv4 address, or a /64 of IPv6; None for Unix sockets."""
    if not isinstance(address, tuple):
        return None
    host = str(address[0])
    if ":" not in host:
        return host
    ip = IPv6Address(host.partition("%")[0])
    return str(ip.ipv4_mapped or IPv6Address(int(ip) >> 64 << 64))


def client(stream: IOStream) -> str:
    """A client, for people; one of a Unix socket has no address, and is named after the one it came by."""
    return show(stream.remote_address) or f"a client of {show(stream.local_address or 'a Unix socket')}"
