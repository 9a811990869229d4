"""The report: Markdown tables of the results, for the terminal and for the docs."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .peers import ALL, OURS, STREAMS, TORNADO, UNLIMITED, Peer
from .results import LOAD_SPENT, MOST_FOREIGN, Results
from .thresholds import THRESHOLDS, Threshold
from .workloads import WORKLOADS, Defaults, Drip, Fairness, Files, Held, Idle, Rate, Requests, Workload

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN = "<!-- measured: begin -->"
END = "<!-- measured: end -->"


def report(results: Results, machine: dict[str, str], manner: str, each: Sequence[Results] = ()) -> str:
    """The whole report in Markdown.

    :param manner: a short description of how it was measured.
    :param each: the results of each repetition; those of the targets are shown if there are several.
    """
    sections = [
        "\n".join([*(f"- {name}: {value}" for name, value in machine.items()), f"- {manner}"]),
        _targets(results, each if len(each) > 1 else ()),
        *_rates(results, "Speed", "server's CPU time", _is_plain),
        *_rates(results, "Speed under TLS", "server's CPU time under TLS", lambda w: w.tls),
        *_rates(results, "Speed through a forwarder", "forwarder's CPU time", lambda w: w.mode == "forward"),
        *_rates(results, "Speed of servers for HTTP and Redis clients", "server's CPU time", _is_outside),
        *(_costs(workload, results) for workload in WORKLOADS.values()),
        _notes(results),
    ]
    return "\n\n".join(section for section in sections if section)


def write_docs(text: str, path: Path = DOCS, begin: str = BEGIN, end: str = END) -> None:
    """Replace the text between the marks in the docs by ``text``.

    :raises ValueError: the marks are missing.
    """
    page = path.read_text(encoding="utf-8")
    before, has_begin, rest = page.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"{path} has no {begin} and {end} to write between")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


class Column(NamedTuple):
    """A column: its head, its workload, and the function that makes its text for a peer."""

    head: str
    workload: str
    text: Callable[[Peer], str]


def _targets(results: Results, each: Sequence[Results]) -> str:
    rows = [_threshold(threshold, results, each) for threshold in THRESHOLDS if threshold.measured(results)]
    heads = ("", "target", "measured", *(["each time"] if each else []), "by CPU", "")
    return _section(f"Targets for {OURS} on asyncio", heads, rows)


def _threshold(threshold: Threshold, results: Results, each: Sequence[Results]) -> list[str]:
    times = " / ".join(_number(threshold.figure(one)) for one in each if threshold.measured(one))
    return [
        threshold.what,
        f"{threshold.sense} {_number(threshold.limit)}{threshold.unit}",
        _number(threshold.figure(results)) + _marks(results, threshold.workload, threshold.ours),
        *([times] if each else []),
        _number(threshold.by_cpu(results)) if threshold.by_cpu else "",
        "met" if threshold.met(results) else "**missed**",
    ]


def _rates(results: Results, speeds: str, costs: str, of_them: Callable[[Workload], bool]) -> list[str]:
    """Speed, and the server's CPU time, which shows differences even if the load generator is the slower side."""
    rates = [
        workload
        for workload in WORKLOADS.values()
        if isinstance(workload, Rate | Requests) and of_them(workload) and results.has(workload.name, TORNADO)
    ]
    speed = [Column(rate.title, rate.name, partial(_speed, results, rate.name)) for rate in rates]
    cpu = [Column(rate.title, rate.name, partial(_thrift, results, rate.name)) for rate in rates]
    one = [f"{_number(results.median(rate.name, TORNADO, 'rate'))}{rate.unit}" for rate in rates]
    return [
        _table(f"{speeds}, times Tornado on asyncio", results, speed, ["*1.00 is*", *one]),
        _table(f"The {costs} for the same, times less than Tornado on asyncio", results, cpu),
    ]


def _is_outside(workload: Workload) -> bool:
    return isinstance(workload, Requests)


def _is_plain(workload: Workload) -> bool:
    return not (workload.mode == "forward" or workload.tls or _is_outside(workload))


def _speed(results: Results, workload: str, peer: Peer) -> str:
    return f"{results.ratio(workload, peer, 'rate'):.2f}"


def _thrift(results: Results, workload: str, peer: Peer) -> str:
    return f"{results.ratio(workload, TORNADO, 'cpu', base=peer):.2f}"


def _costs(workload: Workload, results: Results) -> str:
    name = workload.name
    if isinstance(workload, Idle):
        columns = [Column("bytes", name, lambda peer: _number(results.median(name, peer, "bytes")))]
    elif isinstance(workload, Files):
        columns = [
            Column("MB/s", name, lambda peer: _number(results.median(name, peer, "rate"))),
            Column("CPU ms for 100 MB", name, lambda peer: _number(results.median(name, peer, "cpu") * 1e5)),
        ]
    elif isinstance(workload, Defaults):
        columns = [
            Column("/s", name, lambda peer: _number(results.median(name, peer, "rate"))),
            Column("CPU µs for a line", name, lambda peer: _number(results.median(name, peer, "cpu") * 1e6)),
            Column("times no limits", name, partial(_times_unlimited, results, name)),
        ]
    elif isinstance(workload, Held):
        columns = [
            Column("at 100: /s", name, lambda peer: _number(results.median(name, peer, "hundred"))),
            Column(f"at {workload.connections:,}: /s", name, lambda peer: _number(results.median(name, peer, "rate"))),
            Column("of that", name, lambda peer: _number(results.median(name, peer, "share"))),
        ]
    elif isinstance(workload, Fairness):
        columns = [Column(f"{share} %", name, partial(_milliseconds, results, name, f"p{share}")) for share in (50, 99)]
    elif isinstance(workload, Drip):
        columns = [
            *(Column(f"{_size(size)}: CPU s", name, partial(_seconds, results, name, size)) for size in workload.sizes),
            Column("growth", name, lambda peer: f"{results.growth(name, peer):.2f}"),
            Column("longest: times streams", name, partial(_times_streams, results, name, workload.sizes[-1])),
        ]
    else:
        return ""
    return _table(workload.title[0].upper() + workload.title[1:], results, columns)


def _milliseconds(results: Results, workload: str, figure: str, peer: Peer) -> str:
    return f"{results.median(workload, peer, figure):.1f} ms"


def _seconds(results: Results, workload: str, size: int, peer: Peer) -> str:
    return f"{results.median(workload, peer, str(size)):.3f}"


def _times_streams(results: Results, workload: str, size: int, peer: Peer) -> str:
    return f"{results.ratio(workload, peer, str(size), STREAMS):.2f}" if results.has(workload, STREAMS) else "-"


def _times_unlimited(results: Results, workload: str, peer: Peer) -> str:
    return f"{results.ratio(workload, peer, 'cpu', UNLIMITED):.2f}" if results.has(workload, UNLIMITED) else "-"


def _notes(results: Results) -> str:
    notes = [f"- {peer}, {workload}: {why}" for (workload, peer), why in results.failures.items()]
    if any(results.disturbed(*key) for key in results.runs):
        notes.append(
            f"- `!`: other processes used more than {MOST_FOREIGN:.0%} of a core, also when the run was repeated."
        )
    if any(results.load_spent(*key) for key in results.runs):
        notes.append(
            f"- `^`: the load used its core to {LOAD_SPENT:.0%} or more, so the server may have been waiting for it:"
            " compare CPU time."
        )
    return "\n".join(notes)


def _table(title: str, results: Results, columns: Sequence[Column], last: Sequence[str] = ()) -> str:
    """A table with a row for each peer that has figures, and an optional ``last`` row; "" if there are no figures."""
    peers = [peer for peer in ALL if any(results.has(column.workload, peer) for column in columns)]
    rows = [[str(peer), *(_cell(results, column, peer) for column in columns)] for peer in peers]
    return _section(title, ("", *(column.head for column in columns)), [*rows, last] if rows and last else rows)


def _cell(results: Results, column: Column, peer: Peer) -> str:
    if results.has(column.workload, peer):
        return column.text(peer) + _marks(results, column.workload, peer)
    return "fails" if (column.workload, peer) in results.failures else "-"


def _marks(results: Results, workload: str, peer: Peer) -> str:
    spent = "^" if results.load_spent(workload, peer) else ""
    return spent + ("!" if results.disturbed(workload, peer) else "")


def _section(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table under its title; "" if there are no rows."""
    if not rows:
        return ""
    lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    lines.insert(1, "|---|" + "---:|" * (len(heads) - 1))
    return "\n".join([f"### {title}", "", *lines])


def _size(size: int) -> str:
    return f"{size >> 20} MB" if size >> 20 else f"{size >> 10} KB"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
