"""The verdicts as a table, in Markdown, for the terminal and for the docs."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.support import PROJECT

from .expectations import EXCEPTED
from .judging import Verdict
from .projects import PROJECTS, Project, Suite, Use

DOCS: Path = PROJECT / "docs" / "dropin.md"
HEADS = ("project", "version", "what is run", "pass on Tornado", "of these on iostreamsrv")
NAMED = 10
"""More checks than these are counted, and not named."""


def report(verdicts: Sequence[Verdict]) -> str:
    """Of what has run just now."""
    by_name = {(verdict.project, verdict.run): verdict for verdict in verdicts}
    runs = [(project, what) for project in PROJECTS for what in project.runs if (project.name, what.name) in by_name]
    return report_of_all((project, what, by_name[project.name, what.name]) for project, what in runs)


def report_of_all(runs: Iterable[tuple[Project, Suite | Use, Verdict | None]]) -> str:
    """Of these runs, on what they ran, and what came of them; those without a verdict are named."""
    runs = list(runs)
    verdicts = [verdict for _, _, verdict in runs if verdict]
    lines = [f"- {name}: {_versions(verdicts, name.lower())}" for name in ("Python", "Tornado", "iostreamsrv")]
    lines += ["", _line(HEADS), _line(["---"] * 3 + ["---:"] * 2)]
    lines += [_row(project, what, verdict) for project, what, verdict in runs if verdict]
    total = sum(verdict.on_tornado for verdict in verdicts), sum(verdict.on_ours for verdict in verdicts)
    lines += [_line(["all", "", "", *(f"{count:,}" for count in total)])]
    notes = list(_notes(verdicts))
    if not_run := [f"{project.name} ({what.what})" for project, what, verdict in runs if not verdict]:
        notes.append(f"- Not run: {', '.join(not_run)}.")
    notes += [f"- Excepted: {check}: {reason}" for check, reason in EXCEPTED.items()]
    return "\n".join([*lines, *[""][: len(notes)], *notes])


def _versions(verdicts: Sequence[Verdict], of: str) -> str:
    return " and ".join(sorted({verdict.versions[of] for verdict in verdicts}))


def _row(project: Project, what: Suite | Use, verdict: Verdict) -> str:
    counts = f"{verdict.on_tornado:,}", f"{verdict.on_ours:,}"
    return _line([project.name, verdict.versions["project"], what.what, *counts])


def _notes(verdicts: Sequence[Verdict]) -> Iterator[str]:
    for verdict in verdicts:
        name = f"{verdict.project}, {verdict.run}"
        if verdict.lost:
            yield f"- {name}: passes on Tornado only: {_named(verdict.lost)}."
        if verdict.not_on_tornado:
            yield f"- {name}: fails on Tornado, so it compares nothing: {_named(verdict.not_on_tornado)}."
        if verdict.again:
            yield f"- {name}: passed on both at the second try only: {_named(verdict.again)}."


def _named(checks: Sequence[str]) -> str:
    return f"{len(checks)} checks" if len(checks) > NAMED else "; ".join(checks)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
