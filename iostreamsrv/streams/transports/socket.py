"""A socket as a transport."""

import contextlib
import errno
import os
import socket
import struct

from ...runtime.kernel import current_kernel
from ..file_region import FileRegion
from .base import Carrier, Transport, received, would_block
from .carrier import SocketCarrier

FILE_CHUNK = 1 << 20
"""Bytes of a file that are sent before a check of the clock, so that a long download does not block the loop."""


class SocketTransport(SocketCarrier):
    """A plain socket."""

    __slots__ = ()

    has_half_close = True
    empties = True
    file_chunk = FILE_CHUNK

    def fileno(self) -> int:
        return self.socket.fileno()

    def sendfile(self, region: FileRegion, size: int) -> int | None:
        if region.fd >= 0 and _SENDFILE and current_kernel().has_files:
            try:
                return _SENDFILE(self.socket.fileno(), region.fd, region.offset, size) or None
            except OSError as error:
                if error.errno not in _NO_SENDFILE:
                    raise
        return Transport.sendfile(self, region, size)

    def shutdown_write(self) -> bool:
        self.socket.shutdown(socket.SHUT_WR)
        return True

    def reset(self) -> None:
        if self.is_tcp():
            # SO_LINGER with 0 seconds requests a reset.
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def is_tcp(self) -> bool:
        """Whether it is a TCP socket, not a Unix socket."""
        return self.socket.family in (socket.AF_INET, socket.AF_INET6)

    def detach(self) -> None:
        self.socket.detach()

    def error(self) -> Exception | None:
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return OSError(number, os.strerror(number)) if number else None

    def has_input(self) -> bool:
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def unsent(self) -> int:
        if not self.is_tcp():
            return 0  # on a Unix socket the peer can read it already
        return current_kernel().unsent(self.fileno())

    def untaken(self) -> int:
        # The kernel buffers megabytes, and reports room only when a third of it is free. So bytes that it has taken
        # are no progress of the peer; only bytes that have left its buffer are.
        return current_kernel().unsent(self.fileno())


class WrappedSocket(SocketTransport):
    """A user's object in the place of a stream's socket: it receives and sends through that socket, and changes the
    bytes. What it gives says nothing about what the kernel has left."""

    __slots__ = ()

    empties = False

    def carrier(self) -> Carrier:
        return self

    def recv(self, size: int) -> bytes:
        return received(self.recv_into, size)

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:
        try:
            return self.socket.recv_into(buffer, len(buffer))
        except OSError as error:
            if error.args == (errno.EAGAIN,):  # made by hand, which gives no BlockingIOError
                raise would_block() from None
            raise

    def sendfile(self, region: FileRegion, size: int) -> int | None:
        return Transport.sendfile(self, region, size)


_SENDFILE = getattr(os, "sendfile", None)
_NO_SENDFILE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSOCK})
"""The errors of ``sendfile`` for a socket or a file system that does not support it."""
