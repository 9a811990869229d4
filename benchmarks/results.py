"""What was measured, and what follows from it: medians, ratios, growth."""

import math
from statistics import linear_regression, median
from typing import NamedTuple

from .peers import TORNADO, Peer
from .workloads import Figures

MOST_FOREIGN = 0.10
"""Of a core: more CPU time that others took makes a run doubtful."""

LOAD_SPENT = 0.95
"""Of its core: with more, the load generator may be what limits a figure."""


class Run(NamedTuple):
    """One run: its figures, and how much of a core was taken by what has no part in it."""

    figures: Figures
    foreign: float

    @property
    def disturbed(self) -> bool:
        return self.foreign > MOST_FOREIGN


class Results:
    """Every run, by workload and peer, in the order of the rounds; and the failures."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, Peer], list[Run]] = {}
        self.failures: dict[tuple[str, Peer], str] = {}

    def add(self, workload: str, peer: Peer, run: Run) -> None:
        self.runs.setdefault((workload, peer), []).append(run)

    def has(self, workload: str, *peers: Peer) -> bool:
        return all((workload, peer) in self.runs for peer in peers)

    def disturbed(self, workload: str, peer: Peer) -> bool:
        return any(run.disturbed for run in self.runs[workload, peer])

    def load_spent(self, workload: str, peer: Peer) -> bool:
        return median(run.figures.get("load", 0) for run in self.runs[workload, peer]) >= LOAD_SPENT

    def all(self, workload: str, peer: Peer, figure: str) -> list[float]:
        return [run.figures[figure] for run in self.runs[workload, peer]]

    def median(self, workload: str, peer: Peer, figure: str) -> float:
        return median(self.all(workload, peer, figure))

    def ratio(self, workload: str, peer: Peer, figure: str, base: Peer = TORNADO) -> float:
        """The median of the rounds' ratios: what slows a whole round down is in both and falls out."""
        pairs = zip(self.all(workload, peer, figure), self.all(workload, base, figure), strict=False)
        return median(ours / theirs for ours, theirs in pairs)

    def growth(self, workload: str, peer: Peer) -> float:
        """The exponent k where cost grows as size to the k: 1 is in proportion. Least squares, both on a log scale."""
        sizes = list(self.runs[workload, peer][0].figures)
        costs = [self.median(workload, peer, size) for size in sizes]
        return linear_regression([math.log(int(size)) for size in sizes], [math.log(cost) for cost in costs]).slope
