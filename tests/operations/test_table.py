"""What is made of figures: verdicts, the table, and the figures of clients."""

import math

import pytest

from tests.faults.probes import Figures, Threshold

from .catalogue import ROWS
from .clients import Ended, Outcome
from .deaths import is_own, replaced_after
from .reloads import most_within
from .rows import Row, Trial
from .services import GTHREAD, OURS
from .table import DOCS, report

LOST, SLOW = Threshold("lost", "=", 0), Threshold("p99, ms", "≤", 50, timed=True, full_only=True)


def row(*tries: Figures) -> Row:
    """One that takes these figures, one after the other."""
    left = list(tries)

    def measure(trial: Trial) -> Figures:
        return left.pop(0)

    return Row("made up", "Nothing is done.", measure, (LOST, SLOW), mutations=())


def test_what_was_lost_once_is_not_forgiven() -> None:
    losing = row({"lost": 1, "p99, ms": 3})
    assert losing.missed(losing.tried()) == {"lost": "1, and must be = 0"}


def test_what_was_late_is_tried_again() -> None:
    late, good = {"lost": 0, "p99, ms": 70}, {"lost": 0, "p99, ms": 3}
    accident, habit = row(late, good, good), row(late, good, late)
    assert accident.missed(accident.tried(full=True)) == {}
    assert habit.missed(habit.tried(full=True)) == {"p99, ms": "70, and must be ≤ 50"}


def test_the_small_form_is_too_short_for_some_figures() -> None:
    late = row({"lost": 0, "p99, ms": 70})
    assert late.missed(late.tried()) == {}


def test_the_table_has_all_side_by_side_and_marks_what_ours_misses() -> None:
    tries = {("made up", OURS): [{"lost": 0, "p99, ms": 70.0}], ("made up", GTHREAD): [{"lost": 1234}]}
    rows = report([row()], tries, {"CPU": "made up, too"}).splitlines()
    assert "- CPU: made up, too" in rows
    assert "| **made up** | lost | = 0 | 0 | - | 1,234 | - | - |" in rows
    assert "|  | p99, ms | ≤ 50 | **70, missed** | - | - | - | - |" in rows


def ended(outcome: str = "ok", due: float = 1.0, at: float = 2.0, pids: tuple[int, ...] = (7,)) -> Ended:
    return Ended(due, outcome, [0.1] * len(pids), list(pids), at)


@pytest.mark.parametrize("outcome", ["refused", "reset", "cut", "unanswered", "closed"])
def test_whatever_is_not_well_is_lost(outcome: str) -> None:
    found = Outcome([ended(), ended(outcome, pids=())], 1)
    assert found.figures()["lost"] == 1
    assert found.said() == f"1 {outcome}"


def test_an_error_page_is_lost_too() -> None:
    assert Outcome([ended(pids=(0,))], 1).figures()["lost"] == 1


def test_a_client_is_of_the_dead_worker_if_that_answered_it_or_might_have() -> None:
    dead = {7: 5.0}
    assert is_own(ended("reset", pids=(7,)), dead)
    assert not is_own(ended("reset", at=5.0, pids=(8,)), dead)
    assert is_own(ended("reset", at=5.01, pids=()), dead)
    assert not is_own(ended("reset", at=4.0, pids=()), dead)


def test_a_worker_is_replaced_when_a_new_process_answers() -> None:
    clients = [ended(due=1.0, pids=(7,)), ended(due=2.0, pids=(7,)), ended(due=2.4, pids=(8,))]
    assert replaced_after(clients, 2.0, {7}) == pytest.approx(0.5)
    assert replaced_after(clients, 2.0, {7, 8}) == math.inf
    assert replaced_after(clients, 3.0, {7}) == math.inf


def test_the_most_closings_of_a_second_are_counted_wherever_it_begins() -> None:
    assert most_within([0.0, 0.9, 1.0, 1.5, 1.8, 3.0], 1.0) == 4
    assert most_within([], 1.0) == 0


def test_the_docs_have_the_figures_of_each_row() -> None:
    page = DOCS.read_text()
    assert [each.name for each in ROWS if f"| **{each.name}** |" not in page] == []
    wanted = {threshold.figure for each in ROWS for threshold in each.thresholds}
    assert [figure for figure in wanted if f"| {figure} |" not in page] == []
