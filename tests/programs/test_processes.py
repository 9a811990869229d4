"""A server in several processes."""

import contextlib
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import ListenError, bind_sockets, bind_unix_socket
from iostreamsrv.certificates import self_signed
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
        start_new_session=True,  # to find the workers by
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
        first.send_signal(signal.SIGSTOP)  # so that it replaces nobody
        os.kill(one, signal.SIGKILL)
        with pytest.raises(ListenError, match="a server is listening there"):
            bind_unix_socket(path)
        os.kill(other, signal.SIGKILL)
        first.kill()
        first.communicate()  # until nobody has its output open
    assert path.is_socket()
    with bind_unix_socket(path):
        pass
    assert not path.exists()


# ---- the end of the first process

ENDING = """
import asyncio, os, sys, time
import iostreamsrv

class Server(iostreamsrv.TCPServer):
    drain_timeout, drain_idle = 1.5, 0.1
    async def handle_stream(self, stream, address):
        try:
            while True:
                line = await stream.read_until(b"\\n")
                if line == b"block\\n":
                    time.sleep(60)
                if line == b"slow\\n":
                    await asyncio.sleep(0.7)
                if line == b"long\\n":
                    await asyncio.sleep(60)
                await stream.write(b"%d\\n" % os.getpid())
        except BaseException as error:
            if not isinstance(error, iostreamsrv.StreamClosedError):
                await stream.write(b"cancelled\\n")
            raise

server = Server()
server.bind(0, "127.0.0.1")
print(server.addresses[0], flush=True)
server.start(2, max_restarts=3)
iostreamsrv.run(server)
"""
"""Two workers, which tell their pid."""


class Asking:
    """A client of a worker, and what it has asked."""

    def __init__(self, address: Any, question: bytes = b"?") -> None:
        self.socket = socket.create_connection(address, PATIENCE)
        self._lines = self.socket.makefile("rb")
        if question == b"?":
            self.pid = int(self.ask(b"?\n"))

    def ask(self, line: bytes) -> bytes:
        self.socket.sendall(line)
        return self.line()

    def line(self) -> bytes:
        return self._lines.readline()

    def __enter__(self) -> "Asking":
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self.socket.close()


@contextlib.contextmanager
def two_clients(address: Any) -> Iterator[tuple[Asking, Asking]]:
    """A client of each worker."""
    with contextlib.ExitStack() as opened:
        clients: dict[int, Asking] = {}
        for _ in range(1000):
            client = opened.enter_context(Asking(address))
            clients.setdefault(client.pid, client)
            if len(clients) == 2:
                break
            time.sleep(0.01)  # one of them may take a while to start
        one, other = clients.values()
        yield one, other


def is_gone(pid: int) -> bool:
    """Whether a process has ended, and its parent knows."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def seconds_until(condition: Any) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + PATIENCE / 2
        time.sleep(0.01)
    return time.monotonic() - start


def check_ended(first: "subprocess.Popen[str]", address: Any, workers: set[int], code: int = 0) -> None:
    """All have ended, without a traceback, and the port is free."""
    assert first.wait(PATIENCE) == code
    seconds_until(lambda: all(map(is_gone, workers)))
    assert first.stderr is not None
    said = first.stderr.read()
    assert "Traceback" not in said, said
    bind_sockets(address[1], address[0])[0].close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("group", [False, True], ids=["alone", "group"])
def test_a_signal_to_the_first_process_lets_all_clients_finish(number: signal.Signals, group: bool) -> None:
    with running(ENDING) as first:
        address = printed(first)
        with two_clients(address) as (one, other):
            for client in one, other:
                client.socket.sendall(b"slow\n")
            time.sleep(0.1)
            (os.killpg if group else os.kill)(first.pid, number)
            assert one.line() == b"%d\n" % one.pid
            assert other.line() == b"%d\n" % other.pid
            assert one.line() == other.line() == b""
            check_ended(first, address, {one.pid, other.pid})


@pytest.mark.parametrize(
    "numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT), (signal.SIGQUIT,)]
)
@pytest.mark.parametrize("group", [False, True], ids=["alone", "group"])
def test_a_second_signal_or_sigquit_ends_all_at_once(numbers: list[signal.Signals], group: bool) -> None:
    with running(ENDING) as first:
        address = printed(first)
        with two_clients(address) as (one, other):
            for client in one, other:
                client.socket.sendall(b"long\n")
            time.sleep(0.1)
            for number in numbers:
                (os.killpg if group else os.kill)(first.pid, number)
                time.sleep(0.3)
            assert seconds_until(lambda: is_gone(one.pid) and is_gone(other.pid)) < 0.7
            check_ended(first, address, {one.pid, other.pid})


def test_when_the_first_process_is_killed_the_workers_let_their_clients_finish_and_end() -> None:
    with running(ENDING) as first:
        address = printed(first)
        with two_clients(address) as (one, other):
            one.socket.sendall(b"slow\n")
            time.sleep(0.1)
            first.kill()
            assert one.line() == b"%d\n" % one.pid
            check_ended(first, address, {one.pid, other.pid}, -signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_whose_loop_is_blocked_ends_as_well(number: signal.Signals) -> None:
    with running(ENDING) as first:
        address = printed(first)
        with two_clients(address) as (one, other):
            one.socket.sendall(b"block\n")
            time.sleep(0.1)
            first.send_signal(number)
            assert seconds_until(lambda: is_gone(other.pid)) < 1.5
            assert 3 < seconds_until(lambda: is_gone(one.pid)) + 1.5 < 5.5, "drain_timeout and two seconds"
            check_ended(first, address, {one.pid, other.pid}, 0 if number == signal.SIGTERM else -number)


@pytest.mark.parametrize("group", [False, True], ids=["alone", "group"])
def test_sighup_keeps_all_processes_and_their_clients(group: bool) -> None:
    with running(ENDING) as first:
        address = printed(first)
        with two_clients(address) as (one, other):
            for _ in range(3):
                (os.killpg if group else os.kill)(first.pid, signal.SIGHUP)
                time.sleep(0.1)
            assert one.ask(b"?\n") == b"%d\n" % one.pid
            assert other.ask(b"?\n") == b"%d\n" % other.pid
            assert first.poll() is None
            first.terminate()
            check_ended(first, address, {one.pid, other.pid})


WITH_TLS = ENDING.replace("Server()", "Server({'certfile': sys.argv[1], 'keyfile': sys.argv[2]})")


def test_sighup_has_each_worker_read_its_certificates_again(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("cert.pem", "key.pem")]

    def use_another() -> None:
        pair = self_signed("localhost")
        Path(paths[0]).write_bytes(pair.certificate)
        Path(paths[1]).write_bytes(pair.key)

    def shown() -> dict[int, bytes]:
        """The certificate that each worker shows."""
        found = {}
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for _ in range(100):
            with context.wrap_socket(socket.create_connection(address, PATIENCE)) as client:
                client.sendall(b"?\n")
                found[int(client.recv(100))] = client.getpeercert(True) or b""
            if len(found) == 2:
                break
        return found

    use_another()
    with running(WITH_TLS, *paths) as first:
        address = printed(first)
        before = shown()
        assert len(before) == 2
        use_another()
        assert shown() == before
        first.send_signal(signal.SIGHUP)
        seconds_until(lambda: not set(shown().values()) & set(before.values()))
        assert shown().keys() == before.keys()
        first.terminate()
        check_ended(first, address, set(before))


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGTTIN", "SIGTTOU"])
def test_what_only_serve_does_is_said_in_one_line(name: str) -> None:
    with running(ENDING) as first:
        address = printed(first)
        workers = all_who_answer_lines(address)
        first.send_signal(getattr(signal, name))
        time.sleep(0.2)
        assert all_who_answer_lines(address) == workers
        first.terminate()
        assert first.wait(PATIENCE) == 0
        assert first.stderr is not None
        (line,) = first.stderr.read().splitlines()
        assert name in line
        assert "iostreamsrv serve" in line


def all_who_answer_lines(address: Any) -> set[int]:
    with two_clients(address) as clients:
        return {client.pid for client in clients}


def test_a_worker_that_dies_is_replaced_but_not_more_often_than_allowed() -> None:
    with running(ENDING) as first:
        address = printed(first)
        known = all_who_answer_lines(address)
        for _ in range(3):
            victim = min(known)
            os.kill(victim, signal.SIGKILL)
            seconds_until(lambda victim=victim: is_gone(victim))
            known |= all_who_answer_lines(address)
            known.remove(victim)
            assert len(known) == 2
        os.kill(min(known), signal.SIGKILL)
        assert first.wait(PATIENCE) == 1
        seconds_until(lambda: all(map(is_gone, known)))
        assert first.stderr is not None
        assert "too many processes have died" in first.stderr.read()


# ---- evenly, and within limits for all

HOLDING = """
import asyncio, os, sys
import iostreamsrv

class Server(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        await stream.write(b"%d\\n" % os.getpid())
        await stream.read_until_close()

server = Server(drain_idle=0.05, **eval(sys.argv[1]))
server.bind(0, "127.0.0.1")
print(server.addresses[0], flush=True)
server.start(4)
iostreamsrv.run(server)
"""


def served_by(clients: list[socket.socket], seconds: float) -> dict[socket.socket, int]:
    """Who has said something within that time, and which process has served it."""
    found = {}
    end = time.monotonic() + seconds
    while len(found) < len(clients) and (left := end - time.monotonic()) > 0:
        waiting = [client for client in clients if client not in found]
        for client in select.select(waiting, [], [], left)[0]:
            said = client.recv(100)
            found[client] = int(said or 0)
    return found


def wait_for_four(address: Any) -> None:
    """Return when all workers accept, and have no clients."""
    found: set[bytes] = set()
    with contextlib.ExitStack() as asked:
        for _ in range(90):
            found.add(asked.enter_context(Asking(address, b"")).line())
            if len(found) == 4:
                break
            time.sleep(0.02)
    assert len(found) == 4
    time.sleep(0.3)


@pytest.fixture
def opened() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("pause", [0.005, 0.0], ids=["slow", "burst"])
def test_four_workers_have_about_the_same_number_of_clients(pause: float, opened: contextlib.ExitStack) -> None:
    with running(HOLDING, "{}") as first:
        address = printed(first)
        wait_for_four(address)
        clients = []
        for _ in range(200):
            clients.append(opened.enter_context(socket.create_connection(address, PATIENCE)))
            time.sleep(pause)
        found = served_by(clients, PATIENCE / 2)
        assert len(found) == 200
        counts = Counter(found.values())
        assert len(counts) == 4
        assert max(counts.values()) - min(counts.values()) <= 20, counts


def test_max_connections_is_for_all_workers(opened: contextlib.ExitStack) -> None:
    with running(HOLDING, "{'max_connections': 100}") as first:
        address = printed(first)
        wait_for_four(address)
        clients = [opened.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(400)]
        gone = 0
        for _ in range(3):
            served = served_by(clients, 1.5)
            assert 100 <= len(served) <= 103
            assert len(set(served.values())) == 4
            for client in served:
                clients.remove(client)
                client.close()
            gone += len(served)
        assert len(served_by(clients, 5)) == 400 - gone


def test_max_connections_per_ip_is_for_all_workers(opened: contextlib.ExitStack) -> None:
    with running(HOLDING, "{'max_connections_per_ip': 20}") as first:
        address = printed(first)
        clients = []
        for _ in range(150):
            clients.append(opened.enter_context(socket.create_connection(address, PATIENCE)))
            time.sleep(0.005)  # so that each worker gets some
        found = served_by(clients, PATIENCE / 2)
        assert len(found) == 150
        assert 20 <= sum(pid > 0 for pid in found.values()) <= 23
        with socket.create_connection(address, PATIENCE, ("127.0.0.2", 0)) as other:
            assert served_by([other], PATIENCE)[other]


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
