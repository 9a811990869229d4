"""The figures that ``make dropin-figures`` takes."""

import subprocess
import sys

import pytest

from tests.support import PROJECT

from . import figures
from .command import CANNOT_INSTALL
from .figures import Figure, Figures
from .loads import Load
from .running import OURS, TORNADO
from .venvs import Venv

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")

LOAD = Load("it", "it.py", {"calls": ("/s", 1.5), "pages": ("/s", 0.97)})


def figure(rate: float, cpu: float = 1e-3, disturbed: bool = False) -> Figure:
    return Figure(rate, cpu, peak=50e6, disturbed=disturbed)


def test_each_load_has_its_figures_on_both_sides() -> None:
    """Their values mean nothing in a test, so an exit code that says they are too low will do."""
    command = [sys.executable, "-m", "tests.dropin.measure", "thrift", "--rounds", "1"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=3000)
    if done.returncode == CANNOT_INSTALL:
        pytest.skip(f"pip cannot install it here: {done.stderr[-500:]}")
    assert "FAILED" not in done.stdout and done.stdout.count("| thrift ") == 2, done.stdout + done.stderr


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    taken = Figures()
    for tornado, ours in ((100, 150), (200, 400), (50, 55)):
        taken.add(LOAD, TORNADO, {"calls": figure(tornado, cpu=2e-3)})
        taken.add(LOAD, OURS, {"calls": figure(ours)})
    assert taken.ratio(LOAD, "calls", "rate") == 1.5
    assert taken.ratio(LOAD, "calls", "cpu") == 0.5


def test_a_load_without_figures_of_one_side_is_not_shown() -> None:
    taken = Figures()
    taken.add(LOAD, TORNADO, {"calls": figure(1), "pages": figure(1)})
    assert not taken.has(LOAD)
    taken.add(LOAD, OURS, {"calls": figure(1), "pages": figure(1)})
    assert taken.has(LOAD)


def test_what_is_below_what_is_asked_for_is_named() -> None:
    taken = Figures()
    taken.add(LOAD, TORNADO, {"calls": figure(100), "pages": figure(100)})
    taken.add(LOAD, OURS, {"calls": figure(149), "pages": figure(98)})
    [missed] = figures.missed([LOAD], taken)
    assert "calls" in missed and "1.490" in missed


def test_the_report_marks_disturbed_figures_and_says_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Venv, "version", lambda self, distribution: "1.2")
    taken = Figures()
    taken.add(LOAD, TORNADO, {"calls": figure(1000), "pages": figure(100)})
    taken.add(LOAD, OURS, {"calls": figure(2000, cpu=0.5e-3), "pages": figure(100, disturbed=True)})
    text = figures.report([LOAD], {"it": Venv("it")}, taken, "in turns", ["other is not measured"])
    assert "| it 1.2: calls | 1,000/s | 2,000/s | 2.00 times | 0.50 | 50 MB | 50 MB |" in text
    assert "1.00 times! | 1.00! |" in text
    assert text.count("`!`") == 1
    assert text.endswith(
        "- other is not measured\n- `!`: other processes used more than 10% of a core, also when it was repeated."
    )
