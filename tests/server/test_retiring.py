"""A server that leaves new clients to other processes, and serves those that it has."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tornado.ioloop import IOLoop

import iostreamsrv
from tests.support.waiting import eventually

pytestmark = pytest.mark.gen_test


class Echo(iostreamsrv.TCPServer):
    """Answers lines; "slow" in parts, until ``go`` is set. Knows why its clients have left."""

    def __init__(self, **options: Any) -> None:
        super().__init__(drain_idle=0.05, **options)
        self.go = asyncio.Event()
        self.left: list[tuple[float, int, str]] = []
        self.names: dict[int, str] = {}

    async def handle_stream(self, stream: iostreamsrv.IOStream, address: Any) -> None:
        while True:
            line = await stream.read_until(b"\n")
            if line == b"slow\n":
                await self.go.wait()
            await stream.write(line)

    def handle_close(self, stream: iostreamsrv.IOStream, reason: Any) -> None:
        self.left.append((asyncio.get_running_loop().time(), stream.remote_address[1], str(reason)))


class Client:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.port = self.socket.getsockname()[1]

    async def ask(self, line: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.socket, line)
        return await loop.sock_recv(self.socket, 100)

    def close(self) -> None:
        self.socket.close()


class Service:
    """A server, whose listener another process has as well, and its clients."""

    def __init__(self, **options: Any) -> None:
        self.listener = iostreamsrv.bind_sockets(0, "127.0.0.1")[0]
        self.server = Echo(**options)
        self.server.add_socket(self.listener.dup())
        self.port = self.listener.getsockname()[1]
        self.clients: list[Client] = []

    async def connect(self, count: int) -> list[Client]:
        new = [Client(self.port) for _ in range(count)]
        self.clients += new
        await eventually(lambda: len(self.server.streams) == len(self.clients))
        return new


@pytest.fixture
def service(io_loop: IOLoop) -> Iterator[Any]:
    made = []

    def make(**options: Any) -> Service:
        made.append(Service(**options))
        return made[0]

    yield make
    for service in made:
        for client in service.clients:
            client.close()
        service.server.stop()
        service.listener.close()
        io_loop.run_sync(service.server.close_all_connections)


@contextlib.asynccontextmanager
async def retiring(server: Echo, **pace: Any) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.ensure_future(server.retire(**pace))
    await asyncio.sleep(0)
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


async def test_a_retiring_server_leaves_the_backlog_to_others_and_serves_its_clients(service: Any) -> None:
    it = service()
    client, silent = await it.connect(2)
    it.server.suspend()
    queued = Client(it.port)
    async with retiring(it.server, timeout=None) as task:
        late = Client(it.port)
        await asyncio.sleep(0.2)
        assert await client.ask(b"one\n") == b"one\n"
        assert not it.server.draining
        assert it.server.addresses == []
        assert len(it.server.streams) == 2
        for each in queued, late:
            connection, address = it.listener.accept()
            assert address == each.socket.getsockname()
            connection.close()
            each.close()
        assert await silent.ask(b"still here\n") == b"still here\n"
        client.close()
        await asyncio.sleep(0.1)
        assert not task.done()
        silent.close()
        await asyncio.wait_for(task, 5)
    assert [reason for _, _, reason in it.server.left] == ["eof", "eof"]


async def test_without_clients_it_ends_at_once(service: Any) -> None:
    it = service()
    await asyncio.wait_for(it.server.retire(), 0.04)


async def test_serve_forever_returns_when_the_last_client_has_left(service: Any) -> None:
    it = service()
    (client,) = await it.connect(1)
    serving = asyncio.ensure_future(it.server.serve_forever())
    await asyncio.sleep(0.01)
    async with retiring(it.server):
        await asyncio.sleep(0.1)
        assert await client.ask(b"one\n") == b"one\n"
        assert not serving.done()
        client.close()
        await asyncio.wait_for(serving, 5)


async def test_at_the_timeout_clients_are_closed_at_a_steady_rate(service: Any) -> None:
    it = service()
    await it.connect(40)
    start = asyncio.get_running_loop().time()
    async with retiring(it.server, timeout=0.3, rate=0.5) as task:
        await asyncio.wait_for(task, 10)
    left = sorted(at - start for at, _, _ in it.server.left)
    assert {reason for _, _, reason in it.server.left} == {"shutdown"}
    assert left[0] > 0.3, "none before the timeout"
    assert 2 < left[-1] < 2.8
    for at in left:
        assert sum(at <= other < at + 1 for other in left) <= 22  # 20 in a second, as seen every 50 ms


async def test_those_that_were_silent_longest_are_closed_first_and_busy_ones_when_they_have_answered(
    service: Any,
) -> None:
    it = service()
    clients = await it.connect(6)
    busy, *others = clients
    slow = asyncio.ensure_future(busy.ask(b"slow\n"))
    for client in reversed(others):
        await client.ask(b"hello\n")
        await asyncio.sleep(0.02)
    async with retiring(it.server, timeout=0, rate=1) as task:
        await eventually(lambda: len(it.server.streams) == 1)
        assert [port for _, port, _ in it.server.left] == [client.port for client in reversed(others)]
        await asyncio.sleep(0.3)
        assert not task.done()
        it.server.go.set()
        assert await slow == b"slow\n"
        await asyncio.wait_for(task, 2)
    assert await asyncio.get_running_loop().sock_recv(busy.socket, 1) == b""
    assert it.server.left[-1][1:] == (busy.port, "shutdown")


async def test_busy_clients_that_are_not_chosen_yet_go_on(service: Any) -> None:
    it = service()
    clients = await it.connect(10)
    answered = 0

    async def chat(client: Client) -> None:
        nonlocal answered
        while await client.ask(b"again\n"):
            answered += 1
            await asyncio.sleep(0.001)

    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(10):
            start = asyncio.get_running_loop().time()
            async with retiring(it.server, timeout=0, rate=0.5) as task:
                await asyncio.gather(*map(chat, clients), return_exceptions=True)
                await task
    left = sorted(at - start for at, _, _ in it.server.left)
    assert len(left) == 10
    assert left[-1] > 1.7
    assert answered > 500
    for at in left:
        assert sum(at <= other < at + 0.9 for other in left) <= 6


@pytest.mark.parametrize("pushes", [True, False])
async def test_clients_that_are_never_answered_are_cut_off_and_paced(service: Any, pushes: bool) -> None:
    it = service(drain_timeout=0.3)
    last: list[bytes] = []

    async def handle(stream: Any, address: Any) -> None:
        try:
            while True:
                if pushes:
                    await stream.write(b"push\n")
                await asyncio.sleep(0.01)
        finally:
            await stream.write(b"bye\n")
            last.append(b"bye")

    it.server.handle_stream = handle
    await it.connect(4)
    start = asyncio.get_running_loop().time()
    async with retiring(it.server, timeout=0.2, rate=0.5) as task:
        await asyncio.wait_for(task, 8)
    left = sorted(at - start for at, _, _ in it.server.left)
    assert {reason for _, _, reason in it.server.left} == {"shutdown"}
    assert len(last) == 4
    assert left[0] > 0.9, "0.2 s, then half a second for the first of two a second, and 0.3 s for its answer"
    assert left[-1] - left[0] > 1.2, "paced"
    loop = asyncio.get_running_loop()
    for client in it.clients:
        received = b""
        while data := await loop.sock_recv(client.socket, 1000):
            received += data
        assert received.endswith(b"bye\n")


async def test_without_drain_timeout_no_handler_is_cut_off(service: Any) -> None:
    it = service(drain_timeout=None)
    (client,) = await it.connect(1)
    slow = asyncio.ensure_future(client.ask(b"slow\n"))
    async with retiring(it.server, timeout=0, rate=1) as task:
        await asyncio.sleep(1.5)
        assert not task.done()
        it.server.go.set()
        assert await slow == b"slow\n"
        await asyncio.wait_for(task, 3)


async def test_the_log_counts_its_clients(service: Any, caplog: pytest.LogCaptureFixture) -> None:
    it = service()
    await it.connect(1)
    with caplog.at_level("INFO"):
        async with retiring(it.server, timeout=None):
            pass
    assert "retiring: 1 client may stay for as long as they like" in caplog.text


async def test_another_call_sets_another_pace(service: Any) -> None:
    it = service()
    await it.connect(3)
    async with retiring(it.server) as task:
        await asyncio.sleep(0.1)
        assert not it.server.left
        again = asyncio.ensure_future(it.server.retire(timeout=0, rate=1))
        await asyncio.wait_for(asyncio.gather(again, task), 5)
    assert len(it.server.left) == 3


async def test_a_shutdown_takes_over(service: Any) -> None:
    it = service()
    client, other = await it.connect(2)
    slow = asyncio.ensure_future(client.ask(b"slow\n"))
    async with retiring(it.server) as task:
        await asyncio.sleep(0.1)
        ending = asyncio.ensure_future(it.server.shutdown(5))
        await eventually(lambda: len(it.server.streams) == 1)
        assert it.server.draining
        await asyncio.sleep(0.1)
        assert not task.done()
        it.server.go.set()
        await asyncio.wait_for(asyncio.gather(ending, task), 5)
        assert await slow == b"slow\n"
    del other
    await asyncio.wait_for(it.server.retire(), 1)


async def test_in_a_shutdown_it_waits_for_that(service: Any) -> None:
    it = service()
    await it.connect(1)
    ending = asyncio.ensure_future(it.server.shutdown(5))
    await asyncio.sleep(0)
    await it.server.retire(timeout=100)
    assert not it.server.streams
    await ending


async def test_if_cancelled_the_clients_stay(service: Any) -> None:
    it = service()
    (client,) = await it.connect(1)
    async with retiring(it.server, timeout=0, rate=0.001):
        await asyncio.sleep(0.2)
    assert await client.ask(b"one\n") == b"one\n"
    assert await client.ask(b"two\n") == b"two\n"
    it.server.add_socket(it.listener.dup())
    await it.connect(1)


async def test_a_handler_may_call_it(service: Any) -> None:
    it = service()

    async def retire(stream: Any, address: Any) -> None:
        await it.server.retire()
        await stream.write(b"done\n")

    it.server.handle_stream = retire
    (client,) = await it.connect(1)
    assert await asyncio.get_running_loop().sock_recv(client.socket, 9) == b"done\n"


@pytest.mark.parametrize(
    "wrong", [{"timeout": -1}, {"timeout": "1"}, {"rate": 0}, {"rate": 1.1}, {"rate": None}, {"timeout": True}]
)
async def test_an_invalid_pace_is_refused_and_the_server_listens_on(service: Any, wrong: Any) -> None:
    it = service()
    with pytest.raises(iostreamsrv.OptionError, match=next(iter(wrong))):
        await it.server.retire(**wrong)
    assert it.server.addresses
