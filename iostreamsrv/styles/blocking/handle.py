"""A client as threads see it: an object with the methods of a socket, above a stream that belongs to the loop."""

import asyncio
import contextlib
import contextvars
import errno
import functools
import io
import os
import threading
from asyncio import Future
from collections.abc import Coroutine
from types import EllipsisType
from typing import Any, Self

from ...errors import CloseReason, OptionError, StreamClosedError, StreamTimeoutError, of_stream
from ...iostream import IOStream
from ...options import check_timeout
from ..outbox import Outbox, closed_error
from .loop_thread import LoopThread, stopped_error

__all__ = ["Handle", "SendTimeoutError"]

CHUNK = 65536
"""Most bytes that ``sendall`` leaves on their way to the kernel when it returns."""

SETTLE_TURNS = 3
"""Turns of the loop after which everything that had arrived before has been dispatched."""

Timeout = float | EllipsisType | None


class SendTimeoutError(StreamTimeoutError):
    """The timeout of a ``sendall()`` passed.

    :ivar sent: number of bytes that have been sent or are on their way. To continue without sending any byte twice,
        start from there.
    """

    def __init__(self, seconds: float, sent: int, size: int) -> None:
        super().__init__("write", seconds, f"not sent within {seconds:g} s: {sent} of {size} bytes were")
        self.sent = sent


class Handle:
    """A client's connection with the methods of a `socket.socket`, for any thread. ::

        with server.accept() as client:
            client.settimeout(10)
            client.sendall(client.recv(1024))

    Like a socket, it is closed when no reference to it is left, and it can still send after the client has closed its
    side. With a ``notify``, however, the handle is closed when the client closes its side.

    One thread may receive while others send; sends are done one after another. A ``timeout`` is in seconds: None waits
    as long as necessary, 0 does not wait. Without the argument, the timeout of :meth:`settimeout` applies, which is
    None at first.

    :ivar stream: the `IOStream` of the connection. Use it in the loop's thread only.
    :ivar address: the client's address.
    :ivar context: the `contextvars` context in which ``notify`` is called for this client.
    """

    def __init__(self, loop_thread: LoopThread, stream: IOStream, address: Any) -> None:
        self.stream = stream
        self.address = address
        self.context = contextvars.copy_context()
        self._local_address = stream.local_address
        self._loop_thread = loop_thread
        self._timeout: float | None = None
        self._outbox = Outbox(stream, loop_thread.call_soon)
        self._sending = threading.Lock()
        self.closed = False
        self.released = asyncio.Event()
        self._peek: Future[None] | None = None  # wait_readable()'s read, which consumes nothing
        self._received: asyncio.Event | None = None  # set when a recv() has ended; None where nothing waits for that

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self._loop_thread.call_soon(self.released.set)

    def __repr__(self) -> str:
        return f"<Handle of {self.stream!r}>"

    def settimeout(self, timeout: float | None) -> None:
        """Set the timeout of all calls without a ``timeout`` argument.

        :param timeout: seconds; None waits as long as necessary, 0 does not wait.
        :raises OptionError: ``timeout`` is not a number of 0 or more.
        """
        self._timeout = check_wait(timeout)

    def gettimeout(self) -> float | None:
        """The timeout in seconds of all calls without a ``timeout`` argument; None: no limit."""
        return self._timeout

    def _seconds(self, timeout: Timeout) -> float | None:
        if self.closed:
            raise OSError(errno.EBADF, "the handle is closed")
        return self._timeout if isinstance(timeout, EllipsisType) else check_wait(timeout)

    def getpeername(self) -> Any:
        """The client's address."""
        return self.address

    def getsockname(self) -> Any:
        """The address that the client connected to."""
        return self._local_address

    # ---- receiving

    def recv(self, size: int, timeout: Timeout = ...) -> bytes:
        """Receive up to ``size`` bytes; wait until there is at least one. b"" means EOF: the client has closed its
        side, but may still wait for a reply.

        :param size: the most bytes to return.
        :param timeout: seconds; see the class.
        :raises TimeoutError: no data arrived in time. The connection is unchanged.
        :raises ConnectionResetError: the client, or its host, broke the connection.
        :raises ConnectionAbortedError: this side closed the connection: the server was stopped, or a limit reached.
        :raises ConcurrentReadError: another thread is receiving.
        :raises OSError: the handle is closed.
        """
        seconds = self._seconds(timeout)
        try:
            return self._loop_thread.call(functools.partial(self._receive, size, seconds))  # type: ignore[no-any-return]
        except StreamClosedError as error:
            if error.reason in (CloseReason.EOF, CloseReason.TRUNCATED):
                return b""
            raise _os_error(error) from None

    def _receive(self, size: int, seconds: float | None) -> "Future[bytes]":
        if self._peek is not None:
            self._peek.cancel()
        reading = self.stream.read_bytes(size, partial=True, timeout=seconds or None)
        if self._received is not None:
            reading.add_done_callback(lambda _: self._mark_received())
        return reading if seconds != 0 or reading.done() else asyncio.ensure_future(self._without_waiting(reading))

    async def _without_waiting(self, reading: "Future[bytes]") -> bytes:
        """The result of ``reading``, if what has arrived already suffices."""
        try:
            for _ in range(SETTLE_TURNS):
                await asyncio.sleep(0)
                if reading.done():
                    return reading.result()
        finally:
            reading.cancel()
        raise of_stream(StreamTimeoutError("read", 0), self.stream.id)

    def _mark_received(self) -> None:
        if self._received is not None:
            self._received.set()

    def recv_into(self, buffer: bytearray | memoryview, size: int = 0, timeout: Timeout = ...) -> int:
        """Like :meth:`recv`, but into ``buffer``.

        :param buffer: a writable buffer.
        :param size: the most bytes to receive; 0, the default, is the buffer's length.
        :param timeout: seconds; see the class.
        :returns: the number of bytes received; 0 means EOF.
        :raises OptionError: ``buffer`` is read-only, or smaller than ``size``.
        """
        with memoryview(buffer) as view, view.cast("B") as target:
            if target.readonly:
                raise OptionError("buffer", buffer, "is read-only")
            if size > len(target):
                raise OptionError("size", size, f"is more than the buffer's {len(target)} bytes")
            data = self.recv(size or len(target), timeout)
            target[: len(data)] = data
            return len(data)

    # ---- sending

    def sendall(self, data: bytes | bytearray | memoryview, timeout: Timeout = ...) -> None:
        """Send ``data``. Returns when the kernel has accepted it, or when at most 64 KiB are still on their way there.
        These are not lost: :meth:`close` sends them first. If the client has gone, only the next call may report it.

        :param data: the bytes to send. They may be changed after the call.
        :param timeout: seconds for all of it; see the class.
        :raises SendTimeoutError: the timeout passed; its ``sent`` is the number of bytes that were sent.
        :raises ConnectionResetError: as in :meth:`recv`, also the other connection errors.
        :raises TypeError: ``data`` is not bytes-like.
        """
        seconds = self._seconds(timeout)
        content = memoryview(data).cast("B")
        if self._loop_thread.in_forked_child:  # where a thread of the parent process may hold the lock for ever
            raise stopped_error()
        if not self._sending.acquire(timeout=-1 if seconds is None else seconds):
            raise of_stream(SendTimeoutError(seconds or 0, 0, len(content)), self.stream.id)
        try:
            if not self._put(content):
                self._loop_thread.run(functools.partial(self._send, content, seconds))
        except StreamClosedError as error:
            raise _os_error(error) from None
        finally:
            self._sending.release()
            with contextlib.suppress(BufferError):  # after Ctrl-C the loop may still be sending it
                content.release()  # a traceback would keep the view, and the caller could not resize its bytearray

    def _put(self, data: memoryview) -> bool:
        """Queue ``data`` without waiting; return False if there is no room."""
        if self._loop_thread.closed:
            raise stopped_error()
        if self.stream.closed():
            raise closed_error(self.stream)
        if self._outbox.size + len(data) > CHUNK:
            return False
        self._outbox.put(data)
        return True

    async def _send(self, data: memoryview, seconds: float | None) -> None:
        sent = 0
        try:
            async with asyncio.timeout(seconds):
                await self._outbox.drain()
                while sent < len(data):
                    with data[sent : sent + CHUNK] as chunk:
                        sent += len(chunk)
                        await self.stream.write(chunk)
        except TimeoutError:
            raise of_stream(SendTimeoutError(seconds or 0, sent, len(data)), self.stream.id) from None

    def makefile(self, mode: str = "r", buffering: int | None = None, **options: Any) -> Any:
        """A file object that reads from the client, writes to it, or both; see `socket.socket.makefile`. Flush it
        before you close the handle.

        :param mode: "r", "w" or "rw", optionally with "b".
        :param buffering: size of the buffer in bytes; None or -1: Python's default; 0: none, only in binary mode.
        :param options: ``encoding``, ``errors`` and ``newline``, as `io.TextIOWrapper` takes them.
        :raises OptionError: ``mode`` or ``buffering`` is invalid.
        """
        text, kind = "b" not in mode, mode.replace("b", "")
        if kind not in ("r", "w", "rw"):
            raise OptionError("mode", mode, "must be r, w or rw, optionally with b")
        raw, size = _Raw(self, kind), io.DEFAULT_BUFFER_SIZE if buffering in (None, -1) else int(buffering or 0)
        if not size:
            if text:
                raise OptionError("buffering", buffering, "must not be 0 in text mode")
            return raw
        if kind == "r":
            file: Any = io.BufferedReader(raw, size)
        else:
            file = io.BufferedWriter(raw, size) if kind == "w" else io.BufferedRWPair(raw, raw, size)
        return io.TextIOWrapper(file, **options) if text else file

    def close(self) -> None:
        """Close the connection gracefully: the client receives everything that was sent, then EOF. Returns at once. May
        be called repeatedly."""
        if not self.closed:
            self.closed = True
            self._loop_thread.call_soon(self.release)

    # ---- for the server, in the loop

    def release(self) -> None:
        """End all waits: the connection is to be closed, or is closed already."""
        self.released.set()
        self._mark_received()
        if self._peek is not None:
            self._peek.cancel()

    def close_when_released(self) -> Coroutine[Any, Any, None]:
        """A coroutine that waits until the handle is released or has no reference left, then closes the connection
        gracefully, also while a thread is receiving. The coroutine has no reference to the handle."""
        return _close_when_released(self.released, self._outbox, self.stream)

    async def wait_readable(self, seen: int) -> bool:
        """Wait until more than ``seen`` bytes can be received; False if a thread has received meanwhile.

        :raises StreamClosedError: there will be no more.
        """
        if self._received is None:
            self._received = asyncio.Event()
        while self.stream.reading() and not self.released.is_set():
            self._received.clear()
            await self._received.wait()
        if self.released.is_set():
            return False
        self._peek = peek = self.stream.read_until_match(functools.partial(_more_than, seen))
        try:
            await asyncio.wait([peek])
        finally:
            self._peek = None
            peek.cancel()
        return not peek.cancelled() and peek.result() is None

    async def wait_for_recv(self, seconds: float) -> None:
        """Wait until a thread has received, or for ``seconds``."""
        received = self._received = asyncio.Event()
        if not self.released.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await received.wait()


async def _close_when_released(released: asyncio.Event, outbox: Outbox, stream: IOStream) -> None:
    await released.wait()
    await outbox.drain()
    await stream.aclose()


class _Raw(io.RawIOBase):
    """An unbuffered file over a handle."""

    def __init__(self, handle: Handle, kind: str) -> None:
        super().__init__()
        self._handle = handle
        self._kind = kind

    def readable(self) -> bool:
        return "r" in self._kind

    def writable(self) -> bool:
        return "w" in self._kind

    def readinto(self, buffer: Any) -> int:
        return self._handle.recv_into(buffer)

    def write(self, data: Any) -> int:
        self._handle.sendall(data)
        return len(data)


def check_wait(timeout: float | None) -> float | None:
    """Check the timeout of a thread's call.

    :raises OptionError: it is neither None nor a number of 0 or more.
    """
    return timeout if timeout is None or timeout == 0 else check_timeout("timeout", timeout)


def _more_than(seen: int, buffer: bytearray) -> tuple[int, None] | None:
    return (0, None) if len(buffer) > seen else None


def _os_error(error: StreamClosedError) -> OSError:
    """The error that a socket would raise in place of ``error``."""
    same: OSError
    if (error.reason is not None and error.reason.by_peer) or isinstance(error.real_error, ConnectionResetError):
        number = error.errno or errno.ECONNRESET
        same = ConnectionResetError(number, os.strerror(number))
    else:
        same = ConnectionAbortedError(errno.ECONNABORTED, str(error))
    assert error.stream_id is not None
    return of_stream(same, error.stream_id)
