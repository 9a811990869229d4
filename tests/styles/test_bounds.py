"""Bounds that bind in every style of server."""

import contextlib
import socket
import threading
import time
from typing import Any

import pytest

from iostreamsrv.styles import BlockingServer
from tests.programs import PATIENCE
from tests.styles.threads import connect, everything, serving

SOON = 0.3
"""Seconds of a timeout that a test waits for."""


class Noting(BlockingServer):
    """Notes what its ``handle`` got, and when."""

    def __init__(self, **options: Any) -> None:
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self.took = 0.0
        super().__init__(**options)

    def handle(self, sock: Any, address: Any) -> None:
        begun = time.monotonic()
        try:
            self.serve(sock)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.took = time.monotonic() - begun
            self.ended.set()

    def serve(self, sock: Any) -> None:
        """To be overridden."""


class Reading(Noting):
    def serve(self, sock: Any) -> None:
        while sock.recv(1024):
            pass


class ReadingLines(Noting):
    def serve(self, sock: Any) -> None:
        for _ in sock.makefile("rb"):
            pass


class Writing(Noting):
    def serve(self, sock: Any) -> None:
        sock.sendall(bytes(100_000_000))


@pytest.mark.parametrize("kind", [Reading, ReadingLines])
@pytest.mark.parametrize("option", ["read_timeout", "idle_timeout"])
def test_a_silent_client_of_a_thread_is_closed_after_the_timeout(kind: type[Noting], option: str) -> None:
    with serving(kind, **{option: SOON}) as server, connect(server) as client:
        assert everything(client) == b""
        assert server.ended.wait(PATIENCE)
        assert isinstance(server.error, TimeoutError)
        assert SOON * 0.9 <= server.took < SOON + 1


def test_a_client_of_a_thread_that_takes_nothing_is_closed_after_the_write_timeout() -> None:
    with serving(Writing, write_timeout=SOON, send_buffer_size=4096) as server, connect(server):
        assert server.ended.wait(PATIENCE)
        assert isinstance(server.error, TimeoutError)
        assert SOON * 0.9 <= server.took < 2 * SOON + 1


def test_a_client_of_a_thread_that_takes_a_little_now_and_then_is_served_for_longer_than_the_write_timeout() -> None:
    class Sending(Noting):
        def serve(self, sock: Any) -> None:
            sock.sendall(bytes(1_000_000))

    with (
        serving(Sending, write_timeout=SOON, send_buffer_size=4096, receive_buffer_size=4096) as server,
        connect(server) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        received, end = 0, time.monotonic() + 5 * SOON
        while time.monotonic() < end:
            received += len(client.recv(10_000))
            time.sleep(SOON / 10)
        assert received < 1_000_000
        assert not server.ended.is_set()
        assert received + len(everything(client)) == 1_000_000
    assert server.error is None


def test_a_client_of_a_thread_that_drips_is_closed_by_the_minimal_rate() -> None:
    with serving(Reading, min_rate=1000, min_rate_window=SOON) as server, connect(server) as client:
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while not server.ended.wait(SOON / 10) and time.monotonic() < begun + PATIENCE:
                client.sendall(b"x")
        assert isinstance(server.error, TimeoutError)
        assert time.monotonic() - begun < 3 * SOON + 1


def test_a_client_of_a_thread_that_is_silent_between_its_requests_is_not_too_slow() -> None:
    class Answering(Noting):
        def serve(self, sock: Any) -> None:
            while data := sock.recv(1024):
                sock.sendall(data)

    with serving(Answering, min_rate=1000, min_rate_window=SOON) as server, connect(server) as client:
        for _ in range(3):
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
            time.sleep(2 * SOON)
        client.shutdown(socket.SHUT_WR)
        assert everything(client) == b""
    assert server.error is None


def test_a_timeout_that_a_thread_sets_itself_goes_before_those_of_the_server() -> None:
    class Own(Noting):
        def serve(self, sock: Any) -> None:
            sock.settimeout(0.05)
            sock.recv(1)

    with serving(Own, read_timeout=30) as server, connect(server) as client:
        assert everything(client) == b""
        assert isinstance(server.error, TimeoutError)
        assert server.took < 5
