"""The inside of a server: its parts, what subclasses in this package change, and the steps that methods share.

What users call and override is in :mod:`iostreamsrv.tcpserver` and :mod:`iostreamsrv.server.listening`.
"""

import asyncio
import contextlib
import socket
import ssl
from asyncio import Future
from collections.abc import Awaitable
from contextvars import Context
from functools import partial
from inspect import isawaitable
from typing import Any, Protocol

from tornado.ioloop import IOLoop

from ..certs.certificates import Certificates
from ..compat.servers import warn_of_uncalled
from ..errors import CloseReason, OptionError
from ..events import Events
from ..iostream import IOStream
from ..net.socketoptions import set_socket_options
from ..options import ServerOptions
from ..runtime.callables import check_function, is_overridden, takes
from ..runtime.logs import application
from ..runtime.loops import asyncio_loop, current_loop
from .connection import ConnectionSetup
from .connections import Connections
from .groups import Streams
from .handlers import HandlerMethods
from .listeners import Listeners
from .retiring import Retirement
from .shutdown import cancel_all, drain_or_cancel
from .siblings import Siblings


class Server(HandlerMethods, Protocol):
    """What a core calls of its server. All else of it may be the user's."""

    def stop(self) -> None:
        """See `TCPServer.stop`."""


class ServerCore:
    """The one object that a `TCPServer` keeps its parts and its state in.

    Programs for Tornado have given their servers attributes of any name, such as ``_clients``, ``options`` or
    ``streams``. Nothing of a server's work depends on an attribute of the server, except for the methods that users
    override.

    :param base: the class that has the methods which users override.
    :param io_loop: the loop to accept on; None for the current one.
    :ivar events: the `Events` of the server.
    :ivar streams: the open streams.
    :ivar ssl_options: the TLS options as they were given.
    :ivar started: whether ``start()`` was called.
    :ivar ending: while a shutdown is running: done when it has ended.
    """

    closes_in_order = False
    """Whether ``close()`` of a client's stream does what ``aclose()`` does."""

    def __init__(
        self, server: Server, base: type, ssl_options: Any, io_loop: IOLoop | None, options: ServerOptions
    ) -> None:
        if io_loop is not None and not isinstance(io_loop, IOLoop):
            raise OptionError("io_loop", io_loop, "must be an IOLoop, or None")
        self.server = server
        self.options = options
        self._base = base
        self.connections = Connections(
            server,
            options,
            overrides=self.overrides,
            is_idle=self.is_stream_idle,
            may_close=self.may_close_stream,
            closes_in_order=self.closes_in_order,
            on_capacity=self._resume_accepting,
        )
        self.events: Events = self.connections.events
        self.streams = Streams(self.connections.open)
        self.ssl_options: dict[str, Any] | ssl.SSLContext | Certificates | None = ssl_options
        setup = ConnectionSetup.of(ssl_options, options)
        self.listeners = Listeners(self._accepted, self.connections.limits, self.events, setup)
        self.started = False
        self.ending: Future[None] | None = None
        self._io_loop = io_loop
        self._loop: asyncio.AbstractEventLoop | None = None  # that it accepts on
        self._retiring: tuple[Retirement, Future[None]] | None = None
        self._on_stop: asyncio.Event | None = None
        self._cancelled = False  # serve() was cancelled: another cancel closes everything at once
        self._warned_no_handler = False
        self._has_handler = self.overrides("handle_stream")
        if self._has_handler:
            self._check_handler()

    # ---- what the servers of this package change

    def is_stream_idle(self, stream: IOStream) -> bool:
        """Whether a stream has no request in progress, judging by its bytes."""
        return stream.is_waiting()

    def may_close_stream(self, stream: IOStream) -> bool:
        """Whether a shutdown may close a stream whose handler, judging by its bytes, has answered and reads again."""
        return True

    # ---- options

    def set_options(self, options: ServerOptions) -> None:
        """Apply new options."""
        self.options = options
        self.connections.set_options(options)

    def set_ssl_options(self, ssl_options: Any) -> None:
        """Use other TLS options for new clients of listeners that have none of their own.

        :raises CertificateError: the options are unusable; nothing has changed then.
        """
        setup = ConnectionSetup.of(ssl_options, self.options)
        self.ssl_options = ssl_options
        self.listeners.set_default(setup)

    @property
    def certificates(self) -> list[Certificates]:
        """The certificates of the server and of its listeners."""
        certificates = [setup.certificates for setup in self.listeners.setups if setup.certificates is not None]
        return list(dict.fromkeys(certificates))

    # ---- what users override

    def overrides(self, name: str) -> bool:
        """Whether users have written the method of this name, in a subclass or on the instance.

        What is no function has nothing to do with us, except for a ``handle_stream``, which must be one.
        """
        if not is_overridden(self.server, self._base, name):
            return False
        return name == "handle_stream" or callable(getattr(self.server, name))

    def need_handler(self) -> None:
        """Check that there is a ``handle_stream``.

        :raises NotImplementedError: there is none.
        :raises OptionError: it takes other arguments.
        """
        if not self.overrides("handle_stream"):
            raise NotImplementedError(
                f"{type(self.server).__name__} has no handle_stream(stream, address): override it, or assign it on the"
                " server"
            )
        self._check_handler()

    def _check_handler(self) -> None:
        check_function("handle_stream", self.server.handle_stream, ("stream", "address"))

    # ---- other processes

    def join(self, siblings: Siblings) -> None:
        """Serve together with other processes: as many clients as they, within limits that hold for all."""
        self.connections.limits.join(siblings)
        if self.listeners and self._loop is not None:
            siblings.listening(self._loop, self.connections.limits.bytes_of_open)

    def _listening_on(self, io_loop: IOLoop) -> None:
        self._loop = asyncio_loop(io_loop)
        if (siblings := self.connections.limits.siblings) is not None:
            siblings.listening(self._loop, self.connections.limits.bytes_of_open)

    # ---- accepting

    def accept_on(self, listeners: list[tuple[socket.socket, ConnectionSetup]]) -> None:
        """Accept on these, too; see `Listeners.accept_on`."""
        warn_of_uncalled(self.server)
        prepare = partial(set_socket_options, options=self.options)
        io_loop = self._io_loop or current_loop()
        self.listeners.accept_on(listeners, io_loop, prepare)
        self._listening_on(io_loop)
        self.connections.limits.listeners = len(self.listeners.addresses)
        self.connections.limits.refresh_capacity()

    def accept_on_bound(self, listeners: list[tuple[socket.socket, ConnectionSetup]]) -> None:
        """Accept on sockets that the server has bound, and that no one else would close if it fails."""
        with contextlib.ExitStack() as unfinished:
            for listener, _ in listeners:
                unfinished.callback(listener.close)
            self.accept_on(listeners)
            unfinished.pop_all()

    def _accepted(self, setup: ConnectionSetup, context: Context, connection: socket.socket, address: Any) -> None:
        if not self._has_handler:  # once it has one, clients need not wait for this look
            self._has_handler = self.overrides("handle_stream")
        if self._has_handler:
            self.connections.accepted(setup, context, connection, address)
        else:
            self._refuse_unhandled(connection)

    def _refuse_unhandled(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.close()
        if not self._warned_no_handler:
            self._warned_no_handler = True
            application.error("%s has no handle_stream: its clients are closed", type(self.server).__name__)

    def _resume_accepting(self) -> None:
        self.listeners.resume_accepting()

    # ---- running and ending

    async def serve(self) -> None:
        """See `TCPServer.serve_forever`."""
        self.need_handler()
        if not self.listeners:
            raise RuntimeError("the server is not listening: call listen(), or bind() and start(), first")
        self.connections.limits.refresh_capacity()
        self.listeners.move_to(IOLoop.current())
        self._listening_on(IOLoop.current())
        stopped = self._on_stop = self._on_stop or asyncio.Event()
        try:
            await stopped.wait()
            while (end := self.ending or (self._retiring and self._retiring[1])) is not None:
                await asyncio.shield(end)
        except asyncio.CancelledError:
            self._cancelled = True
            try:
                if self.ending is None:  # otherwise a shutdown is running, and is cut short
                    await self.shutdown_as_overridden()
            finally:
                self._cancelled = False
                self.server.stop()
                await self.close_all_connections()
            raise

    def shutdown_as_overridden(self) -> Awaitable[Any]:
        """Call ``shutdown()`` of the server. If a subclass has given that name to something else, shut down as if it
        had not."""
        shutdown = getattr(self.server, "shutdown", None)
        result = shutdown() if callable(shutdown) and takes(shutdown, 0) else None
        return result if isawaitable(result) else self.shutdown(self.options.drain_timeout)

    async def shutdown(self, timeout: float | None) -> None:
        """See `TCPServer.shutdown`."""
        caller = asyncio.current_task()
        self.connections.shutdown_callers.add(caller)
        try:
            await (self.shut_down(timeout) if self.ending is None else asyncio.shield(self.ending))
        finally:
            self.connections.shutdown_callers.discard(caller)

    async def shut_down(self, timeout: float | None) -> None:
        """Shut down, when no other shutdown is running."""
        self.ending = asyncio.get_running_loop().create_future()
        self.connections.begin_draining()
        try:
            self.listeners.accept_queued()
            self.server.stop()
            await drain_or_cancel(self.connections, timeout, "; again to end at once" if self._cancelled else "")
        except asyncio.CancelledError:
            self.server.stop()
            await self.close_all_connections()
            raise
        finally:
            self.connections.end_draining()
            self.ending.set_result(None)
            self.ending = None

    async def retire(self, timeout: float | None, rate: float) -> None:
        """See `TCPServer.retire`."""
        caller = asyncio.current_task()
        self.connections.shutdown_callers.add(caller)
        try:
            if self.ending is None and self._retiring is None:
                await self._retire(Retirement(self.connections, timeout, rate))
            elif self._retiring is not None:
                self._retiring[0].set_pace(timeout, rate)
                await asyncio.shield(self._retiring[1])
            if self.ending is not None:  # a shutdown has taken over
                await asyncio.shield(self.ending)
        finally:
            self.connections.shutdown_callers.discard(caller)

    async def _retire(self, retirement: Retirement) -> None:
        end: Future[None] = asyncio.get_running_loop().create_future()
        self._retiring = retirement, end
        try:
            self.server.stop()
            await retirement.wait()
        finally:
            self._retiring = None
            end.set_result(None)

    def stop(self) -> None:
        """See `TCPServer.stop`."""
        self.listeners.close()
        if (siblings := self.connections.limits.siblings) is not None:
            siblings.stopped()
        self.started = False
        if self._on_stop is not None:
            self._on_stop.set()
            self._on_stop = None

    async def close_all_connections(self) -> None:
        """See `TCPServer.close_all_connections`."""
        await cancel_all(self.connections, CloseReason.SHUTDOWN)
