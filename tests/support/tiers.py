"""What of many cases runs in which tier."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import settings

EVERY_CASE = os.environ.get("IOSTREAMSRV_ALL") == "1"
"""Whether tests that generate or repeat their cases make many of them, as ``make test-all`` does."""

FUZZING = os.environ.get("IOSTREAMSRV_FUZZ") == "1"
"""Whether the generated cases are others each time, by ``--hypothesis-seed``, as ``make fuzz`` wants them."""


def generated(few: int, many: int, **others: Any) -> settings:
    """The settings of a test whose cases hypothesis generates: ``few``, and ``many`` with :data:`EVERY_CASE`.

    They are the same each time, unless :data:`FUZZING`.
    """
    if FUZZING:
        return settings(max_examples=5 * few, database=None, print_blob=True, deadline=None, **others)
    return settings(max_examples=many if EVERY_CASE else few, derandomize=True, deadline=None, **others)


def crossed(*choices: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
    """Every combination of the values of some parameters, for ``parametrize``.

    The first tier runs as many as show each value at least once: the first of each, the second of each, and so on. The
    rest are marked ``second_tier``.

    :param choices: the values of one parameter each; or names, which become part of the test's id, and their values.
    """
    names = [[_name(each) for each in choice] for choice in choices]
    values = [list(choice.values()) if isinstance(choice, Mapping) else list(choice) for choice in choices]
    sizes = [len(choice) for choice in values]
    first = {tuple(turn % size for size in sizes) for turn in range(max(sizes))}
    return [
        pytest.param(
            *(choice[number] for choice, number in zip(values, numbers, strict=True)),
            id="-".join(choice[number] for choice, number in zip(names, numbers, strict=True)),
            marks=[] if numbers in first else [pytest.mark.second_tier],
        )
        for numbers in itertools.product(*map(range, sizes))
    ]


def _name(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_name, value))
    return getattr(value, "__name__", None) or str(value)
