"""The servers that are probed, seen from outside: one of them at work, in a process of its own."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import cpu_seconds, resident_bytes
from tests.support.programs import ReportingProgram
from tests.support.rotation import Files

OURS, TORNADO, ASYNCIO = KINDS = ("iostreamsrv", "Tornado", "asyncio")

LONG = 300.0
"""Seconds after which a server is killed, so that a probe fails instead of hanging."""


class Server(ReportingProgram):
    """A server that does what ``behaviour`` says; see `tests.faults.handlers`.

    It reports how many ``tasks`` there are, and the ``tally`` that its handlers keep.

    :param kind: whose, one of :data:`KINDS`.
    :param files: for TLS; None for a plain one.
    :param descriptors: how many it may have, hard limit and soft one.
    :param without: the guard of ours that is switched off; see `tests.faults.guards`.
    :param options: for ours, keywords of `TCPServer`.
    """

    def __init__(
        self,
        kind: str,
        behaviour: str,
        *,
        files: Files | None = None,
        descriptors: int | None = None,
        without: str | None = None,
        **options: Any,
    ) -> None:
        settings = {"files": files, "descriptors": descriptors, "without": without, "options": options}
        # A guard is a method that is replaced, which a class of the compiled core does not allow.
        environment = {"IOSTREAMSRV_PURE": "1"} if without else None
        arguments = ("-m", "tests.faults.child", kind, behaviour, json.dumps(settings))
        super().__init__(*arguments, patience=LONG, environment=environment)
        self.listening()
        self.descriptors_at_first = self.lasting_descriptors()
        self.tasks_at_first = self.report()["tasks"]

    @property
    def address(self) -> tuple[str, int]:
        address: tuple[str, int] = self.addresses[0]
        return address

    # ---- counted from outside

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)

    def sleeps(self) -> bool:
        """Whether it has done all there was to do, and waits."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"

    def resident(self) -> int:
        """Bytes."""
        return resident_bytes(self.pid)

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak(self) -> int:
        """Most bytes that were resident since `forget_peak`."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10

    def descriptors(self) -> int:
        return len(self._descriptors())

    def lasting_descriptors(self) -> int:
        """Without its epolls: iostreamsrv keeps one for a second after its last client."""
        return sum("eventpoll" not in what for what in self._descriptors())

    def _descriptors(self) -> list[str]:
        """What each of them is."""
        found = []
        for each in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(str(each.readlink()))
        return found

    def lines(self) -> int:
        """How many it has logged."""
        return self.said().count("\n")

    # ---- what is left in the end

    def left(self) -> tuple[int, int]:
        """Descriptors and tasks that it did not have at first."""
        return self.lasting_descriptors() - self.descriptors_at_first, self.report()["tasks"] - self.tasks_at_first

    def settle(self, patience: float) -> float:
        """Seconds until nothing is left, or until it is taken that something is."""
        began = time.monotonic()
        while any(self.left()) and time.monotonic() < began + patience:
            time.sleep(0.01)
        return time.monotonic() - began


def wait_until(condition: Any, patience: float) -> bool:
    """Whether ``condition`` has come to hold."""
    late = time.monotonic() + patience
    while not condition():
        if time.monotonic() >= late:
            return False
        time.sleep(0.005)
    return True
