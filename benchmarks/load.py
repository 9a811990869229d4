"""The load generator: ``load.c``, compiled when needed, for one in Python would be slower than what it measures."""

import shutil
import subprocess
from pathlib import Path
from typing import Literal, NamedTuple

from .servers import MeasurementError, Server

Kind = Literal["lines", "churn", "bulk"]

SOURCE = Path(__file__).with_name("load.c")
WARM = 0.25  # seconds; by then the interpreter has specialised its code, and malloc its thresholds
PATIENCE = 30.0


class Counted(NamedTuple):
    """What came back, between which instants of the monotonic clock, and the CPU seconds it took on either side."""

    bytes: int
    start: float
    end: float
    server_cpu: float
    load_cpu: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Load:
    """A compiled load generator. ``folder`` is where to put it."""

    def __init__(self, folder: Path) -> None:
        compiler = self.compiler()
        assert compiler is not None
        self._program = folder / "load"
        subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", self._program, SOURCE], check=True)

    @staticmethod
    def compiler() -> str | None:
        return shutil.which("cc")

    def run(self, server: Server, kind: Kind, connections: int, size: int, depth: int, seconds: float) -> Counted:
        words = (server.port, server.pid, kind, connections, size, depth, WARM, seconds)
        command = [str(self._program), *map(str, words)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=WARM + seconds + PATIENCE)
        except subprocess.TimeoutExpired:
            raise MeasurementError("the load generator hung") from None
        if ended.returncode:
            raise MeasurementError(ended.stderr.strip() or f"the load generator ended with {ended.returncode}")
        count, *seconds_of = ended.stdout.split()
        if not int(count):
            raise MeasurementError("nothing came back")
        return Counted(int(count), *map(float, seconds_of))
