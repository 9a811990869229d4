"""What a thread has of a client: the look of a socket, and a stream of the loop's behind it."""

import asyncio
import errno
import functools
import io
import os
from asyncio import Future
from collections.abc import Callable
from types import EllipsisType
from typing import Any, Protocol, Self

from ..errors import CloseReason, OptionError, StreamClosedError, StreamTimeoutError
from ..iostream import IOStream

__all__ = ["Handle", "SendTimeoutError"]

CHUNK = 65536
"""Bytes of a sendall() that the stream is given at once: no more than that is on its way when it times out."""

Timeout = float | EllipsisType | None


class Crossing(Protocol):
    """The way from a thread to the loop."""

    def _ask(self, coroutine: Callable[[], Any]) -> Any:
        """What a coroutine gives that the loop runs."""

    def _call_soon(self, function: Callable[[], object]) -> None:
        """Have the loop call ``function``."""


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

    One thread may receive while another one sends; not two the same. A ``timeout`` is in seconds; None waits as long
    as it takes, 0 does not wait. Where it is not given the one of :meth:`settimeout` holds, at first None.

    :ivar stream: the `IOStream` below, for the loop's thread.
    :ivar address: the client's address.
    """

    def __init__(self, server: Crossing, stream: IOStream, address: Any) -> None:
        self.stream = stream
        self.address = address
        self._server = server
        self._timeout: float | None = None
        self._released = asyncio.Event()  # the server may close the stream
        self._closed = False
        self._peek: Future[Any] | None = None  # waits until there is something to be told of
        self._unused = asyncio.Event()  # nobody receives
        self._unused.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Handle of {self.stream!r}>"

    def settimeout(self, timeout: float | None) -> None:
        """The timeout of all calls that are given none."""
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        """The timeout of all calls that are given none."""
        return self._timeout

    def getpeername(self) -> Any:
        """The client's address."""
        return self.address

    def getsockname(self) -> Any:
        """The address it came to."""
        return self.stream.local_address

    def recv(self, size: int, timeout: Timeout = ...) -> bytes:
        """What there is, up to ``size`` bytes; b"" when the client has ended its side.

        :raises TimeoutError: nothing came in time. The connection is as it was.
        :raises ConnectionResetError: the client, or its host, broke the connection.
        :raises ConnectionAbortedError: this side ended it: the server was stopped, or a limit reached.
        :raises ConcurrentReadError: another thread is receiving.
        :raises OSError: the handle is closed.
        """
        if self._closed:
            raise OSError(errno.EBADF, "the handle is closed")
        seconds = self._timeout if timeout is ... else timeout
        try:
            return self._server._ask(functools.partial(self._receive, size, seconds))  # type: ignore[no-any-return]
        except StreamClosedError as error:
            if error.reason in (CloseReason.EOF, CloseReason.TRUNCATED):
                return b""
            raise _os_error(error) from None

    async def _receive(self, size: int, seconds: float | None) -> bytes:
        if self._peek is not None:
            self._peek.cancel()
        self._unused.clear()
        try:
            reading = self.stream.read_bytes(size, partial=True, timeout=seconds or None)
            if seconds == 0 and not reading.done():
                await asyncio.sleep(0)  # what has arrived is dispatched in this turn of the loop
                if not reading.done():
                    reading.cancel()
                    raise StreamTimeoutError("read", 0)
            return await reading
        finally:
            self._unused.set()

    def recv_into(self, buffer: bytearray | memoryview, size: int = 0, timeout: Timeout = ...) -> int:
        """:meth:`recv` into ``buffer``, up to ``size`` bytes, or as many as it has; how many."""
        with memoryview(buffer) as view, view.cast("B") as target:
            data = self.recv(size or len(target), timeout)
            target[: len(data)] = data
            return len(data)

    def sendall(self, data: bytes | bytearray | memoryview, timeout: Timeout = ...) -> None:
        """Send ``data``; return when the kernel has taken all of it.

        :raises SendTimeoutError: it took too long; ``sent`` says how much went out.
        :raises ConnectionResetError: as :meth:`recv`; likewise the others.
        """
        if self._closed:
            raise OSError(errno.EBADF, "the handle is closed")
        seconds = self._timeout if timeout is ... else timeout
        try:
            self._server._ask(functools.partial(self._send, bytes(data), seconds))
        except StreamClosedError as error:
            raise _os_error(error) from None

    async def _send(self, data: bytes, seconds: float | None) -> None:
        sent = 0
        try:
            async with asyncio.timeout(seconds):
                while sent < len(data):
                    chunk = data[sent : sent + CHUNK]
                    sent += len(chunk)
                    await self.stream.write(chunk)
        except TimeoutError:
            raise SendTimeoutError(seconds or 0, sent, len(data)) from None

    def makefile(self, mode: str = "r", buffering: int | None = None, **options: Any) -> Any:
        """A file that reads from the client, or writes to it, or both; see `socket.socket.makefile`."""
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
        if not self._closed:
            self._closed = True
            self._server._call_soon(self._released.set)


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


def _os_error(error: StreamClosedError) -> OSError:
    """The same as a socket would say it."""
    if error.reason in (CloseReason.RESET, CloseReason.EOF):
        number = error.errno or errno.ECONNRESET
        return ConnectionResetError(number, os.strerror(number))
    return ConnectionAbortedError(errno.ECONNABORTED, str(error))
