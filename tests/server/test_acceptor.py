"""The accept loop: pausing, resuming, and what it does when there are no descriptors left."""

import asyncio
import contextlib
import logging
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from iostreamsrv import IOLoop, IOStream, TCPServer
from iostreamsrv.net import acceptor
from iostreamsrv.net.acceptor import ACCEPTS_PER_TURN, Acceptor
from tests.support.engines import on_every_loop
from tests.support.servers import LONG_ENOUGH, Echo, Serving, answers, connect_unix, listen_to, unix_server, waits
from tests.support.waiting import eventually, turns

pytestmark = on_every_loop


class Door:
    """A listener, what was accepted on it, and those who have come."""

    def __init__(self, **options: Any) -> None:
        self.accepted: list[Any] = []
        self.sockets: list[socket.socket] = []
        self.acceptor = Acceptor(socket.create_server(("127.0.0.1", 0)), self.accept, **options)
        self.address = self.acceptor.listener.getsockname()

    def accept(self, connection: socket.socket, address: Any) -> None:
        self.accepted.append(address)
        self.sockets.append(connection)

    def connect(self, count: int = 1) -> None:
        for _ in range(count):
            self.sockets.append(socket.create_connection(self.address))

    def close(self) -> None:
        self.acceptor.close()
        for each in self.sockets:
            each.close()


@pytest.fixture
def door(io_loop: IOLoop) -> Iterator[Door]:
    door = Door()
    yield door
    door.close()


# ---- pausing


@pytest.mark.gen_test
async def test_it_accepts_from_its_start_to_its_stop(door: Door, io_loop: IOLoop) -> None:
    door.connect()
    await turns(LONG_ENOUGH)
    assert not door.accepted
    door.acceptor.start(io_loop)
    await eventually(lambda: door.accepted)
    assert door.accepted == [door.sockets[0].getsockname()]
    door.acceptor.stop()
    door.connect()
    door.acceptor.resume()  # it was stopped
    await turns(LONG_ENOUGH)
    assert len(door.accepted) == 1
    door.acceptor.start(io_loop)
    await eventually(lambda: len(door.accepted) == 2)


@pytest.mark.gen_test
async def test_pause_and_resume_may_be_called_again(door: Door, io_loop: IOLoop) -> None:
    door.acceptor.start(io_loop)
    for count in range(1, 4):
        door.acceptor.pause()
        door.acceptor.pause()
        door.connect()
        await turns(LONG_ENOUGH)
        assert len(door.accepted) == count - 1
        door.acceptor.resume()
        door.acceptor.resume()
        await eventually(lambda count=count: len(door.accepted) == count)  # type: ignore[misc]


@pytest.mark.gen_test
async def test_whom_it_accepts_may_have_it_paused(io_loop: IOLoop) -> None:
    class Closing(Door):
        def accept(self, connection: socket.socket, address: Any) -> None:
            super().accept(connection, address)
            self.acceptor.pause()

    door = Closing()
    try:
        door.connect(3)
        door.acceptor.start(io_loop)
        for count in range(1, 4):
            await eventually(lambda count=count: len(door.accepted) == count)  # type: ignore[misc]
            await turns(LONG_ENOUGH)
            assert len(door.accepted) == count
            door.acceptor.resume()
    finally:
        door.close()


@pytest.mark.gen_test
async def test_whom_it_accepts_may_have_it_closed(io_loop: IOLoop) -> None:
    class Closing(Door):
        def accept(self, connection: socket.socket, address: Any) -> None:
            super().accept(connection, address)
            self.acceptor.close()

    for accept in ("ready", "queued"):
        door = Closing()
        door.connect(3)
        door.acceptor.start(io_loop)
        if accept == "queued":
            door.acceptor.accept_queued()
        await eventually(lambda door=door: door.accepted)  # type: ignore[misc]
        await turns(LONG_ENOUGH)
        assert len(door.accepted) == 1
        door.close()


@pytest.mark.gen_test
async def test_without_a_place_the_queue_is_left_alone_until_it_is_resumed(io_loop: IOLoop) -> None:
    waiting: list[None] = []
    places = 2
    door = Door(may_accept=lambda: len(door.accepted) < places, on_waiting=lambda: waiting.append(None))
    try:
        door.acceptor.start(io_loop)
        door.connect(2)
        await eventually(lambda: len(door.accepted) == 2)
        await turns(LONG_ENOUGH)
        assert not waiting
        door.connect(2)
        await eventually(lambda: waiting)
        places = 3
        await turns(LONG_ENOUGH)
        assert (len(door.accepted), len(waiting)) == (2, 1)
        door.acceptor.resume()
        await eventually(lambda: len(waiting) == 2)
        assert len(door.accepted) == 3
    finally:
        door.close()


@pytest.mark.gen_test
async def test_all_who_queue_are_accepted_at_once_when_they_are_asked_in(io_loop: IOLoop) -> None:
    door = Door(may_accept=lambda: len(door.accepted) < 50)
    try:
        door.connect(60)
        door.acceptor.accept_queued()
        assert not door.accepted, "it has not been started"
        door.acceptor.start(io_loop)
        door.acceptor.accept_queued()
        assert len(door.accepted) == 60 > ACCEPTS_PER_TURN
    finally:
        door.close()


@pytest.mark.gen_test
async def test_a_listener_that_somebody_closed_is_left_alone(
    door: Door, io_loop: IOLoop, caplog: pytest.LogCaptureFixture
) -> None:
    door.acceptor.start(io_loop)
    door.acceptor.listener.shutdown(socket.SHUT_RDWR)  # it is readable, and accept() fails with EINVAL
    await turns(LONG_ENOUGH)
    door.acceptor.resume()
    await turns(LONG_ENOUGH)
    assert not caplog.records


# ---- suspending a server


@pytest.mark.gen_test
async def test_a_suspended_server_serves_who_is_there_and_lets_others_wait(serving: Serving) -> None:
    server = serving.started(Echo())
    server.listen(0, "127.0.0.1")
    there = serving.connect(server)
    assert await answers(there)
    assert not server.suspended
    for _ in range(2):
        server.suspend()
        server.suspend()
        assert server.suspended
        late = [serving.connect(address) for address in server.addresses]
        for peer in late:
            peer.send(b"late\n")
            assert await waits(peer)
        assert await answers(there)
        server.resume()
        server.resume()
        assert not server.suspended
        for peer in late:
            assert await peer.receive(5) == b"late\n"


@pytest.mark.gen_test
async def test_what_is_added_to_a_suspended_server_waits_as_well(serving: Serving, tmp_path: Any) -> None:
    server = Echo()
    server.suspend()
    unix_server(serving, tmp_path, server)
    unix = connect_unix(serving, server)
    server.listen(0, "127.0.0.1")
    server.bind(0, "127.0.0.1")
    server.start()
    peers = [unix, *(serving.connect(address) for address in server.addresses[1:])]
    for peer in peers:
        peer.send(b"abc\n")
    assert await waits(unix)
    assert not len(server.streams)
    server.resume()
    for peer in peers:
        assert await peer.receive(4) == b"abc\n"


@pytest.mark.gen_test
async def test_a_place_that_becomes_free_lets_nobody_into_a_suspended_server(serving: Serving) -> None:
    server = serving.started(Echo(max_connections=1))
    there, late = serving.connect(server), serving.connect(server)
    assert await answers(there)
    late.send(b"late\n")
    assert await waits(late)
    server.suspend()
    there.close()
    await eventually(lambda: not len(server.streams))
    assert await waits(late)
    server.replace_options(max_connections=5, when_full="reject")
    assert await waits(late)
    server.resume()
    assert await late.receive(5) == b"late\n"


@pytest.mark.gen_test
async def test_resuming_a_full_server_lets_nobody_in(serving: Serving) -> None:
    server = serving.started(Echo(max_connections=1))
    there, late = serving.connect(server), serving.connect(server)
    assert await answers(there)
    late.send(b"late\n")
    for _ in range(2):
        assert await waits(late)
        server.suspend()
        server.resume()
    assert await waits(late)
    assert len(server.streams) == 1
    there.close()
    assert await late.receive(5) == b"late\n"


@pytest.mark.gen_test
async def test_a_suspended_server_that_is_stopped_listens_anew_without_a_resume(serving: Serving) -> None:
    server = serving.started(Echo())
    server.suspend()
    server.stop()
    assert not server.suspended
    server.resume()
    serving.started(server)
    assert await answers(serving.connect(server))


@pytest.mark.gen_test
async def test_a_full_server_that_is_stopped_and_listens_anew_is_still_full(serving: Serving) -> None:
    server = serving.started(Echo(max_connections=1))
    there = serving.connect(server)
    assert await answers(there)
    serving.connect(server)
    await turns(LONG_ENOUGH)
    server.stop()
    serving.started(server)
    late = serving.connect(server)
    late.send(b"late\n")
    assert await waits(late)
    there.close()
    assert await late.receive(5) == b"late\n"


@pytest.mark.gen_test
async def test_a_shutdown_takes_in_who_queues_while_suspended_to_be_served_in_turn(serving: Serving) -> None:
    class Late(TCPServer):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await stream.write(await stream.read_until(b"\n"))

    server = serving.started(Late(max_connections=3))
    server.suspend()
    peers = [serving.connect(server) for _ in range(5)]
    for peer in peers:
        peer.send(b"abc\n")
    events = listen_to(server, "limit")
    ending = asyncio.ensure_future(server.shutdown())
    for peer in peers:
        assert await peer.receive_all() == b"abc\n"
        peer.close()
    await ending
    assert not events


# ---- out of descriptors


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """So many more can be opened in here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(count + 1)]
    for each in free:
        os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.gen_test
async def test_without_descriptors_clients_wait_and_those_who_are_in_are_served(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving.started(Echo())
    events = listen_to(server, "limit")
    good = serving.connect(server)
    assert await answers(good)
    late = [serving.connect(server) for _ in range(3)]
    with descriptors_left(1):
        await eventually(lambda: events)
        assert await answers(late[0])
        late[1].send(b"abc\n")
        for _ in range(20):
            assert await answers(good)
            assert not late[1].has_input()
    assert await late[1].receive(4) == b"abc\n"
    assert await answers(late[2])
    (event,) = events
    assert event.text.startswith("accepting is paused: [Errno 24]")
    assert (event.level, event.stream) == (logging.ERROR, None)
    assert isinstance(event.error, OSError)
    assert len(caplog.records) == 1


@pytest.mark.gen_test
async def test_what_rests_can_be_suspended_resumed_and_stopped(serving: Serving) -> None:
    server = serving.started(Echo())
    events = listen_to(server, "limit")
    good = serving.connect(server)
    assert await answers(good)
    late = serving.connect(server)
    late.send(b"late\n")
    with descriptors_left(0):
        await eventually(lambda: events)
        server.suspend()
    await asyncio.sleep(0.3)  # longer than the first rest
    assert await waits(late)
    server.resume()
    assert await late.receive(5) == b"late\n"
    serving.connect(server)
    with descriptors_left(0):
        await turns(LONG_ENOUGH)
        server.stop()
    await asyncio.sleep(0.3)
    assert len(server.streams) == 2


@pytest.mark.parametrize("begin", [0, 5])
@pytest.mark.gen_test
async def test_who_cannot_be_accepted_is_closed_also_if_it_started_without_descriptors(
    monkeypatch: pytest.MonkeyPatch, io_loop: IOLoop, begin: int
) -> None:
    monkeypatch.setattr(acceptor, "BACKOFF_FIRST", 0.01)
    monkeypatch.setattr(acceptor, "BACKOFF_LONGEST", 0.01)
    door = Door()
    try:
        with descriptors_left(begin):
            door.acceptor.start(io_loop)
        door.connect()
        await eventually(lambda: door.accepted)
        door.connect(3)
        with descriptors_left(0):
            for client in door.sockets[-3:]:
                client.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
        assert len(door.accepted) == 1
    finally:
        door.close()
