"""Tornado's HTTP and WebSocket server, on this package's `TCPServer`. ::

    from iostreamsrv.httpserver import HTTPServer

    server = HTTPServer(tornado.web.Application([("/", Hello)]), max_connections=1000, idle_timeout=60)
    server.listen(8888)
    iostreamsrv.run(server)

The HTTP code is Tornado's, and so are applications, handlers and templates. Everything below is that of every
`TCPServer` in this package: streams, limits, timeouts, TLS with reload, PROXY headers and shutdown.
"""

import contextlib
import inspect
import socket
from collections.abc import Iterator
from typing import Any, cast
from weakref import WeakValueDictionary

import tornado.httpserver
import tornado.tcpserver
from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.httpserver import _HTTPRequestContext
from tornado.httputil import HTTPMessageDelegate
from tornado.websocket import WebSocketHandler

from .iostream import IOStream
from .options import NAMES, SIZES, ServerOptions
from .runtime.addresses import show
from .runtime.checks import did_you_mean
from .runtime.exports import names_of
from .server.base import ServerBase, core_of, default_options
from .server.core import ServerCore
from .streams.lifecycle import MAX_BUFFER_SIZE
from .tcpserver import TCPServer

__all__ = ["HTTPServer"]

__getattr__, __dir__ = names_of(tornado.httpserver, globals())

TORNADO_OPTIONS = tuple(inspect.signature(TornadoHTTPServer.initialize).parameters)[2:]
"""The keywords of Tornado's server."""

SERVER_OPTIONS = ("io_loop", "options", *NAMES)
"""The keywords of `TCPServer`, except ``ssl_options``, which both have."""

GOING_AWAY = 1001
"""The close code that RFC 6455 defines for a server that shuts down."""

CLOSE_TIMEOUT = 1.0
"""Seconds that a shutdown waits for a client's answer to a WebSocket close frame."""


class HTTPServer(TCPServer, TornadoHTTPServer):  # type: ignore[misc]
    """An HTTP server for a `tornado.web.Application`, or any other request callback.

    Use it like Tornado's. To replace Tornado's server where other code creates it, such as
    `tornado.web.Application.listen`, call
    ``tornado.httpserver.HTTPServer.configure("iostreamsrv.httpserver.HTTPServer")``.

    :param request_callback: the application.
    :param keywords: those of `tornado.httpserver.HTTPServer` (``xheaders``, ``max_body_size``, ``max_header_size``…)
        and those of `TCPServer` (``max_connections``, ``drain_timeout``, ``proxy_protocol``…), including its class
        attributes and ``options``. ``chunk_size`` is another name for ``read_chunk_size``.
    :raises OptionError: an option is invalid.
    :raises TypeError: a keyword does not exist; the message suggests the most similar one.

    ``max_write_buffer_size`` and ``max_buffer_size``, which also limits a body without a ``max_body_size``, are 100 MiB
    here, as applications for Tornado expect. Keywords, ``options`` or class attributes override that, except with 1
    MiB, the default of other servers, in ``options`` or a class attribute.

    Tornado's limit of one hour for a request's headers, ``idle_connection_timeout``, applies only if you set it: it
    costs a timer for each request, and ``idle_timeout`` and ``read_timeout`` do not. Against a body that arrives slowly
    use ``body_timeout``, because a body is read in pieces.

    With ``proxy_protocol``, the ``remote_ip`` of a request is the real client's. :meth:`shutdown` lets current requests
    finish, answers them with ``Connection: close``, and closes connections that wait for the next request. A WebSocket
    is closed with code 1001 ("going away").

    A subclass may override ``handle_stream``, also by a coroutine, and call the method here at its end. A coroutine
    that returns closes no stream: ``close_on_return`` is False, unless that keyword is True. ::

        class ProxiedServer(HTTPServer):
            async def handle_stream(self, stream, address):
                line = await stream.read_until(b"\\r\\n", max_bytes=107)
                super().handle_stream(stream, address)

    Where Tornado's code closes a connection, it is closed gracefully, as by `IOStream.aclose`. So a reply is not lost
    that is sent while the client still sends its body, such as "413 Request Entity Too Large".
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """Does nothing: Tornado's server is `Configurable`, which also calls :meth:`initialize`."""

    def initialize(self, request_callback: Any, **keywords: Any) -> None:  # type: ignore[override]
        """The constructor, as Tornado's `Configurable` has it. See the class for the parameters."""
        _check_names(keywords)
        chunk_size = keywords.pop("chunk_size", None)
        if chunk_size is not None:
            keywords.setdefault("read_chunk_size", chunk_size)
        ssl_options, io_loop = keywords.pop("ssl_options", None), keywords.pop("io_loop", None)
        found = _as_for_tornado(default_options(type(self), keywords.pop("options", None)))
        changes = {name: keywords.pop(name) for name in NAMES if name in keywords}
        options = found.replaced(
            {name: changes[name] for name in changes if changes[name] is not None or name not in SIZES}
        )
        keywords |= {"max_buffer_size": options.max_buffer_size, "chunk_size": options.read_chunk_size}
        with _without_tornados_fields(self):
            TornadoHTTPServer.initialize(self, request_callback, **keywords)
        if not keywords.get("idle_connection_timeout"):
            self.conn_params.header_timeout = None  # Tornado's default is a timer for each request: a sixth of its time
        ServerBase.__init__(self, _HTTPCore(self, TCPServer, ssl_options, io_loop, options))

    @classmethod
    def configurable_base(cls) -> type[Any]:
        """For Tornado: ``HTTPServer.configure()`` applies to this class, not to Tornado's."""
        return HTTPServer

    @classmethod
    def configurable_default(cls) -> type[Any]:
        """For Tornado: the class to create unless another one was configured."""
        return HTTPServer

    def handle_stream(self, stream: IOStream, address: Any) -> None:  # type: ignore[override]
        """Serve HTTP to one client."""
        context = _Client(stream, address, self.protocol, self.trusted_downstream)
        connection = HTTP1ServerConnection(stream, self.conn_params, context)
        self._connections.add(connection)
        connection.start_serving(self)

    def start_request(self, server_conn: Any, request_conn: Any) -> HTTPMessageDelegate:
        """For Tornado: the connection waits for another request."""
        delegate = super().start_request(server_conn, request_conn)
        _core_of(self).requests[server_conn.stream.id] = request_conn, delegate
        return delegate

    def on_close(self, server_conn: Any) -> None:
        """For Tornado: the connection has no more requests."""
        _core_of(self).requests_ended(server_conn.stream.id)
        super().on_close(server_conn)

    async def close_all_connections(self) -> None:
        """Close all connections now, WebSockets too, with reason ``shutdown``. Return when all handlers have ended."""
        await TCPServer.close_all_connections(self)


class _HTTPCore(ServerCore):
    """The core of an HTTP server: it knows which streams have a request in progress.

    :ivar requests: by the stream's id: the current or next request with its delegate.
    """

    closes_in_order = True
    server: HTTPServer

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.requests: dict[int, tuple[HTTP1Connection, HTTPMessageDelegate]] = {}
        # By the stream's id: what it was upgraded to.
        self._websockets: WeakValueDictionary[int, WebSocketHandler] = WeakValueDictionary()

    def requests_ended(self, stream_id: int) -> None:
        """The connection has no more requests: it is closed, or a WebSocket."""
        request, delegate = self.requests.pop(stream_id, (None, None))
        if request is not None and request.stream is None:
            handler = _handler_of(delegate)
            if isinstance(handler, WebSocketHandler):
                self._websockets[stream_id] = handler

    async def shut_down(self, timeout: float | None) -> None:
        parameters = self.server.conn_params
        before, parameters.no_keep_alive = parameters.no_keep_alive, True
        for request, _ in self.requests.values():
            request._disconnect_on_finish = True
        try:
            await super().shut_down(timeout)
        finally:
            parameters.no_keep_alive = before

    async def close_all_connections(self) -> None:
        await super().close_all_connections()
        await TornadoHTTPServer.close_all_connections(self.server)

    def is_stream_idle(self, stream: IOStream) -> bool:
        return super().is_stream_idle(stream) and not self._has_request(stream)

    def may_close_stream(self, stream: IOStream) -> bool:
        websocket = self._websockets.get(stream.id)
        if websocket is not None and websocket.ws_connection is not None:
            if websocket.ws_connection.is_closing():
                return stream.write_idle_time >= CLOSE_TIMEOUT and not stream.unacknowledged()
            websocket.close(GOING_AWAY, "the server is shutting down")
            return False  # Tornado closes it when the client has answered
        return not self._has_request(stream)

    def _has_request(self, stream: IOStream) -> bool:
        # A body is read in pieces, so a stream that waits for data may be in the middle of a request, perhaps after it
        # has written "100 Continue".
        request, _ = self.requests.get(stream.id, (None, None))
        return request is not None and request._request_start_line is not None


def _core_of(server: HTTPServer) -> _HTTPCore:
    return cast(_HTTPCore, core_of(server))


TORNADO_FIELDS = [name for name in vars(tornado.tcpserver.TCPServer()) if name.startswith("_")]
"""The fields of Tornado's `TCPServer`. Here they would stay empty, and mislead."""


@contextlib.contextmanager
def _without_tornados_fields(server: HTTPServer) -> Iterator[None]:
    """Leave the private fields of Tornado's `TCPServer` as they are: perhaps a subclass uses these names."""
    before = dict(vars(server))
    yield
    for name in TORNADO_FIELDS:
        vars(server).pop(name, None)
        if name in before:
            vars(server)[name] = before[name]


def _as_for_tornado(options: ServerOptions) -> ServerOptions:
    """The sizes that applications for Tornado expect, unless others are set. And a handler that returns closes nothing:
    a subclass may have a ``handle_stream`` that is a coroutine and returns when Tornado's code begins to serve."""
    sizes = ("max_buffer_size", "max_write_buffer_size")
    changes = {name: MAX_BUFFER_SIZE for name in sizes if getattr(options, name) == SIZES[name]}
    return options.replaced({"close_on_return": False, **changes})


def _handler_of(delegate: Any) -> Any:
    """The request handler that an application has made for the request of ``delegate``, or None."""
    while (inner := getattr(delegate, "delegate", None)) is not None:
        delegate = inner
    return getattr(delegate, "handler", None)


class _Client(_HTTPRequestContext):
    """The client of a request. Tornado takes the family of the client's address from the socket, but an address from a
    PROXY header may have another family than the proxy's."""

    def __init__(self, stream: IOStream, address: Any, protocol: str | None, trusted: list[str] | None) -> None:
        super().__init__(stream, None, protocol, trusted)  # type: ignore[arg-type]
        self.address = address
        if isinstance(address, tuple):
            self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            self.remote_ip = self._orig_remote_ip = address[0]
        else:
            self.address_family = socket.AF_UNIX

    def __str__(self) -> str:  # for the lines of Tornado's own log
        return str(self.remote_ip) if isinstance(self.address, tuple) else show(self.address)


def _check_names(keywords: dict[str, Any]) -> None:
    known = (*TORNADO_OPTIONS, *SERVER_OPTIONS)
    for name in keywords:
        if name not in known:
            raise TypeError(f"no such keyword of an HTTP server: {name!r} ({did_you_mean(name, known)})")
