"""Lines that are long, or have no end."""

import contextlib
import math
import socket
import time
from statistics import linear_regression

from tests.programs import PATIENCE

from .probes import Figures, Guard, Probe, Threshold, Trial
from .servers import ASYNCIO, OURS, Server, wait_until

# ---- no end

MEBIBYTE = 1 << 20
"""``max_buffer_size``, which is the limit of a line where none is given."""

RECEIVED = "received beyond the limit, kB"
GROWTH = "memory grows by, MB"


def no_newline(trial: Trial) -> Figures:
    with trial.server("take") as server:
        before = server.resident()
        server.forget_peak()
        with socket.create_connection(server.address, PATIENCE) as sock, contextlib.suppress(OSError):
            for _ in range(trial.size(16, 120)):
                sock.sendall(b"x" * 1_000_000)
        figures = {GROWTH: (server.peak() - before) / 1e6}
        if trial.kind == OURS:  # the others do not count
            wait_until(lambda: "received" in server.report()["tally"], PATIENCE)
            figures[RECEIVED] = (server.report()["tally"]["received"] - MEBIBYTE) / 1000
        return figures


# ---- dripped

PIECE = 4096
GAP = 50e-6
"""Seconds from one piece to the next, so that the server reads each by itself."""

EXPONENT = "exponent of CPU time by length (1: linear)"
TIMES = "CPU time for the longest line, times asyncio's"


def dripped_line(trial: Trial) -> Figures:
    sizes = [mebibytes << 20 for mebibytes in ((1, 2, 4) if not trial.full else (4, 8, 16))]
    room = {"max_buffer_size": 2 * sizes[-1]}
    with trial.server("length", **room) as server, Server(ASYNCIO, "length", **room) as asyncios:
        costs = [cost_of_line(server, size) for size in sizes]
        theirs = cost_of_line(asyncios, sizes[-1])
    growth = linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs])
    return {EXPONENT: growth.slope, TIMES: costs[-1] / theirs}


def cost_of_line(server: Server, size: int) -> float:
    """CPU seconds."""
    with server.client() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.ask(b"the accept is not the line's\n")
        before = server.cpu_seconds()
        began = time.perf_counter()
        for number in range(1, size // PIECE):
            client.send(b"x" * PIECE)
            while time.perf_counter() < began + number * GAP:
                pass  # a sleep is not that exact
        assert client.ask(b"x" * (PIECE - 1) + b"\n") == b"%d\n" % size
        return server.cpu_seconds() - before


PROBES = (
    Probe(
        "no newline",
        "A client sends 120 MB without a newline to a handler that reads a line. All have the limits that they have by"
        " default: ours 1 MiB.",
        no_newline,
        (Threshold(RECEIVED, "≤", 128), Threshold(GROWTH, "≤", 2)),
        guards=(Guard("max_buffer_size", GROWTH, {"max_buffer_size": math.inf}),),
    ),
    Probe(
        "dripped line",
        "Lines of 4, 8 and 16 MiB come in pieces of 4 KiB, each of which is read by itself.",
        dripped_line,
        (Threshold(EXPONENT, "≤", 1.2, timed=True), Threshold(TIMES, "≤", 1, timed=True)),
        guards=(Guard("the memory of what was searched", EXPONENT, switch="search_from_the_start"),),
    ),
)
