"""Common parts of the measurements with external load generators: run the servers in turn, and report."""

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
    """The figures of one run."""

    rate: float
    """Requests per second."""
    cost: float
    """The server's CPU seconds per request."""


Servers = Mapping[str, Callable[[], Any]]


def parser(about: str | None, servers: Servers) -> argparse.ArgumentParser:
    """The common command-line options; a measurement adds the length of a run."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    made.add_argument("--serve", choices=servers, help=argparse.SUPPRESS)
    return made


def begin(arguments: argparse.Namespace, servers: Servers, tool: str, package: str) -> Cores | None:
    """Pick the cores, and move this process to the load's core. In a server process: serve, then return None."""
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
    """Print the port of a server, and serve until EOF on standard input."""
    listener = listen()
    server = make()
    server.add_socket(listener)
    done = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), done.set)
    print(listener.getsockname()[1], flush=True)
    await done.wait()


def in_turns(names: Iterable[str], rounds: int, measure: Callable[[str], Figures]) -> dict[str, list[Figures]]:
    """Yield each server in every round, in reverse order in every second round."""
    runs: dict[str, list[Figures]] = {name: [] for name in names}
    for number in range(rounds):
        for name in runs if number % 2 else reversed(runs):
            runs[name].append(measure(name))
    return runs


def lines(runs: dict[str, list[Figures]]) -> Iterator[str]:
    """The median of each server, and of its ratio to the reference in the same round."""
    for name, measured in runs.items():
        pairs = list(zip(measured, runs[REFERENCE], strict=True))
        rate, cost = (median(column) for column in zip(*measured, strict=True))
        yield (
            f"{name:30} {rate:12,.0f}/s {cost * 1e6:8.2f} us"
            f"   {median(run.rate / other.rate for run, other in pairs):6.2f} times the speed,"
            f" {median(other.cost / run.cost for run, other in pairs):6.2f} times less CPU time"
        )
