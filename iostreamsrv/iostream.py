"""Streams: what a handler reads from and writes to.

:class:`BaseIOStream` has all of it but the descriptor, which :class:`IOStream` and :class:`PipeIOStream` give it. The
names and meanings are Tornado's, and so are the base classes, for ``isinstance``; none of their code or fields is
used. The two sides of a stream are in :mod:`iostreamsrv.engine`; this module has its beginning and its ends.

``close()`` ends a stream now, ``aclose()`` after what is queued has left and the peer had time to read it,
``abort()`` with a reset. All meet in ``_close``, which keeps the first reason.
"""

import asyncio
import contextlib
import errno
import io
import os
import select
import socket
import struct
import sys
from asyncio import Future
from collections.abc import Callable
from types import MethodType, TracebackType
from typing import Any, Self, cast

import tornado.iostream
from tornado.ioloop import IOLoop

from .engine.reading import ReadSide
from .engine.writing import FILE_CHUNK
from .errors import (
    CloseReason,
    ConcurrentConnectError,
    StreamBufferFullError,
    StreamClosedError,
    UnsatisfiableReadError,
    reason_for,
    without_frames,
)
from .hub import BROKEN, READABLE, WRITABLE
from .options import LINGER, READ_CHUNK_SIZE, ServerOptions, check_flag, check_size, check_timeout
from .sansio.buffers import WriteBuffer
from .sansio.files import FileRegion
from .sansio.reads import Discard

__all__ = [
    "BaseIOStream",
    "IOStream",
    "PipeIOStream",
    "StreamBufferFullError",
    "StreamClosedError",
    "UnsatisfiableReadError",
]

MAX_BUFFER_SIZE = 100 * 1024 * 1024
"""Tornado's default for a stream made by hand. `TCPServer` gives its streams 1 MiB."""

LINGER_BYTES = 1 << 20
"""For how many bytes ``aclose()`` goes on receiving after its half-close. Closing a socket with unread input makes the
kernel send a reset, which can destroy the last reply on its way (nginx: lingering_close)."""

CLOSE_TIMEOUT = 30.0
"""Default bound of ``aclose()``, in seconds."""


class BaseIOStream(ReadSide):
    """Reads and writes a non-blocking descriptor; subclasses say which.

    A subclass overrides :meth:`fileno`, :meth:`close_fd`, :meth:`read_from_fd`, :meth:`write_to_fd` and perhaps
    :meth:`get_fd_error`. Must be made where a loop is current, and used in that loop's thread.

    :param max_buffer_size: most bytes to hold unread; default (None) 100 MiB, ``math.inf`` for no limit. A read that
        needs more closes the stream, reason ``buffer_full``.
    :param read_chunk_size: most bytes to receive at once; default 64 KiB, never over half of ``max_buffer_size``.
    :param max_write_buffer_size: most bytes to queue; default (None) no limit. A write beyond it raises
        `StreamBufferFullError`; a single larger write into an empty queue is taken.
    :param cork: whether writes made while more requests wait are sent together (see :meth:`write`).
    :param allow_half_open: whether the stream stays open when the peer has ended its side. Reads then raise
        `StreamClosedError`, reason ``eof``, and writes go on, until :meth:`send_eof` has ended this side as well;
        that closes the stream. Otherwise, as with Tornado, the peer's end closes it, once what is queued has left.
    :raises OptionError: a size is not a positive number.

    :ivar io_loop: the `IOLoop` of the stream.
    :ivar error: what closed the stream, or None after an orderly close.
    :ivar close_reason: a `CloseReason` once the stream is closed, None before.
    :ivar allow_half_open: as the parameter; may be set.
    :ivar linger: seconds that :meth:`aclose` waits for the peer's end after its half-close; 2.0. May be set.
    :ivar id: a number no other stream of this process has.
    :ivar opened_at: when the stream was made, `time.time`.
    :ivar bytes_read: received so far, the unread ones included.
    :ivar bytes_written: taken by the kernel so far.
    """

    __slots__ = ()

    def __init__(
        self,
        max_buffer_size: float | None = None,
        read_chunk_size: int | None = None,
        max_write_buffer_size: float | None = None,
        *,
        cork: bool = True,
        allow_half_open: bool = False,
    ) -> None:
        self._start(
            IOLoop.current(),
            check_size("max_buffer_size", max_buffer_size) or MAX_BUFFER_SIZE,
            check_size("read_chunk_size", read_chunk_size) or READ_CHUNK_SIZE,
            check_size("max_write_buffer_size", max_write_buffer_size),
            check_flag("cork", cork),
            check_flag("allow_half_open", allow_half_open),
            LINGER,
        )

    def _dispatch_at_the_ends(self, events: int) -> None:
        if self._closed:
            if events & (WRITABLE | BROKEN):
                self._deliver_owed()
        elif events != READABLE:  # that alone is somebody who asked for another dispatch
            self._connected(events)

    def _connected(self, events: int) -> None:
        raise NotImplementedError

    # ---- ending

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` once the stream is closed, for whatever reason; None takes it back. ::

            stream.set_close_callback(lambda: users.discard(stream.id))

        A stream with a close callback notices the peer's end also while nobody reads: it then receives one chunk ahead.
        So a peer that half-closes after its request is taken as gone, as with Tornado.
        """
        self._close_callback = callback
        if self._closed:
            self._run_close_callback()
        elif callback is not None and self._connect_future is None:
            self._hub.dispatch_again(self)

    def _run_close_callback(self) -> None:
        callback, self._close_callback = self._close_callback, None
        if callback is not None:
            self.io_loop.add_callback(callback)

    def close(
        self,
        exc_info: None
        | bool
        | BaseException
        | tuple[type[BaseException] | None, BaseException | None, TracebackType | None] = False,
    ) -> None:
        """Close the stream now.

        A pending read and the writes whose futures are not done fail with `StreamClosedError`; what was reported done
        is delivered. Closing a closed stream does nothing. To have everything delivered: :meth:`aclose`.

        :param exc_info: what to set ``error`` to: an exception, a ``sys.exc_info()`` tuple, or True for the current
            one.
        """
        if isinstance(exc_info, tuple):
            error = exc_info[1]
        elif isinstance(exc_info, BaseException):
            error = exc_info
        else:
            error = sys.exception() if exc_info else None
        self._close(CloseReason.LOCAL, error)

    async def aclose(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """Close the stream in order: send what is queued, half-close, let the peer read it, close. ::

            await stream.write(b"good bye\\n")
            await stream.aclose(timeout=5)

        After the half-close the peer has ``linger`` seconds (2) to end its side; up to 1 MiB that it still sends is
        thrown away. A pending read fails at once. Bytes that are buffered stay readable.

        :param timeout: seconds for all of it, then the stream is closed as by :meth:`close`; None for no limit but
            ``linger``.
        """
        await self._aclose(CloseReason.LOCAL, timeout)

    async def _aclose(self, reason: CloseReason, timeout: float | None) -> None:
        if timeout is not None:
            timeout = check_timeout("timeout", timeout)
        if self._closed:
            return
        if self._closing is not None:
            try:
                async with asyncio.timeout(timeout):
                    await asyncio.shield(self._closing)
            except TimeoutError:
                self._close(reason)
            return None
        self._closing = closing = self._hub.loop.create_future()
        self.close_reason = reason
        self._fail_read(self._closed_error("read"))
        try:
            async with asyncio.timeout(timeout):
                await self.drain()
                if self._has_half_close and self.linger and not self._eof and not self._closed:
                    await self._linger()
        except (TimeoutError, OSError):
            pass
        finally:
            self._close(reason)
            closing.set_result(None)

    async def _linger(self) -> None:
        if not self._sending_eof:
            self._shutdown_writes()
            self._sending_eof = True
        await self._begin_read(Discard(self._buffer, LINGER_BYTES), self.linger)

    def abort(self) -> None:
        """Close the stream now and throw away what is queued; a TCP peer gets a reset. Reason ``aborted``."""
        self._corked = None
        if self._closed:
            return self._give_up_owed()
        self._write_buffer = None
        self._close(CloseReason.ABORTED)

    def _close(self, reason: CloseReason, error: BaseException | None = None) -> None:
        """Every stream ends here, whoever ended it."""
        if self._corked is not None:
            self.uncork()  # which may find the stream broken, and close it
        if self._closed:
            return
        self._closed = True
        self._readable = False
        self.close_reason = self.close_reason or reason
        self.error = error
        if self._hub.loop.is_closed():
            self._forget_all()  # nobody can be told, and nothing more be sent
        self._end_read(error)
        self._keep_what_is_owed()
        self._fail_writes()
        if self._write_buffer is None:
            self._close_descriptor()
        else:
            self._owed_timer = self._hub.loop.call_later(CLOSE_TIMEOUT, self._give_up_owed)
        if self._close_callback is not None:
            self._run_close_callback()

    def _forget_all(self) -> None:
        self._forget_read()
        self._write_buffer = None
        self._unsent_futures = None
        self._connect_future = None

    def _close_descriptor(self) -> None:
        if self._owed_timer is not None:
            self._owed_timer.cancel()
        self._hub.unwatch(self)
        self.close_fd()
        if self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end(self)


class IOStream(BaseIOStream, tornado.iostream.IOStream):
    """A stream on a socket. ::

        stream = IOStream(socket.socket())
        await stream.connect(("127.0.0.1", 8888))

    :param socket: connected, or new and then given to :meth:`connect`. It is made non-blocking and belongs to the
        stream.
    :ivar socket: that socket, None once closed.

    The other parameters are those of `BaseIOStream`.
    """

    __slots__ = ("_remote_address", "socket")

    def __init__(
        self,
        socket: socket.socket,
        max_buffer_size: float | None = None,
        read_chunk_size: int | None = None,
        max_write_buffer_size: float | None = None,
        *,
        cork: bool = True,
        allow_half_open: bool = False,
    ) -> None:
        self.socket = socket
        socket.setblocking(False)
        self._remote_address: Any = None
        BaseIOStream.__init__(
            self,
            max_buffer_size,
            read_chunk_size,
            max_write_buffer_size,
            cork=cork,
            allow_half_open=allow_half_open,
        )

    @classmethod
    def _of_client(
        cls,
        connection: socket.socket,
        address: Any,
        options: ServerOptions,
        on_end: Callable[["IOStream"], None],
    ) -> "IOStream":
        """A stream for a server's client. What the constructor checks, the options have checked."""
        stream = cls.__new__(cls)
        stream.socket = connection
        connection.setblocking(False)
        stream._remote_address = address
        stream._start(
            IOLoop.current(),
            options.max_buffer_size,
            options.read_chunk_size,
            options.max_write_buffer_size,
            options.cork,
            options.allow_half_open,
            options.linger,
        )
        stream._on_end = on_end
        return stream

    def fileno(self) -> int:
        return -1 if self.socket is None else self.socket.fileno()

    def close_fd(self) -> None:
        self.socket.close()
        self.socket = cast(Any, None)

    def get_fd_error(self) -> Exception | None:
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return OSError(number, os.strerror(number)) if number else None

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        try:
            return self.socket.recv_into(buf)
        except BlockingIOError:
            return None

    def write_to_fd(self, data: bytes | bytearray | memoryview) -> int | None:  # type: ignore[override]
        return self.socket.send(data)

    def _receive(self, size: int) -> bytes | None:
        # bytes straight from the socket, unless somebody has a read_from_fd of their own, perhaps on this very stream
        method = self.read_from_fd
        if type(method) is MethodType and method.__func__ is _READ_FROM_SOCKET:
            return self.socket.recv(size)
        return BaseIOStream._receive(self, size)

    _file_chunk = FILE_CHUNK

    def _sendfile(self, region: FileRegion, size: int) -> int | None:
        method = self.write_to_fd
        if region.fd >= 0 and _SENDFILE and type(method) is MethodType and method.__func__ is _WRITE_TO_SOCKET:
            try:
                return _SENDFILE(self.socket.fileno(), region.fd, region.offset, size) or None
            except OSError as error:
                if error.errno not in _NO_SENDFILE:
                    raise
        return BaseIOStream._sendfile(self, region, size)

    def abort(self) -> None:
        if self.socket is not None and self.socket.family in (socket.AF_INET, socket.AF_INET6):
            # Lingering for 0 seconds is how one asks for a reset.
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        BaseIOStream.abort(self)

    _has_half_close = True

    def _shutdown_writes(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    @property
    def local_address(self) -> Any:
        """This end's address, as `socket.socket.getsockname` gives it; None once closed."""
        return None if self.socket is None else self.socket.getsockname()

    @property
    def remote_address(self) -> Any:
        """The peer's address as `socket.socket.getpeername` gives it; once closed, what it was if it was asked for."""
        if self._remote_address is None and self.socket is not None:
            try:
                self._remote_address = self.socket.getpeername()
            except OSError:
                pass
        return self._remote_address

    def set_nodelay(self, value: bool) -> None:
        """Turn Nagle's algorithm off (True: small writes leave at once) or on. Only TCP has it; others ignore it."""
        if self.socket is None or self.socket.family not in (socket.AF_INET, socket.AF_INET6):
            return
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1 if value else 0)
        except OSError as error:
            # EINVAL: the connection broke, which the next operation will say better.
            if error.errno != errno.EINVAL and reason_for(error) is not CloseReason.RESET:
                raise

    def connect(self, address: Any, server_hostname: str | None = None) -> "Future[Self]":
        """Connect the socket; the future gives the stream itself. ::

            stream = IOStream(socket.socket(socket.AF_UNIX))
            await stream.connect("/run/echo.sock")

        Writes may be made at once: they go out once connected, after the future is done. A host name in ``address`` is
        resolved by the operating system, which blocks the loop.

        :param address: as for `socket.socket.connect`.
        :param server_hostname: of no meaning without TLS.
        :raises StreamClosedError: from the future; ``operation`` is "connect" and ``real_error`` says why.
        :raises ConcurrentConnectError: it is connecting already.
        """
        if self._closed:
            return self._failed(self._closed_error("connect"))
        if self._connect_future is not None:
            raise ConcurrentConnectError
        future: Future[Self] = Future(loop=self._hub.loop)
        try:
            self.socket.connect(address)
        except BlockingIOError:
            pass
        except OSError as error:
            self._connect_future = future
            self._close(reason_for(error), without_frames(error))
            return future
        self._connect_future = future
        self._readable = False
        self._write_buffer = WriteBuffer()  # for what is written meanwhile
        # Not before: an unconnected socket reports a hangup.
        self._reads_watched = self._hub.watch_writes(self)
        return future

    def _connected(self, events: int) -> None:
        future = self._connect_future
        assert future is not None
        error = self.get_fd_error()
        if error is None:
            try:
                self._remote_address = self.socket.getpeername()
            except OSError as problem:  # a Unix socket whose listener's queue is full says so only here
                error = problem
            else:
                error = self._connected_to_itself()
        if error is not None:
            return self._close(reason_for(error), without_frames(error))
        self._connect_future = None
        if not future.done():
            future.set_result(self)
        self.dispatch(events | READABLE | WRITABLE)  # the peer's end may have come with them

    def _connected_to_itself(self) -> OSError | None:
        """The error, if so: the kernel may choose the very port that nobody listens on as this end's (as Go's net.Dial
        knows, too).
        """
        if (
            self.socket.family not in (socket.AF_INET, socket.AF_INET6)
            or self._remote_address != self.socket.getsockname()
        ):
            return None
        return ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

    def start_tls(self, *args: Any, **kwargs: Any) -> Any:
        """Not in this release: TLS is to come.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("this release of iostreamsrv has no TLS")


_READ_FROM_SOCKET = IOStream.read_from_fd
_WRITE_TO_SOCKET = IOStream.write_to_fd
_SENDFILE = getattr(os, "sendfile", None)
_NO_SENDFILE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSOCK})
"""What the kernel says where this socket or the file's file system cannot do it."""


class PipeIOStream(BaseIOStream, tornado.iostream.PipeIOStream):
    """A stream on one end of a pipe, to read from or to write to. Not on Windows. ::

        reader, writer = os.pipe()
        subprocess.Popen(["ls"], stdout=writer)
        os.close(writer)
        listing = await PipeIOStream(reader).read_until_close()

    :param fd: the descriptor, such as `os.pipe` gives. It is made non-blocking and belongs to the stream.
    :ivar fd: that descriptor.

    The other parameters are those of `BaseIOStream`, but a pipe has one direction, and so no half.
    """

    __slots__ = ("_file", "fd")

    def __init__(
        self,
        fd: int,
        max_buffer_size: float | None = None,
        read_chunk_size: int | None = None,
        max_write_buffer_size: float | None = None,
        *,
        cork: bool = True,
    ) -> None:
        if sys.platform == "win32":
            raise OSError(errno.EOPNOTSUPP, "pipes cannot be polled on Windows")
        BaseIOStream.__init__(self, max_buffer_size, read_chunk_size, max_write_buffer_size, cork=cork)
        self.fd = fd
        self._file = io.FileIO(fd, "r+")
        os.set_blocking(fd, False)

    def fileno(self) -> int:
        return -1 if self._file.closed else self.fd

    def close_fd(self) -> None:
        self._file.close()

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        try:
            return self._file.readinto(buf)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            # The writing end: it has nothing to read, but an end when the reader is gone.
            poll = select.poll()
            poll.register(self.fd, 0)  # errors are always reported
            return 0 if poll.poll(0) else None

    def write_to_fd(self, data: bytes | bytearray | memoryview) -> int | None:  # type: ignore[override]
        return os.write(self.fd, data)
