"""Clients that take their time: to send, to read, to begin with TLS."""

import math
import selectors
import socket
import statistics
import time
from typing import Any, Self

from tests.support.hostile import Crowd
from tests.support.programs import PATIENCE

from .probes import Figures, Guard, Probe, Threshold, Trial
from .servers import Server, wait_until

LATE = 1.5
"""Seconds after a timeout for which it is waited that something happens after all."""

# ---- one byte a second


class Good:
    """Clients of a server that have a line under way all the time."""

    def __init__(self, server: Server, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._socks = [socket.create_connection(server.address, PATIENCE) for _ in range(count)]
        for sock in self._socks:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(sock, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for sock in self._socks:
            sock.close()

    def run(self, seconds: float) -> float:
        """Have lines echoed for so long, and until the last one is back: how many a second."""
        began, lines = time.monotonic(), 0
        for sock in self._socks:
            sock.sendall(LINE)
        under_way = len(self._socks)
        while under_way:
            more = time.monotonic() - began < seconds
            for key, _ in self._selector.select(PATIENCE):
                ready: Any = key.fileobj
                assert ready.recv(len(LINE)) == LINE
                lines += 1
                if more:
                    ready.sendall(LINE)
                else:
                    under_way -= 1
        return lines / (time.monotonic() - began)


LINE = b"x" * 63 + b"\n"

SLICE = 0.05
"""Seconds for which the server with slow clients, and one without, are asked in turns: what else goes on in the machine
slows both, and where it slows one the turn is not the median."""

GOOD, DROPPED = "rate of good clients, % of that without slow ones", "last slow client closed, s after its timeout"


def slowloris(trial: Trial) -> Figures:
    timeout, slow, good, turns = (3.0, 1000, 50, 20) if trial.full else (1.0, 100, 10, 9)
    ratios = []
    with (
        trial.server("echo", read_timeout=timeout) as server,
        trial.server("echo", read_timeout=timeout) as calm,
        Good(server, good) as among_slow,
        Good(calm, good) as alone,
        Crowd(server.address, slow) as crowd,
    ):
        for turn in range(turns):
            crowd.drip(int(slow * 2 * SLICE))  # a byte per second
            rates = {each: each.run(SLICE) for each in ((among_slow, alone) if turn % 2 else (alone, among_slow))}
            ratios.append(rates[among_slow] / rates[alone])
        lasted = crowd.ends(drip=b"x" * 100, patience=timeout + LATE)
        return {GOOD: 100 * statistics.median(ratios), DROPPED: max(lasted) - timeout}


# ---- not a byte of a handshake


CLOSED, HELD = "last client closed, s after handshake_timeout", "memory per client, kB"


def silent_under_tls(trial: Trial) -> Figures:
    clients, timeout = (1000, 3.0) if trial.full else (200, 1.0)
    with (
        trial.credentials() as credentials,
        trial.server("echo", files=credentials.files, handshake_timeout=timeout) as server,
    ):
        with server.client(tls=credentials.trusting) as client:  # what TLS needs once is not theirs
            client.ask(b"hello\n")
        before = server.resident()
        server.forget_peak()
        with Crowd(server.address, clients) as crowd:
            lasted = crowd.ends(patience=timeout + LATE)
        return {CLOSED: max(lasted) - timeout, HELD: (server.peak() - before) / clients / 1000}


# ---- not reading


GROWTH = "growth of memory, MB"
TOLD = "handlers that get an error"


def not_awaited(trial: Trial) -> Figures:
    with trial.server("flood") as server, server.client() as client:
        before = server.resident()
        server.forget_peak()
        client.send(b"%d\n" % trial.size(32, 256))
        wait_until(lambda: server.report()["tally"].get("floods"), PATIENCE)
        return {GROWTH: (server.peak() - before) / 1e6, TOLD: server.report()["tally"].get("errors", 0)}


TIMEOUT = 1.0

GIVEN_UP = "closed, s after write_timeout"


def stalled_reader(trial: Trial) -> Figures:
    with trial.server("stall", write_timeout=TIMEOUT) as server, server.client() as client:
        assert wait_until(lambda: server.lasting_descriptors() > server.descriptors_at_first, PATIENCE)
        began = time.monotonic()
        client.send(b"please\n")
        closed = wait_until(lambda: server.lasting_descriptors() == server.descriptors_at_first, TIMEOUT + LATE)
        return {GIVEN_UP: time.monotonic() - began - TIMEOUT if closed else math.inf}


PROBES = (
    Probe(
        "slowloris",
        "1,000 clients send one byte per second and never a complete line, while 50 others get lines echoed all the"
        " time. iostreamsrv has `read_timeout=3`.",
        slowloris,
        (Threshold(GOOD, "≥", 95, timed=True, quiet=True), Threshold(DROPPED, "≤", 1, timed=True)),
        guards=(Guard("read_timeout", DROPPED, {"read_timeout": None}),),
    ),
    Probe(
        "silent under TLS",
        "1,000 clients connect to a TLS port and send nothing. iostreamsrv has `handshake_timeout=3`, asyncio"
        " `ssl_handshake_timeout=3`.",
        silent_under_tls,
        (Threshold(CLOSED, "≤", 1, timed=True), Threshold(HELD, "≤", 60)),
        guards=(Guard("handshake_timeout", CLOSED, {"handshake_timeout": None}),),
    ),
    Probe(
        "writes not awaited",
        "A handler writes 256 MB in pieces of 256 KiB to a client that does not read, without awaiting any write.",
        not_awaited,
        (Threshold(GROWTH, "≤", 1.05 + 4), Threshold(TOLD, "=", 1)),
        guards=(Guard("max_write_buffer_size", GROWTH, {"max_write_buffer_size": math.inf}),),
    ),
    Probe(
        "stalled reader",
        "A handler awaits each write to a client that has stopped reading. iostreamsrv has `write_timeout=1`.",
        stalled_reader,
        (Threshold(GIVEN_UP, "≤", 1, timed=True),),
        guards=(Guard("write_timeout", GIVEN_UP, {"write_timeout": None}),),
    ),
)
