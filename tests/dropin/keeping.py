"""Keeps what came of each run, in ``.dropin/``, so that the table in the docs can be made of several commands' runs."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from .judging import Verdict
from .projects import Project, Suite, Use
from .venvs import CACHE


def keep(verdict: Verdict) -> None:
    """Write it, in place of what was kept of this run before."""
    path = _path(verdict.project, verdict.run)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(verdict._asdict(), indent=1))


def kept(projects: Iterable[Project]) -> Iterator[tuple[Project, Suite | Use, Verdict | None]]:
    """All runs, each with the verdict that is kept: of the Python that runs this, and of the project as it is required.

    Where the requirements of a project change, its venv goes, and with it what is kept.
    """
    for project in projects:
        for what in project.runs:
            path = _path(project.name, what.name)
            yield project, what, Verdict(**json.loads(path.read_text())) if path.exists() else None


def _path(project: str, run: str) -> Path:
    return CACHE / project / "results" / (re.sub(r"[^\w]+", "-", run) + ".json")
