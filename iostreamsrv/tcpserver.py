"""The server you subclass."""

import asyncio
import socket
import ssl
from asyncio import Future
from collections.abc import Awaitable, Iterable
from functools import cached_property
from types import EllipsisType
from typing import Any, Literal, Self

import tornado.tcpserver
from tornado.ioloop import IOLoop

from .certs.certificates import Certificates
from .errors import CloseReason, OptionError
from .events import Event
from .iostream import IOStream
from .net.bind import BACKLOG, bind_sockets
from .options import REPLACEABLE, ServerOptions, check_optional_timeout
from .runtime.callables import is_overridden
from .runtime.checks import is_int
from .runtime.exports import names_of
from .server.base import ServerBase
from .server.forking import fork_workers
from .server.groups import Group, Slow, Streams
from .server.shutdown import cancel_all

__all__ = ["Streams", "TCPServer"]

__getattr__, __dir__ = names_of(tornado.tcpserver, globals())

SSLOptions = dict[str, Any] | ssl.SSLContext | Certificates | Literal[False] | None


class TCPServer(ServerBase):
    """A TCP server: subclass it and write :meth:`handle_stream`, or assign ``handle_stream`` on the instance. ::

        class Echo(TCPServer):
            async def handle_stream(self, stream, address):
                while True:
                    await stream.write(await stream.read_until(b"\\n"))

        server = Echo()
        server.listen(8888)
        iostreamsrv.run(server)

    There are three ways to start: :meth:`listen`, which binds and accepts; :meth:`bind` and later :meth:`start`; and
    :meth:`add_sockets` for sockets that exist already. Each accepts as soon as a loop runs: the running one, else
    ``io_loop``, else the thread's current one; :func:`iostreamsrv.run` and :meth:`serve_forever` take their own.

    :param ssl_options: None for plain connections; for TLS a dict with ``certfile`` and ``keyfile``, or an
        `ssl.SSLContext`, or `Certificates`, which say more. The files are read and checked here, before anything is
        bound.
    :param io_loop: the `IOLoop` to accept on; None: see above.
    :param options: a `ServerOptions`, for several servers with the same.
    :param keywords: ``max_connections``, ``idle_timeout``, ``close_on_return`` and the others of `ServerOptions`, one
        by one. A class may have its own defaults, as attributes::

            class Chat(TCPServer):
                max_connections = 100
                idle_timeout = 600

        Keywords take precedence over ``options``, and these over the class's.
    :raises OptionError: an option is invalid.
    :raises TypeError: there is no such option; the nearest one is suggested.

    :ivar events: the events of the server, see `Events`: ``server.events.subscribe(listener, "close")``.
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
        if io_loop is not None and not isinstance(io_loop, IOLoop):
            raise OptionError("io_loop", io_loop, "must be an IOLoop, or None")
        given = {"max_buffer_size": max_buffer_size, "read_chunk_size": read_chunk_size}
        keywords |= {name: value for name, value in given.items() if value is not None}
        super().__init__(ssl_options, io_loop, self._default_options(options).replaced(keywords))

    # ---- what users override

    def handle_stream(self, stream: IOStream, address: Any) -> Awaitable[None] | None:
        """Serve one client: override it with a coroutine or a plain function.

        When a coroutine returns, what it wrote is delivered and the stream closed (``close_on_return``). When it
        raises, the stream is closed, and the exception logged once with the client's address, unless the client
        caused it: a closed stream, a timeout, a full buffer. A plain function's stream stays open when the function
        returns.

        :param stream: the client.
        :param address: its address as `socket.socket.accept` gives it: for IPv4 ``(host, port)``, for Unix sockets as a
            rule ``""``.
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
        """Learn that a stream is closed: may be overridden, by a coroutine or a plain function. ::

            def handle_close(self, stream, reason):
                print(f"{stream.remote_address} is gone: {reason}, {stream.buffered} bytes unread")

        It is called once for each stream that :meth:`handle_stream` was called with, when its descriptor has been
        closed; a handler that was reading is about to notice. :meth:`shutdown` waits for it. What it raises is logged.

        :param stream: the client. It is closed; ``data``, counters, addresses and unread bytes are still there.
        :param reason: why, as in ``stream.close_reason``.
        """
        return None

    # ---- options

    @property
    def options(self) -> ServerOptions:
        """The `ServerOptions` that are in force."""
        return self._options

    def replace_options(self, **changes: Any) -> None:
        """Replace limits and timeouts while the server runs; all of them or, if one is invalid, none. ::

            server.replace_options(max_connections=500, idle_timeout=30)

        Timeouts and limits of connections apply to all streams at once, buffer sizes to new streams. No stream is
        closed because ``max_connections`` has become smaller.

        :param changes: of `ServerOptions` those that are timeouts, sizes and numbers of connections.
        :raises OptionError: an option is invalid, or cannot be replaced while the server runs.
        :raises TypeError: there is no such option.
        """
        options = self.options.replaced(changes)
        for name in changes:
            if name not in REPLACEABLE:
                raise OptionError(name, changes[name], "cannot be replaced on a server: give it to the constructor")
        self._options = options
        self._clients.set_options(options)

    # ---- listening

    def listen(
        self,
        port: int | str,
        address: str | None = None,
        family: socket.AddressFamily = socket.AF_UNSPEC,
        backlog: int = BACKLOG,
        flags: int | None = None,
        reuse_port: bool = False,
        ssl_options: SSLOptions = None,
    ) -> None:
        """Bind ``port`` and accept on it; may be called again for more ports and addresses. ::

            server.listen(8888, "127.0.0.1")
            print(server.addresses)

        Parameters: `bind_sockets`, and:

        :param ssl_options: TLS options for these clients; None for those of the server, False for plain connections.
        :raises OptionError: an argument is invalid.
        :raises ListenError: the address does not resolve, or cannot be bound.
        :raises NotImplementedError: there is no ``handle_stream``.
        """
        self._need_handler()
        setup = self._listeners.setup_for(ssl_options, self.options)
        sockets = bind_sockets(port, address, family, backlog, flags, reuse_port)
        self._accept_on([(each, setup) for each in sockets])

    def bind(
        self,
        port: int | str,
        address: str | None = None,
        family: socket.AddressFamily = socket.AF_UNSPEC,
        backlog: int = BACKLOG,
        flags: int | None = None,
        reuse_port: bool = False,
        ssl_options: SSLOptions = None,
    ) -> None:
        """Bind ``port``; clients wait in the backlog until :meth:`start`. After it, the same as :meth:`listen`. ::

            server.bind(8888)
            server.start()

        Parameters and errors are those of :meth:`listen`.
        """
        self._need_handler()
        setup = self._listeners.setup_for(ssl_options, self.options)
        sockets = bind_sockets(port, address, family, backlog, flags, reuse_port)
        if self._started:
            self._accept_on([(each, setup) for each in sockets])
        else:
            self._listeners.hold(sockets, setup)

    def start(self, num_processes: int | None = 1, max_restarts: int | None = None) -> None:
        """Accept on all that was bound. ::

            server.bind(8888)
            server.start(4)  # four processes go on from here
            iostreamsrv.run(server)

        :param num_processes: 1 for this process; more to fork that many workers, which share the listeners; None or 0
            for one per core. Each worker returns from here; the first process waits for them in here, replaces those
            that die, and exits when all have ended. Not on Windows.
        :param max_restarts: how many dead workers are replaced in all; None for Tornado's 100.
        :raises RuntimeError: started already; or to fork, where a loop exists (the workers would share its epoll) or
            from a thread that is not the main one.
        :raises OptionError: a number is invalid.
        """
        self._need_handler()
        if self._started:
            raise RuntimeError("the server has been started already: call stop() first")
        if num_processes is not None and not is_int(num_processes, 0):
            raise OptionError("num_processes", num_processes, "must be 1 or more, or None for one for each core")
        if max_restarts is not None and not is_int(max_restarts, 0):
            raise OptionError("max_restarts", max_restarts, "must be 0 or more, or None for 100")
        if num_processes != 1:
            fork_workers(num_processes, max_restarts, self.stop)
        self._started = True
        self._accept_on(self._listeners.take_held())

    def add_sockets(self, sockets: Iterable[socket.socket], ssl_options: SSLOptions = None) -> None:
        """Accept on listening sockets that exist; they belong to the server and are closed by :meth:`stop`. ::

            server.add_sockets([*bind_sockets(8888), bind_unix_socket("/run/echo.sock")])

        :param ssl_options: TLS options for their clients; None for those of the server, False for plain connections.
        :raises OptionError: one is closed, is not listening, or was added before; none of them is added then.
        """
        setup = self._listeners.setup_for(ssl_options, self.options)
        self._accept_on([(listener, setup) for listener in sockets])

    def add_socket(self, socket: socket.socket, ssl_options: SSLOptions = None) -> None:
        """:meth:`add_sockets` for one."""
        self.add_sockets([socket], ssl_options)

    def suspend(self) -> None:
        """Accept no client until :meth:`resume`; clients wait in the backlog, and open streams go on."""
        self._listeners.suspend()

    def resume(self) -> None:
        """Accept again after :meth:`suspend`."""
        self._listeners.resume()

    @property
    def suspended(self) -> bool:
        """Whether :meth:`suspend` was called, and :meth:`resume` not yet."""
        return self._listeners.suspended

    def stop(self) -> None:
        """Stop listening: new clients are refused, open streams go on. Then it may listen, or bind and start, again."""
        self._listeners.close()
        self._started = False
        if self._on_stop is not None:
            self._on_stop.set()
            self._on_stop = None

    # ---- running and ending

    async def serve_forever(self) -> None:
        """Accept on the running loop until :meth:`stop` or :meth:`shutdown` is called, or until cancelled. ::

            async def main():
                server = EchoServer()
                server.listen(8888)
                await server.serve_forever()

            asyncio.run(main())

        If cancelled, it shuts down (:meth:`shutdown`) first; cancelled again, it closes everything at once. So Ctrl-C
        in the program above lets clients finish, and a second Ctrl-C does not wait for them.

        :raises NotImplementedError: there is no ``handle_stream``.
        :raises RuntimeError: nothing is listening, so it would wait forever.
        """
        self._need_handler()
        if not self._listeners:
            raise RuntimeError("the server is not listening: call listen(), or bind() and start(), first")
        self._clients.limits.refresh_capacity()
        self._listeners.move_to(IOLoop.current())
        stopped = self._on_stop = self._on_stop or asyncio.Event()
        try:
            await stopped.wait()
            if self._ending is not None:
                await asyncio.shield(self._ending)
        except asyncio.CancelledError:
            self._cancelled = True
            try:
                if self._ending is None:  # else it was called before, and is cut short
                    await self.shutdown()
            finally:
                self._cancelled = False
                self.stop()
                await self.close_all_connections()
            raise

    async def shutdown(self, timeout: float | EllipsisType | None = ...) -> None:
        """End the server, and let its clients finish. ::

            await server.shutdown(timeout=5)

        Connections in the accept backlog are accepted, and served as capacity allows; then the listeners are closed,
        and `IOStream.wait_draining` returns. Streams that only wait in a read, with nothing received for it and nothing
        queued, are closed, reason ``shutdown``: for ``drain_idle`` seconds (0.5) they may still send a request, later
        they are closed as soon as their handler reads again. Handlers at work may finish. Clients that ask again at
        once do not prolong it: after those seconds a handler that has written since its last read, and reads again, has
        answered. Its stream is closed gracefully, and the read raises `StreamClosedError`, reason ``shutdown``. A read
        in the middle of a request, for which nothing was written yet, goes on. A handler left at the timeout is
        cancelled, has a second for its last words and its client another one to read them; then its stream is closed,
        reason ``drain_timeout``: with a reset, if the client has not taken all.

        Its beginning is an event of the kind ``shutdown`` (an INFO line in the log), and so are clients that are cut
        off by the timeout (a WARNING).

        It returns when all streams are closed and all handlers, including :meth:`handle_close`, have ended; it does not
        wait for a handler that called it. A second call waits for the same shutdown. If cancelled, it closes everything
        at once. The server may listen again afterwards.

        :param timeout: seconds; default ``drain_timeout`` of the options, 15. None for no limit.
        :raises OptionError: not a number of seconds above 0.
        """
        seconds = self.options.drain_timeout if timeout is ... else check_optional_timeout("timeout", timeout)
        caller = asyncio.current_task()
        self._clients.shutdown_callers.add(caller)
        try:
            await (self._shut_down(seconds) if self._ending is None else asyncio.shield(self._ending))
        finally:
            self._clients.shutdown_callers.discard(caller)

    @property
    def draining(self) -> bool:
        """Whether :meth:`shutdown` is running."""
        return self._clients.draining

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    async def close_all_connections(self) -> None:
        """End all handlers now and close all streams, reason ``shutdown``; return when the handlers have ended.

        Listening goes on, unless :meth:`stop` was called before.
        """
        await cancel_all(self._clients, CloseReason.SHUTDOWN)

    # ---- what there is

    @property
    def addresses(self) -> list[Any]:
        """What is bound, as `socket.socket.getsockname` gives it: port 0 has become a real one."""
        return self._listeners.addresses

    @cached_property
    def streams(self) -> Streams:
        """The streams that are open: count them, iterate over them, ``get(id)`` one.

        A subclass may use the name for something of its own.
        """
        return Streams(self._clients.open)

    def group(self, name: object) -> Group:
        """The group of streams with this name; it need not be created. ::

            server.group("lobby").join(stream)

        :param name: anything that can be the key of a dict.
        """
        return self._clients.groups.get(name)

    def broadcast(
        self, data: bytes | bytearray | memoryview, exclude: IOStream | Iterable[IOStream] = (), slow: Slow = "drop"
    ) -> "Future[int]":
        """Write ``data`` to all streams that have a handler. ::

            server.broadcast(b"somebody came in\\n", exclude=stream)

        All streams share one copy of it. Await it with ``slow="wait"``, before the next one: other writes may overtake
        it. Otherwise it need not be awaited.

        :param exclude: a stream, or several, to leave out.
        :param slow: for a stream whose queue (``max_write_buffer_size``) has no room: "drop": it misses this message;
            "kick": it is closed, reason ``kicked``; "wait": it gets the message as soon as there is room.
        :returns: a future of how many streams took it; done at once, or with "wait" when the slow streams have taken it
            or are closed.
        :raises OptionError: ``slow`` is none of these.
        """
        return self._clients.groups.broadcast(self._clients.open.values(), data, exclude, slow)

    def kick_all(self, message: str = "") -> None:
        """Close all streams now, as `IOStream.kick` does; reason ``kicked``."""
        for stream in list(self._clients.open.values()):
            stream.kick(message)

    @property
    def max_buffer_size(self) -> int:
        """``options.max_buffer_size``, where Tornado has it; may be set, for the streams to come."""
        return self.options.max_buffer_size

    @max_buffer_size.setter
    def max_buffer_size(self, value: float | None) -> None:
        self.replace_options(max_buffer_size=value)

    @property
    def read_chunk_size(self) -> int:
        """``options.read_chunk_size``, where Tornado has it; may be set, for the streams to come."""
        return self.options.read_chunk_size

    @read_chunk_size.setter
    def read_chunk_size(self, value: int | None) -> None:
        self.replace_options(read_chunk_size=value)

    def _overrides(self, name: str) -> bool:
        return is_overridden(self, TCPServer, name)

    # ---- certificates

    @property
    def certificates(self) -> list[Certificates]:
        """The certificates of the server and of its listeners; empty without TLS."""
        certificates = [setup.certificates for setup in self._listeners.setups if setup.certificates is not None]
        return list(dict.fromkeys(certificates))

    def reload_certificates(self) -> bool:
        """Reload all certificate files, for new connections; open ones keep what they have.

        Certificates that cannot be used, because a file is unreadable, incomplete or does not match its key, stay as
        they were, with an error in the log; so does an `ssl.SSLContext`, whose files are not known, with a warning.
        Each of the `Certificates` emits an event, "reload". `run` does this on SIGHUP, and reads the files in another
        thread; here they are read at once.

        :returns: whether all were reloaded.
        """
        outcomes = [certificates.renew() for certificates in self.certificates]  # all, even if one fails
        for outcome in outcomes:
            self.events.emit(Event("reload", outcome.text, outcome.level, error=outcome.error))
        return all(outcome.done for outcome in outcomes)
