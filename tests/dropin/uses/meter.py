"""What the programs `measured_*` print: a line of JSON for each figure. ``tests.dropin.measure`` starts them."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path


class Meter:
    """Measures what a load costs a server.

    :param pid: the server's process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.clock = (~pid << 3) | 2  # Linux's number for the CPU clock of another process, all threads

    @contextlib.contextmanager
    def measure(self, what: str, count: float) -> Iterator[None]:
        """Measure the block, in which the server does ``count`` of something; print the figure by this name."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the peak begins at what is resident now
        cpu, began = time.clock_gettime(self.clock), time.perf_counter()
        yield
        seconds, cpu = time.perf_counter() - began, time.clock_gettime(self.clock) - cpu
        print(json.dumps({"what": what, "rate": count / seconds, "cpu": cpu / count, "peak": self.peak()}), flush=True)

    def peak(self) -> int:
        """The most that was resident, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10
