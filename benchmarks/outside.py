"""What measurements with load generators of others have in common: servers in turns, and what is shown of them."""

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import Any, NamedTuple

from .peers import listen

REFERENCE = "Tornado"
"""The server that all others are compared with."""


class Figures(NamedTuple):
    """Of one run."""

    rate: float
    """Requests a second."""
    cost: float
    """CPU seconds of the server for one."""


async def serve(make: Callable[[], Any]) -> None:
    """Say the port of a server, and serve until standard input ends."""
    listener = listen()
    server = make()
    server.add_socket(listener)
    done = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), done.set)
    print(listener.getsockname()[1], flush=True)
    await done.wait()


def in_turns(names: Iterable[str], rounds: int, measure: Callable[[str], Figures]) -> dict[str, list[Figures]]:
    """Each server in every round, the order turned round from one to the next."""
    runs: dict[str, list[Figures]] = {name: [] for name in names}
    for number in range(rounds):
        for name in runs if number % 2 else reversed(runs):
            runs[name].append(measure(name))
    return runs


def lines(runs: dict[str, list[Figures]]) -> Iterator[str]:
    """The median of each server, and of its relation to the reference in the same round."""
    for name, measured in runs.items():
        pairs = list(zip(measured, runs[REFERENCE], strict=True))
        rate, cost = (median(column) for column in zip(*measured, strict=True))
        yield (
            f"{name:30} {rate:12,.0f}/s {cost * 1e6:8.2f} us"
            f"   {median(run.rate / other.rate for run, other in pairs):6.2f} times the speed,"
            f" {median(other.cost / run.cost for run, other in pairs):6.2f} times less CPU time"
        )
