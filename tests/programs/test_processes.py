"""A server in several processes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import ListenError, bind_sockets, bind_unix_socket
from tests.support import PROJECT
from tests.support.programs import printed

PATIENCE = 20.0
"""Seconds after which processes that neither speak nor end are killed, so that their test fails instead of hanging."""

WHO_ARE_YOU = """
import os, sys
import iostreamsrv

class WhoAreYou(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        asked = await stream.read_bytes(1)
        await stream.write(str(os.getpid()).encode())
        if asked == b"!":
            self.stop()

server = WhoAreYou()
"""
"""A server that tells a client which process it is in, and stops if it is asked with an exclamation mark."""

TWO_WORKERS = f"""{WHO_ARE_YOU}
server.bind(0, "127.0.0.1")
print(server.addresses[0], flush=True)
server.start(2)
iostreamsrv.run(server)
"""

TWO_WORKERS_ON_A_UNIX_SOCKET = f"""{WHO_ARE_YOU}
with iostreamsrv.bind_unix_socket(sys.argv[1]) as listener:
    print(repr(listener.getsockname()), flush=True)
    server.start(2)
    server.add_socket(listener)
    iostreamsrv.run(server)
"""

ALONE_ON_A_SHARED_PORT = f"""{WHO_ARE_YOU}
server.listen(int(sys.argv[1]), "127.0.0.1", reuse_port=True)
print(server.addresses[0], flush=True)
iostreamsrv.run(server)
"""


@contextlib.contextmanager
def running(source: str, *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """A program, which may fork. It and all its workers are killed in the end."""
    with subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # to find the workers by, which the end of the first process leaves to themselves
    ) as process:

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        watchdog = threading.Timer(PATIENCE, kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            kill()


def ask(address: Any, question: bytes = b"?") -> int:
    """The process that answers there. If it was told to stop, it listens no more when this returns."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        client.settimeout(PATIENCE)
        client.connect(address)
        client.sendall(question)
        return int(client.makefile("rb").read())


def all_who_answer(address: Any, count: int) -> set[int]:
    """The processes that answer there, once there are so many."""
    found: set[int] = set()
    end = time.monotonic() + PATIENCE / 2
    while len(found) < count and time.monotonic() < end:
        found.add(ask(address))
    assert len(found) == count
    return found


# ---- start(2)


def test_two_workers_share_the_listener_and_both_get_clients() -> None:
    with running(TWO_WORKERS) as first:
        assert first.pid not in all_who_answer(printed(first), 2)


def test_when_one_worker_stops_the_other_gets_all_clients_and_the_first_process_ends_with_the_last() -> None:
    with running(TWO_WORKERS) as first:
        address = printed(first)
        workers = all_who_answer(address, 2)
        (left,) = workers - {ask(address, b"!")}
        assert {ask(address) for _ in range(20)} == {left}
        ask(address, b"!")
        assert first.wait(PATIENCE) == 0
        bind_sockets(address[1], address[0])[0].close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def test_the_file_of_a_shared_unix_socket_stays_until_the_last_worker_has_stopped(path: Path) -> None:
    with running(TWO_WORKERS_ON_A_UNIX_SOCKET, str(path)) as first:
        address = printed(first)
        workers = all_who_answer(address, 2)
        (left,) = workers - {ask(address, b"!")}
        assert first.pid not in workers
        assert {ask(address) for _ in range(20)} == {left}
        with pytest.raises(ListenError, match="a server is listening there"):
            bind_unix_socket(path)
        assert ask(address, b"!") == left
        assert first.wait(PATIENCE) == 0
        assert not path.exists()


def test_a_shared_unix_socket_is_replaced_when_no_worker_is_left_and_not_before(path: Path) -> None:
    with running(TWO_WORKERS_ON_A_UNIX_SOCKET, str(path)) as first:
        address = printed(first)
        one, other = all_who_answer(address, 2)
        first.kill()
        first.wait(PATIENCE)
        os.kill(one, signal.SIGKILL)
        with pytest.raises(ListenError, match="a server is listening there"):
            bind_unix_socket(path)
        os.kill(other, signal.SIGKILL)
        first.communicate()  # until nobody has its output open
    assert path.is_socket()
    with bind_unix_socket(path):
        pass
    assert not path.exists()


# ---- reuse_port


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT here")
def test_two_servers_that_know_nothing_of_each_other_share_a_port_and_both_get_clients() -> None:
    with running(ALONE_ON_A_SHARED_PORT, "0") as one:
        address = printed(one)
        with running(ALONE_ON_A_SHARED_PORT, str(address[1])) as other:
            assert printed(other) == address
            assert all_who_answer(address, 2) == {one.pid, other.pid}
            assert {ask(address) for _ in range(100)} == {one.pid, other.pid}
            with pytest.raises(ListenError, match=f"127.0.0.1:{address[1]}: Address already in use"):
                bind_sockets(address[1], "127.0.0.1")


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT here")
def test_when_one_of_two_servers_ends_the_other_gets_all_clients() -> None:
    with running(ALONE_ON_A_SHARED_PORT, "0") as one:
        address = printed(one)
        with running(ALONE_ON_A_SHARED_PORT, str(address[1])) as other:
            printed(other)
            all_who_answer(address, 2)
            one.terminate()
            assert one.wait(PATIENCE) == 0
            assert {ask(address) for _ in range(50)} == {other.pid}
