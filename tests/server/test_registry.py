"""`TCPServer.streams`, groups and broadcasts: who is in, who gets what, and what becomes of those who do not read."""

import asyncio
import contextlib
import logging
import socket
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import IOLoop, IOStream, KickedError, OptionError, StreamBufferFullError, StreamClosedError, TCPServer
from iostreamsrv.server.groups import Group
from tests.support.engines import on_every_loop
from tests.support.leaks import complaints
from tests.support.peers import Peer, TLSEnd, TLSPeer, tls_contexts
from tests.support.servers import Serving
from tests.support.waiting import PATIENCE, eventually, turns

pytestmark = on_every_loop

LINE = b"0123456789abcde\n"


class Hall(TCPServer):
    """Its clients stay until they leave, and say what they like."""

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await stream.read_until_close()


Enter = Callable[..., Any]


class Entering(Serving):
    """Clients over Unix sockets: what the kernel holds for one who does not read is little, and always the same."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def started(self, server: TCPServer, port: int = 0) -> TCPServer:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._folder / f"{len(self.servers)}"))
        listener.listen(1000)
        server.add_socket(listener)
        self.servers.append(server)
        return server

    def connect(self, server: TCPServer | Any) -> Peer:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(server.addresses[0] if isinstance(server, TCPServer) else server)
        peer = Peer(sock)
        self.peers.append(peer)
        return peer

    async def enter(self, server: TCPServer) -> tuple[IOStream, Peer]:
        """A new client, when it has its handler: its stream and the other end of it."""
        before = set(server.streams)
        peer = self.connect(server)
        await eventually(lambda: any(stream.reading() for stream in set(server.streams) - before))
        (stream,) = set(server.streams) - before
        return stream, peer

    async def enter_all(self, server: TCPServer, count: int) -> tuple[list[IOStream], list[Peer]]:
        pairs = [await self.enter(server) for _ in range(count)]
        return [stream for stream, _ in pairs], [peer for _, peer in pairs]


@pytest.fixture
def entering(io_loop: IOLoop, tmp_path: Path) -> Iterator[Entering]:
    entering = Entering(tmp_path)
    yield entering
    entering.end()


@pytest.fixture
def hall(entering: Entering) -> TCPServer:
    return entering.started(Hall())


def fill_up(stream: IOStream) -> int:
    """Write until the queue is full; how many bytes that were."""
    limit = stream.max_write_buffer_size
    assert limit is not None
    before = stream.bytes_written
    while not stream.queued:
        stream.write(bytes(min(limit, 65536)))
    stream.write(bytes(limit - stream.queued))
    assert stream.queued == limit
    return stream.bytes_written + stream.queued - before


# ---- groups


@pytest.mark.gen_test
async def test_a_group_has_those_who_joined_and_not_left(entering: Entering, hall: TCPServer) -> None:
    (one, other, stranger), _ = await entering.enter_all(hall, 3)
    room = hall.group("room")
    for stream in (one, other, one):
        room.join(stream)
    assert len(room) == 2
    assert set(room) == {one, other}
    assert one in room and stranger not in room
    assert room.get(one.id) is one and room.get(stranger.id) is None
    assert repr(room) == "<Group 'room': 2 streams>"
    for stream in (one, one, stranger):
        room.leave(stream)
    assert list(room) == [other]
    assert len(hall.streams) == 3


@pytest.mark.gen_test
async def test_a_stream_may_be_in_several_groups_and_leave_one_of_them(entering: Entering, hall: TCPServer) -> None:
    stream, _ = await entering.enter(hall)
    rooms = [hall.group(name) for name in range(3)]
    for room in rooms:
        room.join(stream)
    rooms[1].leave(stream)
    assert [len(room) for room in rooms] == [1, 0, 1]


@pytest.mark.gen_test
async def test_streams_may_leave_a_group_while_one_goes_over_it(entering: Entering, hall: TCPServer) -> None:
    streams, _ = await entering.enter_all(hall, 3)
    room = hall.group("room")
    for stream in streams:
        room.join(stream)
    for stream in room:
        room.leave(stream)
    assert len(room) == 0


ENDS: dict[str, Callable[[IOStream, Peer], Any]] = {
    "the peer closes": lambda _, peer: peer.close(),
    "the peer resets": lambda _, peer: peer.reset(),
    "close": lambda stream, _: stream.close(),
    "abort": lambda stream, _: stream.abort(),
    "kick": lambda stream, _: stream.kick(),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.gen_test
async def test_a_stream_leaves_all_its_groups_at_its_end(
    serving: Serving, end: Callable[[IOStream, Peer], Any]
) -> None:
    server = serving.started(Hall())
    peer, stays = serving.connect(server), serving.connect(server)
    await eventually(lambda: len(server.streams) == 2)
    stream = next(each for each in server.streams if each.remote_address == peer.socket.getsockname())
    rooms = [server.group(name) for name in range(3)]
    for room in rooms:
        for each in server.streams:
            room.join(each)
    end(stream, peer)
    await eventually(lambda: stream not in server.streams)
    assert [len(room) for room in rooms] == [1, 1, 1]
    assert not any(stream in room for room in rooms)
    assert await rooms[0].broadcast(LINE) == 1
    assert await stays.receive(len(LINE)) == LINE


@pytest.mark.gen_test
async def test_a_stream_leaves_its_groups_when_its_handler_returns(entering: Entering) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        server.group("room").join(stream)
        await stream.read_until(b"\n")

    server = entering.with_handler(handler)
    stream, peer = await entering.enter(server)
    room = server.group("room")
    assert list(room) == [stream]
    peer.send(b"\n")
    peer.half_close()
    await eventually(lambda: not room)


@pytest.mark.gen_test
async def test_a_group_is_forgotten_with_its_last_stream(entering: Entering, hall: TCPServer) -> None:
    stream, peer = await entering.enter(hall)
    left, ended = weakref.ref(hall.group("left")), weakref.ref(hall.group("ended"))
    assert left() is None, "nobody ever joined it"
    for name in ("left", "ended"):
        hall.group(name).join(stream)
    left, ended = weakref.ref(hall.group("left")), weakref.ref(hall.group("ended"))
    hall.group("left").leave(stream)
    assert left() is None
    assert list(hall.group("ended")) == [stream]
    peer.close()
    await eventually(stream.closed)
    assert ended() is None
    assert len(hall.group("ended")) == 0


@pytest.mark.gen_test
async def test_a_group_that_somebody_holds_is_the_same_after_it_was_empty(entering: Entering, hall: TCPServer) -> None:
    stream, _ = await entering.enter(hall)
    room = hall.group("room")
    room.join(stream)
    room.leave(stream)
    assert hall.group("room") is room
    room.join(stream)
    assert list(hall.group("room")) == [stream]


@pytest.mark.parametrize(
    "name",
    [None, 0, "", b"room", ("room", 1), frozenset({1}), float("nan"), object(), Hall],
    ids=lambda name: type(name).__name__,
)
@pytest.mark.gen_test
async def test_a_groups_name_is_anything_that_can_be_a_key(entering: Entering, hall: TCPServer, name: Any) -> None:
    stream, _ = await entering.enter(hall)
    hall.group(name).join(stream)
    assert hall.group(name).name is name
    assert list(hall.group(name)) == [stream]
    assert len(hall.group("another")) == 0


@pytest.mark.gen_test
async def test_a_name_that_cannot_be_a_key_raises(hall: TCPServer) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hall.group(["room"])


@pytest.mark.gen_test
async def test_groups_of_the_same_name_are_each_servers_own(entering: Entering, hall: TCPServer) -> None:
    other = entering.started(Hall())
    (one, _), (two, _) = await entering.enter(hall), await entering.enter(other)
    hall.group("room").join(one)
    other.group("room").join(two)
    assert list(hall.group("room")) == [one]
    with pytest.raises(ValueError, match="not a stream of this server"):
        hall.group("room").join(two)
    hall.group("room").leave(two)
    assert list(other.group("room")) == [two]


@pytest.mark.gen_test
async def test_a_stream_of_no_server_cannot_join(hall: TCPServer) -> None:
    ours, theirs = socket.socketpair()
    stream = IOStream(ours)
    with theirs, pytest.raises(ValueError, match="not a stream of this server"):
        hall.group("room").join(stream)
    stream.close()
    with pytest.raises(StreamClosedError):
        hall.group("room").join(stream)


@pytest.mark.gen_test
async def test_a_closed_stream_cannot_join(entering: Entering, hall: TCPServer) -> None:
    stream, _ = await entering.enter(hall)
    stream.close()
    room = hall.group("room")
    with pytest.raises(StreamClosedError) as caught:
        room.join(stream)
    assert caught.value.reason == "local"
    assert len(room) == 0


@pytest.mark.gen_test
async def test_a_closed_stream_that_still_delivers_what_it_owes_cannot_join(entering: Entering) -> None:
    closed: list[IOStream] = []

    async def handler(stream: IOStream, address: Any) -> None:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for _ in range(5):
            await stream.read_until(b"\n")
            stream.write(bytes(6_000))
        stream.close()
        closed.append(stream)

    server = entering.with_handler(handler)
    stream, peer = await entering.enter(server)
    peer.send(LINE * 10)
    await eventually(lambda: closed)
    assert stream in server.streams
    with pytest.raises(StreamClosedError):
        server.group("room").join(stream)
    assert await server.broadcast(LINE) == 0
    assert await peer.receive(30_000) == bytes(30_000)
    await eventually(lambda: not server.streams)


@pytest.mark.gen_test
async def test_handle_close_finds_its_stream_in_no_group_and_cannot_join_again(entering: Entering) -> None:
    seen: list[Any] = []

    def handle_close(stream: IOStream, reason: str) -> None:
        seen.append((stream in server.group("room"), stream in server.streams))
        with pytest.raises(StreamClosedError):
            server.group("room").join(stream)
        seen.append(len(server.group("room")))

    server = entering.started(Hall())
    server.handle_close = handle_close  # type: ignore[method-assign]
    stream, peer = await entering.enter(server)
    server.group("room").join(stream)
    peer.close()
    await eventually(lambda: len(seen) == 2)
    assert seen == [(False, False), 0]


@pytest.mark.gen_test
async def test_a_stream_that_starts_tls_takes_the_place_of_the_plain_one(serving: Serving) -> None:
    plain: list[IOStream] = []

    async def handler(stream: IOStream, address: Any) -> None:
        plain.append(stream)
        server.group("room").join(stream)
        await stream.read_until(b"\n")
        stream = await stream.start_tls(True, tls_contexts()[0])
        await stream.write(b"secured\n")
        await stream.read_until_close()

    server = serving.with_handler(handler)
    peer = serving.connect(server)
    peer.send(b"starttls\n")
    await eventually(lambda: plain and plain[0].closed())
    room = server.group("room")
    (stream,) = room
    assert stream is not plain[0] and plain[0] not in room
    assert list(server.streams) == [stream]
    with pytest.raises(StreamClosedError):
        room.join(plain[0])
    end = TLSEnd(peer.socket, tls_contexts()[1])
    await eventually(end.handshake)
    secured = TLSPeer(end)
    assert await secured.receive(8) == b"secured\n"
    assert await room.broadcast(b"not for you\n", exclude=plain[0]) == 0
    assert await room.broadcast(LINE) == 1
    assert await secured.receive(len(LINE)) == LINE
    room.leave(plain[0])
    assert len(room) == 0


# ---- broadcasts: who gets them

Speaker = TCPServer | Group


def speakers(server: TCPServer) -> Iterator[Speaker]:
    """Who can speak to all there are: the server, and a group of all."""
    yield server
    room = server.group("all")
    for stream in server.streams:
        room.join(stream)
    yield room


@pytest.mark.gen_test
async def test_a_broadcast_reaches_all_and_says_how_many(entering: Entering, hall: TCPServer) -> None:
    _, peers = await entering.enter_all(hall, 5)
    for speaker in speakers(hall):
        future = speaker.broadcast(LINE)
        assert isinstance(future, asyncio.Future)
        assert future.done()
        assert await future == 5
        for peer in peers:
            assert await peer.receive(len(LINE)) == LINE


@pytest.mark.gen_test
async def test_a_broadcast_to_a_group_reaches_nobody_else(entering: Entering, hall: TCPServer) -> None:
    (stream, _), (peer, stranger) = await entering.enter_all(hall, 2)
    hall.group("room").join(stream)
    assert await hall.group("room").broadcast(LINE) == 1
    assert await peer.receive(len(LINE)) == LINE
    assert not stranger.has_input()


@pytest.mark.gen_test
async def test_a_broadcast_before_any_client_reaches_nobody(entering: Entering) -> None:
    server = entering.started(Hall())
    assert await server.broadcast(LINE) == 0
    assert await server.group("room").broadcast(LINE, slow="wait") == 0


EXCLUDES: dict[str, Callable[[list[IOStream]], Any]] = {
    "one": lambda streams: streams[0],
    "a list": lambda streams: streams[:2],
    "a set": lambda streams: set(streams[:2]),
    "a generator": lambda streams: (stream for stream in streams[:2]),
    "all": lambda streams: streams,
    "nobody": lambda streams: [],
}


@pytest.mark.parametrize("exclude", EXCLUDES.values(), ids=EXCLUDES)
@pytest.mark.gen_test
async def test_a_broadcast_leaves_out_whom_it_is_told_to(
    entering: Entering, hall: TCPServer, exclude: Callable[[list[IOStream]], Any]
) -> None:
    streams, peers = await entering.enter_all(hall, 3)
    excluded = exclude(streams)
    out = {excluded} if isinstance(excluded, IOStream) else set(exclude(streams))
    for speaker in speakers(hall):
        assert await speaker.broadcast(LINE, exclude=exclude(streams)) == 3 - len(out)
        for stream, peer in zip(streams, peers, strict=True):
            if stream in out:
                assert not peer.has_input()
            else:
                assert await peer.receive(len(LINE)) == LINE


@pytest.mark.gen_test
async def test_a_broadcast_may_leave_out_a_group(entering: Entering, hall: TCPServer) -> None:
    (stream, _), (muted, peer) = await entering.enter_all(hall, 2)
    hall.group("muted").join(stream)
    assert await hall.broadcast(LINE, exclude=hall.group("muted")) == 1
    assert await peer.receive(len(LINE)) == LINE
    assert not muted.has_input()


@pytest.mark.gen_test
async def test_a_broadcasts_data_is_the_callers_again_at_once(entering: Entering, hall: TCPServer) -> None:
    _, peers = await entering.enter_all(hall, 3)
    data = bytearray(b"abc" * 200_000)
    assert await hall.broadcast(data) == 3
    assert any(stream.queued for stream in hall.streams)
    data[:] = b""
    for peer in peers:
        assert await peer.receive(600_000) == b"abc" * 200_000


@pytest.mark.parametrize("data", [memoryview(b"abcd"), memoryview(b"a.b.c.d.")[::2], memoryview(b"abcd").cast("H")])
@pytest.mark.gen_test
async def test_any_view_of_bytes_can_be_broadcast(entering: Entering, hall: TCPServer, data: Any) -> None:
    _, peer = await entering.enter(hall)
    assert await hall.broadcast(data) == 1
    assert await peer.receive(4) == b"abcd"


@pytest.mark.parametrize("data", ["abc", 3, None, [1, 2]])
@pytest.mark.gen_test
async def test_nothing_else_can_be_broadcast(entering: Entering, hall: TCPServer, data: Any) -> None:
    _, peer = await entering.enter(hall)
    with pytest.raises(TypeError, match=type(data).__name__):
        hall.broadcast(data)
    await turns()
    assert not peer.has_input()


@pytest.mark.parametrize("slow", ["", "Drop", None, True])
@pytest.mark.gen_test
async def test_what_becomes_of_slow_streams_is_one_of_three_things(hall: TCPServer, slow: Any) -> None:
    with pytest.raises(OptionError, match="'drop', 'kick' or 'wait'"):
        hall.broadcast(LINE, slow=slow)
    with pytest.raises(OptionError, match="'drop', 'kick' or 'wait'"):
        hall.group("room").broadcast(LINE, slow=slow)


@pytest.mark.gen_test
async def test_a_callback_may_broadcast(entering: Entering, hall: TCPServer, io_loop: IOLoop) -> None:
    _, peer = await entering.enter(hall)
    io_loop.add_callback(hall.broadcast, LINE)
    assert await peer.receive(len(LINE)) == LINE


@pytest.mark.gen_test
async def test_what_handlers_broadcast_of_many_lines_arrives_in_order_everywhere(entering: Entering) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        while True:
            server.broadcast(await stream.read_until(b"\n"))

    server = entering.with_handler(handler)
    _, peers = await entering.enter_all(server, 4)
    lines = b"".join(b"%d\n" % number for number in range(2000))
    peers[0].send(lines)
    for peer in peers:
        assert await peer.receive(len(lines)) == lines


@pytest.mark.gen_test
async def test_a_broadcast_keeps_its_place_among_a_handlers_own_writes(entering: Entering) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        while line := await stream.read_until(b"\n"):
            stream.write(b"<" + line)
            server.broadcast(line)
            stream.write(b">" + line)

    server = entering.with_handler(handler)
    _, peer = await entering.enter(server)
    peer.send(b"".join(b"%d\n" % number for number in range(100)))
    expected = b"".join(b"<%d\n%d\n>%d\n" % (number, number, number) for number in range(100))
    assert await peer.receive(len(expected)) == expected


@pytest.mark.parametrize("phase", ["handshake", "header"])
@pytest.mark.gen_test
async def test_a_client_without_a_handler_yet_gets_no_broadcast(serving: Serving, phase: str) -> None:
    options: dict[str, Any] = {"proxy_protocol": ["127.0.0.0/8"]} if phase == "header" else {}
    server = Hall(tls_contexts()[0] if phase == "handshake" else None, **options)
    peer = serving.connect(serving.started(server))
    await eventually(lambda: len(server.streams) == 1)
    for speaker in speakers(server):
        assert await speaker.broadcast(LINE) == 0
        assert await speaker.broadcast(LINE, slow="wait") == 0
    (stream,) = server.streams
    assert not stream.queued and not stream.bytes_written
    assert not peer.has_input()


# ---- broadcasts: who does not read


@pytest.mark.gen_test
async def test_a_slow_stream_misses_a_broadcast_and_gets_the_next(entering: Entering, hall: TCPServer) -> None:
    (slow, _), (reader, other) = await entering.enter_all(hall, 2)
    filled = fill_up(slow)
    assert await hall.broadcast(b"missed") == 1
    assert await other.receive(6) == b"missed"
    assert len(await reader.receive(filled)) == filled
    await slow.drain()
    assert await hall.broadcast(b"taken!") == 2
    assert await reader.receive(6) == b"taken!"


@pytest.mark.gen_test
async def test_a_slow_stream_has_each_broadcast_whole_or_not_at_all(entering: Entering) -> None:
    server = entering.started(Hall(max_write_buffer_size=200_000))
    stream, peer = await entering.enter(server)
    taken = []
    for number in range(256):
        if await server.broadcast(bytes([number]) * 7_000):
            taken.append(number)
        assert stream.queued <= 200_000
    assert 0 < len(taken) < 256
    assert await peer.receive(7_000 * len(taken)) == b"".join(bytes([number]) * 7_000 for number in taken)


@pytest.mark.gen_test
async def test_a_slow_stream_is_kicked_and_the_others_are_served(entering: Entering, hall: TCPServer) -> None:
    streams, peers = await entering.enter_all(hall, 4)
    for stream in streams[::2]:
        fill_up(stream)
    assert await hall.broadcast(LINE, slow="kick") == 2
    for stream in streams[::2]:
        assert stream.close_reason == "kicked"
        assert isinstance(stream.error, KickedError)
        assert "does not read" in str(stream.error)
    for peer in peers[1::2]:
        assert await peer.receive(len(LINE)) == LINE
    assert set(hall.streams) == set(streams[1::2])


@pytest.mark.gen_test
async def test_a_broadcast_waits_for_slow_streams_and_loses_nothing(entering: Entering, hall: TCPServer) -> None:
    streams, peers = await entering.enter_all(hall, 3)
    filled = [fill_up(stream) for stream in streams[:2]]
    future = hall.broadcast(LINE, slow="wait")
    assert await peers[2].receive(len(LINE)) == LINE, "who reads waits for nobody"
    await turns()
    assert not future.done()
    assert len(await peers[0].receive(filled[0])) == filled[0]
    assert await peers[0].receive(len(LINE)) == LINE
    assert not future.done()
    assert len(await peers[1].receive(filled[1])) == filled[1]
    assert await peers[1].receive(len(LINE)) == LINE
    assert await future == 3


@pytest.mark.gen_test
async def test_broadcasts_that_are_awaited_reach_slow_readers_complete_and_in_order(entering: Entering) -> None:
    server = entering.started(Hall(max_write_buffer_size=50_000))
    _, peers = await entering.enter_all(server, 3)
    messages = [b"%06d" % number * (number * 37 % 2_000) for number in range(300)]
    reading = [asyncio.create_task(peer.receive(sum(map(len, messages)))) for peer in peers]
    for message in messages:
        assert await server.broadcast(message, slow="wait") == 3
    for task in reading:
        assert await task == b"".join(messages)


@pytest.mark.gen_test
async def test_no_broadcast_overtakes_one_that_waits(entering: Entering) -> None:
    server = entering.started(Hall(max_write_buffer_size=100_000))
    stream, peer = await entering.enter(server)
    filled = fill_up(stream)
    sizes = [50_000, 1_000, 90_000, 300] * 25
    messages = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    futures = [server.broadcast(message, slow="wait") for message in messages]
    assert await server.broadcast(b"dropped", slow="drop") == 0
    received = await peer.receive(filled + sum(sizes))
    assert received[filled:] == b"".join(messages)
    assert [await future for future in futures] == [1] * len(sizes)
    assert await server.broadcast(LINE) == 1
    assert await peer.receive(len(LINE)) == LINE


@pytest.mark.gen_test
async def test_a_waiting_broadcast_may_be_larger_than_the_queue(entering: Entering) -> None:
    server = entering.started(Hall(max_write_buffer_size=10_000))
    stream, peer = await entering.enter(server)
    filled = fill_up(stream)
    future = server.broadcast(bytes(100_000), slow="wait")
    assert len(await peer.receive(filled + 100_000)) == filled + 100_000
    assert await future == 1


@pytest.mark.gen_test
async def test_a_waiting_broadcast_does_not_count_streams_that_end(entering: Entering, hall: TCPServer) -> None:
    streams, peers = await entering.enter_all(hall, 4)
    for stream in streams[:3]:
        fill_up(stream)
    future = hall.broadcast(LINE, slow="wait")
    await turns()
    streams[0].close()
    peers[1].close()
    streams[2].kick()
    assert await future == 1


@pytest.mark.gen_test
async def test_a_waiting_broadcast_lets_the_loop_go_on_when_many_small_writes_fill_the_queue(
    entering: Entering, hall: TCPServer
) -> None:
    stream, peer = await entering.enter(hall)
    while not stream.queued:
        stream.write(bytes(65536))
    begun, held = stream.bytes_written + stream.queued, []
    with contextlib.suppress(StreamBufferFullError):
        while True:
            held.append(stream.write(b"x"))
    small = len(held)
    assert stream.queued < 1 << 19, "each counts more than its byte"
    futures = [hall.broadcast(LINE, slow="wait") for _ in range(3)]
    await turns()
    assert not any(future.done() for future in futures)
    received = await peer.receive(begun + small + 3 * len(LINE))
    assert received.endswith(b"x" * small + LINE * 3)
    assert [await future for future in futures] == [1, 1, 1]


@pytest.mark.gen_test
async def test_a_waiting_broadcast_may_be_cancelled(entering: Entering, hall: TCPServer) -> None:
    (slow, _), (peer, _) = await entering.enter_all(hall, 2)
    filled = fill_up(slow)
    future = hall.broadcast(b"never", slow="wait")
    await turns()
    future.cancel()
    await asyncio.wait([future])
    assert len(await peer.receive(filled)) == filled
    await slow.write(LINE)
    assert await peer.receive(len(LINE)) == LINE


def allocated(broadcasts: Callable[[], object]) -> int:
    """How many bytes are left allocated after it."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        broadcasts()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("slow", ["drop", "wait"])
@pytest.mark.gen_test
async def test_streams_that_do_not_read_share_one_copy_of_large_broadcasts(entering: Entering, slow: Any) -> None:
    server = entering.started(Hall())
    await entering.enter_all(server, 20)
    waiting: list[asyncio.Future[int]] = []

    def broadcasts() -> None:
        waiting.extend(server.broadcast(bytearray(500_000), slow=slow) for _ in range(4))

    assert allocated(broadcasts) < 4 * 500_000 + 20 * 65536, "each of the 20 streams has up to 1 MB queued"
    for stream in server.streams:
        assert stream.queued > 700_000
        stream.abort()
    await asyncio.gather(*waiting)


@pytest.mark.gen_test
async def test_streams_that_do_not_read_take_no_more_memory_than_their_queues_may(entering: Entering) -> None:
    server = entering.started(Hall(max_write_buffer_size=100_000))
    await entering.enter_all(server, 20)

    def broadcasts() -> None:
        for _ in range(1_000):  # ten times what fits
            server.broadcast(bytes(1_000))

    assert allocated(broadcasts) < 20 * (1_000_000 if sys.flags.dev_mode else 200_000)  # a future's traceback is large
    assert all(90_000 < stream.queued <= 100_000 for stream in server.streams)


# ---- broadcasts during which streams end


@pytest.mark.gen_test
async def test_a_broadcast_passes_over_streams_that_are_closed_meanwhile(entering: Entering) -> None:
    def handle_close(stream: IOStream, reason: str) -> None:
        for each in server.streams:
            if each is not last:
                each.close()

    server = entering.started(Hall())
    server.handle_close = handle_close  # type: ignore[method-assign]
    streams, peers = await entering.enter_all(server, 5)
    last = streams[-1]
    for stream in streams[:-1]:
        fill_up(stream)
    assert await server.broadcast(LINE, slow="kick") == 1
    assert await peers[-1].receive(len(LINE)) == LINE
    assert list(server.streams) == [last]


@pytest.mark.gen_test
async def test_a_stream_that_is_closing_in_order_gets_no_broadcast(entering: Entering, hall: TCPServer) -> None:
    (stream, _), (peer, _) = await entering.enter_all(hall, 2)
    closing = asyncio.create_task(stream.aclose())
    await turns()
    assert await hall.broadcast(LINE) == 1
    peer.half_close()
    assert await peer.receive_all() == b""
    await closing


ENDING: dict[str, Callable[[TCPServer, Callable[[], object]], object]] = {
    "handle_close": lambda server, speak: setattr(server, "handle_close", lambda stream, reason: speak()),
    "a subscriber": lambda server, speak: server.events.subscribe(lambda event: speak(), "close"),
}
"""How one speaks to all at an end."""

MANY_RESETS = 60 if sys.flags.dev_mode else 300
"""Each is told to all, and with ``-X dev`` that takes its time."""


@pytest.mark.parametrize("when", ENDING.values(), ids=ENDING)
@pytest.mark.gen_test
async def test_many_resets_at_once_of_which_each_is_told_to_all_end_each_stream_once(
    serving: Serving, caplog: pytest.LogCaptureFixture, when: Callable[[TCPServer, Callable[[], object]], object]
) -> None:
    """The first word about the first of them finds the second, and so on: calls must not pile up within each other."""
    said: list[int] = []
    depth = 0

    def speak() -> None:
        nonlocal depth
        depth += 1
        said.append(depth)
        server.broadcast(LINE)
        depth -= 1

    server = serving.started(Hall())
    when(server, speak)
    stays = serving.connect(server)
    peers = [serving.connect(server) for _ in range(MANY_RESETS)]
    await eventually(lambda: len(server.streams) == MANY_RESETS + 1)
    for peer in peers:
        peer.reset()
    await eventually(lambda: len(server.streams) == 1)
    assert said == [1] * MANY_RESETS
    assert await stays.receive(MANY_RESETS * len(LINE)) == LINE * MANY_RESETS
    assert not complaints(caplog)


@pytest.mark.gen_test
async def test_many_kicks_of_which_each_is_told_to_all_end_each_stream_once(
    entering: Entering, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[IOStream] = []

    def handle_close(stream: IOStream, reason: str) -> None:
        ended.append(stream)
        server.broadcast(LINE, slow="kick")

    server = entering.started(Hall(max_write_buffer_size=10_000))
    server.handle_close = handle_close  # type: ignore[method-assign]
    streams, peers = await entering.enter_all(server, 200)
    for stream in streams[:-1]:
        fill_up(stream)
    assert await server.broadcast(b"hello\n", slow="kick") == 1
    assert ended == streams[:-1]
    assert list(server.streams) == streams[-1:]
    assert await peers[-1].receive(6 + 199 * len(LINE)) == b"hello\n" + LINE * 199, (
        "what has led to the others is first"
    )
    assert not complaints(caplog)


@pytest.mark.gen_test
async def test_a_broadcast_does_not_count_a_stream_it_finds_broken(serving: Serving) -> None:
    server = serving.started(Hall())
    peers = [serving.connect(server) for _ in range(3)]
    await eventually(lambda: len(server.streams) == 3)
    peers[1].reset()
    assert await server.broadcast(LINE) == 2
    for peer in peers[::2]:
        assert await peer.receive(len(LINE)) == LINE
    assert len(server.streams) == 2


# ---- kick


@pytest.mark.gen_test
async def test_a_kicked_stream_tells_its_handler_why(entering: Entering, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[Any] = []

    async def handler(stream: IOStream, address: Any) -> None:
        try:
            await stream.read_until(b"\n")
        except StreamClosedError as error:
            seen.append((str(error.reason), str(error.real_error)))
            raise

    server = entering.with_handler(handler)
    server.handle_close = lambda stream, reason: seen.append(reason)  # type: ignore[method-assign]
    stream, peer = await entering.enter(server)
    await stream.write(b"bye\n")
    stream.kick("too many wrong passwords")
    stream.kick("the first counts")
    assert await peer.receive_all() == b"bye\n"
    assert stream.close_reason == "kicked"
    assert isinstance(stream.error, KickedError)
    assert str(stream.error) == "too many wrong passwords"
    await eventually(lambda: len(seen) == 2)
    assert seen == ["kicked", ("kicked", "too many wrong passwords")]
    assert any("too many wrong passwords" in record.getMessage() for record in caplog.records)
    assert not [record for record in caplog.records if record.exc_info or record.levelno > logging.INFO]


@pytest.mark.gen_test
async def test_kick_all_closes_everybody(serving: Serving) -> None:
    server = serving.started(Hall(tls_contexts()[0]))
    peers = [serving.connect(server) for _ in range(3)]
    await eventually(lambda: len(server.streams) == 3)
    streams = list(server.streams)
    server.kick_all("closing time")
    assert len(server.streams) == 0
    assert {(stream.close_reason, str(stream.error)) for stream in streams} == {("kicked", "closing time")}
    for peer in peers:
        assert await peer.receive_all() == b""


@pytest.mark.gen_test
async def test_a_handler_may_kick_everybody_itself_included(entering: Entering) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        server.kick_all()

    server = entering.with_handler(handler)
    _, peers = await entering.enter_all(server, 3)
    peers[0].send(b"\n")
    for peer in peers:
        assert await peer.receive_all() == b""
    await eventually(lambda: not server.streams)


# ---- who never awaits a write


@pytest.mark.parametrize("size", [100, 1_000, 100_000])
@pytest.mark.gen_test
async def test_a_handler_that_never_awaits_its_writes_gets_an_error_instead_of_the_memory(
    entering: Entering, size: int
) -> None:
    taken: list[int] = []

    async def handler(stream: IOStream, address: Any) -> None:
        data = bytes(size)
        tracemalloc.start()
        try:
            while True:
                stream.write(data)
        finally:
            taken.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    server = entering.with_handler(handler)
    peer = entering.connect(server)
    await eventually(lambda: taken)
    assert taken[0] < 4 << 20, "1 MiB is the limit"
    async with asyncio.timeout(PATIENCE):
        assert await peer.receive_all(), "what was written before arrives"
