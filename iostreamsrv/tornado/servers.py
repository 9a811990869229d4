"""Our servers, as a program for Tornado expects them: Tornado's options, constructors and errors."""

from collections.abc import Awaitable
from typing import Any

from tornado.util import import_object

import iostreamsrv.httpserver
import iostreamsrv.tcpserver

from ..httpserver import TORNADO_OPTIONS
from ..iostream import IOStream
from ..options import ServerOptions
from .options import IDLE_CONNECTION_TIMEOUT, OPTIONS


class TCPServer(iostreamsrv.tcpserver.TCPServer):
    """`iostreamsrv.TCPServer` in the place of Tornado's: its options are :data:`OPTIONS`.

    Class attributes are no options here: a program that knows only Tornado means something else by them.
    """

    def __init__(
        self,
        ssl_options: Any = None,
        max_buffer_size: float | None = None,
        read_chunk_size: int | None = None,
        *,
        options: ServerOptions | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(ssl_options, max_buffer_size, read_chunk_size, options=options or OPTIONS, **keywords)

    def handle_stream(self, stream: IOStream, address: Any) -> Awaitable[None] | None:
        """To be overridden. As in Tornado, a server without it listens, and its first client raises.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError


class HTTPServer(iostreamsrv.httpserver.HTTPServer, TCPServer):  # type: ignore[misc]
    """`iostreamsrv.httpserver.HTTPServer` in the place of Tornado's: its options are :data:`OPTIONS`.

    A client has an hour to send its next request, which is Tornado's default ``idle_connection_timeout``. It is
    enforced by ``read_timeout``, which needs no timer for each request. Another value is enforced by Tornado's code.
    """

    def initialize(self, request_callback: Any, *arguments: Any, **keywords: Any) -> None:
        """The constructor, as Tornado's `Configurable` has it."""
        keywords |= zip(TORNADO_OPTIONS, arguments, strict=False)
        by_tornado = keywords.get("idle_connection_timeout")
        changes = {} if by_tornado else {"read_timeout": IDLE_CONNECTION_TIMEOUT}
        keywords.setdefault("options", OPTIONS.replaced(changes))
        super().initialize(request_callback, **keywords)

    @classmethod
    def configure(cls, impl: Any, **keywords: Any) -> None:
        """For Tornado: choose the class that is created when this one is called.

        It may also be `iostreamsrv.httpserver.HTTPServer`, as without the runner, or a subclass. Such a server has the
        defaults of this package.
        """
        chosen = import_object(impl) if isinstance(impl, str) else impl
        if cls is HTTPServer and isinstance(chosen, type) and issubclass(chosen, iostreamsrv.httpserver.HTTPServer):
            cls._restore_configuration((chosen, keywords))  # without the check that it is a subclass of this one
        else:
            super().configure(chosen, **keywords)

    @classmethod
    def configurable_base(cls) -> type[Any]:
        """For Tornado: ``configure()`` applies to this class."""
        return HTTPServer

    @classmethod
    def configurable_default(cls) -> type[Any]:
        """For Tornado: the class to create unless another one was configured."""
        return HTTPServer

    def on_close(self, server_conn: Any) -> None:
        """For Tornado: the connection has no more requests. It may have become a WebSocket, which may be silent."""
        if not server_conn.stream.closed():
            server_conn.stream.set_timeouts(read=None)
        super().on_close(server_conn)
