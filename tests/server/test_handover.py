"""Clients that one server hands over to another one. Both are in this process; two workers do the same."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import iostreamsrv
from iostreamsrv import CloseReason
from iostreamsrv.certificates import self_signed
from iostreamsrv.server import handover, scoreboard
from iostreamsrv.server.base import core_of
from iostreamsrv.server.handover import GO, Giver, Taker, hands_over
from iostreamsrv.server.scoreboard import Scoreboard
from iostreamsrv.server.workers import WorkerSiblings
from tests.support.waiting import eventually

pytestmark = pytest.mark.gen_test


class Counter(iostreamsrv.TCPServer):
    """Counts the lines of each client, and says which server has counted."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(**options)
        self.name = name
        self.left: list[CloseReason] = []
        self.raised: list[BaseException] = []
        self.keeps = False

    async def handle_stream(self, stream: iostreamsrv.IOStream, address: Any) -> None:
        await self.handle_resume(stream, address, 0)

    def handle_handover(self, stream: iostreamsrv.IOStream) -> Any:
        return NotImplemented if self.keeps else stream.data["count"]

    async def handle_resume(self, stream: iostreamsrv.IOStream, address: Any, state: Any) -> None:
        stream.data["count"] = state
        stream.data.setdefault("since", self.name)
        while True:
            try:
                line = await stream.read_until(b"\n")
            except iostreamsrv.StreamClosedError as error:
                self.raised.append(error)
                raise
            stream.data["count"] += 1
            answer = f"{self.name} {stream.data['count']} {stream.data['since']} ".encode()
            await stream.write(answer + line)

    def handle_close(self, stream: iostreamsrv.IOStream, reason: CloseReason) -> None:
        self.left.append(reason)


class Unpicklable(Counter):
    def handle_handover(self, stream: iostreamsrv.IOStream) -> Any:
        return lambda: None


class Raising(Counter):
    def handle_handover(self, stream: iostreamsrv.IOStream) -> Any:
        raise KeyError("no such thing")


class Client:
    def __init__(self, server: iostreamsrv.TCPServer) -> None:
        self.socket = socket.create_connection(server.addresses[0][:2])
        self.socket.setblocking(False)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def ask(self, line: bytes) -> bytes:
        await self.send(line)
        return await asyncio.get_running_loop().sock_recv(self.socket, 1000)


@contextlib.contextmanager
def servers(kind: type[Counter] = Counter, **options: Any) -> Iterator[tuple[Counter, Counter]]:
    """An old one, which listens, and a new one."""
    old, new = kind("old", **options), Counter("new", **options)
    old.listen(0, "127.0.0.1")
    try:
        yield old, new
    finally:
        for each in (old, new):
            each.stop()
            each.kick_all()


async def hand_over(old: Counter, new: Counter) -> None:
    one, other = socket.socketpair()
    taking = asyncio.create_task(Taker(core_of(new).connections, other).take_all())
    await Giver(core_of(old).connections, one).give_all()
    await taking


async def test_clients_go_on_in_the_new_server_with_state_data_and_unread_bytes() -> None:
    with servers() as (old, new):
        clients = [Client(old) for _ in range(5)]
        for client in clients:
            assert await client.ask(b"a\n") == b"old 1 old a\n"
            await client.send(b"ha")
        await eventually(lambda: all(stream.buffered == 2 for stream in old.streams))
        await hand_over(old, new)
        assert (len(old.streams), len(new.streams)) == (0, 5)
        for client in clients:
            assert await client.ask(b"lf\n") == b"new 2 old half\n"
            client.socket.close()
        await eventually(lambda: len(new.left) == 5)
        assert old.left == [CloseReason.DETACHED] * 5
        assert {error.reason for error in old.raised} == {CloseReason.DETACHED}  # type: ignore[attr-defined]
        assert new.left == [CloseReason.EOF] * 5


async def test_addresses_and_counters_go_along() -> None:
    with servers() as (old, new):
        client = Client(old)
        await client.ask(b"a\n")
        (before,) = old.streams
        await hand_over(old, new)
        (after,) = new.streams
        for name in ("remote_address", "opened_at", "bytes_read", "bytes_written"):
            assert getattr(after, name) == getattr(before, name)
        client.socket.close()


async def test_a_client_in_mid_request_goes_when_it_is_answered() -> None:
    class Slow(Counter):
        async def handle_stream(self, stream: iostreamsrv.IOStream, address: Any) -> None:
            stream.data["count"] = 7
            await stream.read_until(b"\n")
            await asyncio.sleep(0.1)
            await stream.write(b"late\n")
            await self.handle_resume(stream, address, 7)

    with servers(Slow) as (old, new):
        client = Client(old)
        await client.send(b"a\n")
        await eventually(lambda: bool(old.streams) and next(iter(old.streams)).bytes_read == 2)
        await hand_over(old, new)
        assert await asyncio.get_running_loop().sock_recv(client.socket, 100) == b"late\n"
        assert await client.ask(b"b\n") == b"new 8 old b\n"
        client.socket.close()


@pytest.mark.parametrize("kind", [Unpicklable, Raising])
async def test_a_client_whose_state_can_not_go_stays_and_is_named_once(
    kind: type[Counter], caplog: pytest.LogCaptureFixture
) -> None:
    with servers(kind) as (old, new):
        client = Client(old)
        await client.ask(b"a\n")
        await hand_over(old, new)
        assert await client.ask(b"b\n") == b"old 2 old b\n"
        assert [record.levelname for record in caplog.records if "not handed over" in record.message] == ["ERROR"]
        client.socket.close()


async def test_the_server_may_keep_a_client() -> None:
    with servers() as (old, new):
        old.keeps = True
        client = Client(old)
        await client.ask(b"a\n")
        await hand_over(old, new)
        assert await client.ask(b"b\n") == b"old 2 old b\n"
        client.socket.close()


async def test_if_the_new_server_is_gone_the_old_one_goes_on() -> None:
    with servers() as (old, _):
        clients = [Client(old) for _ in range(3)]
        for client in clients:
            await client.ask(b"a\n")
        one, other = socket.socketpair()
        other.close()
        await Giver(core_of(old).connections, one).give_all()
        for client in clients:
            assert await client.ask(b"b\n") == b"old 2 old b\n"
            client.socket.close()


async def test_what_the_new_server_can_not_unpickle_stays_with_the_old_one(caplog: pytest.LogCaptureFixture) -> None:
    with servers() as (old, new):
        client = Client(old)
        await client.ask(b"a\n")
        next(iter(old.streams)).data["gone"] = Vanishing()
        await hand_over(old, new)
        assert await client.ask(b"b\n") == b"old 2 old b\n"
        assert any("not taken over" in record.message for record in caplog.records)
        client.socket.close()


def _vanished() -> None:
    raise ImportError("the new code has no such class")


class Vanishing:
    """Pickles, but does not unpickle."""

    def __reduce__(self) -> Any:
        return _vanished, ()


async def test_the_limit_of_connections_from_one_address_counts_those_that_came() -> None:
    with servers(max_connections_per_ip=2) as (old, new):
        clients = [Client(old) for _ in range(2)]
        for client in clients:
            await client.ask(b"a\n")
        await hand_over(old, new)
        new.listen(0, "127.0.0.1")
        third = Client(new)
        with contextlib.suppress(ConnectionResetError):
            assert await third.ask(b"a\n") == b""
        clients[0].socket.close()
        await eventually(lambda: len(new.streams) == 1)
        fourth = Client(new)
        assert await fourth.ask(b"a\n") == b"new 1 new a\n"
        for client in (*clients, third, fourth):
            client.socket.close()


def test_both_methods_are_needed() -> None:
    class One(iostreamsrv.TCPServer):
        async def handle_stream(self, stream: iostreamsrv.IOStream, address: Any) -> None: ...

        def handle_handover(self, stream: iostreamsrv.IOStream) -> Any: ...

    assert hands_over(core_of(Counter("x")).connections)
    assert not hands_over(core_of(One()).connections)


async def test_the_counters_of_a_service_know_that_a_client_is_still_the_same() -> None:
    board = Scoreboard.create(4, inherited=True)
    with servers() as (old, new):
        for index, server in enumerate((old, new)):
            core_of(server).join(WorkerSiblings(board, index))
        client = Client(old)
        assert await client.ask(b"a\n") == b"old 1 old a\n"
        await hand_over(old, new)
        assert board.totals()[:3] == (1, 1, 0)  # open, accepted, closed
        board.fold(0)  # the old worker ends
        assert board.totals()[:3] == (1, 1, 0)
        assert await client.ask(b"b\n") == b"new 2 old b\n"
        client.socket.close()
        await eventually(lambda: board.totals().closed == 1)
        assert board.totals()[:3] == (0, 1, 1)
        assert core_of(new).connections.limits.bytes_of_open() == (0, 0)
    board.close()


async def test_a_server_that_shuts_down_takes_nobody() -> None:
    with servers() as (old, new):
        client = Client(old)
        await client.ask(b"a\n")
        core_of(new).connections.begin_draining()
        await hand_over(old, new)
        assert await client.ask(b"b\n") == b"old 2 old b\n"
        core_of(new).connections.end_draining()
        client.socket.close()


# ---- whose the client is


async def test_a_new_server_that_hangs_holds_a_client_up_for_a_while_and_never_gets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handover, "ANSWER", 0.3)
    with servers() as (old, new):
        client = Client(old)
        await client.ask(b"a\n")
        one, other = socket.socketpair()
        await asyncio.wait_for(Giver(core_of(old).connections, one).give_all(), 3)
        await client.send(b"b\n")
        await asyncio.wait_for(Taker(core_of(new).connections, other).take_all(), 3)  # it wakes up: too late
        assert await asyncio.get_running_loop().sock_recv(client.socket, 100) == b"old 2 old b\n"
        assert not new.streams
        client.socket.close()


async def test_until_the_old_server_says_go_the_new_one_reads_nothing() -> None:
    with servers() as (old, new):
        client = Client(old)
        await client.ask(b"a\n")
        (one, middle), (far, other) = socket.socketpair(), socket.socketpair()
        middle.setblocking(False)
        far.setblocking(False)
        loop = asyncio.get_running_loop()
        giving = asyncio.create_task(Giver(core_of(old).connections, one).give_all())
        taking = asyncio.create_task(Taker(core_of(new).connections, other).take_all())
        await eventually(lambda: not old.streams)
        data, fds, _, _ = socket.recv_fds(middle, 8, 1)
        socket.send_fds(far, [data], fds)
        socket.socket(fileno=fds[0]).close()
        await loop.sock_sendall(far, await loop.sock_recv(middle, 100_000))
        await loop.sock_sendall(middle, await loop.sock_recv(far, 1))
        assert await loop.sock_recv(middle, 1) == GO
        await client.send(b"b\n")
        await asyncio.sleep(0.1)
        assert not new.streams
        far.send(GO)
        assert await loop.sock_recv(client.socket, 100) == b"new 2 old b\n"
        middle.close()
        far.close()
        await asyncio.gather(giving, taking)
        client.socket.close()


async def test_a_server_that_shuts_down_takes_no_more() -> None:
    with servers() as (old, new):
        new.listen(0, "127.0.0.1")
        busy = Client(new)
        await busy.ask(b"a\n")
        client = Client(old)
        await client.ask(b"a\n")
        one, other = socket.socketpair()
        taking = asyncio.create_task(Taker(core_of(new).connections, other).take_all())
        await asyncio.sleep(0.05)
        ending = asyncio.create_task(new.shutdown(5))
        await asyncio.sleep(0)
        await asyncio.wait_for(Giver(core_of(old).connections, one).give_all(), 5)
        await asyncio.gather(taking, ending)
        assert await client.ask(b"b\n") == b"old 2 old b\n"
        busy.socket.close()
        client.socket.close()


# ---- what is told and counted


async def test_the_log_says_how_many_stay_and_how_many_of_them_are_under_tls(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "PATIENCE", 0.3)
    with servers() as (old, new), caplog.at_level("INFO"):
        old.listen(0, "127.0.0.1", ssl_options=self_signed().write(tmp_path))
        clients = [Client(old) for _ in range(2)]
        for client in clients:
            await client.ask(b"a\n")
        next(iter(old.streams)).data["lock"] = lambda: None
        stream = await iostreamsrv.TCPClient().connect(*old.addresses[1][:2], ssl_options={"cert_reqs": ssl.CERT_NONE})
        await stream.write(b"a\n")
        await stream.read_until(b"\n")
        await hand_over(old, new)
        assert "handed over: 1 client; 2 clients here until they leave (1 under TLS" in caplog.text
        assert "; 1 for other reasons)" in caplog.text
        stream.close()
        for client in clients:
            client.socket.close()


async def test_a_client_counts_once_however_often_it_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoreboard, "_new_file", lambda size: None)
    board = Scoreboard.create(4)
    try:
        with servers() as (old, new), servers() as (third, _):
            third.name = "third"
            for index, server in enumerate((old, new, third)):
                core_of(server).join(WorkerSiblings(board, index))
            client = Client(old)
            await client.ask(b"a\n")
            await hand_over(old, new)
            await hand_over(new, third)
            assert board.totals()[:3] == (1, 1, 0)
            await client.ask(b"b\n")
            assert [board.row(index).accepted for index in range(3)] == [1, 0, 0]
            assert core_of(third).connections.limits.bytes_of_open() == (2, len(b"third 2 old b\n"))
            sent = len(b"old 1 old a\n") + len(b"third 2 old b\n")
            await eventually(lambda: board.totals().bytes_sent == sent)
            assert board.totals().bytes_received == 4
            board.fold(0)
            client.socket.close()
            await eventually(lambda: board.totals().open == 0)
            assert board.totals()[:3] == (0, 1, 1)
            one, other = socket.socketpair()
            other.close()
            again = Client(third)
            await again.ask(b"c\n")
            await Giver(core_of(third).connections, one).give_all()  # in vain
            assert board.totals()[:3] == (1, 2, 1)
            again.socket.close()
    finally:
        board.close()
