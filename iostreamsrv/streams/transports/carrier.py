"""What of a socket's transport each message or connection needs. ``carrier.pyx`` is the compiled twin."""

import socket

from .base import Carrier, Transport


class SocketCarrier(Transport):
    """Receives from a socket, sends to it, and closes it.

    :ivar socket: that socket; non-blocking.
    """

    __slots__ = ("socket",)

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def carrier(self) -> Carrier:
        # Here the socket itself, which saves a Python call for each message; in the compiled core this object.
        return self.socket

    def recv(self, size: int) -> bytes:
        return self.socket.recv(size)

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:
        return self.socket.recv_into(buffer)

    def send(self, data: bytes | bytearray | memoryview) -> int:
        return self.socket.send(data)

    def close(self) -> None:
        self.socket.close()
