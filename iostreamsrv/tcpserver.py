"""The server you subclass. Its methods that listen are in :mod:`iostreamsrv.server.listening`."""

import ssl
from asyncio import Future
from collections.abc import Awaitable, Iterable
from types import EllipsisType
from typing import Any, Self

import tornado.tcpserver
from tornado.ioloop import IOLoop

from .certs.certificates import Certificates
from .compat.servers import SocketsByDescriptor, TornadoServer
from .errors import CloseReason, OptionError
from .events import Event, Events
from .iostream import IOStream
from .options import REPLACEABLE, ServerOptions, check_optional_timeout
from .runtime.attributes import overridable
from .runtime.exports import names_of
from .server.base import core_of, default_options, has_core, listening_sockets
from .server.core import ServerCore
from .server.groups import Group, Slow, Streams
from .server.listening import ListeningServer
from .server.resuming import ResumingServer

__all__ = ["Streams", "TCPServer"]

__getattr__, __dir__ = names_of(tornado.tcpserver, globals())


class TCPServer(ListeningServer, ResumingServer, TornadoServer):
    """A TCP server: subclass it and write :meth:`handle_stream`, or assign ``handle_stream`` on the instance. ::

        class Echo(TCPServer):
            async def handle_stream(self, stream, address):
                while True:
                    await stream.write(await stream.read_until(b"\\n"))

        server = Echo()
        server.listen(8888)
        iostreamsrv.run(server)

    There are three ways to start: :meth:`listen`, which binds and accepts; :meth:`bind` and later :meth:`start`; and
    :meth:`add_sockets` for sockets that exist already. Each accepts as soon as its loop runs: ``io_loop``, else the
    thread's current one. :func:`iostreamsrv.run` and :meth:`serve_forever` accept on the loop that they run on.

    :param ssl_options: None for plain connections; for TLS a dict with ``certfile`` and ``keyfile``, an
        `ssl.SSLContext`, or `Certificates`. The files are read and checked here, before anything is bound.
    :param io_loop: the `IOLoop` to accept on; None: see above.
    :param options: a `ServerOptions`, to share between servers.
    :param keywords: single options of `ServerOptions`: ``max_connections``, ``idle_timeout``, ``close_on_return`` ...
        A subclass may set defaults as class attributes::

            class Chat(TCPServer):
                max_connections = 100
                idle_timeout = 600

        Keywords take precedence over ``options``, and ``options`` over class attributes.
    :raises OptionError: an option is invalid.
    :raises TypeError: there is no such option; the most similar one is suggested.
    """

    def __init__(
        self,
        ssl_options: dict[str, Any] | ssl.SSLContext | Certificates | None = None,
        max_buffer_size: float | None = None,
        read_chunk_size: int | None = None,
        *,
        io_loop: IOLoop | None = None,
        options: ServerOptions | None = None,
        **keywords: Any,
    ) -> None:
        given = {"max_buffer_size": max_buffer_size, "read_chunk_size": read_chunk_size}
        keywords |= {name: value for name, value in given.items() if value is not None}
        merged = default_options(type(self), options).replaced(keywords)
        super().__init__(ServerCore(self, TCPServer, ssl_options, io_loop, merged))

    _sockets = SocketsByDescriptor(listening_sockets)

    # ---- what users override

    def handle_stream(self, stream: IOStream, address: Any) -> Awaitable[None] | None:
        """Serve one client: override it with a coroutine or a plain function.

        When a coroutine returns, what it wrote is delivered and the stream is closed (``close_on_return``). When it
        raises, the stream is closed, and the exception is logged once with the client's address, unless the client
        caused it: a closed stream, a timeout, a full buffer. When a plain function returns, the stream stays open.

        :param stream: the client.
        :param address: its address as `socket.socket.accept` gives it: ``(host, port)`` for IPv4, usually ``""`` for
            Unix sockets.
        """
        raise NotImplementedError

    def handle_reject(self, stream: IOStream, address: Any) -> Awaitable[None] | None:
        """Tell a client that it is rejected: may be overridden, by a coroutine or a plain function. ::

            async def handle_reject(self, stream, address):
                await stream.write(b"sorry, too many of us\\n")

        Afterwards, or after 2 s, the stream is closed, reason ``rejected``. It runs for at most 64 clients at a time;
        any others, and all if it is not overridden, are closed at once, under TLS without a handshake.

        It is called with ``when_full="reject"``, for ``max_connections_per_ip``, and with ``when_full="evict"`` if no
        client can be evicted.

        :param stream: the client; it does not count for ``max_connections``.
        :param address: its address, as for :meth:`handle_stream`.
        """
        return None

    def handle_close(self, stream: IOStream, reason: CloseReason) -> Awaitable[None] | None:
        """Called after a stream is closed: may be overridden, by a coroutine or a plain function. ::

            def handle_close(self, stream, reason):
                print(f"{stream.remote_address} is gone: {reason}, {stream.buffered} bytes unread")

        It is called once for each stream that :meth:`handle_stream` was called with, after its descriptor is closed;
        perhaps before a pending read of the handler raises. :meth:`shutdown` waits for it. Its exceptions are logged.
        A coroutine does not run if the loop is closed while the client is connected.

        :param stream: the client. It is closed; ``data``, counters, addresses and unread bytes are still available.
        :param reason: ``stream.close_reason``.
        """
        return None

    # ---- options

    @overridable
    def events(self) -> Events:
        """The `Events` of the server: ``server.events.subscribe(listener, "close")``."""
        return core_of(self).events

    @overridable
    def options(self) -> ServerOptions:
        """The `ServerOptions` that are in force."""
        return core_of(self).options

    def replace_options(self, **changes: Any) -> None:
        """Replace limits and timeouts while the server runs; all of them or, if one is invalid, none. ::

            server.replace_options(max_connections=500, idle_timeout=30)

        Timeouts and connection limits apply to all streams at once, buffer sizes to new streams. A smaller
        ``max_connections`` closes no stream.

        :param changes: those options of `ServerOptions` that are timeouts, sizes or numbers of connections.
        :raises OptionError: an option is invalid, or is fixed when the server is made.
        :raises TypeError: there is no such option.
        """
        core = core_of(self)
        options = core.options.replaced(changes)
        for name in changes:
            if name not in REPLACEABLE:
                raise OptionError(name, changes[name], "cannot be replaced on a server: give it to the constructor")
        core.set_options(options)

    # ---- running and ending

    async def serve_forever(self) -> None:
        """Accept on the running loop until :meth:`stop` or :meth:`shutdown` is called, or until cancelled. ::

            async def main():
                server = EchoServer()
                server.listen(8888)
                await server.serve_forever()

            asyncio.run(main())

        If cancelled, it calls :meth:`shutdown` first; cancelled again, it closes everything at once. So Ctrl-C in the
        program above lets clients finish, and a second Ctrl-C does not wait for them.

        :raises NotImplementedError: there is no ``handle_stream``.
        :raises RuntimeError: the server is not listening, so it would wait forever.
        """
        await core_of(self).serve()

    async def shutdown(self, timeout: float | EllipsisType | None = ...) -> None:
        """Stop listening, let clients finish, and close all streams. ::

            await server.shutdown(timeout=5)

        Connections in the accept backlog are accepted, and served as capacity allows; then the listeners close, and
        `IOStream.wait_draining` returns. Handlers with a request in progress may finish it. A stream without one may
        still begin a request for ``drain_idle`` seconds (0.5); then it is closed, reason ``shutdown``. After those
        seconds a handler that has written since its last read, and reads again, has finished its request: its stream is
        closed gracefully, and the read raises `StreamClosedError`. So busy clients do not prolong a shutdown.

        At the timeout the remaining handlers are cancelled. Each has a second for its last writes, and its client one
        more to read them; then the stream is closed, reason ``drain_timeout``, with a reset if the client has not taken
        everything. The start of a shutdown is an event of the kind ``shutdown`` (INFO in the log), and so is a timeout
        (WARNING).

        It returns when all streams are closed and all handlers, including :meth:`handle_close`, have ended; it does not
        wait for a handler that called it. A second call waits for the same shutdown. If cancelled, it closes everything
        at once. The server may listen again afterwards.

        :param timeout: seconds; default ``drain_timeout`` of the options, 15. None for no limit.
        :raises OptionError: not a number of seconds above 0.
        """
        core = core_of(self)
        seconds = core.options.drain_timeout if timeout is ... else check_optional_timeout("timeout", timeout)
        await core.shutdown(seconds)

    @overridable
    def draining(self) -> bool:
        """Whether :meth:`shutdown` is running."""
        return core_of(self).connections.draining

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await core_of(self).shutdown_as_overridden()

    async def close_all_connections(self) -> None:
        """Cancel all handlers and close all streams now, reason ``shutdown``; return when the handlers have ended.

        The server goes on listening, unless :meth:`stop` was called before.
        """
        await core_of(self).close_all_connections()

    # ---- all clients

    @overridable
    def streams(self) -> Streams:
        """The open streams: ``len()``, iteration, ``get(id)``. A subclass may use the name for something else."""
        return core_of(self).streams

    def group(self, name: object) -> Group:
        """The group of streams with this name; it is created when first used. ::

            server.group("lobby").join(stream)

        :param name: any hashable object.
        """
        return core_of(self).connections.groups.get(name)

    def broadcast(
        self, data: bytes | bytearray | memoryview, exclude: IOStream | Iterable[IOStream] = (), slow: Slow = "drop"
    ) -> "Future[int]":
        """Write ``data`` to all streams that have a handler. ::

            server.broadcast(b"somebody came in\\n", exclude=stream)

        All streams share one copy of ``data``. With ``slow="wait"``, await the future before the next broadcast: other
        writes may overtake this one. Otherwise it need not be awaited.

        :param exclude: a stream, or several, to leave out.
        :param slow: what happens to a stream whose queue (``max_write_buffer_size``) has no room: "drop": it misses
            this message; "kick": it is closed, reason ``kicked``; "wait": it gets the message when there is room.
        :returns: a future of the number of streams that took it; done at once, or with "wait" when the slow streams
            have taken it or are closed.
        :raises OptionError: ``slow`` is none of these.
        """
        connections = core_of(self).connections
        return connections.groups.broadcast(connections.open.values(), data, exclude, slow)

    def kick_all(self, message: str = "") -> None:
        """Close all streams now, as `IOStream.kick` does; reason ``kicked``."""
        for stream in list(core_of(self).connections.open.values()):
            stream.kick(message)

    @property
    def max_buffer_size(self) -> int:
        """``options.max_buffer_size``, as an attribute as in Tornado; may be set, for new streams."""
        return core_of(self).options.max_buffer_size

    @max_buffer_size.setter
    def max_buffer_size(self, value: float | None) -> None:
        if has_core(self):
            TCPServer.replace_options(self, max_buffer_size=value)

    @property
    def read_chunk_size(self) -> int:
        """``options.read_chunk_size``, as an attribute as in Tornado; may be set, for new streams."""
        return core_of(self).options.read_chunk_size

    @read_chunk_size.setter
    def read_chunk_size(self, value: int | None) -> None:
        if has_core(self):
            TCPServer.replace_options(self, read_chunk_size=value)

    # ---- certificates

    @property
    def ssl_options(self) -> dict[str, Any] | ssl.SSLContext | Certificates | None:
        """The TLS options of the server, as they were given; may be set, also while the server listens. ::

            server.ssl_options = {"certfile": "cert.pem", "keyfile": "key.pem"}

        They apply to new connections, except on listeners with TLS options of their own; None for plain connections.
        Open connections stay as they are. :meth:`reload_certificates` reads the files of the current options; a change
        within a dict has no effect before the dict is set again. If the options are invalid, nothing changes.

        :raises CertificateError: the options are invalid.
        """
        return core_of(self).ssl_options if has_core(self) else None  # Tornado's HTTP server asks in between

    @ssl_options.setter
    def ssl_options(self, value: dict[str, Any] | ssl.SSLContext | Certificates | None) -> None:
        if has_core(self):
            core_of(self).set_ssl_options(value)

    @overridable
    def certificates(self) -> list[Certificates]:
        """The certificates of the server and of its listeners; empty without TLS."""
        return core_of(self).certificates

    def reload_certificates(self) -> bool:
        """Reload all certificate files for new connections; open connections keep their certificates.

        If a file is unreadable, incomplete or does not match its key, those certificates stay as they were, and an
        error is logged. An `ssl.SSLContext` stays, too, with a warning: its files are not known. Each of the
        `Certificates` emits the event "reload". On SIGHUP `run` does the same, but reads the files in another thread,
        if the server has certificates when `run` is called.

        :returns: whether all were reloaded.
        """
        core = core_of(self)
        outcomes = [certificates.renew() for certificates in core.certificates]  # all, even if one fails
        for outcome in outcomes:
            core.events.emit(Event("reload", outcome.text, outcome.level, error=outcome.error))
        return all(outcome.done for outcome in outcomes)
