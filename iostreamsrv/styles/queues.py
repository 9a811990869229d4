"""A server in three arguments: where, which port, and what to do with what comes. ::

def echo(queue, data):
    queue.put(data)

QueueServer("localhost", 5000, echo).run()
"""

import contextlib
import inspect
import queue
import threading
from collections.abc import Callable
from typing import Any

from ..descriptors import raise_limit
from ..errors import OptionError, StreamBufferFullError, StreamClosedError
from ..ioloop import IOLoop
from ..iostream import IOStream
from ..tcpserver import TCPServer

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
        self._room = threading.Condition()
        self._size = 0  # bytes that were put, and that the kernel has not taken

    def put(self, data: bytes | bytearray | memoryview, block: bool = True, timeout: float | None = None) -> None:
        """Have ``data`` sent, after all that was put before. A full queue is waited for, but not in the callback, which
        would wait for itself.

        :param block: whether to wait.
        :param timeout: seconds to wait; None for as long as it takes.
        :raises queue.Full: there is no room.
        :raises StreamClosedError: the client is gone.
        :raises TypeError: ``data`` is not bytes.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"can only put bytes, not {type(data).__name__}")
        data = bytes(data)
        in_loop = threading.get_ident() == self._loop_thread
        with self._room:
            may_wait = block and not in_loop
            if not self._room.wait_for(lambda: self._has_room(len(data)), timeout if may_wait else 0):
                raise queue.Full
            if self._stream.closed():
                raise StreamClosedError(self._stream.error, "write", self._stream.close_reason)
            self._size += len(data)
        if in_loop:
            self._write(data)
        else:
            self._stream.io_loop.add_callback(self._write, data)

    def put_nowait(self, data: bytes | bytearray | memoryview) -> None:
        """:meth:`put` without waiting."""
        self.put(data, block=False)

    def qsize(self) -> int:
        """Bytes that wait."""
        return self._size

    def empty(self) -> bool:
        """Whether all has been sent."""
        return not self._size

    def full(self) -> bool:
        """Whether a byte more would have to wait."""
        return not self._has_room(1)

    def _has_room(self, count: int) -> bool:
        limit = self._stream.max_write_buffer_size
        return not self._size or limit is None or self._size + count <= limit or self._stream.closed()

    def _write(self, data: bytes) -> None:
        try:
            future = self._stream.write(data)
        except (StreamClosedError, StreamBufferFullError):
            self._taken(len(data))
        else:
            future.add_done_callback(lambda _: self._taken(len(data)))

    def _taken(self, count: int) -> None:
        with self._room:
            self._size -= count
            self._room.notify_all()

    def _wake(self) -> None:
        """The client is gone; so nobody need wait."""
        with self._room:
            self._room.notify_all()


class QueueServer:
    """A server that calls ``callback(queue, data)`` whenever a client has sent something.

    It is bound when it is made. `run` serves, in whichever thread calls it; `stop` ends that, from any.

    :param mode: "localhost" for this machine only (127.0.0.1), "public" for everybody (0.0.0.0), or an address.
    :param port: 0 for a free one; see :attr:`port`.
    :param callback: called with the client's `SendQueue` and the bytes that have come; if it takes three arguments,
        with the client's address before these. What it raises closes that client's connection, and is logged.
    :param options: ``ssl_options``, ``max_connections`` and all others of `TCPServer`.
    :raises OptionError: an argument that cannot be.
    :raises ListenError: the port cannot be bound.
    """

    def __init__(self, mode: str, port: int, callback: Callback, **options: Any) -> None:
        if not callable(callback):
            raise OptionError("callback", callback, "must be a function of (queue, data) or (address, queue, data)")
        self._io_loop = IOLoop(make_current=False)
        self._server = _Server(_with_address(callback), io_loop=self._io_loop, **options)
        self._state = threading.Lock()
        self._stopping = False
        self._running = False
        try:
            self._server.listen(port, MODES.get(mode, mode))
        except BaseException:
            self._io_loop.close()
            raise
        self.port: int = self._server.addresses[0][1]

    def run(self) -> None:
        """Serve until :meth:`stop` is called.

        :raises RuntimeError: it has been run before.
        """
        with self._state:
            if self._running:
                raise RuntimeError("the server was run already: make a new one")
            self._running = True
            if self._stopping:
                return
        raise_limit(self._server.options.max_connections)
        try:
            self._io_loop.run_sync(self._server.serve_forever)
        finally:
            self._io_loop.close()

    def stop(self) -> None:
        """Have :meth:`run` return: what was put is still sent, as far as the clients take it at once. It may be
        repeated, and called from any thread, the callback included.
        """
        with self._state:
            if self._stopping:
                return
            self._stopping = True
            running, self._running = self._running, True
        if running:
            self._io_loop.add_callback(self._end)
        else:
            self._server.stop()
            self._io_loop.close()

    async def _end(self) -> None:
        await self._server.shutdown()


class _Server(TCPServer):
    """What a `QueueServer` is for its loop."""

    def __init__(self, callback: Callable[[Any, SendQueue, bytes], object], **options: Any) -> None:
        super().__init__(**options)
        self._callback = callback

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        sending = SendQueue(stream, address)
        stream.data["queue"] = sending
        while True:
            try:
                data = await stream.read_bytes(stream.read_chunk_size, partial=True)
            except StreamClosedError:
                return
            self._callback(address, sending, data)

    def handle_close(self, stream: IOStream, reason: Any) -> None:
        stream.data["queue"]._wake()


def _with_address(callback: Any) -> Callable[[Any, SendQueue, bytes], object]:
    """``callback`` as a function of three arguments, whichever it is."""
    for arguments in ((None, None, None), (None, None)):
        with contextlib.suppress(TypeError, ValueError):
            inspect.signature(callback).bind(*arguments)
            return callback if len(arguments) == 3 else lambda address, sending, data: callback(sending, data)
    raise OptionError("callback", callback, "must take (queue, data) or (address, queue, data)")
