"""What passes on Tornado passes on ours: of the quick ones. ``make dropin`` runs all."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import PROJECT

from .command import CANNOT_INSTALL
from .judging import Verdict, compare
from .projects import Use
from .running import OURS, TORNADO, Checks

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")


@pytest.mark.parametrize("what", ["thrift", "distributed:comms.py tcp"])
def test_a_project_passes_on_ours_what_it_passes_on_tornado(what: str) -> None:
    command = [sys.executable, "-m", "tests.dropin", what]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=3000)
    if done.returncode == CANNOT_INSTALL:
        pytest.skip(f"pip cannot install it here: {done.stderr[-500:]}")
    assert done.returncode == 0, done.stdout + done.stderr


def checks(side: str, *passed: str, **failed: str) -> Checks:
    outcomes = dict.fromkeys(passed, "") | failed
    return Checks(outcomes, {f"{side} some.Stream"}, "", Path("log"))


def verdict_on(tornado: Checks, ours: Checks, excepted: dict[str, str] | None = None) -> Verdict:
    return compare("it", Use("it.py", "it", 1), {TORNADO: tornado, OURS: ours}, excepted or {})


def test_what_passes_on_both_is_counted() -> None:
    verdict = verdict_on(checks(TORNADO, "a", "b", c="fails"), checks(OURS, "a", "b", "c"))
    assert (verdict.on_tornado, verdict.on_ours, verdict.failed) == (2, 2, [])


def test_what_passes_only_on_tornado_fails() -> None:
    verdict = verdict_on(checks(TORNADO, "a", "b"), checks(OURS, "a", b="broken"))
    assert (verdict.on_tornado, verdict.on_ours) == (2, 1)
    [failed] = verdict.failed
    assert "it: b" in failed and "broken" in failed


def test_a_check_that_does_not_run_on_ours_fails() -> None:
    assert verdict_on(checks(TORNADO, "a", "b"), checks(OURS, "a")).failed


def test_what_is_excepted_may_fail_and_must() -> None:
    excepted = {"it: b": "for a reason"}
    assert not verdict_on(checks(TORNADO, "a", "b"), checks(OURS, "a", b="broken"), excepted).failed
    assert verdict_on(checks(TORNADO, "a", "b"), checks(OURS, "a", "b"), excepted).failed


def test_classes_of_the_other_side_fail() -> None:
    assert verdict_on(checks(TORNADO, "a"), checks(TORNADO, "a")).failed


def test_a_side_that_makes_no_stream_fails() -> None:
    assert verdict_on(checks(TORNADO, "a"), checks(OURS, "a")._replace(classes=set())).failed
