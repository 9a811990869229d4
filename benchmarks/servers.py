"""The process of a peer, from its start to the report of its timer."""

import contextlib
import json
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .encryption import CERTIFICATE, KEY, client_context, write_certificate
from .floor import floor_program
from .machine import BACKLOG, avoid_pacing, cpu_seconds, resident_bytes
from .peers import FLOOR, UNDER_TLS, Mode, Peer

FIRST: dict[Mode, tuple[bytes, bytes]] = {
    "length": (b"hello\n", b"6\n"),
    "file": (b"hello\n", b"ERR No such file or directory\n"),
    "http": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 200 "),
    "resp": (b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n"),
}
"""What is sent first, and how the answer must begin, where that is no echo."""
START_TIMEOUT = 10.0
STOP_TIMEOUT = 5.0
SLOWER = 30  # times as long as usual, for a server that a tool examines
PEERS = "benchmarks.peers"
REPOSITORY = Path(__file__).parent.parent
FILE_SIZE = 16 << 20
"""Large enough that sending dominates the cost, small enough to stay in the page cache."""


class MeasurementError(Exception):
    """A measurement failed."""


class Server:
    """A peer in a separate process, on a separate core, that was checked to answer correctly.

    :param under: the words of a command that runs it, and takes as many times longer as `SLOWER` says.
    :param module: what the process runs.
    :ivar upstream: the listener that a forwarder connects to. The load generator accepts these connections and echoes.
    """

    upstream: socket.socket | None = None

    def __init__(self, peer: Peer, mode: Mode, core: int, under: Sequence[str] = (), module: str = PEERS) -> None:
        self._mode = mode
        self._patience = SLOWER if under else 1
        self._seen: list[tuple[float, float]] | None = None
        self._surroundings = contextlib.ExitStack()
        self._tls = client_context() if mode in UNDER_TLS else None
        target = self._target()
        self._process = subprocess.Popen(
            [*under, *_command(peer, mode, core, target, module)],
            cwd=REPOSITORY,
            env=peer.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.port = self._read_port()
            self._check()
        except BaseException:
            self.stop()
            raise

    def _target(self) -> str:
        """The files and listeners that a forwarder, a file server or a TLS server needs."""
        if self._mode == "forward":
            self.upstream = self._surroundings.enter_context(socket.create_server(("127.0.0.1", 0), backlog=BACKLOG))
            self.upstream.settimeout(START_TIMEOUT)
            avoid_pacing(self.upstream)
            return str(self.upstream.getsockname()[1])
        if self._mode == "file":
            folder = self._folder()
            Path(folder, "data").write_bytes(b"x" * FILE_SIZE)
            return folder
        if self._tls:
            folder = self._folder()
            write_certificate(Path(folder))
            return folder
        return ""

    def _folder(self) -> str:
        return self._surroundings.enter_context(tempfile.TemporaryDirectory())

    def _read_port(self) -> int:
        output = self._process.stdout
        assert output is not None
        readable, _, _ = select.select([output], [], [], START_TIMEOUT * self._patience)
        line = output.readline() if readable else ""
        if not line:
            raise MeasurementError("the server did not start")
        return int(line)

    def _check(self) -> None:
        said, wanted = FIRST.get(self._mode, (b"hello\n", b"hello\n"))
        with self.connect() as client:
            client.sendall(said)
            if self.upstream:
                echo_once(self.upstream)
            got = client.recv(100)
        if not got.startswith(wanted):
            raise MeasurementError(f"the server answered {got!r}, not {wanted!r}")

    def connect(self) -> socket.socket:
        """A client socket without Nagle's delay, with TLS if the server uses it."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=START_TIMEOUT * self._patience)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._tls.wrap_socket(client) if self._tls else client

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)

    def resident_bytes(self) -> int:
        return resident_bytes(self.pid)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The process stands still meanwhile."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> list[tuple[float, float]]:
        """End the process. Returns the records of the timer: times, and seconds late. May be called repeatedly."""
        if self._seen is None:
            self._seen = []
            try:
                output, _ = self._process.communicate(timeout=STOP_TIMEOUT * self._patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
                raise MeasurementError("the server did not end when told to") from None
            finally:
                self._surroundings.close()
            self._seen = [(when, late) for when, late in json.loads((output or "[]").splitlines()[-1])]
        return self._seen


def _command(peer: Peer, mode: Mode, core: int, target: str, module: str) -> list[str]:
    if peer != FLOOR:
        return [sys.executable, "-m", module, *peer, mode, str(core), target]
    program = floor_program(tls=mode in UNDER_TLS)
    if program is None:
        raise MeasurementError("it needs a C compiler, and for TLS OpenSSL's headers")
    files = [str(Path(target, name)) for name in (CERTIFICATE, KEY)] if target else []
    return [str(program), str(core), *(["broadcast"] if mode == "broadcast" else files)]


def echo_once(listener: socket.socket) -> None:
    """Accept a connection, and echo the first data."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(START_TIMEOUT)
        connection.sendall(connection.recv(100))
