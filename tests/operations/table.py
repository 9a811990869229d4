"""The figures side by side, in Markdown, for the terminal and for the docs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.faults.probes import Figures, Threshold
from tests.support.programs import PROJECT

from .keeping import Results
from .rows import Row
from .services import KINDS, OURS

DOCS: Path = PROJECT / "docs" / "operations.md"


def report(rows: Sequence[Row], results: Results, machine: Mapping[str, str]) -> str:
    """What was done, on what, and what came of it."""
    return "\n\n".join(
        [
            "\n".join(f"- {name}: {value}" for name, value in machine.items()),
            "### Rows",
            "\n".join(f"- **{row.name}**: {row.about}" for row in rows),
            "### Figures",
            "\n".join(_lines(rows, results)),
        ]
    )


def _lines(rows: Sequence[Row], results: Results) -> Iterator[str]:
    heads = ("", "", f"required of {OURS}", *KINDS)
    yield _line(heads)
    yield _line(["---"] * 2 + ["---:"] * (len(heads) - 2))
    for row in rows:
        for number, threshold in enumerate(row.thresholds):
            cells = (_cell(row, threshold, results.get((row.name, kind)), kind) for kind in KINDS)
            name = f"**{row.name}**" if number == 0 else ""
            yield _line([name, threshold.figure, f"{threshold.sense} {_number(threshold.limit)}", *cells])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(row: Row, threshold: Threshold, tries: list[Figures] | None, kind: str) -> str:
    if tries == []:
        return "fails"
    if tries is None or threshold.figure not in tries[0]:
        return "-"
    number = _number(threshold.of(tries))
    return f"**{number}, missed**" if kind == OURS and threshold.figure in row.missed(tries) else number


def _number(value: float) -> str:
    if math.isinf(value):
        return "never"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.2f}"
