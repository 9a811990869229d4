"""Measure public projects on Tornado and on ours, in turns: ``python -m tests.dropin.measure``.

In each round every load has a fresh server and a fresh client on either side. The server has a core, and the client has
another, which it shares with what else there is: a worker of distributed, a kernel of jupyter. All Python processes of
a side are on that side.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.machine import Cores
from benchmarks.table import write_docs

from . import figures, loopback
from .command import CANNOT_INSTALL
from .figures import Figures
from .loads import LOADS, Load
from .running import SIDES, adopt_orphans
from .turns import TurnError, take
from .venvs import InstallError, Venv

ROUNDS = max(load.rounds for load in LOADS)
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")


def options(arguments: Sequence[str]) -> argparse.Namespace:
    names = list(dict.fromkeys(load.project for load in LOADS))
    parser = argparse.ArgumentParser(prog="python -m tests.dropin.measure", description=__doc__)
    parser.add_argument("projects", nargs="*", metavar="PROJECT", help=f"of {', '.join(names)}; all, if none is named")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="at most; default: %(default)s")
    parser.add_argument("--write-docs", action="store_true", help=f"write the table into {figures.DOCS.name}, too")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.projects if name not in names]:
        parser.error(f"not measured: {', '.join(unknown)} (these are: {', '.join(names)})")
    if chosen.write_docs and chosen.projects:
        parser.error("--write-docs is for a run of all projects")
    return chosen


def main(arguments: Sequence[str]) -> int:
    """Its exit code is 0 if all was measured, and no figure is below what is asked for."""
    if not sys.platform.startswith("linux"):
        print("This needs Linux: it pins processes to cores and reads /proc.", file=sys.stderr)
        return 2
    chosen = options(arguments)
    wanted = [load for load in LOADS if not chosen.projects or load.project in chosen.projects]
    venvs, notes = installed(dict.fromkeys(load.project for load in wanted))
    cores = Cores.pick()
    counts = sorted({min(load.rounds, chosen.rounds) for load in wanted})
    manner = (
        f"rounds: {' or '.join(map(str, counts))}, in turns; server on core {cores.server}, load on core {cores.load}; "
        f"congestion control {go_apart()}"
    )
    measured, failures = run([load for load in wanted if load.project in venvs], venvs, chosen.rounds, cores)
    loads = [load for load in wanted if measured.has(load)]
    text = figures.report(loads, venvs, measured, manner, notes)
    print(text)
    for line in failures:
        print(f"\nFAILED {line}")
    for line in (missed := list(figures.missed(loads, measured))):
        print(f"\nMISSED {line}")
    if chosen.write_docs and not failures:
        write_docs(text, figures.DOCS)
        print(f"written into {figures.DOCS}", file=sys.stderr)
    return 1 if failures or missed else CANNOT_INSTALL if notes else 0


def installed(projects: Iterable[str]) -> tuple[dict[str, Venv], list[str]]:
    """The venvs of the projects, and why others have none."""
    venvs, missing = {}, []
    for name in projects:
        venv = Venv(name)
        try:
            venv.install()
            venvs[name] = venv
        except InstallError as error:
            missing.append(f"{name} is not measured, as it cannot be installed: {error}")
            say(missing[-1])
    return venvs, missing


def go_apart() -> str:
    """Enter a network of loopback only, where TCP is not paced: BBR, the default on some machines, goes by timers.

    :returns: which congestion control it has there.
    """
    if loopback.enter_namespace():
        CONGESTION_CONTROL.write_text("reno")
    return CONGESTION_CONTROL.read_text().strip()


def run(loads: Sequence[Load], venvs: dict[str, Venv], rounds: int, cores: Cores) -> tuple[Figures, list[str]]:
    """All figures, and what failed. A load that has failed is not run again."""
    adopt_orphans()
    measured, failures = Figures(), {}
    for number in range(rounds):
        for load in (each for each in loads if number < each.rounds):
            for side in SIDES if number % 2 == 0 else reversed(SIDES):  # so that neither always goes first
                if load not in failures.values():
                    try:
                        taken = take(load, venvs[load.project], side, cores)
                    except TurnError as error:
                        failures[str(error)] = load
                    else:
                        measured.add(load, side, taken)
                        say(f"round {number + 1}  {load.name} on {side}: {taken}")
    return measured, list(failures)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
