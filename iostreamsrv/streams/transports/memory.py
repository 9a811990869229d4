"""One end of a connection in memory as a transport.

A :class:`MemorySocket` has the part of a non-blocking TCP socket's interface that a stream uses. It behaves like the
kernel's: buffers fill, half-close works, and a close with unread bytes sends a reset.
"""

import errno
import os
import socket
from collections.abc import Callable
from typing import Self

from ..file_region import FileRegion
from ..readiness import HANGUP, READABLE, WRITABLE
from .base import Transport, would_block
from .socket import SocketTransport

CAPACITY = 1 << 18
"""Most bytes in each direction that were sent and not received yet: a small socket buffer, so that tests fill it soon.
"""


class MemorySocket:
    """One end of a connection.

    :ivar notify: called with the hub's events when something can be done that could not be done before.
    """

    family = socket.AF_INET

    def __init__(self, address: tuple[str, int], capacity: int) -> None:
        self.notify: Callable[[int], None] = ignore_events
        self._address = address
        self._capacity = capacity
        self._inbox = bytearray()
        self._ended = False  # the peer sends no more
        self._error = 0
        self._reset = False  # by the peer
        self._shut = False
        self._resets = False
        self._closed = False
        self._peer = self

    @classmethod
    def pair(cls, capacity: int = CAPACITY) -> tuple[Self, Self]:
        """Two connected sockets."""
        one, other = cls(("memory", 1), capacity), cls(("memory", 2), capacity)
        one._peer, other._peer = other, one
        return one, other

    def fileno(self) -> int:
        """-1: it has no descriptor."""
        return -1

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""
        assert not flag

    def getblocking(self) -> bool:
        """It never does: False."""
        return False

    def events(self) -> int:
        """The events of what can be done now."""
        readable = READABLE if self._inbox or self._ended or self._error else 0
        return readable | (WRITABLE if self._room() else 0)

    def _room(self) -> int:
        return self._peer._capacity - len(self._peer._inbox)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As `socket.socket.recv`; the only flag is ``MSG_PEEK``."""
        received = bytes(self._inbox[:size])
        if not received:
            if self._error != errno.EPIPE:  # only send() raises that: for recv() EOF came before the reset
                self._raise_error()
            if not self._ended:
                raise would_block()
        elif not flags & socket.MSG_PEEK:
            was_full = not self._peer._room()
            del self._inbox[: len(received)]
            if was_full:
                self._peer.notify(WRITABLE)
        return received

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """As `socket.socket.recv_into`."""
        received = self.recv(len(buffer))
        buffer[: len(received)] = received
        return len(received)

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """As `socket.socket.send`."""
        self._raise_error()
        if self._shut or self._reset:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        if self._peer._closed:
            return self._answered_with_a_reset(len(data))
        room = self._room()
        if not room and len(data):
            raise would_block()
        with memoryview(data) as view:
            taken = view[:room]
            self._peer._inbox += taken
            count = len(taken)
            taken.release()
        if count:
            self._peer.notify(READABLE)
        return count

    def _answered_with_a_reset(self, count: int) -> int:
        """A send to a closed socket succeeds, and is answered with a reset."""
        if count:
            self._reset = True
            self._error = errno.EPIPE
            self.notify(READABLE | WRITABLE | HANGUP)
        return count

    def shutdown(self, how: int) -> None:
        """As `socket.socket.shutdown`, for ``SHUT_WR`` only."""
        assert how == socket.SHUT_WR
        if self._reset:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        self._shut = True
        self._peer._ended = True
        self._peer.notify(READABLE | HANGUP)

    def close(self) -> None:
        """As `socket.socket.close`: with unread bytes it is a reset, as with the kernel's."""
        if not self._closed:
            self._closed = True
            if self._inbox or self._resets:
                self._peer._reset = True
                self._peer._error = errno.EPIPE if self._peer._ended else errno.ECONNRESET
            self._peer._ended = True
            self._peer.notify(READABLE | WRITABLE | HANGUP)

    def connect(self, address: object) -> None:
        """Not possible: the socket is connected already.

        :raises OSError: always.
        """
        raise OSError(errno.EISCONN, "a stream in memory is connected already")

    def getsockopt(self, level: int, option: int) -> int:
        """As `socket.socket.getsockopt`, for ``SO_ERROR`` only."""
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        error, self._error = self._error, 0
        return error

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """As `socket.socket.setsockopt`: every value of ``SO_LINGER`` requests a reset; other options do nothing."""
        if (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER):
            self._resets = True

    def getsockname(self) -> tuple[str, int]:
        """``("memory", 1)`` or ``("memory", 2)``."""
        return self._address

    def getpeername(self) -> tuple[str, int]:
        """The other of the two."""
        return self._peer._address

    def _raise_error(self) -> None:
        number, self._error = self._error, 0
        if number:
            raise OSError(number, os.strerror(number))


def ignore_events(_events: int) -> None:
    """The ``notify`` of a socket that no stream watches: do nothing."""


class MemoryTransport(SocketTransport):
    """A `MemorySocket`. The kernel does not know it, so a file is read into memory and sent from there."""

    __slots__ = ()

    file_chunk = Transport.file_chunk

    def sendfile(self, region: FileRegion, size: int) -> int | None:
        return Transport.sendfile(self, region, size)
