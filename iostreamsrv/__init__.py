"""iostreamsrv: the TCP server you subclass. Tornado's API, fast, safe by default, nothing lost."""

from .errors import (
    CloseReason,
    ConcurrentConnectError,
    ConcurrentReadError,
    ListenError,
    OptionError,
    ResolveError,
    StreamBufferFullError,
    StreamClosedError,
    StreamError,
    StreamTimeoutError,
    UnsatisfiableReadError,
)
from .ioloop import IOLoop, run
from .iostream import BaseIOStream, IOStream, PipeIOStream
from .netutil import bind_sockets
from .options import ServerOptions
from .tcpclient import TCPClient
from .tcpserver import TCPServer
from .version import __version__

__all__ = [
    "BaseIOStream",
    "CloseReason",
    "ConcurrentConnectError",
    "ConcurrentReadError",
    "IOLoop",
    "IOStream",
    "ListenError",
    "OptionError",
    "PipeIOStream",
    "ResolveError",
    "ServerOptions",
    "StreamBufferFullError",
    "StreamClosedError",
    "StreamError",
    "StreamTimeoutError",
    "TCPClient",
    "TCPServer",
    "UnsatisfiableReadError",
    "__version__",
    "bind_sockets",
    "run",
]
