"""Tornado's HTTP and WebSocket server, on this package's `TCPServer`. ::

    from iostreamsrv.httpserver import HTTPServer

    server = HTTPServer(tornado.web.Application([("/", Hello)]), max_connections=1000, idle_timeout=60)
    server.listen(8888)
    iostreamsrv.run(server)

The HTTP code is Tornado's, and so are applications, handlers and templates. Everything below is that of every
`TCPServer` in this package: streams, limits, timeouts, TLS with reload, PROXY headers and shutdown.
"""

import inspect
import socket
from typing import Any
from weakref import WeakValueDictionary

import tornado.httpserver
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
        ours = {name: keywords.pop(name) for name in SERVER_OPTIONS if name in keywords}
        ssl_options = keywords.get("ssl_options")
        TCPServer.__init__(self, ssl_options, **ours)
        keywords |= {"max_buffer_size": self.options.max_buffer_size, "chunk_size": self.options.read_chunk_size}
        TornadoHTTPServer.initialize(self, request_callback, **keywords)
        if not keywords.get("idle_connection_timeout"):
            self.conn_params.header_timeout = None  # Tornado's default is a timer for each request: a sixth of its time
        # By the stream's id: the current or next request with its delegate; and the WebSocket it was upgraded to.
        self._requests: dict[int, tuple[HTTP1Connection, HTTPMessageDelegate]] = {}
        self._websockets: WeakValueDictionary[int, WebSocketHandler] = WeakValueDictionary()

    def _default_options(self, options: ServerOptions | None) -> ServerOptions:
        found = super()._default_options(options)
        sizes = ("max_buffer_size", "max_write_buffer_size")
        return found.replaced({name: MAX_BUFFER_SIZE for name in sizes if getattr(found, name) == SIZES[name]})

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
        self._requests[server_conn.stream.id] = request_conn, delegate
        return delegate

    def on_close(self, server_conn: Any) -> None:
        """For Tornado: the connection has no more requests."""
        request, delegate = self._requests.pop(server_conn.stream.id, (None, None))
        if request is not None and request.stream is None:
            handler = _handler_of(delegate)
            if isinstance(handler, WebSocketHandler):
                self._websockets[server_conn.stream.id] = handler
        super().on_close(server_conn)

    _closes_in_order = True

    async def _shut_down(self, timeout: float | None) -> None:
        before, self.conn_params.no_keep_alive = self.conn_params.no_keep_alive, True
        for request, _ in self._requests.values():
            request._disconnect_on_finish = True
        try:
            await super()._shut_down(timeout)
        finally:
            self.conn_params.no_keep_alive = before

    def _is_stream_idle(self, stream: IOStream) -> bool:
        return super()._is_stream_idle(stream) and not self._has_request(stream)

    def _may_close_stream(self, stream: IOStream) -> bool:
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
        request, _ = self._requests.get(stream.id, (None, None))
        return request is not None and request._request_start_line is not None

    async def close_all_connections(self) -> None:
        """Close all connections now, WebSockets too, with reason ``shutdown``. Return when all handlers have ended."""
        await TCPServer.close_all_connections(self)
        await TornadoHTTPServer.close_all_connections(self)


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
