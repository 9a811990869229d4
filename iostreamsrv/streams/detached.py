"""A connection without a stream: what `IOStream.detach` gives."""

import socket
from dataclasses import dataclass
from typing import Any

from ..runtime.exports import set_module


@set_module("iostreamsrv.iostream")
@dataclass(frozen=True, slots=True, kw_only=True)
class DetachedStream:
    """All that a stream had. Its holder owns the socket.

    :ivar socket: the connected socket, non-blocking.
    :ivar unread: bytes that were received, and that no read has given. They come before those in the socket.
    :ivar data: the stream's ``data``; None if it was never used.
    :ivar remote_address: the peer's address; behind a proxy, the client's.
    :ivar proxy: the stream's ``proxy``.
    :ivar opened_at: when the connection was made, as `time.time`.
    :ivar bytes_read: bytes received so far, including the unread ones.
    :ivar bytes_written: bytes that the kernel has taken so far.
    """

    socket: socket.socket
    unread: bytes
    data: dict[Any, Any] | None
    remote_address: Any
    proxy: Any
    opened_at: float
    bytes_read: int
    bytes_written: int
