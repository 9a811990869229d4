"""The kernel's queue of connections to a listener. ``backlog.pyx`` is the compiled twin."""

import socket
from typing import Any


class Backlog:
    """Connections that wait to be accepted.

    :param listener: a listening socket, non-blocking.
    :param blocking: whether accepted connections are as ``listener.accept()`` gives them; otherwise they are
        non-blocking.
    """

    def __init__(self, listener: socket.socket, blocking: bool) -> None:
        self._listener = listener
        self._blocking = blocking

    def accept(self) -> tuple[socket.socket, Any] | None:
        """Accept one connection; return it and its address, None if none waits.

        :raises OSError: as ``accept`` of a socket.
        """
        try:
            connection, address = self._listener.accept()
        except BlockingIOError:
            return None
        if not self._blocking:
            connection.setblocking(False)
        return connection, address
