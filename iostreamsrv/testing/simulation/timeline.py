"""A trace as a picture: an SVG with a lane for each connection, host or other name.

**Time** goes from left to right, and not evenly: what happens within microseconds must not lie on one spot, nor an hour
of silence fill the picture. Each instant is a step to the right, which grows with the logarithm of the time that has
passed.

**Lanes.** Both directions of a connection share one: bytes that arrive at the end named last are a bar above its line,
at the other a bar below. Words are dots, faults are red, go through all lanes, and are named where there is room. The
mouse over a mark shows what it says, and what others say that lie on the same spot.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape

Entry = tuple[float, str, str | int]

MOST = 1000
"""Entries in a picture: the last ones. A browser still shows it at once."""

LEFT, TOP, LANE, MARGIN, BOTTOM = 330, 72, 34, 60, 12
"""Pixels: beside and above the lanes, the height of one, and what stays empty at the right and below."""

LONGEST_NAME = 46
"""Characters of a lane's name that there is room for."""

LEAST_STEP, STEP_OF_TENFOLD = 5.0, 9.0
"""Pixels from one instant to the next: at least, and more each time the gap is ten times as long."""

SHORTEST_GAP = 1e-4
"""Seconds between two instants that make no more than the least step."""

LABELS_APART = 90
"""Pixels from one time to the next along the top, and from the name of one fault to the next."""

LEGEND = (
    "Seconds, from left to right, not to scale.",
    "Bars: bytes arrive, above a line at the end named last, below it at the other. Dots: events. Red: faults.",
)

NARROWEST = 760
"""Pixels that the legend takes."""

STYLE = (
    "text{font:11px monospace;fill:#333} .lane{stroke:#ccc} .out{stroke:#2a6fb0;stroke-width:3}"
    " .back{stroke:#3a9a5b;stroke-width:3} .words{fill:#555} .fault{fill:#c0281e} .strike{stroke:#c0281e;opacity:.35}"
    " .time{stroke:#eee} .middle{text-anchor:middle} .strikes{text-anchor:middle;fill:#c0281e}"
)


def svg(entries: Sequence[Entry]) -> str:
    """The picture.

    :param entries: of a trace, with seconds since the beginning.
    """
    entries = entries[-MOST:]
    lanes = _lanes(entries)
    places = _places(time for time, _, _ in entries)
    height = TOP + LANE * len(lanes) + BOTTOM
    width = max(int(max(places.values(), default=LEFT)) + MARGIN, NARROWEST)
    parts = [*_legend(), *_axis(places, height), *_names(lanes, width), *_faults(entries, places)]
    titles = _titles(entries)
    for time, who, what in sorted(entries, key=_is_fault):  # faults are drawn over what lies on the same spot
        lane = lane_of(who)
        parts.append(_mark(places[time], lanes[lane], who, what, "\n".join(titles[time, lane]), height))
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


def _is_fault(entry: Entry) -> bool:
    return str(entry[2]).startswith("fault ")


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


def _legend() -> Iterable[str]:
    for number, line in enumerate(LEGEND):
        yield f'<text x="6" y="{14 + 14 * number}">{escape(line)}</text>'


def _axis(places: dict[float, float], height: int) -> Iterable[str]:
    for time, place in _labelled(places):
        yield f'<line class="time" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP - 18}" y2="{height}"/>'
        yield f'<text class="middle" x="{place:.1f}" y="{TOP - 22}">{time:.4f} s</text>'


def _labelled(places: dict[float, float]) -> list[tuple[float, float]]:
    """Instants whose time is written above them: the first, the last, and between them as many as there is room for."""
    chosen: list[tuple[float, float]] = []
    for time, place in places.items():
        if not chosen or place - chosen[-1][1] >= LABELS_APART:
            chosen.append((time, place))
    if chosen:
        last = list(places.items())[-1]
        if last[1] - chosen[-1][1] < LABELS_APART and len(chosen) > 1:
            chosen.pop()
        chosen.append(last)
    return list(dict.fromkeys(chosen))


def _names(lanes: dict[str, int], width: int) -> Iterable[str]:
    for name, y in lanes.items():
        yield f'<line class="lane" x1="{LEFT}" x2="{width}" y1="{y}" y2="{y}"/>'
        if len(name) <= LONGEST_NAME:
            yield f'<text class="name" x="6" y="{y + 4}">{escape(name)}</text>'
        else:
            short = f"{name[: LONGEST_NAME // 2]}\N{HORIZONTAL ELLIPSIS}{name[1 - LONGEST_NAME // 2 :]}"
            yield f'<text class="name" x="6" y="{y + 4}">{escape(short)}<title>{escape(name)}</title></text>'


def _faults(entries: Iterable[Entry], places: dict[float, float]) -> Iterable[str]:
    """The names of faults, above the lanes."""
    before = -math.inf
    for entry in filter(_is_fault, entries):
        place = places[entry[0]]
        if place - before >= LABELS_APART:
            before = place
            yield f'<text class="strikes" x="{place:.1f}" y="{TOP - 6}">{escape(str(entry[2]))}</text>'


def _titles(entries: Iterable[Entry]) -> dict[tuple[float, str], list[str]]:
    """What the mouse over a mark shows: all that lies on its spot."""
    titles = defaultdict(list)
    for time, who, what in entries:
        words = f"{what} bytes arrive" if isinstance(what, int) else what
        titles[time, lane_of(who)].append(f"{time:.6f} {who}: {words}")
    return titles


def _mark(x: float, y: int, who: str, what: str | int, words: str, height: int) -> str:
    title = f"<title>{escape(words)}</title>"
    if isinstance(what, int):
        out = lane_of(who).startswith(who.partition(">")[0])
        length = 3 + min(11.0, 2 * math.log10(what + 1))
        kind, end = ("out", y - length) if out else ("back", y + length)
        return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{end:.1f}">{title}</line>'
    if what.startswith("fault "):
        line = f'<line class="strike" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height}"/>'
        return f'{line}<circle class="fault" cx="{x:.1f}" cy="{y}" r="5">{title}</circle>'
    return f'<circle class="words" cx="{x:.1f}" cy="{y}" r="3">{title}</circle>'
