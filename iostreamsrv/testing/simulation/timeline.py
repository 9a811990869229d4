"""A trace as a picture: an SVG with a lane for each connection, host or other name.

**Time** goes from left to right, and not evenly: what happens within microseconds must not lie on one spot, nor an hour
of silence fill the picture. Each instant is a step to the right, which grows with the logarithm of the time that has
passed.

**Lanes.** Both directions of a connection share one: what arrives at the one end is a bar above its line, at the other
a bar below. Words are dots, faults are red and go through all lanes. The mouse over a mark shows what it says.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape

Entry = tuple[float, str, str | int]

MOST = 1000
"""Entries in a picture: the last ones. A browser still shows it at once."""

LEFT, TOP, LANE, MARGIN = 330, 40, 34, 60
"""Pixels: beside and above the lanes, the height of one, and what stays empty at the right."""

LEAST_STEP, STEP_OF_TENFOLD = 5.0, 9.0
"""Pixels from one instant to the next: at least, and more each time the gap is ten times as long."""

SHORTEST_GAP = 1e-4
"""Seconds between two instants that make no more than the least step."""

LABELS_APART = 90
"""Pixels from one time to the next along the top."""

STYLE = (
    "text{font:11px monospace;fill:#333} .lane{stroke:#ccc} .out{stroke:#2a6fb0;stroke-width:3}"
    " .back{stroke:#3a9a5b;stroke-width:3} .words{fill:#555} .fault{fill:#c0281e} .strike{stroke:#c0281e;opacity:.35}"
    " .time{stroke:#eee}"
)


def svg(entries: Sequence[Entry]) -> str:
    """The picture.

    :param entries: of a trace, with seconds since the beginning.
    """
    entries = entries[-MOST:]
    lanes = _lanes(entries)
    places = _places(time for time, _, _ in entries)
    height = TOP + LANE * len(lanes) + 10
    width = int(max(places.values(), default=LEFT)) + MARGIN
    parts = [*_axis(places, height), *_names(lanes, width)]
    for time, who, what in entries:
        parts.append(_mark(places[time], lanes[lane_of(who)], time, who, what, height))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">',
            f"<style>{STYLE}</style>",
            '<rect width="100%" height="100%" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )


def lane_of(who: str) -> str:
    """The name of a lane: both directions of a connection have the same."""
    one, arrow, other = who.partition(">")
    return f"{min(one, other)} - {max(one, other)}" if arrow else who


def _lanes(entries: Iterable[Entry]) -> dict[str, int]:
    """The height of each lane, in the order in which they first appear."""
    names = dict.fromkeys(lane_of(who) for _, who, _ in entries)
    return {name: TOP + LANE * number + LANE // 2 for number, name in enumerate(names)}


def _places(times: Iterable[float]) -> dict[float, float]:
    """How far right each instant is."""
    places: dict[float, float] = {}
    place, before = LEFT + 10.0, None
    for time in times:
        if before is not None and time > before:
            place += LEAST_STEP + STEP_OF_TENFOLD * max(0.0, math.log10((time - before) / SHORTEST_GAP))
        places[time] = place
        before = time
    return places


def _axis(places: dict[float, float], height: int) -> Iterable[str]:
    last = -math.inf
    for time, place in places.items():
        if place - last >= LABELS_APART:
            last = place
            yield f'<line class="time" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP - 16}" y2="{height}"/>'
            yield f'<text x="{place:.1f}" y="{TOP - 20}">{time:.4f} s</text>'


def _names(lanes: dict[str, int], width: int) -> Iterable[str]:
    for name, y in lanes.items():
        yield f'<line class="lane" x1="{LEFT}" x2="{width}" y1="{y}" y2="{y}"/>'
        yield f'<text x="6" y="{y + 4}">{escape(name)}</text>'


def _mark(x: float, y: int, time: float, who: str, what: str | int, height: int) -> str:
    title = f"<title>{time:.6f} {escape(who)}: {what if isinstance(what, int) else escape(what)}</title>"
    if isinstance(what, int):
        out = lane_of(who).startswith(who.partition(">")[0])
        length = 3 + min(11.0, 2 * math.log10(what + 1))
        kind, end = ("out", y - length) if out else ("back", y + length)
        return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{end:.1f}">{title}</line>'
    if what.startswith("fault "):
        line = f'<line class="strike" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height}"/>'
        return f'{line}<circle class="fault" cx="{x:.1f}" cy="{y}" r="5">{title}</circle>'
    return f'<circle class="words" cx="{x:.1f}" cy="{y}" r="3">{title}</circle>'
