"""What the swarm's clients and servers say to each other: a line for each request, and a line for each answer.

A request is ``kind client number size padding``. Its answer has the client, the number, and ``size`` bytes that follow
from both: so each byte that a client gets can be checked. A line that begins with ``*`` is a broadcast.
"""

from dataclasses import dataclass

ECHO, WORK, FAIL, BROADCAST, BLOCK, QUIT, LEAVE_READING, WATCH = b"e", b"w", b"x", b"b", b"s", b"q", b"p", b"c"
"""What a server does besides its answer: nothing; wait a while before; raise; broadcast; block the loop; and then
return; return with a read pending; return when its close callback was called."""

NEEDS_COROUTINE = frozenset({WORK, QUIT, LEAVE_READING, WATCH})
"""Kinds for a handler that is a coroutine and reads lines. Any other takes them for `ECHO`."""

BLOCKED = 1.0
"""Seconds for which the loop is blocked."""

BLOCKS = 30
"""Most requests of a client to block the loop."""

WORKED = 0.5
"""Seconds of work."""

_BLOB = bytes(33 + number * 7 % 89 for number in range(1 << 17))


@dataclass(frozen=True, slots=True)
class Request:
    kind: bytes
    client: int
    number: int
    size: int

    def line(self, padding: int = 0) -> bytes:
        """The request, with its newline."""
        return b"%s %d %d %d %s\n" % (self.kind, self.client, self.number, self.size, self._bytes(padding))

    def answer(self) -> bytes:
        """The answer, without its newline."""
        return b"=%d %d %s" % (self.client, self.number, self._bytes(self.size))

    def _bytes(self, size: int) -> bytes:
        start = (self.client * 31 + self.number * 17) % 1000
        return _BLOB[start : start + size]


def parse(line: bytes) -> Request:
    """The request of a line, without its newline.

    :raises ValueError: it is none, or not as it was sent.
    """
    kind, client, number, size, padding = line.split(b" ")
    request = Request(kind, int(client), int(number), int(size))
    if request.line(len(padding))[:-1] != line:
        raise ValueError(f"not as it was sent: {line[:80]!r}")
    return request


def broadcast(request: Request) -> bytes:
    """The line that all others get."""
    return b"*%d %d\n" % (request.client, request.number)
