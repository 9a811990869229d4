"""What is measured: the programs `measured_*` in `uses`, each a server and its load."""

from collections.abc import Sequence
from typing import NamedTuple

NO_SLOWER = 0.97
"""The speed that each figure must have, times Tornado's, where it does not say."""


class Load(NamedTuple):
    """A server of a project, and a load that prints figures of it (see `uses/meter.py`)."""

    project: str
    program: str
    units: dict[str, tuple[str, float]]
    """Of each figure that it prints, in this order: the unit of its rate, and the speed that is asked for."""
    arguments: Sequence[str] = ()
    rounds: int = 5

    @property
    def name(self) -> str:
        return " ".join([self.program, *self.arguments])


LOADS = (
    *(
        Load(
            "distributed",
            "measured_comms.py",
            {
                f"round trip of 1 KB, {protocol}": ("/s", 1.5),
                f"messages of 1 KB, {protocol}": ("/s", NO_SLOWER),
                f"messages of 1 MB, {protocol}": (" MB/s", NO_SLOWER),
                f"messages of 100 MB, {protocol}": (" MB/s", of_100_mb),
            },
            [protocol],
        )
        for protocol, of_100_mb in (("tcp", 1.1), ("tls", 1.3))
    ),
    Load("distributed", "measured_tasks.py", {"10,000 trivial tasks": ("/s", NO_SLOWER)}, rounds=3),
    Load("jupyter_server", "measured_kernel.py", {"messages of a kernel": ("/s", NO_SLOWER)}),
    Load("bokeh", "measured_hello.py", {'"hello" pages': ("/s", NO_SLOWER)}),
    Load(
        "thrift",
        "measured_calls.py",
        {"calls, one after another": ("/s", NO_SLOWER), "calls, 50 connections": ("/s", NO_SLOWER)},
    ),
)
