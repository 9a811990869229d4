"""A server in three arguments: where, which port, and what to do with what comes. ::

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
    """What is to be sent to one client, for any thread, as a `queue.Queue` that only takes. ::

        threading.Timer(5, queue.put, [b"five seconds later\\n"]).start()

    It is full when ``max_write_buffer_size`` bytes (1 MiB) wait; one larger ``put`` into an empty queue is taken.

    :ivar address: the client's.
    """

    def __init__(self, stream: IOStream, address: Any) -> None:
        self.address = address
        self._stream = stream
        self._loop_thread = threading.get_ident()
        self._process = os.getpid()
        self._room = threading.Condition()
        self._ended = False  # nothing more is taken
        self._outbox = Outbox(stream, partial(_post, stream.io_loop), self._wake)

    def put(self, data: bytes | bytearray | memoryview, block: bool = True, timeout: float | None = None) -> None:
        """Have ``data`` sent, after all that was put before. A full queue is waited for, but not in the callback, which
        would wait for itself.

        :param block: whether to wait.
        :param timeout: seconds to wait; None for as long as it takes.
        :raises queue.Full: there is no room.
        :raises StreamClosedError: the client is gone, or this is a forked child: the client is its parent's.
        :raises TypeError: ``data`` is not bytes.
        """
        data = memoryview(data).cast("B")
        if os.getpid() != self._process:  # a thread of the parent's may have the lock
            raise closed_error(self._stream)
        in_loop = threading.get_ident() == self._loop_thread
        with self._room:
            if not self._room.wait_for(lambda: self._takes(len(data)), timeout if block and not in_loop else 0):
                raise queue.Full
            if self._ended or self._stream.closed():
                raise closed_error(self._stream)
            (self._outbox.put_in_loop if in_loop else self._outbox.put)(data)

    def put_nowait(self, data: bytes | bytearray | memoryview) -> None:
        """:meth:`put` without waiting."""
        self.put(data, block=False)

    def qsize(self) -> int:
        """Bytes that wait."""
        return self._outbox.size

    def empty(self) -> bool:
        """Whether all has been sent."""
        return not self._outbox.size

    def full(self) -> bool:
        """Whether a byte more would have to wait."""
        return not self._takes(1)

    async def drain(self, remaining: int) -> None:
        """For the server: return when no more than so many bytes wait."""
        await self._outbox.drain(remaining)

    async def end(self) -> None:
        """For the server: refuse what is put from now on, and return when all that was taken has been sent."""
        await self._outbox.drain()  # while who answers may still put more
        with self._room:
            self._ended = True
            self._room.notify_all()
        await self._outbox.drain()

    def _wake(self) -> None:
        with self._room:
            self._room.notify_all()

    def _takes(self, count: int) -> bool:
        """Whether so many bytes need not wait. (Those of a client who is gone are refused, without waiting.)"""
        size, limit = self._outbox.size, self._stream.max_write_buffer_size
        return not size or limit is None or size + count <= limit or self._ended or self._stream.closed()


class QueueServer:
    """A server that calls ``callback(queue, data)`` whenever a client has sent something.

    It is bound when it is made, and the limit of open descriptors raised to what ``max_connections`` asks for. `run`
    serves, in whichever thread calls it; `stop` ends that, from any. While a client does not take what was put, and
    half of its queue is full, nothing more is received from it.

    :param mode: "localhost" for this machine only (127.0.0.1), "public" for everybody (0.0.0.0), or an address.
    :param port: 0 for a free one; see :attr:`port`.
    :param callback: called with the client's `SendQueue` and the bytes that have come; if it takes three arguments,
        with the client's address before these. It must be short, as all clients wait for it: what takes time is for a
        thread, which may put later. What it raises closes that client's connection, and is logged.
    :param options: ``ssl_options``, ``max_connections`` and all others of `TCPServer`; ``drain_timeout`` is 1 s.
    :raises OptionError: an argument that cannot be.
    :raises ListenError: the port cannot be bound.
    """

    def __init__(self, mode: str, port: int, callback: Callback, **options: Any) -> None:
        if not isinstance(mode, str) or not mode:
            raise OptionError("mode", mode, 'must be "localhost", "public" or an address')
        with_address = _with_address(callback)
        self._io_loop = IOLoop(make_current=False)
        self._process = os.getpid()
        self._state = threading.RLock()  # a signal handler may call stop() from within run()
        self._told = asyncio.Event()  # to stop
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
        """What is bound, as `socket.socket.getsockname` gives it."""
        return self._server.addresses

    def run(self) -> None:
        """Serve until :meth:`stop` is called; in the main thread, also until SIGINT (Ctrl-C) or SIGTERM comes, unless
        that is ignored. Afterwards signals are handled as before.

        :raises RuntimeError: it has been run before.
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
                handle_signal(loop, number, self._told.set)  # until the loop is closed
        await self._told.wait()
        await self._server.shutdown()

    async def _close(self) -> None:
        """Whatever is left, as when the callback has raised SystemExit."""
        self._server.stop()
        await self._server.close_all_connections()
        for stream in self._server.streams:
            stream.abort()  # what it owes its client it cannot deliver without a loop
        await cancel_remaining_tasks()

    def stop(self) -> None:
        """Have :meth:`run` return, and wait until it has, but in its own thread: the callback's. What was put is still
        sent, as far as clients take it within ``drain_timeout``. It may be repeated. In a forked child it does nothing:
        the server is the parent's.
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
        self._io_loop.add_callback(self._told.set)
        if runner is not threading.current_thread():
            self._ended.wait()


class _Server(TCPServer):
    """What a `QueueServer` is for its loop."""

    drain_timeout = 1.0

    def __init__(self, callback: Callable[[Any, SendQueue, bytes], object], **options: Any) -> None:
        super().__init__(**options)
        self._callback = callback

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        sending = SendQueue(stream, address)
        stream.allow_half_open = True  # its end must not close the stream before all that was put has been sent
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
                full = StreamBufferFullError("the callback put more than the client's queue takes", "write")
                raise of_stream(full, stream.id) from None
            if sending.qsize() > half:
                await sending.drain(half)


def _post(io_loop: IOLoop, function: Callable[[], None]) -> None:
    """Have ``function`` called in the loop, with nobody's context variables."""
    Context().run(io_loop.add_callback, function)


def _with_address(callback: Any) -> Callable[[Any, SendQueue, bytes], object]:
    """``callback`` as a function of three arguments, whichever it is."""
    if not callable(callback) or inspect.iscoroutinefunction(callback):
        raise OptionError("callback", callback, "must be a plain function of (queue, data) or (address, queue, data)")
    if takes(callback, 2):
        return lambda address, sending, data: callback(sending, data)
    if takes(callback, 3):
        return callback  # type: ignore[no-any-return]
    raise OptionError("callback", callback, "must take (queue, data) or (address, queue, data)")
