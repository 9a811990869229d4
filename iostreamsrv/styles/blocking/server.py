"""`BlockingServer`, and the `TCPServer` that it runs in its loop."""

import asyncio
import contextlib
import contextvars
import functools
import socket
import threading
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any, Self
from weakref import WeakValueDictionary

from ...errors import CloseReason, OptionError, StreamClosedError, StreamTimeoutError
from ...iostream import IOStream
from ...options import Full, check_count
from ...runtime.callables import is_overridden
from ...runtime.clock import real_time
from ...runtime.logs import general
from ...runtime.rlimit import default_connections, raise_limit
from ...server.base import core_of
from ...tcpserver import TCPServer
from .handle import SETTLE_TURNS, Handle, check_wait
from .loop_thread import LoopThread, stopped_error
from .notifier import Notice, Notifier, Notify
from .pool import ClientSocket, Pool, Serve

__all__ = ["BlockingServer"]

THREADS = 64
"""Default number of clients that ``handle`` serves at a time."""

STOP_TIMEOUT = 0.5
"""Seconds that clients have to receive the data sent to them when the server stops, so that a thread that waits for
them returns within a second."""

JOIN_TIMEOUT = 1.0
"""Seconds that ``handle`` and ``notify`` have to return after the server has stopped."""

CHECK_INTERVAL = 1.0
"""Seconds between two checks whether a client is still connected whose buffer is full, so that nothing is received."""


class BlockingServer:
    """A server for threads, see :mod:`iostreamsrv.styles.blocking`. ::

        with BlockingServer(max_connections=100) as server:
            server.listen(8888, "127.0.0.1")
            while True:
                with server.accept() as client:
                    client.sendall(client.recv(1024))

    Leaving the ``with`` block stops the server. Several may run in one process. Its methods may be called from any
    thread.

    :param threads: the most threads for ``handle``; default 64. Further clients wait for a free thread.
    :param notify: a function that replaces :meth:`notify`.
    :param options: ``ssl_options``, ``max_connections`` and all other options of `TCPServer`. By default, a full server
        rejects further clients (``when_full="reject"``).
    :raises OptionError: an argument is invalid.
    :raises TypeError: both ``handle`` and ``notify`` are there, or an option does not exist.
    """

    def __init__(self, *, threads: int = THREADS, notify: Notify | None = None, **options: Any) -> None:
        if notify is not None:
            if not callable(notify):
                raise OptionError("notify", notify, "must be a function of (handle, notice)")
            self.notify = notify  # type: ignore[method-assign, assignment]
        serve = self.handle if self._overrides("handle") else None
        if serve is not None and self._overrides("notify"):
            raise TypeError("override either handle() or notify(), not both")
        threads = check_count("threads", threads) or THREADS
        self._pool = Pool(threads)
        self._state = threading.RLock()  # a signal handler may call stop() from within start()
        self._stop_done: threading.Event | None = None  # made when stop() begins, set when it is done
        self._stopper: threading.Thread | None = None
        self._loop_thread = loop_thread = LoopThread(self._deliver_pending)
        self._notifier: Notifier | None = None
        if self._overrides("notify"):
            self._notifier = Notifier(
                self.notify, loop_thread.call_soon, loop_thread.interrupt, lambda event: self._server.events.log(event)
            )
        try:
            self._server = _Server(loop_thread, serve, self._notifier, self._pool, options)
        except BaseException:
            loop_thread.io_loop.close()
            raise
        self._default_limit = self._server.options.max_connections is None
        self._extra_descriptors = 0 if serve is None else threads  # ClientSocket duplicates the descriptor

    def _overrides(self, name: str) -> bool:
        return is_overridden(self, BlockingServer, name)

    # ---- what users override

    def handle(self, sock: Any, address: Any) -> None:
        """Serve one client, in a thread of the pool. Override this. When it returns, the connection is closed
        gracefully. Exceptions are logged, except those that a client causes on its socket: resets and timeouts.

        Each call runs in a copy of the context (`contextvars`) in which :meth:`listen` was called.

        :param sock: a blocking `socket.socket`; with TLS or a PROXY header, a `Handle`.
        :param address: the client's address.
        """
        raise NotImplementedError

    def notify(self, handle: Handle, notice: Notice) -> None:
        """Called when a client has connected, sent data or disconnected. May be overridden. One thread calls it, for
        one notice after another. It may use the handle. Data that it does not receive stays in the buffer: there is
        another notice when more data arrives, or when some was received and some is left. An exception is logged, and
        closes the handle. Each client has a separate context (`contextvars`), in which the method is called.

        When ``max_buffer_size`` bytes are buffered, the server stops reading from that client until some are received.

        :param handle: the client.
        :param notice: what has happened.
        """

    # ---- running

    def listen(self, port: int | str, address: str | None = None, **options: Any) -> None:
        """See `TCPServer.listen`. Also raises the process's limit of open descriptors as far as ``max_connections``
        requires."""
        raise_limit(self._server.options.max_connections, self._extra_descriptors)
        listen = functools.partial(contextvars.copy_context().run, self._server.listen, port, address, **options)
        self._loop_thread.run(functools.partial(self._listen, listen))

    async def _listen(self, listen: Callable[[], None]) -> None:
        listen()
        if self._extra_descriptors and self._default_limit:
            limit = default_connections(len(self._server.addresses), self._extra_descriptors)
            self._server.replace_options(max_connections=limit)

    @property
    def addresses(self) -> list[Any]:
        """The addresses that the server listens on, as `socket.socket.getsockname` returns them."""
        return self._server.addresses

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve in a separate thread until :meth:`stop`. Does nothing if the thread runs already.

        :raises RuntimeError: the server has been stopped.
        """
        with self._state:
            if self._stop_done is not None:
                raise RuntimeError("the server has been stopped: make a new one")
            if self._loop_thread.has_thread:
                return
            self._loop_thread.start()
            if self._notifier is not None:
                self._notifier.start()

    def process(self, timeout: float = 0) -> None:
        """Serve for a moment in this thread, instead of :meth:`start`: for a program that has a main loop. ::

            while running:
                draw()
                server.process()

        Between two calls the server does nothing, unless a thread waits in a method of the server or of a handle.

        :param timeout: seconds to wait for a client or a notice; default 0.
        :raises RuntimeError: the server runs in a thread.
        :raises ConnectionAbortedError: the server was stopped.
        """
        if self._stop_done is not None:
            raise stopped_error()
        if self._loop_thread.has_thread:
            raise RuntimeError("the server runs in a thread: process() is for a server without start()")
        self._loop_thread.run_once(check_wait(timeout) or 0)

    def accept(self, timeout: float | None = None) -> Handle:
        """Wait for the next client, and return its handle.

        :param timeout: seconds; None, the default: no limit; 0: do not wait.
        :raises TimeoutError: no client connected in time.
        :raises ConnectionAbortedError: the server was stopped, before the call or during it.
        :raises RuntimeError: the server passes its clients to :meth:`handle`.
        """
        if self._overrides("handle"):
            raise RuntimeError("accept() is not available: clients are passed to handle()")
        handle: Handle = self._loop_thread.run(functools.partial(self._server.next, check_wait(timeout)))
        return handle

    def stop(self) -> None:
        """Stop listening, close all connections, and return when all calls that waited have been interrupted.
        Connections are closed gracefully where the client cooperates within half a second. May be called repeatedly,
        also from ``handle`` and ``notify``.

        If a ``handle`` or ``notify`` does not return within a second, this is logged and its thread left running. In a
        forked child this method does nothing: the server belongs to the parent process.

        :raises RuntimeError: this is the loop's thread.
        """
        if self._loop_thread.in_forked_child:
            return
        self._loop_thread.check_thread()
        with self._state:
            if self._stop_done is None:
                self._stop_done, self._stopper = threading.Event(), threading.current_thread()
                first = True
            else:
                first = False
        if first:
            self._stop()
        elif threading.current_thread() not in (*self._own_threads(), self._stopper):
            self._stop_done.wait()

    def _stop(self) -> None:
        assert self._stop_done is not None
        try:
            self._loop_thread.stop(self._server.end)
            if self._notifier is not None:
                self._notifier.stop()
            self._pool.stop()
            self._join()
        finally:
            self._stop_done.set()

    def _own_threads(self) -> list[threading.Thread]:
        notifier = None if self._notifier is None else self._notifier.thread
        return [*self._pool.threads, *([] if notifier is None else [notifier])]

    def _join(self) -> None:
        """Wait for all threads except the current one."""
        deadline = real_time() + JOIN_TIMEOUT
        others = [thread for thread in self._own_threads() if thread is not threading.current_thread()]
        for thread in others:
            thread.join(max(0.0, deadline - real_time()))
        left = [thread.name for thread in others if thread.is_alive()]
        if left:
            general.warning("the server has stopped, but threads are still running: %s", ", ".join(left))

    def _deliver_pending(self) -> None:
        if self._notifier is not None:
            self._notifier.deliver_pending()


class _Server(TCPServer):
    """The `TCPServer` that a `BlockingServer` runs in its loop."""

    when_full: Full = "reject"

    def __init__(
        self,
        loop_thread: LoopThread,
        serve: Serve | None,
        notifier: Notifier | None,
        pool: Pool,
        options: dict[str, Any],
    ) -> None:
        super().__init__(io_loop=loop_thread.io_loop, **options)
        core_of(self).connections.may_block = False  # no watchdog: users' code runs in threads, `process` makes none
        self._loop_thread = loop_thread
        self._serve = serve
        self._notifier = notifier
        self._pool = pool
        # A pool and a notifier need the handles to the end. Otherwise only the thread that accepted one holds it.
        self._handles: MutableMapping[int, Handle] = {} if serve or notifier else WeakValueDictionary()
        self._accept_queue: dict[int, Handle] = {}
        self._arrived = asyncio.Condition()
        self._client_sockets: dict[int, ClientSocket] = {}
        self._stopping = False

    def handle_stream(self, stream: IOStream, address: Any) -> Coroutine[Any, Any, None]:
        if self._serve is None:
            handle = self._handle_of(stream, address)
            return self._offer(handle) if self._notifier is None else self._offer_and_notify(handle, self._notifier)
        stream.set_timeouts(idle=None)  # it sees no data of a socket, and a handle may wait for a thread
        return self._serve_in_pool(self._serve, stream, address)

    def _handle_of(self, stream: IOStream, address: Any) -> Handle:
        handle = self._handles[stream.id] = Handle(self._loop_thread, stream, address)
        stream.allow_half_open = self._notifier is None  # without notices, a thread closes it, as with a socket
        return handle

    def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        handle = self._handles.pop(stream.id, None)
        if handle is None:
            return
        handle.release()
        self._accept_queue.pop(stream.id, None)  # or closed clients would pile up until the next accept()
        if self._notifier is not None:
            self._notifier.add(handle, Notice.DISCONNECT)

    async def end(self) -> None:
        """Close all connections, gracefully where that is quick."""
        self._stopping = True
        self.stop()
        async with self._arrived:
            self._arrived.notify_all()
        for handle in list(self._handles.values()):
            handle.release()
        for sock in list(self._client_sockets.values()):
            sock.wake(socket.SHUT_RD)  # the thread may still send
        await self.shutdown(timeout=STOP_TIMEOUT)
        for stream in self.streams:
            stream.abort()  # without a loop, it could not deliver its queued data

    # ---- handles that are accepted

    async def next(self, timeout: float | None) -> Handle:
        """The handle of the client that has waited longest in the accept queue."""
        if timeout == 0:
            for _ in range(SETTLE_TURNS):  # to accept a client from the kernel's backlog
                await asyncio.sleep(0)
        try:
            async with asyncio.timeout(timeout), self._arrived:
                await self._arrived.wait_for(lambda: self._accept_queue or self._stopping)
        except TimeoutError:
            raise StreamTimeoutError("accept", timeout or 0, f"no client connected within {timeout:g} s") from None
        if self._stopping:
            raise stopped_error()
        return self._accept_queue.pop(next(iter(self._accept_queue)))

    async def _offer(self, handle: Handle) -> None:
        ending = handle.close_when_released()
        await self._queue_for_accept(handle)
        del handle
        await ending

    async def _offer_and_notify(self, handle: Handle, notifier: Notifier) -> None:
        await notifier.add(handle, Notice.CONNECT)
        if not handle.closed and not handle.stream.closed():
            await self._queue_for_accept(handle)
        await self._notify_of_data(handle, notifier)
        await handle.close_when_released()

    async def _queue_for_accept(self, handle: Handle) -> None:
        self._accept_queue[handle.stream.id] = handle
        del handle
        async with self._arrived:
            self._arrived.notify_all()
        self._loop_thread.interrupt()

    async def _notify_of_data(self, handle: Handle, notifier: Notifier) -> None:
        """Add a notice whenever there is data to receive, until the handle is released or the client closes its
        side."""
        stream, seen = handle.stream, 0
        full = stream.max_buffer_size - stream.read_chunk_size  # above this, one more chunk could exceed the limit
        while not handle.released.is_set():
            taken = stream.bytes_read - stream.buffered
            if seen and stream.buffered > full:
                await handle.wait_for_recv(CHECK_INTERVAL)
                if not stream.closed() and (error := stream.get_fd_error()) is not None:
                    stream.close(error)
            else:
                try:
                    readable = await handle.wait_readable(seen)
                except StreamClosedError:
                    return
                if readable:
                    await notifier.add(handle, Notice.RECV)
            seen = stream.buffered if taken == stream.bytes_read - stream.buffered else 0

    # ---- the pool

    async def _serve_in_pool(self, serve: Serve, stream: IOStream, address: Any) -> None:
        async with self._pool.free:
            if stream.closed() or self._stopping:
                return
            if type(stream) is IOStream and stream.proxy is None:
                await self._serve_socket(serve, stream, address)
            else:
                await self._serve_handle(serve, stream, address)

    async def _serve_socket(self, serve: Serve, stream: IOStream, address: Any) -> None:
        """Serve a client with a blocking socket on the stream's connection. The stream does nothing meanwhile: before
        its first read it is not registered with any epoll."""
        sock = self._client_sockets[stream.id] = ClientSocket(stream, self.options, self._loop_thread.call_soon)
        serving = self._pool.call(serve, sock, address)
        try:
            await asyncio.wait([serving, sock.closed], return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                stream.socket.setblocking(False)
                await stream.aclose()
            await serving
            if sock.timeout_error is not None:  # a graceful close would wait for this client
                stream.close(sock.timeout_error)
        except asyncio.CancelledError:
            serving.cancel()
            sock.wake(socket.SHUT_RDWR)
            raise
        finally:
            del self._client_sockets[stream.id]
            if stream.socket is not None:
                stream.socket.setblocking(False)  # the mode belongs to both descriptors

    async def _serve_handle(self, serve: Serve, stream: IOStream, address: Any) -> None:
        handle = self._handle_of(stream, address)
        handle.settimeout(self.options.idle_timeout)
        serving = self._pool.call(serve, handle, address)
        serving.add_done_callback(lambda _: handle.close())
        try:
            with contextlib.suppress(StreamClosedError):
                await handle.close_when_released()
            await serving
        except asyncio.CancelledError:
            serving.cancel()
            raise
