"""What a thread has of a client: the look of a socket, and a stream of the loop's behind it."""

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

from ..errors import CloseReason, OptionError, StreamClosedError, StreamTimeoutError, of_stream
from ..iostream import IOStream
from ..options import check_timeout
from .crossing import Crossing, stopped
from .outbox import Outbox, closed_error

__all__ = ["Handle", "SendTimeoutError"]

CHUNK = 65536
"""Most bytes that are on their way from a thread to the kernel."""

TURNS = 3
"""Of the loop, after which everything that had arrived has been dispatched."""

Timeout = float | EllipsisType | None


class SendTimeoutError(StreamTimeoutError):
    """The timeout of a ``sendall()`` passed.

    :ivar sent: bytes that have been sent, or are on their way. Whoever goes on from there sends nothing twice.
    """

    def __init__(self, seconds: float, sent: int, size: int) -> None:
        super().__init__("write", seconds, f"not sent within {seconds:g} s: {sent} of {size} bytes were")
        self.sent = sent


class Handle:
    """A client, for a thread: it has the methods of a `socket.socket`. ::

        with server.accept() as client:
            client.settimeout(10)
            client.sendall(client.recv(1024))

    Like a socket it is closed when nobody has it any more, and when its client has ended its side it can still be sent
    to. But where there is a ``notify`` the client's end is that of the handle.

    One thread may receive while others send, one after another. A ``timeout`` is in seconds; None waits as long
    as it takes, 0 does not wait. Where it is not given the one of :meth:`settimeout` holds, at first None.

    :ivar stream: the `IOStream` below, for the loop's thread.
    :ivar address: the client's address.
    :ivar context: what ``notify`` is called in, for this client.
    """

    def __init__(self, crossing: Crossing, stream: IOStream, address: Any) -> None:
        self.stream = stream
        self.address = address
        self.context = contextvars.copy_context()
        self._local_address = stream.local_address
        self._crossing = crossing
        self._timeout: float | None = None
        self._outbox = Outbox(stream, crossing.post)
        self._sending = threading.Lock()
        self.closed = False
        self.released = asyncio.Event()
        self._peek: Future[None] | None = None  # waits until there is something to be told of
        self._received: asyncio.Event | None = None  # where it matters: set when a recv() has ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self._crossing.post(self.released.set)

    def __repr__(self) -> str:
        return f"<Handle of {self.stream!r}>"

    def settimeout(self, timeout: float | None) -> None:
        """The timeout of all calls that are given none.

        :raises OptionError: not a number of seconds, 0 or more.
        """
        self._timeout = check_wait(timeout)

    def gettimeout(self) -> float | None:
        """The timeout of all calls that are given none."""
        return self._timeout

    def _seconds(self, timeout: Timeout) -> float | None:
        if self.closed:
            raise OSError(errno.EBADF, "the handle is closed")
        return self._timeout if isinstance(timeout, EllipsisType) else check_wait(timeout)

    def getpeername(self) -> Any:
        """The client's address."""
        return self.address

    def getsockname(self) -> Any:
        """The address it came to."""
        return self._local_address

    # ---- receiving

    def recv(self, size: int, timeout: Timeout = ...) -> bytes:
        """What there is, up to ``size`` bytes; b"" when the client has ended its side: it may still wait for an
        answer.

        :raises TimeoutError: nothing came in time. The connection is as it was.
        :raises ConnectionResetError: the client, or its host, broke the connection.
        :raises ConnectionAbortedError: this side ended it: the server was stopped, or a limit reached.
        :raises ConcurrentReadError: another thread is receiving.
        :raises OSError: the handle is closed.
        """
        seconds = self._seconds(timeout)
        try:
            return self._crossing.ask(functools.partial(self._receive, size, seconds))  # type: ignore[no-any-return]
        except StreamClosedError as error:
            if error.reason in (CloseReason.EOF, CloseReason.TRUNCATED):
                return b""
            raise _os_error(error) from None

    def _receive(self, size: int, seconds: float | None) -> "Future[bytes]":
        if self._peek is not None:
            self._peek.cancel()
        reading = self.stream.read_bytes(size, partial=True, timeout=seconds or None)
        if self._received is not None:
            reading.add_done_callback(lambda _: self._tell_of_use())
        return reading if seconds != 0 or reading.done() else asyncio.ensure_future(self._arrived(reading))

    async def _arrived(self, reading: "Future[bytes]") -> bytes:
        """What ``reading`` gives, if it can do so at once."""
        try:
            for _ in range(TURNS):
                await asyncio.sleep(0)
                if reading.done():
                    return reading.result()
        finally:
            reading.cancel()
        raise of_stream(StreamTimeoutError("read", 0), self.stream.id)

    def _tell_of_use(self) -> None:
        if self._received is not None:
            self._received.set()

    def recv_into(self, buffer: bytearray | memoryview, size: int = 0, timeout: Timeout = ...) -> int:
        """:meth:`recv` into ``buffer``, up to ``size`` bytes, or as many as it has; how many.

        :raises OptionError: ``buffer`` cannot be written to, or is smaller than ``size``.
        """
        with memoryview(buffer) as view, view.cast("B") as target:
            if target.readonly:
                raise OptionError("buffer", buffer, "cannot be written to")
            if size > len(target):
                raise OptionError("size", size, f"is more than the buffer's {len(target)} bytes")
            data = self.recv(size or len(target), timeout)
            target[: len(data)] = data
            return len(data)

    # ---- sending

    def sendall(self, data: bytes | bytearray | memoryview, timeout: Timeout = ...) -> None:
        """Send ``data``; return when the kernel has taken it, or at most 64 KiB are still on their way to it. Nothing
        is lost then: a close, too, sends it first. That the client is gone may be found out by the next call only.

        :raises SendTimeoutError: it took too long; ``sent`` says how much went out.
        :raises ConnectionResetError: as :meth:`recv`; likewise the others.
        :raises TypeError: ``data`` is not bytes.
        """
        seconds = self._seconds(timeout)
        content = memoryview(data).cast("B")
        if self._crossing.inherited:  # with the lock, which a thread of the parent's may have
            raise stopped()
        if not self._sending.acquire(timeout=-1 if seconds is None else seconds):
            raise of_stream(SendTimeoutError(seconds or 0, 0, len(content)), self.stream.id)
        try:
            if not self._put(content):
                self._crossing.run(functools.partial(self._send, content, seconds))
        except StreamClosedError as error:
            raise _os_error(error) from None
        finally:
            self._sending.release()
            with contextlib.suppress(BufferError):  # after Ctrl-C the loop may be at it still
                content.release()  # an error's traceback would keep it, and the caller may want to resize its bytearray

    def _put(self, data: memoryview) -> bool:
        """Send ``data`` without waiting for it; whether there was room."""
        if self._crossing.closed:
            raise stopped()
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
        """A file that reads from the client, or writes to it, or both; see `socket.socket.makefile`. Flush what was
        written before the handle is closed."""
        text, kind = "b" not in mode, mode.replace("b", "")
        if kind not in ("r", "w", "rw"):
            raise OptionError("mode", mode, "must be r, w or rw, perhaps with b")
        raw, size = _Raw(self, kind), io.DEFAULT_BUFFER_SIZE if buffering in (None, -1) else int(buffering or 0)
        if not size:
            if text:
                raise OptionError("buffering", buffering, "text needs a buffer")
            return raw
        if kind == "r":
            file: Any = io.BufferedReader(raw, size)
        else:
            file = io.BufferedWriter(raw, size) if kind == "w" else io.BufferedRWPair(raw, raw, size)
        return io.TextIOWrapper(file, **options) if text else file

    def close(self) -> None:
        """Close the connection in order: the client reads all that was sent, and then the end. It may be repeated."""
        if not self.closed:
            self.closed = True
            self._crossing.post(self.release)

    # ---- what the server does with it, in the loop

    def release(self) -> None:
        """Nobody need wait any more: the connection is to be closed, or has been."""
        self.released.set()
        self._tell_of_use()
        if self._peek is not None:
            self._peek.cancel()

    def ending(self) -> Coroutine[Any, Any, None]:
        """Once it is released, or nobody has it: close the connection in order; also if a thread is receiving."""
        return _end(self.released, self._outbox, self.stream)

    async def wait_for_news(self, seen: int) -> bool:
        """Wait until there is more to receive than ``seen`` bytes; False if somebody receives meanwhile.

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

    async def wait_for_use(self, seconds: float) -> None:
        """Wait until somebody receives, but not longer than that."""
        received = self._received = asyncio.Event()
        if not self.released.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await received.wait()


async def _end(released: asyncio.Event, outbox: Outbox, stream: IOStream) -> None:
    await released.wait()
    await outbox.drain()
    await stream.aclose()


class _Raw(io.RawIOBase):
    """A client as a file without a buffer."""

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
    """How long a thread waits.

    :raises OptionError: not a number of seconds, 0 or more.
    """
    return timeout if timeout is None or timeout == 0 else check_timeout("timeout", timeout)


def _more_than(seen: int, buffer: bytearray) -> tuple[int, None] | None:
    return (0, None) if len(buffer) > seen else None


def _os_error(error: StreamClosedError) -> OSError:
    """The same as a socket would say it."""
    same: OSError
    if (error.reason is not None and error.reason.by_peer) or isinstance(error.real_error, ConnectionResetError):
        number = error.errno or errno.ECONNRESET
        same = ConnectionResetError(number, os.strerror(number))
    else:
        same = ConnectionAbortedError(errno.ECONNABORTED, str(error))
    assert error.stream_id is not None
    return of_stream(same, error.stream_id)
