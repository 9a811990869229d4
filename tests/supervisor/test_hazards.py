"""What may happen to a service at a bad moment, with real processes: each of these has ended or hurt one before."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import PROJECT
from tests.support.listening import unused_port
from tests.support.waiting import waited

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it needs /proc")

PATIENCE = 20.0

ECHO = """
import iostreamsrv

class Echo(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        while True:
            await stream.write(await stream.read_until(b"\\n"))
"""


class Service:
    """A service of one worker, in a session of its own, which is killed in the end."""

    def __init__(
        self, folder: Path, *options: str, code: str = ECHO, prefix: tuple[str, ...] = (), by_file: bool = False
    ) -> None:
        (folder / "app.py").write_text(code)
        self.port = unused_port()
        self.log = folder / "log"
        self.file = folder / "iostreamsrv.toml"
        if by_file:
            self.bind(f"127.0.0.1:{self.port}")
        else:
            options = (*options, "--bind", f"127.0.0.1:{self.port}")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "iostreamsrv", "serve", "app:Echo", *options],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
                stderr=log,
                start_new_session=True,
            )

    def bind(self, place: str) -> None:
        self.file.write_text(f'bind = ["{place}"]\n')

    def said(self) -> str:
        return self.log.read_text()

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 2) as client:
            client.settimeout(5)
            client.sendall(b"x\n")
            return client.recv(10) == b"x\n"
        return False

    def workers(self) -> set[int]:
        """The children that run."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {int(each) for each in children if b"supervisor.worker" in _command(int(each))}

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    started = []

    def start(*options: str, **keywords: object) -> Service:
        started.append(Service(tmp_path, *options, **keywords))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.wait()


def test_a_worker_that_dies_as_it_speaks_does_not_end_the_service(service: Callable[..., Service]) -> None:
    running = service("--workers", "2")
    assert waited(running.answers)
    running.send(signal.SIGHUP)
    assert waited(lambda: "reloaded" in running.said()), "so all have started, and none ends the first start"
    for _ in range(3):
        for worker in running.workers():
            os.kill(worker, signal.SIGKILL)
        running.send(signal.SIGHUP)
        time.sleep(0.4)
    assert waited(running.answers, 60), running.said()  # those that were killed at once are tried again later each time
    assert "Traceback" not in running.said()
    assert running.process.poll() is None


def test_a_stop_in_the_moment_of_an_upgrade_counts(service: Callable[..., Service]) -> None:
    running = service()
    assert waited(running.answers)
    running.send(signal.SIGUSR2)
    while running.process.poll() is None and "is upgraded" not in running.said():
        running.send(signal.SIGTTOU)  # so that there is always one on its way; it does nothing to the last worker
        time.sleep(0.01)
    running.send(signal.SIGTERM)
    assert running.process.wait(PATIENCE) == 0, running.said()


def test_an_inherited_ignored_sigchld_is_not_ignored(service: Callable[..., Service]) -> None:
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    running = service(prefix=(sys.executable, "-c", ignoring))
    assert waited(running.answers)
    (worker,) = running.workers()
    os.kill(worker, signal.SIGKILL)
    assert waited(lambda: running.workers() - {worker} and running.answers())
    running.send(signal.SIGTERM)
    assert running.process.wait(PATIENCE) == 0


def test_a_worker_whose_import_hangs_ends_with_its_supervisor(service: Callable[..., Service]) -> None:
    running = service(code="import time\ntime.sleep(1000)\n")
    assert waited(running.workers)
    (worker,) = running.workers()
    time.sleep(1.0)  # until the import
    running.send(signal.SIGKILL)
    assert waited(lambda: not _command(worker))


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGHUP", "SIGINT"])
def test_what_a_terminal_sends_to_a_worker_at_its_start_does_not_end_it(
    service: Callable[..., Service], name: str
) -> None:
    running = service()
    assert waited(running.workers)
    for worker in running.workers():
        os.kill(worker, getattr(signal, name))
    assert waited(running.answers)
    assert "Traceback" not in running.said()


def test_a_check_that_hangs_ends_with_its_service(service: Callable[..., Service], tmp_path: Path) -> None:
    running = service()
    assert waited(running.answers)
    (tmp_path / "app.py").write_text("import time\ntime.sleep(1000)\n")
    running.send(signal.SIGUSR2)
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    assert waited(lambda: len(children.read_text().split()) == 2)
    (checker,) = set(map(int, children.read_text().split())) - running.workers()
    running.send(signal.SIGTERM)
    assert running.process.wait(PATIENCE) == 0
    assert waited(lambda: not _command(checker))


@pytest.mark.parametrize("place", ["0.0.0.0:{}", "127.0.0.1:{}?tls=off"])
def test_an_upgrade_with_another_text_for_the_same_place_goes_on_listening(
    service: Callable[..., Service], tmp_path: Path, place: str
) -> None:
    running = service(by_file=True)
    assert waited(running.answers)
    running.bind(place.format(running.port))
    running.send(signal.SIGUSR2)
    assert waited(lambda: "reloaded" in running.said()), running.said()
    assert running.answers()
