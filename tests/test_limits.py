"""`max_connections` and `max_connections_per_ip`: who is let in, who waits, who is turned away or evicted."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iostreamsrv import IOLoop, TCPServer
from iostreamsrv.events import Event
from tests.support import Peer, eventually, on_every_engine, turns
from tests.test_tcpserver import Echo, Serving, answers

pytestmark = on_every_engine

LONG_ENOUGH = 40
"""Turns of the loop in which a server would have accepted and answered."""


@pytest.fixture
def serving(io_loop: IOLoop) -> Iterator[Serving]:
    serving = Serving()
    yield serving
    serving.end()


async def waits(peer: Peer) -> bool:
    """Whether a client that has sent a line stays without an answer."""
    await turns(LONG_ENOUGH)
    return not peer.has_input()


async def is_turned_away(peer: Peer) -> bool:
    """Whether the server closes this connection without a word."""
    return await peer.receive_all() == b""


def listen_to(server: TCPServer, *kinds: Any) -> list[Event]:
    """What the server tells of these kinds, as it comes."""
    events: list[Event] = []
    server.events.subscribe(events.append, *kinds)
    return events


# ---- waiting for a place


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.gen_test
async def test_one_client_more_waits_in_the_kernels_queue_until_there_is_a_place(serving: Serving, most: int) -> None:
    server = serving.started(Echo(max_connections=most))
    peers = [serving.connect(server) for _ in range(most)]
    for peer in peers:
        assert await answers(peer)
    late = serving.connect(server)
    late.send(b"late\n")
    assert await waits(late)
    assert len(server.streams) == most
    peers[0].close()
    assert await late.receive(5) == b"late\n"
    assert len(server.streams) == most


@pytest.mark.gen_test
async def test_a_flood_while_full_harms_nobody_and_is_worked_off_in_the_end(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving.started(Echo(max_connections=2))
    good = serving.connect(server)
    assert await answers(good)
    flood = [serving.connect(server) for _ in range(150)]
    for number in range(20):
        assert await answers(good)
        assert len(server.streams) <= 2
        flood[number].close()
    for peer in flood[20:]:
        assert await answers(peer)
        peer.close()
    assert await answers(good)
    await eventually(lambda: len(server.streams) == 1)
    assert len(caplog.records) <= 15


@pytest.mark.gen_test
async def test_clients_that_leave_the_queue_take_no_place(serving: Serving) -> None:
    server = serving.started(Echo(max_connections=1))
    good = serving.connect(server)
    assert await answers(good)
    for number in range(40):
        peer = serving.connect(server)
        if number % 2:
            peer.send(b"abc\n")
            peer.reset()
        else:
            peer.close()
    last = serving.connect(server)
    good.close()
    assert await answers(last)
    assert len(server.streams) == 1


@pytest.mark.gen_test
async def test_a_full_server_says_so_when_a_client_waits_and_not_before(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving.started(Echo(max_connections=1))
    events = listen_to(server, "limit")
    first = serving.connect(server)
    assert await answers(first)
    await turns(LONG_ENOUGH)
    assert not events
    second = serving.connect(server)
    await eventually(lambda: events)
    assert await waits(second)
    (event,) = events
    assert event.text == "there are 1 connections (max_connections): new ones wait"
    assert (event.level, event.stream, event.reason) == (logging.WARNING, None, None)
    assert [record.getMessage() for record in caplog.records] == [event.text]


def kick_all(server: TCPServer) -> None:
    server.kick_all()


def allow_more(server: TCPServer) -> None:
    server.replace_options(max_connections=2)


@pytest.mark.parametrize("make_room", [kick_all, allow_more])
@pytest.mark.gen_test
async def test_a_listener_may_make_room_when_it_is_told_that_one_waits(
    serving: Serving, make_room: Callable[[TCPServer], None]
) -> None:
    server = serving.started(Echo(max_connections=1))
    server.events.subscribe(lambda _: make_room(server), "limit")
    assert await answers(serving.connect(server))
    assert await answers(serving.connect(server))


@pytest.mark.parametrize("end", [TCPServer.stop, TCPServer.suspend])
@pytest.mark.gen_test
async def test_a_listener_may_make_room_and_end_the_accepting(
    serving: Serving, end: Callable[[TCPServer], None]
) -> None:
    server = serving.started(Echo(max_connections=1))

    def make_room(_: Event) -> None:
        server.kick_all()
        end(server)

    server.events.subscribe(make_room, "limit")
    address = server.addresses[0]
    assert await answers(serving.connect(address))
    serving.connect(address)
    await eventually(lambda: not len(server.streams))
    await turns(LONG_ENOUGH)
    assert not len(server.streams)


# ---- replacing limits


@pytest.mark.gen_test
async def test_a_higher_limit_lets_those_who_wait_in_at_once(serving: Serving) -> None:
    server = serving.started(Echo(max_connections=1))
    assert await answers(serving.connect(server))
    waiting = [serving.connect(server) for _ in range(3)]
    waiting[0].send(b"abc\n")
    assert await waits(waiting[0])
    server.replace_options(max_connections=4)
    assert await waiting[0].receive(4) == b"abc\n"
    for peer in waiting:
        assert await answers(peer)


@pytest.mark.gen_test
async def test_a_limit_below_the_present_number_closes_nobody_and_lets_nobody_in(serving: Serving) -> None:
    server = serving.started(Echo(max_connections=4))
    peers = [serving.connect(server) for _ in range(4)]
    for peer in peers:
        assert await answers(peer)
    server.replace_options(max_connections=2)
    late = serving.connect(server)
    late.send(b"late\n")
    for peer in peers[:2]:
        peer.close()
        await eventually(lambda peer=peer: len(server.streams) == 4 - 1 - peers.index(peer))  # type: ignore[misc]
        assert await waits(late)
    assert await answers(peers[2])
    peers[2].close()
    assert await late.receive(5) == b"late\n"
    assert await answers(peers[3])


@pytest.mark.parametrize("when_full, gone", [("reject", 1), ("evict", 0)])
@pytest.mark.gen_test
async def test_those_who_wait_are_dealt_with_as_soon_as_when_full_says_otherwise(
    serving: Serving, when_full: str, gone: int
) -> None:
    server = serving.started(Echo(max_connections=1))
    peers = [serving.connect(server)]
    assert await answers(peers[0])
    peers.append(serving.connect(server))
    await turns(LONG_ENOUGH)
    server.replace_options(when_full=when_full)
    assert await is_turned_away(peers[gone])
    assert await answers(peers[1 - gone])
    server.replace_options(when_full="wait")
    late = serving.connect(server)
    late.send(b"late\n")
    assert await waits(late)
    peers[1 - gone].close()
    assert await late.receive(5) == b"late\n"
