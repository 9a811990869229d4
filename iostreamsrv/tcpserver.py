"""The server you subclass."""

import asyncio
import contextlib
import inspect
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Collection, Iterable, Iterator
from functools import cached_property, partial
from typing import Any, Literal

import tornado.iostream
from tornado import gen, process
from tornado.ioloop import IOLoop
from tornado.log import app_log, gen_log

from .acceptor import Acceptor
from .addresses import show
from .certificates import Certificates
from .engine.base import CLOSE_TIMEOUT
from .errors import CloseReason, OptionError, StreamTimeoutError, reason_for
from .greeting import Greeter
from .ioloop import current_loop, existing_loop
from .iostream import BaseIOStream, IOStream
from .netutil import BACKLOG, bind_sockets, why_not_listening
from .networks import TrustedNetworks
from .options import ServerOptions
from .socketoptions import set_socket_options

__all__ = ["Streams", "TCPServer"]

SSLOptions = dict[str, Any] | ssl.SSLContext | Certificates | Literal[False] | None

DAY = 86400.0
"""Seconds between two looks at how long certificates are still valid."""


class Streams(Collection[IOStream]):
    """The open streams of a server, ``server.streams``. ::

        for stream in server.streams:
            if stream.idle_time > 3600:
                stream.close()

    It is a collection; iterating goes over those there are at that moment.
    """

    def __init__(self, streams: dict[int, IOStream]) -> None:
        self._streams = streams

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[IOStream]:
        return iter(list(self._streams.values()))

    def __contains__(self, stream: object) -> bool:
        return isinstance(stream, IOStream) and self._streams.get(stream.id) is stream

    def get(self, id: int) -> IOStream | None:
        """The open stream with this ``id``, or None."""
        return self._streams.get(id)


class TCPServer:
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
    :param options: ``max_buffer_size``, ``read_chunk_size``, ``close_on_return`` and the others of `ServerOptions`,
        by keyword.
    :raises OptionError: an option cannot have this value.
    :raises TypeError: there is no such option.

    :ivar options: the `ServerOptions` that are in force.
    """

    def __init__(
        self,
        ssl_options: dict[str, Any] | ssl.SSLContext | Certificates | None = None,
        max_buffer_size: float | None = None,
        read_chunk_size: int | None = None,
        *,
        io_loop: IOLoop | None = None,
        **options: Any,
    ) -> None:
        if io_loop is not None and not isinstance(io_loop, IOLoop):
            raise OptionError("io_loop", io_loop, "must be an IOLoop, or None")
        self.options = ServerOptions.of(
            {"max_buffer_size": max_buffer_size, "read_chunk_size": read_chunk_size, **options}
        )
        self.ssl_options = ssl_options
        networks = self.options.proxy_protocol
        self._trusted = None if networks is None else TrustedNetworks(networks)
        self._greeter = self._make_greeter(ssl_options)
        self._greeters = {self._greeter}
        self._io_loop = io_loop
        self._streams: dict[int, IOStream] = {}
        self._acceptors: list[Acceptor] = []
        self._pending: list[tuple[socket.socket, Greeter]] = []
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._started = False
        self._stopped: asyncio.Event | None = None
        self._handling: dict[asyncio.Future[Any], IOStream] = {}
        self._closing: set[asyncio.Task[None]] = set()
        # One bound method for all streams: a new one for every stream costs 64 bytes.
        self._on_handled = self._handled
        self._told_no_handler = False
        if self._handler() is not None:
            self._check_handler()

    # ---- what users override

    def handle_stream(self, stream: IOStream, address: Any) -> Awaitable[None] | None:
        """Serve one client: to be overridden, by a coroutine or a plain function.

        When a coroutine returns, what it wrote is delivered and the stream closed (``close_on_return``). When it
        raises, the stream is closed, and the exception logged once with the client's address, unless the client
        caused it: a closed stream, a timeout, a full buffer. A plain function's stream stays open when the function
        returns.

        :param stream: the client.
        :param address: its address as `socket.socket.accept` gives it: for IPv4 ``(host, port)``, for Unix sockets as a
            rule ``""``.
        """
        raise NotImplementedError

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
        :raises OptionError: an argument cannot be.
        :raises ListenError: the address does not resolve, or cannot be bound.
        :raises NotImplementedError: there is no ``handle_stream``.
        """
        self._need_handler()
        greeter = self._greeter_for(ssl_options)
        self._accept_on([(each, greeter) for each in bind_sockets(port, address, family, backlog, flags, reuse_port)])

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
        """Bind ``port`` and let clients queue until :meth:`start`; after it, the same as :meth:`listen`. ::

            server.bind(8888)
            server.start()

        Parameters and errors are those of :meth:`listen`.
        """
        self._need_handler()
        greeter = self._greeter_for(ssl_options)
        bound = [(each, greeter) for each in bind_sockets(port, address, family, backlog, flags, reuse_port)]
        if self._started:
            self._accept_on(bound)
        else:
            self._pending += bound

    def start(self, num_processes: int | None = 1, max_restarts: int | None = None) -> None:
        """Accept on all that was bound. ::

            server.bind(8888)
            server.start(4)  # four processes go on from here
            iostreamsrv.run(server)

        :param num_processes: 1 for this process; more to fork so many workers, which share the listeners; None or 0
            for as many as there are cores. Each worker returns from here; the first process waits for them in here,
            starts those anew that die, and exits when all have ended. Not on Windows.
        :param max_restarts: how many dead workers are replaced in all; None for Tornado's 100.
        :raises RuntimeError: started already; or to fork, where a loop exists (the workers would share its epoll) or
            from a thread that is not the main one.
        :raises OptionError: a number that cannot be.
        """
        self._need_handler()
        if self._started:
            raise RuntimeError("the server has been started already: call stop() first")
        if isinstance(num_processes, bool) or not isinstance(num_processes, int | None) or (num_processes or 0) < 0:
            raise OptionError("num_processes", num_processes, "must be 1 or more, or None for one for each core")
        if isinstance(max_restarts, bool) or not isinstance(max_restarts, int | None) or (max_restarts or 0) < 0:
            raise OptionError("max_restarts", max_restarts, "must be 0 or more, or None for 100")
        if num_processes != 1:
            self._fork(num_processes, max_restarts)
        self._started = True
        pending, self._pending = self._pending, []
        self._accept_on(pending)

    def _fork(self, num_processes: int | None, max_restarts: int | None) -> None:
        """Return in each of the workers; the first process is in here until they have ended, and exits."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("start() with more than one process forks, which only the main thread may do")
        if process.task_id() is not None:
            raise RuntimeError("start() with more than one process forks, and this process is a worker: start(1) here")
        loop = existing_loop()
        if loop is not None:
            raise RuntimeError(
                f"start() with more than one process forks, and there is a loop already, which the workers would share:"
                f" {loop}. Call bind() and start() before whatever makes it (listen(), a stream, asyncio.run())"
            )
        try:
            process.fork_processes(num_processes, max_restarts)
        except BaseException:  # SystemExit, as a rule; only the first process comes by
            self.stop()
            raise

    def add_sockets(self, sockets: Iterable[socket.socket], ssl_options: SSLOptions = None) -> None:
        """Accept on listening sockets that exist; they belong to the server and are closed by :meth:`stop`. ::

            server.add_sockets([*bind_sockets(8888), bind_unix_socket("/run/echo.sock")])

        :param ssl_options: TLS options for their clients; None for those of the server, False for plain connections.
        :raises OptionError: one is closed, is not listening, or was added before; none of them is added then.
        """
        greeter = self._greeter_for(ssl_options)
        self._accept_on([(listener, greeter) for listener in sockets])

    def _accept_on(self, listeners: list[tuple[socket.socket, Greeter]]) -> None:
        known = {acceptor.listener.fileno() for acceptor in self._acceptors}
        for listener, _ in listeners:
            _check_listener(listener, known)
            known.add(listener.fileno())
        io_loop = self._io_loop or current_loop()
        prepare = partial(set_socket_options, options=self.options)
        acceptors = [Acceptor(listener, partial(self._accepted, greeter), prepare) for listener, greeter in listeners]
        self._acceptors += acceptors
        self._greeters.update(greeter for _, greeter in listeners)
        for acceptor in acceptors:
            acceptor.start(io_loop)
        self._look_for_expiry(io_loop.asyncio_loop)  # type: ignore[attr-defined]

    def _make_greeter(self, ssl_options: SSLOptions) -> Greeter:
        if ssl_options is None or ssl_options is False or isinstance(ssl_options, Certificates):
            certificates = ssl_options or None
        else:
            options = self.options
            certificates = Certificates(
                ssl_options, strict_validity=options.strict_validity, allow_legacy_tls=options.allow_legacy_tls
            )
        return Greeter(self.options, certificates, self._trusted, self._serve)

    def _greeter_for(self, ssl_options: SSLOptions) -> Greeter:
        return self._greeter if ssl_options is None else self._make_greeter(ssl_options)

    def add_socket(self, socket: socket.socket, ssl_options: SSLOptions = None) -> None:
        """:meth:`add_sockets` for one."""
        self.add_sockets([socket], ssl_options)

    def stop(self) -> None:
        """Stop listening: new clients are refused, open streams go on. Then it may listen, or bind and start, again."""
        acceptors, self._acceptors = self._acceptors, []
        for acceptor in acceptors:
            acceptor.close()
        pending, self._pending = self._pending, []
        for listener, _ in pending:
            listener.close()
        self._started = False
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
            self._expiry_timer = None
        if self._stopped is not None:
            self._stopped.set()
            self._stopped = None

    async def serve_forever(self) -> None:
        """Accept on the running loop until :meth:`stop` is called, or until cancelled. ::

            async def main():
                server = EchoServer()
                server.listen(8888)
                await server.serve_forever()

            asyncio.run(main())

        Cancelled, it stops listening, ends the handlers and closes their streams, reason ``shutdown``.

        :raises NotImplementedError: there is no ``handle_stream``.
        :raises RuntimeError: nothing is listening, so it would wait for nothing for ever.
        """
        self._need_handler()
        if not self._acceptors:
            raise RuntimeError("the server is not listening: call listen(), or bind() and start(), first")
        io_loop = IOLoop.current()
        for acceptor in self._acceptors:
            acceptor.start(io_loop)
        stopped = self._stopped = self._stopped or asyncio.Event()
        try:
            await stopped.wait()
        except asyncio.CancelledError:
            self.stop()
            await self.close_all_connections()
            raise

    async def close_all_connections(self) -> None:
        """End all handlers now and close all streams, reason ``shutdown``; return when the handlers have ended.

        Listening goes on, unless :meth:`stop` was called before.
        """
        ending = [*self._handling, *self._closing]
        for task in ending:
            task.cancel()
        for greeter in self._greeters:
            ending += greeter.cancel()
        for stream in list(self._streams.values()):
            stream._close(CloseReason.SHUTDOWN)
        await asyncio.gather(*ending, return_exceptions=True)

    @property
    def addresses(self) -> list[Any]:
        """What is bound, as `socket.socket.getsockname` gives it: port 0 has become a real one."""
        listeners = [*(acceptor.listener for acceptor in self._acceptors), *(listener for listener, _ in self._pending)]
        return [listener.getsockname() for listener in listeners]

    @cached_property
    def streams(self) -> Streams:
        """The streams that are open: count them, iterate over them, ``get(id)`` one.

        A subclass may use the name for something of its own.
        """
        return Streams(self._streams)

    @property
    def max_buffer_size(self) -> int:
        """``options.max_buffer_size``, where Tornado has it."""
        return self.options.max_buffer_size

    @property
    def read_chunk_size(self) -> int:
        """``options.read_chunk_size``, where Tornado has it."""
        return self.options.read_chunk_size

    # ---- the handler

    def _handler(self) -> Any | None:
        """The user's ``handle_stream``, if there is one."""
        handler = self.handle_stream
        return None if getattr(handler, "__func__", None) is TCPServer.handle_stream else handler

    def _need_handler(self) -> None:
        if self._handler() is None:
            raise NotImplementedError(
                f"{type(self).__name__} has no handle_stream(stream, address): override it, or assign it on the server"
            )
        self._check_handler()

    def _check_handler(self) -> None:
        handler = self.handle_stream
        if not callable(handler):
            raise OptionError("handle_stream", handler, "must be a function of (stream, address)")
        try:
            signature = inspect.signature(handler)
        except (TypeError, ValueError):
            return  # some builtins don't tell
        try:
            signature.bind(None, None)
        except TypeError:
            raise OptionError("handle_stream", handler, f"must take (stream, address), takes {signature}") from None

    # ---- certificates

    @property
    def certificates(self) -> list[Certificates]:
        """The certificates of the server and of its listeners; none, if all of it is plain."""
        return [greeter.certificates for greeter in self._greeters if greeter.certificates is not None]

    def reload_certificates(self) -> bool:
        """Read all certificate files anew, for the connections to come; those there are keep what they have.

        What cannot be used, because it is half written, unreadable or does not fit together, is left as it was, with an
        error in the log. `run` does this on SIGHUP.

        :returns: whether all of it is in use.
        """
        done = [certificates.reload() for certificates in self.certificates]  # all, also if one cannot be
        return all(done)

    def _look_for_expiry(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once a day."""
        for certificates in self.certificates:
            certificates.warn_of_expiry(time.time())
            if self._expiry_timer is not None:
                self._expiry_timer.cancel()
            self._expiry_timer = loop.call_later(DAY, self._look_for_expiry, loop)

    # ---- a client's way: accepted, greeted, handled, finished

    def _accepted(self, greeter: Greeter, connection: socket.socket, address: Any) -> None:
        if self._handler() is None:
            return self._refuse_unhandled(connection)
        stream = IOStream._of_client(connection, address, self.options, self)
        self._streams[stream.id] = stream
        greeter.greet(stream, address)

    def _serve(self, stream: IOStream, address: Any) -> None:
        try:
            result = self.handle_stream(stream, address)
            if result is None:
                return
            if not inspect.iscoroutine(result):
                result = _wait_for(gen.convert_yielded(result))
            handling = stream._hub.loop.create_task(result)
        except Exception as error:
            return self._handler_failed(stream, error)
        self._handling[handling] = stream
        handling.add_done_callback(self._on_handled)

    def _handled(self, handling: "asyncio.Future[Any]") -> None:
        """A handler has ended."""
        stream = self._handling.pop(handling)
        stream = self._streams.get(stream.id, stream)  # start_tls() has put another one in its place, perhaps
        if handling.cancelled():
            if isinstance(handling, asyncio.Task) and handling.cancelling():
                stream._close(CloseReason.SHUTDOWN)
            else:  # by what it waited for
                self._retire(stream, CloseReason.HANDLER_ERROR)
        elif (error := handling.exception()) is not None:
            self._handler_failed(stream, error)
        elif self.options.close_on_return and not stream.reading() and stream._close_callback is None:
            self._retire(stream, CloseReason.LOCAL)

    def _handler_failed(self, stream: IOStream, error: BaseException) -> None:
        if isinstance(error, tornado.iostream.StreamClosedError):
            reason = CloseReason.LOCAL
        elif isinstance(error, tornado.iostream.StreamBufferFullError):
            reason = reason_for(error)
            gen_log.warning("closing %s: %s", _client(stream), error)
        elif isinstance(error, StreamTimeoutError):
            reason = CloseReason.READ_TIMEOUT
        else:
            reason = CloseReason.HANDLER_ERROR
            app_log.error("Exception in callback handle_stream for %s", _client(stream), exc_info=error)
        self._retire(stream, reason)

    def _retire(self, stream: IOStream, reason: CloseReason) -> None:
        """Close a stream in order, so that its client reads all that was written and then the end."""
        if not stream.closed():
            closing = stream._hub.loop.create_task(stream._aclose(reason, CLOSE_TIMEOUT))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _replace(self, stream: IOStream) -> None:
        self._streams[stream.id] = stream

    def _finish(self, stream: BaseIOStream) -> None:
        """The only exit: every accepted stream comes by, once, when its descriptor has been closed."""
        self._streams.pop(stream.id, None)

    def _refuse_unhandled(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.close()
        if not self._told_no_handler:
            self._told_no_handler = True
            app_log.error("%s has no handle_stream: its clients are closed", type(self).__name__)


async def _wait_for(future: Awaitable[Any]) -> None:
    """A coroutine of one stream's own: the future may be anybody's, even one that several handlers return."""
    await future


def _check_listener(listener: socket.socket, known: set[int]) -> None:
    problem = why_not_listening(listener)
    if problem is None and listener.fileno() in known:
        problem = "was added before"
    if problem is not None:
        raise OptionError("sockets", listener, problem)


def _client(stream: IOStream) -> str:
    """A client, for a log line; one of a Unix socket has no address, and is named after the one it came by."""
    return show(stream.remote_address) or f"a client of {show(stream.local_address or 'a Unix socket')}"
