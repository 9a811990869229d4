"""A service as the first process of a container: here, of a namespace of processes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import PROJECT
from tests.support.listening import unused_port
from tests.support.waiting import waited

PATIENCE = 20.0

LEAVES_A_CHILD = """
import os, subprocess
import iostreamsrv

class Server(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        await stream.read_until(b"\\n")
        # The shell ends at once, and leaves its child to the first process.
        subprocess.run(["sh", "-c", "sleep 0.2 &"])
        await stream.write(b"%d\\n" % os.getppid())
"""


def namespaces_are_possible() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not namespaces_are_possible(), reason="needs unshare, and the right to make a namespace"
)


def children(pid: int) -> list[tuple[int, str]]:
    """The children of a process, each with its state: "Z" is dead, and was not reaped."""
    found = []
    for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            state = Path(f"/proc/{number}/stat").read_text().rsplit(") ", 1)[1][0]
        except FileNotFoundError:
            continue
        found.append((int(number), state))
    return found


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """The process that made the namespace, the first one in it, and the port."""
    (tmp_path / "app.py").write_text(LEAVES_A_CHILD)
    port = unused_port()
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-m", "iostreamsrv", "serve", "app:Server"]
    with subprocess.Popen(
        [*command, "--bind", f"127.0.0.1:{port}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stderr=subprocess.PIPE,
    ) as outside:
        try:
            assert waited(lambda: children(outside.pid))
            first = children(outside.pid)[0][0]
            assert waited(lambda: accepts(port))
            yield outside, first, port
        finally:
            outside.kill()  # and so, by --kill-child, all that is in there


def accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE):
            return True
    except ConnectionRefusedError:
        return False


def ask(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.settimeout(PATIENCE)
        client.sendall(b"x\n")
        return client.makefile("rb").readline()


def test_it_stops_when_told_and_reaps_what_others_leave(
    service: tuple[subprocess.Popen[bytes], int, int],
) -> None:
    outside, first, port = service
    assert ask(port) == b"1\n", "the worker's parent is the first process there"
    assert waited(lambda: len(children(first)) == 2), "the worker, and what it has left"
    assert waited(lambda: len(children(first)) == 1), "the worker: the other one has ended, and was reaped"
    os.kill(first, signal.SIGTERM)
    assert outside.wait(PATIENCE) == 0
    assert b"Traceback" not in outside.stderr.read()  # type: ignore[union-attr]


def test_a_reload_works_there_too(service: tuple[subprocess.Popen[bytes], int, int]) -> None:
    _, first, port = service
    ask(port)
    (before,) = [
        number for number, _ in children(first) if Path(f"/proc/{number}/cmdline").read_bytes().find(b"worker") > 0
    ]
    os.kill(first, signal.SIGHUP)
    assert waited(lambda: before not in dict(children(first)))
    assert ask(port) == b"1\n"
