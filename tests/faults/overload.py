"""More clients than there are descriptors."""

import contextlib
import math
import selectors
import socket
import time

from tests.support.hostile import Crowd
from tests.support.programs import Client

from .probes import Figures, Guard, Probe, Threshold, Trial
from .servers import OURS

DESCRIPTORS = 64

CPU, LOG = "CPU, %", "log lines per second"
UNHARMED = "lines echoed to an earlier client, %"
NEXT = "a new client is served after the others have left, s"
SPARE = "free descriptors"

PATIENCE = 5.0
"""Seconds after which a client that should be served is taken not to be."""


def out_of_descriptors(trial: Trial, **options: object) -> Figures:
    seconds = trial.size(1, 5)
    with (
        trial.server("echo", descriptors=DESCRIPTORS, **options) as server,
        server.client() as before,
    ):
        before.ask(b"hello\n")
        with Crowd(server.address, 200):
            time.sleep(0.2)  # for those who are accepted
            spare = DESCRIPTORS - server.descriptors()
            spent = -server.cpu_seconds()
            answered = sum(answer_within(before, seconds / 10) for _ in range(10))
            spent += server.cpu_seconds()
            lines = server.lines()
        began = time.monotonic()
        with contextlib.suppress(OSError), server.client() as new:
            new.ask(b"hello\n")
        waited = time.monotonic() - began
    return {
        CPU: spent / seconds * 100,
        LOG: lines / seconds,
        UNHARMED: answered * 10,
        NEXT: waited,
        SPARE: spare,
    }


def answer_within(client: Client, seconds: float) -> bool:
    """Whether the client is answered; not before so many seconds have passed."""
    late = time.monotonic() + seconds
    try:
        answered = client.ask(b"hello\n") == b"hello\n"
    except OSError:
        answered = False
    time.sleep(max(0.0, late - time.monotonic()))
    return answered


def without_a_limit(trial: Trial) -> Figures:
    figures = out_of_descriptors(trial, max_connections=math.inf)
    del figures[SPARE]
    return figures


OVERLOADED = (
    Threshold(CPU, "≤", 5, timed=True),
    Threshold(LOG, "≤", 1, timed=True),
    Threshold(UNHARMED, "=", 100),
    Threshold(NEXT, "≤", 1.2, timed=True),
)


# ---- clients that take a place and say next to nothing


FRESH = 20

SERVED = f"of {FRESH} new clients served, %"


def answered(address: tuple[str, int], count: int, patience: float) -> int:
    """How many of so many clients, who come at once, are answered."""
    found = 0
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(address)
            selector.register(sock, selectors.EVENT_WRITE)
        late = time.monotonic() + patience
        while selector.get_map() and (left := late - time.monotonic()) > 0:
            for key, events in selector.select(left):
                sock = key.fileobj  # type: ignore[assignment]
                try:
                    if events & selectors.EVENT_WRITE:
                        sock.send(b"hello\n")
                        selector.modify(sock, selectors.EVENT_READ)
                    else:
                        found += sock.recv(100) == b"hello\n"
                        selector.unregister(sock)
                except OSError:
                    selector.unregister(sock)
    return found


def one_byte_each(trial: Trial, timeout: float, **options: object) -> Figures:
    descriptors, crowd = (512, 600) if trial.full else (256, 300)
    with trial.server("echo", descriptors=descriptors, **options) as server, Crowd(server.address, crowd) as clients:
        clients.send(b"x")
        return {SERVED: 100 * answered(server.address, FRESH, timeout + 1) / FRESH}


def one_byte_each_with_a_timeout(trial: Trial) -> Figures:
    timeout = 1.0 if trial.full else 0.5
    return one_byte_each(trial, timeout, read_timeout=timeout)


def one_byte_each_with_eviction(trial: Trial) -> Figures:
    return one_byte_each(trial, 0.0, when_full="evict")


PROBES = (
    Probe(
        "out of descriptors",
        "200 clients connect to a server with a limit of 64 descriptors, stay for 5 s, then leave. iostreamsrv has"
        " `max_connections=math.inf`; otherwise it would never run out.",
        without_a_limit,
        OVERLOADED,
        guards=(Guard("the pause after an accept that failed", CPU, switch="accept_without_pause"),),
    ),
    Probe(
        "out of places",
        "The same with the default of `max_connections`, which is derived from the descriptor limit.",
        out_of_descriptors,
        (*OVERLOADED, Threshold(SPARE, "≥", 1)),
        guards=(Guard("max_connections", SPARE, {"max_connections": math.inf}),),
        kinds=(OURS,),
    ),
    Probe(
        "one byte each",
        "600 clients connect to a server with a limit of 512 descriptors, send one byte each and wait; then 20 new"
        " clients connect. iostreamsrv has `read_timeout=1`. A new client counts as served if it gets a reply within"
        " that and one more second.",
        one_byte_each_with_a_timeout,
        (Threshold(SERVED, "=", 100, timed=True),),
        guards=(Guard("read_timeout", SERVED, {"read_timeout": None}),),
    ),
    Probe(
        "one byte each, evicted",
        'The same with `when_full="evict"` and no timeout. A new client counts as served if it gets a reply within a'
        " second.",
        one_byte_each_with_eviction,
        (Threshold(SERVED, "=", 100, timed=True),),
        guards=(Guard("when_full", SERVED, {"when_full": "wait"}),),
        kinds=(OURS,),
    ),
)
