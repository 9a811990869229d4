"""The figures of `measure`, and their table in Markdown, for the terminal and for the docs."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.machine import describe
from benchmarks.results import MOST_FOREIGN
from tests.support import PROJECT

from .loads import Load
from .running import OURS, TORNADO
from .venvs import Venv, own_versions

DOCS: Path = PROJECT / "docs" / "from_tornado.md"
HEADS = (
    "",
    "Tornado",
    "iostreamsrv",
    "speed",
    "server's CPU time, of Tornado's",
    "server's memory: Tornado",
    "iostreamsrv",
)


class Figure(NamedTuple):
    """What one run says of a load."""

    rate: float
    """How much of it a second."""
    cpu: float
    """The CPU seconds of the server's process for one."""
    peak: float
    """The most bytes of the server's process that were resident."""
    disturbed: bool
    """Whether other processes used much of the cores meanwhile."""


class Figures:
    """All runs: by load, figure and side, in the order of the rounds."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str, str], list[Figure]] = {}

    def add(self, load: Load, side: str, figures: dict[str, Figure]) -> None:
        for what, figure in figures.items():
            self.runs.setdefault((load.name, what, side), []).append(figure)

    def has(self, load: Load) -> bool:
        """Whether there are runs on both sides."""
        return all((load.name, what, side) in self.runs for what in load.units for side in (TORNADO, OURS))

    def median(self, load: Load, what: str, side: str, field: str) -> float:
        return median(self._all(load, what, side, field))

    def ratio(self, load: Load, what: str, field: str) -> float:
        """Ours to Tornado's: the median of the rounds' ratios. What slows a whole round down is in both."""
        pairs = zip(self._all(load, what, OURS, field), self._all(load, what, TORNADO, field), strict=False)
        return median(ours / theirs for ours, theirs in pairs)

    def disturbed(self, load: Load, what: str) -> bool:
        return any(any(self._all(load, what, side, "disturbed")) for side in (TORNADO, OURS))

    def _all(self, load: Load, what: str, side: str, field: str) -> list[float]:
        return [getattr(figure, field) for figure in self.runs[load.name, what, side]]


def report(loads: list[Load], venvs: Mapping[str, Venv], figures: Figures, manner: str, notes: list[str]) -> str:
    """The table of these loads, with the versions of what was measured.

    :param manner: a short description of how it was measured.
    """
    machine, own = describe(), own_versions()
    tornado = sorted({venvs[load.project].version("tornado") for load in loads})
    lines = [
        f"- CPU: {machine['CPU']}; kernel: {machine['kernel']}; Python: {own['python']}",
        f"- Tornado: {' and '.join(tornado)}; iostreamsrv: {own['iostreamsrv']}",
        f"- {manner}",
        "",
        _line(HEADS),
        "|---|" + "---:|" * (len(HEADS) - 1),
    ]
    for load in loads:
        project = f"{load.project} {venvs[load.project].version(load.project)}"
        for what, (unit, _) in load.units.items():
            lines.append(_line([f"{project}: {what}", *_cells(figures, load, what, unit)]))
    if any(figures.disturbed(load, what) for load in loads for what in load.units):
        notes = [
            *notes,
            f"`!`: other processes used more than {MOST_FOREIGN:.0%} of a core, also when it was repeated.",
        ]
    return "\n".join([*lines, *[""][: len(notes)], *(f"- {note}" for note in notes)])


def missed(loads: list[Load], figures: Figures) -> Iterator[str]:
    """The figures that are below what is asked for, a line each."""
    for load in loads:
        for what, (_, least) in load.units.items():
            ratio = figures.ratio(load, what, "rate")
            if ratio < least:
                yield f"{load.project}: {what}: {ratio:.3f} times Tornado's speed, not {least:g}"


def _cells(figures: Figures, load: Load, what: str, unit: str) -> Iterator[str]:
    for side in (TORNADO, OURS):
        yield f"{figures.median(load, what, side, 'rate'):,.0f}{unit}"
    mark = "!" if figures.disturbed(load, what) else ""
    yield f"{figures.ratio(load, what, 'rate'):.2f} times{mark}"
    yield f"{figures.ratio(load, what, 'cpu'):.2f}{mark}"
    for side in (TORNADO, OURS):
        yield f"{figures.median(load, what, side, 'peak') / 1e6:,.0f} MB"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
