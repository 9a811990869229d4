"""What passes on Tornado passes on ours: of the quick ones. ``make dropin`` runs all."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.support import PROJECT

from . import keeping
from .command import CANNOT_INSTALL
from .judging import Verdict, compare
from .projects import USES, Project, Use
from .running import OURS, TORNADO, Checks, lines_of, node_of
from .table import report_of_all

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


def test_a_check_has_the_same_name_when_it_passes_and_when_it_fails(tmp_path: Path) -> None:
    program = """
from checks import check

for wrong in (False, True):
    with check("a name: with a colon"):
        assert not wrong, "why: it is"
"""
    log = tmp_path / "log"
    with log.open("w") as output:
        subprocess.run([sys.executable, "-c", program], cwd=USES, stdout=output, stderr=subprocess.DEVNULL, check=True)
    assert list(lines_of(log)) == [("a name: with a colon", ""), ("a name: with a colon", "AssertionError: why: it is")]


@pytest.mark.parametrize(
    ("file", "classname", "node"),
    [
        ("tests/test_a.py", "tests.test_a", "tests/test_a.py::it"),
        ("tests/test_a.py", "tests.test_a.TestB", "tests/test_a.py::TestB::it"),
        ("project/decorators.py", "tests.test_a", "tests/test_a.py::it"),
    ],
)
def test_a_test_of_a_suite_is_named_as_pytest_takes_it(file: str, classname: str, node: str) -> None:
    assert node_of(ElementTree.Element("testcase", file=file, classname=classname, name="it")) == node


VERSIONS = {"project": "1.2", "tornado": "6.6", "iostreamsrv": "0.1", "python": "CPython 3.11"}


def test_the_table_names_what_failed_on_either_side_and_what_has_not_run() -> None:
    verdict = verdict_on(checks(TORNADO, "a", "b", c="fails"), checks(OURS, "a", b="broken"))
    use, other = Use("it.py", "what people do", 1), Use("other.py", "what others do", 1)
    project = Project("it", "it", [use, other])
    text = report_of_all([(project, use, verdict._replace(versions=VERSIONS)), (project, other, None)])
    assert "| it | 1.2 | what people do | 2 | 1 |" in text
    assert "passes on Tornado only: b." in text
    assert "fails on Tornado, so it compares nothing: c." in text
    assert "Not run: it (what others do)." in text


def test_the_newest_verdict_of_each_run_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "CACHE", tmp_path)
    use, other = Use("it.py", "what people do", 1), Use("it.py", "the same over TLS", 1, ["tls"])
    project = Project("it", "it", [use, other])
    first, second = verdict_on(checks(TORNADO, "a"), checks(OURS)), verdict_on(checks(TORNADO, "a"), checks(OURS, "a"))
    keeping.keep(first)
    keeping.keep(second)
    assert list(keeping.kept([project])) == [(project, use, second), (project, other, None)]
