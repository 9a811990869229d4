"""`IOStream`: writing, corking, draining, half-closing."""

import asyncio
import os
import random
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import tornado.iostream

from iostreamsrv import IOStream, OptionError, StreamBufferFullError, StreamClosedError
from iostreamsrv.streams import hub
from iostreamsrv.streams.transports.tls import PLAINTEXT
from tests.support.engines import on_every_stream
from tests.support.peers import MakePair, Peer
from tests.support.waiting import PATIENCE, eventually, fill, turns

pytestmark = on_every_stream

LINE = b"0123456789abcde\n"


def count_sends(stream: IOStream) -> list[int]:
    """The sizes of the sends that ``stream`` makes from now on."""
    sizes: list[int] = []
    send = stream.write_to_fd

    def write_to_fd(data: memoryview) -> int | None:
        sizes.append(len(data))
        return send(data)

    stream.write_to_fd = write_to_fd  # type: ignore[method-assign, assignment]
    return sizes


async def echo(stream: IOStream, count: int) -> None:
    for _ in range(count):
        await stream.write(await stream.read_until(b"\n"))


# ---- what is written arrives


@pytest.mark.gen_test
async def test_a_write_the_kernel_takes_is_done_at_once(stream: IOStream, peer: Peer) -> None:
    future = stream.write(b"abc")
    assert future.done()
    assert isinstance(future, asyncio.Future)
    assert await future is None
    assert not stream.writing()
    assert stream.bytes_written == 3
    assert await peer.receive(3) == b"abc"


@pytest.mark.gen_test
async def test_an_empty_write_is_done(stream: IOStream, peer: Peer) -> None:
    await stream.write(b"")
    await stream.write(b"x")
    assert await peer.receive(1) == b"x"


@pytest.mark.parametrize(
    "data",
    [bytearray(b"abcd"), memoryview(b"abcd"), memoryview(b"a.b.c.d.")[::2], memoryview(b"abcd").cast("H")],
    ids=["bytearray", "memoryview", "with strides", "of shorts"],
)
@pytest.mark.gen_test
async def test_anything_of_bytes_can_be_written(stream: IOStream, peer: Peer, data: Any) -> None:
    await stream.write(data)
    assert stream.bytes_written == 4
    assert await peer.receive(4) == b"abcd"


@pytest.mark.parametrize("data", ["abc", 3, None, [1, 2]])
@pytest.mark.gen_test
async def test_nothing_else_can_be_written(stream: IOStream, data: Any) -> None:
    with pytest.raises(TypeError, match=type(data).__name__):
        stream.write(data)
    assert not stream.closed()


@pytest.mark.gen_test
async def test_writes_wait_for_a_slow_reader_and_end_in_order(make_pair: MakePair) -> None:
    stream, peer = make_pair(socket.socketpair())
    parts = [bytes([number]) * 1_000_000 for number in range(5)]
    ended: list[int] = []
    for number, part in enumerate(parts):
        stream.write(part).add_done_callback(lambda _, number=number: ended.append(number))
    assert stream.writing()
    drained = stream.drain()
    assert not drained.done()
    assert await peer.receive(5_000_000) == b"".join(parts)
    await drained
    assert not stream.writing()
    await turns(1)
    assert ended == [0, 1, 2, 3, 4]
    assert stream.bytes_written == 5_000_000


@pytest.mark.gen_test
async def test_queued_data_is_the_callers_again_at_once(stream: IOStream, peer: Peer) -> None:
    before = fill(stream)
    data = bytearray(b"abc" * 50_000)
    future = stream.write(data)
    data[:] = b""
    await peer.receive(before)
    assert await peer.receive(150_000) == b"abc" * 50_000
    await future


@pytest.mark.gen_test
async def test_reads_go_on_while_writes_wait(stream: IOStream, peer: Peer) -> None:
    fill(stream)
    peer.send(LINE)
    assert await stream.read_until(b"\n") == LINE
    future = stream.read_until(b"\n")
    peer.send(LINE)
    assert await future == LINE


@pytest.mark.gen_test
async def test_a_cancelled_write_arrives_all_the_same(stream: IOStream, peer: Peer) -> None:
    before = fill(stream)
    future = stream.write(b"abc")
    future.cancel()
    behind = stream.write(b"def")
    await peer.receive(before)
    assert await peer.receive(6) == b"abcdef"
    await behind


@pytest.mark.gen_test
async def test_a_cancelled_drain_leaves_the_output(stream: IOStream, peer: Peer) -> None:
    before = fill(stream)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await stream.drain()
    assert len(await peer.receive(before)) == before
    await stream.drain()


@pytest.mark.gen_test
async def test_drain_is_done_when_there_is_nothing(stream: IOStream) -> None:
    assert stream.drain().done()


# ---- marks in the queue


@pytest.mark.gen_test
async def test_queued_is_what_the_kernel_has_not_taken(stream: IOStream, peer: Peer) -> None:
    assert stream.queued == 0
    before = fill(stream)
    assert stream.queued == before - stream.bytes_written > 0
    stream.write(LINE)
    assert stream.queued == before + len(LINE) - stream.bytes_written
    await peer.receive(before + len(LINE))
    await stream.drain()
    assert stream.queued == 0


@pytest.mark.gen_test
async def test_queued_counts_what_is_corked(stream: IOStream, peer: Peer) -> None:
    seen: list[int] = []

    async def reply() -> None:
        for _ in range(3):
            stream.write(await stream.read_until(b"\n"))
            seen.append(stream.queued)

    task = asyncio.create_task(reply())
    await turns(1)
    peer.send(LINE * 3)
    await task
    assert seen == [len(LINE), 2 * len(LINE), 3 * len(LINE)]
    assert stream.queued == 0


@pytest.mark.gen_test
async def test_drain_waits_until_no_more_is_left_than_it_says(make_pair: MakePair) -> None:
    stream, peer = make_pair(socket.socketpair())
    stream.write(bytes(4_000_000))
    queued = stream.queued
    for remaining in (queued, queued + 1, 1 << 70):
        assert stream.drain(remaining).done()
    mark = stream.drain(1_000_000)
    behind = stream.write(bytes(2_000_000))
    received = 0
    async for chunk in peer.chunks():
        received += len(chunk)
        await turns(1)
        assert mark.done() == (stream.bytes_written >= 3_000_000)
        if behind.done():
            break
    assert stream.bytes_written == 6_000_000


@pytest.mark.parametrize("remaining", [-1, 0.5, float("nan"), "1", None, True])
@pytest.mark.gen_test
async def test_what_may_remain_is_a_number_of_bytes(stream: IOStream, peer: Peer, remaining: Any) -> None:
    before = fill(stream)
    with pytest.raises(OptionError, match=r"remaining.*0 or more"):
        stream.drain(remaining)
    await peer.receive(before)
    await stream.drain()


@pytest.mark.gen_test
async def test_marks_fail_with_the_writes_when_the_stream_is_closed(stream: IOStream) -> None:
    fill(stream)
    fill_more = stream.write(bytes(100))
    marks = [stream.drain(remaining) for remaining in (10, 1, 0)]
    stream.close()
    for future in (fill_more, *marks):
        with pytest.raises(StreamClosedError) as caught:
            await future
        assert caught.value.operation == "write"
    with pytest.raises(StreamClosedError):
        await stream.drain(10)


class Output:
    """What is given to a stream at random, and what its futures must therefore say.

    :ivar sent: what is to arrive.
    :ivar promises: each future, and ``bytes_written`` when it is due, if no file becomes shorter.
    """

    def __init__(self, stream: IOStream, path: Path, chance: random.Random) -> None:
        self.stream = stream
        self.sent = b""
        self.promises: list[tuple[asyncio.Future[Any], int]] = []
        self._path = path
        self._chance = chance

    def add(self) -> None:
        size = self._chance.choice((1, 100, 70_000, 300_000))
        match self._chance.randrange(3):
            case 0:
                self._add_data(size, self.stream.write)
            case 1:
                self._add_data(size, self._send_file)
            case _:
                remaining = self._chance.choice((0, 0, 1, size, self.stream.queued))
                self._promise(self.stream.drain(remaining), remaining)

    def _add_data(self, size: int, send: Callable[[bytes], "asyncio.Future[Any]"]) -> None:
        data = self._chance.randbytes(size)
        self.sent += data
        self._promise(send(data))

    def _promise(self, future: "asyncio.Future[Any]", remaining: int = 0) -> None:
        self.promises.append((future, len(self.sent) - remaining))

    def _send_file(self, data: bytes) -> "asyncio.Future[int]":
        self._path.unlink(missing_ok=True)  # what is queued of another is its own
        self._path.write_bytes(data)
        with self._path.open("rb") as file:
            return self.stream.sendfile(file)

    def check(self) -> None:
        for future, due in self.promises:
            assert future.done() == (self.stream.bytes_written >= due)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.gen_test
async def test_writes_files_and_marks_in_any_order_are_done_when_it_is_their_turn(
    make_pair: MakePair, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    stream, peer = make_pair(socket.socketpair())
    output = Output(stream, tmp_path / "content", chance)
    received = b""
    for _ in range(60):
        if chance.random() < 0.6:
            output.add()
        elif len(received) < len(output.sent):
            received += await peer.receive(chance.randint(1, len(output.sent) - len(received)))
        await turns(2)
        output.check()
    assert received + await peer.receive(len(output.sent) - len(received)) == output.sent
    await stream.drain()
    output.check()
    assert all(future.done() for future, _ in output.promises)


@pytest.mark.gen_test
async def test_marks_within_and_behind_a_file_that_becomes_shorter_are_done(
    make_pair: MakePair, tmp_path: Path
) -> None:
    stream, peer = make_pair(socket.socketpair())
    before = fill(stream)
    path = tmp_path / "content"
    path.write_bytes(bytes(1_000_000))
    with path.open("rb") as file:
        sent = stream.sendfile(file)
    inside = stream.drain(500_000)
    tail = stream.write(bytes(100_000))
    marks = [stream.drain(remaining) for remaining in (600_000, 100_000, 50_000, 0)]
    os.truncate(path, 200_000)
    assert len(await peer.receive(before + 300_000)) == before + 300_000
    await asyncio.gather(inside, tail, *marks)
    assert await sent == 200_000
    assert stream.bytes_written == before + 300_000


# ---- limits


@pytest.mark.gen_test
async def test_a_full_write_buffer_refuses_a_write_and_takes_nothing_of_it(make_pair: MakePair) -> None:
    stream, peer = make_pair(socket.socketpair(), max_write_buffer_size=1000)
    large = stream.write(bytes(4_000_000))  # one larger write into an empty queue is taken
    assert stream.writing()
    with pytest.raises(StreamBufferFullError, match="maximum write buffer size") as caught:
        stream.write(b"abc")
    assert isinstance(caught.value, tornado.iostream.StreamBufferFullError)
    assert caught.value.operation == "write"
    assert not stream.closed()
    await peer.receive(4_000_000)
    await large
    await stream.write(b"xyz")
    assert await peer.receive(3) == b"xyz"


@pytest.mark.gen_test
async def test_a_write_buffer_may_be_filled_to_its_last_byte(make_pair: MakePair) -> None:
    stream, peer = make_pair(socket.socketpair(), max_write_buffer_size=1_000_000)
    before = fill(stream)
    queued = before - stream.bytes_written
    stream.write(bytes(1_000_000 - queued))
    with pytest.raises(StreamBufferFullError):
        stream.write(b"x")
    assert len(await peer.receive(before + 1_000_000 - queued)) == before + 1_000_000 - queued
    await stream.drain()


# ---- the cork


@pytest.mark.gen_test
async def test_replies_to_pipelined_requests_leave_in_one_send(
    stream: IOStream, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SLICE", PATIENCE)  # however slow the machine is, it is one run of the hub
    sizes = count_sends(stream)
    task = asyncio.create_task(echo(stream, 10))
    await turns(1)
    peer.send(LINE * 10)
    await task
    assert await peer.receive(160) == LINE * 10
    assert sizes == [160]


@pytest.mark.gen_test
async def test_a_reply_to_a_single_request_is_not_corked(stream: IOStream, peer: Peer) -> None:
    for _ in range(3):
        future = stream.read_until(b"\n")
        peer.send(LINE)
        await stream.write(await future)
        assert stream.bytes_written == stream.bytes_read


@pytest.mark.gen_test
async def test_without_a_cork_done_means_that_the_kernel_has_it(make_pair: MakePair) -> None:
    stream, peer = make_pair(cork=False)
    sizes = count_sends(stream)
    task = asyncio.create_task(echo(stream, 10))
    await turns(1)
    peer.send(LINE * 10)
    await task
    assert sizes == [16] * 10
    assert await peer.receive(160) == LINE * 10


@pytest.mark.gen_test
async def test_corked_writes_leave_when_the_handler_waits_for_something(stream: IOStream, peer: Peer) -> None:
    async def reply_and_wait() -> None:
        await stream.write(await stream.read_until(b"\n"))
        assert stream.bytes_written == 0
        await peer.receive(len(LINE))

    task = asyncio.create_task(reply_and_wait())
    await turns(1)
    peer.send(LINE * 2)
    await task


@pytest.mark.gen_test
async def test_corked_writes_leave_when_they_are_many(stream: IOStream, peer: Peer) -> None:
    reply = bytes(10_000)

    async def reply_to_all() -> list[int]:
        written = []
        for _ in range(10):
            await stream.read_until(b"\n")
            await stream.write(reply)
            written.append(stream.bytes_written)
        return written

    task = asyncio.create_task(reply_to_all())
    await turns(1)
    peer.send(LINE * 10)
    written = await task
    assert written[0] == 0
    assert 0 < written[8] <= 90_000
    assert await peer.receive(100_000) == reply * 10


@pytest.mark.gen_test
async def test_a_handler_that_awaits_each_write_never_fills_the_queue(make_pair: MakePair) -> None:
    stream, peer = make_pair(max_write_buffer_size=65536)
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    reply = bytes(60_000)

    async def reply_to_all() -> None:
        for _ in range(10):
            await stream.read_until(b"\n")
            await stream.write(reply)

    task = asyncio.create_task(reply_to_all())
    await turns(1)
    peer.send(LINE * 10)
    received = asyncio.create_task(peer.receive(10 * len(reply)))
    await task
    assert await received == bytes(10 * len(reply))


async def corking(peer: Peer, handler: Coroutine[Any, Any, None]) -> None:
    """Run ``handler``, which reads a line: a second one has arrived with it, so that what it writes is corked."""
    task = asyncio.create_task(handler)
    await turns(1)
    peer.send(LINE * 2)
    await task


@pytest.mark.gen_test
async def test_drain_sends_what_is_corked(stream: IOStream, peer: Peer) -> None:
    async def reply_and_drain() -> None:
        await stream.write(await stream.read_until(b"\n"))
        await stream.drain()
        assert stream.bytes_written == len(LINE)
        assert peer.has_input()

    await corking(peer, reply_and_drain())


@pytest.mark.gen_test
async def test_a_write_of_nothing_sends_what_is_corked(stream: IOStream, peer: Peer) -> None:
    """distributed does so before it shuts a socket down."""

    async def reply_and_flush() -> None:
        await stream.write(await stream.read_until(b"\n"))
        assert stream.writing(), "nothing was corked"
        await stream.write(b"")
        assert not stream.writing()
        assert peer.has_input()

    await corking(peer, reply_and_flush())


@pytest.mark.gen_test
async def test_corked_writes_are_sent_before_anything_is_done_with_the_socket(stream: IOStream, peer: Peer) -> None:
    async def reply_and_end() -> None:
        await stream.write(await stream.read_until(b"\n"))
        assert stream.writing(), "nothing was corked"
        stream.socket.shutdown(socket.SHUT_WR)

    await corking(peer, reply_and_end())
    assert await peer.receive(len(LINE)) == LINE


END = {
    "close": lambda stream: stream.close(),
    "aclose": lambda stream: stream.aclose(),
    "send_eof": lambda stream: stream.send_eof(),
}


@pytest.mark.parametrize("end", END.values(), ids=list(END))
@pytest.mark.parametrize("size", [16, 6_000], ids=["little", "more than the kernel takes"])
@pytest.mark.gen_test
async def test_a_corked_write_is_owed_by_whatever_ends_the_stream(
    make_pair: MakePair, monkeypatch: pytest.MonkeyPatch, end: Any, size: int
) -> None:
    monkeypatch.setattr(hub, "SLICE", PATIENCE)  # or on a busy machine the run of the hub ends before the last reply
    stream, peer = make_pair(socket.socketpair())
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    reply = bytes([120]) * size

    async def reply_and_end() -> None:
        for _ in range(10):
            await stream.read_until(b"\n")
            assert stream.write(reply).done()
        assert stream.writing(), "nothing was corked"
        ending = end(stream)
        if ending is not None:
            await ending

    task = asyncio.create_task(reply_and_end())
    await turns(1)
    peer.send(LINE * 11)
    received = [chunk async for chunk in _chunks_or_reset(peer)]
    assert b"".join(received) == reply * 10
    peer.close()
    await task


async def _chunks_or_reset(peer: Peer) -> Any:
    """close() with unread input makes the kernel reset the connection, behind what was sent."""
    try:
        async for chunk in peer.chunks():
            yield chunk
    except ConnectionResetError:
        pass


@pytest.mark.gen_test
async def test_close_discards_writes_that_are_not_done(make_pair: MakePair, engine: str) -> None:
    stream, peer = make_pair(socket.socketpair())
    future = stream.write(bytes(4_000_000))
    taken = stream.bytes_written
    if engine == "tls":
        taken += PLAINTEXT  # what is encrypted is sent
    stream.close()
    with pytest.raises(StreamClosedError) as caught:
        await future
    assert caught.value.operation == "write"
    assert caught.value.reason == "local"
    assert len(await peer.receive_all()) == taken


# ---- the other side


@pytest.mark.gen_test
async def test_a_write_to_a_closed_stream_raises_at_the_call(stream: IOStream) -> None:
    stream.close()
    with pytest.raises(StreamClosedError, match=r"on this side \(local\), during write"):
        stream.write(b"abc")


@pytest.mark.gen_test
async def test_writes_to_a_peer_that_reset_fail_with_the_reason(stream: IOStream, peer: Peer) -> None:
    peer.reset()
    with pytest.raises(StreamClosedError) as caught:
        while True:
            await stream.write(b"abc")
    assert caught.value.operation == "write"
    assert caught.value.reason == "reset" == stream.close_reason
    assert isinstance(caught.value.real_error, ConnectionError)


@pytest.mark.gen_test
async def test_writes_that_wait_fail_when_the_peer_resets(stream: IOStream, peer: Peer) -> None:
    fill(stream)
    futures = [stream.write(b"abc"), stream.drain()]
    peer.reset()
    for future in futures:
        with pytest.raises(StreamClosedError) as caught:
            await future
        assert caught.value.reason == "reset"
    assert stream.closed()


@pytest.mark.gen_test
async def test_what_came_before_a_failed_write_is_readable_after_it(stream: IOStream, peer: Peer) -> None:
    await stream.write(b"x")
    peer.send(LINE)
    peer.close()  # with unread input: the kernel resets
    with pytest.raises(StreamClosedError):
        while True:
            await stream.write(b"abc")
    assert await stream.read_until(b"\n") == LINE


@pytest.mark.gen_test
async def test_a_half_close_of_the_peer_does_not_cancel_writes(make_pair: MakePair) -> None:
    stream, peer = make_pair(socket.socketpair())
    peer.send(LINE)
    peer.half_close()
    assert await stream.read_until(b"\n") == LINE
    future = stream.write(bytes(8_000_000))
    with pytest.raises(StreamClosedError) as caught:
        await stream.read_until(b"\n")
    assert caught.value.reason == "eof"
    assert len(await peer.receive_all()) == 8_000_000
    await future
    assert stream.close_reason == "eof"


@pytest.mark.gen_test
async def test_lines_of_a_peer_that_half_closed_are_all_answered(stream: IOStream, peer: Peer) -> None:
    peer.send(LINE * 20)
    peer.half_close()
    with pytest.raises(StreamClosedError, match="by the peer"):
        await echo(stream, 21)
    assert await peer.receive_all() == LINE * 20


# ---- send_eof


@pytest.mark.gen_test
async def test_send_eof_ends_the_output_and_leaves_the_input(stream: IOStream, peer: Peer) -> None:
    await stream.write(b"abc")
    await stream.send_eof()
    await stream.send_eof()
    assert await peer.receive_all() == b"abc"
    peer.send(LINE)
    assert await stream.read_until(b"\n") == LINE
    with pytest.raises(StreamClosedError):
        stream.write(b"def")
    assert not stream.closed()


@pytest.mark.gen_test
async def test_send_eof_follows_what_is_queued(stream: IOStream, peer: Peer) -> None:
    before = fill(stream)
    future = stream.send_eof()
    assert not future.done()
    assert len(await peer.receive_all()) == before
    await future
    assert not stream.closed()


@pytest.mark.gen_test
async def test_send_eof_of_a_closed_stream_raises(stream: IOStream) -> None:
    stream.close()
    with pytest.raises(StreamClosedError):
        stream.send_eof()


# ---- connecting and writing


@pytest.mark.gen_test
async def test_writes_before_the_connection_wait_for_it(stream: IOStream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = IOStream(socket.socket())
        connecting = client.connect(listener.getsockname())
        writes = [client.write(b"abc"), client.write(b"def")]
        ended = client.send_eof()
        assert await connecting is client
        await asyncio.gather(*writes, ended)
        connection, _ = listener.accept()
    peer = Peer(connection)
    assert await peer.receive_all() == b"abcdef"
    client.close()
    peer.close()


@pytest.mark.gen_test
async def test_reads_before_the_connection_wait_for_it(stream: IOStream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = IOStream(socket.socket())
        client.connect(listener.getsockname())
        future = client.read_until(b"\n")
        connection, _ = listener.accept()
    peer = Peer(connection)
    peer.send(LINE)
    assert await future == LINE
    client.close()
    peer.close()


@pytest.mark.gen_test
async def test_an_echo_of_much_data_in_both_directions_at_once(make_pair: MakePair) -> None:
    stream, peer = make_pair(socket.socketpair())
    data = b"".join(b"%0127d\n" % number for number in range(4_000))  # more than the kernel holds

    async def serve() -> None:
        await echo(stream, 4_000)
        await stream.aclose()

    serving = asyncio.create_task(serve())
    sending = asyncio.create_task(peer.send_all(data))
    assert await peer.receive(len(data)) == data
    await sending
    await eventually(peer.has_input)
    peer.close()
    await serving
