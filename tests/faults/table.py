"""The figures side by side, in Markdown, for the terminal and for the docs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tests.support.programs import PROJECT

from .probes import Figures, Threshold
from .servers import KINDS, OURS

DOCS: Path = PROJECT / "docs" / "faults.md"

Results = Mapping[tuple[str, str], list[Figures]]
"""The tries of each probe, by its name and the kind of the server; none where it could not be carried out."""


class Measured(Protocol):
    """What has a row of the table, or several: a `Probe`, for example."""

    name: str
    about: str
    thresholds: Sequence[Threshold]

    def missed(self, tries: list[Figures]) -> Any:
        """Which figures miss their thresholds."""


def report(
    probes: Sequence[Measured],
    results: Results,
    machine: Mapping[str, str],
    *,
    title: str = "Probes",
    kinds: Sequence[str] = KINDS,
    ours: str = OURS,
) -> str:
    """What was done, on what, and what came of it.

    :param title: what the probes are called.
    :param kinds: the columns.
    :param ours: that of the thresholds.
    """
    return "\n\n".join(
        [
            "\n".join(f"- {name}: {value}" for name, value in machine.items()),
            f"### {title}",
            "\n".join(f"- **{probe.name}**: {probe.about}" for probe in probes),
            "### Figures",
            "\n".join(_lines(probes, results, kinds, ours)),
        ]
    )


def _lines(probes: Sequence[Measured], results: Results, kinds: Sequence[str], ours: str) -> Iterator[str]:
    heads = ("", "", f"required of {ours}", *kinds)
    yield _line(heads)
    yield _line(["---"] * 2 + ["---:"] * (len(heads) - 2))
    for probe in probes:
        for number, threshold in enumerate(probe.thresholds):
            cells = (_cell(probe, threshold, results.get((probe.name, kind)), kind == ours) for kind in kinds)
            name = f"**{probe.name}**" if number == 0 else ""
            yield _line([name, threshold.figure, f"{threshold.sense} {_number(threshold.limit)}", *cells])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(probe: Measured, threshold: Threshold, tries: list[Figures] | None, is_ours: bool) -> str:
    if tries == []:
        return "fails"
    if tries is None or any(threshold.figure not in figures for figures in tries):
        return "-"
    number = _number(threshold.of(tries))
    return f"**{number}, missed**" if is_ours and threshold.figure in probe.missed(tries) else number


def _number(value: float) -> str:
    if math.isinf(value):
        return "never"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.2f}"
