"""Some seeds of the swarm: no invariant is broken, and each seed replays."""

import pytest

from .mutations import MUTATIONS, try_one
from .scenario import draw
from .world import play, problems_of

SEEDS = 200
PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_no_seed_breaks_an_invariant(part: int) -> None:
    each = SEEDS // PARTS
    failed = {seed: found for seed in range(part * each, (part + 1) * each) if (found := problems_of(seed))}
    assert failed == {}


def test_a_seed_does_the_same_each_time() -> None:
    for seed in range(20):
        assert play(seed) == play(seed), draw(seed)


@pytest.mark.parametrize("name", ["one_context_for_all_clients", "errors_during_a_close_keep_the_place"])
def test_the_swarm_finds_a_fault_that_is_put_back(name: str) -> None:
    assert name in MUTATIONS
    seeds, _ = try_one(name, 100)
    assert seeds <= 100
