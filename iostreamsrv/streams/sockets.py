"""A stream on a socket."""

import errno
import os
import socket
from asyncio import Future
from contextvars import Context
from typing import Any, Self, cast

from tornado.ioloop import IOLoop

from ..errors import CloseReason, ConcurrentConnectError, of_stream, reason_for, without_frames
from ..sansio.buffers import WriteBuffer
from .core import overridable
from .lifecycle import BaseIOStream
from .readiness import READABLE, WRITABLE
from .served import StreamOwner, StreamSettings
from .state import CLOSED
from .transports.base import Transport
from .transports.socket import SocketTransport


class SocketStream(BaseIOStream):
    """What `IOStream` is, but for the change to TLS."""

    __slots__ = ("_remote_address", "proxy", "socket")

    proxy: Any

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
        self.proxy = None
        BaseIOStream.__init__(
            self,
            max_buffer_size,
            read_chunk_size,
            max_write_buffer_size,
            cork=cork,
            allow_half_open=allow_half_open,
        )

    @classmethod
    def for_client(
        cls,
        connection: socket.socket,
        address: Any,
        settings: StreamSettings,
        owner: StreamOwner,
        context: Context,
    ) -> Self:
        """See `ServedStream`. What the constructor checks, the options have checked."""
        stream = cls.__new__(cls)
        stream.socket = connection
        connection.setblocking(False)
        stream._remote_address = address
        stream.proxy = None
        stream._start(
            IOLoop.current(),
            settings.max_buffer_size,
            settings.read_chunk_size,
            settings.max_write_buffer_size,
            settings.cork,
            settings.allow_half_open,
            settings.linger,
        )
        stream._owner = owner
        stream.callback_context = context
        return stream

    def set_proxied(self, info: Any) -> None:
        """See `ServedStream`."""
        self.proxy = info
        if info.source is not None:  # else it is the proxy itself that has come
            self._remote_address = info.source

    def _hand_over_to(self, stream: "SocketStream") -> None:
        """``stream`` has the socket from now on, and the place of this one."""
        self._hub.unwatch(self)
        self.socket = cast(Any, None)
        self._attach(Transport())  # which does nothing: an abort() of this stream must not reach the other's socket
        self._phase = CLOSED
        self._readable = False
        self.close_reason = CloseReason.LOCAL
        stream._close_callback, self._close_callback = self._close_callback, None
        stream.callback_context, self.callback_context = self.callback_context, None
        stream.has_handler = self.has_handler
        stream.id = self.id
        stream._data = self._data
        stream.own_timeouts = self.own_timeouts
        stream.proxy = self.proxy
        stream._owner, self._owner = self._owner, None
        if stream._owner is not None:
            stream._owner.stream_replaced(self, stream)

    def fileno(self) -> int:
        return -1 if self.socket is None else self.socket.fileno()

    def close_fd(self) -> None:
        self.socket = cast(Any, None)
        self._transport.close()

    # ---- the transport

    def _new_transport(self) -> Transport:
        return SocketTransport(self.socket)

    @overridable
    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        try:
            return self._transport.recv_into(buf)
        except BlockingIOError:
            return None

    @overridable
    def write_to_fd(self, data: bytes | bytearray | memoryview) -> int:
        return self._transport.send(data)

    def _forget_descriptor(self) -> None:
        self._transport.detach()

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
        self._hub.check()
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
        self._hub.check()
        if self._phase == CLOSED:
            return self._failed_future(self._closed_error("connect"))
        if self._connect_future is not None:
            raise of_stream(ConcurrentConnectError(), self.id)
        future: Future[Self] = Future(loop=self._hub.loop)
        try:
            self.socket.connect(address)
        except BlockingIOError:
            pass
        except OSError as error:
            self._connect_future = future
            self.terminate(reason_for(error), without_frames(error))
            return future
        self._connect_future = future
        self._readable = False
        self._write_buffer = WriteBuffer()  # for what is written meanwhile
        # Not before: an unconnected socket reports a hangup.
        self._reads_watched = self._hub.watch_writes(self)
        return future

    def _connected(self, events: int) -> None:
        error = self.get_fd_error()
        if error is None:
            try:
                self._remote_address = self.socket.getpeername()
            except OSError as problem:  # a Unix socket whose listener's queue is full says so only here
                error = problem
            else:
                error = self._connected_to_itself()
        if error is not None:
            return self.terminate(reason_for(error), without_frames(error))
        self._established(events)

    def _established(self, events: int) -> None:
        """There is a connection; ``events`` came with it: perhaps the peer's end, which is not reported twice."""
        future, self._connect_future = self._connect_future, None
        if future is not None and not future.done():
            future.set_result(self)
        self.dispatch(events | READABLE | WRITABLE)

    def _connected_to_itself(self) -> OSError | None:
        """The error, if so: the kernel may choose the very port that nobody listens on as this end's (as Go's net.Dial
        knows, too).
        """
        if self.socket.family not in (socket.AF_INET, socket.AF_INET6) or (
            self._remote_address != self.socket.getsockname()
        ):
            return None
        return ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
