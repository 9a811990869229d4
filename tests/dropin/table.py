"""The verdicts as a table, in Markdown, for the terminal and for the docs."""

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.programs import PROJECT

from .expectations import EXCEPTED
from .judging import Verdict

DOCS: Path = PROJECT / "docs" / "dropin.md"
HEADS = ("project", "version", "what is run", "pass on Tornado", "of these on iostreamsrv")


def report(verdicts: Sequence[Verdict]) -> str:
    """On what it ran, and what came of it."""
    return "\n".join(_lines(verdicts))


def _lines(verdicts: Sequence[Verdict]) -> Iterator[str]:
    tornados = sorted({verdict.versions["tornado"] for verdict in verdicts})
    yield f"- Python: {platform.python_implementation()} {platform.python_version()}"
    yield f"- tornado: {', '.join(tornados)}"
    yield ""
    yield _line(HEADS)
    yield _line(["---"] * 3 + ["---:"] * 2)
    for verdict in verdicts:
        project = verdict.project
        version = verdict.versions[project.distribution]
        counts = f"{verdict.on_tornado:,}", f"{verdict.on_ours:,}"
        yield _line([project.name, version, project.what, *counts])
    total = sum(verdict.on_tornado for verdict in verdicts), sum(verdict.on_ours for verdict in verdicts)
    yield _line(["all", "", "", *(f"{count:,}" for count in total)])
    yield ""
    again = [f"{verdict.project.name}: {check}" for verdict in verdicts for check in verdict.again]
    if again:
        yield f"Passed only at a second try, on one of the two or on both: {len(again)} (" + "; ".join(again) + ")."
        yield ""
    if EXCEPTED:
        yield "Passes on Tornado, and cannot on iostreamsrv:"
        yield ""
        for check, reason in EXCEPTED.items():
            yield f"- {check}: {reason}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
