"""Streams: what a handler reads from and writes to.

The names and meanings are Tornado's, and so are the base classes, for ``isinstance``; none of their code or fields is
used. The work is done in :mod:`iostreamsrv.streams`.
"""

import errno
import socket
import ssl
import sys
from asyncio import Future
from contextvars import Context
from types import EllipsisType
from typing import Any, cast

import tornado.iostream

from .certs.cache import context_for_one
from .certs.certificates import Certificates
from .errors import OptionError, StreamBufferFullError, StreamClosedError, UnsatisfiableReadError
from .options import check_optional_timeout
from .runtime.exports import names_of
from .sansio.reads import MORE
from .streams import handshake
from .streams.detached import DetachedStream
from .streams.handshake import TLSStream
from .streams.lifecycle import BaseIOStream, TransportStream
from .streams.sockets import SocketStream
from .streams.state import CLOSED
from .streams.transports.base import Transport
from .streams.transports.pipe import PipeTransport

__all__ = [
    "MORE",
    "BaseIOStream",
    "DetachedStream",
    "IOStream",
    "PipeIOStream",
    "SSLIOStream",
    "StreamBufferFullError",
    "StreamClosedError",
    "UnsatisfiableReadError",
]

__getattr__, __dir__ = names_of(tornado.iostream, globals())


class IOStream(SocketStream, tornado.iostream.IOStream):  # type: ignore[misc]
    """A stream on a socket. ::

        stream = IOStream(socket.socket())
        await stream.connect(("127.0.0.1", 8888))

    :param socket: connected, or new and then given to :meth:`connect`. It is made non-blocking and belongs to the
        stream.

    The other parameters are those of `BaseIOStream`.
    """

    __slots__ = ()

    def start_tls(  # type: ignore[override]
        self,
        server_side: bool,
        ssl_options: dict[str, Any] | ssl.SSLContext | Certificates | None = None,
        server_hostname: str | None = None,
        *,
        timeout: float | EllipsisType | None = ...,
    ) -> "Future[SSLIOStream]":
        """Upgrade to TLS: when the handshake is done, the future gives a new stream, to be used in place of this one.

        Bytes that were received and not read are taken for the beginning of the peer's handshake, never for plaintext.
        A cancel of the future closes the connection. ::

            await stream.write(b"220 go ahead\\r\\n")
            stream = await stream.start_tls(True, {"certfile": "cert.pem", "keyfile": "key.pem"})

        :param server_side: whether this is the server's end.
        :param ssl_options: a dict or an `ssl.SSLContext`, see :mod:`iostreamsrv.certificates`. None: the client's
            defaults, which verify. What a dict's files hold is kept for the next connection with the same dict, until
            one of them changes; `Certificates` are read again when they are told to.
        :param server_hostname: for the client's end: the name that the server's certificate is to have.
        :param timeout: seconds for the handshake; None for no limit. Then the connection is closed, reason
            ``handshake_timeout``. Default: the ``handshake_timeout`` of the stream's server; 10 without a server.
        :raises ValueError: a read, a write or a connect is pending.
        :raises StreamClosedError: the stream is closed.
        :raises CertificateError: an option is invalid.
        :raises OptionError: ``timeout`` is not a number of seconds above 0.
        :raises ssl.SSLError: from the future; the handshake failed.
        """
        self._hub.check()
        self._send_corked()
        if self._phase == CLOSED:
            raise self._closed_error("handshake")
        if self.reading() or self._output is not None or self._connect_future is not None:
            raise ValueError("the stream is not idle: TLS cannot start while it reads, writes or connects")
        if server_side and ssl_options is None:
            raise OptionError("ssl_options", None, "a server needs a certificate")
        if server_side and isinstance(ssl_options, Certificates):
            context = ssl_options.context
        else:
            context = context_for_one(cast(Any, ssl_options), server_side)  # Certificates of a client are refused there
        seconds = self._handshake_timeout() if timeout is ... else check_optional_timeout("timeout", timeout)
        return self._start_tls(context, server_side, server_hostname, seconds)

    def _handshake_timeout(self) -> float | None:
        return handshake.default_timeout if self._owner is None else self._owner.handshake_timeout

    def _start_tls(
        self, context: ssl.SSLContext, server_side: bool, server_hostname: str | None, timeout: float | None
    ) -> "Future[SSLIOStream]":
        stream = SSLIOStream.__new__(SSLIOStream)
        stream._socket = self._socket
        stream._remote_address = self.remote_address
        stream._start(
            self.io_loop,
            self.max_buffer_size,
            self.read_chunk_size,
            self.max_write_buffer_size,
            self.cork,
            self.allow_half_open,
            self.linger,
        )
        received = self._buffer.take(self._buffer.size)
        self._hand_over_to(stream)
        stream._prepare(context)
        stream._server_hostname = server_hostname
        future = stream.wait_for_handshake()
        future.add_done_callback(lambda future: stream.close() if future.cancelled() else None, context=Context())
        stream._begin_handshake(server_side, timeout, received)
        return future


class SSLIOStream(TLSStream, IOStream, tornado.iostream.SSLIOStream):  # type: ignore[misc]
    """A stream on a socket, under TLS.

    It is made by a server with ``ssl_options``, by `TCPClient`, by :meth:`IOStream.start_tls`, or by hand::

        stream = SSLIOStream(socket.socket())
        await stream.connect(("93.184.216.34", 443), server_hostname="example.com")

    ``stream.socket`` also answers what one asks an `ssl.SSLSocket`: ``getpeercert()``, ``cipher()``, ``version()``,
    ``selected_alpn_protocol()``. What would send or receive past TLS, or close, is not there, and raises
    `AttributeError`. All sizes and counts are of plaintext; only ``queued`` has TLS's own answers to the peer in it as
    well.

    :param socket: not connected yet, and then given to :meth:`connect`; or connected, and this is the client's end; or
        an `ssl.SSLSocket` that has not done its handshake, which is taken over with its context and its side.
    :param ssl_options: a dict or an `ssl.SSLContext`, see :func:`iostreamsrv.certificates.client_context`; None for
        defaults that verify. Of an `ssl.SSLSocket` its own are used.
    :raises CertificateError: an option is invalid.

    The other parameters are those of `BaseIOStream`.
    """

    __slots__ = ()

    def __init__(
        self,
        socket: socket.socket,
        max_buffer_size: float | None = None,
        read_chunk_size: int | None = None,
        max_write_buffer_size: float | None = None,
        *,
        ssl_options: dict[str, Any] | ssl.SSLContext | None = None,
        cork: bool = True,
        allow_half_open: bool = False,
    ) -> None:
        server_side, hostname = False, None
        if isinstance(socket, ssl.SSLSocket):
            context, server_side, hostname = socket.context, socket.server_side, socket.server_hostname
            socket = _plain(socket)
        else:
            context = context_for_one(ssl_options, False)
        IOStream.__init__(
            self,
            socket,
            max_buffer_size,
            read_chunk_size,
            max_write_buffer_size,
            cork=cork,
            allow_half_open=allow_half_open,
        )
        self._prepare(context)
        self._server_hostname = hostname
        if self.remote_address is not None:
            self._begin_handshake(server_side, None)

    def start_tls(self, *args: Any, **kwargs: Any) -> Any:
        """There is TLS already.

        :raises ValueError: always.
        """
        raise ValueError("TLS has started on this stream already")

    @property
    def alpn(self) -> str | None:
        """The protocol that both sides agreed on (ALPN); None where they did not."""
        return None if self._tls is None else self._tls.engine.object.selected_alpn_protocol()

    @property
    def peer_certificate(self) -> Any:
        """The peer's certificate if it was verified, as `ssl.SSLSocket.getpeercert` gives it: subject, names, dates.

        None where the peer has shown none, or it was not verified.
        """
        tls = self._tls
        return (tls is not None and tls.handshaken and tls.engine.object.getpeercert()) or None


def _plain(wrapped: ssl.SSLSocket) -> socket.socket:
    """The socket below; its own TLS has not begun."""
    if wrapped.version() is not None:
        raise OptionError("socket", wrapped, "has done its handshake: what it has received would be lost")
    family, kind = wrapped.family, wrapped.type
    return socket.socket(family, kind, fileno=wrapped.detach())


class PipeIOStream(TransportStream, tornado.iostream.PipeIOStream):  # type: ignore[misc]
    """A stream on one end of a pipe, to read from or to write to. Not on Windows. ::

        reader, writer = os.pipe()
        subprocess.Popen(["ls"], stdout=writer)
        os.close(writer)
        listing = await PipeIOStream(reader).read_until_close()

    :param fd: the descriptor, such as `os.pipe` gives. It is made non-blocking and belongs to the stream.
    :ivar fd: that descriptor.

    The other parameters are those of `BaseIOStream`, but a pipe has one direction, and so no half.
    """

    __slots__ = ("fd",)

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
        self.fd = fd
        TransportStream.__init__(self, max_buffer_size, read_chunk_size, max_write_buffer_size, cork=cork)

    def _new_transport(self) -> Transport:
        return PipeTransport(self.fd)

    def fileno(self) -> int:
        return self._transport.fileno()

    def close_fd(self) -> None:
        self._transport.close()
