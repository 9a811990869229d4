"""Some seeds of the swarm: no invariant is broken, and each seed replays."""

import re
from pathlib import Path

import pytest

from tests.support.tiers import EVERY_CASE

from .mutations import MUTATIONS, try_one
from .scenario import draw
from .world import play, problems_of

SEEDS = 5000 if EVERY_CASE else 75
PART = 25
REPLAYED = 200 if EVERY_CASE else 10


@pytest.mark.parametrize("first", range(0, SEEDS, PART))
def test_no_seed_breaks_an_invariant(first: int) -> None:
    failed = {seed: found for seed in range(first, first + PART) if (found := problems_of(seed))}
    assert failed == {}


def test_a_seed_does_the_same_each_time() -> None:
    for seed in range(REPLAYED):
        assert play(seed) == play(seed), draw(seed)


@pytest.mark.parametrize("name", ["one_context_for_all_clients", "streams_stay_open_when_their_handlers_fail"])
def test_the_swarm_finds_a_fault_that_is_put_back(name: str) -> None:
    assert name in MUTATIONS
    seeds, _ = try_one(name, 100)
    assert seeds <= 100


def test_the_guide_has_each_fault_that_is_put_back() -> None:
    guide = (Path(__file__).parents[3] / "docs/guide/simulation.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| \d+ \|$", guide, re.M) == list(MUTATIONS)
