"""``examples/proxy.py`` between real clients and real servers."""

import contextlib
import hashlib
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.programs import PATIENCE, PROJECT, Program

EXAMPLE = PROJECT / "examples" / "proxy.py"
ENDED_WELL = (0, "", "")
MEGABYTE = 1 << 20

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
with_socat = pytest.mark.skipif(shutil.which("socat") is None, reason="no socat here: apt-get install socat")
with_nc = pytest.mark.skipif(shutil.which("nc") is None, reason="no nc here: apt-get install netcat-openbsd")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """The server that is forwarded to. Its connections have small buffers, so that they are soon full."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        listener.settimeout(PATIENCE)
        yield listener


def start(host: str, port: int) -> Program:
    return Program(EXAMPLE, "--port", "0", "--to", f"{host}:{port}").listening()


@pytest.fixture
def proxy(listener: socket.socket) -> Iterator[Program]:
    with start(*listener.getsockname()) as program:
        yield program


Connect = Callable[[], tuple[socket.socket, socket.socket]]


@pytest.fixture
def connect(proxy: Program, listener: socket.socket) -> Iterator[Connect]:
    """Gives the two ends of a connection through the proxy: the client's and the server's."""
    with contextlib.ExitStack() as opened:

        def connect() -> tuple[socket.socket, socket.socket]:
            client = opened.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.settimeout(PATIENCE)
            client.connect(proxy.addresses[0])
            server = opened.enter_context(listener.accept()[0])
            server.settimeout(PATIENCE)
            return client, server

        yield connect


@pytest.fixture(params=["the client first", "the server first"])
def ends(request: pytest.FixtureRequest, connect: Connect) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection: each is once the one that does something, and once the other."""
    client, server = connect()
    return (client, server) if request.param == "the client first" else (server, client)


def receive(sock: socket.socket, count: int) -> bytes:
    received = sock.recv(count, socket.MSG_WAITALL)
    assert len(received) == count
    return received


def receive_all(sock: socket.socket) -> Iterator[bytes]:
    while chunk := sock.recv(MEGABYTE):
        yield chunk


def digest(chunks: Iterator[bytes]) -> str:
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(chunk)
    return total.hexdigest()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def wait_until_broken(sock: socket.socket) -> None:
    broken = select.poll()
    broken.register(sock, 0)  # an error is reported unasked, and an end alone is not
    assert broken.poll(PATIENCE * 1000)


def process_id(program: Program) -> int:
    return program._process.pid


def resident_bytes(program: Program) -> int:
    return int(Path(f"/proc/{process_id(program)}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_descriptors(program: Program) -> set[str]:
    return {path.name for path in Path(f"/proc/{process_id(program)}/fd").iterdir()}


def test_the_proxy_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 80


def test_what_either_side_sends_arrives_at_the_other(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    one.sendall(b"question\n")
    assert receive(other, 9) == b"question\n"
    other.sendall(b"answer\n")
    assert receive(one, 7) == b"answer\n"


def test_each_client_has_a_connection_of_its_own(connect: Connect) -> None:
    pairs = [connect() for _ in range(20)]
    for number, (client, _) in enumerate(pairs):
        client.sendall(b"%02d" % number)
    assert [receive(server, 2) for _, server in pairs] == [b"%02d" % number for number in range(20)]


def test_what_a_client_sends_at_once_is_not_lost_while_the_server_is_connected(
    proxy: Program, listener: socket.socket
) -> None:
    with socket.create_connection(proxy.addresses[0], PATIENCE) as client:
        client.sendall(b"early")
        client.shutdown(socket.SHUT_WR)
        server, _ = listener.accept()
        with server:
            server.settimeout(PATIENCE)
            assert b"".join(receive_all(server)) == b"early"
            server.sendall(b"late")
        assert b"".join(receive_all(client)) == b"late"


def test_large_payloads_arrive_unchanged_both_ways_at_once(connect: Connect) -> None:
    ends = connect()
    payloads = [os.urandom(16 * MEGABYTE), os.urandom(16 * MEGABYTE)]

    def send(sock: socket.socket, payload: bytes) -> None:
        sock.sendall(payload)
        sock.shutdown(socket.SHUT_WR)

    arrived: dict[socket.socket, str] = {}
    threads = [threading.Thread(target=send, args=pair) for pair in zip(ends, payloads, strict=True)]
    threads += [
        threading.Thread(target=lambda end: arrived.update({end: digest(receive_all(end))}), args=(end,))
        for end in ends
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = [hashlib.sha256(payload).hexdigest() for payload in payloads]
    assert [arrived[end] for end in reversed(ends)] == sent


def test_an_end_is_passed_on_and_the_other_direction_goes_on(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    one.sendall(b"all I have")
    one.shutdown(socket.SHUT_WR)
    assert b"".join(receive_all(other)) == b"all I have"
    for _ in range(3):
        other.sendall(b"more")
        assert receive(one, 4) == b"more"
    other.shutdown(socket.SHUT_WR)
    assert one.recv(1) == b""


def test_a_reset_is_passed_on(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    one.sendall(b"hello")
    assert receive(other, 5) == b"hello"
    reset(one)
    with pytest.raises(ConnectionResetError):
        other.recv(1)


def test_a_reset_after_an_end_is_passed_on_while_the_other_side_is_silent(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    one, other = ends
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    reset(one)
    wait_until_broken(other)


def test_a_reset_is_passed_on_also_if_the_end_before_it_came_before_the_server_was_connected(
    proxy: Program, listener: socket.socket
) -> None:
    client = socket.create_connection(proxy.addresses[0], PATIENCE)
    client.shutdown(socket.SHUT_WR)
    server, _ = listener.accept()
    with server:
        server.settimeout(PATIENCE)
        assert server.recv(1) == b""
        reset(client)
        wait_until_broken(server)


@on_linux
def test_a_side_that_does_not_read_slows_the_other_down_and_holds_no_memory(
    ends: tuple[socket.socket, socket.socket], proxy: Program
) -> None:
    one, other = ends
    before = resident_bytes(proxy)
    payload, sent = os.urandom(MEGABYTE), 0
    one.setblocking(False)
    while select.select([], [one], [], 0.5)[1]:
        sent += one.send(payload[sent % MEGABYTE :])
        assert sent < 200 * MEGABYTE, "nothing slows it down"
    assert resident_bytes(proxy) - before < 4 * MEGABYTE
    assert sent > 4 * MEGABYTE, "the kernel's buffers took so little that it says nothing"

    one.setblocking(True)
    one.shutdown(socket.SHUT_WR)
    whole, rest = divmod(sent, MEGABYTE)
    assert digest(receive_all(other)) == digest(iter([*[payload] * whole, payload[:rest]]))


def test_a_stalled_client_does_not_hold_up_others(connect: Connect) -> None:
    stalled, server = connect()
    server.setblocking(False)
    while select.select([], [server], [], 0.2)[1]:
        server.send(bytes(MEGABYTE))
    client, other_server = connect()
    client.sendall(b"question")
    assert receive(other_server, 8) == b"question"
    assert receive(stalled, 1) == b"\0"


def test_a_server_that_refuses_closes_the_client_with_one_line_in_the_log(listener: socket.socket) -> None:
    host, port = listener.getsockname()
    with start(host, port) as proxy:
        listener.close()
        with proxy.client() as client:
            assert client.line() == b""
        code, said, complaint = proxy.end()
    assert (code, said) == (0, "")
    assert complaint.count("\n") == 1
    assert complaint.startswith("proxy: ")
    assert f"{host}:{port}" in complaint


def test_a_server_that_cannot_be_resolved_closes_the_client_with_one_line_in_the_log() -> None:
    with start("nowhere.invalid", 80) as proxy:
        with proxy.client() as client:
            assert client.line() == b""
        code, said, complaint = proxy.end()
    assert (code, said) == (0, "")
    assert complaint.count("\n") == 1
    assert "nowhere.invalid" in complaint


@on_linux
def test_connections_that_have_ended_in_whatever_way_leave_nothing_behind(connect: Connect, proxy: Program) -> None:
    def one_of_each() -> None:
        for first in (0, 1):
            for end in (reset, socket.socket.close):
                ends = connect()
                end(ends[first])
                with contextlib.suppress(ConnectionError):
                    assert ends[1 - first].recv(1) == b""
                ends[1 - first].close()

    one_of_each()
    before = open_descriptors(proxy)
    for _ in range(5):
        one_of_each()
    client, server = connect()  # by now the ends before have been seen
    client.sendall(b"x")
    receive(server, 1)
    client.close()
    assert server.recv(1) == b""
    server.close()
    deadline = threading.Event()
    for _ in range(100):
        if len(open_descriptors(proxy)) <= len(before):
            break
        deadline.wait(0.02)
    assert len(open_descriptors(proxy)) <= len(before)


def test_the_other_server_may_have_an_ipv6_address() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with listener, start("[::1]", listener.getsockname()[1]) as proxy, proxy.client() as client:
        listener.settimeout(PATIENCE)
        client.send(b"hello")
        server, _ = listener.accept()
        with server:
            assert receive(server, 5) == b"hello"


@pytest.mark.parametrize("to", ["nonsense", "host:", ":80", "host:http", "host:70000"])
def test_an_address_that_cannot_be_is_refused_before_listening(to: str) -> None:
    with Program(EXAMPLE, "--port", "0", "--to", to) as program:
        code, said, complaint = program.outcome()
    assert (code, said) == (2, "")
    assert "--to" in complaint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_proxy_and_its_connections(number: int, connect: Connect, proxy: Program) -> None:
    client, server = connect()
    client.sendall(b"hello")
    receive(server, 5)
    half_closed, other_server = connect()
    half_closed.shutdown(socket.SHUT_WR)
    assert other_server.recv(1) == b""
    # The server of the one that half-closed is still to answer.
    assert proxy.end(number) == (0, "", "shutting down: 1 client not done within 2 s, and cut off\n")
    for end in (client, server, half_closed):
        assert end.recv(1) == b""


@contextlib.contextmanager
def sha256_server() -> Iterator[tuple[str, int]]:
    """socat, which gives what comes to ``sha256sum``, and answers what that says at the end."""
    command = ["socat", "-d", "-d", "TCP-LISTEN:0,bind=127.0.0.1", "EXEC:sha256sum"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            while not (found := re.search(r"listening on .*?([\d.]+):(\d+)", line := server.stderr.readline())):
                assert line, "socat did not listen"
            yield found[1], int(found[2])
        finally:
            server.kill()


@with_socat
@pytest.mark.parametrize("client", ["socat -t10 - TCP:{}:{}", pytest.param("nc -N {} {}", marks=with_nc)])
def test_socat_gets_all_and_the_end_from_a_client_and_the_client_its_answer(client: str) -> None:
    payload = os.urandom(5 * MEGABYTE)
    with sha256_server() as server, start(*server) as proxy:
        command = client.format(*proxy.addresses[0]).split()
        ended = subprocess.run(command, input=payload, capture_output=True, timeout=PATIENCE)
        assert ended.stdout.decode().startswith(hashlib.sha256(payload).hexdigest())
        assert proxy.end() == ENDED_WELL
