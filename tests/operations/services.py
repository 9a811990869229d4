"""A service as its operator has it: started, signalled, looked at from outside, and ended with all that it started."""

import contextlib
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from iostreamsrv.server.scoreboard import Scoreboard, Totals
from tests.support import PROJECT
from tests.support.waiting import waited

from . import processes, venv

HERE = Path(__file__).parent
PATIENCE = 30.0
"""Seconds for a service to start, or to replace all of its workers."""

OURS, OURS_HTTP = "iostreamsrv", "iostreamsrv, HTTP"
GTHREAD, GUNICORN, UVICORN = "gunicorn, gthread", "gunicorn, uvicorn's worker", "uvicorn"
KINDS = (OURS, OURS_HTTP, GTHREAD, GUNICORN, UVICORN)
REUSING = "processes that share a port"
"""Without a supervisor: each has a listener of its own, with ``reuse_port``."""

REUSE = """
import sys, pkgutil, iostreamsrv
async def main():
    server = pkgutil.resolve_name(sys.argv[1])()
    server.listen(int(sys.argv[2]), "127.0.0.1", reuse_port=True)
    await server.serve_forever()
iostreamsrv.run(main())
"""

PORTS = range(20000, 30000)
"""Below those that the system gives to clients."""


def free_port() -> int:
    """A port that nobody listens on."""
    return next(port for port in random.sample(PORTS, len(PORTS)) if processes.can_bind(port))


class Service:
    """Starts a service in a folder of its own, as the leader of a session. Leaving the ``with`` ends all processes of
    this session, and removes the folder.

    :param kind: of `KINDS`.
    :param target: what of ``served.py``; None: what the kind serves.
    :param package: the folder that ours is in: another one has a mutation.
    :param options: further words of the command line.
    :param files: more files in the folder.
    :param prefix: words before the command.
    :ivar port: where it listens.
    :ivar pid: the process that was started.
    :ivar started_in: seconds from its start until it served.
    """

    def __init__(
        self,
        kind: str = OURS,
        target: str | None = None,
        *options: str,
        workers: int = 2,
        package: Path = PROJECT,
        files: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.kind, self.workers = kind, workers
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="operations-"))
        self.folder.chmod(0o755)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._notices = Notices(self.folder / "notify")
        for name in ("served.py", "served_by_peers.py"):
            shutil.copy(HERE / name, self.folder)
        for name, text in (files or {}).items():
            (self.folder / name).write_text(text)
        command = _command(kind, target, self.port, workers)
        if kind in (OURS, OURS_HTTP, REUSING):
            surroundings = {**os.environ, "PYTHONPATH": str(package), "NOTIFY_SOCKET": self._notices.path}
        else:
            surroundings = venv.environment()
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [*prefix, *command, *options],
            cwd=self.folder,
            env={**surroundings, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,
            stderr=self._stderr,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.started_in = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        processes.kill_all(self.pid)
        self._process.wait()
        self._stderr.close()
        self._notices.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- looks

    def said(self) -> str:
        """All it has written so far."""
        descriptor = self._stderr.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def children(self) -> set[int]:
        """The processes that the first one has started, and that run."""
        found = processes.of_session(self.pid)
        return {each.pid for each in found if each.parent == self.pid and not each.dead}

    def left(self) -> list[int]:
        """All processes of it that run."""
        return processes.alive(self.pid)

    def started(self) -> Self:
        """Wait until it serves.

        :raises AssertionError: it does not.
        """
        ready = self._notices.ready if self.kind in (OURS, OURS_HTTP) else self._answers
        assert waited(lambda: ready() or self._process.poll() is not None, PATIENCE), self.said()
        assert self._process.poll() is None, self.said()
        self.started_in = time.monotonic() - self._began
        return self

    def _answers(self) -> bool:
        """Whether each of its workers has answered."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return len(self.servers()) == self.workers and time.monotonic() - self._began > 2
        return False

    def servers(self) -> set[int]:
        """The workers: its children, without the helpers that multiprocessing of Python starts."""
        return {pid for pid in self.children() if b"resource_tracker" not in _command_of(pid)}

    @contextlib.contextmanager
    def scoreboard(self) -> Iterator[Scoreboard]:
        """The shared memory of its workers."""
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            if "iostreamsrv-scoreboard" in str(entry.readlink()):
                opened = Scoreboard.open(os.open(entry, os.O_RDWR))
                try:
                    yield opened
                finally:
                    opened.close()
                return
        raise AssertionError("it has no scoreboard")

    def totals(self) -> Totals:
        """The counters over all workers, now."""
        with self.scoreboard() as scoreboard:
            return scoreboard.totals()

    # ---- signals

    def signal(self, name: str) -> None:
        """Send the first process a signal: "HUP"."""
        os.kill(self.pid, signal.Signals[f"SIG{name}"])

    def replaced(self, name: str = "HUP") -> bool:
        """Send a signal, and wait until all workers are replaced; whether they were."""
        if self.kind in (OURS, OURS_HTTP):
            before = self._notices.reloads
            self.signal(name)
            has_ended = lambda: self._process.poll() is not None  # noqa: E731
            waited(lambda: self._notices.reloads > before or has_ended(), PATIENCE)
            return self._notices.reloads > before
        before_it = self.servers()
        self.signal(name)
        is_done = waited(lambda: not self.servers() & before_it and len(self.servers()) == self.workers, PATIENCE)
        time.sleep(0.5)  # it does not say when they serve
        return is_done

    def ended(self, patience: float) -> tuple[int | None, float]:
        """Wait until its first process has ended: the exit code, None if it has not; and how long that took."""
        began = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        return self._process.poll(), time.monotonic() - began


class Notices:
    """What a service tells its service manager: the protocol of sd_notify(3).

    :ivar reloads: how many reloads have ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        path.chmod(0o777)
        self._is_ready = threading.Event()
        self._reloading = False
        self.reloads = 0
        self.all: list[str] = []
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def ready(self) -> bool:
        """Whether the service has said so."""
        return self._is_ready.is_set()

    def _receive(self) -> None:
        while True:
            text = self._socket.recv(4096).decode()
            if not text:
                return
            self.all.append(text)
            if text.startswith("RELOADING=1"):
                self._reloading = True
            elif text.startswith("READY=1"):
                self._is_ready.set()
                self.reloads += self._reloading
                self._reloading = False

    def close(self) -> None:
        """End it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.path)
        self._thread.join(PATIENCE)
        self._socket.close()


def _command(kind: str, target: str | None, port: int, workers: int) -> list[str]:
    where, count = f"127.0.0.1:{port}", str(workers)
    if kind in (OURS, OURS_HTTP):
        target = target or ("served:Echo" if kind == OURS else "served:hello")
        return [sys.executable, "-m", "iostreamsrv", "serve", target, "--bind", where, "--workers", count]
    if kind == REUSING:
        one = shlex.join([sys.executable, "-c", REUSE, target or "served:Plain", str(port)])
        return ["sh", "-c", f"{one} & " * workers + "wait"]
    python = str(venv.PYTHON)
    if kind == UVICORN:
        words = ["uvicorn", target or "served_by_peers:asgi", "--host", "127.0.0.1", "--port", str(port)]
        return [python, "-m", *words, "--workers", count, "--log-level", "warning", "--timeout-keep-alive", "75"]
    words = ["gunicorn", "--bind", where, "--workers", count, "--no-control-socket", "--log-level", "warning"]
    words += ["--keep-alive", "75"]
    if kind == GTHREAD:
        return [python, "-m", *words, "--worker-class", "gthread", "--threads", "32", target or "served_by_peers:wsgi"]
    return [python, "-m", *words, "-k", "uvicorn_worker.UvicornWorker", target or "served_by_peers:asgi"]


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
