"""A stream on a socket."""

import contextlib
import errno
import os
import socket
from asyncio import Future
from contextvars import Context
from typing import Any, Self

from tornado.ioloop import IOLoop

from ..errors import CloseReason, ConcurrentConnectError, of_stream, reason_for, without_frames
from ..runtime.addresses import show
from ..sansio.buffers import WriteBuffer
from .core import fail
from .detached import DetachedStream
from .lifecycle import TransportStream
from .readiness import READABLE, WRITABLE
from .served import StreamOwner, StreamSettings
from .state import CLOSED, OPEN
from .transports.base import Transport
from .transports.socket import SocketTransport, WrappedSocket


class SocketStream(TransportStream):
    """`IOStream` without ``start_tls``."""

    __slots__ = ("_remote_address", "_socket", "proxy")

    proxy: Any
    _socket: Any

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
        self._socket = socket
        socket.setblocking(False)
        self._remote_address: Any = None
        self.proxy = None
        TransportStream.__init__(
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
        io_loop: IOLoop,
    ) -> Self:
        """See `ServedStream`. The options were checked when the server was made."""
        stream = cls.__new__(cls)
        stream._socket = connection
        stream._remote_address = address
        stream.proxy = None
        stream._start(
            io_loop,
            settings.max_buffer_size,
            settings.read_chunk_size,
            settings.max_write_buffer_size,
            settings.cork,
            settings.allow_half_open,
            settings.linger,
        )
        stream._nodelay = settings.nodelay  # inherited from the listener
        stream._owner = owner
        stream.callback_context = context
        return stream

    def set_proxied(self, info: Any) -> None:
        """See `ServedStream`."""
        self.proxy = info
        if info.source is not None:  # otherwise the proxy itself is the client
            self._remote_address = info.source

    def _hand_over_to(self, stream: "SocketStream") -> None:
        """Give the socket, and this stream's place with its owner, to ``stream``."""
        self._hub.unwatch(self)
        self._socket = None
        self._attach(Transport())  # one that does nothing: abort() of this stream must not reach the socket
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
        stream._nodelay = self._nodelay
        stream._owner, self._owner = self._owner, None
        if stream._owner is not None:
            stream._owner.stream_replaced(self, stream)

    def detach(self) -> DetachedStream:
        """Take the connection out of this stream, at once: nothing is sent, received or lost meanwhile. ::

            detached = stream.detach()
            other_loop.call_soon_threadsafe(go_on_with, detached.socket, detached.unread)

        The stream is then closed, reason ``detached``, and its pending read raises `StreamClosedError`; what that read
        had received is among the unread bytes. `TCPServer.handle_handover` is for clients that another process of the
        same service shall serve.

        :raises StreamClosedError: the stream is closed, or is being closed.
        :raises ValueError: the stream is under TLS, whose keys stay in this process; or a user's object is in the place
            of its socket.
        :raises RuntimeError: output is queued (``await stream.drain()`` first), EOF was sent, or the stream is not
            connected yet.
        """
        self._hub.check()
        if self._corked is not None:
            self.uncork()
        if self._phase != OPEN:
            raise self._closed_error("read")
        if self._layered or type(self._transport) is not SocketTransport:
            raise ValueError("a stream under TLS, or on a socket of one's own, can't be detached")
        if self._connect_future is not None or self._output is not None or self._sending_eof:
            raise RuntimeError("a stream can't be detached while it connects, or has output: await stream.drain()")
        future, unread = self._take_input()
        detached = DetachedStream(
            socket=self._release_socket(),
            unread=unread,
            data=self._data,
            remote_address=self._remote_address,
            proxy=self.proxy,
            opened_at=self.opened_at,
            bytes_read=self.bytes_read,
            bytes_written=self.bytes_written,
        )
        self.terminate(CloseReason.DETACHED)
        if future is not None:
            fail(future, self._closed_error("read"))
        return detached

    def _release_socket(self) -> Any:
        """The socket in an object of its own. The hub and this stream know it no more."""
        old = self._socket
        if self._remote_address is None:
            with contextlib.suppress(OSError):
                self._remote_address = old.getpeername()
        self._hub.unwatch(self)
        released = type(old)(old.family, old.type, old.proto, fileno=old.detach())
        released.setblocking(False)  # a new object does not know that it is
        return released

    def restore(self, detached: DetachedStream) -> None:
        """See `ServedStream`."""
        self._give_input(detached.unread)
        self._data = detached.data
        self.proxy = detached.proxy
        self.opened_at = detached.opened_at
        self.bytes_read, self.bytes_written = detached.bytes_read, detached.bytes_written
        self._committed_until = detached.bytes_written

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def close_fd(self) -> None:
        self._socket = None
        self._transport.close()

    # ---- the transport

    def _new_transport(self) -> Transport:
        return SocketTransport(self._socket)

    @property
    def socket(self) -> Any:
        """The socket, None once closed. Without TLS another object may be put in its place, for instance one that
        decompresses: the stream then calls ``recv_into(buffer, size)`` and ``send(data)`` of that object.

        Corked writes are sent first: what you do with the socket, such as ``shutdown()``, happens after them.
        """
        socket = self._socket
        self._nodelay = False  # you may change it
        if self._corked is not None:
            self._send_corked()  # a broken connection closes the stream, and then this socket raises an OSError
        return socket

    @socket.setter
    def socket(self, value: Any) -> None:
        self._hub.check()
        if self._phase == CLOSED:
            raise self._closed_error("write")
        if self._layered:
            raise AttributeError("the socket of a stream under TLS cannot be replaced")
        self._socket = value
        self._nodelay = False
        self._attach(WrappedSocket(value))
        self._readable = True  # it may have bytes for which no event comes

    def _forget_descriptor(self) -> None:
        self._transport.detach()

    @property
    def local_address(self) -> Any:
        """This end's address, as `socket.socket.getsockname` gives it; None once closed."""
        return None if self._socket is None else self._socket.getsockname()

    @property
    def remote_address(self) -> Any:
        """The peer's address as `socket.socket.getpeername` gives it. Once closed: the address if it is known, else
        None."""
        if self._remote_address is None and self._socket is not None:
            try:
                self._remote_address = self._socket.getpeername()
            except OSError:
                pass
        return self._remote_address

    def __repr__(self) -> str:
        text, peer = super().__repr__(), self.remote_address
        return f"{text[:-1]}, {show(peer)}>" if peer else text

    def set_nodelay(self, value: bool) -> None:
        """Turn Nagle's algorithm off (True: small writes leave at once) or on. Only TCP has it; others ignore it.
        If the system refuses it, the stream goes on as before."""
        self._hub.check()
        if (value and self._nodelay) or self._socket is None:
            return
        if self._socket.family not in (socket.AF_INET, socket.AF_INET6):
            return
        self._nodelay = False
        # Tornado's HTTP server calls this for each response, and an exception would lose the response, and leave the
        # connection hanging. If the connection is broken (EINVAL), the next operation reports it.
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1 if value else 0)
        except OSError:
            pass

    def connect(self, address: Any, server_hostname: str | None = None) -> "Future[Self]":
        """Connect the socket; the future gives the stream itself. ::

            stream = IOStream(socket.socket(socket.AF_UNIX))
            await stream.connect("/run/echo.sock")

        You may write at once: it is sent when the stream is connected, after the future is done. A host name in
        ``address`` is resolved by the operating system, which blocks the loop.

        :param address: as for `socket.socket.connect`.
        :param server_hostname: has no effect without TLS.
        :raises StreamClosedError: from the future; ``operation`` is "connect", and ``real_error`` says why.
        :raises ConcurrentConnectError: the stream is connecting already.
        """
        self._hub.check()
        if self._phase == CLOSED:
            return self._failed_future(self._closed_error("connect"))
        if self._connect_future is not None:
            raise of_stream(ConcurrentConnectError(), self.id)
        future: Future[Self] = Future(loop=self._hub.loop)
        try:
            self._socket.connect(address)
        except BlockingIOError:
            pass
        except OSError as error:
            self._connect_future = future
            self.terminate(reason_for(error), without_frames(error))
            return future
        self._connect_future = future
        self._readable = False
        self._output = WriteBuffer()  # for writes before it is connected
        # Not before connect(): an unconnected socket reports a hangup.
        self._reads_watched = self._hub.watch_writes(self)
        return future

    def _connected(self, events: int) -> None:
        error = self.get_fd_error()
        if error is None:
            try:
                self._remote_address = self._socket.getpeername()
            except OSError as problem:  # only here does a Unix socket report that the listener's queue is full
                error = problem
            else:
                error = self._connected_to_itself()
        if error is not None:
            return self.terminate(reason_for(error), without_frames(error))
        self._established(events)

    def _established(self, events: int) -> None:
        """The socket is connected. Dispatch ``events``, too: they may announce EOF, which is not reported twice."""
        self._finish_connecting(events | READABLE)

    def _finish_connecting(self, events: int) -> None:
        future, self._connect_future = self._connect_future, None
        if future is not None and not future.done():
            future.set_result(self)
        self._dispatch_now(events | WRITABLE)

    def _connected_to_itself(self) -> OSError | None:
        """The error, if the socket is connected to itself: if no server listens on the port, the kernel may choose it
        as this end's port. (Go's net.Dial has the same check.)"""
        if self._socket.family not in (socket.AF_INET, socket.AF_INET6) or (
            self._remote_address != self._socket.getsockname()
        ):
            return None
        return ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
