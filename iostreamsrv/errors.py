"""Every exception iostreamsrv raises, and the reasons a stream can end with.

The tree, with the classes of Tornado and of Python that each also is::

    StreamError                       operation, reason, stream_id
    ├── StreamClosedError             tornado.iostream.StreamClosedError, OSError
    ├── StreamTimeoutError            TimeoutError
    ├── StreamBufferFullError         tornado.iostream.StreamBufferFullError
    ├── UnsatisfiableReadError        tornado.iostream.UnsatisfiableReadError
    ├── KickedError
    ├── FramingError                  ValueError
    ├── ConcurrentReadError           AssertionError
    └── ConcurrentConnectError        AssertionError
    OptionError                       ValueError
    └── CertificateError              KeyError
    ListenError                       OSError
    ResolveError                      socket.gaierror, OSError

So ``except tornado.iostream.StreamClosedError`` keeps working after a change of imports. errno values become reasons
in one place, :func:`reason_for`. Every exception can be copied and pickled, with its fields.
"""

import errno
import socket
import ssl
from enum import StrEnum
from typing import Any, Literal, TypeVar

import tornado.iostream

from .runtime.text import printable

__all__ = [
    "CertificateError",
    "CloseReason",
    "ConcurrentConnectError",
    "ConcurrentReadError",
    "FramingError",
    "KickedError",
    "ListenError",
    "Operation",
    "OptionError",
    "ResolveError",
    "StreamBufferFullError",
    "StreamClosedError",
    "StreamError",
    "StreamTimeoutError",
    "UnsatisfiableReadError",
    "of_stream",
    "reason_for",
    "without_frames",
]

Operation = Literal["read", "write", "connect", "handshake", "accept"]
"""What a stream was asked to do, or was being done to it, when an error arose."""


class CloseReason(StrEnum):
    """Why a stream ended. Members are strings: ``stream.close_reason == "eof"``.

    The first reason given is the one that stays.
    """

    LOCAL = "local"
    """This side called ``close()`` or ``aclose()``, or its handler returned."""
    EOF = "eof"
    """The peer closed its side in order."""
    RESET = "reset"
    """The peer's host refused, reset or lost the connection."""
    TRUNCATED = "truncated"
    """TLS: the peer's side ended without saying so (no close_notify), so the end of what it sent may be missing."""
    TLS_ERROR = "tls_error"
    """TLS: what arrived is none, or the two sides do not agree: version, ciphers, certificates."""
    PROXY_ERROR = "proxy_error"
    """The PROXY header is missing, wrong or late, or came from a peer that is not trusted to send one."""
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    """The TLS handshake was not finished within ``handshake_timeout``."""
    IDLE_TIMEOUT = "idle_timeout"
    """For ``idle_timeout`` nothing came in, and nothing that is queued went out."""
    BUFFER_FULL = "buffer_full"
    """A size limit was reached: ``max_buffer_size``, ``max_write_buffer_size`` or a read's ``max_bytes``."""
    READ_TIMEOUT = "read_timeout"
    """A read took longer than ``read_timeout``, or than its own ``timeout`` and the handler did not catch that."""
    WRITE_TIMEOUT = "write_timeout"
    """For ``write_timeout`` the peer took nothing of what is queued."""
    MIN_RATE = "min_rate"
    """What a read waited for came more slowly than ``min_rate``."""
    HANDLER_ERROR = "handler_error"
    """``handle_stream`` raised."""
    SHUTDOWN = "shutdown"
    """The server ended while the stream was open."""
    DRAIN_TIMEOUT = "drain_timeout"
    """The server ended, and the handler had not finished within ``drain_timeout``."""
    REJECTED = "rejected"
    """The server was full, or had enough connections of this client."""
    EVICTED = "evicted"
    """The server was full, and of those who keep it waiting this client had done so for the longest time."""
    KICKED = "kicked"
    """This side called ``kick()``."""
    ABORTED = "aborted"
    """This side called ``abort()``."""

    @property
    def by_peer(self) -> bool:
        """True where the other side ended the connection."""
        return self in (CloseReason.EOF, CloseReason.RESET, CloseReason.TRUNCATED)


# What the kernel reports when the connection ended elsewhere. EPROTOTYPE is what macOS says when a send meets a
# teardown; ETIMEDOUT, EHOSTUNREACH and their kin come from keepalive and retransmission giving up, and from
# what routers report (ICMP), EHOSTDOWN, ENONET and EPROTO among them.
_PEER_GONE = frozenset(
    {
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.EPIPE,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EPROTO,
        errno.ESHUTDOWN,
        errno.EPROTOTYPE,
        getattr(errno, "ENONET", errno.ENETDOWN),  # which only Linux has
    }
)


def reason_for(error: BaseException | None) -> CloseReason:
    """The reason that ``error``, raised by an operating system call on a stream, amounts to."""
    if isinstance(error, tornado.iostream.StreamBufferFullError | tornado.iostream.UnsatisfiableReadError):
        return CloseReason.BUFFER_FULL
    if isinstance(error, ssl.SSLError):
        return CloseReason.TLS_ERROR
    if isinstance(error, OSError) and error.errno in _PEER_GONE:
        return CloseReason.RESET
    return CloseReason.LOCAL


def without_frames(error: BaseException) -> BaseException:
    """``error`` itself, to be kept by a stream: its traceback would keep the stream and its buffers in turn."""
    error.__context__ = None
    return error.with_traceback(None)


Error = TypeVar("Error", bound=BaseException)


def of_stream(error: Error, stream_id: int) -> Error:
    """``error`` itself, with the ``stream_id`` of the stream that raises it. One that has an id keeps it."""
    if getattr(error, "stream_id", None) is None:
        error.stream_id = stream_id  # type: ignore[attr-defined]  # also of an ssl.SSLError
    return error


def _without_init(cls: type[Error], args: tuple[Any, ...]) -> Error:
    """For copies: an exception whose constructor takes something else than ``args``."""
    error = cls.__new__(cls)
    error.args = args
    return error


class StreamError(Exception):
    """Base of what a stream raises.

    :ivar operation: what was being done, an :data:`Operation`; ``None`` where no operation was under way.
    :ivar reason: the :class:`CloseReason` of the stream, or ``None`` while the stream stays open.
    :ivar stream_id: the ``id`` of the stream that raised it, also of an `ssl.SSLError` of its handshake; ``None`` where
        there is no stream, as when no connection could be made. A server's handler tells by it whether its client
        failed, or another peer::

            except StreamClosedError as error:
                if error.stream_id == upstream.id:
                    await stream.write(b"502 Bad Gateway\\n")
    """

    operation: Operation | None = None
    reason: CloseReason | None = None
    stream_id: int | None = None

    def __str__(self) -> str:
        return printable(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_init, (type(self), self.args), dict(vars(self))


class StreamClosedError(tornado.iostream.StreamClosedError, StreamError):
    """The stream is closed: the operation cannot be done, now or later. ::

        try:
            line = await stream.read_until(b"\\n")
        except StreamClosedError as error:
            if error.reason == "eof":
                line = await stream.read_bytes(stream.buffered)  # the last one had no newline

    :ivar real_error: the error that closed the stream (often an `OSError`), or ``None`` after an orderly close.
    :ivar errno: that of ``real_error``, or ``None``.
    """

    def __init__(
        self,
        real_error: BaseException | None = None,
        operation: Operation | None = None,
        reason: CloseReason | None = None,
        stream_id: int | None = None,
    ) -> None:
        super().__init__(real_error)
        self.errno = getattr(real_error, "errno", None)
        self.operation = operation
        self.reason = reason
        self.stream_id = stream_id

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError keeps its errno elsewhere. What the kernel said is all that it says of it.
        return _without_init, (type(self), self.args), {**vars(self), "errno": self.errno}

    def __str__(self) -> str:
        if self.operation == "connect" and isinstance(self.real_error, OSError):
            target = self.real_error.filename
            return printable(f"cannot connect{f' to {target}' if target else ''}: {self.real_error.strerror}")
        text = "Stream is closed"
        if self.reason is not None:
            side = "by the peer" if self.reason.by_peer else "on this side"
            text += f" {side} ({self.reason})"
        if self.operation is not None:
            text += f", during {self.operation}"
        if self.real_error is not None:
            text += f": {self.real_error}"
        return printable(text)


class StreamTimeoutError(TimeoutError, StreamError):
    """A time limit passed: the ``timeout`` of a read, or of `TCPClient.connect`. After a read the stream goes on, with
    all bytes. ::

        try:
            line = await stream.read_until(b"\\n", timeout=60)
        except StreamTimeoutError:
            await stream.write(b"good bye\\n")

    Of a stream that a server closed for one of its own timeouts it is the ``error``.

    :ivar operation: "read", "write", "connect" or "handshake".
    """

    def __init__(self, operation: Operation, seconds: float, message: str | None = None) -> None:
        super().__init__(message or f"{operation} not finished within {seconds:g} s")
        self.operation = operation

    __reduce__ = StreamError.__reduce__  # before OSError's, which calls the constructor


class KickedError(StreamError):
    """Somebody on this side called ``stream.kick(message)``, which is the text of it.

    It is never raised by itself: it is the stream's ``error``, and the ``real_error`` of the `StreamClosedError` that
    its handler gets.
    """

    reason: CloseReason | None = CloseReason.KICKED


class FramingError(StreamError, ValueError):
    """What came is no message of its framing, or what is to be sent cannot be one; see :mod:`iostreamsrv.framing`.

    A handler that leaves one of its client's stream uncaught has its client closed, without a traceback: the client
    caused it. If ``operation`` is "write" it did not, and there is one; nor is it known of an error that was raised by
    hand, for which :func:`of_stream` is there::

        raise of_stream(FramingError("the checksum is wrong"), stream.id)
    """

    reason: CloseReason | None = CloseReason.LOCAL


class StreamBufferFullError(tornado.iostream.StreamBufferFullError, StreamError):
    """A buffer's limit was reached.

    A write raises it, takes nothing and leaves the stream open. A read raises `StreamClosedError` instead, whose
    ``real_error`` this is: the stream was closed. ::

        try:
            stream.write(news)
        except StreamBufferFullError:
            stream.abort()  # that client has stopped reading
    """

    def __init__(self, message: str = "", operation: Operation | None = None) -> None:
        super().__init__(message)
        self.operation = operation
        if operation == "read":
            self.reason = CloseReason.BUFFER_FULL


class UnsatisfiableReadError(tornado.iostream.UnsatisfiableReadError, StreamError):
    """A read found no match within its ``max_bytes``; the stream was closed.

    It is the ``real_error`` of the `StreamClosedError` that the read raises.
    """

    operation: Operation | None = "read"
    reason: CloseReason | None = CloseReason.BUFFER_FULL


class ConcurrentReadError(AssertionError, StreamError):
    """A read was started while another one is pending; the pending one is unharmed."""

    operation: Operation | None = "read"

    def __init__(self) -> None:
        super().__init__("Already reading: another read is pending on this stream")


class ConcurrentConnectError(AssertionError, StreamError):
    """A stream was told to connect while it is connecting; that goes on unharmed."""

    operation: Operation | None = "connect"

    def __init__(self) -> None:
        super().__init__("Already connecting")


class OptionError(ValueError):
    """An option has a value it cannot have. Raised before anything is bound. ::

        try:
            server.listen(arguments.port, arguments.host)
        except (ListenError, OptionError) as error:
            sys.exit(f"echo: {error}")

    :ivar option: the option's name.
    :ivar value: the value that was given.
    """

    def __init__(self, option: str, value: object, problem: str) -> None:
        super().__init__(f"{option}={value!r}: {problem}")
        self.option = option
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_init, (type(self), self.args), dict(vars(self))


class CertificateError(OptionError, KeyError):
    """Something in ``ssl_options`` cannot be used: a file, or what an option asks for. ::

        try:
            server = EchoServer(ssl_options={"certfile": "/etc/echo/cert.pem", "keyfile": "/etc/echo/key.pem"})
        except CertificateError as error:
            sys.exit(str(error))  # keyfile='/etc/echo/key.pem': No such file or directory

    :ivar option: what is wrong: "certfile", "keyfile", "ciphers"…; that of a name ``sni['example.org'].certfile``.
    :ivar value: its value: the path of the file. Passwords are not shown.
    """

    __str__ = OptionError.__str__  # KeyError's would put it into quotes


class ListenError(OSError):
    """An address cannot be listened on. ``str()`` names the address. ::

        try:
            server.listen(8888)
        except ListenError as error:
            sys.exit(str(error))  # cannot listen on 0.0.0.0:8888: Address already in use

    :ivar errno: the operating system's; for a name that does not resolve one of `socket`'s ``EAI_*``.
    """

    def __str__(self) -> str:
        return printable(str(self.strerror))


class ResolveError(socket.gaierror):
    """A host or a service has no address. ``str()`` names both. ::

        try:
            stream = await client.connect(host, port)
        except ResolveError as error:
            print(error)  # cannot resolve no.such.host:8888: Name or service not known

    :ivar errno: one of `socket`'s ``EAI_*``.
    """

    def __str__(self) -> str:
        return printable(str(self.strerror))
