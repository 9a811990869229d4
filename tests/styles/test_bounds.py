"""Bounds that bind in every style of server."""

import asyncio
import contextlib
import queue
import select
import socket
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import CloseReason, IOStream
from iostreamsrv.styles import BlockingServer, CallbackServer, SendQueue
from tests.support.peers import Peer
from tests.support.programs import PATIENCE, printed, program
from tests.support.programs import eventually as eventually_seen
from tests.support.servers import Serving
from tests.support.threads import connect, everything, queues
from tests.support.threads import serving as serving_threads
from tests.support.waiting import eventually

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
    with serving_threads(kind, **{option: SOON}) as server, connect(server) as client:
        assert everything(client) == b""
        assert server.ended.wait(PATIENCE)
        assert isinstance(server.error, TimeoutError)
        assert SOON * 0.9 <= server.took < SOON + 1


def test_a_client_of_a_thread_that_takes_nothing_is_closed_after_the_write_timeout() -> None:
    with serving_threads(Writing, write_timeout=SOON, send_buffer_size=4096) as server, connect(server):
        assert server.ended.wait(PATIENCE)
        assert isinstance(server.error, TimeoutError)
        assert SOON * 0.9 <= server.took < 2 * SOON + 1


def test_a_client_of_a_thread_that_takes_a_little_now_and_then_is_served_for_longer_than_the_write_timeout() -> None:
    class Sending(Noting):
        def serve(self, sock: Any) -> None:
            sock.sendall(bytes(200_000))

    timeout = 2 * SOON
    with (
        serving_threads(Sending, write_timeout=timeout, send_buffer_size=4096, receive_buffer_size=4096) as server,
        connect(server) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        received, end = 0, time.monotonic() + 3 * timeout
        while time.monotonic() < end:
            received += len(client.recv(10_000))
            time.sleep(timeout / 20)
        assert received < 200_000
        assert not server.ended.is_set()
        assert received + len(everything(client)) == 200_000
    assert server.error is None


def test_a_client_of_a_thread_that_drips_is_closed_by_the_minimal_rate() -> None:
    with serving_threads(Reading, min_rate=1000, min_rate_window=SOON) as server, connect(server) as client:
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

    with serving_threads(Answering, min_rate=1000, min_rate_window=SOON) as server, connect(server) as client:
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

    with serving_threads(Own, read_timeout=30) as server, connect(server) as client:
        assert everything(client) == b""
        assert isinstance(server.error, TimeoutError)
        assert server.took < 5


SILENT_CLIENTS = """
    import resource, socket, sys, threading, time
    from iostreamsrv.styles import BlockingServer

    class Server(BlockingServer):
        def handle(self, sock, address):
            sock.sendall(b"hello")
            sock.recv(1)

    most = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with Server(threads=int(sys.argv[2]), when_full="wait") as server:
        for _ in range(10):
            server.listen(0, "127.0.0.1")
        print([port for _, port in server.addresses])
        threading.Event().wait()
    """


@pytest.mark.parametrize("most, threads", [(256, 64), (256, 1000), (100, 5)])
def test_silent_clients_of_threads_never_use_the_descriptors_up(most: int, threads: int) -> None:
    with program(SILENT_CLIENTS, str(most), str(threads)) as server, contextlib.ExitStack() as stack:
        ports = printed(server)
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", ports[number % 10]), PATIENCE))
            for number in range(most + 20)
        ]

        def waiting() -> int:
            """Clients that have heard of their thread."""
            return len(select.select(clients, [], [], 0)[0])

        served = min(threads, most // 4)
        eventually_seen(lambda: waiting() >= served, waiting)
        settled = -1
        while settled != (now := len(list(Path(f"/proc/{server.pid}/fd").iterdir()))):
            settled = now
            time.sleep(0.3)
        assert most // 3 < settled < most - 8
        server.kill()
        assert "Errno" not in server.communicate()[1]


# ---- callbacks


def packets(stream: IOStream, data: bytes) -> int:
    """Answers each line on its own."""
    end = data.find(b"\n") + 1
    if end:
        stream.write(data[:end])
    return end


def everything_back(stream: IOStream, data: bytes) -> int:
    stream.write(data)
    return len(data)


async def slowly_back(stream: IOStream, data: bytes) -> int:
    stream.write(data)
    return len(data)


LINES = b"".join(b"%07d" % number * 285 + b"\n" for number in range(4_000))  # 8 MB

NARROW: Any = {"send_buffer_size": 65536, "receive_buffer_size": 65536}


def narrow(peer: Peer) -> Peer:
    """Its kernel holds far less than is sent."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        peer.socket.setsockopt(socket.SOL_SOCKET, option, 65536)
    return peer


every_echo = pytest.mark.parametrize("on_data", [packets, everything_back, slowly_back])


@every_echo
@pytest.mark.gen_test(timeout=30)
async def test_a_late_reader_gets_all_that_its_callbacks_have_written(serving: Serving, on_data: Any) -> None:
    server = serving.started(CallbackServer(on_data=on_data, **NARROW))
    peer = narrow(serving.connect(server))
    sending = asyncio.create_task(peer.send_all(LINES))
    await eventually(lambda: any(stream.queued > 1 << 19 for stream in server.streams))
    (stream,) = server.streams
    received = stream.bytes_read
    await asyncio.sleep(0.1)
    assert stream.bytes_read == received, "nothing more is received"
    assert not sending.done()
    back = asyncio.create_task(peer.receive(len(LINES)))
    assert await back == LINES
    await sending
    assert stream.close_reason is None


@every_echo
@pytest.mark.gen_test(timeout=30)
async def test_a_client_that_reads_nothing_of_its_callbacks_ends_by_the_write_timeout(
    serving: Serving, on_data: Any
) -> None:
    reasons: list[CloseReason] = []
    server = CallbackServer(on_data=on_data, write_timeout=SOON, **NARROW)
    server.events.subscribe(lambda event: reasons.append(event.reason), "close")
    peer = narrow(serving.connect(serving.started(server)))
    sending = asyncio.create_task(peer.send_all(LINES))
    await eventually(lambda: reasons)
    assert reasons == [CloseReason.WRITE_TIMEOUT]
    await asyncio.wait([sending])
    assert isinstance(sending.exception(), ConnectionError)


@pytest.mark.gen_test(timeout=30)
async def test_ticks_and_writes_are_told_of_while_a_client_is_late(serving: Serving) -> None:
    told: list[str] = []
    server = CallbackServer(
        on_data=everything_back,
        on_write=lambda stream: told.append("write"),
        on_tick=lambda stream: told.append("tick"),
        tick_interval=0.02,
        **NARROW,
    )
    peer = narrow(serving.connect(serving.started(server)))
    sending = asyncio.create_task(peer.send_all(LINES))
    await eventually(lambda: any(stream.queued > 1 << 19 for stream in server.streams))
    told.clear()
    await eventually(lambda: told.count("tick") > 3)
    assert "write" not in told
    assert await peer.receive(len(LINES)) == LINES
    await eventually(lambda: "write" in told)
    await sending


# ---- threads


def test_who_leaves_before_anybody_accepts_is_forgotten() -> None:
    with serving_threads(idle_timeout=0.05) as server:
        for _ in range(20):
            with connect(server) as client:
                assert client.recv(1) == b""
        with connect(server) as client:
            client.sendall(b"here")
            with server.accept(PATIENCE) as handle:
                assert handle.recv(4) == b"here"


def test_small_puts_for_a_client_that_reads_nothing_take_no_more_memory_than_the_limit_and_64_KiB() -> None:
    taken: list[tuple[int, int]] = []

    def callback(sending: SendQueue, data: bytes) -> None:
        while not sending.qsize():  # the first future: asyncio's debug mode caches the sources on the stack
            sending.put(b"8 bytes!")
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        with contextlib.suppress(queue.Full):
            while True:
                sending.put(b"8 bytes!")
        taken.append((sending.qsize(), tracemalloc.get_traced_memory()[0] - before))
        tracemalloc.stop()

    with (
        queues(callback, max_write_buffer_size=1 << 17, write_timeout=None, **NARROW) as server,
        connect(server) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"begin")
        eventually_seen(lambda: bool(taken), lambda: taken)
    ((size, memory),) = taken
    assert 1 << 16 < size <= 1 << 17
    assert memory < (1 << 17) + 65536
