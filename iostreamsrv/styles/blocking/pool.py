"""A pool of threads that serve one client each, and the blocking socket that they use."""

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

from ...errors import StreamTimeoutError, of_stream
from ...iostream import IOStream
from ...options import ServerOptions
from ...runtime.addresses import show
from ...runtime.clock import real_time
from ...runtime.futures import set_result
from ...runtime.kernel import current_kernel
from ...runtime.logs import general

Serve = Callable[[Any, Any], None]

Received = TypeVar("Received")

CHUNK = 65536
"""Most bytes of a file that are read at a time."""

CHECKS_PER_TIMEOUT = 4
"""Number of checks within ``write_timeout`` whether the client has accepted data."""


class Pool:
    """A bounded number of threads, started on demand.

    :param size: the most threads.
    :ivar threads: the threads that were started.
    :ivar free: a semaphore of free threads, to be held during a call.
    """

    def __init__(self, size: int) -> None:
        self.threads: list[threading.Thread] = []
        self.free = asyncio.Semaphore(size)
        self._executor = ThreadPoolExecutor(size, "handle", initializer=self._begin)

    def _begin(self) -> None:
        self.threads.append(threading.current_thread())

    def call(self, serve: Serve, sock: Any, address: Any) -> "Future[None]":
        """Call ``serve`` in a thread; to be called in the loop. The call runs in a copy of the current context, because
        a thread would keep the context variables of one client for the next.

        :returns: a future with the exceptions of ``serve``, except those that a client causes on its socket.
        """
        call = partial(copy_context().run, _call, serve, sock, address)
        return asyncio.get_running_loop().run_in_executor(self._executor, call)

    def stop(self) -> None:
        """End idle threads at once, and the others when their call returns. Does not wait."""
        self._executor.shutdown(wait=False)


def _call(serve: Serve, sock: Any, address: Any) -> None:
    try:
        serve(sock, address)
    except (BrokenPipeError, ConnectionAbortedError, ConnectionResetError, TimeoutError, BlockingIOError) as error:
        if getattr(error, "stream_id", None) != sock.stream.id:  # an error of another connection of the handler
            raise
        general.debug("%s: handle() ended: %s", show(address), error)
    except SystemExit:
        pass  # as in every thread, it ends the function without a report
    finally:
        if isinstance(sock, ClientSocket):
            sock.close_silently()


class ClientSocket(socket.socket):
    """A blocking socket on the connection of a stream, for one thread. The server's timeouts apply to its calls.

    The kernel ends a call that waits too long (SO_RCVTIMEO, SO_SNDTIMEO), so a call that does not wait has no extra
    cost. A timeout that the thread sets itself is Python's, and takes precedence.

    :ivar stream: the stream.
    :ivar closed: done when the thread has closed the socket.
    :ivar timeout_error: the error of a send that timed out because the client accepted nothing; None otherwise.
    """

    def __init__(
        self, stream: IOStream, options: ServerOptions, call_soon: Callable[[Callable[[], object]], None]
    ) -> None:
        super().__init__(fileno=os.dup(stream.fileno()))
        self.stream = stream
        self.closed: Future[None] = asyncio.get_running_loop().create_future()
        self.timeout_error: StreamTimeoutError | None = None
        self._report_closed: Callable[[], None] | None = partial(call_soon, partial(set_result, self.closed))
        self.settimeout(None)
        self._rate = None if options.min_rate is None else ReadRate(options.min_rate, options.min_rate_window)
        self._read_timeout = _shortest(options.idle_timeout, options.read_timeout)
        self._write_timeout = _shortest(options.idle_timeout, options.write_timeout)
        window = None if self._rate is None else self._rate.window
        self._wake_after(socket.SO_RCVTIMEO, _shortest(self._read_timeout, window))
        self._wake_after(
            socket.SO_SNDTIMEO, None if self._write_timeout is None else self._write_timeout / CHECKS_PER_TIMEOUT
        )

    def _wake_after(self, option: int, seconds: float | None) -> None:
        """Have a call that waits for ``seconds`` fail with BlockingIOError."""
        if seconds is None:
            return
        if sys.platform == "win32":
            self.setsockopt(socket.SOL_SOCKET, option, max(1, int(seconds * 1000)))
        else:
            whole, rest = divmod(max(1, int(seconds * 1_000_000)), 1_000_000)
            self.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, rest))

    def _blocks(self, flags: int) -> bool:
        """Whether the thread has set neither a timeout nor non-blocking mode."""
        return self.gettimeout() is None and not flags & getattr(socket, "MSG_DONTWAIT", 0)

    # ---- receiving

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """See `socket.socket.recv`.

        :raises TimeoutError: a timeout of the server passed, or data arrived more slowly than ``min_rate``.
        """
        return self._receive(partial(super().recv, size, flags), flags, len)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """See `socket.socket.recv_into`, and :meth:`recv`."""
        return self._receive(partial(super().recv_into, buffer, nbytes, flags), flags, int)

    def _receive(self, receive: Callable[[], Received], flags: int, count: Callable[[Received], int]) -> Received:
        waited = 0.0
        while True:
            started = real_time()
            try:
                received = receive()
            except BlockingIOError:
                if not self._blocks(flags):
                    raise
                received = None
            seconds = real_time() - started
            if self._rate is not None and self._rate.is_too_slow(count(received) if received else 0, seconds):
                text = f"less than {self._rate.minimum:g} bytes per second"
                raise StreamTimeoutError("read", self._rate.window, text)
            if received is not None:
                return received
            waited += seconds
            if self._read_timeout is not None and waited > 0.99 * self._read_timeout:  # the kernel counts in ticks
                raise StreamTimeoutError("read", self._read_timeout)

    # ---- sending

    def send(self, data: Any, flags: int = 0, /) -> int:
        """See `socket.socket.send`.

        :raises TimeoutError: the client accepted no data within a timeout of the server.
        """
        since, before = real_time(), None
        if self._rate is not None:
            self._rate.restart()
        while True:
            try:
                return super().send(data, flags)
            except BlockingIOError:
                if self._write_timeout is None or not self._blocks(flags):
                    raise
            now, left = real_time(), current_kernel().unsent(self.fileno())
            if before is not None and left < before:
                since = now
            elif now - since > 0.99 * self._write_timeout:
                text = f"the peer took nothing for {self._write_timeout:g} s"
                self.timeout_error = StreamTimeoutError("write", self._write_timeout, text)
                raise self.timeout_error
            before = left

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """See `socket.socket.sendall`, and :meth:`send`. There is no limit for the whole, only for each wait."""
        if not self._blocks(flags):
            return super().sendall(data, flags)  # with the timeout that the thread has set
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

    # ---- closing

    def close(self) -> None:
        super().close()
        if self.fileno() < 0 and self._report_closed is not None:  # else a makefile() is open: its close calls this
            self._report_closed()

    def close_silently(self) -> None:
        """Close the socket without a result for :attr:`closed`: the thread's call has ended."""
        self._report_closed = None
        self.close()

    def wake(self, how: int) -> None:
        """Shut down the connection, so that a thread that waits for it continues."""
        try:
            self.shutdown(how)
        except OSError:
            pass  # the connection has ended already


class ReadRate:
    """Measures how fast data arrives while the thread waits for it. Counting starts after the first data of a message;
    a send ends the message.

    :ivar minimum: bytes per second.
    :ivar window: seconds of waiting for which the rate is measured.
    """

    def __init__(self, minimum: float, window: float) -> None:
        self.minimum = minimum
        self.window = window
        self.restart()

    def restart(self) -> None:
        """Count from zero, for the next message."""
        self._started = False
        self._received = 0
        self._waited = 0.0

    def is_too_slow(self, received: int, waited: float) -> bool:
        """Count ``received`` bytes after ``waited`` seconds; return whether the rate is below the minimum."""
        if self._started:
            self._received += received
            self._waited += waited
        self._started = self._started or received > 0
        if self._waited < 0.99 * self.window:
            return False
        too_slow = self._received < self.minimum * self._waited
        self._received, self._waited = 0, 0.0
        return too_slow


def _shortest(*seconds: float | None) -> float | None:
    return min((each for each in seconds if each is not None), default=None)


def _with_stream_id(name: str) -> Callable[..., Any]:
    """A method of the socket whose errors have the ``stream_id`` of its stream."""
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
    setattr(ClientSocket, _name, _with_stream_id(_name))
for _name in ("recvmsg", "recvmsg_into", "sendmsg"):
    if hasattr(socket.socket, _name):  # not on Windows
        setattr(ClientSocket, _name, _with_stream_id(_name))
