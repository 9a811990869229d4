"""The last bytes of a client that half-closes: they are read, and what they ask for is answered."""

import asyncio
import socket
import threading
from typing import Any

import pytest

from iostreamsrv import CloseReason, IOStream, StreamClosedError, TCPServer
from iostreamsrv.styles.blocking import BlockingServer
from tests.support.engines import on_every_stream
from tests.support.peers import MakePair, Peer, TLSEnd, TLSPeer, tls_contexts
from tests.support.waiting import PATIENCE, eventually, turns

pytestmark = on_every_stream


async def echo(stream: IOStream, size: int) -> None:
    try:
        while True:
            await stream.write(await stream.read_bytes(size, partial=True))
    except StreamClosedError:
        await stream.aclose()


async def all_at_once(peer: Peer, data: bytes) -> None:
    await peer.send_all(data)
    peer.half_close()


def in_one_segment(peer: Peer, data: bytes) -> None:
    """``data`` and, under TLS, the close_notify behind it. The connection stays open."""
    assert isinstance(peer, TLSPeer)
    peer.end.tls.write(data)
    peer.end.say_goodbye()
    peer.end.flush()


async def tls_client(server: Any) -> TLSPeer:
    end = TLSEnd(socket.create_connection(server.addresses[0]), tls_contexts()[1])
    await eventually(end.handshake)
    return TLSPeer(end)


@pytest.mark.parametrize(
    ("size", "at_once"), [(5_000, 4_096), (2_500, 1_024), (65_536, 10_000), (131_072, 10_000), (300_000, 10_000)]
)
@pytest.mark.gen_test
async def test_of_a_client_that_half_closes_partial_reads_echo_every_byte(
    stream: IOStream, peer: Peer, size: int, at_once: int
) -> None:
    data = bytes(number % 251 for number in range(size))
    sending = asyncio.create_task(all_at_once(peer, data))
    await turns(20)  # as much as fits is there before the first read, and the end, if all of it does
    echoing = asyncio.create_task(echo(stream, at_once))
    assert await peer.receive_all() == data
    await sending
    peer.close()
    await echoing
    assert stream.close_reason is CloseReason.EOF


@pytest.mark.parametrize(("size", "at_once"), [(5_000, 4_096), (2_500, 1_024), (10_000, 1_000)])
@pytest.mark.gen_test
async def test_partial_reads_echo_every_byte_that_came_in_one_segment_with_the_end(
    stream: IOStream, peer: Peer, engine: str, size: int, at_once: int
) -> None:
    if engine != "tls":
        pytest.skip("without TLS the end has a segment of its own")
    echoing = asyncio.create_task(echo(stream, at_once))
    await turns()
    in_one_segment(peer, bytes(size))
    assert len(await peer.receive_all()) == size
    peer.close()
    await echoing
    assert stream.close_reason is CloseReason.EOF


@pytest.mark.gen_test
async def test_a_line_and_then_the_rest_that_came_in_one_segment_with_the_end_are_answered(
    stream: IOStream, peer: Peer, engine: str
) -> None:
    if engine != "tls":
        pytest.skip("without TLS the end has a segment of its own")
    reading = stream.read_until(b"\n")
    in_one_segment(peer, b"header\nthe rest")
    assert await reading == b"header\n"
    assert await stream.read_bytes(1000, partial=True) == b"the rest"
    await stream.write(b"the answer")
    assert await peer.receive(10) == b"the answer"
    with pytest.raises(StreamClosedError):
        await stream.read_bytes(1000, partial=True)
    assert await peer.receive_all() == b""


@pytest.mark.gen_test
async def test_a_line_and_then_the_rest_are_answered_behind_the_end(stream: IOStream, peer: Peer) -> None:
    await all_at_once(peer, b"header\nthe rest")
    await turns(20)
    assert await stream.read_until(b"\n") == b"header\n"
    assert await stream.read_bytes(1000, partial=True) == b"the rest"
    assert not stream.closed()
    assert not stream.at_eof(), "nobody has come to the end yet"
    await stream.write(b"the answer")
    with pytest.raises(StreamClosedError) as caught:
        await stream.read_bytes(1000, partial=True)
    assert caught.value.reason is CloseReason.EOF
    assert stream.closed()
    assert stream.at_eof()
    assert await peer.receive_all() == b"the answer"


@pytest.mark.gen_test
async def test_an_answer_that_waits_for_room_is_sent_behind_the_end(make_pair: MakePair) -> None:
    stream, peer = make_pair()
    await all_at_once(peer, b"header\nthe rest")
    await turns(20)
    await stream.read_until(b"\n")
    assert await stream.read_bytes(1000, partial=True) == b"the rest"
    writing = stream.write(bytes(3_000_000))
    with pytest.raises(StreamClosedError):
        await stream.read_bytes(1000, partial=True)
    assert len(await peer.receive_all()) == 3_000_000
    await writing
    assert stream.close_reason is CloseReason.EOF


@pytest.mark.gen_test
async def test_a_read_that_the_rest_cannot_satisfy_meets_the_end(stream: IOStream, peer: Peer) -> None:
    await all_at_once(peer, b"header\nthe rest")
    await turns(20)
    await stream.read_until(b"\n")
    assert await stream.read_bytes(4, partial=True) == b"the "
    with pytest.raises(StreamClosedError) as caught:
        await stream.read_until(b"\n")
    assert caught.value.reason is CloseReason.EOF
    assert stream.closed()
    assert await stream.read_bytes(stream.buffered) == b"rest"


@pytest.mark.gen_test
async def test_a_half_open_stream_stays_open_behind_partial_reads(make_pair: MakePair) -> None:
    stream, peer = make_pair(allow_half_open=True)
    await all_at_once(peer, b"header\nthe rest")
    await turns(20)
    await stream.read_until(b"\n")
    assert await stream.read_bytes(1000, partial=True) == b"the rest"
    with pytest.raises(StreamClosedError):
        await stream.read_bytes(1000, partial=True)
    assert stream.at_eof()
    assert not stream.closed()
    await stream.write(b"the answer")
    await stream.send_eof()
    assert stream.closed()
    assert await peer.receive_all() == b"the answer"


@pytest.mark.plain("the server's clients are not the fixture's")
@pytest.mark.gen_test
async def test_of_many_clients_that_half_close_none_is_cut(engine: str) -> None:
    class Echo(TCPServer):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await echo(stream, 10_000)

    def client(size: int) -> int:
        with socket.create_connection(server.addresses[0], PATIENCE) as sock:
            sock.sendall(bytes(size))
            sock.shutdown(socket.SHUT_WR)
            return sum(len(chunk) for chunk in iter(lambda: sock.recv(65536), b""))

    server = Echo()
    server.listen(0, "127.0.0.1")
    for size in (65_536, 131_072):
        echoed = await asyncio.gather(*[asyncio.to_thread(client, size) for _ in range(20)])
        assert echoed == [size] * 20
    await server.shutdown()
    await asyncio.get_running_loop().shutdown_default_executor()


@pytest.mark.plain("the server's clients are not the fixture's")
@pytest.mark.gen_test
async def test_a_handler_at_work_behind_the_end_is_not_cut_by_a_shutdown(engine: str) -> None:
    go_on, at_work = asyncio.Event(), asyncio.Event()

    class Answers(TCPServer):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await stream.read_until(b"\n")
            asked = await stream.read_bytes(1000, partial=True)
            at_work.set()
            await go_on.wait()
            await stream.write(asked)

    server = Answers(drain_idle=0.01, ssl_options=tls_contexts()[0])
    server.listen(0, "127.0.0.1")
    peer = await tls_client(server)
    in_one_segment(peer, b"header\nthe rest")
    await at_work.wait()
    ending = asyncio.create_task(server.shutdown())
    await asyncio.sleep(0.1)  # several looks of the shutdown
    go_on.set()
    assert await peer.receive_all() == b"the rest"
    peer.close()
    await ending


@pytest.mark.plain("the server's clients are not the fixture's")
@pytest.mark.gen_test
async def test_threads_echo_every_byte_of_a_client_that_half_closes(engine: str) -> None:
    if engine != "epoll":
        pytest.skip("a blocking server has a loop of its own")

    def serve() -> None:
        with server.accept(PATIENCE) as client:
            while data := client.recv(1024):
                client.sendall(data)

    with BlockingServer(ssl_options=tls_contexts()[0]) as server:
        server.listen(0, "127.0.0.1")
        thread = threading.Thread(target=serve)
        thread.start()
        peer = await tls_client(server)
        in_one_segment(peer, bytes(2500))
        assert len(await peer.receive_all()) == 2500
        peer.close()
        thread.join()


@pytest.mark.gen_test
async def test_with_a_close_callback_pipelined_requests_are_answered_behind_the_end(
    stream: IOStream, peer: Peer
) -> None:
    """Each is answered a while after it was read, and meanwhile nobody reads."""
    stream.set_close_callback(lambda: None)

    async def answer() -> None:
        for _ in range(3):
            line = await stream.read_until(b"\n")
            await turns(20)
            if stream.buffered:
                await stream.write(line)
        await stream.aclose()

    await all_at_once(peer, b"one\ntwo\nthree\n")
    answering = asyncio.create_task(answer())
    assert await peer.receive_all() == b"one\ntwo\n"  # behind the last one the client is taken as gone
    peer.close()
    await answering
    await eventually(stream.closed)
