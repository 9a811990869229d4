"""A server in three arguments: where to listen, the port, and a function of the received data. ::

def echo(queue, data):
    queue.put(data)

QueueServer("localhost", 5000, echo).run()
"""

import asyncio
import contextlib
import inspect
import os
import queue
import signal
import threading
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any

from tornado.ioloop import IOLoop

from ..errors import OptionError, StreamBufferFullError, StreamClosedError, of_stream
from ..iostream import IOStream
from ..runtime.callables import takes
from ..runtime.cleanup import cancel_remaining_tasks
from ..runtime.loops import asyncio_loop
from ..runtime.rlimit import raise_limit
from ..runtime.signals import handle_signal, signals_restored
from ..tcpserver import TCPServer
from .outbox import Outbox, closed_error

__all__ = ["QueueServer", "SendQueue"]

MODES = {"localhost": "127.0.0.1", "public": "0.0.0.0"}

Callback = Callable[["SendQueue", bytes], object] | Callable[[Any, "SendQueue", bytes], object]


class SendQueue:
    """The send queue of one client, for any thread: like a `queue.Queue`, but only for putting. ::

        threading.Timer(5, queue.put, [b"five seconds later\\n"]).start()

    It is full when ``max_write_buffer_size`` bytes (default 1 MiB) are queued. An empty queue accepts one larger
    ``put``.

    :ivar address: the client's address.
    """

    def __init__(self, stream: IOStream, address: Any) -> None:
        self.address = address
        self._stream = stream
        self._loop_thread = threading.get_ident()
        self._process = os.getpid()
        self._room = threading.Condition()
        self._ended = False  # no more data is accepted
        self._outbox = Outbox(stream, partial(_call_soon, stream.io_loop), self._wake)

    def put(self, data: bytes | bytearray | memoryview, block: bool = True, timeout: float | None = None) -> None:
        """Send ``data`` after all earlier data. Waits while the queue is full, except in the callback, which would wait
        for itself.

        :param data: the bytes to send. They may be changed after the call.
        :param block: whether to wait.
        :param timeout: seconds to wait; None, the default: no limit.
        :raises queue.Full: there is no room.
        :raises StreamClosedError: the connection is closed, or belongs to the parent process of this forked child.
        :raises TypeError: ``data`` is not bytes-like.
        """
        data = memoryview(data).cast("B")
        if os.getpid() != self._process:  # where a thread of the parent process may hold the lock for ever
            raise closed_error(self._stream)
        in_loop = threading.get_ident() == self._loop_thread
        with self._room:
            if not self._room.wait_for(lambda: self._has_room(len(data)), timeout if block and not in_loop else 0):
                raise queue.Full
            if self._ended or self._stream.closed():
                raise closed_error(self._stream)
            (self._outbox.put_in_loop if in_loop else self._outbox.put)(data)

    def put_nowait(self, data: bytes | bytearray | memoryview) -> None:
        """Like :meth:`put`, without waiting."""
        self.put(data, block=False)

    def qsize(self) -> int:
        """The number of bytes that the kernel has not accepted yet."""
        return self._outbox.size

    def empty(self) -> bool:
        """Whether everything has been sent."""
        return not self._outbox.size

    def full(self) -> bool:
        """Whether a ``put`` of one more byte would have to wait."""
        return not self._has_room(1)

    async def drain(self, remaining: int) -> None:
        """For the server: wait until at most ``remaining`` bytes are queued."""
        await self._outbox.drain(remaining)

    async def end(self) -> None:
        """For the server: wait until all is sent, then accept no more data, and send what was put in between."""
        await self._outbox.drain()  # threads that answer may still put data meanwhile
        with self._room:
            self._ended = True
            self._room.notify_all()
        await self._outbox.drain()

    def _wake(self) -> None:
        with self._room:
            self._room.notify_all()

    def _has_room(self, count: int) -> bool:
        """Whether a ``put`` of ``count`` bytes need not wait. (On a closed connection it fails without waiting.)"""
        size, limit = self._outbox.size, self._stream.max_write_buffer_size
        return not size or limit is None or size + count <= limit or self._ended or self._stream.closed()


class QueueServer:
    """A server that calls ``callback(queue, data)`` when a client has sent data.

    The constructor binds the port and raises the limit of open descriptors as far as ``max_connections`` requires.
    `run` serves in the thread that calls it; `stop` may be called from any thread. While more than half of a client's
    queue is full, nothing is received from that client.

    :param mode: "localhost" for this machine only (127.0.0.1), "public" for all networks (0.0.0.0), or an IP address.
    :param port: the port; 0 for a free one, see :attr:`port`.
    :param callback: called with the client's `SendQueue` and the received bytes; if it takes three arguments, with the
        client's address before them. It must return quickly, because all clients wait for it. Leave long work to a
        thread, which may put its reply later. An exception closes that client's connection, and is logged.
    :param options: ``ssl_options``, ``max_connections`` and all other options of `TCPServer`; the default of
        ``drain_timeout`` is 1 s.
    :raises OptionError: an argument is invalid.
    :raises ListenError: the server cannot listen on the port.
    :ivar port: the port that the server listens on.
    """

    def __init__(self, mode: str, port: int, callback: Callback, **options: Any) -> None:
        if not isinstance(mode, str) or not mode:
            raise OptionError("mode", mode, 'must be "localhost", "public" or an address')
        with_address = _with_address(callback)
        self._io_loop = IOLoop(make_current=False)
        self._process = os.getpid()
        self._state = threading.RLock()  # a signal handler may call stop() from within run()
        self._stop_requested = asyncio.Event()
        self._stopping = False
        self._runner: threading.Thread | None = None
        self._ended = threading.Event()
        try:
            self._server = _Server(with_address, io_loop=self._io_loop, **options)
            raise_limit(self._server.options.max_connections)
            self._server.listen(port, MODES.get(mode, mode))
        except BaseException:
            self._io_loop.close()
            raise
        self.port: int = self.addresses[0][1]

    @property
    def addresses(self) -> list[Any]:
        """The addresses that the server listens on, as `socket.socket.getsockname` returns them."""
        return self._server.addresses

    def run(self) -> None:
        """Serve until :meth:`stop` is called; in the main thread, also until SIGINT (Ctrl-C) or SIGTERM, unless the
        process ignores that signal. Afterwards, signals are handled as before.

        :raises RuntimeError: the server was run before.
        """
        with self._state:
            if self._runner is not None:
                raise RuntimeError("the server was run already: make a new one")
            self._runner = threading.current_thread()
            if self._stopping:
                return
        loop = asyncio_loop(self._io_loop)
        in_main = threading.current_thread() is threading.main_thread()
        with signals_restored() if in_main else contextlib.nullcontext():
            try:
                loop.run_until_complete(self._serve())
            finally:
                loop.run_until_complete(self._close())
                self._io_loop.close()
                self._ended.set()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handle_signal(loop, number, self._stop_requested.set)  # until the loop is closed
        await self._stop_requested.wait()
        await self._server.shutdown()

    async def _close(self) -> None:
        """Close what is left, for example when the callback has raised SystemExit."""
        self._server.stop()
        await self._server.close_all_connections()
        for stream in self._server.streams:
            stream.abort()  # without a loop, it could not deliver its queued data
        await cancel_remaining_tasks()

    def stop(self) -> None:
        """End :meth:`run`, and wait until it has returned; in the callback, do not wait. Queued data is still sent, if
        the client accepts it within ``drain_timeout``. May be called repeatedly. In a forked child it does nothing: the
        server belongs to the parent process.
        """
        if os.getpid() != self._process:
            return
        with self._state:
            first, self._stopping = not self._stopping, True
            runner = self._runner
        if runner is None:
            if first:
                self._server.stop()
                self._io_loop.close()
                self._ended.set()
            return
        self._io_loop.add_callback(self._stop_requested.set)
        if runner is not threading.current_thread():
            self._ended.wait()


class _Server(TCPServer):
    """The `TCPServer` that a `QueueServer` runs in its loop."""

    drain_timeout = 1.0

    def __init__(self, callback: Callable[[Any, SendQueue, bytes], object], **options: Any) -> None:
        super().__init__(**options)
        self._callback = callback

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        sending = SendQueue(stream, address)
        stream.allow_half_open = True  # the client's EOF must not close the stream before the queue has been sent
        try:
            await self._serve(stream, address, sending)
        except StreamClosedError:
            if not stream.closed():
                await sending.end()
            raise

    async def _serve(self, stream: IOStream, address: Any, sending: SendQueue) -> None:
        half = (stream.max_write_buffer_size or 0) // 2
        while True:
            data = await stream.read_bytes(stream.read_chunk_size, partial=True)
            try:
                self._callback(address, sending, data)
            except queue.Full:
                full = StreamBufferFullError("the callback put more than the client's queue can hold", "write")
                raise of_stream(full, stream.id) from None
            if sending.qsize() > half:
                await sending.drain(half)


def _call_soon(io_loop: IOLoop, function: Callable[[], None]) -> None:
    """Have ``function`` called in the loop, in an empty context."""
    Context().run(io_loop.add_callback, function)


def _with_address(callback: Any) -> Callable[[Any, SendQueue, bytes], object]:
    """Return ``callback`` as a function of three arguments: (address, queue, data)."""
    if not callable(callback) or inspect.iscoroutinefunction(callback):
        raise OptionError("callback", callback, "must be a plain function of (queue, data) or (address, queue, data)")
    if takes(callback, 2):
        return lambda address, sending, data: callback(sending, data)
    if takes(callback, 3):
        return callback  # type: ignore[no-any-return]
    raise OptionError("callback", callback, "must take (queue, data) or (address, queue, data)")
