"""``allow_half_open``: a peer that has ended its side is still written to, until this side ends as well."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from iostreamsrv import CloseReason, IOStream, OptionError, StreamClosedError, TCPServer
from tests.support.engines import on_every_stream
from tests.support.peers import MakePair, Peer, tcp_pair
from tests.support.waiting import PATIENCE, eventually, fill, turns

pytestmark = on_every_stream

LINE = b"0123456789abcde\n"

Pair = tuple[IOStream, Peer]
Sockets = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """A stream that may be half open, and its peer."""
    return make_pair(allow_half_open=True)


async def notice_the_end(stream: IOStream) -> None:
    """Read to where the peer has ended."""
    with pytest.raises(StreamClosedError) as caught:
        await stream.read_until(b"no such bytes")
    assert caught.value.reason is CloseReason.EOF
    assert caught.value.operation == "read"
    assert caught.value.real_error is None


@pytest.fixture
def sockets(engine: str) -> Sockets | None:
    """For `make_pair`: such as hold less than a TCP connection may."""
    return None if engine == "memory" else socket.socketpair()


# ---- the peer has ended


@pytest.mark.gen_test
async def test_what_is_written_after_the_peers_end_arrives(stream: IOStream, peer: Peer) -> None:
    peer.send(LINE)
    peer.half_close()
    assert await stream.read_until(b"\n") == LINE
    await notice_the_end(stream)
    assert not stream.closed()
    assert stream.close_reason is None
    for _ in range(3):
        await stream.write(LINE)
        assert await peer.receive(len(LINE)) == LINE
    future = stream.write(bytes(8_000_000))
    assert stream.writing()
    assert await peer.receive(8_000_000) == bytes(8_000_000)
    await future
    await stream.drain()
    assert not stream.closed()


@pytest.mark.gen_test
async def test_a_pending_read_learns_of_the_end_and_the_stream_stays_open(stream: IOStream, peer: Peer) -> None:
    future = stream.read_until(b"\n")
    await turns()
    peer.send(b"abc")
    peer.half_close()
    with pytest.raises(StreamClosedError, match=r"by the peer \(eof\)"):
        await future
    assert not stream.closed()
    assert not stream.reading()
    assert stream.buffered == 3


READS: dict[str, Callable[[IOStream], Any]] = {
    "read_until": lambda stream: stream.read_until(b"\n"),
    "read_until_regex": lambda stream: stream.read_until_regex(b"x+"),
    "read_bytes": lambda stream: stream.read_bytes(1),
    "partial": lambda stream: stream.read_bytes(10, partial=True),
    "read_into": lambda stream: stream.read_into(bytearray(1)),
    "read_until_match": lambda stream: stream.read_until_match(lambda buffer: None),
}


@pytest.mark.parametrize("read", READS.values(), ids=list(READS))
@pytest.mark.gen_test
async def test_every_read_after_the_end_raises_at_the_call(
    stream: IOStream, peer: Peer, read: Callable[[IOStream], Any]
) -> None:
    peer.half_close()
    await notice_the_end(stream)
    for _ in range(2):
        with pytest.raises(StreamClosedError) as caught:
            read(stream)
        assert caught.value.reason is CloseReason.EOF
    assert not stream.reading()
    assert not stream.closed()
    await stream.write(b"!")
    assert await peer.receive(1) == b"!"


@pytest.mark.parametrize("read", READS.values(), ids=list(READS))
@pytest.mark.gen_test
async def test_every_read_that_meets_the_end_fails_for_it(
    stream: IOStream, peer: Peer, read: Callable[[IOStream], Any]
) -> None:
    future = read(stream)
    await turns()
    peer.half_close()
    with pytest.raises(StreamClosedError) as caught:
        await future
    assert caught.value.reason is CloseReason.EOF
    assert not stream.closed()


@pytest.mark.gen_test
async def test_what_came_before_the_end_is_readable_after_it(stream: IOStream, peer: Peer) -> None:
    peer.send(b"one\ntwo\nrest")
    peer.half_close()
    await notice_the_end(stream)
    assert stream.buffered == 12
    assert await stream.read_until(b"\n") == b"one\n"
    await stream.write(b"!")
    assert await stream.read_until(b"\n") == b"two\n"
    with pytest.raises(StreamClosedError, match="eof"):
        stream.read_until(b"\n")
    assert await stream.read_bytes(10, partial=True) == b"rest"
    assert await peer.receive(1) == b"!"


@pytest.mark.parametrize("pending", [False, True], ids=["at the call", "pending"])
@pytest.mark.gen_test
async def test_read_until_close_gives_all_before_the_end(stream: IOStream, peer: Peer, pending: bool) -> None:
    if pending:
        future = stream.read_until_close()
        await turns()
    peer.send(LINE)
    peer.half_close()
    if not pending:
        future = stream.read_until_close()
    assert await future == LINE
    assert not stream.closed()
    assert await stream.read_until_close() == b""
    await stream.write(b"the answer to all of it")
    await stream.send_eof()
    assert await peer.receive_all() == b"the answer to all of it"
    assert stream.close_reason == "eof"


@pytest.mark.gen_test
async def test_at_eof_is_true_when_the_end_was_seen_and_all_was_read(stream: IOStream, peer: Peer) -> None:
    assert stream.at_eof() is False
    peer.send(LINE)
    peer.half_close()
    await turns()
    assert stream.at_eof() is False
    await notice_the_end(stream)
    assert stream.at_eof() is False, "bytes are left"
    assert await stream.read_until(b"\n") == LINE
    assert stream.at_eof() is True
    await stream.write(LINE)
    assert stream.at_eof() is True
    await stream.send_eof()
    assert stream.closed()
    assert stream.at_eof() is True


@pytest.mark.gen_test
async def test_at_eof_is_not_about_this_sides_end(stream: IOStream, peer: Peer) -> None:
    await stream.send_eof()
    assert stream.at_eof() is False
    stream.close()
    assert stream.at_eof() is False


@pytest.mark.gen_test
async def test_pipelined_requests_are_answered_after_the_peers_end(stream: IOStream, peer: Peer) -> None:
    async def serve() -> int:
        count = 0
        try:
            while True:
                await stream.write(await stream.read_until(b"\n"))
                count += 1
        except StreamClosedError:
            await stream.write(b"%d lines\n" % count)
            await stream.send_eof()
        return count

    task = asyncio.create_task(serve())
    await turns(1)
    peer.send(LINE * 50)
    peer.half_close()
    assert await peer.receive_all() == LINE * 50 + b"50 lines\n"
    assert await task == 50
    assert stream.close_reason == "eof"


# ---- both have ended


@pytest.mark.parametrize("first", ["peer", "stream"])
@pytest.mark.gen_test
async def test_the_stream_closes_itself_once_both_sides_have_ended(stream: IOStream, peer: Peer, first: str) -> None:
    if first == "peer":
        peer.half_close()
        await notice_the_end(stream)
        await stream.send_eof()
    else:
        await stream.send_eof()
        reading = stream.read_bytes(1)
        await turns()
        assert not stream.closed()
        peer.half_close()
        with pytest.raises(StreamClosedError, match="eof"):
            await reading
    assert stream.closed()
    assert stream.close_reason is CloseReason.EOF
    assert stream.error is None
    assert stream.fileno() == -1
    assert await peer.receive_all() == b""


@pytest.mark.gen_test
async def test_send_eof_behind_queued_data_closes_when_a_stalled_reader_has_it(
    make_pair: MakePair, sockets: Sockets | None
) -> None:
    stream, peer = make_pair(sockets, allow_half_open=True)
    peer.send(LINE)
    peer.half_close()
    await notice_the_end(stream)
    writing = stream.write(bytes(3_000_000))
    ending = stream.send_eof()
    again = stream.send_eof()
    await turns()
    assert not stream.closed()
    assert not ending.done()
    with pytest.raises(StreamClosedError):
        stream.write(b"!")
    assert len(await peer.receive_all()) == 3_000_000
    await asyncio.gather(writing, ending, again)
    assert stream.close_reason is CloseReason.EOF
    assert await stream.read_until(b"\n") == LINE


@pytest.mark.gen_test
async def test_the_peers_end_while_this_sides_waits_for_a_stalled_reader(
    make_pair: MakePair, sockets: Sockets | None
) -> None:
    stream, peer = make_pair(sockets, allow_half_open=True)
    writing = stream.write(bytes(3_000_000))
    ending = stream.send_eof()
    peer.half_close()
    await notice_the_end(stream)
    assert not stream.closed()
    assert len(await peer.receive_all()) == 3_000_000
    await asyncio.gather(writing, ending)
    assert stream.close_reason is CloseReason.EOF


@pytest.mark.gen_test
async def test_corked_answers_leave_before_both_ends(stream: IOStream, peer: Peer) -> None:
    async def serve() -> None:
        for _ in range(10):
            await stream.write(await stream.read_until(b"\n"))
        with pytest.raises(StreamClosedError):
            await stream.read_until(b"\n")
        await stream.send_eof()

    task = asyncio.create_task(serve())
    await turns(1)
    peer.send(LINE * 10)
    peer.half_close()
    await task
    assert stream.closed()
    assert await peer.receive_all() == LINE * 10


@pytest.mark.parametrize("first", ["peer", "stream"])
@pytest.mark.gen_test
async def test_the_close_callback_is_called_once_and_only_at_the_end(stream: IOStream, peer: Peer, first: str) -> None:
    called: list[CloseReason | None] = []
    stream.set_close_callback(lambda: called.append(stream.close_reason))
    if first == "peer":
        peer.half_close()
        await eventually(stream.at_eof)
        await stream.write(LINE)
        await turns()
        assert not called
        assert not stream.closed()
        await stream.send_eof()
    else:
        await stream.send_eof()
        await turns()
        assert not called
        peer.half_close()
    await eventually(lambda: called)
    stream.close()
    await turns()
    assert called == [CloseReason.EOF]


@pytest.mark.gen_test
async def test_a_close_callback_set_after_the_peers_end_waits_for_this_sides(stream: IOStream, peer: Peer) -> None:
    peer.half_close()
    await notice_the_end(stream)
    called: list[int] = []
    stream.set_close_callback(lambda: called.append(1))
    await turns()
    assert not called
    await stream.send_eof()
    await eventually(lambda: called)


# ---- other ends


@pytest.mark.parametrize("how", ["close", "abort", "aclose"])
@pytest.mark.gen_test
async def test_a_half_open_stream_can_be_closed_in_every_way(stream: IOStream, peer: Peer, how: str) -> None:
    peer.half_close()
    await notice_the_end(stream)
    called: list[int] = []
    stream.set_close_callback(lambda: called.append(1))
    await stream.write(LINE)
    ending = getattr(stream, how)()
    if ending is not None:
        async with asyncio.timeout(1):  # there is no end to linger for
            await ending
    assert stream.closed()
    assert stream.close_reason == ("aborted" if how == "abort" else "local")
    await eventually(lambda: called)
    if how == "abort":
        with pytest.raises(ConnectionResetError):
            await peer.receive_all()
    else:
        assert await peer.receive_all() == LINE
    await turns()
    assert called == [1]


@pytest.mark.gen_test
async def test_aclose_of_a_half_open_stream_delivers_what_is_queued(
    make_pair: MakePair, sockets: Sockets | None
) -> None:
    stream, peer = make_pair(sockets, allow_half_open=True)
    peer.half_close()
    await notice_the_end(stream)
    writing = stream.write(bytes(3_000_000))
    closing = asyncio.create_task(stream.aclose())
    assert len(await peer.receive_all()) == 3_000_000
    await closing
    await writing
    assert stream.close_reason == "local"


@pytest.mark.gen_test
async def test_a_reset_after_the_end_is_noticed(stream: IOStream, peer: Peer, engine: str) -> None:
    closed = asyncio.Event()
    stream.set_close_callback(closed.set)
    peer.half_close()
    await notice_the_end(stream)
    await stream.write(LINE)  # unread, so that the peer's host resets
    peer.close()
    if engine == "loop":
        with pytest.raises(StreamClosedError) as caught:
            while True:
                await stream.write(LINE)
        assert caught.value.reason is CloseReason.RESET
    async with asyncio.timeout(PATIENCE):
        await closed.wait()
    assert stream.close_reason is CloseReason.RESET
    assert isinstance(stream.error, ConnectionError)
    with pytest.raises(StreamClosedError) as caught:
        stream.read_bytes(1)
    assert caught.value.reason is CloseReason.RESET


@pytest.mark.gen_test
async def test_a_reset_is_noticed_also_if_the_end_was_there_before_the_first_read(
    make_pair: MakePair, engine: str
) -> None:
    if engine in ("loop", "memory"):
        pytest.skip("there a stream that nobody reads or writes learns of nothing")
    stream, peer = make_pair(allow_half_open=True)
    peer.half_close()
    await notice_the_end(stream)
    closed = asyncio.Event()
    stream.set_close_callback(closed.set)
    await turns()
    assert not closed.is_set()
    peer.reset()
    await asyncio.wait_for(closed.wait(), PATIENCE)
    assert stream.close_reason is CloseReason.RESET


@pytest.mark.gen_test
async def test_a_reset_after_the_end_fails_what_is_queued_and_keeps_what_came(stream: IOStream, peer: Peer) -> None:
    peer.send(LINE)
    peer.half_close()
    await notice_the_end(stream)
    fill(stream)
    futures = [stream.write(LINE), stream.send_eof()]
    peer.reset()
    for future in futures:
        with pytest.raises(StreamClosedError) as caught:
            await future
        assert caught.value.reason is CloseReason.RESET
    assert stream.close_reason is CloseReason.RESET
    assert await stream.read_until(b"\n") == LINE


@pytest.mark.gen_test
async def test_send_eof_to_a_peer_that_has_reset_fails_or_ends_the_stream(stream: IOStream, peer: Peer) -> None:
    peer.half_close()
    await notice_the_end(stream)
    peer.reset()
    with pytest.raises(StreamClosedError) as caught:
        while True:
            await stream.write(LINE)
    assert caught.value.reason is CloseReason.RESET
    with pytest.raises(StreamClosedError):
        stream.send_eof()


# ---- nothing is done for nothing


async def is_quiet(stream: IOStream) -> bool:
    """Whether a stream for which nothing happens is left alone, once all that has happened was reported."""
    await turns(20)
    last_dispatch = stream._hub.now
    await turns(200)
    return stream._hub.now == last_dispatch


@pytest.mark.parametrize("with_callback", [False, True], ids=["plain", "close callback"])
@pytest.mark.gen_test
async def test_a_half_open_stream_costs_nothing_while_it_is_idle(
    stream: IOStream, peer: Peer, with_callback: bool
) -> None:
    if with_callback:
        stream.set_close_callback(lambda: None)
    reading = asyncio.ensure_future(stream.read_until(b"\n"))
    await turns()
    peer.send(b"abc")
    peer.half_close()
    with pytest.raises(StreamClosedError):
        await reading
    assert await is_quiet(stream)
    assert await stream.read_bytes(3) == b"abc"
    assert await is_quiet(stream)
    before = fill(stream)
    assert await is_quiet(stream), "while its peer does not read"
    await peer.receive(before)
    await stream.drain()
    assert await is_quiet(stream)


URGENT = pytest.param("urgent data", marks=pytest.mark.plain("TLS has no urgent data"))


@pytest.mark.parametrize("half_open", [False, True])
@pytest.mark.parametrize("what", ["an end", "unread bytes", "unread bytes and an end", URGENT])
@pytest.mark.gen_test
async def test_a_peer_that_does_not_read_costs_nothing_whatever_it_sent(
    make_pair: MakePair, half_open: bool, what: str
) -> None:
    stream, peer = make_pair(tcp_pair() if "urgent" in what else None, allow_half_open=half_open)
    before = fill(stream)
    if "unread" in what:
        peer.send(LINE)
    if "urgent" in what:
        peer.socket.send(b"!", socket.MSG_OOB)
    if "end" in what:
        peer.half_close()
    if what == "an end":
        await notice_the_end(stream)
    assert await is_quiet(stream)
    await peer.receive(before)
    if not stream.closed():
        await stream.drain()


@pytest.mark.gen_test
async def test_a_closed_stream_that_owes_bytes_costs_nothing_until_there_is_room(make_pair: MakePair) -> None:
    stream, peer = make_pair(socket.socketpair())
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    async def reply_and_close() -> None:
        for _ in range(3):  # few: in a long turn the third would not be corked, and close() would drop it
            await stream.read_until(b"\n")
            stream.write(bytes(20_000))
        stream.close()

    task = asyncio.create_task(reply_and_close())
    await turns(1)
    peer.send(LINE * 4)
    await task
    peer.send(LINE)
    peer.half_close()
    assert await is_quiet(stream)
    assert await peer.receive(60_000) == bytes(60_000)
    await eventually(lambda: stream.fileno() == -1)


# ---- the option


@pytest.mark.gen_test
async def test_by_default_the_peers_end_closes_the_stream(make_pair: MakePair) -> None:
    stream, peer = make_pair()
    assert stream.allow_half_open is False
    peer.half_close()
    await notice_the_end(stream)
    assert stream.closed()
    assert stream.close_reason is CloseReason.EOF
    with pytest.raises(StreamClosedError):
        stream.write(b"!")


@pytest.mark.gen_test
async def test_by_default_what_is_queued_leaves_before_the_peers_end_closes(
    make_pair: MakePair, sockets: Sockets | None
) -> None:
    stream, peer = make_pair(sockets)
    writing = stream.write(bytes(3_000_000))
    peer.half_close()
    await notice_the_end(stream)
    assert not stream.closed()
    assert len(await peer.receive_all()) == 3_000_000
    await writing
    assert stream.close_reason is CloseReason.EOF


@pytest.mark.gen_test
async def test_the_option_may_be_set_on_the_stream(make_pair: MakePair) -> None:
    stream, peer = make_pair()
    stream.allow_half_open = True
    peer.half_close()
    await notice_the_end(stream)
    await stream.write(LINE)
    await stream.send_eof()
    assert await peer.receive_all() == LINE
    assert stream.closed()


@pytest.mark.parametrize("value", [1, 0, None, "yes"])
@pytest.mark.gen_test
async def test_a_value_that_is_no_flag_is_named(make_pair: MakePair, value: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(OptionError, match=f"^allow_half_open={value!r}: must be True or False"):
        IOStream(ours, allow_half_open=value)


@pytest.mark.gen_test
async def test_a_client_that_connects_may_be_half_open(make_pair: MakePair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = IOStream(socket.socket(), allow_half_open=True)
        connecting = client.connect(listener.getsockname())
        connection, _ = listener.accept()
    peer = Peer(connection)
    peer.half_close()
    await connecting
    await notice_the_end(client)
    await client.write(LINE)
    await client.send_eof()
    assert client.closed()
    assert await peer.receive_all() == LINE
    peer.close()


# ---- servers


class Summing(TCPServer):
    """Answers after the client has ended."""

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        everything = await stream.read_until_close()
        self.open_after_the_end = not stream.closed()
        await stream.write(b"%d bytes\n" % len(everything))
        await stream.write(bytes(3_000_000))


@pytest.mark.gen_test
async def test_a_server_answers_a_client_that_has_ended_and_closes_when_the_handler_returns(stream: IOStream) -> None:
    server = Summing(allow_half_open=True)
    server.listen(0, "127.0.0.1")
    client = Peer(socket.create_connection(server.addresses[0]))
    client.send(LINE)
    client.half_close()
    assert await client.receive_all() == b"16 bytes\n" + bytes(3_000_000)
    assert server.open_after_the_end
    async with asyncio.timeout(1):  # less than it would linger
        await eventually(lambda: not len(server.streams))
    client.close()
    server.stop()


@pytest.mark.gen_test
async def test_a_handler_that_returns_before_the_client_ends_closes_in_order(stream: IOStream) -> None:
    reasons = []

    async def greet(stream: IOStream, address: Any) -> None:
        await stream.write(b"hello")
        streams.append(stream)

    streams: list[IOStream] = []
    server = TCPServer(allow_half_open=True)
    server.handle_stream = greet  # type: ignore[method-assign, assignment]
    server.listen(0, "127.0.0.1")
    client = Peer(socket.create_connection(server.addresses[0]))
    assert await client.receive_all() == b"hello"
    client.send(LINE)
    client.half_close()
    async with asyncio.timeout(1):
        await eventually(lambda: not len(server.streams))
    reasons = [stream.close_reason for stream in streams]
    assert reasons == [CloseReason.LOCAL]
    client.close()
    server.stop()


@pytest.mark.gen_test
async def test_an_end_that_came_before_the_connection_was_noticed_is_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = IOStream(socket.socket(), allow_half_open=True)
        connecting = stream.connect(listener.getsockname())
        theirs, _ = listener.accept()
        with theirs:
            theirs.sendall(b"all I have")
            theirs.shutdown(socket.SHUT_WR)
            await connecting
            assert await stream.read_bytes(100, partial=True) == b"all I have"
            with pytest.raises(StreamClosedError):
                await stream.read_bytes(100, partial=True)
            assert stream.at_eof()
            stream.close()
