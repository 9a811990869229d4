"""Tornado's HTTP and WebSocket server, on this package's `TCPServer`. ::

    from iostreamsrv.httpserver import HTTPServer

    server = HTTPServer(tornado.web.Application([("/", Hello)]), max_connections=1000, idle_timeout=60)
    server.listen(8888)
    iostreamsrv.run(server)

What speaks HTTP is Tornado's, and so are applications, handlers and templates. What is below it, streams, limits,
timeouts, TLS with its reloads, PROXY headers and the shutdown, is what every `TCPServer` here has.
"""

from typing import Any

from tornado.httpserver import HTTPServer as TornadoHTTPServer

from .engine.base import MAX_BUFFER_SIZE
from .options import NAMES
from .tcpserver import TCPServer

__all__ = ["HTTPServer"]

BOTH = ("ssl_options", "max_buffer_size")
"""What the two servers below are both told."""

OURS = {"io_loop", "options", *NAMES} - set(BOTH)


class HTTPServer(TCPServer, TornadoHTTPServer):  # type: ignore[misc]
    """An HTTP server for a `tornado.web.Application`, or any other request callback.

    :param request_callback: the application.
    :param keywords: those of `tornado.httpserver.HTTPServer` (``xheaders``, ``max_body_size``, ``chunk_size``…) and
        those of `TCPServer` (``max_connections``, ``drain_timeout``, ``proxy_protocol``…). ``max_buffer_size``, from
        which Tornado has the limit of a body, is Tornado's 100 MiB here.
    :raises OptionError: an option cannot have this value.
    :raises TypeError: there is no such keyword.

    With ``proxy_protocol`` the ``remote_ip`` of a request is that of the real client. :meth:`shutdown` lets requests
    finish that are in hand, and ends connections that wait for the next one.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """All is done by :meth:`initialize`: Tornado's server is `Configurable`, and calls both."""

    def initialize(self, request_callback: Any, **keywords: Any) -> None:  # type: ignore[override]
        """Tornado's constructor; see the class."""
        ours = {name: keywords.pop(name) for name in list(keywords) if name in OURS}
        keywords.setdefault("max_buffer_size", None)
        keywords["max_buffer_size"] = keywords["max_buffer_size"] or MAX_BUFFER_SIZE
        chunk_size = keywords.get("chunk_size")
        if chunk_size is not None:
            ours.setdefault("read_chunk_size", chunk_size)
        TCPServer.__init__(self, **{name: keywords[name] for name in BOTH if name in keywords}, **ours)
        sizes = {name: getattr(self.options, name) for name in ("max_buffer_size", "read_chunk_size")}
        TornadoHTTPServer.initialize(self, request_callback, **keywords)
        self.replace_options(**sizes)  # which it has set as it would have them

    handle_stream = TornadoHTTPServer.handle_stream

    async def close_all_connections(self) -> None:
        """End all connections now, WebSockets included; return when what served them has ended."""
        await TornadoHTTPServer.close_all_connections(self)
        await TCPServer.close_all_connections(self)
