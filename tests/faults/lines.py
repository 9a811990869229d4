"""Lines that are long, or have no end."""

import contextlib
import math
import socket
import time
from dataclasses import replace
from statistics import linear_regression, median

from benchmarks import peers
from benchmarks.machine import Cores
from benchmarks.servers import Server as BenchmarkServer
from benchmarks.workloads import WORKLOADS, Drip
from tests.support.programs import PATIENCE, Client

from .probes import Figures, Guard, Probe, Threshold, Trial
from .servers import ASYNCIO, OURS, TORNADO, Server, wait_until

# ---- no end

MEBIBYTE = 1 << 20
"""``max_buffer_size``, which is the limit of a line where none is given."""

RECEIVED = "received beyond the limit, kB"
GROWTH = "growth of memory, MB"


def no_newline(trial: Trial) -> Figures:
    with trial.server("take") as server:
        with socket.create_connection(server.address, PATIENCE) as sock:
            sock.sendall(b"a line\n")  # the code that takes it is loaded into memory, which is not growth
        wait_until(lambda: server.lasting_descriptors() == server.descriptors_at_first, PATIENCE)
        before = server.resident()
        server.forget_peak()
        with socket.create_connection(server.address, PATIENCE) as sock, contextlib.suppress(OSError):
            for _ in range(trial.size(16, 120)):
                sock.sendall(b"x" * 1_000_000)
        figures = {GROWTH: (server.peak() - before) / 1e6}
        if trial.kind == OURS:  # the others do not count
            wait_until(lambda: server.report()["tally"]["received"] > MEBIBYTE, PATIENCE)
            figures[RECEIVED] = (server.report()["tally"]["received"] - MEBIBYTE) / 1000
        return figures


# ---- dripped

PIECE = 4096

EXPONENT = "exponent of CPU time by length (1: linear)"
TIMES = "CPU time for 16 MB, times asyncio's"

ROUNDS = 3
"""Times that each line is sent. Of its costs the least counts: what else goes on in the machine can only add to it."""


def dripped_line(trial: Trial) -> Figures:
    sizes = [mebibytes << 20 for mebibytes in ((4, 16) if trial.full else (1, 8))]
    with trial.server("length", max_buffer_size=2 * sizes[-1]) as server, server.client() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.ask(b"the accept is not the line's\n")
        costs = [min(cost_of_line(server, client, size) for _ in range(ROUNDS)) for size in sizes]
    growth = linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs])
    figures = {EXPONENT: growth.slope}
    if trial.full:
        figures[TIMES] = median(times_asyncio(trial.kind) for _ in range(ROUNDS))
    return figures


def cost_of_line(server: Server, client: Client, size: int) -> float:
    """CPU seconds."""
    before = server.cpu_seconds()
    for _ in range(size // PIECE - 1):
        client.send(b"x" * PIECE)
        while not server.sleeps():
            time.sleep(0)  # it is reading
    assert client.ask(b"x" * (PIECE - 1) + b"\n") == b"%d\n" % size
    return server.cpu_seconds() - before


def times_asyncio(kind: str) -> float:
    """What the benchmark finds, where a server has a core of its own, and the pieces come 0.25 ms apart."""
    cost, theirs = (cost_in_benchmark(IN_BENCHMARK[each]) for each in (kind, ASYNCIO))
    return cost / theirs


IN_BENCHMARK = {OURS: peers.OURS, TORNADO: peers.TORNADO, ASYNCIO: peers.STREAMS}


def cost_in_benchmark(peer: peers.Peer) -> float:
    line = WORKLOADS["line"]
    assert isinstance(line, Drip)
    server = BenchmarkServer(peer, line.mode, Cores.pick().server)
    try:
        (cost,) = replace(line, sizes=(16 << 20,)).measure(server, None, 0).values()
    finally:
        server.stop()
    return cost


PROBES = (
    Probe(
        "no newline",
        "A client sends 120 MB without a newline to a handler that reads a line. All servers have their default"
        " limits; that of iostreamsrv is 1 MiB.",
        no_newline,
        (Threshold(RECEIVED, "≤", 128), Threshold(GROWTH, "≤", 2)),
        guards=(Guard("max_buffer_size", GROWTH, {"max_buffer_size": math.inf}),),
    ),
    Probe(
        "dripped line",
        "Lines of 4 and 16 MiB arrive in pieces of 4 KiB, and each piece is received separately. asyncio is measured"
        " as in the [benchmarks](benchmarks.md).",
        dripped_line,
        (
            Threshold(EXPONENT, "≤", 1.2, timed=True, quiet=True),
            Threshold(TIMES, "≤", 1, timed=True, quiet=True, full_only=True),
        ),
        guards=(Guard("the memory of what was searched", EXPONENT, switch="search_from_the_start"),),
    ),
)
