"""Tornado's extension points as a transport: a user's ``read_from_fd`` and ``write_to_fd``."""

from typing import Protocol

from .base import Transport, received, would_block


class Descriptor(Protocol):
    """The methods of a stream that users may override; see `iostreamsrv.BaseIOStream`."""

    def fileno(self) -> int:
        """The descriptor."""

    def close_fd(self) -> None:
        """Close it."""

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Receive into ``buf``."""

    def write_to_fd(self, data: bytes | bytearray | memoryview) -> int | None:
        """Send ``data``."""


class CustomTransport(Transport):
    """Receives and sends through methods of a stream: those that a user's subclass has, or that a user has assigned."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Descriptor) -> None:
        self._stream = stream

    def fileno(self) -> int:
        return self._stream.fileno()

    def recv(self, size: int) -> bytes:
        return received(self.recv_into, size)

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:
        count = self._stream.read_from_fd(buffer)
        if count is None:
            raise would_block()
        return count

    def send(self, data: bytes | bytearray | memoryview) -> int:
        return self._stream.write_to_fd(data) or 0

    def close(self) -> None:
        self._stream.close_fd()
