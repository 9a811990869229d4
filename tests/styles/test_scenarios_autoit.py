"""What a program for AutoIt's TCP server UDF relies on; the numbers are those of its scenarios."""

import asyncio
import socket
import time
from itertools import pairwise
from typing import Any

import pytest

from iostreamsrv import IOStream
from tests.support.engines import on_every_loop
from tests.support.peers import Peer
from tests.support.recorder import Recorder
from tests.support.servers import Serving
from tests.support.waiting import eventually, turns

pytestmark = on_every_loop


def packets(stream: IOStream, data: bytes) -> int:
    """Consume one ``<pkt>…</pkt>``, if all of it is there."""
    return data.find(b"</pkt>") + 6 if b"</pkt>" in data else 0


def started(serving: Serving, **keywords: Any) -> Recorder:
    server = Recorder(**keywords)
    serving.started(server)
    return server


@pytest.mark.gen_test
async def test_autoit_1_what_is_not_consumed_is_offered_again_with_what_comes(serving: Serving) -> None:
    server = started(serving, on_data=packets, max_connections=2, idle_timeout=60, tick_interval=0.1)
    peer = serving.connect(server)
    peer.send(b"<pkt>a")
    await server.called("on_data")
    peer.send(b"</pkt><pkt>b</pkt>")
    await server.called("on_data", 3)
    assert server.received == [b"<pkt>a", b"<pkt>a</pkt><pkt>b</pkt>", b"<pkt>b</pkt>"]
    (stream,) = server.streams
    assert stream.buffered == 0


@pytest.mark.parametrize("returned", [-1, 7, 1000])
@pytest.mark.gen_test
async def test_autoit_2_minus_one_or_more_than_there_is_discards_all(serving: Serving, returned: int) -> None:
    server = started(serving, on_data=lambda stream, data: returned)
    peer = serving.connect(server)
    peer.send(b"first")
    await server.called("on_data")
    peer.send(b"second")
    await server.called("on_data", 2)
    assert server.received == [b"first", b"second"]


@pytest.mark.parametrize("returned", [0, None])
@pytest.mark.gen_test
async def test_autoit_2_after_0_or_none_it_waits_for_more_bytes(serving: Serving, returned: int | None) -> None:
    server = started(serving, on_data=lambda stream, data: returned)
    peer = serving.connect(server)
    peer.send(b"one")
    await server.called("on_data")
    await turns(50)
    assert server.received == [b"one"]
    peer.send(b"two")
    await server.called("on_data", 2)
    assert server.received == [b"one", b"onetwo"]


@pytest.mark.gen_test
async def test_autoit_2_0_with_a_full_buffer_closes(serving: Serving) -> None:
    server = started(serving, max_buffer_size=1000)
    peer = serving.connect(server)
    peer.send(bytes(5000))
    stream, error = await server.called("on_error")
    assert stream.close_reason == error.reason == "buffer_full"
    await server.called("on_disconnect")
    assert await ended(peer)


async def ended(peer: Peer) -> bool:
    """Whether the client sees the end; a reset is one, where it has sent what nobody read."""
    try:
        return await peer.receive_all() == b""
    except ConnectionResetError:
        return True


@pytest.mark.gen_test
async def test_autoit_3_a_silent_client_is_disconnected_once_with_what_it_had_sent(serving: Serving) -> None:
    server = started(serving, max_connections=2, idle_timeout=0.3, tick_interval=0.1)
    peer = serving.connect(server)
    begun = time.monotonic()
    peer.send(b"xyz")
    await server.called("on_data")
    stream, unread, error = await server.called("on_disconnect")
    assert time.monotonic() - begun > 0.25
    assert unread == b"xyz"
    assert "idle" in error
    assert stream.close_reason == "idle_timeout"
    assert await peer.receive_all() == b""
    assert len(server.streams) == 0
    await turns()
    assert len(server.of("on_disconnect")) == 1


@pytest.mark.gen_test
async def test_autoit_4_receiving_broadcasts_does_not_keep_a_client_alive(serving: Serving) -> None:
    def on_tick(stream: IOStream) -> None:
        server.broadcast(b"news")

    server = started(serving, idle_timeout=0.3, tick_interval=0.05, on_tick=on_tick)
    peer = serving.connect(server)
    stream, _, _ = await server.called("on_disconnect")
    assert stream.close_reason == "idle_timeout"
    assert (await peer.receive_all()).startswith(b"newsnews")


@pytest.mark.gen_test
async def test_autoit_4_a_long_download_is_not_idle(serving: Serving) -> None:
    size = 16 << 20
    server = started(
        serving, idle_timeout=0.5, send_buffer_size=65536, on_connect=lambda stream: stream.write(bytes(size)) and None
    )
    peer = serving.connect(server)
    begun, left = time.monotonic(), size
    while left and time.monotonic() - begun < 1.5:
        left -= len(await peer.receive(min(left, 100_000)))
        await asyncio.sleep(0.02)
    assert left, "the download was over before it could have been idle"
    assert server.of("on_disconnect") == []
    await peer.receive(left)


@pytest.mark.gen_test
async def test_autoit_5_one_client_too_many_is_an_error_and_not_connected(serving: Serving) -> None:
    server = started(serving, max_connections=2)
    for _ in range(2):
        serving.connect(server)
    await server.called("on_connect", 2)
    third = serving.connect(server)
    assert await third.receive_all() == b""
    stream, error = await server.called("on_error")
    assert stream.remote_address == third.socket.getsockname()
    assert (error.operation, error.reason) == ("accept", "rejected")
    await turns()
    assert server.names == ["on_connect", "on_connect", "on_error"]
    assert len(server.streams) == 2


@pytest.mark.gen_test
async def test_autoit_6_a_kick_within_on_data_has_its_text_and_the_unread_bytes(serving: Serving) -> None:
    def on_data(stream: IOStream, data: bytes) -> int:
        stream.kick("bye")
        return 4

    server = started(serving, on_data=on_data)
    peer = serving.connect(server)
    peer.send(b"quitrest")
    stream, unread, error = await server.called("on_disconnect")
    assert (unread, error, stream.close_reason) == (b"rest", "bye", "kicked")
    assert await ended(peer)
    await turns()
    assert server.names == ["on_connect", "on_data", "on_disconnect"]


@pytest.mark.gen_test
async def test_autoit_6_all_can_be_kicked(serving: Serving) -> None:
    server = started(serving)
    peers = [serving.connect(server) for _ in range(3)]
    await server.called("on_connect", 3)
    server.kick_all("closing time")
    for peer in peers:
        assert await peer.receive_all() == b""
    await server.called("on_disconnect", 3)
    assert {error for _, _, error in server.of("on_disconnect")} == {"closing time"}


@pytest.mark.gen_test
async def test_autoit_7_bytes_and_an_end_are_data_first_and_then_a_disconnect(serving: Serving) -> None:
    server = started(serving, on_data=lambda stream, data: 3)
    peer = serving.connect(server)
    await server.called("on_connect")
    peer.send(b"abcdefgh")
    peer.close()
    _, unread, error = await server.called("on_disconnect")
    assert server.names == ["on_connect", "on_data", "on_data", "on_data", "on_disconnect"]
    assert server.received == [b"abcdefgh", b"defgh", b"gh"]
    assert (unread, error) == (b"", "")


@pytest.mark.gen_test
async def test_autoit_7_what_on_data_left_is_in_on_disconnect(serving: Serving) -> None:
    server = started(serving, on_data=packets)
    peer = serving.connect(server)
    peer.send(b"<pkt>a</pkt><pkt>half")
    peer.close()
    _, unread, error = await server.called("on_disconnect")
    assert (unread, error) == (b"<pkt>half", "")


@pytest.mark.gen_test
async def test_autoit_8_the_receive_size_of_one_client_can_be_set_and_set_back(serving: Serving) -> None:
    server = started(serving, on_connect=lambda stream: setattr(stream, "read_chunk_size", 4))
    peer = serving.connect(server)
    await server.called("on_connect")
    peer.send(b"0123456789")
    await eventually(lambda: server.received[-1:] == [b"0123456789"])
    sizes = [0, *map(len, server.received)]
    assert all(0 < after - before <= 4 for before, after in pairwise(sizes))
    (stream,) = server.streams
    stream.read_chunk_size = server.read_chunk_size
    peer.send(b"x" * 1000)
    await eventually(lambda: len(server.received[-1]) == 1010)
    # What was waited for with the old size may come with that, but not all the rest.
    assert len(server.received) - len(sizes) < 10


@pytest.mark.gen_test
async def test_autoit_9_every_client_has_its_ticks(serving: Serving) -> None:
    server = started(serving, tick_interval=0.05)
    serving.connect(server)
    serving.connect(server)
    await server.called("on_tick", 8)
    ticked = [stream.id for (stream,) in server.of("on_tick")]
    one, other = server.streams
    assert ticked.count(one.id) >= 3
    assert ticked.count(other.id) >= 3


@pytest.mark.gen_test
async def test_autoit_9_a_shutdown_disconnects_all_and_frees_the_port(serving: Serving) -> None:
    async def on_disconnect(stream: IOStream, unread: bytes, error: str) -> None:
        await asyncio.sleep(0.01)
        told.append(stream.close_reason)

    told: list[Any] = []
    server = started(serving, on_disconnect=on_disconnect, drain_idle=0.02)
    peers = [serving.connect(server) for _ in range(3)]
    await server.called("on_connect", 3)
    (address,) = server.addresses
    await server.shutdown()
    assert told == ["shutdown"] * 3
    for peer in peers:
        assert await peer.receive_all() == b""
    server.listen(address[1], address[0])
    serving.connect(server)
    await server.called("on_connect", 4)


@pytest.mark.gen_test
async def test_autoit_10_what_is_known_of_a_client(serving: Serving) -> None:
    server = started(serving)
    before = time.time()
    peer = serving.connect(server)
    peer.send(b"12345")
    await server.called("on_data")
    (stream,) = server.streams
    assert stream.remote_address == peer.socket.getsockname()
    assert before <= stream.opened_at <= time.time()
    assert 0 <= stream.idle_time < 60
    assert 0 <= stream.write_idle_time < 60
    assert stream.read_chunk_size == server.read_chunk_size
    assert stream.buffered == 5


@pytest.mark.gen_test
async def test_autoit_10_data_of_a_client_lives_until_after_on_disconnect(serving: Serving) -> None:
    seen: list[Any] = []
    server = started(
        serving,
        on_connect=lambda stream: stream.data.update(name="Ada"),
        on_disconnect=lambda stream, unread, error: seen.append(stream.data["name"]),
    )
    peer = serving.connect(server)
    await server.called("on_connect")
    peer.close()
    await server.called("on_disconnect")
    assert seen == ["Ada"]


@pytest.mark.gen_test
async def test_autoit_10_clients_are_counted_listed_and_written_to(serving: Serving) -> None:
    server = started(serving)
    peers = [serving.connect(server) for _ in range(3)]
    await server.called("on_connect", 3)
    assert len(server.streams) == 3
    by_address = {stream.remote_address: stream for stream in server.streams}
    first = by_address[peers[0].socket.getsockname()]
    first.write(b"you")
    assert await peers[0].receive(3) == b"you"
    assert await server.broadcast(b"others", exclude=first) == 2
    assert [await peer.receive(6) for peer in peers[1:]] == [b"others"] * 2
    await server.broadcast(b"all")
    assert [await peer.receive(3) for peer in peers] == [b"all"] * 3
    for stream in server.streams:  # a snapshot: who goes meanwhile does not disturb it
        stream.close()
    await server.called("on_disconnect", 3)


@pytest.mark.gen_test
async def test_autoit_11_several_servers_in_one_program(serving: Serving) -> None:
    servers = [started(serving, on_data=lambda stream, data: len(data)) for _ in range(3)]
    peers = [serving.connect(server) for server in servers]
    for number, peer in enumerate(peers):
        peer.send(b"%d" % number)
    for server in servers:
        await server.called("on_data")
    assert [server.received for server in servers] == [[b"0"], [b"1"], [b"2"]]
    servers[0].stop()
    await servers[0].close_all_connections()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(peers[0].socket.getpeername())
    peers[1].send(b"still there")
    await servers[1].called("on_data", 2)
