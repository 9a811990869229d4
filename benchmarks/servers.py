"""A peer at work: its process, from its start to what its timer saw."""

import json
import select
import socket
import subprocess
import sys
from pathlib import Path

from .machine import cpu_seconds, resident_bytes
from .peers import Mode, Peer

START_TIMEOUT = 10.0
STOP_TIMEOUT = 5.0
REPOSITORY = Path(__file__).parent.parent


class MeasurementError(Exception):
    """A figure could not be taken."""


class Server:
    """A peer in a process of its own, on a core of its own, that was seen to answer right."""

    def __init__(self, peer: Peer, mode: Mode, core: int) -> None:
        self._mode = mode
        self._seen: list[tuple[float, float]] | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers", *peer, mode, str(core)],
            cwd=REPOSITORY,
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

    def _read_port(self) -> int:
        output = self._process.stdout
        assert output is not None
        readable, _, _ = select.select([output], [], [], START_TIMEOUT)
        line = output.readline() if readable else ""
        if not line:
            raise MeasurementError("the server did not start")
        return int(line)

    def _check(self) -> None:
        wanted = b"6\n" if self._mode == "length" else b"hello\n"
        with self.connect() as client:
            client.sendall(b"hello\n")
            got = client.recv(100)
        if got != wanted:
            raise MeasurementError(f"the server answered {got!r}, not {wanted!r}")

    def connect(self) -> socket.socket:
        """A client that sends what it is given at once."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=START_TIMEOUT)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)

    def resident_bytes(self) -> int:
        return resident_bytes(self.pid)

    def stop(self) -> list[tuple[float, float]]:
        """End the process; what a ``timed`` one's timer saw: instants, and seconds late. Again: the same."""
        if self._seen is None:
            self._seen = []
            try:
                output, _ = self._process.communicate(timeout=STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
                raise MeasurementError("the server did not end when told to") from None
            self._seen = [(when, late) for when, late in json.loads(output or "[]")]
        return self._seen
