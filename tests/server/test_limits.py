"""`max_connections` and `max_connections_per_ip`: who is let in, who waits, who is turned away or evicted."""

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tornado import gen

from iostreamsrv import IOStream, TCPClient, TCPServer
from iostreamsrv.events import Event
from iostreamsrv.server import connections, handlers
from tests.support.engines import on_every_loop
from tests.support.listening import with_ipv6
from tests.support.peers import Peer, tls_contexts
from tests.support.servers import (
    LONG_ENOUGH,
    TRUSTING,
    Echo,
    Handler,
    Serving,
    answers,
    connect_unix,
    header,
    is_turned_away,
    listen_to,
    unix_server,
    waits,
)
from tests.support.waiting import eventually, fill, turns

pytestmark = [*on_every_loop, pytest.mark.usefixtures("clock")]


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


# ---- so many from one address


def connect_from(serving: Serving, server: TCPServer, host: str) -> Peer:
    """A client whose address is that one, of 127.0.0.0/8."""
    peer = Peer(socket.create_connection(server.addresses[0], source_address=(host, 0)))
    serving.peers.append(peer)
    return peer


@pytest.mark.gen_test
async def test_each_address_has_its_own_places(serving: Serving) -> None:
    server = serving.started(Echo(max_connections_per_ip=2))
    events = listen_to(server, "reject")
    mine = [connect_from(serving, server, "127.0.0.2") for _ in range(2)]
    for peer in mine:
        assert await answers(peer)
    third = connect_from(serving, server, "127.0.0.2")
    assert await is_turned_away(third)
    assert await answers(connect_from(serving, server, "127.0.0.3"))
    mine[0].close()
    await eventually(lambda: len(server.streams) == 2)
    assert await answers(connect_from(serving, server, "127.0.0.2"))
    (event,) = events
    host, port = third.socket.getsockname()
    assert event.text == f"{host}:{port} is rejected: max_connections_per_ip is 2"
    assert (event.address, event.reason) == ((host, port), "rejected")


@pytest.mark.gen_test
async def test_whoever_is_turned_away_again_and_again_loses_no_place(serving: Serving) -> None:
    server = serving.started(Echo(max_connections_per_ip=1))
    good = serving.connect(server)
    assert await answers(good)
    for _ in range(50):
        assert await is_turned_away(serving.connect(server))
    assert await answers(good)
    good.close()
    await eventually(lambda: not len(server.streams))
    assert await answers(serving.connect(server))
    assert await is_turned_away(serving.connect(server))


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("", "", True),
        ("", "192.0.2.1", False),
    ],
)
@pytest.mark.gen_test
async def test_behind_a_proxy_it_is_the_client_or_its_network_that_counts(
    serving: Serving, one: str, other: str, same: bool
) -> None:
    server = serving.started(Echo(max_connections_per_ip=1, **TRUSTING))
    peers = [serving.connect(server) for _ in range(2)]
    peers[0].send(header(one))
    assert await answers(peers[0])
    peers[1].send(header(other))
    if same:
        assert await is_turned_away(peers[1])
        peers[0].close()
        await eventually(lambda: not len(server.streams))
        peers[1] = serving.connect(server)
        peers[1].send(header(other))
    assert await answers(peers[1])


@pytest.mark.gen_test
async def test_a_header_that_is_refused_gives_nobodys_place_back(serving: Serving) -> None:
    server = serving.started(Echo(max_connections_per_ip=1, **TRUSTING))
    proxy = serving.connect(server)
    proxy.send(header(""))
    assert await answers(proxy)
    for wrong in (b"NO PROXY\r\n", b"PROXY UNKNOWN", b""):
        peer = serving.connect(server)
        peer.send(wrong)
        peer.half_close()
        assert await is_turned_away(peer)
    late = serving.connect(server)
    late.send(header(""))
    assert await is_turned_away(late)
    assert await answers(proxy)


@pytest.mark.gen_test
async def test_a_limit_that_comes_while_headers_are_awaited_counts_no_client_twice(serving: Serving) -> None:
    server = serving.started(Echo(**TRUSTING))
    there = serving.connect(server)
    there.send(header("192.0.2.1"))
    assert await answers(there)
    peers = [serving.connect(server) for _ in range(3)]
    await eventually(lambda: len(server.streams) == 4)
    server.replace_options(max_connections_per_ip=1)
    for peer, host in zip(peers, ("192.0.2.2", "", "192.0.2.1"), strict=True):
        peer.send(header(host))
    assert await answers(peers[0])
    assert await answers(peers[1])
    assert await is_turned_away(peers[2])
    for peer in (there, *peers):
        peer.close()
    await eventually(lambda: not len(server.streams))
    for host in ("192.0.2.1", "192.0.2.2", ""):
        peer = serving.connect(server)
        peer.send(header(host))
        assert await answers(peer)


@pytest.mark.gen_test
async def test_a_limit_per_address_that_comes_later_counts_who_is_there(serving: Serving) -> None:
    server = serving.started(Echo())
    peers = [serving.connect(server) for _ in range(3)]
    for peer in peers:
        assert await answers(peer)
    for _ in range(2):  # and it may go and come again
        server.replace_options(max_connections_per_ip=2)
        assert await is_turned_away(serving.connect(server))
        server.replace_options(max_connections_per_ip=None)
        peers.append(serving.connect(server))
        assert await answers(peers[-1])
    server.replace_options(max_connections_per_ip=2)
    for peer in peers[1:]:
        peer.close()
    await eventually(lambda: len(server.streams) == 1)
    assert await answers(serving.connect(server))
    assert await is_turned_away(serving.connect(server))


@pytest.mark.gen_test
async def test_clients_of_a_unix_socket_are_not_counted_per_address(serving: Serving, tmp_path: Path) -> None:
    server = unix_server(serving, tmp_path, Echo(max_connections_per_ip=1))
    peers = [connect_unix(serving, server) for _ in range(3)]
    for peer in peers:
        assert await answers(peer)


@with_ipv6
@pytest.mark.gen_test
async def test_an_ipv6_client_is_known_by_its_network(serving: Serving) -> None:
    server = Echo(max_connections_per_ip=1)
    server.listen(0, "::1")
    serving.servers.append(server)
    address = server.addresses[0][:2]
    assert await answers(serving.connect(address))
    assert await is_turned_away(serving.connect(address))


# ---- evicting


async def answers_later(peer: Peer) -> bool:
    """Whether it gets an answer, when some time has passed since others did: each has been silent for another time."""
    await asyncio.sleep(0.001)
    return await answers(peer)


@pytest.mark.gen_test
async def test_who_has_been_silent_for_the_longest_time_is_evicted(serving: Serving) -> None:
    server = serving.started(Echo(max_connections=3, when_full="evict"))
    events = listen_to(server, "close")
    peers = []
    for _ in range(3):
        peers.append(serving.connect(server))
        assert await answers_later(peers[-1])
    streams = list(server.streams)
    assert await answers_later(peers[0])
    for number in (1, 2, 0):
        assert await answers_later(serving.connect(server))
        assert await is_turned_away(peers[number])
        assert streams[number].close_reason == "evicted"
        assert len(server.streams) == 3
    assert [(event.stream, event.reason) for event in events] == [(streams[number], "evicted") for number in (1, 2, 0)]


@pytest.mark.gen_test
async def test_a_server_of_one_place_gives_it_to_the_last_who_came(serving: Serving) -> None:
    server = serving.started(Echo(max_connections=1, when_full="evict"))
    before = serving.connect(server)
    assert await answers(before)
    for _ in range(100):
        peer = serving.connect(server)
        assert await answers(peer)
        assert await is_turned_away(before)
        before = peer
    assert len(server.streams) == 1


@pytest.mark.gen_test
async def test_whoever_has_spoken_since_candidates_were_chosen_stays(serving: Serving) -> None:
    server = serving.started(Echo(max_connections=20, when_full="evict"))
    peers = []
    for _ in range(20):
        peers.append(serving.connect(server))
        assert await answers_later(peers[-1])
    assert await answers_later(serving.connect(server))  # all the others are next from here on
    assert await is_turned_away(peers[0])
    assert await answers_later(peers[1])
    for peer in peers[2:]:
        assert await answers_later(serving.connect(server))
        assert await is_turned_away(peer)
    assert await answers(peers[1])


@pytest.mark.gen_test
async def test_nobody_is_evicted_whose_handler_is_at_work_and_the_newcomer_is_turned_away(serving: Serving) -> None:
    go_on = asyncio.Event()

    async def handler(stream: IOStream, address: Any) -> None:
        line = await stream.read_until(b"\n")
        await go_on.wait()
        await stream.write(line)

    server = serving.with_handler(handler, max_connections=2, when_full="evict")
    events = listen_to(server, "reject")
    peers = [serving.connect(server) for _ in range(2)]
    for peer in peers:
        peer.send(b"abc\n")
    await eventually(lambda: len(server.streams) == 2 and not any(stream.reading() for stream in server.streams))
    assert await is_turned_away(serving.connect(server))
    assert [event.reason for event in events] == ["rejected"]
    go_on.set()
    for peer in peers:
        assert await peer.receive_all() == b"abc\n"


@pytest.mark.gen_test
async def test_who_takes_nothing_of_what_is_written_can_be_evicted(serving: Serving) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        fill(stream)
        await stream.write(b"more")

    server = serving.with_handler(handler, max_connections=1, when_full="evict")
    peers = [serving.connect(server)]
    await eventually(lambda: len(server.streams) and next(iter(server.streams)).writing())
    (stream,) = server.streams
    peers.append(serving.connect(server))
    await eventually(stream.closed)
    assert stream.close_reason == "evicted"
    assert stream.fileno() == -1
    assert len(server.streams) == 1


@pytest.mark.gen_test
async def test_what_is_owed_to_who_is_evicted_is_given_up(serving: Serving) -> None:
    """Or else its descriptor would stay open, over the limit, till it has taken what was reported done."""

    async def handler(stream: IOStream, address: Any) -> None:
        while True:
            await stream.write(await stream.read_bytes(1) * 10_000)

    server = serving.with_handler(handler, max_connections=1, when_full="evict")
    peer = serving.connect(server)
    await eventually(lambda: len(server.streams))
    (stream,) = server.streams
    while not stream.queued:
        peer.send(bytes(6))  # replies to what comes at once are corked, up to 64 KiB, and reported done
        await turns()
    serving.connect(server)
    await eventually(stream.closed)
    await eventually(lambda: len(server.streams) and stream not in server.streams)
    assert stream.fileno() == -1


@pytest.mark.parametrize("kind", ["header", "handshake"])
@pytest.mark.gen_test
async def test_who_is_silent_before_its_handler_is_evicted_first(serving: Serving, kind: str) -> None:
    options = TRUSTING if kind == "header" else {"ssl_options": tls_contexts()[0]}
    server = serving.started(Echo(max_connections=3, when_full="evict", **options))
    silent = [serving.connect(server) for _ in range(3)]
    await eventually(lambda: len(server.streams) == 3)
    streams = list(server.streams)
    for peer, stream in zip(silent, streams, strict=True):
        serving.connect(server)
        assert await is_turned_away(peer)
        assert stream.close_reason == "evicted"
    assert len(server.streams) == 3


@pytest.mark.gen_test
async def test_nobody_is_evicted_for_who_has_its_share_already(serving: Serving) -> None:
    server = serving.started(Echo(max_connections=2, max_connections_per_ip=1, when_full="evict"))
    mine, other = connect_from(serving, server, "127.0.0.2"), connect_from(serving, server, "127.0.0.3")
    assert await answers(mine)
    assert await answers(other)
    for _ in range(10):
        assert await is_turned_away(connect_from(serving, server, "127.0.0.3"))
    assert await answers(mine)
    assert await answers(other)
    assert await answers(connect_from(serving, server, "127.0.0.4"))
    assert await is_turned_away(mine)


@pytest.mark.gen_test
async def test_nobody_is_evicted_for_who_queues_at_a_shutdown(serving: Serving) -> None:
    server = serving.started(Echo(max_connections=1, when_full="evict", drain_idle=0.01))
    peer = serving.connect(server)
    peer.send(b"half a ")
    await eventually(lambda: [stream for stream in server.streams if stream.bytes_read])
    server.suspend()
    late = [serving.connect(server) for _ in range(3)]
    ending = asyncio.ensure_future(server.shutdown())
    for each in late:
        assert await is_turned_away(each)
    peer.send(b"line\n")
    assert await peer.receive_all() == b"half a line\n"
    await ending


@pytest.mark.gen_test
async def test_a_rush_of_newcomers_never_goes_over_the_limit_and_all_learn_their_fate(serving: Serving) -> None:
    """Of those who come in one turn of the loop none is evicted for another: their handlers have not begun."""
    server = serving.started(Echo(max_connections=10, when_full="evict"))
    opened, rejected = listen_to(server, "open"), listen_to(server, "reject")
    peers = [serving.connect(server) for _ in range(200)]
    most = 0
    while len(opened) + len(rejected) < 200:
        await turns(1)
        most = max(most, len(server.streams))
    assert most == 10
    stay = {stream.remote_address for stream in server.streams}
    for peer in peers:
        is_in = peer.socket.getsockname() in stay
        assert await (answers(peer) if is_in else is_turned_away(peer))


# ---- turning away


@pytest.fixture
def short_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "REJECT_TIMEOUT", 0.1)


@pytest.fixture
def no_time_for_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is closed before its test ends was not closed for the time."""
    monkeypatch.setattr(handlers, "REJECT_TIMEOUT", 1000.0)


class Turning(Echo):
    """Turns away by a function that it is given, and keeps the streams of whom it does so to."""

    def __init__(self, goodbye: Handler, **options: Any) -> None:
        super().__init__(**{"when_full": "reject", "max_connections": 1, **options})
        self.goodbye = goodbye
        self.away: list[IOStream] = []
        self.closed: list[tuple[IOStream, Any]] = []

    def handle_reject(self, stream: IOStream, address: Any) -> Any:
        self.away.append(stream)
        return self.goodbye(stream, address)

    def handle_close(self, stream: IOStream, reason: Any) -> None:
        self.closed.append((stream, reason))


async def turning(serving: Serving, goodbye: Handler, **options: Any) -> tuple[Turning, Peer]:
    """A server with one place, and the client that has it."""
    server = Turning(goodbye, **options)
    serving.started(server)
    peer = serving.connect(server)
    assert await answers(peer)
    return server, peer


async def say_sorry(stream: IOStream, address: Any) -> None:
    await stream.write(b"sorry\n")


@gen.coroutine
def say_sorry_as_tornado_does(stream: IOStream, address: Any) -> Any:
    yield stream.write(b"sorry\n")


def say_sorry_and_return(stream: IOStream, address: Any) -> None:
    stream.write(b"sorry\n")


@pytest.mark.gen_test
async def test_without_a_goodbye_who_comes_to_a_full_server_is_closed(serving: Serving) -> None:
    server = serving.started(Echo(max_connections=1, when_full="reject"))
    events = listen_to(server)
    good = serving.connect(server)
    assert await answers(good)
    (stream,) = server.streams
    for _ in range(100):
        assert await is_turned_away(serving.connect(server))
    assert await answers(good)
    assert list(server.streams) == [stream]
    assert [event.kind for event in events] == ["open", *["reject", "close"] * 100]
    assert {event.reason for event in events[1:]} == {"rejected"}
    good.close()
    await eventually(stream.closed)
    assert await answers(serving.connect(server))


@pytest.mark.parametrize("goodbye", [say_sorry, say_sorry_as_tornado_does, say_sorry_and_return])
@pytest.mark.usefixtures("no_time_for_goodbyes")
@pytest.mark.gen_test
async def test_a_goodbye_is_delivered_and_then_the_stream_is_closed(serving: Serving, goodbye: Handler) -> None:
    server, good = await turning(serving, goodbye)
    peer = serving.connect(server)
    assert await peer.receive_all() == b"sorry\n"
    peer.close()
    (stream,) = server.away
    await eventually(stream.closed)
    assert stream.close_reason == "rejected"
    assert len(server.streams) == 1
    assert not server.closed, "no handle_close for who had no handle_stream"
    assert await answers(good)


@pytest.mark.parametrize("goodbye", [say_sorry, say_sorry_and_return])
@pytest.mark.usefixtures("no_time_for_goodbyes")
@pytest.mark.gen_test
async def test_a_goodbye_of_a_client_over_the_limit_of_its_address(serving: Serving, goodbye: Handler) -> None:
    server = Turning(goodbye, max_connections=None, max_connections_per_ip=1, when_full="wait")
    serving.started(server)
    good = serving.connect(server)
    assert await answers(good)
    for _ in range(3):
        peer = serving.connect(server)
        assert await peer.receive_all() == b"sorry\n"
        peer.close()
    assert await answers(good)


@pytest.mark.usefixtures("no_time_for_goodbyes")
@pytest.mark.gen_test
async def test_a_goodbye_takes_no_place_from_those_who_wait(serving: Serving) -> None:
    server = Turning(read_for_ever, max_connections=2, max_connections_per_ip=1, when_full="wait")
    serving.started(server)
    good, away = connect_from(serving, server, "127.0.0.2"), connect_from(serving, server, "127.0.0.2")
    assert await answers(good)
    await eventually(lambda: server.away)
    others = [connect_from(serving, server, f"127.0.0.{number}") for number in (3, 4)]
    assert await answers(others[0])
    others[1].send(b"abc\n")
    assert await waits(others[1])
    away.close()
    others[0].close()
    assert await others[1].receive(4) == b"abc\n"


@pytest.mark.usefixtures("no_time_for_goodbyes")
@pytest.mark.gen_test
async def test_the_place_of_who_is_turned_away_after_its_header_goes_to_who_waits(serving: Serving) -> None:
    server = Turning(read_for_ever, max_connections=2, max_connections_per_ip=1, when_full="wait", **TRUSTING)
    serving.started(server)
    good, away = serving.connect(server), serving.connect(server)
    good.send(header("192.0.2.1"))
    assert await answers(good)
    await eventually(lambda: len(server.streams) == 2)
    late = serving.connect(server)
    late.send(header("192.0.2.2") + b"late\n")
    assert await waits(late)
    away.send(header("192.0.2.1"))
    assert await late.receive(5) == b"late\n"
    assert not away.has_input()


async def forever(stream: IOStream, address: Any) -> None:
    await asyncio.Event().wait()


async def read_for_ever(stream: IOStream, address: Any) -> None:
    while True:
        await stream.read_bytes(1)


async def write_for_ever(stream: IOStream, address: Any) -> None:
    while True:
        await stream.write(bytes(60000))


async def write_too_much(stream: IOStream, address: Any) -> None:
    while True:
        stream.write(bytes(60000))


def fill_and_return(stream: IOStream, address: Any) -> None:
    fill(stream)


async def set_callback_and_return(stream: IOStream, address: Any) -> None:
    stream.set_close_callback(lambda: None)


async def return_while_reading(stream: IOStream, address: Any) -> None:
    stream.read_until(b"\n")


@pytest.mark.parametrize(
    "goodbye",
    [
        forever,
        read_for_ever,
        write_for_ever,
        write_too_much,
        fill_and_return,
        set_callback_and_return,
        return_while_reading,
    ],
)
@pytest.mark.usefixtures("short_goodbyes")
@pytest.mark.gen_test
async def test_a_goodbye_has_its_time_whatever_it_does(serving: Serving, goodbye: Handler) -> None:
    server, good = await turning(serving, goodbye)
    handlers = asyncio.all_tasks()
    peers = [serving.connect(server) for _ in range(5)]
    await eventually(lambda: len(server.away) == 5)
    await eventually(lambda: all(stream.fileno() == -1 for stream in server.away))
    await eventually(lambda: asyncio.all_tasks() <= handlers)
    assert {str(stream.close_reason) for stream in server.away} <= {"rejected", "buffer_full"}
    assert await answers(good)
    assert len(peers) == 5


@pytest.mark.gen_test
async def test_what_is_owed_after_a_goodbye_has_no_more_time(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "REJECT_TIMEOUT", 0.5)

    async def goodbye(stream: IOStream, address: Any) -> None:
        while True:
            await stream.write(await stream.read_bytes(1) * 1_000_000)

    server, good = await turning(serving, goodbye)
    peer = serving.connect(server)
    await eventually(lambda: server.away)
    (stream,) = server.away
    while not stream.queued:
        peer.send(b"x")
        await turns()
    await eventually(lambda: stream.fileno() == -1)
    assert stream.close_reason == "rejected"
    assert await answers(good)


@pytest.mark.usefixtures("no_time_for_goodbyes")
@pytest.mark.gen_test
async def test_a_client_that_leaves_before_the_goodbye_leaves_nothing(serving: Serving) -> None:
    server, good = await turning(serving, read_for_ever)
    for _ in range(3 * connections.MAX_REJECTING):
        count = len(server.away)
        peer = serving.connect(server)
        await eventually(lambda count=count: len(server.away) > count)  # type: ignore[misc]
        peer.reset()
        await eventually(server.away[-1].closed)
    assert await answers(good)


@pytest.mark.usefixtures("no_time_for_goodbyes")
@pytest.mark.gen_test
async def test_so_many_are_told_at_a_time_and_the_others_are_closed(serving: Serving) -> None:
    server, good = await turning(serving, read_for_ever)
    told = [serving.connect(server) for _ in range(connections.MAX_REJECTING)]
    await eventually(lambda: len(server.away) == len(told))
    for _ in range(20):
        assert await is_turned_away(serving.connect(server))
    assert len(server.away) == len(told)
    told[0].close()
    await eventually(server.away[0].closed)
    serving.connect(server)
    await eventually(lambda: len(server.away) == len(told) + 1)
    assert await answers(good)


@pytest.mark.parametrize("kind", ["coroutine", "function"])
@pytest.mark.usefixtures("no_time_for_goodbyes")
@pytest.mark.gen_test
async def test_a_goodbye_that_raises_is_logged_and_its_stream_closed(
    serving: Serving, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    async def coroutine(stream: IOStream, address: Any) -> None:
        await stream.write(b"sorry\n")
        raise ZeroDivisionError

    def function(stream: IOStream, address: Any) -> None:
        stream.write(b"sorry\n")
        raise ZeroDivisionError

    server, good = await turning(serving, coroutine if kind == "coroutine" else function)
    peer = serving.connect(server)
    assert await peer.receive_all() == b"sorry\n"
    host, port = peer.socket.getsockname()
    peer.close()
    await eventually(server.away[0].closed)
    assert await answers(good)
    messages = [record.getMessage() for record in caplog.records if record.name == "iostreamsrv.application"]
    assert messages == [f"Exception in callback handle_reject for {host}:{port}"]


@pytest.mark.parametrize("cut_off_by", ["close_all_connections", "the loop's end"])
@pytest.mark.gen_test
async def test_a_goodbye_that_is_cut_off_before_its_first_step_leaves_no_coroutine_unawaited(
    serving: Serving, cut_off_by: str
) -> None:
    test = asyncio.current_task()
    said: list[IOStream] = []

    async def coroutine(stream: IOStream) -> None:
        said.append(stream)

    def cancel_all_others() -> None:
        for task in asyncio.all_tasks() - {test}:
            task.cancel()

    def goodbye(stream: IOStream, address: Any) -> Any:
        if cut_off_by == "close_all_connections":
            closing.append(asyncio.create_task(server.close_all_connections()))
        else:
            asyncio.get_running_loop().call_soon(cancel_all_others)
        return coroutine(stream)

    closing: list[asyncio.Task[None]] = []
    server, _ = await turning(serving, goodbye)
    assert await is_turned_away(serving.connect(server))
    await asyncio.gather(*closing)
    await eventually(lambda: not server.streams)
    assert said == []
    gc.collect()  # a coroutine that was never awaited warns here


@pytest.mark.usefixtures("no_time_for_goodbyes")
@pytest.mark.gen_test
async def test_a_goodbye_that_times_out_by_itself_is_logged(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    async def goodbye(stream: IOStream, address: Any) -> None:
        await asyncio.wait_for(asyncio.Event().wait(), 0.01)

    server, _ = await turning(serving, goodbye)
    assert await is_turned_away(serving.connect(server))
    assert [record.exc_info and record.exc_info[0] for record in caplog.records if record.exc_info] == [TimeoutError]


@pytest.mark.parametrize("kind", ["coroutine", "function"])
@pytest.mark.usefixtures("no_time_for_goodbyes")
@pytest.mark.gen_test
async def test_a_goodbye_may_start_tls_and_is_closed_when_it_returns(serving: Serving, kind: str) -> None:
    context, trusting = tls_contexts()
    upgraded: list[IOStream] = []

    async def coroutine(stream: IOStream, address: Any) -> None:
        upgraded.append(await stream.start_tls(True, context))
        await upgraded[0].write(b"sorry\n")

    def function(stream: IOStream, address: Any) -> None:
        stream.start_tls(True, context)

    server, good = await turning(serving, coroutine if kind == "coroutine" else function)
    stream = await TCPClient().connect(*server.addresses[0])
    secure = await stream.start_tls(False, trusting, "localhost")
    assert await secure.read_until_close() == (b"sorry\n" if kind == "coroutine" else b"")
    if kind == "coroutine":
        await eventually(upgraded[0].closed)
        assert upgraded[0].close_reason == "rejected"
    assert await answers(good)


@pytest.mark.usefixtures("no_time_for_goodbyes")
@pytest.mark.gen_test
async def test_a_goodbye_of_a_tls_server_is_said_under_tls(serving: Serving) -> None:
    context, trusting = tls_contexts()
    server = Turning(say_sorry, ssl_options=context, max_connections=1)
    serving.started(server)
    good = await TCPClient().connect(*server.addresses[0], ssl_options=trusting)
    await good.write(b"abc\n")
    assert await good.read_until(b"\n") == b"abc\n"
    for _ in range(3):
        late = await TCPClient().connect(*server.addresses[0], ssl_options=trusting)
        assert await late.read_until_close() == b"sorry\n"
    await good.write(b"abc\n")
    assert await good.read_until(b"\n") == b"abc\n"
    good.close()


@pytest.mark.gen_test
async def test_without_a_goodbye_a_tls_server_turns_away_before_the_handshake(serving: Serving) -> None:
    server = serving.started(Echo(ssl_options=tls_contexts()[0], max_connections=1, when_full="reject"))
    serving.connect(server)  # which takes the place, silent as it is
    await eventually(lambda: len(server.streams))
    assert await is_turned_away(serving.connect(server))


@pytest.mark.gen_test
async def test_a_silent_client_of_a_tls_server_has_the_time_of_a_handshake_for_its_goodbye(serving: Serving) -> None:
    server = Turning(say_sorry, ssl_options=tls_contexts()[0])
    serving.started(server)
    serving.connect(server)
    await eventually(lambda: len(server.streams))
    server.replace_options(handshake_timeout=0.1)
    events = listen_to(server, "close")
    assert await is_turned_away(serving.connect(server))
    await eventually(lambda: events)
    assert events[0].reason == "handshake_timeout"
    assert not server.away
    assert not server.closed


@pytest.mark.parametrize("way", ["kick", "close", "abort"])
@pytest.mark.gen_test
async def test_a_listener_may_close_who_is_turned_away(serving: Serving, way: str) -> None:
    server, good = await turning(serving, say_sorry)

    def close(event: Event) -> None:
        getattr(event.stream, way)()

    server.events.subscribe(close, "reject")
    for _ in range(connections.MAX_REJECTING + 1):
        with contextlib.suppress(ConnectionResetError):
            assert await is_turned_away(serving.connect(server))
    assert not server.away
    server.events.unsubscribe(close)
    assert await serving.connect(server).receive_all() == b"sorry\n"
    assert await answers(good)


# ---- places are given back


class Obedient(TCPServer):
    """Does to each client what it says; answers all else."""

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        while True:
            match await stream.read_until(b"\n", 100):
                case b"return\n":
                    return
                case b"raise\n":
                    raise ZeroDivisionError
                case b"close\n":
                    stream.close()
                case b"abort\n":
                    stream.abort()
                case b"kick\n":
                    stream.kick()
                case b"cancel\n":
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()
                case b"start_tls\n":
                    await stream.write(b"go ahead\n")
                    stream = await stream.start_tls(True, tls_contexts()[0])
                case b"stuff\n":
                    fill(stream)
                    return
                case line:
                    await stream.write(line)


async def hang_up(peer: Peer) -> None:
    peer.close()


async def reset(peer: Peer) -> None:
    peer.reset()


async def half_close(peer: Peer) -> None:
    peer.half_close()


async def say_nothing(peer: Peer) -> None:
    pass


def saying(*words: bytes) -> Callable[[Peer], Any]:
    async def say(peer: Peer) -> None:
        for word in words:
            peer.send(word)
            await turns(LONG_ENOUGH)

    return say


async def leave_with_everything_unread(peer: Peer) -> None:
    peer.send(b"stuff\n")
    await turns(LONG_ENOUGH)
    peer.reset()


IN_THE_HANDLER: dict[str, Callable[[Peer], Any]] = {
    "end": hang_up,
    "half-close": half_close,
    "reset": reset,
    "too long a line": saying(bytes(200)),
    "the handler returns": saying(b"return\n"),
    "the handler returns while much is unread": leave_with_everything_unread,
    "the handler raises": saying(b"raise\n"),
    "the handler is cancelled": saying(b"cancel\n"),
    "closed": saying(b"close\n"),
    "aborted": saying(b"abort\n"),
    "kicked": saying(b"kick\n"),
    "start_tls fails": saying(b"start_tls\n", b"GET / HTTP/1.1\r\n\r\n"),
    "start_tls has its timeout": saying(b"start_tls\n"),
    "idle": say_nothing,
}

BEFORE_THE_HANDLER: dict[str, tuple[dict[str, Any], Callable[[Peer], Any]]] = {
    "handshake: end": ({"ssl_options": True}, hang_up),
    "handshake: reset": ({"ssl_options": True}, reset),
    "handshake: none": ({"ssl_options": True}, saying(b"GET / HTTP/1.1\r\n\r\n")),
    "handshake: silence": ({"ssl_options": True, "handshake_timeout": 0.05}, say_nothing),
    "header: end": (TRUSTING, hang_up),
    "header: reset": (TRUSTING, reset),
    "header: none": (TRUSTING, saying(b"GET / HTTP/1.1\r\n\r\n")),
    "header: silence": ({**TRUSTING, "proxy_header_timeout": 0.05}, say_nothing),
    "header and handshake: none": ({**TRUSTING, "ssl_options": True}, saying(header("192.0.2.1"), b"GET / \r\n\r\n")),
    "header and handshake: reset": ({**TRUSTING, "ssl_options": True}, reset),
}

EITHER_LIMIT = pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_ip"])


async def empty(server: TCPServer) -> None:
    await eventually(lambda: not len(server.streams))


@EITHER_LIMIT
@pytest.mark.parametrize("way", IN_THE_HANDLER)
@pytest.mark.gen_test
async def test_a_place_is_given_back_once_however_its_stream_ends(serving: Serving, limit: str, way: str) -> None:
    server = serving.started(Obedient(linger=0.05, **{limit: 1}))
    for _ in range(3):
        peer = serving.connect(server)
        assert await answers(peer)
        server.replace_options(
            idle_timeout=0.05 if way == "idle" else None,
            handshake_timeout=0.05 if way == "start_tls has its timeout" else None,
        )
        await IN_THE_HANDLER[way](peer)
        if way == "the handler returns":
            assert await peer.receive_all() == b""
            peer.close()
        await empty(server)
        server.replace_options(idle_timeout=None)
    assert await answers(serving.connect(server))
    late = serving.connect(server)
    assert await (waits(late) if limit == "max_connections" else is_turned_away(late))
    assert len(server.streams) == 1


@EITHER_LIMIT
@pytest.mark.parametrize("way", BEFORE_THE_HANDLER)
@pytest.mark.gen_test
async def test_a_place_is_given_back_once_however_a_stream_ends_before_its_handler(
    serving: Serving, limit: str, way: str
) -> None:
    context, trusting = tls_contexts()
    options, end = BEFORE_THE_HANDLER[way]
    ssl_options = context if "ssl_options" in options else None
    server = serving.started(Obedient(**{**options, "ssl_options": ssl_options}, **{limit: 1}))
    closed = listen_to(server, "close")
    for count in range(1, 4):
        await end(serving.connect(server))
        await eventually(lambda count=count: len(closed) == count)  # type: ignore[misc]
    server.replace_options(handshake_timeout=None, proxy_header_timeout=None)
    stream = await TCPClient().connect(*server.addresses[0])
    if "proxy_protocol" in options:
        await stream.write(header("192.0.2.1"))
    if ssl_options is not None:
        stream = await stream.start_tls(False, trusting, "localhost")
    await stream.write(b"abc\n")
    assert await stream.read_until(b"\n") == b"abc\n"
    late = serving.connect(server)
    if "proxy_protocol" in options:
        late.send(header("192.0.2.1"))
    assert await (waits(late) if limit == "max_connections" else is_turned_away(late))
    assert len(server.streams) == 1
    stream.close()


@EITHER_LIMIT
@pytest.mark.gen_test
async def test_a_place_is_given_back_of_who_is_gone_before_it_is_accepted(serving: Serving, limit: str) -> None:
    server = serving.started(Echo(**{limit: 1}))
    server.suspend()
    closed = listen_to(server, "close")
    for number in range(20):
        peer = serving.connect(server)
        peer.send(b"abc\n")
        if number % 2:
            peer.reset()
        else:
            peer.close()
    server.resume()
    await eventually(lambda: len(closed) == 20)
    await empty(server)
    assert await answers(serving.connect(server))


@EITHER_LIMIT
@pytest.mark.gen_test
async def test_the_place_of_a_stream_stays_taken_when_it_goes_on_under_tls(serving: Serving, limit: str) -> None:
    server = serving.started(Obedient(**{limit: 1}))
    for _ in range(3):
        stream = await TCPClient().connect(*server.addresses[0])
        await stream.write(b"start_tls\n")
        assert await stream.read_until(b"\n") == b"go ahead\n"
        stream = await stream.start_tls(False, tls_contexts()[1], "localhost")
        await stream.write(b"abc\n")
        assert await stream.read_until(b"\n") == b"abc\n"
        server.replace_options(**{limit: 1})  # which counts anew
        late = serving.connect(server)
        assert await (waits(late) if limit == "max_connections" else is_turned_away(late))
        late.close()
        await stream.aclose()
        await empty(server)
