"""Ends: of a connection whose client still sends, of a handler with a mistake, of the whole server."""

import asyncio
import contextlib
import selectors
import signal
import socket
import ssl
import time

from tests.support.hostile import everything, has_ended
from tests.support.programs import PATIENCE

from .probes import Figures, Guard, Probe, Threshold, Trial
from .servers import Server, wait_until

# ---- the last reply

UNREAD = bytes(256_000)

AT_ONCE = 10
"""Clients at a time."""

SIZES = (1_000, 64_000, 1_000_000)

WHOLE, WHOLE_TLS = "complete replies, %", "complete replies under TLS, %"


def last_reply(trial: Trial) -> Figures:
    times = trial.size(10, 100)
    with trial.credentials() as credentials:
        with trial.server("reply") as server:
            plain = asyncio.run(whole_replies(server, times))
        with trial.server("reply", files=credentials.files) as server:
            tls = asyncio.run(whole_replies(server, times, credentials.trusting))
    return {WHOLE: 100 * plain / times / len(SIZES), WHOLE_TLS: 100 * tls / times / len(SIZES)}


async def whole_replies(server: Server, times: int, tls: ssl.SSLContext | None = None) -> int:
    """How many clients get all of their reply, and then an end that is none by reset."""
    places = asyncio.Semaphore(AT_ONCE)

    async def got_whole_reply(size: int) -> bool:
        async with places:
            with contextlib.suppress(OSError):
                async with asyncio.timeout(PATIENCE):
                    reader, writer = await asyncio.open_connection(
                        *server.address, ssl=tls, server_hostname="localhost" if tls else None
                    )
                    with contextlib.closing(writer):
                        writer.write(b"%d\n" % size + UNREAD)
                        return len(await reader.read()) == size
            return False

    return sum(await asyncio.gather(*(got_whole_reply(size) for size in SIZES * times)))


# ---- the end of the server


CLIENTS = 50

SECONDS = 0.5
"""What a request takes."""

DONE, EXIT = "requests answered, %", "exit code"


def terminated(trial: Trial) -> Figures:
    with trial.server("work") as server, contextlib.ExitStack() as stack:
        in_flight = [stack.enter_context(server.client()) for _ in range(CLIENTS)]
        for client in in_flight:
            client.send(b"%g\n" % SECONDS)
        assert wait_until(lambda: server.report()["tally"].get("begun") == CLIENTS, PATIENCE)
        server.send_signal(signal.SIGSTOP)
        queued = [stack.enter_context(server.client()) for _ in range(CLIENTS)]
        for client in queued:
            client.send(b"%g\n" % SECONDS)
        server.send_signal(signal.SIGTERM)
        server.send_signal(signal.SIGCONT)
        answers = [everything(client.socket) for client in (*in_flight, *queued)]
        code, _, _ = server.outcome()
    return {DONE: 100 * answers.count(b"done\n") / len(answers), EXIT: code}


# ---- mistakes

PROMPT = 0.1

PROMPTLY, LEFT = "connections closed within 100 ms, %", "descriptors left open"


def failing_handlers(trial: Trial) -> Figures:
    clients = trial.size(10, 100)
    with trial.server("fail") as server:
        promptly = sum(closes_promptly(server) for _ in range(clients))
        wait_until(lambda: server.lasting_descriptors() == server.descriptors_at_first, 1.0)
        return {PROMPTLY: 100 * promptly / clients, LEFT: server.lasting_descriptors() - server.descriptors_at_first}


def closes_promptly(server: Server) -> bool:
    """Whether a client whose handler raises is closed within `PROMPT`."""
    with socket.create_connection(server.address, PATIENCE) as sock, selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        began = time.monotonic()
        sock.sendall(b"please\n")
        return bool(selector.select(PROMPT)) and has_ended(sock) and time.monotonic() - began <= PROMPT


PROBES = (
    Probe(
        "last reply",
        "A client sends a line and 256 kB that the handler does not read. The handler replies with 1 kB, 64 kB or 1 MB"
        " and returns; 100 times each, and again under TLS.",
        last_reply,
        (Threshold(WHOLE, "=", 100), Threshold(WHOLE_TLS, "=", 100)),
        guards=(Guard("linger", WHOLE, {"linger": 0}), Guard("linger, under TLS", WHOLE_TLS, {"linger": 0})),
    ),
    Probe(
        "SIGTERM",
        "The process gets a SIGTERM while 50 requests are in progress and 50 more clients wait in the accept backlog"
        " with theirs. A request takes half a second.",
        terminated,
        (Threshold(DONE, "=", 100), Threshold(EXIT, "=", 0)),
        guards=(
            Guard("the time to drain", DONE, {"drain_timeout": 0.05}),
            Guard("the look into the queue", DONE, switch="shut_down_without_the_queue"),
        ),
    ),
    Probe(
        "failing handlers",
        "100 clients connect one after another; their handler raises an exception.",
        failing_handlers,
        (Threshold(PROMPTLY, "=", 100, timed=True, quiet=True), Threshold(LEFT, "=", 0)),
        guards=(Guard("the close", PROMPTLY, switch="leave_failed_handlers_open"),),
    ),
)
