"""Several processes that serve the same clients: evenly, and within limits that hold for all."""

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

import iostreamsrv
from iostreamsrv.certificates import self_signed
from iostreamsrv.server import scoreboard
from iostreamsrv.server.base import core_of
from iostreamsrv.server.scoreboard import Row, Scoreboard, State
from iostreamsrv.server.workers import LOOK_AT_ALL, SLACK, STALE, WorkerSiblings
from tests.support.waiting import eventually

pytestmark = pytest.mark.gen_test

LONGEST_WAIT = "iostreamsrv.server.siblings.LONGEST_WAIT"
"""Where tests make it longer, so that a busy machine does not decide them."""


@pytest.fixture
def board(io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scoreboard]:
    monkeypatch.setattr(scoreboard, "_new_file", lambda size: None)  # a mapping holds a descriptor until it is freed
    board = Scoreboard.create(4)
    yield board
    board.close()


class Silent(iostreamsrv.TCPServer):
    """Keeps its clients until they close."""

    async def handle_stream(self, stream: iostreamsrv.IOStream, address: Any) -> None:
        while True:
            await stream.write(await stream.read_until(b"\n"))


class Clients:
    """Connections to a port, and those of a server that has accepted them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.open: list[socket.socket] = []

    def connect(self, count: int = 1, source: str = "127.0.0.1") -> list[socket.socket]:
        new = []
        for _ in range(count):
            client = socket.socket()
            client.bind((source, 0))
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", self.port))
            new.append(client)
        self.open += new
        return new

    def close(self) -> None:
        for client in self.open:
            client.close()


def other(board: Scoreboard, index: int = 1, open: int = 0) -> Row:
    """A sibling that is ready."""
    row = board.row(index)
    WorkerSiblings(board, index).listening(asyncio.get_running_loop(), lambda: (0, 0))
    row.open = open
    return row


@pytest.fixture
def serving(io_loop: IOLoop, board: Scoreboard) -> Iterator[Any]:
    """Makes servers on one listener, each with a row of its own."""
    listener = iostreamsrv.bind_sockets(0, "127.0.0.1")[0]
    servers: list[iostreamsrv.TCPServer] = []
    clients = Clients(listener.getsockname()[1])

    def serve(**options: Any) -> tuple[Silent, Clients]:
        server = Silent(**options)
        server.add_socket(listener.dup())
        core_of(server).join(WorkerSiblings(board, len(servers)))
        servers.append(server)
        return server, clients

    yield serve
    clients.close()
    for server in servers:
        server.stop()
        io_loop.run_sync(server.close_all_connections)
    listener.close()


# ---- whose turn it is


@pytest.mark.parametrize(
    "own, least, may", [(0, 0, True), (5, 0, True), (6, 0, False), (17, 10, False), (16, 10, True), (56, 46, True)]
)
async def test_a_worker_may_have_six_and_an_eighth_more_than_the_least(
    board: Scoreboard, own: int, least: int, may: bool
) -> None:
    siblings = WorkerSiblings(board, 0)
    other(board, 1, least)
    other(board, 2, least + 100)
    assert siblings.may_accept(own) == may


async def test_a_worker_far_behind_is_noticed_and_a_new_one_at_once(
    io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoreboard, "_new_file", lambda size: None)  # as above
    board = Scoreboard.create(256)
    try:
        mine = WorkerSiblings(board, 0)
        other(board, 1, open=100)
        assert mine.may_accept(50)
        other(board, 2, open=10)
        assert not mine.may_accept(50)
        board.row(2).state = State.RETIRING
        other(board, 200, open=10)
        await asyncio.sleep(LOOK_AT_ALL / 1e9)
        assert not mine.may_accept(50)
    finally:
        board.close()


async def test_who_does_not_take_clients_does_not_count(board: Scoreboard) -> None:
    siblings = WorkerSiblings(board, 0)
    assert siblings.may_accept(1000)
    row = other(board)
    assert not siblings.may_accept(1000)
    for state in State:
        row.state = state
        assert siblings.may_accept(1000) == (state != State.READY)
    row.state = State.READY
    assert not siblings.may_accept(1000)
    row.heartbeat -= STALE
    assert siblings.may_accept(1000)


async def test_the_heart_of_a_server_beats_while_its_loop_runs(board: Scoreboard, serving: Any) -> None:
    server, _ = serving()
    row = board.row(0)
    assert row.state == State.READY
    first = row.heartbeat
    await eventually(lambda: row.heartbeat > first)
    server.suspend()
    server.stop()
    assert row.state == State.RETIRING
    second = row.heartbeat
    await eventually(lambda: row.heartbeat > second)
    server.listen(0, "127.0.0.1")
    assert row.state == State.READY


async def test_a_client_is_left_to_the_sibling_with_fewer_but_not_for_long(
    board: Scoreboard, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LONGEST_WAIT, 0.5)
    server, clients = serving()
    clients.connect(SLACK)
    await eventually(lambda: len(server.streams) == SLACK)
    other(board)  # which takes nobody
    clients.connect()
    start = asyncio.get_running_loop().time()
    await asyncio.sleep(0.05)
    assert len(server.streams) == SLACK
    await eventually(lambda: len(server.streams) == SLACK + 1)
    assert asyncio.get_running_loop().time() - start > 0.49


async def test_when_the_sibling_has_caught_up_the_client_is_accepted_at_once(
    board: Scoreboard, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LONGEST_WAIT, 3600)  # what ends the wait is the sibling
    server, clients = serving()
    clients.connect(SLACK)
    await eventually(lambda: len(server.streams) == SLACK)
    row = other(board)
    clients.connect()
    await asyncio.sleep(0.05)
    assert len(server.streams) == SLACK
    row.open = 5
    await eventually(lambda: len(server.streams) == SLACK + 1)


async def test_the_loop_does_not_spin_while_a_client_is_left_to_others(board: Scoreboard, serving: Any) -> None:
    server, clients = serving()
    clients.connect(SLACK)
    await eventually(lambda: len(server.streams) == SLACK)
    other(board)
    asked = 0
    siblings = core_of(server).connections.limits.siblings
    may_accept = siblings.may_accept  # type: ignore[union-attr]

    def counted(open: int) -> bool:
        nonlocal asked
        asked += 1
        return may_accept(open)

    siblings.may_accept = counted  # type: ignore[union-attr, method-assign]
    clients.connect()
    await eventually(lambda: len(server.streams) == SLACK + 1)
    assert 0 < asked < 20


async def test_a_stuck_sibling_holds_up_a_rush_only_for_a_moment(board: Scoreboard, serving: Any) -> None:
    server, clients = serving()
    other(board)
    siblings = core_of(server).connections.limits.siblings
    waited_in_vain, waits = siblings.waited_in_vain, 0  # type: ignore[union-attr]

    def counted() -> None:
        nonlocal waits
        waits += 1
        waited_in_vain()

    siblings.waited_in_vain = counted  # type: ignore[union-attr, method-assign]
    clients.connect(200)
    await eventually(lambda: len(server.streams) == 200)
    assert 5 < waits < 30, "each time for twice as many"


async def test_a_wait_that_another_process_has_ended_does_not_count_for_the_next_client(
    board: Scoreboard, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LONGEST_WAIT, 0.5)
    server, clients = serving()
    clients.connect(SLACK)
    await eventually(lambda: len(server.streams) == SLACK)
    other(board)
    for _ in range(3):
        clients.connect()
        await asyncio.sleep(0.1)
        with core_of(server).listeners.sockets[0].dup() as listener:
            clients.open.append(listener.accept()[0])
        await asyncio.sleep(0.6)
        assert len(server.streams) == SLACK


# ---- limits for all


async def test_max_connections_is_for_all_processes(board: Scoreboard, serving: Any) -> None:
    row = other(board, 3, 6)
    server, clients = serving(max_connections=10)
    row.state = State.RETIRING  # its clients count as well
    clients.connect(6)
    await eventually(lambda: len(server.streams) == 4)
    await asyncio.sleep(0.05)
    assert len(server.streams) == 4
    row.open = 5
    await eventually(lambda: len(server.streams) == 5)
    clients.open[0].close()
    await asyncio.sleep(0.05)
    assert len(server.streams) == 5
    row.open = 0
    await eventually(lambda: len(server.streams) == 5)


async def test_max_connections_that_was_not_set_is_for_each_process(board: Scoreboard, serving: Any) -> None:
    server, clients = serving()
    row = other(board, 3, 10_000_000)
    row.state = State.RETIRING
    clients.connect(6)
    await eventually(lambda: len(server.streams) == 6)


async def test_a_full_service_rejects_in_each_of_its_processes(board: Scoreboard, serving: Any) -> None:
    row = other(board, 3, 2)
    server, clients = serving(max_connections=3, when_full="reject")
    row.state = State.RETIRING
    clients.connect(4)
    await eventually(lambda: board.totals().rejected == 3)
    assert len(server.streams) == 1
    row = board.row(0)
    assert (row.open, row.accepted, row.closed, row.rejected) == (1, 4, 3, 3)


async def test_a_full_service_evicts_its_own_clients(board: Scoreboard, serving: Any) -> None:
    other(board, 3, 2).state = State.RETIRING
    server, clients = serving(max_connections=3, when_full="evict")
    clients.connect(1)
    await eventually(lambda: len(server.streams) == 1)
    (first,) = server.streams
    clients.connect(1)
    await eventually(lambda: first.closed() and len(server.streams) == 1)
    row = board.row(0)
    assert (row.open, row.accepted, row.closed, row.rejected) == (1, 2, 1, 0)


async def test_what_a_shutdown_accepts_waits_for_room_that_others_make(board: Scoreboard, serving: Any) -> None:
    row = other(board, 3, 2)
    server, clients = serving(max_connections=3, drain_idle=0.3)
    row.state = State.RETIRING
    first, second, third = clients.connect(3)
    await eventually(lambda: len(server.streams) == 1)
    first.send(b"a\n")
    second.send(b"b\n")
    ending = asyncio.ensure_future(server.shutdown(5))
    await asyncio.sleep(0.05)
    assert len(server.streams) == 1
    row.open = 1
    await eventually(lambda: board.row(0).accepted == 2)
    row.open = 0
    await ending
    loop = asyncio.get_running_loop()
    assert await loop.sock_recv(first, 9) == b"a\n"
    assert await loop.sock_recv(second, 9) == b"b\n"
    assert board.row(0).accepted == 3
    del third


async def test_max_connections_per_ip_is_for_all_processes(board: Scoreboard, serving: Any) -> None:
    one, clients = serving(max_connections_per_ip=3)
    clients.connect(2)
    await eventually(lambda: len(one.streams) == 2)
    one.suspend()
    two, _ = serving(max_connections_per_ip=3)
    clients.connect(2)
    await eventually(lambda: board.totals().rejected == 1)
    assert len(two.streams) == 1
    clients.connect(1, "127.0.0.2")
    await eventually(lambda: len(two.streams) == 2)
    for client in clients.open[:2]:
        client.close()
    await eventually(lambda: not one.streams)
    clients.connect(2)
    await eventually(lambda: len(two.streams) == 4)


async def test_new_options_count_the_addresses_again(board: Scoreboard, serving: Any) -> None:
    server, clients = serving()
    clients.connect(2)
    await eventually(lambda: len(server.streams) == 2)
    place = board.place("127.0.0.1")
    assert board.of_address(0, place) == 0
    for limit in (3, 4):
        server.replace_options(max_connections_per_ip=limit)
        assert board.of_address(0, place) == 2
    server.replace_options(max_connections_per_ip=None)
    assert board.of_address(0, place) == 0


# ---- counters


async def test_a_server_counts_its_clients_and_their_bytes(board: Scoreboard, serving: Any) -> None:
    server, clients = serving()
    client, other_client = clients.connect(2)
    await eventually(lambda: len(server.streams) == 2)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, b"hello\n")
    assert await loop.sock_recv(client, 9) == b"hello\n"
    client.close()
    row = board.row(0)
    await eventually(lambda: len(server.streams) == 1)
    assert (row.open, row.accepted, row.closed, row.errors) == (1, 2, 1, 0)
    await loop.sock_sendall(other_client, b"again and again\n")
    await eventually(lambda: row.bytes_received == 22)
    assert row.bytes_sent == 22
    other_client.close()
    await eventually(lambda: row.open == 0)
    assert board.totals() == (0, 2, 2, 0, 0, 22, 22)


async def test_a_server_counts_the_exceptions_of_its_handlers(
    board: Scoreboard, serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server, clients = serving()

    async def fail(stream: Any, address: Any) -> None:
        if (await stream.read_bytes(1)) == b"!":
            raise RuntimeError("on purpose")
        await stream.read_bytes(1)

    server.handle_stream = fail
    for byte in b"!", b"?":
        (client,) = clients.connect()
        await asyncio.get_running_loop().sock_sendall(client, byte)
    await eventually(lambda: board.row(0).errors == 1)
    clients.open[-1].close()
    await eventually(lambda: board.row(0).closed == 2)
    assert board.row(0).errors == 1
    assert "on purpose" in caplog.text


async def test_a_server_counts_why_its_clients_have_left_and_how_long_they_were_there(
    board: Scoreboard, serving: Any
) -> None:
    server, clients = serving()
    clients.connect(3)
    await eventually(lambda: len(server.streams) == 3)
    await asyncio.sleep(0.02)
    next(iter(server.streams)).kick()
    for client in clients.open:
        client.close()
    await eventually(lambda: not server.streams)
    counts = dict(zip(scoreboard.REASONS, board.sums(scoreboard.CLOSED_BY), strict=True))
    assert {reason: count for reason, count in counts.items() if count} == {"eof": 2, "kicked": 1}
    assert sum(board.sums(scoreboard.LASTED)) == 3
    assert board.sums(scoreboard.LASTED)[0] == 0, "none was there for less than 10 ms"
    assert 60_000 < board.sums([scoreboard.LASTED_SUM])[0] < 3 * 60e6


async def test_a_server_counts_its_handshakes_and_those_that_have_failed(
    board: Scoreboard, serving: Any, tmp_path: Path
) -> None:
    _, clients = serving(ssl_options=self_signed("localhost").write(tmp_path))
    for version in ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        _, writer = await asyncio.open_connection("127.0.0.1", clients.port, ssl=context)
        writer.close()
    (client,) = clients.connect()
    await asyncio.get_running_loop().sock_sendall(client, b"GET / HTTP/1.1\r\n\r\n")
    row = board.row(0)
    await eventually(lambda: row.closed == 4)
    assert (row.tls_1_2, row.tls_1_3) == (1, 2)
    assert board.sums([scoreboard.CELL_OF["tls_error"]]) == [1]


async def test_a_server_counts_what_has_blocked_its_loop(board: Scoreboard, serving: Any) -> None:
    server, clients = serving()

    async def block(stream: Any, address: Any) -> None:
        time.sleep(0.8)

    server.handle_stream = block
    clients.connect()
    row = board.row(0)
    await eventually(lambda: row.closed == 1)
    await eventually(lambda: row.blocked == 1)
    await eventually(lambda: row.late > 100_000_000)


async def test_a_client_of_two_joined_servers_is_served_by_one(board: Scoreboard, serving: Any) -> None:
    (one, clients), (two, _) = serving(), serving()
    for count in range(1, 101):
        clients.connect()
        await eventually(lambda: len(one.streams) + len(two.streams) == len(clients.open))
        assert abs(len(one.streams) - len(two.streams)) <= SLACK + count / 16 + 1
    assert board.totals().open == 100
