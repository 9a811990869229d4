"""Threads that serve one client each, with a socket."""

import asyncio
import os
import socket
import struct
import sys
import threading
from asyncio import Future
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial, wraps
from typing import Any, TypeVar

from ..errors import StreamTimeoutError, of_stream
from ..iostream import IOStream
from ..options import ServerOptions
from ..runtime.addresses import show
from ..runtime.clock import real_time
from ..runtime.futures import set_result
from ..runtime.logs import general
from ..streams.transports.socket import unsent

Serve = Callable[[Any, Any], None]

Received = TypeVar("Received")

CHUNK = 65536
"""Bytes of a file that are read at once."""

LOOKS = 4
"""Looks within ``write_timeout`` whether something has left."""


class Pool:
    """A bounded number of threads. They are made as they are needed.

    :ivar threads: those there are.
    :ivar free: is acquired for a call, and released after it.
    """

    def __init__(self, most: int) -> None:
        self.threads: list[threading.Thread] = []
        self.free = asyncio.Semaphore(most)
        self._executor = ThreadPoolExecutor(most, "handle", initializer=self._begin)

    def _begin(self) -> None:
        self.threads.append(threading.current_thread())

    def call(self, serve: Serve, sock: Any, address: Any) -> "Future[None]":
        """In the loop: have ``serve`` called in a thread. The future raises what it raises, but for what a client does
        to a socket.

        It runs in a copy of the present context: a thread would keep what the call for one client sets for the next.
        """
        call = partial(copy_context().run, _call, serve, sock, address)
        return asyncio.get_running_loop().run_in_executor(self._executor, call)

    def stop(self) -> None:
        """Let the threads end that have nothing to do; the others, when they have done it."""
        self._executor.shutdown(wait=False)


def _call(serve: Serve, sock: Any, address: Any) -> None:
    try:
        serve(sock, address)
    except (BrokenPipeError, ConnectionAbortedError, ConnectionResetError, TimeoutError, BlockingIOError) as error:
        if getattr(error, "stream_id", None) != sock.stream.id:  # that of another peer, whom the handler asked
            raise
        general.debug("%s: handle() ended: %s", show(address), error)
    except SystemExit:
        pass  # which ends a thread, as a rule
    finally:
        if isinstance(sock, ClientSocket):
            sock.leave()


class ClientSocket(socket.socket):
    """A socket for a thread, on the connection of a stream. It blocks, but not longer than the server's timeouts say.

    It is the kernel that wakes it (SO_RCVTIMEO, SO_SNDTIMEO), so a call that need not wait costs nothing more. The
    timeouts that the thread may set itself are Python's, and go before these.

    :ivar stream: the stream.
    :ivar closed: done when the thread has closed it.
    :ivar late: the client has taken nothing for as long as the server's timeouts say.
    """

    def __init__(self, stream: IOStream, options: ServerOptions, post: Callable[[Callable[[], object]], None]) -> None:
        super().__init__(fileno=os.dup(stream.fileno()))
        self.stream = stream
        self.closed: Future[None] = asyncio.get_running_loop().create_future()
        self.late: StreamTimeoutError | None = None
        self._tell: Callable[[], None] | None = partial(post, partial(set_result, self.closed))
        self.settimeout(None)
        self._rate = None if options.min_rate is None else Rate(options.min_rate, options.min_rate_window)
        self._most_read = _shortest(options.idle_timeout, options.read_timeout)
        self._most_write = _shortest(options.idle_timeout, options.write_timeout)
        window = None if self._rate is None else self._rate.window
        self._wake_after(socket.SO_RCVTIMEO, _shortest(self._most_read, window))
        self._wake_after(socket.SO_SNDTIMEO, None if self._most_write is None else self._most_write / LOOKS)

    def _wake_after(self, option: int, seconds: float | None) -> None:
        """Have a call that waits so long fail with BlockingIOError."""
        if seconds is None:
            return
        if sys.platform == "win32":
            self.setsockopt(socket.SOL_SOCKET, option, max(1, int(seconds * 1000)))
        else:
            whole, rest = divmod(max(1, int(seconds * 1_000_000)), 1_000_000)
            self.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, rest))

    def _blocks(self, flags: int) -> bool:
        """Whether the thread has not said otherwise."""
        return self.gettimeout() is None and not flags & getattr(socket, "MSG_DONTWAIT", 0)

    # ---- receiving

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """See `socket.socket.recv`.

        :raises TimeoutError: a timeout of the server's has passed, or it comes too slowly.
        """
        return self._receive(partial(super().recv, size, flags), flags, len)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """See `socket.socket.recv_into`, and :meth:`recv`."""
        return self._receive(partial(super().recv_into, buffer, nbytes, flags), flags, int)

    def _receive(self, receive: Callable[[], Received], flags: int, count: Callable[[Received], int]) -> Received:
        waited = 0.0
        while True:
            begun = real_time()
            try:
                received = receive()
            except BlockingIOError:
                if not self._blocks(flags):
                    raise
                received = None
            seconds = real_time() - begun
            if self._rate is not None and self._rate.is_too_slow(count(received) if received else 0, seconds):
                text = f"less than {self._rate.least:g} bytes per second"
                raise StreamTimeoutError("read", self._rate.window, text)
            if received is not None:
                return received
            waited += seconds
            if self._most_read is not None and waited > 0.99 * self._most_read:  # the kernel counts in ticks
                raise StreamTimeoutError("read", self._most_read)

    # ---- sending

    def send(self, data: Any, flags: int = 0, /) -> int:
        """See `socket.socket.send`.

        :raises TimeoutError: the client has taken nothing for as long as a timeout of the server's says.
        """
        since, before = real_time(), None
        if self._rate is not None:
            self._rate.begin()
        while True:
            try:
                return super().send(data, flags)
            except BlockingIOError:
                if self._most_write is None or not self._blocks(flags):
                    raise
            now, left = real_time(), unsent(self.fileno())
            if before is not None and left < before:
                since = now
            elif now - since > 0.99 * self._most_write:
                text = f"the peer took nothing for {self._most_write:g} s"
                self.late = StreamTimeoutError("write", self._most_write, text)
                raise self.late
            before = left

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """See `socket.socket.sendall`, and :meth:`send`: however long it takes, while something leaves."""
        if not self._blocks(flags):
            return super().sendall(data, flags)  # in the thread's own time
        with memoryview(data) as view, view.cast("B") as left:
            sent = 0
            while sent < len(left):
                sent += self.send(left[sent:], flags)
        return None

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """See `socket.socket.sendfile`, and :meth:`send`."""
        file.seek(offset)
        sent = 0
        while chunk := file.read(CHUNK if count is None else min(CHUNK, count - sent)):
            self.sendall(chunk)
            sent += len(chunk)
        return sent

    # ---- the end

    def close(self) -> None:
        super().close()
        if self.fileno() < 0 and self._tell is not None:  # else there is a makefile(), whose close comes by here
            self._tell()

    def leave(self) -> None:
        """Close it, and say nothing: it is the thread's last deed."""
        self._tell = None
        self.close()

    def wake(self, how: int) -> None:
        """Have a thread that waits for it see its end."""
        try:
            self.shutdown(how)
        except OSError:
            pass  # it has ended already


class Rate:
    """How fast something comes, while it is waited for. It begins when the first of it has come, and ends when
    something is sent.

    :ivar least: bytes per second.
    :ivar window: seconds of waiting over which that is counted.
    """

    def __init__(self, least: float, window: float) -> None:
        self.least = least
        self.window = window
        self.begin()

    def begin(self) -> None:
        """Wait for something else."""
        self._begun = False
        self._came = 0
        self._waited = 0.0

    def is_too_slow(self, came: int, waited: float) -> bool:
        """So many bytes came after so many seconds."""
        if self._begun:
            self._came += came
            self._waited += waited
        self._begun = self._begun or came > 0
        if self._waited < 0.99 * self.window:
            return False
        too_slow = self._came < self.least * self._waited
        self._came, self._waited = 0, 0.0
        return too_slow


def _shortest(*seconds: float | None) -> float | None:
    return min((each for each in seconds if each is not None), default=None)


def _knowing_its_stream(name: str) -> Callable[..., Any]:
    """A socket's method whose errors tell whose they are."""
    method = getattr(ClientSocket, name)

    @wraps(method)
    def call(sock: ClientSocket, *arguments: Any, **keywords: Any) -> Any:
        try:
            return method(sock, *arguments, **keywords)
        except OSError as error:
            of_stream(error, sock.stream.id)
            raise

    return call


for _name in ("recv", "recv_into", "recvfrom", "recvfrom_into", "send", "sendall", "sendfile", "sendto"):
    setattr(ClientSocket, _name, _knowing_its_stream(_name))
for _name in ("recvmsg", "recvmsg_into", "sendmsg"):
    if hasattr(socket.socket, _name):  # not on Windows
        setattr(ClientSocket, _name, _knowing_its_stream(_name))
