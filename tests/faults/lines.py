"""Lines that are long, or have no end."""

import contextlib
import math
import os
import socket
import time
from collections.abc import Sequence
from statistics import linear_regression, median

from tests.programs import PATIENCE, Client

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

EXPONENT = "exponent of CPU time by length (1: linear)"
TIMES = "CPU time for the longest line, times asyncio's"


ROUNDS = 3
"""Times that each line is sent. Of its costs the least counts: what else goes on in the machine can only add to it."""


def dripped_line(trial: Trial) -> Figures:
    sizes = [mebibytes << 20 for mebibytes in ((4, 16) if trial.full else (1, 8))]
    core = min(os.sched_getaffinity(0))  # the same for both servers, whoever else is on it
    room = {"max_buffer_size": 2 * sizes[-1]}
    with (
        trial.server("length", **room) as server,
        Server(ASYNCIO, "length", **room) as asyncios,
        server.client() as client,
        asyncios.client() as asyncios_client,
    ):
        pairs = ((server, client), (asyncios, asyncios_client))
        for each, _ in pairs:
            os.sched_setaffinity(each.pid, {core})
        for _, each in pairs:
            each.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            each.ask(b"the accept is not the line's\n")
        costs = {size: [costs_of_line(pairs, size) for _ in range(ROUNDS)] for size in sizes}
    least = [min(cost for cost, _ in costs[size]) for size in sizes]
    growth = linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in least])
    return {EXPONENT: growth.slope, TIMES: median(cost / theirs for cost, theirs in costs[sizes[-1]])}


def costs_of_line(pairs: Sequence[tuple[Server, Client]], size: int) -> list[float]:
    """CPU seconds of each server, which get their lines at the same time: what slows one slows all."""
    before = [server.cpu_seconds() for server, _ in pairs]
    for number in range(size // PIECE - 1):
        for server, client in pairs if number % 2 else reversed(pairs):  # so that none always goes first
            client.send(b"x" * PIECE)
            while not server.sleeps():
                time.sleep(0)  # it is reading
    for _, client in pairs:
        assert client.ask(b"x" * (PIECE - 1) + b"\n") == b"%d\n" % size
    return [server.cpu_seconds() - spent for (server, _), spent in zip(pairs, before, strict=True)]


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
        "Lines of 4 and 16 MiB come in pieces of 4 KiB, each of which is read by itself.",
        dripped_line,
        (Threshold(EXPONENT, "≤", 1.2, timed=True), Threshold(TIMES, "≤", 1, timed=True)),
        guards=(Guard("the memory of what was searched", EXPONENT, switch="search_from_the_start"),),
    ),
)
