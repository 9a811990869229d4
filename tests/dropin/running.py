"""Runs one program on one side, and says what became of its checks."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .projects import USES, Suite, Use
from .venvs import HERE, Venv

TORNADO, OURS = "tornado", "iostreamsrv"
SIDES = (TORNADO, OURS)
RUNNER: Mapping[str, Sequence[str]] = {TORNADO: (), OURS: ("-m", "iostreamsrv.tornado")}

PR_SET_CHILD_SUBREAPER = 36
TEST_TIMEOUT = 120
"""Seconds for one test of a suite."""


class Checks(NamedTuple):
    """What came of one run."""

    outcomes: dict[str, str]
    """By name, what became of each check: empty if it passed, "skipped", or else why it failed."""
    classes: set[str]
    """The classes of streams and servers that were made, each after the side that it belongs to."""
    end: str
    """How the program ended, if that is not as it should: empty, or such as "exit code 3"."""
    log: Path
    """All that it printed."""

    @property
    def passed(self) -> set[str]:
        return {name for name, trouble in self.outcomes.items() if not trouble}


def run(venv: Venv, what: Suite | Use, side: str, only: Sequence[str] = ()) -> Checks:
    """Run it on a side.

    :param only: the tests to run, of a suite; all if empty.
    """
    results = venv.folder / "results"
    results.mkdir(exist_ok=True)
    stem = "-".join(["again"] * bool(only) + [*what.name.replace(".py", "").split(), side])
    log = results / f"{stem}.log"
    with tempfile.TemporaryDirectory(prefix="iostreamsrv-dropin-") as temporary:
        report = Path(temporary, "report")
        report.touch()
        junit = Path(temporary, "junit.xml")
        command, folder = _suite(venv, what, junit, only) if isinstance(what, Suite) else _use(what)
        home = Path(temporary, "home")
        home.mkdir()
        end = _end_of(
            [str(venv.python), *RUNNER[side], *command], folder, environment(venv, home, report), what.timeout, log
        )
        classes = set(report.read_text().splitlines())
        outcomes = dict(_junit(junit) if isinstance(what, Suite) else lines_of(log))
    return Checks(outcomes, classes, "" if isinstance(what, Suite) and end == "exit code 1" else end, log)


def why_not_apart() -> str:
    """Why programs cannot have a network namespace apart from this process's; empty if they have."""
    command = [sys.executable, str(HERE / "loopback.py"), "true"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stderr.strip()


def _suite(venv: Venv, suite: Suite, junit: Path, only: Sequence[str]) -> tuple[list[str], Path]:
    source = venv.source(suite.distribution)
    options = [
        f"--junit-xml={junit}",
        "-o",
        "junit_family=xunit1",
        f"--timeout={TEST_TIMEOUT}",
        "-p",
        "no:cacheprovider",
    ]
    return ["-m", "pytest", "-q", *options, *suite.options, *(only or suite.paths)], source


def _use(use: Use) -> tuple[list[str], Path]:
    return [str(USES / use.program), *use.arguments], USES


def environment(venv: Venv, home: Path, report: Path) -> dict[str, str]:
    """What programs see: no settings of this user's, and none of this project's interpreter."""
    kept = ("LANG", "LC_ALL", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "PATH": os.pathsep.join([str(venv.python.parent), os.environ["PATH"]]),
        "HOME": str(home),
        "TMPDIR": str(home.parent),
        "IOSTREAMSRV_DROPIN_REPORT": str(report),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONFAULTHANDLER": "1",
    }


def _end_of(command: Sequence[str], folder: Path, environment: dict[str, str], timeout: float, log: Path) -> str:
    """Run a command; nothing of it is left."""
    adopt_orphans()
    with log.open("w") as output:
        process = subprocess.Popen(
            ["nice", "-n", "10", sys.executable, str(HERE / "loopback.py"), *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"ended after {timeout:.0f} s"
        finally:
            kill_children()
            process.wait()
    return "" if code == 0 else f"exit code {code}"


def adopt_orphans() -> None:
    """What its children leave behind becomes a child of this process."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_children() -> None:
    """End this process's children, and theirs, which then become its own."""
    deadline = time.monotonic() + 10
    while (children := _children()) and time.monotonic() < deadline:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _junit(report: Path) -> Iterator[tuple[str, str]]:
    if not report.exists():
        return
    for case in ElementTree.parse(report).iter("testcase"):
        name = node_of(case)
        trouble = [child for child in case if child.tag in ("failure", "error")]
        if trouble:
            yield name, "\n".join(f"{child.get('message') or ''}\n{child.text or ''}" for child in trouble)
        elif case.find("skipped") is not None:
            yield name, "skipped"
        else:
            yield name, ""


def node_of(case: ElementTree.Element) -> str:
    """A test as pytest names it on its command line, such as ``tests/test_a.py::TestB::test_c``."""
    file, classname = case.get("file") or "", case.get("classname") or ""
    module = file.removesuffix(".py").replace("/", ".")
    if not classname.startswith(module):  # a function that a decorator has wrapped is in the decorator's file
        file, module = classname.replace(".", "/") + ".py", classname
    classes = classname.removeprefix(module).strip(".")
    return "::".join([file, *filter(None, classes.split(".")), case.get("name") or ""])


def lines_of(log: Path) -> Iterator[tuple[str, str]]:
    """The lines ``passed NAME``, and ``failed NAME`` or ``skipped NAME`` with why after a tab, as `uses` print them."""
    for line in log.read_text(errors="replace").splitlines():
        verdict, _, rest = line.partition(" ")
        if verdict == "passed":
            yield rest, ""
        elif verdict in ("failed", "skipped"):
            name, _, why = rest.partition("\t")
            yield name, "skipped" if verdict == "skipped" else why or "failed"
