"""The exceptions of iostreamsrv, and the reasons why a stream closes.

The class tree, with the additional base classes from Tornado and Python::

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

So ``except tornado.iostream.StreamClosedError`` keeps working after a change of imports. Every exception can be copied
and pickled with its attributes.
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
]

Operation = Literal["read", "write", "connect", "handshake", "accept"]
"""The operation that failed; "accept" occurs only in servers of `iostreamsrv.styles`."""


class CloseReason(StrEnum):
    """Why a stream was closed. Members are strings: ``stream.close_reason == "eof"``.

    A stream keeps the first reason.
    """

    LOCAL = "local"
    """This side called ``close()`` or ``aclose()``, or its handler returned."""
    EOF = "eof"
    """The peer closed its side in an orderly way."""
    RESET = "reset"
    """The connection was refused, reset or lost by the peer's host or the network."""
    TRUNCATED = "truncated"
    """TLS: EOF without a close_notify from the peer, so the end of its data may be missing."""
    TLS_ERROR = "tls_error"
    """TLS: invalid data, or no agreement about version, ciphers or certificates."""
    PROXY_ERROR = "proxy_error"
    """The PROXY header is missing, invalid or late, or its sender is not trusted."""
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    """The TLS handshake did not finish within ``handshake_timeout``."""
    IDLE_TIMEOUT = "idle_timeout"
    """For ``idle_timeout``, no data arrived and no queued data was sent."""
    BUFFER_FULL = "buffer_full"
    """A size limit was reached: ``max_buffer_size``, ``max_write_buffer_size`` or a read's ``max_bytes``."""
    READ_TIMEOUT = "read_timeout"
    """A read exceeded ``read_timeout``; or its ``timeout`` argument, and the handler did not catch the error."""
    WRITE_TIMEOUT = "write_timeout"
    """For ``write_timeout``, the peer accepted no queued data."""
    MIN_RATE = "min_rate"
    """The data for a read arrived more slowly than ``min_rate``."""
    HANDLER_ERROR = "handler_error"
    """``handle_stream`` raised an exception."""
    SHUTDOWN = "shutdown"
    """The server shut down while the stream was open."""
    DRAIN_TIMEOUT = "drain_timeout"
    """The server shut down, and the handler did not finish within ``drain_timeout``."""
    REJECTED = "rejected"
    """The server was full, or this client already had its maximum of connections."""
    EVICTED = "evicted"
    """The server was full, and of all clients that it waits for, this one had kept it waiting longest."""
    KICKED = "kicked"
    """This side called ``kick()``."""
    ABORTED = "aborted"
    """This side called ``abort()``."""
    DETACHED = "detached"
    """The connection goes on without the stream: this side called ``detach()``, or another process has the client."""

    @property
    def by_peer(self) -> bool:
        """Whether the peer or its host ended the connection: EOF, RESET or TRUNCATED."""
        return self in (CloseReason.EOF, CloseReason.RESET, CloseReason.TRUNCATED)


# What the kernel reports when the connection was ended elsewhere. macOS reports EPROTOTYPE for a send during a
# teardown. ETIMEDOUT, EHOSTUNREACH and the like come from expired keepalive and retransmission timers, and from routers
# (ICMP); EHOSTDOWN, ENONET and EPROTO are among the latter.
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
    """The close reason for ``error``, an exception of an operating system call on a stream."""
    if isinstance(error, tornado.iostream.StreamBufferFullError | tornado.iostream.UnsatisfiableReadError):
        return CloseReason.BUFFER_FULL
    if isinstance(error, ssl.SSLError):
        return CloseReason.TLS_ERROR
    if isinstance(error, OSError) and error.errno in _PEER_GONE:
        return CloseReason.RESET
    return CloseReason.LOCAL


def without_frames(error: BaseException) -> BaseException:
    """Remove the traceback of ``error``, and return it. A stream keeps its error, and the traceback would keep the
    stream and its buffers."""
    error.__context__ = None
    return error.with_traceback(None)


Error = TypeVar("Error", bound=BaseException)


def of_stream(error: Error, stream_id: int) -> Error:
    """Set ``error.stream_id``, unless the error has one, and return the error.

    :param error: an exception that code raises for a stream.
    :param stream_id: the ``id`` of that stream.
    """
    if getattr(error, "stream_id", None) is None:
        error.stream_id = stream_id  # type: ignore[attr-defined]  # also of an ssl.SSLError
    return error


def _without_init(cls: type[Error], args: tuple[Any, ...]) -> Error:
    """Make a copy of an exception whose constructor has other parameters than ``args``."""
    error = cls.__new__(cls)
    error.args = args
    return error


class StreamError(Exception):
    """Base class of the exceptions of a stream.

    :ivar operation: the :data:`Operation` in progress; ``None`` if there was none.
    :ivar reason: the :class:`CloseReason` of the stream; ``None`` if the stream stays open.
    :ivar stream_id: the ``id`` of the stream that raised it; an `ssl.SSLError` of a handshake has it, too. ``None`` if
        there is no stream, for example when no connection could be made. With it, a handler can distinguish a failure
        of its client from one of another peer::

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
    """The stream is closed, so the operation is not possible. ::

        try:
            line = await stream.read_until(b"\\n")
        except StreamClosedError as error:
            if error.reason == "eof":
                line = await stream.read_bytes(stream.buffered)  # the last line had no newline

    :ivar real_error: the error that closed the stream (often an `OSError`), or ``None`` after an orderly close.
    :ivar errno: the ``errno`` of ``real_error``, or ``None``.
    """

    def __init__(
        self,
        real_error: BaseException | None = None,
        operation: Operation | None = None,
        reason: CloseReason | None = None,
        stream_id: int | None = None,
    ) -> None:
        # What Tornado's constructor does, without a call of it: each client's end makes one of these.
        OSError.__init__(self, "Stream is closed")
        self.real_error = real_error
        if real_error is not None:
            self.errno = getattr(real_error, "errno", None)
        self.operation = operation
        self.reason = reason
        self.stream_id = stream_id

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError does not keep errno in __dict__.
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
    """A timeout passed: that of a read, of `TCPClient.connect`, or of a server. After the ``timeout`` of a read, the
    stream stays open and keeps all bytes. ::

        try:
            line = await stream.read_until(b"\\n", timeout=60)
        except StreamTimeoutError:
            await stream.write(b"good bye\\n")

    When a server closes a stream because of a server timeout, this is the stream's ``error``.

    :ivar operation: "read", "write", "connect", "handshake" or "accept".
    """

    def __init__(self, operation: Operation, seconds: float, message: str | None = None) -> None:
        super().__init__(message or f"{operation} not finished within {seconds:g} s")
        self.operation = operation

    __reduce__ = StreamError.__reduce__  # before OSError's, which calls the constructor


class KickedError(StreamError):
    """This side called ``stream.kick(message)``; the message is the error's text.

    It is never raised itself: it is the stream's ``error``, and the ``real_error`` of the handler's
    `StreamClosedError`.
    """

    reason: CloseReason | None = CloseReason.KICKED


class FramingError(StreamError, ValueError):
    """Received data is not a message of the framing, or a message to be sent is invalid: :mod:`iostreamsrv.framing`.

    If a handler does not catch an error of reading from its client, the client is closed and no traceback is logged,
    because the client caused the error. With ``operation`` "write" it did not, so the traceback is logged. It is also
    logged for an error that your code raises, unless :func:`of_stream` says that the client caused it::

        raise of_stream(FramingError("the checksum is wrong"), stream.id)
    """

    reason: CloseReason | None = CloseReason.LOCAL


class StreamBufferFullError(tornado.iostream.StreamBufferFullError, StreamError):
    """The size limit of a buffer was reached.

    A write that raises it has queued nothing, and the stream stays open. A read closes the stream and raises a
    `StreamClosedError` with this as its ``real_error``. ::

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
    """A read was started while another one is pending. The pending read continues."""

    operation: Operation | None = "read"

    def __init__(self) -> None:
        super().__init__("Already reading: another read is pending on this stream")


class ConcurrentConnectError(AssertionError, StreamError):
    """``connect`` was called on a stream that is connecting. The first call continues."""

    operation: Operation | None = "connect"

    def __init__(self) -> None:
        super().__init__("Already connecting")


class OptionError(ValueError):
    """The value of an option or argument is invalid. Raised before any socket is bound. ::

        try:
            server.listen(arguments.port, arguments.host)
        except (ListenError, OptionError) as error:
            sys.exit(f"echo: {error}")

    :ivar option: the option's name.
    :ivar value: the value that was given.
    :ivar problem: what is wrong with it: the message without the option and the value.
    """

    def __init__(self, option: str, value: object, problem: str) -> None:
        super().__init__(f"{option}={value!r}: {problem}")
        self.option = option
        self.value = value
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_init, (type(self), self.args), dict(vars(self))


class CertificateError(OptionError, KeyError):
    """Something in ``ssl_options`` is invalid: a file, or the value of an option. ::

        try:
            server = EchoServer(ssl_options={"certfile": "/etc/echo/cert.pem", "keyfile": "/etc/echo/key.pem"})
        except CertificateError as error:
            sys.exit(str(error))  # keyfile='/etc/echo/key.pem': No such file or directory

    :ivar option: the option: "certfile", "keyfile", "ciphers"…; for a server name, ``sni['example.org'].certfile``.
    :ivar value: its value, for example the path of the file. Passwords are not shown.
    """

    __str__ = OptionError.__str__  # KeyError's would add quotes


class ListenError(OSError):
    """The server could not listen on an address. ``str()`` names the address. ::

        try:
            server.listen(8888)
        except ListenError as error:
            sys.exit(str(error))  # cannot listen on 0.0.0.0:8888: Address already in use

    :ivar errno: the operating system's error number; one of `socket`'s ``EAI_*`` if a name was not resolved.
    """

    def __str__(self) -> str:
        return printable(str(self.strerror))


class ResolveError(socket.gaierror):
    """A host or a service name was not resolved. ``str()`` has both. ::

        try:
            stream = await client.connect(host, port)
        except ResolveError as error:
            print(error)  # cannot resolve no.such.host:8888: Name or service not known

    :ivar errno: one of `socket`'s ``EAI_*``.
    """

    def __str__(self) -> str:
        return printable(str(self.strerror))
