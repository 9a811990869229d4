"""The measured figures, and those computed from them: medians, ratios, growth."""

import math
from statistics import linear_regression, median
from typing import NamedTuple

from .peers import TORNADO, Peer
from .workloads import Figures

MOST_FOREIGN = 0.10
"""Share of a core: if other processes use more, the run is repeated."""

LOAD_SPENT = 0.95
"""Share of its core: if the load generator uses more, it may be what limits a figure."""


class Run(NamedTuple):
    """One run: its figures, and the share of a core that unrelated processes used."""

    figures: Figures
    foreign: float

    @property
    def disturbed(self) -> bool:
        return self.foreign > MOST_FOREIGN


class Results:
    """All runs by workload and peer, in the order of the rounds; and the failures."""

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
        """The median of the rounds' ratios. A disturbance of a whole round is in both figures and cancels out."""
        pairs = zip(self.all(workload, peer, figure), self.all(workload, base, figure), strict=False)
        return median(ours / theirs for ours, theirs in pairs)

    def growth(self, workload: str, peer: Peer) -> float:
        """The exponent k of cost ~ size^k, so 1 is linear; a least-squares fit on log scales."""
        sizes = list(self.runs[workload, peer][0].figures)
        costs = [self.median(workload, peer, size) for size in sizes]
        return linear_regression([math.log(int(size)) for size in sizes], [math.log(cost) for cost in costs]).slope
