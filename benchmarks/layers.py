"""Where the server's CPU time goes, by layer: ``python -m benchmarks.layers`` prints the table of the docs.

It samples the server with perf (on Debian and Ubuntu: apt install linux-perf), by the CPU clock, under the load of the
benchmarks. A sample belongs to the layer of the function that was running, not of the one that called it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import machine
from .load import WARM, Load
from .peers import OURS
from .servers import MeasurementError, Server
from .table import DOCS, write_docs
from .workloads import WORKLOADS, Rate

BEGIN = "<!-- layers: begin -->"
END = "<!-- layers: end -->"
MEASURED = ("echo", "pipelined", "tls", "tls-pipelined")
FREQUENCY = 4000  # samples per second

LAYERS = {
    "the kernel": r"\[",
    "OpenSSL": r".*/lib(ssl|crypto)\b",
    "Python's `ssl` module": r".*/_ssl\.",
    "our parser and buffers": r".*/iostreamsrv/sansio/",
    "our streams and hub": r".*/iostreamsrv/",
    "asyncio's task and futures": r".*/_asyncio\.",
    "bytecode, of the handler and the loop": r".*/(lib)?python[\w.]* _PyEval_EvalFrame",
    "Python's objects, calls and memory": r".*/(lib)?python[\w.]* ",
    "the C library and other modules": "",
}
"""The layers, each with a pattern of the file and the function. The first that matches counts."""


def layer(file: str, function: str) -> str:
    return next(name for name, pattern in LAYERS.items() if re.match(pattern, f"{file} {function}"))


def by_layer(script: Iterable[str]) -> dict[str, float]:
    """The share of each layer in what ``perf script -F ip,sym,dso`` prints."""
    samples: Counter[str] = Counter()
    for line in script:
        if match := re.match(r"\s*([0-9a-f]+) (.*) \((.*)\)\s*$", line):
            address, function, file = match.groups()
            in_kernel = len(address) == 16 and address.startswith("ffff")  # also where its symbols are hidden
            samples[layer("[kernel]" if in_kernel else file, function)] += 1
    if not samples:
        raise MeasurementError("perf saw nothing")
    return {name: count / samples.total() for name, count in samples.items()}


def measure(workload: Rate, load: Load, seconds: float, core: int) -> dict[str, float]:
    """CPU seconds per message, by layer."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "samples")
        server = Server(OURS, workload.mode, core)
        try:
            words = ("record", "--event=cpu-clock", f"--freq={FREQUENCY}", f"--pid={server.pid}", f"--output={file}")
            record = threading.Timer(2 * WARM, _perf, (*words, "--", "sleep", str(seconds)))
            record.start()
            figures = workload.measure(server, load, seconds + 2 * WARM)
            record.join()
        finally:
            server.stop()
        if not file.exists():
            raise MeasurementError("perf recorded nothing")
        shares = by_layer(_perf("script", f"--input={file}", "--fields=ip,sym,dso").splitlines())
    return {name: share * figures["cpu"] for name, share in shares.items()}


def _perf(*words: str) -> str:
    return subprocess.run(["perf", *words], capture_output=True, text=True).stdout


def table(costs: Mapping[str, Mapping[str, float]]) -> str:
    """The table: microseconds per message, and the share, for each workload."""
    titles = [f"{'TLS, ' if WORKLOADS[name].tls else ''}{WORKLOADS[name].title}" for name in costs]
    lines = [f"|  | {' | '.join(titles)} |", "|---|" + "---:|" * len(titles)]
    seen = [name for name in LAYERS if any(name in cost for cost in costs.values())]
    lines += [f"| {name} | {' | '.join(_cell(cost, name) for cost in costs.values())} |" for name in seen]
    totals = [f"{sum(cost.values()) * 1e6:.2f} µs" for cost in costs.values()]
    return "\n".join([*lines, f"| *all* | {' | '.join(totals)} |"])


def _cell(cost: Mapping[str, float], name: str) -> str:
    if name not in cost:
        return "-"
    return f"{cost[name] * 1e6:.2f} µs ({cost[name] / sum(cost.values()):.0%})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secs", type=float, default=3, help="how long each workload is sampled; default: %(default)s")
    parser.add_argument("--write-docs", action="store_true", help=f"write the table into {DOCS.name}, too")
    chosen = parser.parse_args()
    if shutil.which("perf") is None:
        sys.exit("There is no perf (on Debian and Ubuntu: apt install linux-perf)")
    cores = machine.Cores.pick()
    machine.allow_files()
    os.sched_setaffinity(0, {cores.load})
    costs = {}
    with tempfile.TemporaryDirectory() as folder:
        loads = {tls: Load.compiled(Path(folder), tls=tls) for tls in (False, True)}
        for name in MEASURED:
            workload = WORKLOADS[name]
            load = loads[workload.tls]
            if isinstance(workload, Rate) and load:
                costs[name] = measure(workload, load, chosen.secs, cores.server)
    print(*(f"{name}: {value}" for name, value in machine.describe().items()), "", table(costs), sep="\n")
    if chosen.write_docs:
        write_docs(table(costs), begin=BEGIN, end=END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
