"""One client of a server: PROXY header, admission, TLS handshake, handler, close.

:meth:`Connection.serve` shows the order. For a client without header and handshake there is nothing to wait for: its
handler starts as soon as it is accepted, without a task for ``serve``. Nor is ``serve`` on the stack while a handler
runs. So an idle client costs its handler's task and this small object.

A client counts as *being set up* (`Deadlines.is_armed`) from the accept until its handler is called. If it is closed
before that, ``handle_close`` is not called.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from types import CoroutineType
from typing import Any, Protocol

import tornado.iostream
from tornado import gen

from ..certs.certificates import Certificates
from ..errors import CloseReason, FramingError, StreamClosedError
from ..events import Event, EventKind, Events
from ..iostream import IOStream, SSLIOStream
from ..net.trusted_proxies import TrustedNetworks
from ..options import ServerOptions
from ..runtime.addresses import show
from ..runtime.cleanup import may_end_with_loop
from ..sansio.proxy import ProxyError, parse_header
from ..streams.served import loop_of
from .deadlines import Deadlines
from .faults import fault

REJECT_TIMEOUT = 2.0
"""Seconds for ``handle_reject``, and for its client to read what it wrote."""


class Handlers(Protocol):
    """The methods that users write."""

    def handle_stream(self, stream: IOStream, address: Any) -> Awaitable[None] | None:
        """Serve a client."""

    def handle_reject(self, stream: IOStream, address: Any) -> Awaitable[None] | None:
        """Tell a client that it is rejected."""

    def handle_close(self, stream: IOStream, reason: CloseReason) -> Awaitable[None] | None:
        """Called after a client's stream is closed."""


class ConnectionSetup:
    """What the clients of one listener go through before their handler.

    :ivar certificates: for the TLS handshake; None for plain connections.
    :ivar trusted: the proxies that send a PROXY header; None if no header is expected.
    :ivar reading_headers: how many clients' headers are being read.
    """

    def __init__(self, certificates: Certificates | None, trusted: TrustedNetworks | None) -> None:
        self.certificates = certificates
        self.trusted = trusted
        self.reading_headers = 0

    @classmethod
    def of(cls, ssl_options: Any, options: ServerOptions) -> "ConnectionSetup":
        """The setup for TLS options of a listener; None or False for plain connections.

        :raises CertificateError: the options are unusable.
        """
        certificates = None if ssl_options is False else ssl_options
        if certificates is not None and not isinstance(certificates, Certificates):
            certificates = Certificates(
                certificates, strict_validity=options.strict_validity, allow_legacy_tls=options.allow_legacy_tls
            )
        networks = options.proxy_protocol
        return cls(certificates, None if networks is None else TrustedNetworks(networks))


class ConnectionOwner(Protocol):
    """What a connection uses of its server's `Connections`; see there."""

    server: Handlers
    options: ServerOptions
    events: Events
    deadlines: Deadlines
    open: dict[int, IOStream]
    rejected: dict[int, IOStream]
    cancel_reason: CloseReason
    handling: "dict[asyncio.Future[Any], Connection]"
    on_handler_done: "Callable[[asyncio.Future[Any]], None]"

    def admit(self, stream: IOStream, address: Any) -> bool:
        """Whether a client with this address may be served."""

    def is_rejected(self, stream: IOStream) -> bool:
        """Whether the stream is open only for ``handle_reject``."""

    def is_open(self, stream: IOStream) -> bool:
        """Whether the stream, or one that has replaced it, is open."""

    def current(self, stream: IOStream) -> IOStream:
        """The stream, or the one that has replaced it."""

    def set_up(self, serving: Coroutine[Any, Any, None], stream: IOStream) -> None:
        """Run ``serve`` of a connection in a task."""

    def overrides(self, name: str) -> bool:
        """Whether users have written the method of this name."""

    def keep(self, task: "asyncio.Task[Any]") -> None:
        """Make a shutdown wait for a task that closes a stream or runs ``handle_close``."""

    def close_gracefully(self, stream: IOStream, reason: CloseReason) -> None:
        """Close a stream in the background: its client reads everything that was written, then EOF."""


class Connection:
    """One accepted socket; see the module.

    :ivar owner: the `Connections` of the server.
    """

    __slots__ = ("_setup", "_stream", "owner")

    def __init__(self, owner: ConnectionOwner, setup: ConnectionSetup, stream: IOStream) -> None:
        self.owner = owner
        self._setup = setup
        self._stream = stream

    @property
    def stream(self) -> IOStream:
        """The stream to this client."""
        # Almost always it is in ``open``, or closed. (Two Python calls less, twice for each client.)
        stream, owner = self._stream, self.owner
        return owner.open.get(stream.id) or (owner.current(stream) if owner.rejected else stream)

    def start(self, address: Any) -> None:
        """Serve the client: at once if there is nothing to wait for, otherwise in a task.

        Steps that need no waiting are done within the accept: this client must be counted before the next one is
        accepted, and no stream in ``server.streams`` may send before its TLS has started.

        :param address: the address of the connection: the client's, or a proxy's.
        """
        handshake = None
        if self._setup.trusted is not None:
            self._arm(CloseReason.PROXY_ERROR, "read", self.owner.options.proxy_header_timeout)
            if address not in self._setup.trusted:
                return self._refuse(address, "a connection that is not from a trusted proxy", logging.INFO)
        elif not self.owner.admit(self._stream, address):
            return None
        elif self._setup.certificates is None:
            return self.call_handler(address)
        else:
            handshake = self._start_tls(self._setup.certificates)
        return self.owner.set_up(self.serve(address, handshake), self._stream)

    async def serve(self, address: Any, handshake: "asyncio.Future[SSLIOStream] | None") -> None:
        """Do everything that comes before the handler, then call it.

        :param handshake: the running handshake of a client without a header: :meth:`start` has admitted the client and
            begun it.
        """
        if self._setup.trusted is not None:
            if not await self._read_header(address):
                return
            address = self._stream.remote_address
            if not self.owner.admit(self._stream, address):
                return
            if self._setup.certificates is not None:
                handshake = self._start_tls(self._setup.certificates)
        if handshake is not None and not await self._finish_tls(handshake):
            return
        self.call_handler(address)

    def _arm(self, reason: CloseReason, operation: Any, seconds: float | None) -> None:
        self.owner.deadlines.arm(self._stream, reason, operation, seconds)

    # ---- the PROXY header

    async def _read_header(self, address: Any) -> bool:
        """Read the header; return whether it is valid and the stream is still open."""
        stream = self._stream
        self._setup.reading_headers += 1
        try:
            info = await stream.read_until_match(parse_header)
        except ProxyError as error:
            self._refuse(address, str(error), logging.WARNING)
            return False
        except StreamClosedError as error:
            if error.reason is CloseReason.PROXY_ERROR:  # it was late
                self._report_header(address, str(error.real_error), logging.WARNING)
            stream.close()
            return False
        except OSError:  # receiving has failed, ENOMEM for example, and the stream is closed
            return False
        finally:
            self._setup.reading_headers -= 1
        if stream.closed():  # since then: by another task, where a read does not step this one at once
            return False
        self.owner.deadlines.disarm(stream)
        stream.set_proxied(info)
        return True

    def _refuse(self, address: Any, why: str, level: int) -> None:
        self._report_header(address, why, level)
        self._stream.terminate(CloseReason.PROXY_ERROR)

    def _report_header(self, address: Any, why: str, level: int) -> None:
        """Emit an event. WARNING: a trusted proxy is configured wrongly. INFO: a connection from any other address."""
        text = f"PROXY header of {client_name(self._stream)}: {why}"
        self.owner.events.emit(Event("error", text, level, self._stream, address, CloseReason.PROXY_ERROR))

    # ---- the TLS handshake

    def _start_tls(self, certificates: Certificates) -> "asyncio.Future[SSLIOStream]":
        self._arm(CloseReason.HANDSHAKE_TIMEOUT, "handshake", self.owner.options.handshake_timeout)
        return self._stream.start_tls(True, certificates, timeout=None)

    async def _finish_tls(self, handshake: "asyncio.Future[SSLIOStream]") -> bool:
        """Wait for the handshake; return whether it succeeded and the stream is still open."""
        await asyncio.wait([handshake])  # not "await handshake": a cancel would cancel the future, and close the stream
        if handshake.cancelled() or handshake.exception() is not None:
            return False
        self._stream = handshake.result()
        if self._stream.closed():  # since then
            return False
        self.owner.deadlines.disarm(self._stream)
        return True

    # ---- the handler

    def call_handler(self, address: Any) -> None:
        """Call ``handle_stream``; for a rejected client ``handle_reject``."""
        if self.owner.is_rejected(self._stream):
            self._arm(CloseReason.REJECTED, "write", REJECT_TIMEOUT)
            self._call("handle_reject", address)
        elif not self.owner.events.wanted("open") or self._announce(address):
            self._call("handle_stream", address)

    def _announce(self, address: Any) -> bool:
        """Emit the event "open"; return whether the stream is still open: a subscriber may have closed it."""
        stream = self._stream
        self._arm(CloseReason.LOCAL, "read", None)  # if it is closed now, handle_close is not called
        text = f"{client_name(stream)} is connected"
        self.owner.events.emit(Event("open", text, stream=stream, address=address))
        return not stream.closed() and self.owner.deadlines.disarm(stream)

    def _call(self, name: str, address: Any) -> None:
        context = self._stream.callback_context
        assert context is not None
        try:
            result = context.run(getattr(self.owner.server, name), self._stream, address)
            if result is None:
                return self._handler_returned_at_once()
            coroutine = as_coroutine(result)
            rejected = name == "handle_reject"
            task = _bounded_reject(coroutine) if rejected else coroutine
            handling = loop_of(self._stream).create_task(task, context=context)
        except (Exception, asyncio.CancelledError) as error:
            return self._handler_failed(self.stream, name, error)
        may_end_with_loop(handling)
        if rejected:
            # If it is cancelled before its first step, as by a shutdown, it never awaits the coroutine.
            handling.add_done_callback(lambda _: coroutine.close(), context=context)
        self.owner.handling[handling] = self
        self.stream.has_handler = True
        handling.add_done_callback(self.owner.on_handler_done, context=context)
        return None

    def _handler_returned_at_once(self) -> None:
        """After a plain function the stream stays open, for other code to use; but not that of a rejected client."""
        if self.owner.is_rejected(self._stream):
            self.owner.close_gracefully(self.stream, CloseReason.REJECTED)

    # ---- after the handler

    def handler_done(self, handling: "asyncio.Future[Any]") -> None:
        """Close the stream after its handler has ended, as the options and the handler's error require."""
        stream, owner = self.stream, self.owner
        stream.has_handler = False
        is_open = owner.is_open(stream)
        rejected = is_open and owner.is_rejected(stream)
        if handling.cancelled() and isinstance(handling, asyncio.Task) and handling.cancelling():
            owner.close_gracefully(stream, owner.cancel_reason)
        elif (error := _error_of(handling)) is not None:
            self._handler_failed(stream, "handle_reject" if rejected else "handle_stream", error)
        elif rejected:
            owner.close_gracefully(stream, CloseReason.REJECTED)
        elif is_open and owner.options.close_on_return:
            self._close_unless_read()
        if not is_open or not owner.is_open(stream):
            stream.callback_context = None

    def _close_unless_read(self) -> None:
        """Close the stream unless a read is pending. If one is, decide again when it is done."""
        stream = self.stream
        if stream.closed() or stream.has_close_callback():
            return
        if stream.reading():
            stream.when_read_done(self._close_unless_read)
        else:
            self.owner.close_gracefully(stream, CloseReason.LOCAL)

    def _handler_failed(self, stream: IOStream, name: str, error: BaseException) -> None:
        if type(error) is StreamClosedError and error.stream_id == stream.id:  # how most handlers end
            return self.owner.close_gracefully(stream, CloseReason.LOCAL)
        reason, cause = fault(stream, error)
        if reason is CloseReason.HANDLER_ERROR:
            report_raised(self.owner.events, name, stream, error)
        elif isinstance(cause, tornado.iostream.StreamBufferFullError):
            self._report(stream, "limit", logging.WARNING, reason, cause)
        elif isinstance(cause, FramingError):
            self._report(stream, "error", logging.INFO, reason, cause)
        return self.owner.close_gracefully(stream, reason)

    def _report(self, stream: IOStream, kind: EventKind, level: int, reason: CloseReason, error: BaseException) -> None:
        text = f"closing {client_name(stream)}: {error}"
        self.owner.events.emit(Event(kind, text, level, stream, stream.remote_address, reason, error))


def client_name(stream: IOStream) -> str:
    """The client's address, for people. A client of a Unix socket has none: the name has the listener's instead."""
    return show(stream.remote_address) or f"a client of {show(stream.local_address or 'a Unix socket')}"


def report_raised(events: Events, name: str, stream: IOStream, error: BaseException) -> None:
    """Emit the event that a user's callback has raised ``error``."""
    text = f"Exception in callback {name} for {client_name(stream)}"
    address = stream.remote_address
    events.emit(Event("error", text, logging.ERROR, stream, address, CloseReason.HANDLER_ERROR, error))


def as_coroutine(result: Any) -> Coroutine[Any, Any, None]:
    """The awaitable that a user's callback has returned, as a coroutine."""
    return result if isinstance(result, CoroutineType) else _wait_for(result)


async def _wait_for(result: Any) -> None:
    """Await a future. A coroutine for each stream, because several handlers may return the same future."""
    await gen.convert_yielded(result)


async def _bounded_reject(handling: Awaitable[None]) -> None:
    """Await ``handle_reject``, but not longer than its stream may live: rejected clients must leave no tasks behind."""
    try:
        async with asyncio.timeout(REJECT_TIMEOUT) as limit:
            await handling
    except TimeoutError:
        if not limit.expired():
            raise


def _error_of(handling: "asyncio.Future[Any]") -> BaseException | None:
    """The exception of a handler, also a `CancelledError` of something that it awaited."""
    try:
        return handling.exception()
    except asyncio.CancelledError as error:
        return error
