"""What a supervisor and a worker say to each other: one JSON object a line, over a pair of sockets.

Descriptors travel beside a message. When the other end is closed, the other process is gone, however it ended.
"""

import contextlib
import json
import os
import socket
from typing import Any

MOST_DESCRIPTORS = 253
"""What Linux passes on with one message (SCM_MAX_FD)."""

CHUNK = 1 << 16

Message = dict[str, Any]


class Channel:
    """One end. It does not block.

    :param end: a connected stream socket, which the channel then owns.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._received = bytearray()
        self.descriptors: list[int] = []
        """Those that came with the messages received so far, in their order. To take one, remove it here."""

    @classmethod
    def pair(cls) -> "tuple[Channel, Channel]":
        """Both ends of a new one."""
        one, other = socket.socketpair()
        return cls(one), cls(other)

    def fileno(self) -> int:
        """The descriptor of this end."""
        return self._end.fileno()

    def send(self, kind: str, descriptors: tuple[int, ...] = (), **fields: Any) -> None:
        """Send a message. If the other process is gone, or has not read for so long that the kernel takes no more, it
        is dropped: the supervisor learns otherwise of both.

        :param descriptors: are duplicated for the other process.
        """
        line = json.dumps({"type": kind, **fields}).encode() + b"\n"
        with contextlib.suppress(OSError):
            sent = socket.send_fds(self._end, [line], descriptors) if descriptors else self._end.send(line)
            assert sent == len(line), "a line that the kernel takes in part only is longer than any of ours"

    def receive(self) -> list[Message] | None:
        """The messages that have come; None once the other end is closed, and its last words were given.

        :raises ValueError: it has sent something else.
        """
        while True:
            try:
                data = self._receive()
            except BlockingIOError:
                return self._whole_lines()
            except OSError:
                data = b""
            if not data:
                return self._whole_lines() or None
            self._received += data

    def wait(self, timeout: float | None = None) -> list[Message] | None:
        """:meth:`receive`, but wait for the first message.

        :raises TimeoutError: none came in ``timeout`` seconds.
        """
        self._end.settimeout(timeout)
        try:
            while b"\n" not in self._received:
                data = self._receive()
                if not data:
                    return None
                self._received += data
        finally:
            self._end.setblocking(False)
        return self._whole_lines()

    def _receive(self) -> bytes:
        data, descriptors, _, _ = socket.recv_fds(self._end, CHUNK, MOST_DESCRIPTORS)
        for each in descriptors:
            os.set_inheritable(each, False)
        self.descriptors += descriptors
        return data

    def close(self) -> None:
        """Close this end."""
        self._end.close()

    def _whole_lines(self) -> list[Message]:
        *lines, rest = self._received.split(b"\n")
        self._received = rest
        return [json.loads(line) for line in lines]
