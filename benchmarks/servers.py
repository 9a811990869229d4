"""The process of a peer, from its start to the report of its timer."""

import contextlib
import json
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from .encryption import CERTIFICATE, KEY, client_context, write_certificate
from .floor import floor_program
from .machine import BACKLOG, avoid_pacing, cpu_seconds, resident_bytes
from .peers import FLOOR, UNDER_TLS, Mode, Peer

START_TIMEOUT = 10.0
STOP_TIMEOUT = 5.0
REPOSITORY = Path(__file__).parent.parent
FILE_SIZE = 16 << 20
"""Large enough that sending dominates the cost, small enough to stay in the page cache."""


class MeasurementError(Exception):
    """A measurement failed."""


class Server:
    """A peer in a separate process, on a separate core, that was checked to answer correctly.

    :ivar upstream: the listener that a forwarder connects to. The load generator accepts these connections and echoes.
    """

    upstream: socket.socket | None = None

    def __init__(self, peer: Peer, mode: Mode, core: int) -> None:
        self._mode = mode
        self._seen: list[tuple[float, float]] | None = None
        self._surroundings = contextlib.ExitStack()
        self._tls = client_context() if mode in UNDER_TLS else None
        target = self._target()
        self._process = subprocess.Popen(
            _command(peer, mode, core, target),
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
        readable, _, _ = select.select([output], [], [], START_TIMEOUT)
        line = output.readline() if readable else ""
        if not line:
            raise MeasurementError("the server did not start")
        return int(line)

    def _check(self) -> None:
        wanted = {"length": b"6\n", "file": b"ERR No such file or directory\n"}.get(self._mode, b"hello\n")
        with self.connect() as client:
            client.sendall(b"hello\n")
            if self.upstream:
                echo_once(self.upstream)
            got = client.recv(100)
        if got != wanted:
            raise MeasurementError(f"the server answered {got!r}, not {wanted!r}")

    def connect(self) -> socket.socket:
        """A client socket without Nagle's delay, with TLS if the server uses it."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=START_TIMEOUT)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._tls.wrap_socket(client) if self._tls else client

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)

    def resident_bytes(self) -> int:
        return resident_bytes(self.pid)

    def stop(self) -> list[tuple[float, float]]:
        """End the process. Returns the records of the timer: times, and seconds late. May be called repeatedly."""
        if self._seen is None:
            self._seen = []
            try:
                output, _ = self._process.communicate(timeout=STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
                raise MeasurementError("the server did not end when told to") from None
            finally:
                self._surroundings.close()
            self._seen = [(when, late) for when, late in json.loads(output or "[]")]
        return self._seen


def _command(peer: Peer, mode: Mode, core: int, target: str) -> list[str]:
    if peer != FLOOR:
        return [sys.executable, "-m", "benchmarks.peers", *peer, mode, str(core), target]
    program = floor_program(tls=mode in UNDER_TLS)
    if program is None:
        raise MeasurementError("it needs a C compiler, and for TLS OpenSSL's headers")
    files = [str(Path(target, name)) for name in (CERTIFICATE, KEY)] if target else []
    return [str(program), str(core), *files]


def echo_once(listener: socket.socket) -> None:
    """Accept a connection, and echo the first data."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(START_TIMEOUT)
        connection.sendall(connection.recv(100))
