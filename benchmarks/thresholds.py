"""The performance targets of iostreamsrv, its compiled core on the asyncio loop."""

from collections.abc import Callable
from typing import NamedTuple

from .peers import (
    COPYING,
    FAST_PROTOCOL,
    FLOOR,
    H11,
    HTTPTOOLS,
    LIMITED,
    OURS,
    PROTOCOL,
    STREAMS,
    TORNADO,
    UNLIMITED,
    UVICORN,
    Peer,
)
from .results import Results
from .workloads import MEGABYTE


class Threshold(NamedTuple):
    """A target: the lowest or highest permitted value of a figure.

    :ivar by_cpu: the same figure by the server's CPU time, if available. It is also valid if the load generator is the
        slower side.
    :ivar against: the other servers that must be measured, too.
    :ivar ours: the server that is held to it.
    """

    what: str
    workload: str
    sense: str
    limit: float
    unit: str
    figure: Callable[[Results], float]
    by_cpu: Callable[[Results], float] | None = None
    against: tuple[Peer, ...] = ()
    ours: Peer = OURS

    def measured(self, results: Results) -> bool:
        return results.has(self.workload, self.ours, *self.against)

    def met(self, results: Results) -> bool:
        figure = self.figure(results)
        return figure >= self.limit if self.sense == "≥" else figure <= self.limit


def _faster(
    what: str, workload: str, limit: float, base: Peer = TORNADO, times: str = "Tornado", ours: Peer = OURS
) -> Threshold:
    def ratio(results: Results) -> float:
        return results.ratio(workload, ours, "rate", base)

    def by_cpu(results: Results) -> float:
        return results.ratio(workload, base, "cpu", base=ours)

    return Threshold(what, workload, "≥", limit, f" times {times}", ratio, by_cpu, (base,), ours)


def _limits_cost(what: str, peer: Peer) -> Threshold:
    """Measured by the server's CPU time, because the rate is too inexact for a small difference."""

    def cost(results: Results) -> float:
        return results.ratio("defaults", peer, "cpu", UNLIMITED)

    return Threshold(what, "defaults", "≤", 1.08, " times no limits", cost, against=(peer, UNLIMITED))


def _costs(what: str, workload: str, limit: float, base: Peer, times: str) -> Threshold:
    """Measured by the server's CPU time, because the load is as much work: a handshake, or lines for all clients."""

    def cost(results: Results) -> float:
        return results.ratio(workload, OURS, "cpu", base)

    return Threshold(what, workload, "≤", limit, f" times {times}", cost, against=(base,))


LONGEST_LINE = str(16 * MEGABYTE)

THRESHOLDS = (
    _faster("echo, 50 connections, 64 bytes", "echo", 2.6),
    _faster("the same", "echo", 0.8, FLOOR, "C on epoll"),
    _faster("the same", "echo", 1.0, FAST_PROTOCOL, "a raw Protocol on uvloop"),
    _faster("echo, 50 connections, 64 bytes, 16 lines in flight", "pipelined", 18.0),
    _faster("the same", "pipelined", 9.0, FAST_PROTOCOL, "a raw Protocol on uvloop"),
    _faster("echo, 50 connections, 4,096 bytes", "large", 2.4),
    _faster("the same", "large", 1.0, FAST_PROTOCOL, "a raw Protocol on uvloop"),
    _faster("echo, 1,000 connections, 64 bytes", "many", 2.7),
    _faster("the same", "many", 1.0, FAST_PROTOCOL, "a raw Protocol on uvloop"),
    _faster("connect, one line, close", "churn", 1.85),
    _faster("bulk echo", "bulk", 1.3),
    _faster("the same", "bulk", 0.91, FLOOR, "C on epoll"),
    _faster("broadcast of 1 KB to 4,000 connections", "broadcast", 2.7),
    _costs("CPU for a broadcast of 1 KB to 4,000 connections", "broadcast", 1.2, FLOOR, "a bare loop of sends in C"),
    Threshold(
        "echo, 10,000 connections, 64 bytes",
        "held",
        "≥",
        0.45,
        " times with 100",
        lambda r: r.median("held", OURS, "share"),
        lambda r: r.median("held", OURS, "share by cpu"),
    ),
    _limits_cost("CPU for an echo with the default limits and timeouts", OURS),
    _limits_cost("CPU for an echo with all limits and timeouts", LIMITED),
    _faster("echo through a forwarder, 50 connections, 64 bytes", "proxy-echo", 1.8),
    _faster("bulk echo through a forwarder", "proxy-bulk", 0.9, PROTOCOL, "a raw Protocol"),
    _faster("a file of 16 MB by sendfile", "file", 2.0, COPYING, "read and write"),
    _faster("HTTP hello by a Tornado Application", "http", 1.5),
    _faster("HTTP hello by http_hello.py (h11)", "http", 2.9, ours=H11),
    _faster("HTTP hello on httptools", "http", 1.0, UVICORN, "uvicorn with httptools on uvloop", ours=HTTPTOOLS),
    _faster("resp_server.py, GET", "resp", 4.5),
    _faster("resp_server.py, GET, 16 in flight", "resp-16", 7.0),
    _faster("TLS echo, 50 connections, 64 bytes", "tls", 2.6),
    _faster("the same", "tls", 0.93, FLOOR, "C with OpenSSL"),
    _faster("TLS echo, 50 connections, 64 bytes, 16 lines in flight", "tls-pipelined", 16.0),
    _faster("TLS bulk echo", "tls-bulk", 1.8),
    _costs("CPU for a full TLS handshake, one line, close", "tls-churn", 0.88, TORNADO, "Tornado"),
    _costs("CPU for a full TLS handshake, one line, close", "tls-churn", 1.2, FLOOR, "C with OpenSSL"),
    Threshold(
        "memory per idle connection, at 5,000", "idle", "≤", 1900, " bytes", lambda r: r.median("idle", OURS, "bytes")
    ),
    Threshold(
        "memory per idle TLS connection, at 1,000",
        "tls-idle",
        "≤",
        17500,
        " bytes",
        lambda r: r.median("tls-idle", OURS, "bytes"),
    ),
    Threshold(
        "CPU for a line of 16 MB in 4 KB writes",
        "line",
        "≤",
        0.95,
        " times asyncio streams",
        lambda r: r.ratio("line", OURS, LONGEST_LINE, STREAMS),
        against=(STREAMS,),
    ),
    Threshold(
        "growth of CPU for a line in 4 KB writes, 4 to 16 MB (linear: 1)",
        "line",
        "≤",
        1.2,
        "",
        lambda r: r.growth("line", OURS),
    ),
    Threshold(
        "growth of CPU for a line byte by byte, 16 to 64 KB", "bytes", "≤", 1.2, "", lambda r: r.growth("bytes", OURS)
    ),
    Threshold(
        "lateness of a 10 ms timer, 99 %, 50x256 lines in flight",
        "fairness",
        "≤",
        15,
        " ms",
        lambda r: r.median("fairness", OURS, "p99"),
    ),
)
