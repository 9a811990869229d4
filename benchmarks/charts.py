"""Charts of the results, SVG files for the docs: the speed of the servers as a multiple of Tornado's, by workload.

``python -m benchmarks.charts runs.json`` draws them from what ``--json`` wrote. The colours are readable on a light and
on a dark page, so the files need neither styles nor a second version.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .peers import FAST_PROTOCOL, FLOOR, OURS, PYTHON_CORE, STREAMS, TORNADO, Peer
from .workloads import WORKLOADS

FOLDER = Path(__file__).parent.parent / "docs"
CHARTS = {
    "benchmarks-plain.svg": ("echo", "pipelined", "large", "many", "churn", "bulk", "broadcast"),
    "benchmarks-tls.svg": ("tls", "tls-pipelined", "tls-churn", "tls-bulk"),
}
"""The files, and the workloads they show."""

BARS = {OURS: "#0d8f6f", PYTHON_CORE: "#5cb89f", FAST_PROTOCOL: "#c98a1b", STREAMS: "#8a7fc0", FLOOR: "#8b929c"}
"""The servers that have a bar, and its colour."""

INK = "#7a808a"
FONT = "font-family='system-ui, sans-serif' font-size='12'"
COLUMNS = 2
WIDTH, LABELS, VALUES = 400, 150, 46  # of a panel, and of the texts beside its bars
BAR, GAP, HEAD = 12, 5, 30


class Panel(NamedTuple):
    """One workload: its title, and the servers' speeds, times Tornado's."""

    title: str
    speeds: Mapping[Peer, float]


def panels(measured: Mapping[str, Any], workloads: Sequence[str]) -> list[Panel]:
    """What a chart shows of the results, which are those that ``--json`` writes."""
    rates: dict[tuple[str, Peer], list[float]] = {
        (each["workload"], Peer(each["name"], each["loop"])): [run["figures"].get("rate", 0) for run in each["runs"]]
        for each in measured["measured"]
    }
    made = []
    for name in workloads:
        base = rates.get((name, TORNADO), [])
        speeds = {
            peer: median(rate / other for rate, other in zip(rates[name, peer], base, strict=False))
            for peer in BARS
            if base and (name, peer) in rates
        }
        if speeds:
            made.append(Panel(WORKLOADS[name].title, speeds))
    return made


def drawn(title: str, shown: Sequence[Panel]) -> str:
    """The SVG file."""
    high = HEAD + len(BARS) * (BAR + GAP) + 16
    rows = -(-len(shown) // COLUMNS)
    width, height = COLUMNS * WIDTH, rows * high
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img' {FONT} fill='{INK}'>",
        f"<title>{escape(title)}</title>",
    ]
    for number, panel in enumerate(shown):
        row, column = divmod(number, COLUMNS)
        parts.append(f"<g transform='translate({column * WIDTH} {row * high})'>")
        parts += _bars(panel)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _bars(panel: Panel) -> list[str]:
    """A panel has a scale of its own. The line is Tornado's speed."""
    scale = (WIDTH - LABELS - VALUES) / max(*panel.speeds.values(), 1)
    one = LABELS + scale
    bottom = HEAD + len(panel.speeds) * (BAR + GAP)
    parts = [f"<text x='{LABELS}' y='18' font-weight='600'>{escape(panel.title)}</text>"]
    for place, (peer, speed) in enumerate(panel.speeds.items()):
        top, long = HEAD + place * (BAR + GAP), max(1, speed * scale)
        weight = " font-weight='600'" if peer == OURS else ""
        text = f"y='{top + BAR - 2}'{weight}"
        parts += [
            f"<text x='{LABELS - 8}' text-anchor='end' {text}>{escape(_label(peer))}</text>",
            f"<rect x='{LABELS}' y='{top}' width='{long:.1f}' height='{BAR}' rx='2' fill='{BARS[peer]}'/>",
            f"<text x='{LABELS + long + 6:.1f}' {text}>{speed:.{1 if speed >= 10 else 2}f}</text>",
        ]
    line = f"x1='{one:.1f}' x2='{one:.1f}' y1='{HEAD - 5}' y2='{bottom}'"
    return [*parts, f"<line {line} stroke='{INK}' stroke-dasharray='3 2'/>"]


def _label(peer: Peer) -> str:
    return {OURS: "iostreamsrv", PYTHON_CORE: "its Python core"}.get(peer, str(peer))


def write(measured: Mapping[str, Any], folder: Path = FOLDER) -> None:
    """Draw all charts into the folder."""
    for file, workloads in CHARTS.items():
        under = " under TLS" if file.endswith("tls.svg") else ""
        text = drawn(f"Speed{under}, times Tornado's, by workload and server", panels(measured, workloads))
        (folder / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
