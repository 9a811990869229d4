"""iostreamsrv: the TCP server you subclass. Tornado's API, fast, safe by default, nothing lost."""

from .cores import core  # first of all: it decides what the other modules are
from .errors import (
    CertificateError,
    CloseReason,
    ConcurrentConnectError,
    ConcurrentReadError,
    FramingError,
    KickedError,
    ListenError,
    OptionError,
    ResolveError,
    StreamBufferFullError,
    StreamClosedError,
    StreamError,
    StreamTimeoutError,
    UnsatisfiableReadError,
)
from .events import Event
from .ioloop import IOLoop, run
from .iostream import BaseIOStream, IOStream, PipeIOStream, SSLIOStream
from .netutil import (
    Endpoint,
    add_accept_handler,
    bind_sockets,
    bind_unix_socket,
    inherited_sockets,
    resolve,
    socket_from_fd,
)
from .options import Keepalive, ServerOptions
from .server.groups import Group
from .tcpclient import TCPClient
from .tcpserver import TCPServer
from .version import __version__

__all__ = [
    "BaseIOStream",
    "CertificateError",
    "CloseReason",
    "ConcurrentConnectError",
    "ConcurrentReadError",
    "Endpoint",
    "Event",
    "FramingError",
    "Group",
    "IOLoop",
    "IOStream",
    "Keepalive",
    "KickedError",
    "ListenError",
    "OptionError",
    "PipeIOStream",
    "ResolveError",
    "SSLIOStream",
    "ServerOptions",
    "StreamBufferFullError",
    "StreamClosedError",
    "StreamError",
    "StreamTimeoutError",
    "TCPClient",
    "TCPServer",
    "UnsatisfiableReadError",
    "__version__",
    "add_accept_handler",
    "bind_sockets",
    "bind_unix_socket",
    "core",
    "inherited_sockets",
    "resolve",
    "run",
    "socket_from_fd",
]
