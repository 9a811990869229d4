"""The figures side by side, in Markdown, for the terminal and for the docs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.programs import PROJECT

from .probes import Figures, Probe, Threshold
from .servers import KINDS, OURS

DOCS: Path = PROJECT / "docs" / "faults.md"

Results = Mapping[tuple[str, str], list[Figures]]
"""The tries of each probe, by its name and the kind of the server; none where it could not be carried out."""


def report(probes: Sequence[Probe], results: Results, machine: Mapping[str, str]) -> str:
    """What was done, on what, and what came of it."""
    return "\n\n".join(
        [
            "\n".join(f"- {name}: {value}" for name, value in machine.items()),
            "### Probes",
            "\n".join(f"- **{probe.name}**: {probe.about}" for probe in probes),
            "### Figures",
            "\n".join(_lines(probes, results)),
        ]
    )


def _lines(probes: Sequence[Probe], results: Results) -> Iterator[str]:
    heads = ("", "", f"required of {OURS}", *KINDS)
    yield _line(heads)
    yield _line(["---"] * 2 + ["---:"] * (len(heads) - 2))
    for probe in probes:
        for number, threshold in enumerate(probe.thresholds):
            cells = (_cell(probe, threshold, results.get((probe.name, kind)), kind) for kind in KINDS)
            name = f"**{probe.name}**" if number == 0 else ""
            yield _line([name, threshold.figure, f"{threshold.sense} {_number(threshold.limit)}", *cells])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(probe: Probe, threshold: Threshold, tries: list[Figures] | None, kind: str) -> str:
    if tries == []:
        return "fails"
    if tries is None or any(threshold.figure not in figures for figures in tries):
        return "-"
    number = _number(threshold.of(tries))
    return f"**{number}, missed**" if kind == OURS and threshold.figure in probe.missed(tries) else number


def _number(value: float) -> str:
    if math.isinf(value):
        return "never"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.2f}"
