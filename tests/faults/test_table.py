"""What is made of figures: verdicts, and the table of the docs."""

import math

import pytest

from .catalogue import PROBES
from .probes import Figures, Probe, Sense, Threshold, Trial
from .servers import ASYNCIO, OURS, TORNADO
from .table import DOCS, report

LATE, LEFT = Threshold("late, s", "≤", 1, timed=True), Threshold("left", "=", 0)


def probe(*tries: Figures) -> Probe:
    """One that takes these figures, one after the other."""
    left = list(tries)

    def measure(trial: Trial) -> Figures:
        return left.pop(0)

    return Probe("made up", "Nothing is done.", measure, (LATE, LEFT), guards=())


@pytest.mark.parametrize(
    ("sense", "found", "counts"),
    [("≤", [0, 5, 2], 5), ("≥", [9, 3, 7], 3), ("=", [4, 2, 5], 2), ("=", [4, 4, math.inf], math.inf)],
)
def test_of_a_figure_that_time_does_not_touch_the_worst_counts(sense: Sense, found: list[float], counts: float) -> None:
    assert Threshold("figure", sense, 4).of([{"figure": each} for each in found]) == counts


def test_of_a_figure_that_is_a_matter_of_time_the_median_counts() -> None:
    assert LATE.of([{"late, s": each} for each in (0.2, 7.0, 0.1)]) == 0.2


def test_a_try_that_meets_everything_is_enough_in_the_small_form_only() -> None:
    good = {"late, s": 0.2, "left": 0}
    assert len(probe(good).tried()) == 1
    assert len(probe(good, good, good).tried(full=True)) == 3


def test_a_try_that_was_late_is_repeated_and_may_be_an_accident() -> None:
    late, good = {"late, s": 2.0, "left": 0}, {"late, s": 0.2, "left": 0}
    accident, habit = probe(late, good, good), probe(late, good, late)
    assert accident.missed(accident.tried()) == {}
    assert habit.missed(habit.tried()) == {"late, s": "2, and must be ≤ 1"}


def test_what_was_left_once_is_not_forgiven() -> None:
    leaking = probe({"late, s": 0.2, "left": 1}, {"late, s": 0.2, "left": 0}, {"late, s": 0.2, "left": 0})
    assert leaking.missed(leaking.tried()) == {"left": "1, and must be = 0"}


def test_the_table_has_all_side_by_side_and_marks_what_ours_misses() -> None:
    tries = {
        ("made up", OURS): [{"late, s": 1.25, "left": 0}],
        ("made up", TORNADO): [{"late, s": math.inf, "left": 1234}],
        ("made up", ASYNCIO): [{"late, s": 0.5}],
    }
    rows = report([probe()], tries, {"CPU": "made up, too"}).splitlines()
    assert "- CPU: made up, too" in rows
    assert "| **made up** | late, s | ≤ 1 | **1.25, missed** | never | 0.50 |" in rows
    assert "|  | left | = 0 | 0 | 1,234 | - |" in rows


def test_the_table_says_what_could_not_be_carried_out() -> None:
    rows = report([probe()], {("made up", TORNADO): []}, {}).splitlines()
    assert "| **made up** | late, s | ≤ 1 | - | fails | - |" in rows


def test_the_docs_have_the_figures_of_each_probe() -> None:
    page = DOCS.read_text()
    assert [each.name for each in PROBES if f"| **{each.name}** |" not in page] == []
    wanted = {threshold.figure for each in PROBES for threshold in each.thresholds}
    assert [figure for figure in wanted if f"| {figure} |" not in page] == []
    assert "missed" not in page.partition("<!-- measured: begin -->")[2]
