"""The command."""

import argparse
import sys
import time
from collections.abc import Iterator

from benchmarks.table import write_docs

from . import table
from .expectations import EXCEPTED
from .judging import Verdict, judge
from .keeping import keep, kept
from .projects import PROJECTS, Project, Suite, Use
from .running import why_not_apart
from .venvs import CACHE, InstallError

CANNOT_INSTALL = 75
"""The exit code when pip failed: EX_TEMPFAIL, which no verdict gives."""


def options(arguments: list[str]) -> argparse.Namespace:
    names = [project.name for project in PROJECTS]
    parser = argparse.ArgumentParser(
        prog="python -m tests.dropin",
        description="Run public projects on Tornado and on iostreamsrv, and compare check by check.",
        epilog="projects: " + ", ".join(names),
    )
    parser.add_argument(
        "projects",
        nargs="*",
        metavar="PROJECT[:RUN]",
        help="which, and which of its runs: those whose name contains RUN; all, if none is named",
    )
    parser.add_argument(
        "--write-docs",
        action="store_true",
        help=f"write the table into {table.DOCS.name}, too: of each run, the newest result in {CACHE.parent.name}/",
    )
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.projects if name.partition(":")[0] not in names]:
        parser.error(f"no such project: {', '.join(unknown)} (there are: {', '.join(names)})")
    return chosen


def main(arguments: list[str]) -> int:
    """Its exit code is 0 if all that passes on Tornado passes on ours, but for what is excepted."""
    if not sys.platform.startswith("linux"):
        print("This needs Linux: it reads /proc.", file=sys.stderr)
        return 2
    chosen = options(arguments)
    if trouble := why_not_apart():
        print(f"The programs run in this process's network namespace, as {trouble}.", flush=True)
    verdicts: list[Verdict] = []
    missing: list[str] = []
    for project in wanted(chosen.projects):
        try:
            for what in project.runs:
                verdicts.append(_judged(project, what))
                keep(verdicts[-1])
        except InstallError as error:
            missing.append(f"cannot be installed: {error}")
            print(missing[-1], file=sys.stderr, flush=True)
    print(table.report(verdicts))
    failed = [trouble for verdict in verdicts for trouble in verdict.failed]
    for trouble in failed:
        print(f"\nFAILED {trouble}")
    if chosen.write_docs:
        write_docs(table.report_of_all(kept(PROJECTS)), table.DOCS)
        print(f"written into {table.DOCS}", file=sys.stderr)
    passed = sum(verdict.on_ours for verdict in verdicts)
    print(f"\n{passed} passed, {len(failed)} failed, {len(missing)} skipped")
    return 1 if failed else CANNOT_INSTALL if missing else 0


def wanted(names: list[str]) -> Iterator[Project]:
    """The projects that are named, with those of their runs that are."""
    for project in PROJECTS:
        parts = [run for name, _, run in (each.partition(":") for each in names) if name == project.name]
        runs = [run for run in project.runs if not names or any(part in run.name for part in parts)]
        if runs:
            yield project._replace(runs=runs)


def _judged(project: Project, what: Suite | Use) -> Verdict:
    began = time.monotonic()
    name = f"{project.name}: {what.name}"
    print(f"{name} ...", file=sys.stderr, flush=True)
    verdict = judge(project, what, EXCEPTED)
    counts = f"{verdict.on_tornado} pass on Tornado, {verdict.on_ours} of these on ours"
    print(f"{name}: {counts}; {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return verdict
