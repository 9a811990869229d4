"""A service that can't be started says why in one line, with the exit code for it, and leaves nothing."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import PROJECT

from . import processes
from .services import free_port

TARGET = (
    "import iostreamsrv\nclass Echo(iostreamsrv.TCPServer):\n    async def handle_stream(self, stream, address): ...\n"
)

USAGE, NOT_STARTED = 2, 3


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def busy() -> Iterator[int]:
    """A port that somebody listens on."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        yield port


def complaint(folder: Path, port: int, *words: str) -> tuple[int, str]:
    """The exit code, and what is said of a service that does not start; nothing of it is left."""
    (folder / "chat.py").write_text(TARGET)
    process = subprocess.Popen(
        [sys.executable, "-m", "iostreamsrv", "serve", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, said = process.communicate(timeout=30)
    finally:
        processes.kill_all(process.pid)
        process.wait()
    assert printed == ""
    assert processes.can_bind(port)
    return process.returncode, said


@pytest.fixture
def service_like() -> Iterator[int]:
    """A process that may be a service, by its command."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "iostreamsrv", "serve"]) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["chat.Echo"], USAGE, 'has no ":"'),
        (["chat:Echo", "--bind", "127.0.0.1:{port}"], USAGE, "127.0.0.1:{port}"),
        (["chat:Echo", "--set", "read_timout=3"], USAGE, "did you mean 'read_timeout'?"),
        (["chat:Echo", "--config", "broken.toml"], USAGE, "broken.toml"),
        (["chat:Echo", "--pid-file", "living.pid"], NOT_STARTED, "living.pid"),
        (["chat:Echo", "--bind", "unix:/tmp/{long}"], USAGE, "has at most 10"),
    ],
    ids=["no name", "two binds", "option", "broken TOML", "living pid file", "long path"],
)
def test_it_says_what_is_wrong_in_one_line(
    tmp_path: Path, port: int, service_like: int, words: list[str], code: int, problem: str
) -> None:
    (tmp_path / "broken.toml").write_text('workers = 2\nbind = ["a\n')
    (tmp_path / "living.pid").write_text(f"{service_like}\n")
    long = "a" * 120
    filled = [word.format(port=port, long=long) for word in words]
    found, said = complaint(tmp_path, port, *filled, "--bind", f"127.0.0.1:{port}")
    assert (found, problem.format(port=port) in said) == (code, True), said
    assert said.startswith("iostreamsrv: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "problem"), [("chat:iostreamsrv", "is a module"), ("chta:Echo", "there is no module 'chta'")]
)
def test_a_target_that_cannot_be_served_is_named_without_a_traceback(
    tmp_path: Path, port: int, target: str, problem: str
) -> None:
    code, said = complaint(tmp_path, port, target, "--bind", f"127.0.0.1:{port}")
    assert (code, said.count(problem)) == (NOT_STARTED, 1), said
    assert "Traceback" not in said


def test_a_busy_port_is_named(tmp_path: Path, port: int, busy: int) -> None:
    code, said = complaint(tmp_path, port, "chat:Echo", "--bind", f"127.0.0.1:{port}", "--bind", f"127.0.0.1:{busy}")
    assert code == NOT_STARTED
    assert str(busy) in said
    assert said.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody who may not")
def test_a_port_below_1024_says_what_it_needs(tmp_path: Path, port: int) -> None:
    program = (
        "import ctypes, os, socket, sys\n"
        "ctypes.CDLL(None).prctl(24, 10, 0, 0, 0)\n"  # PR_CAPBSET_DROP of CAP_NET_BIND_SERVICE, which an exec heeds
        "words = [sys.executable, '-m', 'iostreamsrv', 'serve', 'chat:Echo', '--bind', '127.0.0.1:81']\n"
        "os.execv(sys.executable, words)\n"
    )
    (tmp_path / "chat.py").write_text(TARGET)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == NOT_STARTED, done.stderr
    assert "1024" in done.stderr or "CAP_NET_BIND_SERVICE" in done.stderr
    assert done.stderr.count("\n") == 1
