"""Faults at the TLS handshake, around it and behind it."""

import contextlib
import math
import random
import signal
import socket
import ssl
import time
from collections.abc import Callable

from tests.support.hostile import HandMadeClient, header, no_hellos, reset_somewhere, say_only
from tests.support.programs import PATIENCE, Client
from tests.support.rotation import Load, Rotation, serial_number
from tests.support.tls_records import RecordClient

from .probes import Figures, Guard, Probe, Threshold, Trial
from .servers import OURS, Server, wait_until

DESCRIPTORS, TASKS, LINES = "descriptors left open", "tasks left", "log lines"
SETTLED = "time until nothing is left, s"
TRACEBACKS = "tracebacks in the log"

SETTLE = 3.2
"""Seconds after which what is left is taken to stay."""

# ---- resets


def random_resets(trial: Trial) -> Figures:
    chance = random.Random(1)
    with trial.credentials() as credentials, trial.server("echo", files=credentials.files) as server:
        for _ in range(trial.size(100, 2000)):
            with contextlib.suppress(OSError):
                reset_somewhere(server.address, credentials.trusting, chance)
        return {SETTLED: server.settle(SETTLE), **remains(server)}


def remains(server: Server) -> Figures:
    descriptors, tasks = server.left()
    return {DESCRIPTORS: descriptors, TASKS: tasks, LINES: server.lines()}


# ---- what is no handshake


def garbage(trial: Trial) -> Figures:
    with trial.credentials() as credentials, trial.server("echo", files=credentials.files) as server:
        for data in no_hellos(credentials.trusting, trial.size(500, 10_000), random.Random(2)):
            say_only(server.address, data)
        server.settle(SETTLE)
        return {**remains(server), TRACEBACKS: server.said().count("Traceback")}


# ---- certificates

NEW, FAILED = "time until the new certificate is used, s", "failed handshakes"
COMPLAINTS = "log lines per invalid pair"

SEEN = 1.5
"""Seconds after which a new certificate is taken not to be seen."""


def rotation(trial: Trial) -> Figures:
    with trial.credentials() as credentials, trial.server("echo", files=credentials.files) as server:
        rotation = Rotation(credentials.files, credentials.authority)
        steps = [rotation.good, rotation.half_written, rotation.mismatched, rotation.unreadable]
        steps *= trial.size(1, 5)
        slowest = 0.0
        with Load(server.address, credentials.trusting) as load:
            for step in steps:
                served, lines = load.served, server.lines()
                before = serial_number(server, credentials.trusting) if step == rotation.good else ""
                step()
                server.send_signal(signal.SIGHUP)
                if step == rotation.good:
                    slowest = max(slowest, seconds_until_new(server, credentials.trusting, before))
                else:
                    wait_until(lambda: server.lines() > lines, SEEN / 3)  # noqa: B023
                wait_until(lambda: load.served > served + 1, SEEN)  # noqa: B023
        server.settle(SETTLE)
        bad = len(steps) - steps.count(rotation.good)
        figures = {NEW: slowest, FAILED: load.failures.total(), DESCRIPTORS: server.left()[0]}
        if trial.kind == OURS:  # the others do not look at the files again, and log other things
            figures[COMPLAINTS] = server.lines() / bad
        return figures


def seconds_until_new(server: Server, trusting: ssl.SSLContext, before: str) -> float:
    began = time.monotonic()
    with contextlib.suppress(OSError):
        if wait_until(lambda: serial_number(server, trusting) != before, SEEN):
            return time.monotonic() - began
    return math.inf


# ---- the PROXY header


SERVED = "connections served, %"

ANSWER = 1.0
"""Seconds in which an answer must come; with a server that works it is there at once."""

HOPELESS = 2
"""Failures in a row after which the rest is taken to fail as well."""


def header_and_hello(trial: Trial) -> Figures:
    times = trial.size(50, 1000)
    served = failed = 0
    with (
        trial.credentials() as credentials,
        trial.server("echo", files=credentials.files, proxy_protocol=["127.0.0.1/32"]) as server,
    ):
        for _ in range(times):
            if is_served(server, credentials.trusting):
                served, failed = served + 1, 0
            elif (failed := failed + 1) == HOPELESS:
                break
    return {SERVED: 100 * served / times}


def is_served(server: Server, trusting: ssl.SSLContext) -> bool:
    client = HandMadeClient(trusting)
    with contextlib.suppress(OSError), socket.create_connection(server.address, ANSWER) as sock:
        sock.sendall(header(1, "192.0.2.1", 1000) + client.hello())
        client.finish(sock, b"hello\n", sock.sendall)
        return client.line(sock) == b"hello\n"
    return False


# ---- ends

TOLD_APART = "EOFs without close_notify that the handler can distinguish, %"


def bare_end(trial: Trial) -> Figures:
    times = trial.size(20, 100)
    with trial.credentials() as credentials, trial.server("part", files=credentials.files) as server:
        for _ in range(times):
            for name in (b"orderly", b"bare"):
                with server.client(tls=credentials.trusting) as client:
                    client.ask(name + b"\n")
                    if name == b"bare":
                        socket.socket.shutdown(client.socket, socket.SHUT_WR)
                        with contextlib.suppress(OSError):
                            client.line()
                    else:
                        assert isinstance(client.socket, ssl.SSLSocket)
                        with contextlib.suppress(OSError):
                            client.socket.unwrap()
        wait_until(lambda: sum(server.report()["tally"].values()) == 2 * times, PATIENCE)
        tally = server.report()["tally"]
    ends = {tuple(said.split(": ", 1)): count for said, count in tally.items()}
    told_apart = sum(count for (name, end), count in ends.items() if name == "bare" and ("orderly", end) not in ends)
    return {TOLD_APART: 100 * told_apart / times}


# ---- floods of records that bring the application nothing, or next to nothing

WAIT = "longest wait of another client, ms"
GROWTH = "growth of memory, MB"

IN_A_ROW = 31
"""Records without data that are sent between two bytes, so that ours does not end the connection for them."""

STUCK = 1.0
"""Seconds after which a server that takes nothing is taken to have had enough."""

DIGESTED = 2.0
"""Seconds for the server to receive what the kernel holds for it."""

AT_ONCE = 60_000
"""Bytes that the flood may grow by between two lines of the other client."""


def flood(
    trial: Trial, version: str, nothing: Callable[[RecordClient], bytes], pieces: int, receive_buffer: int | None = None
) -> Figures:
    with trial.credentials() as credentials, trial.server("echo", files=credentials.files) as server:
        with (
            RecordClient(server.address, version, receive_buffer) as hostile,
            server.client(tls=credentials.trusting) as other,
        ):
            made = memoryview(b"".join(piece(hostile, nothing) for _ in range(pieces)))
            other.ask(b"hello\n")
            before = server.resident()
            server.forget_peak()
            hostile.socket.setblocking(False)
            worst, late = 0.0, time.monotonic() + STUCK
            with contextlib.suppress(ConnectionError):
                while made and time.monotonic() < late:
                    with contextlib.suppress(BlockingIOError):
                        made = made[hostile.socket.send(made[:AT_ONCE]) :]
                        late = time.monotonic() + STUCK
                    worst = max(worst, seconds_to_answer(other))
            late = time.monotonic() + DIGESTED
            while time.monotonic() < late:  # what the kernel has taken the server may still be busy with
                worst = max(worst, seconds_to_answer(other))
        return {WAIT: worst * 1000, GROWTH: (server.peak() - before) / 1e6}


def piece(hostile: RecordClient, nothing: Callable[[RecordClient], bytes]) -> bytes:
    return b"".join(nothing(hostile) for _ in range(IN_A_ROW)) + hostile.record(b"x")


def seconds_to_answer(client: Client) -> float:
    began = time.monotonic()
    assert client.ask(b"hello\n") == b"hello\n"
    return time.monotonic() - began


def new_keys(trial: Trial) -> Figures:
    return flood(trial, "TLSv1.3", RecordClient.key_update, trial.size(1000, 2500))


def renegotiations(trial: Trial) -> Figures:
    return flood(trial, "TLSv1.2", lambda client: client.hello(200), trial.size(160, 300), receive_buffer=4096)


FAIR = (Threshold(WAIT, "≤", 40, timed=True, quiet=True), Threshold(GROWTH, "≤", 2))

NOTHING_LEFT = (Threshold(DESCRIPTORS, "=", 0), Threshold(TASKS, "=", 0), Threshold(LINES, "≤", 50))

PROBES = (
    Probe(
        "resets under TLS",
        "2,000 clients, one after another, reset the connection at a random point of the handshake or soon after it.",
        random_resets,
        (*NOTHING_LEFT, Threshold(SETTLED, "≤", 3, timed=True)),
        guards=(Guard("the close of what has failed", DESCRIPTORS, switch="leave_failed_handshakes_open"),),
    ),
    Probe(
        "garbage to a TLS port",
        "10,000 clients send a mutated ClientHello, random bytes, or HTTP.",
        garbage,
        (*NOTHING_LEFT, Threshold(TRACEBACKS, "=", 0)),
        guards=(Guard("the limit of the log", LINES, switch="log_without_limit"),),
    ),
    Probe(
        "certificates that change",
        "The certificate files are replaced 20 times: by a valid pair, by half a certificate, by a certificate and a"
        " key that do not match, or by a certificate without a key. After each change the process gets a SIGHUP."
        " Clients connect all the time.",
        rotation,
        (
            Threshold(NEW, "≤", 1, timed=True),
            Threshold(FAILED, "=", 0),
            Threshold(COMPLAINTS, "=", 1),
            Threshold(DESCRIPTORS, "=", 0),
        ),
        guards=(Guard("the look at a pair before it serves", FAILED, switch="reload_in_place"),),
    ),
    Probe(
        "PROXY header and ClientHello at once",
        "1,000 clients send both in one segment. Tornado and asyncio, which do not support the header, read a line and"
        " then start TLS.",
        header_and_hello,
        (Threshold(SERVED, "=", 100),),
        guards=(Guard("what follows the header is kept", SERVED, switch="forget_what_follows_the_header"),),
    ),
    Probe(
        "bare end",
        "100 clients end their side with close_notify, and 100 without it, like a connection that was cut.",
        bare_end,
        (Threshold(TOLD_APART, "=", 100),),
        guards=(Guard("the difference", TOLD_APART, switch="take_every_end_for_an_orderly_one"),),
    ),
    Probe(
        "KeyUpdate flood",
        "A TLS 1.3 client sends as many KeyUpdates as the server accepts, with one byte of data after every 31, and"
        " reads none of the replies that it requests. Another client gets lines echoed.",
        new_keys,
        FAIR,
        guards=(Guard("the bound of the records at once", WAIT, switch="work_off_all_records_at_once"),),
    ),
    Probe(
        "renegotiation flood",
        "The same with TLS 1.2 and renegotiations, 200 in a record. The server refuses each with an alert.",
        renegotiations,
        FAIR,
        guards=(Guard("the end of receiving while answers are stuck", GROWTH, switch="receive_while_stuck"),),
    ),
)
