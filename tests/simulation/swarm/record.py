"""What was seen of each connection, by its client and by its server."""

from dataclasses import dataclass, field

from iostreamsrv import CloseReason

from .protocol import Request, parse


@dataclass(slots=True)
class Sent:
    """A request, and when its first and its last byte were sent."""

    request: Request
    begun: float
    ended: float


@dataclass(slots=True)
class Record:
    """A connection.

    :ivar character: of its client.
    :ivar expects: reasons with which the server may close it, besides those that any connection may end with.
    :ivar innocent: its client does nothing that a timeout or a limit is for.
    :ivar sequential: there is at most one request without an answer.
    :ivar exact: all requests must be answered before EOF.
    :ivar answered_draining: numbers of requests that an HTTP server answered while it drained.
    :ivar last_announced: an HTTP response was the last one, as it said.
    :ivar sent: the requests.
    :ivar answers: how many were answered.
    :ivar heard: the last number of each client whose broadcasts came.
    :ivar active_at: when its client has last sent or received something.
    :ivar wrote_at: when it has last sent something.
    :ivar end: how it ended for the client: "eof", "reset" and so on; "" if the client has ended it.
    :ivar seen: how many requests the server's handler got.
    :ivar written: how many answers it wrote, as it was told.
    :ivar handled: how often the handler was called.
    :ivar task: the name of the handler's task.
    :ivar closes: what ``handle_close`` was called with, and when.
    :ivar problems: what was seen to be wrong at once: the invariant, and a text.
    """

    number: int
    character: str
    expects: frozenset[CloseReason] = frozenset()
    innocent: bool = False
    sequential: bool = False
    exact: bool = False
    answered_draining: set[int] = field(default_factory=set)
    last_announced: bool = False
    sent: list[Sent] = field(default_factory=list)
    answers: int = 0
    heard: dict[int, int] = field(default_factory=dict)
    connected_at: float | None = None
    active_at: float = 0.0
    wrote_at: float = 0.0
    ended_at: float | None = None
    end: str = ""
    seen: int = 0
    written: int = 0
    handled: int = 0
    task: str = ""
    closes: list[tuple[CloseReason, float]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    tail: bytes = b""

    def __str__(self) -> str:
        return f"client {self.number} ({self.character})"

    def received(self, data: bytes, now: float) -> None:
        """The client has received this: check it."""
        *lines, self.tail = (self.tail + data).split(b"\n")
        for line in lines:
            if line[:1] == b"*":
                self._hear(line)
            elif self.answers >= len(self.sent):
                self.problem("bytes", f"an answer without a request: {line[:60]!r}")
            else:
                request = self.sent[self.answers].request
                if line != request.answer():
                    self.problem("bytes", f"in place of answer {request.number} of {request.size} bytes: {line[:60]!r}")
                self.answers += 1
        self.active_at = now

    def _hear(self, line: bytes) -> None:
        client, number = map(int, line[1:].split(b" "))
        if number <= self.heard.get(client, -1):
            self.problem("bytes", f"broadcast {number} of client {client} is doubled or late")
        self.heard[client] = number

    def take(self, line: bytes) -> Request:
        """The server has received this line: check it.

        :raises ValueError: it is not the next request.
        """
        request = parse(line)
        if request.number != self.seen:
            self.problem("bytes", f"the server got request {request.number} in place of {self.seen}")
        self.seen += 1
        return request

    def called(self, task: str) -> None:
        """Its handler runs in the task with this name."""
        self.handled += 1
        self.task = task

    def problem(self, invariant: str, text: str) -> None:
        """Note what is wrong."""
        self.problems.append((invariant, f"{self}: {text}"))

    @property
    def reason(self) -> CloseReason | None:
        """Why the server has closed it."""
        return self.closes[0][0] if self.closes else None
