"""The figures side by side, in Markdown, for the terminal and for the docs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults import table
from tests.support.programs import PROJECT

from .keeping import Results
from .rows import Row
from .services import KINDS, OURS

DOCS: Path = PROJECT / "docs" / "operations.md"


def report(rows: Sequence[Row], results: Results, machine: Mapping[str, str]) -> str:
    """What was done, on what, and what came of it."""
    return table.report(rows, results, machine, title="Rows", kinds=KINDS, ours=OURS)
