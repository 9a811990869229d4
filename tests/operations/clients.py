"""The clients of a service, and what became of them."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, Self

from .services import OURS, Service

PROGRAM = Path(__file__).with_name("load.py")
LATE = 1.0
"""Seconds for an answer, above which a client counts as lost."""

LOST = ("refused", "reset", "cut", "unanswered", "closed")


class Ended(NamedTuple):
    """A client: see `tests.operations.load.Client`."""

    due: float
    outcome: str
    latencies: list[float]
    pids: list[int]
    ended: float


class Outcome:
    """What became of all clients.

    :ivar most_served: how many had an answer and were still connected, at most.
    """

    def __init__(self, clients: list[Ended], most_served: int) -> None:
        self.clients = clients
        self.most_served = most_served

    @property
    def failed(self) -> list[Ended]:
        """Those that did not get all that they asked for. An answer that names no process is an error page."""
        return [each for each in self.clients if each.outcome != "ok" or 0 in each.pids]

    @property
    def late(self) -> int:
        """Answers that took more than a second."""
        return sum(latency > LATE for each in self.clients for latency in each.latencies)

    @property
    def closed(self) -> list[float]:
        """When those that wanted to stay were closed by the server."""
        return sorted(each.ended for each in self.clients if each.outcome == "closed")

    def latency(self, share: float) -> float:
        """The milliseconds within which this share of the first answers came."""
        found = sorted(each.latencies[0] for each in self.clients if each.latencies)
        return found[min(len(found) - 1, int(len(found) * share))] * 1000 if found else math.inf

    @property
    def by_server(self) -> Counter[int]:
        """How many clients each process has served, by its first answer."""
        return Counter(each.pids[0] for each in self.clients if each.pids)

    def figures(self) -> dict[str, float]:
        """What is said of a load."""
        assert self.clients, "no client has come"
        return {
            "clients": len(self.clients),
            "lost": len(self.failed),
            "late": self.late,
            "p50, ms": self.latency(0.5),
            "p99, ms": self.latency(0.99),
        }

    def said(self) -> str:
        """What failed, in a line."""
        kinds = Counter(each.outcome if each.outcome != "ok" else "error page" for each in self.failed)
        return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none failed"


class Clients:
    """Clients in a process of their own: see `tests.operations.load`, which ``words`` are for. Leaving the ``with``
    ends it."""

    def __init__(self, service: Service, **words: Any) -> None:
        words = {"port": service.port, "http": service.kind != OURS, **words}
        command = [sys.executable, str(PROGRAM), json.dumps(words)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for each in (self._process.stdin, self._process.stdout):
            assert each is not None
            each.close()

    def outcome(self, stop: bool = True) -> Outcome:
        """What became of them.

        :param stop: whether no more are to come; otherwise it waits until all are done.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        if stop:
            self._process.stdin.close()
        found = json.loads(self._process.stdout.read())
        return Outcome([Ended(*each) for each in found["clients"]], found["most_served"])
