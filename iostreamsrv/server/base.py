"""The internals of a server: its parts, the hooks of its subclasses, and the steps that several methods share.

What users call and override is in :mod:`iostreamsrv.tcpserver` and :mod:`iostreamsrv.server.listening`.
"""

import asyncio
import contextlib
import socket
from asyncio import Future
from contextvars import Context
from functools import partial
from typing import Any, cast

from tornado.ioloop import IOLoop

from ..errors import OptionError
from ..events import Events
from ..iostream import IOStream
from ..net.socketoptions import set_socket_options
from ..options import ServerOptions
from ..runtime.callables import check_function
from ..runtime.logs import application
from ..runtime.loops import current_loop
from .connection import ConnectionSetup, Handlers
from .connections import Connections
from .listeners import Listeners
from .shutdown import drain_or_cancel


class ServerBase:
    """The inner part of `TCPServer`; see there."""

    def __init__(self, ssl_options: Any, io_loop: IOLoop | None, options: ServerOptions) -> None:
        self._options = options
        self.ssl_options = ssl_options
        handlers: Handlers = cast(Any, self)
        self._clients = Connections(
            handlers,
            self._options,
            overrides=self._overrides,
            is_idle=self._is_stream_idle,
            may_close=self._may_close_stream,
            closes_in_order=self._closes_in_order,
            may_block=self._may_block,
            on_capacity=self._resume_accepting,
        )
        self.events: Events = self._clients.events
        setup = ConnectionSetup.of(ssl_options, self._options)
        self._listeners = Listeners(self._accepted, self._clients.limits, self.events, setup)
        self._io_loop = io_loop
        self._started = False
        self._on_stop: asyncio.Event | None = None
        self._ending: Future[None] | None = None  # a shutdown is running; done when it has ended
        self._cancelled = False  # serve_forever() was cancelled: another cancel closes everything at once
        self._warned_no_handler = False
        self._has_handler = self._overrides("handle_stream")
        if self._has_handler:
            self._check_handler()

    def _default_options(self, options: ServerOptions | None) -> ServerOptions:
        if options is None:
            return ServerOptions.of_class(type(self))
        if not isinstance(options, ServerOptions):
            raise OptionError("options", options, "must be a ServerOptions, or None")
        return options

    # ---- hooks of subclasses

    def _is_stream_idle(self, stream: IOStream) -> bool:
        """Whether a stream has no request in progress, judging by its bytes."""
        return stream.is_waiting()

    def _may_close_stream(self, stream: IOStream) -> bool:
        """Whether a shutdown may close a stream whose handler, judging by its bytes, has answered and reads again."""
        return True

    _may_block = True
    """Whether handlers run in the loop, so that they may block it."""

    _closes_in_order = False
    """Whether ``close()`` of a client's stream does what ``aclose()`` does."""

    def stop(self) -> None:
        """See `TCPServer.stop`."""
        raise NotImplementedError

    async def close_all_connections(self) -> None:
        """See `TCPServer.close_all_connections`."""
        raise NotImplementedError

    def _overrides(self, name: str) -> bool:
        """Whether users have written the method of this name, in a subclass or on the instance."""
        raise NotImplementedError

    # ---- accepting

    def _need_handler(self) -> None:
        if not self._overrides("handle_stream"):
            raise NotImplementedError(
                f"{type(self).__name__} has no handle_stream(stream, address): override it, or assign it on the server"
            )
        self._check_handler()

    def _check_handler(self) -> None:
        check_function("handle_stream", self._clients.server.handle_stream, ("stream", "address"))

    def _accept_on(self, listeners: list[tuple[socket.socket, ConnectionSetup]]) -> None:
        prepare = partial(set_socket_options, options=self._options)
        self._listeners.accept_on(listeners, self._io_loop or current_loop(), prepare)
        self._clients.limits.listeners = len(self._listeners.addresses)
        self._clients.limits.refresh_capacity()

    def _accepted(self, setup: ConnectionSetup, context: Context, connection: socket.socket, address: Any) -> None:
        if not self._has_handler:  # once it has one, clients need not wait for this look
            self._has_handler = self._overrides("handle_stream")
        if self._has_handler:
            self._clients.accepted(setup, context, connection, address)
        else:
            self._refuse_unhandled(connection)

    def _refuse_unhandled(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.close()
        if not self._warned_no_handler:
            self._warned_no_handler = True
            application.error("%s has no handle_stream: its clients are closed", type(self).__name__)

    def _resume_accepting(self) -> None:
        self._listeners.resume_accepting()

    # ---- shutdown

    async def _shut_down(self, timeout: float | None) -> None:
        self._ending = asyncio.get_running_loop().create_future()
        self._clients.begin_draining()
        try:
            self._listeners.accept_queued()
            self.stop()
            await drain_or_cancel(self._clients, timeout, "; again to end at once" if self._cancelled else "")
        except asyncio.CancelledError:
            self.stop()
            await self.close_all_connections()
            raise
        finally:
            self._clients.end_draining()
            self._ending.set_result(None)
            self._ending = None
