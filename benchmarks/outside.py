"""What measurements with load generators of others have in common: servers in turns, and what is shown of them."""

import argparse
import asyncio
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import median
from typing import Any, NamedTuple

from .machine import Cores, allow_files
from .peers import listen

REFERENCE = "Tornado"
"""The server that all others are compared with."""


class Figures(NamedTuple):
    """Of one run."""

    rate: float
    """Requests a second."""
    cost: float
    """CPU seconds of the server for one."""


Servers = Mapping[str, Callable[[], Any]]


def parser(about: str | None, servers: Servers) -> argparse.ArgumentParser:
    """The command line, to which a measurement adds how long a run is."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    made.add_argument("--serve", choices=servers, help=argparse.SUPPRESS)
    return made


def begin(arguments: argparse.Namespace, servers: Servers, tool: str, package: str) -> Cores | None:
    """The cores to measure on, the load's for this process; None if this is one of the servers, which has ended."""
    allow_files()
    if arguments.serve:
        logging.disable(logging.WARNING)
        asyncio.run(serve(servers[arguments.serve]))
        return None
    if shutil.which(tool) is None:
        sys.exit(f"There is no {tool} (on Debian and Ubuntu: apt install {package})")
    cores = Cores.pick()
    os.sched_setaffinity(0, {cores.load})
    return cores


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
