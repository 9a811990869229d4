"""Bounds that bind: what clients can make a server hold, and for how long."""

import contextlib
import signal
import socket
import sys
from typing import Any

import pytest

from iostreamsrv import IOStream, TCPServer
from iostreamsrv.testing import MockClock
from tests.support.programs import Program, program
from tests.support.servers import Serving, answers
from tests.support.tiers import crossed

SLACK = 65536
"""Bytes that a stream may take beside what its limit says."""

SILENT_CLIENTS = """
    import asyncio, contextlib, logging, os, resource, socket, ssl, sys
    from iostreamsrv import StreamBufferFullError, TCPServer

    logging.disable(logging.WARNING)  # so many writes at once block the loop

    what, secure, count, size, limit = sys.argv[1], sys.argv[2] == "tls", *map(int, sys.argv[3:])
    if secure:
        from tests.support.peers import TLSEnd, tls_contexts
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    class Server(TCPServer):
        async def handle_stream(self, stream, address):
            await stream.read_until_close()

    def connect(server):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.addresses[0])
        return TLSEnd(client, tls_contexts()[1]) if secure else client

    async def until(condition):
        while not condition():
            await asyncio.sleep(0.001)

    held = []

    def write(server):
        for stream in server.streams:
            with contextlib.suppress(StreamBufferFullError):
                while True:
                    stream.write(bytes([1]) * size)

    def write_and_hold(server):
        for stream in server.streams:
            with contextlib.suppress(StreamBufferFullError):
                while True:
                    held.append(stream.write(bytes([1]) * size))

    def broadcast(server):
        number = 0
        while server.broadcast(b"%0*d" % (size, number)).result():
            number += 1

    async def main():
        context = tls_contexts()[0] if secure else None
        server = Server(context, max_write_buffer_size=limit, send_buffer_size=4096, write_timeout=None)
        server.listen(0, "127.0.0.1")
        clients = []
        for number in range(count):
            clients.append(connect(server))
            if secure:
                await until(clients[-1].handshake)
        await until(lambda: [stream.reading() for stream in server.streams].count(True) == count)
        before = resident()
        globals()[what](server)
        print((resident() - before) // count, min(stream.queued for stream in server.streams))
        server.stop()
        for stream in server.streams:
            stream.abort()
        for client in clients:
            client.drop() if secure else client.close()

    asyncio.run(main())
    """
"""A server whose clients read nothing: how many bytes of memory each takes when its queue is full, and how many bytes
are queued at least."""

measured = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")


def filled(what: str, transport: str, count: int, size: int, limit: int) -> tuple[int, int]:
    """For each client: bytes of memory, and bytes that are queued."""
    with program(SILENT_CLIENTS, what, transport, *map(str, (count, size, limit))) as process:
        said, complaints = process.communicate()
    assert not complaints, complaints
    taken, queued = map(int, said.split())
    return taken, queued


@measured
@pytest.mark.parametrize(("size", "transport"), crossed([1, 100, 10_000], ["tcp", "tls"]))
def test_writes_that_nobody_awaits_take_no_more_memory_than_the_limit_and_64_KiB(size: int, transport: str) -> None:
    taken, queued = filled("write_and_hold", transport, 20, size, 1 << 18)
    assert taken <= (1 << 18) + SLACK
    assert queued > 1000


@measured
@pytest.mark.parametrize("size", [5, pytest.param(100, marks=pytest.mark.second_tier)])
def test_small_writes_whose_futures_are_thrown_away_fill_the_queue_with_bytes(size: int) -> None:
    taken, queued = filled("write", "tcp", 5, size, 1 << 18)
    assert taken <= (1 << 18) + SLACK
    assert queued > (1 << 17)


@measured
@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_clients_that_read_nothing_share_the_small_broadcasts_that_wait_for_them(transport: str) -> None:
    taken, queued = filled("broadcast", transport, 20, 100, 1 << 18)
    assert queued > 1 << 17
    assert taken < SLACK  # each a tenth of its bytes; and what all share


@measured
@pytest.mark.parametrize("size", [7, pytest.param(63, marks=pytest.mark.second_tier)])
def test_the_smallest_broadcasts_are_copied_and_take_no_more_memory_than_the_limit_and_64_KiB(size: int) -> None:
    taken, queued = filled("broadcast", "tcp", 20, size, 1 << 17)
    assert taken <= (1 << 17) + SLACK
    assert queued > 1 << 16


# ---- handlers that block the loop


def blocking(serving: Serving, clock: MockClock, seconds: float, **timeouts: float) -> TCPServer:
    """A server whose handler blocks the loop for so long, for each line."""

    async def blocks(stream: IOStream, address: Any) -> None:
        while True:
            line = await stream.read_until(b"\n")
            clock.block(seconds)
            await stream.write(line)

    return serving.with_handler(blocks, **timeouts)


@pytest.mark.parametrize(
    "timeouts",
    [{"idle_timeout": 1.0}, {"read_timeout": 1.0}, {"min_rate": 100.0, "min_rate_window": 1.0}],
    ids=["idle", "read", "rate"],
)
@pytest.mark.parametrize("blocked", [0.7, 0.9])
@pytest.mark.gen_test
async def test_timeouts_strike_within_twice_their_time_while_handlers_block_the_loop_back_to_back(
    clock: MockClock, serving: Serving, timeouts: dict[str, float], blocked: float
) -> None:
    server = blocking(serving, clock, blocked, **timeouts)
    busy, slow = serving.connect(server), serving.connect(server)
    slow.send(b"half of ")
    begun = clock.current_time()
    for _ in range(int(10 / blocked)):
        assert await answers(busy)
        if slow.has_input():
            break
    # Which is late by a look, and begins with two.
    assert 1 <= clock.current_time() - begun < 2 * 1 + 5 * blocked
    assert slow.has_input()
    assert await slow.receive_all() == b""


@pytest.mark.gen_test
async def test_nobody_is_closed_for_one_long_sleep_among_many_short_ones(clock: MockClock, serving: Serving) -> None:
    server = blocking(serving, clock, 1.5, idle_timeout=1, read_timeout=1)
    one, other = serving.connect(server), serving.connect(server)
    for _ in range(2):
        other.send(b"line\n")
        assert await answers(one)
        assert await other.receive(5) == b"line\n"


# ---- descriptors


ENDING = """
import resource, iostreamsrv

class Slow(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        await stream.write(b"hello\\n")
        await stream.read_until_close()

resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
server = Slow(max_connections=5, drain_timeout=2)
server.listen(0, "127.0.0.1")
print("listening on %s:%d" % server.addresses[0])
iostreamsrv.run(server)
"""


def test_a_shutdown_takes_no_more_of_those_who_queue_than_there_are_descriptors() -> None:
    with Program("-c", ENDING).listening() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(5)]
        assert [client.line() for client in clients] == [b"hello\n"] * 5
        queued = [stack.enter_context(server.client()) for _ in range(120)]
        server.wait_for("new ones wait")
        server.send_signal(signal.SIGTERM)
        for client in clients:
            client.socket.shutdown(socket.SHUT_WR)
        assert queued[0].line() == b"hello\n"
        _, _, complaints = server.outcome()
        assert "Errno" not in complaints
