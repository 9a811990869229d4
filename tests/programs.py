"""Programs that listen, started as a user starts them: in a process of their own, spoken to over real sockets."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Self

PROJECT = Path(__file__).parent.parent

PATIENCE = 20.0
"""Seconds after which a program that neither speaks nor ends is killed, so that its test fails instead of hanging."""


class NotListening(AssertionError):
    """A program did something else: the line it said, its exit code, the rest of its stdout, its stderr."""


class Program:
    """A Python program, which prints "listening on HOST:PORT", or the path of a Unix socket, for each of its sockets.

    Leaving the ``with`` kills it.

    :ivar addresses: (host, port), or the path, of each socket that :meth:`listening` has waited for.
    """

    def __init__(self, *arguments: str | Path, folder: Path = PROJECT) -> None:
        self.addresses: list[Any] = []
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        assert self._process.stdout is not None
        self._stdout = self._process.stdout
        self._watchdog = threading.Timer(PATIENCE, self._process.kill)
        self._watchdog.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill it, if it has not ended."""
        self._watchdog.cancel()
        self._process.kill()
        self._process.wait()
        self._stdout.close()
        self._stderr.close()

    def listening(self, sockets: int = 1) -> Self:
        """Wait until it listens on so many sockets.

        :raises NotListening: it does not.
        """
        for _ in range(sockets):
            line = self._stdout.readline()
            address = _address(line.removeprefix("listening on ").strip())
            if not line.startswith("listening on ") or address is None:
                outcome = self.outcome()
                self.close()
                raise NotListening(line, *outcome)
            self.addresses.append(address)
        return self

    def client(self, number: int = 0) -> "Client":
        """A client of the socket with this number."""
        return Client(self.addresses[number])

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal and wait for the outcome."""
        self._process.send_signal(number)
        return self.outcome()

    def outcome(self) -> tuple[int, str, str]:
        """When it has ended: its exit code and what it still said on stdout, and all it said on stderr."""
        said = self._stdout.read()
        code = self._process.wait()
        self._stderr.seek(0)
        return code, said, self._stderr.read()


def _address(text: str) -> Any:
    """The address that a program says; None if it is none."""
    host, _, port = text.rpartition(":")
    if port.isdigit():
        return host.strip("[]"), int(port)
    return text if "/" in text else None


class Client:
    """A connection to a program, at (host, port) or at the path of a Unix socket."""

    def __init__(self, address: Any) -> None:
        if isinstance(address, tuple):
            self.socket = socket.create_connection(address, PATIENCE)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE)
            self.socket.connect(address)
        self._lines = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> bytes:
        """The next line, b"" at the end of the stream."""
        return self._lines.readline()

    def ask(self, data: bytes) -> bytes:
        """Send ``data`` and read a line."""
        self.send(data)
        return self.line()
