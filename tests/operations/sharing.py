"""What workers share: clients, limits, and the work."""

import contextlib
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.load import Kind, Load
from tests.faults.probes import Figures, Threshold

from .clients import Clients
from .rows import LOSSES, Mutation, Row, Trial
from .services import OURS, OURS_HTTP, REUSING, Service

FOUR = 4


def measure_spread(trial: Trial, rate: float) -> Figures:
    """Have clients come and stay."""
    with trial.service(workers=FOUR).started() as service:
        time.sleep(0.5)
        with Clients(service, clients=200, rate=rate, stay=True) as clients:
            time.sleep((200 / rate if rate else 0) + 1)
            outcome = clients.outcome()
        counts = [outcome.by_server.get(pid, 0) for pid in service.servers()]
    return {**outcome.figures(), "difference": max(counts) - min(counts)}


MOST = 100


def measure_limit(trial: Trial) -> Figures:
    """Have more clients come than may be there."""
    most = 0
    done = threading.Event()

    def look() -> None:
        nonlocal most
        with service.scoreboard() as scoreboard:
            while not done.wait(0.002):
                most = max(most, scoreboard.totals().open)

    with trial.service(None, "--set", f"max_connections={MOST}", workers=FOUR).started() as service:
        watch = threading.Thread(target=look, daemon=True)
        watch.start()
        with Clients(service, clients=400, rate=0, talks=trial.size(2, 5), pause=0.2, most=60) as clients:
            outcome = clients.outcome(stop=False)
        done.set()
        watch.join()
    return {
        **outcome.figures(),
        "served at a time": outcome.most_served,
        "open at a time": most,
    }


class Target(NamedTuple):
    """For the load of the benchmarks."""

    port: int
    pid: int
    upstream: None = None


class Work(NamedTuple):
    """One load of the benchmarks."""

    target: str
    kind: Kind
    connections: int
    size: int = 16


ECHO, CHURN = Work("Plain", "lines", 32), Work("Plain", "churn", 32)
COMPUTING = Work("Computing", "lines", 32)


def measure_rates(trial: Trial) -> Figures:
    """Two workers against two processes that share a port, and against one worker."""
    seconds, turns = (3.0, 5) if trial.full else (0.5, 1)
    with tempfile.TemporaryDirectory() as folder:
        load = Load.compiled(Path(folder))
        assert load is not None, "there is no C compiler for the load"
        figures = {}
        for name, work in (("echo", ECHO), ("churn", CHURN)):
            figures[f"{name}, of two processes"] = ratio(trial, load, work, (OURS, 2), (REUSING, 2), seconds, turns)
        figures["computing, of one worker"] = ratio(trial, load, COMPUTING, (OURS, 2), (OURS, 1), seconds, turns)
    return figures


def ratio(
    trial: Trial, load: Load, work: Work, one: tuple[str, int], other: tuple[str, int], seconds: float, turns: int
) -> float:
    """How many times as much one service does as another; they take turns."""
    rates: dict[tuple[str, int], list[float]] = {one: [], other: []}
    for _ in range(turns):
        for which, found in rates.items():
            kind, workers = which
            with Service(kind, f"served:{work.target}", workers=workers, package=trial.package).started() as service:
                counted = load.run(
                    Target(service.port, service.pid), work.kind, work.connections, work.size, 1, seconds
                )
                found.append(counted.bytes / counted.seconds)
    return median(rates[one]) / median(rates[other])


def measure_bare(trial: Trial) -> Figures:
    """Start where nothing can be written."""
    errors = ("error", "traceback", "warning", "denied", "read-only")
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(trial.service(prefix=bare()))
        try:
            service.started()
        except AssertionError:
            return {"started": 0}
        clients = stack.enter_context(Clients(service, rate=50))
        time.sleep(0.5)
        failed = not service.replaced("HUP")
        failed += not service.replaced("USR2")
        outcome = clients.outcome()
        service.signal("TERM")
        exit_code, _ = service.ended(20)
        said = [line for line in service.said().lower().splitlines() if any(each in line for each in errors)]
    return {
        "started": 1,
        **outcome.figures(),
        "not replaced": failed,
        "lines of errors": len(said),
        "exit code": -999 if exit_code is None else exit_code,
    }


UID = "54321"


def bare() -> list[str]:
    """The words that run a command with a read-only file system, as a user that the system does not know, who may read
    all files, and without HOME. Empty where this process may not do that."""
    rights = ["setpriv", "--reuid", UID, "--regid", UID, "--clear-groups"]
    rights += ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    others = "for each in /tmp /dev/shm /run; do mount -o remount,ro,bind $each 2>/dev/null; done"
    mounts = f'mount -o remount,bind,ro / && {{ {others}; exec "$@"; }}'
    words = ["unshare", "--mount", "sh", "-c", mounts, "sh", *rights, "env", "-u", "HOME", "PYTHONDONTWRITEBYTECODE=1"]
    if not shutil.which("unshare") or not shutil.which("setpriv"):
        return []
    tried = subprocess.run([*words, "sh", "-c", "! touch /tmp/operations-bare 2>/dev/null"], capture_output=True)
    return [] if tried.returncode else words


ACCEPTS_ALWAYS = Mutation(
    "difference",
    "server/workers.py",
    "        if open < SLACK:\n            return True\n",
    "        if open >= 0:\n            return True\n",
)
COUNTS_ITS_OWN_ONLY = Mutation(
    "served at a time",
    "server/workers.py",
    "        return sum(self._open.tolist()) - self._cells[OPEN]\n",
    "        return 0\n",
)
EVERY_SECOND_ACCEPTS_NOTHING = Mutation(
    "computing, of one worker",
    "server/workers.py",
    "        if open < SLACK:\n            return True\n",
    "        if self._cells[2] % 2 == 0:  # its number\n            return False\n"
    "        if open < SLACK:\n            return True\n",
)
ONE_MUST_WRITE = Mutation(
    "started",
    "supervisor/spawn.py",
    '    command = [*interpreter(), "-m", WORKER, str(channel), target]\n',
    "    open('iostreamsrv.state', 'w').close()\n"
    '    command = [*interpreter(), "-m", WORKER, str(channel), target]\n',
)

ROWS: tuple[Row, ...] = (
    *(
        Row(
            f"spread of {name} clients",
            f"200 clients come {about} to 4 workers, and stay. "
            "The difference is that of the workers with the most and the fewest of them.",
            measure_spread,
            (
                *LOSSES,
                Threshold("difference", "≤", 20),
                Threshold("p99, ms", "≤", 20, timed=True, quiet=True, full_only=True),
            ),
            mutations=(mutation,),
            options={"rate": rate},
        )
        for name, rate, about, mutation in (
            ("slow", 50.0, "at 50 a second", ACCEPTS_ALWAYS),
            ("burst", 0.0, "at once", EVERY_SECOND_ACCEPTS_NOTHING._replace(breaks="difference")),
        )
    ),
    Row(
        "max_connections",
        f"400 clients come at once to 4 workers with `max_connections={MOST}`, ask some times, and leave.",
        measure_limit,
        (
            Threshold("lost", "=", 0),
            Threshold("served at a time", "≤", MOST + 3),
            Threshold("open at a time", "≤", MOST + 3),
        ),
        mutations=(COUNTS_ITS_OWN_ONLY,),
        kinds=(OURS,),
    ),
    Row(
        "nothing to write to",
        "A read-only file system, no `HOME`, a user that the system does not know; a reload and an upgrade.",
        measure_bare,
        (
            Threshold("started", "=", 1),
            *LOSSES,
            Threshold("not replaced", "=", 0),
            Threshold("lines of errors", "=", 0),
            Threshold("exit code", "=", 0),
        ),
        mutations=(ONE_MUST_WRITE,),
        kinds=(OURS, OURS_HTTP),
    ),
    Row(
        "two workers",
        "The load of the [benchmarks](benchmarks.md), 32 connections: 2 workers against two processes that listen on"
        " one port with `reuse_port`, and with a handler that computes for a millisecond against one worker.",
        measure_rates,
        (
            Threshold("echo, of two processes", "≥", 0.97, timed=True, quiet=True, full_only=True),
            Threshold("churn, of two processes", "≥", 0.97, timed=True, quiet=True, full_only=True),
            Threshold("computing, of one worker", "≥", 1.8, timed=True, quiet=True),
        ),
        mutations=(EVERY_SECOND_ACCEPTS_NOTHING,),
        kinds=(OURS,),
    ),
)
