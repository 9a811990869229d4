"""Runs Tornado's tests and judges them."""

import argparse
import contextlib
import faulthandler
import gc
import io
import logging
import os
import platform
import tempfile
import textwrap
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tornado
from tornado.test.util import ABT_SKIP_MESSAGE

import iostreamsrv
from iostreamsrv.options import ServerOptions
from iostreamsrv.streams import hub
from iostreamsrv.tornado import install, servers
from iostreamsrv.tornado.children import environment

from . import expectations
from .witness import CHILD_REPORT, THEIRS, Seen, Witness

MODULES = (
    "tornado.test.iostream_test",
    "tornado.test.tcpserver_test",
    "tornado.test.tcpclient_test",
    "tornado.test.httpserver_test",
    "tornado.test.http1connection_test",
    "tornado.test.simple_httpclient_test",
    "tornado.test.websocket_test",
    "tornado.test.web_test",
)

HERE = Path(__file__).resolve().parent

GIVE_UP = 300
"""Seconds after which a run that hangs is ended, with the traceback of every thread."""


class Outcome(unittest.TestResult):
    """What became of one test: passed, if there is neither ``trouble`` nor a ``skip_reason``."""

    def __init__(self) -> None:
        super().__init__()
        self.skip_reason: str | None = None

    def addSkip(self, _test: Any, reason: str) -> None:
        self.skip_reason = reason

    @property
    def trouble(self) -> str:
        """All that went wrong."""
        return "\n".join(text for _, text in self.errors + self.failures)


class Verdict(NamedTuple):
    """On one test. ``kind`` is passed, vacuous, excepted, skipped or failed; ``why`` is for all but the first."""

    name: str
    kind: str
    why: str = ""


def judge(name: str, trouble: str, skip_reason: str | None, seen: Seen) -> Verdict:
    """The verdict on a test, from what it said and from which classes were seen at work."""
    if skip_reason is not None:
        return Verdict(name, "skipped", skip_reason)
    if seen.theirs:
        trouble += f"\nTornado's own {', '.join(sorted(seen.theirs))} ran in place of ours"
    vacuous = listed(name, expectations.VACUOUS)
    if not trouble and not seen.ours and not vacuous:
        trouble = "It passed, but no stream, client or server of ours was made. Was anything replaced? (Else: VACUOUS.)"
    if name in expectations.CANNOT_PASS:
        if trouble:
            return Verdict(name, "excepted", expectations.CANNOT_PASS[name])
        return Verdict(name, "failed", "It passed, though it is listed in CANNOT_PASS: take it off that list.")
    if trouble:
        return Verdict(name, "failed", trouble.strip())
    if vacuous:
        if seen.ours:
            return Verdict(name, "failed", f"Listed as VACUOUS, but it made {', '.join(sorted(seen.ours))} of ours.")
        return Verdict(name, "vacuous", expectations.VACUOUS[vacuous])
    return Verdict(name, "passed")


def listed(name: str, those: dict[str, str]) -> str | None:
    """What a test is listed as: itself, or its class; None if it is not."""
    return next((each for each in (name, name.rpartition(".")[0]) if each in those), None)


def run_test(test: unittest.TestCase, witness: Witness) -> Verdict | None:
    """Run one test and judge it; None for a test of an abstract base class.

    What goes to stderr is trouble, as it is for Tornado's own runner: destructors complain there.
    """
    outcome = Outcome()
    name = short_name(test)
    witness.take()
    with contextlib.redirect_stderr(io.StringIO()) as stderr, hurry(name):
        unittest.TestSuite([test]).run(outcome)
        gc.collect()  # a socket left open complains now, and not during some other test
    if outcome.skip_reason == ABT_SKIP_MESSAGE:
        return None
    trouble = outcome.trouble
    if stderr.getvalue():
        trouble += f"\nWritten to stderr:\n{stderr.getvalue()}"
    return judge(name, trouble, outcome.skip_reason, witness.take())


@contextlib.contextmanager
def hurry(name: str) -> Iterator[None]:
    """The hub's clock, as the test with this name needs it."""
    usual = hub.SLICE
    if name in expectations.UNHURRIED:
        hub.SLICE = UNHURRIED
    try:
        yield
    finally:
        hub.SLICE = usual


UNHURRIED = 10.0
"""Seconds: longer than a test takes."""


def short_name(test: unittest.TestCase) -> str:
    """Such as ``iostream_test.TestIOStream.test_flow_control``."""
    return test.id().removeprefix("tornado.test.")


def find_tests(suite: unittest.TestSuite, wanted: list[str]) -> Iterator[unittest.TestCase]:
    """The tests in ``suite``, in order; only those whose name contains one of ``wanted``, if there are any."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from find_tests(test, wanted)
        elif not wanted or any(part in short_name(test) for part in wanted):
            yield test


def be_strict() -> None:
    """Set up warnings and logs as Tornado's own test runner does, and be as strict with our modules as with its own."""
    warnings.filterwarnings("error")
    warnings.filterwarnings("ignore", category=ImportWarning)
    warnings.filterwarnings(
        "ignore", ".*test.key.*read", UserWarning
    )  # rightly said of the key that Tornado's tests have
    for category in (DeprecationWarning, PendingDeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
        warnings.filterwarnings("error", category=category, module=r"(tornado|iostreamsrv)\..*")
    logging.getLogger("tornado.access").setLevel(logging.CRITICAL)
    # Tornado's tests expect an empty log. On a busy machine, one that decompresses 100 MB blocks the loop for 0.5 s.
    logging.getLogger("iostreamsrv.general").addFilter(lambda record: "has blocked the loop" not in record.getMessage())


def prepare_children(report: Path) -> None:
    """Have every Python that a test starts run on our classes, and watched, before it runs a line of its own."""
    path = [HERE / "child", HERE.parent.parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, path))
    os.environ |= environment(os.environ)
    os.environ[CHILD_REPORT] = str(report)


def run(wanted: list[str], verbose: bool = False, our_defaults: bool = False) -> list[Verdict]:
    """Run the tests and return the verdicts, those of abstract base classes left out.

    :param our_defaults: whether servers have the default options of this package, as in a program that has changed its
        imports, in place of `iostreamsrv.tornado.OPTIONS`.
    """
    be_strict()
    verdicts = []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report")
        report.touch()
        prepare_children(report)
        if our_defaults:
            servers.OPTIONS = ServerOptions()
        install()  # before the tests are loaded: some inherit from what is replaced
        suite = unittest.defaultTestLoader.loadTestsFromNames(MODULES)
        witness = Witness(report)
        witness.watch()
        for test in find_tests(suite, wanted):
            verdict = run_test(test, witness)
            if verdict is not None:
                verdicts.append(verdict)
                if verbose:
                    print(f"{verdict.kind:8} {verdict.name}", flush=True)
    return verdicts


def summary(verdicts: list[Verdict], complete: bool = True) -> Iterator[str]:
    """The lines to print. The last one counts: passed are only tests that prove something about us."""
    yield textwrap.fill(
        f"Tornado {tornado.version}'s tests on iostreamsrv {iostreamsrv.__version__}, "
        f"{platform.python_implementation()} {platform.python_version()}; replaced: {', '.join(THEIRS)}",
        WIDTH,
    )
    kinds: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        kinds.setdefault(verdict.kind, []).append(verdict)
    for kind, meaning in MEANINGS.items():
        if kind in kinds:
            yield f"\n{len(kinds[kind])} {kind}: {meaning}"
            yield from by_reason(kinds[kind])
    ran = {name for verdict in verdicts for name in (verdict.name, verdict.name.rpartition(".")[0])}
    lists = (*expectations.CANNOT_PASS, *expectations.VACUOUS, *expectations.UNHURRIED)
    unknown = [name for name in lists if name not in ran]
    if complete and unknown:
        yield f"\nListed, but this Tornado has no such test: {', '.join(unknown)}"
    for verdict in kinds.get("failed", ()):
        yield f"\nFAILED {verdict.name}"
        yield textwrap.indent(verdict.why, "    ")
    passed, failed, skipped = (sum(verdict.kind in group for verdict in verdicts) for group in COUNTED)
    yield f"\n{passed} passed, {failed} failed, {skipped} skipped"


def by_reason(verdicts: list[Verdict]) -> Iterator[str]:
    """The names of the tests under their reasons, those of a class together."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for verdict in verdicts:
        group, _, name = verdict.name.rpartition(".")
        reasons.setdefault(verdict.why, {}).setdefault(group, []).append(name)
    for reason, groups in reasons.items():
        yield textwrap.fill(reason, WIDTH, initial_indent="  ", subsequent_indent="  ")
        for group, names in groups.items():
            text = f"{group} ({len(names)}): {', '.join(names)}"
            yield textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="      ")


WIDTH = 120

MEANINGS = {
    "vacuous": "they ran and passed, but never touch our classes; see tests/streams/test_promises.py",
    "excepted": "they ran and failed, as they must",
    "skipped": "by their own decision",
}
COUNTED = (("passed",), ("failed",), ("vacuous", "excepted", "skipped"))


def main(arguments: list[str]) -> int:
    """The command. Its exit code is 0 if no test failed and at least one passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("-v", "--verbose", action="store_true", help="print each test's verdict as it comes")
    parser.add_argument(
        "--our-defaults", action="store_true", help="run servers with our default options, not Tornado's"
    )
    parser.add_argument("names", nargs="*", help="run only the tests whose name contains one of these")
    options = parser.parse_args(arguments)
    faulthandler.dump_traceback_later(GIVE_UP, exit=True)
    verdicts = run(options.names, options.verbose, options.our_defaults)
    faulthandler.cancel_dump_traceback_later()
    print("\n".join(summary(verdicts, complete=not options.names)))
    kinds = {verdict.kind for verdict in verdicts}
    return 1 if "failed" in kinds or "passed" not in kinds else 0
