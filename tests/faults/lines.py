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
    room = {"max_buffer_size": 2 * sizes[-1]}
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(trial.server("length", **room))]
        if trial.full:
            servers.append(stack.enter_context(Server(ASYNCIO, "length", **room)))
        clients = [stack.enter_context(server.client()) for server in servers]
        prepare(servers, clients)
        costs = {size: [costs_of_line(servers, clients, size) for _ in range(ROUNDS)] for size in sizes}
    least = [min(cost for cost, *_ in costs[size]) for size in sizes]
    growth = linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in least])
    figures = {EXPONENT: growth.slope}
    if trial.full:
        figures[TIMES] = median(cost / theirs for cost, theirs in costs[sizes[-1]])
    return figures


def prepare(servers: Sequence[Server], clients: Sequence[Client]) -> None:
    core = min(os.sched_getaffinity(0))
    for server, client in zip(servers, clients, strict=True):
        os.sched_setaffinity(server.pid, {core})  # the same one for all, whoever else is on it
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.ask(b"the accept is not the line's\n")


def costs_of_line(servers: Sequence[Server], clients: Sequence[Client], size: int) -> list[float]:
    """CPU seconds of each server, which get their lines at the same time: what slows one slows all."""
    before = [server.cpu_seconds() for server in servers]
    pairs = list(zip(servers, clients, strict=True))
    for number in range(size // PIECE - 1):
        for server, client in pairs if number % 2 else reversed(pairs):  # so that none always goes first
            client.send(b"x" * PIECE)
            while not server.sleeps():
                time.sleep(0)  # it is reading
    for client in clients:
        assert client.ask(b"x" * (PIECE - 1) + b"\n") == b"%d\n" % size
    return [server.cpu_seconds() - spent for server, spent in zip(servers, before, strict=True)]


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
        (Threshold(EXPONENT, "≤", 1.2, timed=True), Threshold(TIMES, "≤", 1, timed=True, full_only=True)),
        guards=(Guard("the memory of what was searched", EXPONENT, switch="search_from_the_start"),),
    ),
)
