"""Last bytes: of a server that ends while its clients are busy, to clients that read slowly, after a half-close."""

import contextlib
import signal
import socket
import ssl
import threading
import time

from tests.support.hostile import everything
from tests.support.programs import PATIENCE

from .probes import Figures, Guard, Probe, Threshold, Trial
from .servers import Server

# ---- a shutdown with clients that ask again at once

BUSY = 20

SECONDS = 0.2
"""What a request takes."""

DRAIN_IDLE = 0.5

CUT, OVER = "requests started and not answered", "last client served, s after drain_idle and a request"


class Asking(threading.Thread):
    """A client that asks again as soon as it has its answer.

    :ivar answered: requests.
    :ivar cut: whether its last request was begun, and not answered.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.answered = 0
        self.cut = False
        self._socket = socket.create_connection(server.address, PATIENCE)
        self.start()

    def run(self) -> None:
        with self._socket as sock, sock.makefile("rb") as lines, contextlib.suppress(OSError):
            while True:
                sock.sendall(b"%g\n" % SECONDS)
                if lines.readline() != b"begun\n":
                    return
                self.cut = True
                if lines.readline() != b"done\n":
                    return
                self.cut = False
                self.answered += 1


def busy_shutdown(trial: Trial) -> Figures:
    with trial.server("serve", drain_idle=DRAIN_IDLE, drain_timeout=3.0) as server:
        clients = [Asking(server) for _ in range(BUSY)]
        late = time.monotonic() + PATIENCE
        while min(client.answered for client in clients) < 2 and time.monotonic() < late:
            time.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        began = time.monotonic()
        for client in clients:
            client.join(PATIENCE)
        took = time.monotonic() - began
        server.outcome()
    return {CUT: sum(client.cut for client in clients), OVER: max(0.0, took - SECONDS - DRAIN_IDLE)}


# ---- a client that reads slowly all the time

SIZE = 8_000_000

FULL_SIZE = 40_000_000
"""Much more than the kernel takes."""

WHOLE, WHOLE_TLS = "bytes received, %", "bytes received under TLS, %"
LOOKS_WHOLE = "truncated replies that look complete"


def slow_reader(trial: Trial) -> Figures:
    size, seconds, timeout = (FULL_SIZE, 40.0, 30.0) if trial.full else (SIZE, 2.0, 0.4)
    with trial.credentials() as credentials:
        with trial.server("leave", write_timeout=timeout) as server:
            plain = read_slowly(server, size, seconds)
        with trial.server("leave", files=credentials.files, write_timeout=timeout) as server:
            tls = read_slowly(server, size, seconds, credentials.trusting)
        looks_whole = 0
        for files, trusting in ((None, None), (credentials.files, credentials.trusting)):
            with trial.server("leave", files=files, write_timeout=0.5) as server:
                looks_whole += pause_and_read(server, trusting)
    return {WHOLE: 100 * plain / size, WHOLE_TLS: 100 * tls / size, LOOKS_WHOLE: looks_whole}


def connect(server: Server, tls: ssl.SSLContext | None) -> socket.socket:
    sock = socket.socket()
    sock.settimeout(PATIENCE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.connect(server.address)
    if tls is None:
        return sock
    return tls.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False)


def read_slowly(server: Server, size: int, seconds: float, tls: ssl.SSLContext | None = None) -> int:
    """How many bytes a client gets that reads some all the time, so that all of them would take so long."""
    with connect(server, tls) as sock:
        sock.sendall(b"%d\n" % size)
        began, received = time.monotonic(), 0
        with contextlib.suppress(OSError):
            while chunk := sock.recv(65536):
                received += len(chunk)
                time.sleep(max(0.0, began + seconds * received / size - time.monotonic()))
    return received


def pause_and_read(server: Server, tls: ssl.SSLContext | None) -> bool:
    """Whether a client that has taken nothing for longer than it may gets less than all, and an end in order."""
    with connect(server, tls) as sock:
        sock.sendall(b"%d\n" % SIZE)
        time.sleep(1.5)
        received = 0
        try:
            while chunk := sock.recv(65536):
                received += len(chunk)
        except OSError:
            return False
    return received < SIZE


# ---- a client that has sent all, and says so at once

UPLOADS = (5_000, 65_536, 131_072)

COPIES, COPIES_TLS = "uploads echoed completely, %", "uploads echoed completely under TLS, %"


def half_close(trial: Trial) -> Figures:
    times = trial.size(5, 30)
    with trial.credentials() as credentials:
        with trial.server("copy") as server:
            plain = [comes_back(server, size) for size in UPLOADS * times]
        with trial.server("copy", files=credentials.files) as server:
            tls = [comes_back(server, size, credentials.trusting) for size in UPLOADS * times]
    return {COPIES: 100 * sum(plain) / len(plain), COPIES_TLS: 100 * sum(tls) / len(tls)}


def comes_back(server: Server, size: int, tls: ssl.SSLContext | None = None) -> bool:
    """Whether a client gets back all that it sends, if it ends its side in one breath with the last byte."""
    sent = bytes(range(251)) * (size // 251 + 1)
    with socket.create_connection(server.address, PATIENCE) as sock:
        try:
            return received_by(sock, sent[:size], tls) == sent[:size]
        except OSError:
            return False


def received_by(sock: socket.socket, data: bytes, context: ssl.SSLContext | None) -> bytes:
    if context is None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return everything(sock)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    while not shaken(tls):
        if outgoing.pending:
            sock.sendall(outgoing.read())
        incoming.write(sock.recv(65536))
    tls.write(data)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.unwrap()
    sock.sendall(outgoing.read())  # what is left of the handshake, data and close_notify at once
    return decrypted(sock, tls, incoming)


def shaken(tls: ssl.SSLObject) -> bool:
    """Whether the handshake is done."""
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def decrypted(sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO) -> bytes:
    """What comes until the server says that it ends."""
    received = bytearray()
    while True:
        try:
            received += tls.read(65536)
        except ssl.SSLWantReadError:
            chunk = sock.recv(65536)
            if not chunk:
                return bytes(received)
            incoming.write(chunk)
        except ssl.SSLZeroReturnError:
            return bytes(received)


PROBES = (
    Probe(
        "busy shutdown",
        "The process gets a SIGTERM while 20 clients send a new request as soon as they have the reply to the last"
        " one. A request takes 0.2 s, and the client is told at once that it has started.",
        busy_shutdown,
        (Threshold(CUT, "=", 0), Threshold(OVER, "≤", 0.3, timed=True, quiet=True)),
        guards=(Guard("the end of who asks again", OVER, switch="serve_who_asks_again"),),
    ),
    Probe(
        "slow reader",
        "A handler writes 40 MB without awaiting and returns. The client reads all the time and needs 40 s. Another"
        " client reads nothing for 1.5 s, then everything; there, iostreamsrv has `write_timeout=0.5`. Both again"
        " under TLS.",
        slow_reader,
        (Threshold(WHOLE, "=", 100), Threshold(WHOLE_TLS, "=", 100), Threshold(LOOKS_WHOLE, "=", 0)),
        guards=(
            Guard("the limit of progress", WHOLE, switch="close_at_once"),
            Guard("the reset", LOOKS_WHOLE, switch="end_in_order_whatever_is_lost"),
        ),
    ),
    Probe(
        "half-close",
        "A client sends 5,000, 65,536 or 131,072 bytes and half-closes at once, 30 times each. The handler reads at"
        " most 3,000 bytes at a time and writes them back. Again under TLS, with data and close_notify in one segment.",
        half_close,
        (Threshold(COPIES, "=", 100), Threshold(COPIES_TLS, "=", 100)),
        guards=(Guard("the end that waits for its read", COPIES, switch="end_before_all_is_read"),),
    ),
)
