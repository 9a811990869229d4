"""A server for threads: what they get looks like a socket, and waits with real timeouts.

The loop has a thread of its own, or is pumped by a main loop of the program's with `BlockingServer.process`. There are
three ways to use it:

- ``accept()`` gives a `Handle` for each client, to be used by any thread. What it receives crosses over from the loop's
  thread, what it sends does not wait for that.
- ``handle(sock, address)``, overridden, is called in a pool of threads, as by `socketserver`. Without TLS and a PROXY
  header it gets a real, blocking socket: nothing crosses over.
- ``notify(handle, notice)``, overridden or a keyword, is told of clients that come, send and go.
"""

import asyncio
import contextlib
import contextvars
import functools
import socket
import threading
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any, Self
from weakref import WeakValueDictionary

from ..errors import CloseReason, OptionError, StreamClosedError, StreamTimeoutError
from ..iostream import IOStream
from ..options import Full, check_count
from ..runtime.callables import is_overridden
from ..runtime.clock import real_time
from ..runtime.logs import general
from ..runtime.rlimit import default_connections, raise_limit
from ..tcpserver import TCPServer
from .crossing import Crossing, stopped
from .handles import TURNS, Handle, check_wait
from .notices import Notice, Notices, Notify
from .pool import ClientSocket, Pool, Serve

__all__ = ["BlockingServer", "Notice"]

THREADS = 64
"""Clients that ``handle`` is called for at a time."""

STOP_TIMEOUT = 0.5
"""Seconds that clients have to receive what was sent to them when the server stops: threads that wait for them are to
return within a second."""

PATIENCE = 1.0
"""Seconds that ``handle`` and ``notify`` have to return when the server has stopped."""

LOOK = 1.0
"""Seconds between two looks whether a client is still there of which so much waits that no more is received."""


class BlockingServer:
    """A server for threads, see :mod:`iostreamsrv.styles.blocking`. ::

        with BlockingServer(max_connections=100) as server:
            server.listen(8888, "127.0.0.1")
            while True:
                with server.accept() as client:
                    client.sendall(client.recv(1024))

    Leaving the ``with`` stops it. Several may run in one process. Its methods may be called from any thread.

    :param threads: most threads for ``handle``; 64. More clients wait for one.
    :param notify: a function in place of :meth:`notify`.
    :param options: ``ssl_options``, ``max_connections`` and all others of `TCPServer`. Whoever is one too many is
        refused (``when_full="reject"``), unless something else is said.
    """

    def __init__(self, *, threads: int = THREADS, notify: Notify | None = None, **options: Any) -> None:
        if notify is not None:
            if not callable(notify):
                raise OptionError("notify", notify, "must be a function of (handle, notice)")
            self.notify = notify  # type: ignore[method-assign, assignment]
        serve = self.handle if self._overrides("handle") else None
        if serve is not None and self._overrides("notify"):
            raise TypeError("there is either handle() or notify(): override one of them")
        threads = check_count("threads", threads) or THREADS
        self._pool = Pool(threads)
        self._state = threading.RLock()  # a signal handler may call stop() from within start()
        self._ended: threading.Event | None = None  # set when a stop() that has begun is over
        self._stopper: threading.Thread | None = None
        self._crossing = crossing = Crossing(self._tell_now)
        self._notices: Notices | None = None
        if self._overrides("notify"):
            self._notices = Notices(
                self.notify, crossing.post, crossing.happened, lambda event: self._server.events.log(event)
            )
        try:
            self._server = _Server(crossing, serve, self._notices, self._pool, options)
        except BaseException:
            crossing.io_loop.close()
            raise
        self._counts_descriptors = self._server.options.max_connections is None
        self._doubles = 0 if serve is None else threads  # a client that is served has a socket beside its stream's

    def _overrides(self, name: str) -> bool:
        return is_overridden(self, BlockingServer, name)

    # ---- what users override

    def handle(self, sock: Any, address: Any) -> None:
        """Serve one client, in a thread of the pool: to be overridden. When it returns the connection is closed in
        order; what it raises is logged, but for what a client does to a socket: resets, and timeouts.

        Each call has a copy of the context variables that were set where :meth:`listen` was called.

        :param sock: a blocking `socket.socket`, or a `Handle` where there is TLS or a PROXY header.
        :param address: the client's address.
        """
        raise NotImplementedError

    def notify(self, handle: Handle, notice: Notice) -> None:
        """A client has come, sent something, or gone: may be overridden. It is called by one thread, for one notice
        after another, and may use the handle. What is not received when it is told of stays; it is told again when
        there is more, or when some was received, and some is left. What it raises is logged, and closes the handle.
        Each client has a context (`contextvars`) of its own, in which it is called.

        A client of which nothing is received is not read from any more when ``max_buffer_size`` bytes wait.
        """

    # ---- running

    def listen(self, port: int | str, address: str | None = None, **options: Any) -> None:
        """See `TCPServer.listen`. The limit of open descriptors is raised to what ``max_connections`` asks for."""
        raise_limit(self._server.options.max_connections, self._doubles)
        listen = functools.partial(contextvars.copy_context().run, self._server.listen, port, address, **options)
        self._crossing.run(functools.partial(self._listen, listen))

    async def _listen(self, listen: Callable[[], None]) -> None:
        listen()
        if self._doubles and self._counts_descriptors:
            most = default_connections(len(self._server.addresses), self._doubles)
            self._server.replace_options(max_connections=most)

    @property
    def addresses(self) -> list[Any]:
        """What is bound, as `socket.socket.getsockname` gives it."""
        return self._server.addresses

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve in a thread of its own, from now until :meth:`stop`. Nothing, if it does already.

        :raises RuntimeError: it has been stopped.
        """
        with self._state:
            if self._ended is not None:
                raise RuntimeError("the server has been stopped: make a new one")
            if self._crossing.has_thread:
                return
            self._crossing.start()
            if self._notices is not None:
                self._notices.start()

    def process(self, timeout: float = 0) -> None:
        """Serve for a moment, in this thread: for a program with a main loop of its own, instead of :meth:`start`. ::

            while running:
                draw()
                server.process()

        Between two calls nothing happens, unless a thread waits for something in a call of the server or a handle.

        :param timeout: seconds to wait until a client has come, or there is something to notify of.
        :raises RuntimeError: the server has a thread.
        :raises ConnectionAbortedError: it was stopped.
        """
        if self._ended is not None:
            raise stopped()
        if self._crossing.has_thread:
            raise RuntimeError("the server has a thread of its own: process() is for those that have not")
        self._crossing.pump(check_wait(timeout) or 0)

    def accept(self, timeout: float | None = None) -> Handle:
        """The next client.

        :param timeout: seconds; None waits, 0 does not.
        :raises TimeoutError: nobody came.
        :raises ConnectionAbortedError: the server was stopped, now or before.
        :raises RuntimeError: clients are given to :meth:`handle`.
        """
        if self._overrides("handle"):
            raise RuntimeError("clients are given to handle(), and so there is nobody to accept")
        handle: Handle = self._crossing.run(functools.partial(self._server.next, check_wait(timeout)))
        return handle

    def stop(self) -> None:
        """Stop listening, close all connections in order, as far as that goes in half a second, and return when the
        threads that waited for one have been told. It may be repeated, and called from ``handle`` and ``notify``.

        A ``handle`` or ``notify`` that goes on for more than a second is left alone, which is logged. In a forked child
        it does nothing: the server is the parent's.

        :raises RuntimeError: this is the loop's thread.
        """
        if self._crossing.inherited:
            return
        self._crossing.check_thread()
        with self._state:
            if self._ended is None:
                self._ended, self._stopper = threading.Event(), threading.current_thread()
                first = True
            else:
                first = False
        if first:
            self._stop()
        elif threading.current_thread() not in (*self._own_threads(), self._stopper):
            self._ended.wait()

    def _stop(self) -> None:
        assert self._ended is not None
        try:
            self._crossing.end(self._server.end)
            if self._notices is not None:
                self._notices.stop()
            self._pool.stop()
            self._join()
        finally:
            self._ended.set()

    def _own_threads(self) -> list[threading.Thread]:
        notifier = None if self._notices is None else self._notices.thread
        return [*self._pool.threads, *([] if notifier is None else [notifier])]

    def _join(self) -> None:
        """Wait for the threads, but for the one that asks."""
        late = real_time() + PATIENCE
        others = [thread for thread in self._own_threads() if thread is not threading.current_thread()]
        for thread in others:
            thread.join(max(0.0, late - real_time()))
        left = [thread.name for thread in others if thread.is_alive()]
        if left:
            general.warning("the server has stopped, and is still at work in %s", ", ".join(left))

    def _tell_now(self) -> None:
        if self._notices is not None:
            self._notices.tell_now()


async def _call(function: Callable[[], object]) -> None:
    """``function``, in the loop."""
    function()


class _Server(TCPServer):
    """What a `BlockingServer` is for its loop."""

    when_full: Full = "reject"
    _may_block = False  # no watchdog: what users write runs in threads, and `process` makes none

    def __init__(
        self,
        crossing: Crossing,
        serve: Serve | None,
        notices: Notices | None,
        pool: Pool,
        options: dict[str, Any],
    ) -> None:
        super().__init__(io_loop=crossing.io_loop, **options)
        self._crossing = crossing
        self._serve = serve
        self._notices = notices
        self._pool = pool
        # Who accepts a handle has it. A pool, or what notifies, goes on to need it.
        self._handles: MutableMapping[int, Handle] = {} if serve or notices else WeakValueDictionary()
        self._unaccepted: dict[int, Handle] = {}
        self._came = asyncio.Condition()
        self._sockets: dict[int, ClientSocket] = {}
        self._stopping = False

    def handle_stream(self, stream: IOStream, address: Any) -> Coroutine[Any, Any, None]:
        if self._serve is None:
            handle = self._handle_of(stream, address)
            return self._offer(handle) if self._notices is None else self._offer_and_notify(handle, self._notices)
        stream.set_timeouts(idle=None)  # what comes and goes is not seen from here, or waits for a thread
        return self._serve_in_pool(self._serve, stream, address)

    def _handle_of(self, stream: IOStream, address: Any) -> Handle:
        handle = self._handles[stream.id] = Handle(self._crossing, stream, address)
        stream.allow_half_open = self._notices is None  # then a thread says when it ends, as with a socket
        return handle

    def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        handle = self._handles.pop(stream.id, None)
        if handle is None:
            return
        handle.release()
        self._unaccepted.pop(stream.id, None)  # or those who come and go would pile up while nobody accepts
        if self._notices is not None:
            self._notices.add(handle, Notice.DISCONNECT)

    async def end(self) -> None:
        """Close all connections in order, as far as that goes quickly."""
        self._stopping = True
        self.stop()
        async with self._came:
            self._came.notify_all()
        for handle in list(self._handles.values()):
            handle.release()
        for sock in list(self._sockets.values()):
            sock.wake(socket.SHUT_RD)  # what it is about to say it still may
        await self.shutdown(timeout=STOP_TIMEOUT)
        for stream in self.streams:
            stream.abort()  # what it owes its client it cannot deliver without a loop

    # ---- handles that are accepted

    async def next(self, timeout: float | None) -> Handle:
        """The one that has come first, of those that nobody has been given."""
        if timeout == 0:
            for _ in range(TURNS):  # for whoever is in the kernel's queue
                await asyncio.sleep(0)
        try:
            async with asyncio.timeout(timeout), self._came:
                await self._came.wait_for(lambda: self._unaccepted or self._stopping)
        except TimeoutError:
            raise StreamTimeoutError("accept", timeout or 0, f"nobody came within {timeout:g} s") from None
        if self._stopping:
            raise stopped()
        return self._unaccepted.pop(next(iter(self._unaccepted)))

    async def _offer(self, handle: Handle) -> None:
        ending = handle.ending()
        await self._have_accepted(handle)
        del handle
        await ending

    async def _offer_and_notify(self, handle: Handle, notices: Notices) -> None:
        await notices.add(handle, Notice.CONNECT)
        if not handle.closed and not handle.stream.closed():
            await self._have_accepted(handle)
        await self._notify_of_data(handle, notices)
        await handle.ending()

    async def _have_accepted(self, handle: Handle) -> None:
        self._unaccepted[handle.stream.id] = handle
        del handle
        async with self._came:
            self._came.notify_all()
        self._crossing.happened()

    async def _notify_of_data(self, handle: Handle, notices: Notices) -> None:
        """Until it is released, or the client has ended its side."""
        stream, seen = handle.stream, 0
        full = stream.max_buffer_size - stream.read_chunk_size  # with more, one more chunk could be too much
        while not handle.released.is_set():
            taken = stream.bytes_read - stream.buffered
            if seen and stream.buffered > full:
                await handle.wait_for_use(LOOK)
                if not stream.closed() and (error := stream.get_fd_error()) is not None:
                    stream.close(error)
            else:
                try:
                    news = await handle.wait_for_news(seen)
                except StreamClosedError:
                    return
                if news:
                    await notices.add(handle, Notice.RECV)
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
        """With a socket of its own on the stream's connection, of which the stream knows nothing meanwhile. (One that
        nobody has read from is not registered with any epoll.)"""
        sock = self._sockets[stream.id] = ClientSocket(stream, self.options, self._crossing.post)
        serving = self._pool.call(serve, sock, address)
        try:
            await asyncio.wait([serving, sock.closed], return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                stream.socket.setblocking(False)
                await stream.aclose()
            await serving
            if sock.late is not None:  # an ordered close would wait for this client
                stream.close(sock.late)
        except asyncio.CancelledError:
            serving.cancel()
            sock.wake(socket.SHUT_RDWR)
            raise
        finally:
            del self._sockets[stream.id]
            if stream.socket is not None:
                stream.socket.setblocking(False)  # both have that in common

    async def _serve_handle(self, serve: Serve, stream: IOStream, address: Any) -> None:
        handle = self._handle_of(stream, address)
        handle.settimeout(self.options.idle_timeout)
        serving = self._pool.call(serve, handle, address)
        serving.add_done_callback(lambda _: handle.close())
        try:
            with contextlib.suppress(StreamClosedError):
                await handle.ending()
            await serving
        except asyncio.CancelledError:
            serving.cancel()
            raise
