"""The newest figures of each row and kind, kept in ``.operations``: so the table can be made in pieces."""

import json
from pathlib import Path

from tests.faults.probes import Figures
from tests.support import PROJECT

FILE: Path = PROJECT / ".operations" / "figures.json"

Results = dict[tuple[str, str], list[Figures]]
"""The tries of each row, by its name and the kind of the service; none where it could not be carried out."""


def kept() -> Results:
    """What there is."""
    try:
        entries = json.loads(FILE.read_text())
    except (OSError, ValueError):
        return {}
    return {(name, kind): tries for name, kind, tries in entries}


def keep(row: str, kind: str, tries: list[Figures]) -> None:
    """Keep the figures of a row in the place of older ones."""
    results = {**kept(), (row, kind): tries}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps([[name, kind, tries] for (name, kind), tries in results.items()], indent=1))
