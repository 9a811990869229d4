"""Other programs, started and ended by these."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from checks import until


class Program:
    """A program that runs beside this one, in a process group of its own, and what it has printed."""

    def __init__(self, *command: str, folder: str | None = None, **environment: str) -> None:
        self.output = Path(tempfile.mkstemp(prefix="output-")[1])
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def match(self, pattern: str, patience: float = 40.0) -> re.Match[str]:
        """Wait until it has printed something."""

        def found() -> re.Match[str] | None:
            if self.process.poll() is not None:
                raise AssertionError(f"it has ended with {self.process.returncode}: {self.said()[-2000:]}")
            return re.search(pattern, self.said())

        match: re.Match[str] = until(found, patience)
        return match

    def end(self, with_signal: signal.Signals = signal.SIGTERM, patience: float = 15.0) -> int:
        """Ask it to end; its exit code, negative if a signal has ended it.

        :raises subprocess.TimeoutExpired: it did not.
        """
        self.process.send_signal(with_signal)
        return self.process.wait(patience)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        sys.stderr.write(self.said()[-20_000:])


@contextlib.contextmanager
def running(*command: str, folder: str | None = None, **environment: str) -> Iterator[Program]:
    program = Program(*command, folder=folder, **environment)
    try:
        yield program
    finally:
        program.kill()


@contextlib.contextmanager
def python(*arguments: str, folder: str | None = None, **environment: str) -> Iterator[Program]:
    with running(sys.executable, *arguments, folder=folder, **environment) as program:
        yield program


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def get(url: str, data: bytes | None = None, method: str | None = None, **headers: str) -> tuple[int, bytes]:
    """What a server replies; an error's status is a reply as well."""
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def is_up(url: str) -> bool:
    try:
        return get(url)[0] < 500
    except OSError:
        return False


def wait_for_end(pid: int, patience: float = 15.0) -> None:
    deadline = time.monotonic() + patience
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} has not ended")
        time.sleep(0.05)
