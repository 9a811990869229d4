"""The language of the control socket: bytes in, requests and answers out. No socket is touched here.

Both sides send one JSON object a line. A request has a verb and, if it needs some, arguments. Its answer has either a
result or an error, and the request's ``id``, if that had one::

    {"version": 1, "id": 7, "verb": "workers", "arguments": {"change": 1}}
    {"version": 1, "id": 7, "result": {"workers": 3}}
    {"version": 1, "id": 7, "error": {"code": "refused", "message": "it is the last worker"}}

A line without ``version`` is of version 1. Answers come in the order of the requests.
"""

import json
from dataclasses import dataclass, field
from typing import Any

VERSION = 1

LONGEST_LINE = 1 << 16
"""Most bytes of a request, with its end of line."""

LONGEST_ANSWER = 1 << 20
"""Most bytes of an answer, likewise."""

INVALID = "invalid"
"""Code of an error: what was sent is no request."""

REFUSED = "refused"
"""Code of an error: the service does not do that, or not now."""

FAILED = "failed"
"""Code of an error: the new code did not start, and the service goes on as before."""

ENDED = "ended"
"""Code of an error: the connection has ended before the answer."""

INTERNAL = "internal"
"""Code of an error: a fault in this package, which the service has in its log."""

Id = int | str | None


class ControlError(Exception):
    """A service has refused a request, or failed to do it.

    :ivar code: "invalid": it is no request that the service knows; "refused": not possible, or not now; "failed": the
        new code did not start, and the service goes on as before; "ended": the connection has ended before the answer;
        "internal": a fault, which is in the log of the service.
    :ivar message: what is wrong, for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.message)


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for.

    :ivar id: comes back in the answer.
    """

    verb: str
    arguments: dict[str, Any] = field(default_factory=dict)
    id: Id = None

    def to_line(self) -> bytes:
        """As it is sent."""
        return _line({**_named(self.id), "verb": self.verb, "arguments": self.arguments})


class InvalidRequestError(ControlError):
    """What has come is no request.

    :ivar id: that of the request, if it could be read.
    """

    def __init__(self, message: str, id: Id = None) -> None:
        super().__init__(INVALID, message)
        self.id = id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.id)


class Requests:
    """Makes requests of the bytes that one client sends. It keeps `LONGEST_LINE` bytes and one chunk at most."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._skips = False  # the rest of a line that was too long

    def feed(self, data: bytes) -> None:
        """More bytes have come."""
        if self._skips:
            _, end, data = data.partition(b"\n")
            self._skips = not end
        self._received += data

    @property
    def is_waiting(self) -> bool:
        """Whether :meth:`take` needs more bytes."""
        return b"\n" not in self._received and len(self._received) < LONGEST_LINE

    def take(self) -> Request | None:
        """The next request; None if it has not come yet. Empty lines are skipped.

        :raises InvalidRequestError: there is something else, which is passed over.
        """
        while not self.is_waiting:
            end = self._received.find(b"\n")
            if end < 0 or end >= LONGEST_LINE:
                self._skip(end)
                raise InvalidRequestError(f"the line is longer than {LONGEST_LINE} bytes")
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            if line.strip():
                return parsed(line)
        return None

    def _skip(self, end: int) -> None:
        if end < 0:
            self._received.clear()
            self._skips = True
        else:
            del self._received[: end + 1]


def parsed(line: bytes) -> Request:
    """The request that a line is.

    :raises InvalidRequestError: it is none.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidRequestError("the line is no JSON") from None
    if not isinstance(found, dict):
        raise InvalidRequestError("a request must be a JSON object")
    id = found.get("id")
    if isinstance(id, bool) or not isinstance(id, int | str | None):
        raise InvalidRequestError("id must be a number or a text")
    if found.get("version", VERSION) != VERSION:
        raise InvalidRequestError(f"this service speaks version {VERSION} of the protocol", id)
    verb, arguments = found.get("verb"), found.get("arguments", {})
    if not isinstance(verb, str):
        raise InvalidRequestError("a request must have a verb", id)
    if not isinstance(arguments, dict):
        raise InvalidRequestError("arguments must be a JSON object", id)
    return Request(verb, arguments, id)


def answer_line(id: Id, result: Any) -> bytes:
    """An answer as it is sent: the result, or a `ControlError`."""
    if isinstance(result, ControlError):
        return _line({**_named(id), "error": {"code": result.code, "message": result.message}})
    return _line({**_named(id), "result": result})


def result_of(line: bytes) -> Any:
    """The result that an answer has.

    :raises ControlError: it has an error, or it is no answer of this version.
    """
    try:
        found = json.loads(line)
        if found["version"] != VERSION:
            raise ControlError(INVALID, f"the service speaks version {found['version']} of the protocol")
        if "error" in found:
            raise ControlError(str(found["error"]["code"]), str(found["error"]["message"]))
        return found["result"]
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ControlError(INVALID, "what has come is no answer") from None


def _named(id: Id) -> dict[str, Any]:
    return {"version": VERSION} if id is None else {"version": VERSION, "id": id}


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
