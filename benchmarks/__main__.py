"""Measure the servers in turns, and print the table.

In every round each workload is given to each server in turn, so that what slows the machine down slows all of them, and
each time to a fresh server that has a core to itself. A run that others disturbed is repeated, twice at most.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import charts, machine, table
from .load import Load
from .peers import ALL, FLOOR, PYTHON_CORE, Peer
from .results import Results, Run
from .servers import MeasurementError, Server
from .workloads import WORKLOADS, Loaded, Requests, Workload

ROUNDS = 3
SECONDS = 0.5
ATTEMPTS = 3
NO_COMPILER = "There is no working C compiler, cc (on Debian and Ubuntu: apt install gcc libc6-dev)"
NO_OPENSSL = "There is no OpenSSL to compile with (on Debian and Ubuntu: apt install libssl-dev)"


class Benchmark:
    """The runs of one call: which, how often and how long.

    :param load: None leaves out what needs it.
    :param tls_load: the same for what is under TLS.
    :param repeat: how often the whole is measured.

    :ivar results: of all runs.
    :ivar each: of each repetition.
    """

    def __init__(
        self,
        workloads: Sequence[Workload],
        load: Load | None,
        tls_load: Load | None,
        rounds: int,
        seconds: float,
        repeat: int = 1,
    ) -> None:
        self._loads = {False: load, True: tls_load}
        self.workloads = [w for w in workloads if self._possible(w)]
        self.peers = [peer for peer in ALL if peer.installed()]
        self.rounds = rounds
        self.seconds = seconds
        self.cores = machine.Cores.pick()
        self.repeat = repeat
        self.results = Results()
        self.each: list[Results] = []

    def _possible(self, workload: Workload) -> bool:
        if isinstance(workload, Requests):
            return workload.available()
        return bool(self._loads[workload.tls]) or not isinstance(workload, Loaded)

    def run(self) -> None:
        machine.allow_files()
        os.sched_setaffinity(0, {self.cores.load})
        for _ in range(self.repeat):
            self.each.append(Results())
            for number, workload, peer in self._plan():
                if (workload.name, peer) not in self.results.failures:
                    self._take(number, workload, peer)

    def manner(self) -> str:
        """A description of how it is measured, for the report."""
        server, load = self.cores
        tls = self._loads[True]
        ciphers = f", TLS with {', '.join(sorted(tls.ciphers))}" if tls and tls.ciphers else ""
        times = f"measured {self.repeat} times, each " if self.repeat > 1 else ""
        return (
            f"{times}{self.rounds} rounds of {self.seconds:g} s, server on core {server}, load on core {load}{ciphers}"
        )

    def _plan(self) -> Iterator[tuple[int, Workload, Peer]]:
        for number in range(1, self.rounds + 1):
            for workload in self.workloads:
                if number <= workload.rounds:
                    peers = [peer for peer in self.peers if peer in workload.peers]
                    for peer in peers if number % 2 else reversed(peers):  # so that none always goes first
                        yield number, workload, peer

    def _take(self, number: int, workload: Workload, peer: Peer) -> None:
        try:
            run = self._undisturbed(workload, peer)
        except (MeasurementError, OSError) as error:
            self.results.failures[workload.name, peer] = said = str(error)
        else:
            self.results.add(workload.name, peer, run)
            self.each[-1].add(workload.name, peer, run)
            said = "  ".join(f"{name}: {value:,.6g}" for name, value in run.figures.items())
            said += "  (disturbed)" if run.disturbed else ""
        repetition = f"{len(self.each)}." if self.repeat > 1 else ""
        say(f"round {repetition}{number}  {workload.name:13} {peer!s:27} {said}")

    def _undisturbed(self, workload: Workload, peer: Peer) -> Run:
        for _ in range(ATTEMPTS):
            run = self._measure(workload, peer)
            if not run.disturbed:
                break
        return run

    def _measure(self, workload: Workload, peer: Peer) -> Run:
        start, busy, own = time.monotonic(), machine.busy_seconds(self.cores), machine.own_seconds()
        server = Server(peer, workload.mode, self.cores.server)
        try:
            figures = workload.measure(server, self._loads[workload.tls], self.seconds)
        finally:
            server.stop()
        foreign = (machine.busy_seconds(self.cores) - busy) - (machine.own_seconds() - own)
        return Run(figures, foreign / (time.monotonic() - start))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    names = "\n".join(f"  {workload.name:13} {workload.about}" for workload in WORKLOADS.values())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"workloads:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="what to measure; all, if none is named")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often; {ROUNDS}")
    parser.add_argument("--secs", type=float, default=SECONDS, help=f"how long a run counts, in seconds; {SECONDS}")
    parser.add_argument("--repeat", type=int, default=1, help="measure the whole so often, and show the span; 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single run there, too")
    parser.add_argument(
        "--write-docs", action="store_true", help=f"write tables and charts into {table.DOCS.name}, too"
    )
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.workloads if name not in WORKLOADS]:
        parser.error(f"no such workload: {', '.join(unknown)} (there are {', '.join(WORKLOADS)})")
    if min(chosen.rounds, chosen.repeat) < 1 or not chosen.secs > 0:
        parser.error("--rounds and --repeat must be 1 or more, and --secs above 0")
    if chosen.write_docs and chosen.workloads:
        parser.error("--write-docs is for a run of all workloads")
    return chosen


def as_json(benchmark: Benchmark) -> dict[str, Any]:
    runs = [
        {"workload": workload, **peer._asdict(), "runs": [run._asdict() for run in runs]}
        for (workload, peer), runs in benchmark.results.runs.items()
    ]
    settings = {"rounds": benchmark.rounds, "seconds": benchmark.seconds, "repeat": benchmark.repeat}
    return {"machine": machine.describe(), **settings, "measured": runs}


def main() -> int:
    if not sys.platform.startswith("linux"):
        say("The benchmarks need Linux: they pin processes to cores and read /proc.")
        return 2
    chosen = options()
    workloads = [WORKLOADS[name] for name in dict.fromkeys(chosen.workloads or WORKLOADS)]
    with tempfile.TemporaryDirectory() as folder:
        load, tls_load = compiled(workloads, Path(folder))
        benchmark = Benchmark(workloads, load, tls_load, chosen.rounds, chosen.secs, chosen.repeat)
        complete = run(benchmark, workloads)
    text = table.report(benchmark.results, machine.describe(), benchmark.manner(), benchmark.each)
    data = as_json(benchmark)
    print(text)
    if chosen.json:
        chosen.json.write_text(json.dumps(data, indent=1), encoding="utf-8")
    if chosen.write_docs and complete:
        table.write_docs(text)
        charts.write(data)
        say(f"written into {table.DOCS}")
    elif chosen.write_docs:
        say("Not all was measured, so the docs stay as they are.")
    return 0 if complete else 1


def compiled(workloads: Sequence[Workload], folder: Path) -> tuple[Load | None, Load | None]:
    """The load generators, the second one for TLS. One that is not needed or not available is None."""
    plain, tls = (any(isinstance(w, Loaded) and w.tls is under for w in workloads) for under in (False, True))
    return Load.compiled(folder) if plain else None, Load.compiled(folder, tls=True) if tls else None


def run(benchmark: Benchmark, wanted: Sequence[Workload]) -> bool:
    """Print what was not measured and why; return whether everything was measured."""
    left_out = [workload for workload in wanted if workload not in benchmark.workloads]
    for workload in left_out:
        if isinstance(workload, Requests):
            say(f"There is no {workload.tool} (apt install {workload.package}): not measured: {workload.name}")
    if loaded := [workload for workload in left_out if not isinstance(workload, Requests)]:
        why = NO_OPENSSL if all(workload.tls for workload in loaded) and shutil.which("cc") else NO_COMPILER
        say(f"{why}: not measured without it: {', '.join(workload.name for workload in loaded)}")
    missing = [peer for peer in ALL if peer not in (*benchmark.peers, PYTHON_CORE, FLOOR)]
    for peer in [peer for peer in missing if any(peer in workload.peers for workload in benchmark.workloads)]:
        say(f"{peer} is not installed, and not measured (pip install '.[bench]')")
    if benchmark.cores.server == benchmark.cores.load:
        say("There is one core only, which the servers share with their load: the figures mean little.")
    try:
        benchmark.run()
    except KeyboardInterrupt:
        say("stopped; this is what there was")
        return False
    return not (left_out or benchmark.results.failures)


if __name__ == "__main__":
    sys.exit(main())
