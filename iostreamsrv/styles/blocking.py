"""A server for threads: what they get looks like a socket, and waits with real timeouts.

The loop has a thread of its own, or is pumped by a main loop of the program's with `BlockingServer.process`. There are
three ways to use it:

- ``accept()`` gives a `Handle` for each client, to be used by any thread. Each call crosses over to the loop's thread
  and back.
- ``handle(sock, address)``, overridden, is called in a pool of threads, as by `socketserver`. Without TLS and a PROXY
  header it gets a real, blocking socket: nothing crosses over.
- ``notify(handle, notice)``, overridden or a keyword, is told of clients that come, send and go.
"""

import asyncio
import concurrent.futures
import errno
import functools
import os
import queue
import socket
import threading
from asyncio import Future
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Any, Self

from tornado.log import app_log

from ..errors import CloseReason, OptionError, StreamTimeoutError
from ..ioloop import IOLoop
from ..iostream import IOStream
from ..options import Full, check_count
from ..tcpserver import TCPServer
from .handles import Handle

__all__ = ["BlockingServer", "Notice"]

THREADS = 64
"""Clients that ``handle`` is called for at a time."""

STOP_TIMEOUT = 0.5
"""Seconds that clients have to receive what was sent to them when the server stops: threads that wait for them are to
return within a second."""


class Notice(StrEnum):
    """What ``notify`` is told of a client."""

    CONNECT = "connect"
    RECV = "recv"
    DISCONNECT = "disconnect"


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

    def __init__(
        self, *, threads: int = THREADS, notify: Callable[[Handle, Notice], None] | None = None, **options: Any
    ) -> None:
        if notify is not None:
            if not callable(notify):
                raise OptionError("notify", notify, "must be a function of (handle, notice)")
            self.notify = notify  # type: ignore[method-assign]
        self._io_loop = IOLoop(make_current=False)
        self._loop: asyncio.AbstractEventLoop = self._io_loop.asyncio_loop
        try:
            self._server = _Server(self, self._io_loop, options)
        except BaseException:
            self._io_loop.close()
            raise
        self._pool = ThreadPoolExecutor(check_count("threads", threads), thread_name_prefix="handle")
        self._notices: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._accepted: asyncio.Queue[Handle | None] = asyncio.Queue()
        self._thread: threading.Thread | None = None
        self._notifier: threading.Thread | None = None
        self._stopped = False

    # ---- what users override

    def handle(self, sock: Any, address: Any) -> None:
        """Serve one client, in a thread of the pool: to be overridden. When it returns the connection is closed in
        order; what it raises is logged.

        :param sock: a blocking `socket.socket`, or a `Handle` where there is TLS or a PROXY header.
        :param address: the client's address.
        """
        raise NotImplementedError

    def notify(self, handle: Handle, notice: Notice) -> None:
        """A client has come, sent something, or gone: may be overridden. It is called by one thread, for one notice
        after another, and may use the handle. What is not received when it is told of stays, and it is told again
        when there is more.
        """

    # ---- running

    def listen(self, port: int | str, address: str | None = None, **options: Any) -> None:
        """See `TCPServer.listen`."""
        self._ask(functools.partial(self._listen, port, address, options))

    async def _listen(self, port: int | str, address: str | None, options: dict[str, Any]) -> None:
        self._server.listen(port, address, **options)

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
        if self._stopped:
            raise RuntimeError("the server has been stopped: make a new one")
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop.run_forever, name="BlockingServer", daemon=True)
            self._thread.start()
            if _overridden(self, "notify"):
                self._notifier = threading.Thread(target=self._notify_all, name="notify", daemon=True)
                self._notifier.start()

    def process(self, timeout: float = 0) -> None:
        """Serve for a moment, in this thread: for a program with a main loop of its own, instead of :meth:`start`. ::

            while running:
                draw()
                server.process()

        :param timeout: seconds to wait for something to do.
        :raises RuntimeError: the server has a thread.
        """
        if self._thread is not None:
            raise RuntimeError("the server has a thread of its own: process() is for those that have not")
        self._loop.call_later(timeout, self._loop.stop)
        self._loop.run_forever()
        self._tell_all()

    def accept(self, timeout: float | None = None) -> Handle:
        """The next client.

        :param timeout: seconds; None waits, 0 does not.
        :raises TimeoutError: nobody came.
        :raises ConnectionAbortedError: the server was stopped, now or before.
        """
        handle: Handle | None = self._ask(functools.partial(self._next, timeout))
        if handle is None:
            raise _stopped()
        return handle

    async def _next(self, timeout: float | None) -> Handle | None:
        if timeout == 0 and self._accepted.empty():
            await asyncio.sleep(0)  # one turn, for whoever is in the kernel's queue
        try:
            async with asyncio.timeout(timeout):
                handle = await self._accepted.get()
        except TimeoutError:
            raise StreamTimeoutError("accept", timeout or 0, f"nobody came within {timeout:g} s") from None
        if handle is None:
            self._accepted.put_nowait(None)  # for the next thread
        return handle

    def stop(self) -> None:
        """Stop listening, close all connections in order, and return when threads that waited for one have been told.
        It may be repeated.
        """
        if self._stopped:
            return
        self._stopped = True
        if self._thread is None:
            self._pump(self._loop.create_task(self._end()))
        else:
            self._run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._notices.put(None)
        if self._notifier is not None and self._notifier is not threading.current_thread():
            self._notifier.join()
        self._pool.shutdown(wait=False)
        self._io_loop.close()

    def _pump(self, ending: "asyncio.Task[None]") -> None:
        """Run the loop to the end, and call ``notify`` in between, as :meth:`process` does."""
        while not ending.done():
            self._loop.run_until_complete(asyncio.wait([ending], timeout=0.01))
            self._tell_all()

    async def _end(self) -> None:
        self._accepted.put_nowait(None)
        await self._server.end()

    # ---- between threads

    def _ask(self, coroutine: Callable[[], Any]) -> Any:
        """What a coroutine gives that the loop runs."""
        if self._stopped:
            raise _stopped()
        return self._run(coroutine())

    def _run(self, coroutine: Any) -> Any:
        if self._thread is None:
            return self._loop.run_until_complete(coroutine)
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("this is the thread of the server's loop, which cannot wait for itself")
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
        except concurrent.futures.CancelledError:
            raise _stopped() from None

    def _call_soon(self, function: Callable[[], object]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def _notify_all(self) -> None:
        while (tell := self._notices.get()) is not None:
            tell()

    def _tell_all(self) -> None:
        """Without a thread for it: tell of what is to be told of by now."""
        while not self._notices.empty():
            if (tell := self._notices.get()) is not None:
                tell()

    async def _tell(self, handle: Handle, notice: Notice) -> None:
        """Have ``notify`` called, and wait for its end."""
        told = self._loop.create_future()

        def tell() -> None:
            try:
                self.notify(handle, notice)
            except Exception:
                app_log.error("Exception in callback notify for %s", handle, exc_info=True)
                handle.close()
            finally:
                self._call_soon(functools.partial(_set_done, told))

        self._notices.put(tell)
        await told


class _Server(TCPServer):
    """What a `BlockingServer` is for its loop."""

    when_full: Full = "reject"

    def __init__(self, outer: BlockingServer, io_loop: IOLoop, options: dict[str, Any]) -> None:
        super().__init__(io_loop=io_loop, **options)
        self._outer = outer
        self._handles: dict[int, Handle] = {}
        self._sockets: dict[int, socket.socket] = {}

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        if _overridden(self._outer, "handle"):
            return await self._serve_in_pool(stream, address)
        handle = self._handles[stream.id] = Handle(self._outer, stream, address)
        notifies = _overridden(self._outer, "notify")
        if notifies:
            await self._outer._tell(handle, Notice.CONNECT)
        if not handle._closed:
            self._outer._accepted.put_nowait(handle)
        if notifies:
            await self._notify_of_data(handle)
        await handle._released.wait()
        await stream.aclose()  # also if another thread is receiving

    async def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        sock = self._sockets.pop(stream.id, None)
        if sock is not None:
            _wake(sock)
        handle = self._handles.pop(stream.id, None)
        if handle is not None and _overridden(self._outer, "notify"):
            await self._outer._tell(handle, Notice.DISCONNECT)

    async def _notify_of_data(self, handle: Handle) -> None:
        stream, seen = handle.stream, 0
        while not handle._released.is_set():
            await handle._unused.wait()
            handle._peek = peek = stream.read_until_match(functools.partial(_more_than, seen))
            released = asyncio.ensure_future(handle._released.wait())
            await asyncio.wait([peek, released], return_when=asyncio.FIRST_COMPLETED)
            released.cancel()
            handle._peek = None
            if not peek.done():
                peek.cancel()
            elif not peek.cancelled():
                if peek.exception() is not None:
                    return
                await self._outer._tell(handle, Notice.RECV)
            seen = stream.buffered

    # ---- the pool

    async def _serve_in_pool(self, stream: IOStream, address: Any) -> None:
        work = self._with_socket if type(stream) is IOStream and not stream.buffered else self._with_handle
        stream.set_timeouts(idle=None)  # what comes and goes is not seen from here
        serving = asyncio.get_running_loop().run_in_executor(self._outer._pool, work, stream, address)
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            if stream.id in self._sockets:
                _wake(self._sockets[stream.id])
            await serving
            raise
        finally:
            self._sockets.pop(stream.id, None)
            if stream.socket is not None:
                stream.socket.setblocking(False)

    def _with_socket(self, stream: IOStream, address: Any) -> None:
        """In a thread: call ``handle`` with a socket of its own on the stream's connection, of which the stream knows
        nothing meanwhile. (One that nobody reads from is not registered with any epoll.)"""
        number = stream.fileno()
        if number < 0:
            return
        with socket.socket(fileno=os.dup(number)) as sock:
            self._sockets[stream.id] = sock
            sock.settimeout(self.options.idle_timeout)
            self._call_handle(sock, address)

    def _with_handle(self, stream: IOStream, address: Any) -> None:
        with Handle(self._outer, stream, address) as handle:
            handle.settimeout(self.options.idle_timeout)
            self._call_handle(handle, address)

    def _call_handle(self, sock: Any, address: Any) -> None:
        try:
            self._outer.handle(sock, address)
        except (ConnectionError, TimeoutError):
            pass  # what the client did

    async def end(self) -> None:
        """Close all connections in order, as far as that goes quickly."""
        self.stop()
        for handle in list(self._handles.values()):
            handle._closed = True
            handle._released.set()
        for sock in list(self._sockets.values()):
            _wake(sock)
        await self.shutdown(timeout=STOP_TIMEOUT)


def _overridden(server: BlockingServer, name: str) -> bool:
    return getattr(getattr(server, name), "__func__", None) is not getattr(BlockingServer, name)


def _more_than(seen: int, buffer: bytearray) -> tuple[int, None] | None:
    return (0, None) if len(buffer) > seen else None


def _set_done(future: "Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _wake(sock: socket.socket) -> None:
    """Have a thread that waits for ``sock`` see its end."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended already


def _stopped() -> ConnectionAbortedError:
    return ConnectionAbortedError(errno.ECONNABORTED, "the server was stopped")
