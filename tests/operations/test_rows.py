"""What must hold of a service holds, in the small form of each row; and would not, were it not for some lines of ours.

``IOSTREAMSRV_FULL=1`` makes it the full form. ``python -m tests.operations`` measures the others as well.
"""

import os
import sys

import pytest

from .catalogue import ROWS
from .rows import Mutation, Row

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it needs /proc")

ALL = os.environ.get("IOSTREAMSRV_FULL") == "1"

FIRST = {"reload", "TERM at rest", "kill of the first process"}
"""Rows of the first tier."""


def alone_if_need_be(row: Row) -> list[pytest.MarkDecorator]:
    """In the full form whatever is a matter of time, and in the small one what others spoil by little."""
    alone = any(each.timed if ALL else each.quiet and not each.full_only for each in row.thresholds)
    return [pytest.mark.alone] if alone else []


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row, id=row.name, marks=alone_if_need_be(row) + ([pytest.mark.first_tier] if row.name in FIRST else [])
        )
        for row in ROWS
    ],
)
def test_what_must_hold_holds(row: Row) -> None:
    assert row.missed(row.tried(full=ALL)) == {}


MUTATED = [(row, mutation) for row in ROWS for mutation in row.mutations]


@pytest.mark.parametrize(
    ("row", "mutation"),
    [
        pytest.param(row, mutation, id=f"{row.name}: {mutation.breaks}", marks=alone_if_need_be(row))
        for row, mutation in MUTATED
    ],
)
def test_a_row_notices_its_mutation(row: Row, mutation: Mutation) -> None:
    assert mutation.breaks in row.missed(row.mutated(mutation))


def test_each_row_has_a_mutation() -> None:
    assert [row.name for row in ROWS if not row.mutations] == []


@pytest.mark.first_tier
def test_what_a_mutation_changes_is_there() -> None:
    assert [(row.name, mutation.file) for row, mutation in MUTATED if not mutation.is_possible()] == []


@pytest.mark.first_tier
def test_a_figure_that_a_mutation_breaks_has_a_threshold() -> None:
    assert [
        (row.name, mutation.breaks)
        for row, mutation in MUTATED
        if mutation.breaks not in [each.figure for each in row.thresholds]
    ] == []
