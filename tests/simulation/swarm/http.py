"""The protocol of the swarm inside HTTP/1.1, for clients: a line in the body of each request, an answer in a response.

The server says that a response is the last one if the request is of a kind in `LAST`, and while it drains.
"""

from .protocol import FAIL, QUIT
from .record import Record

LAST = frozenset({QUIT, FAIL})
"""Kinds of requests after which the client asks the server to close the connection."""

OK, FAILED, REJECTED = 200, 500, 503

PIECE = 700
"""Bytes of a chunk of a request."""


def wrapped(line: bytes, kind: bytes, in_chunks: bool) -> bytes:
    """A request with this line.

    :param in_chunks: whether its length is not told in advance.
    """
    head = b"POST / HTTP/1.1\r\nHost: swarm\r\n" + b"Connection: close\r\n" * (kind in LAST)
    if not in_chunks:
        return b"%sContent-Length: %d\r\n\r\n%s" % (head, len(line), line)
    pieces = [line[start : start + PIECE] for start in range(0, len(line), PIECE)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])
    return b"%sTransfer-Encoding: chunked\r\n\r\n%s" % (head, chunks)


class Responses:
    """Takes apart what a client receives, and gives the bodies to its record.

    :param strict: whether a response to a malformed request is a fault of the server.
    """

    def __init__(self, record: Record, strict: bool) -> None:
        self._record = record
        self._strict = strict
        self._data = bytearray()
        self._status = 0  # of the response whose body is being received; 0 before its head
        self._closes = False
        self._chunked = self._was_last_chunk = False
        self._left = 0  # bytes of the body, or of its chunk

    @property
    def partial(self) -> bool:
        """Whether a response is incomplete."""
        return bool(self._data or self._status)

    def received(self, data: bytes, now: float) -> None:
        """The client has received this."""
        self._data += data
        while self._take(now):
            pass
        self._record.active_at = now

    def _take(self, now: float) -> bool:
        """Take the next part; whether it was there."""
        if self._left:
            return self._take_body(now)
        if self._status and not self._chunked:
            return self._end()
        end = self._data.find(b"\r\n" if self._status else b"\r\n\r\n")
        if end < 0:
            return False
        part = bytes(self._data[:end])
        del self._data[: end + (2 if self._status else 4)]
        if not self._status:
            self._begin(part)
        elif part:
            self._left = int(part, 16)
            self._was_last_chunk = not self._left
        elif self._was_last_chunk:  # otherwise it is the end of the line behind a chunk
            self._chunked = self._was_last_chunk = False
        return True

    def _take_body(self, now: float) -> bool:
        part = bytes(self._data[: self._left])
        del self._data[: len(part)]
        self._left -= len(part)
        if part and self._status == OK:
            self._record.received(part, now)
        return bool(part)

    def _begin(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines)
        self._status = int(first.split(b" ")[1])
        self._closes = headers.get(b"connection") == b"close"
        self._chunked = headers.get(b"transfer-encoding") == b"chunked"
        self._left = int(headers.get(b"content-length", b"0"))
        self._check(first)

    def _check(self, first: bytes) -> None:
        record, strict = self._record, self._strict
        if record.last_announced:
            record.problem("bytes", f"a response behind the last one: {first!r}")
        if self._status not in (OK, FAILED, REJECTED) and strict:
            record.problem("bytes", f"not a response to what it asked: {first!r}")
        if self._status in (OK, FAILED) and record.answers < len(record.sent):
            request = record.sent[record.answers].request
            if (self._status == FAILED) != (request.kind == FAIL):
                record.problem("bytes", f"the response to request {request.number}: {first!r}")
            if self._closes != (request.kind in LAST or request.number in record.answered_draining):
                record.problem("shutdown", f"the response to {request.number} closes: {self._closes}")

    def _end(self) -> bool:
        if self._status == FAILED:
            self._record.answers += 1
        self._record.last_announced |= self._closes
        self._status = 0
        return True
