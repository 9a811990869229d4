"""`IOStream`: what happens while something else is still under way."""

import asyncio
import contextlib
import gc
import os
import socket
import sys
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iostreamsrv import IOLoop, IOStream, OptionError, PipeIOStream, StreamBufferFullError, StreamClosedError
from iostreamsrv.streams import hub
from tests.support.engines import on_every_stream
from tests.support.peers import MakePair, Peer, tcp_pair
from tests.support.waiting import PATIENCE, Ticker, eventually, fill, turns

pytestmark = on_every_stream


async def read_to_the_end(peer: Peer) -> None:
    async for _ in peer.chunks():
        pass


def busy(seconds: float) -> None:
    """Keep the loop, as a handler that computes does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


# ---- while aclose is under way


@pytest.mark.gen_test
async def test_a_read_that_begins_while_aclose_drains_does_not_disturb_it(stream: IOStream, peer: Peer) -> None:
    fill(stream)
    closing = asyncio.create_task(stream.aclose())
    await turns()
    with pytest.raises(StreamClosedError):
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(stream.read_bytes(1), read_to_the_end(peer))
    await read_to_the_end(peer)
    peer.close()
    await closing


@pytest.mark.gen_test
async def test_buffered_bytes_stay_readable_while_aclose_lingers(stream: IOStream, peer: Peer) -> None:
    peer.send(b"line\nrest")
    assert await stream.read_until(b"\n") == b"line\n"
    closing = asyncio.create_task(stream.aclose())
    assert await peer.receive_all() == b""
    assert await stream.read_bytes(4) == b"rest"
    peer.close()
    await closing


@pytest.mark.gen_test
async def test_close_may_come_in_the_turn_in_which_aclose_has_drained(stream: IOStream, peer: Peer) -> None:
    fill(stream)
    stream.write(b"last").add_done_callback(lambda _: stream.close())
    closing = asyncio.create_task(stream.aclose())
    await read_to_the_end(peer)
    await closing
    assert stream.closed()


@pytest.mark.gen_test
async def test_the_stream_is_closed_after_each_of_two_acloses(stream: IOStream, peer: Peer) -> None:
    first = asyncio.create_task(stream.aclose())
    await turns()
    second = asyncio.create_task(stream.aclose())
    await turns()
    assert not second.done() or stream.closed()
    peer.close()
    await second
    assert stream.closed()
    await first


@pytest.mark.gen_test
async def test_the_timeout_of_a_second_aclose_counts_as_well(stream: IOStream, peer: Peer) -> None:
    fill(stream)
    first = asyncio.create_task(stream.aclose())
    await turns()
    async with asyncio.timeout(PATIENCE):
        await stream.aclose(timeout=0.01)
    assert stream.closed()
    async with asyncio.timeout(PATIENCE):
        await first


# ---- the peer ends


@pytest.mark.gen_test
async def test_a_partial_read_of_the_last_bytes_leaves_the_stream_open_for_the_reply(
    stream: IOStream, peer: Peer
) -> None:
    first = asyncio.ensure_future(stream.read_until(b"\n"))
    await turns()
    peer.send(b"line\nrest")
    peer.half_close()
    assert await first == b"line\n"
    assert await stream.read_bytes(100, partial=True) == b"rest"
    await stream.write(b"reply")
    await stream.aclose()
    assert await peer.receive_all() == b"reply"


@pytest.mark.gen_test
async def test_send_eof_to_a_peer_that_reset_says_that_the_stream_is_closed(stream: IOStream, peer: Peer) -> None:
    peer.reset()
    with pytest.raises(StreamClosedError) as caught:
        await stream.send_eof()
    assert caught.value.reason == "reset"
    assert stream.closed()


@pytest.mark.gen_test
async def test_bytes_that_came_before_a_reset_can_be_read_after_send_eof_met_it(stream: IOStream, peer: Peer) -> None:
    peer.send(b"last words\n")
    peer.reset()
    with pytest.raises(StreamClosedError):
        await stream.send_eof()
    assert await stream.read_until(b"\n") == b"last words\n"


@pytest.mark.plain("TLS has no urgent data")
@pytest.mark.gen_test
async def test_bytes_behind_urgent_data_are_read(make_pair: MakePair) -> None:
    stream, peer = make_pair(tcp_pair())
    reading = asyncio.ensure_future(stream.read_until(b"\n"))
    await turns()
    peer.send(b"before ")
    peer.socket.send(b"!", socket.MSG_OOB)
    peer.send(b"behind\n")
    async with asyncio.timeout(PATIENCE):
        assert await reading == b"before behind\n"


Way = Callable[[IOStream, Peer], Any]


async def _reset_while_reading(stream: IOStream, peer: Peer) -> None:
    reading = stream.read_until(b"\n")
    await turns()
    peer.reset()
    with pytest.raises(StreamClosedError):
        try:
            await reading
        finally:
            del reading  # it has the error, and the error's traceback has this frame


async def _reset_while_writing(stream: IOStream, peer: Peer) -> None:
    fill(stream)
    draining = stream.drain()
    peer.reset()
    await asyncio.wait([draining])
    assert isinstance(draining.exception(), StreamClosedError)


async def _line_too_long(stream: IOStream, peer: Peer) -> None:
    peer.send(bytes(1000))
    with pytest.raises(StreamClosedError):
        await stream.read_until(b"\n", max_bytes=100)


async def _buffer_full(stream: IOStream, peer: Peer) -> None:
    reading = stream.read_until(b"\n")
    await turns()
    peer.send(bytes(5000))
    with pytest.raises(StreamClosedError):
        try:
            await reading
        finally:
            del reading  # it has the error, and the error's traceback has this frame


async def _orderly(stream: IOStream, peer: Peer) -> None:
    peer.close()
    with pytest.raises(StreamClosedError):
        await stream.read_until(b"\n")


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.gen_test
@pytest.mark.parametrize("end", [_reset_while_reading, _reset_while_writing, _line_too_long, _buffer_full, _orderly])
async def test_an_ended_stream_is_freed_without_the_garbage_collector(no_collector: None, end: Way) -> None:
    ours, theirs = tcp_pair()
    stream, peer = IOStream(ours, max_buffer_size=4000), Peer(theirs)
    alive = weakref.ref(stream)
    await end(stream, peer)
    peer.close()
    del stream, ours
    await turns()
    assert alive() is None


# ---- cancelled read_into


@pytest.mark.gen_test
async def test_a_cancelled_read_into_gives_back_what_came_and_not_what_the_buffer_holds_later(
    stream: IOStream, peer: Peer
) -> None:
    target = bytearray(10)
    reading = asyncio.ensure_future(stream.read_into(target))
    await turns()
    peer.send(b"abc")
    await eventually(lambda: target.startswith(b"abc"))
    reading.cancel()
    target[:] = b"somethings"
    assert await stream.read_bytes(3) == b"abc"


async def _read_into_view(stream: IOStream, target: bytearray) -> None:
    with memoryview(target) as view:
        await stream.read_into(view)


@pytest.mark.gen_test
async def test_a_cancelled_read_into_a_view_that_is_gone_loses_nothing(stream: IOStream, peer: Peer) -> None:
    target = bytearray(10)
    reading = asyncio.create_task(_read_into_view(stream, target))
    await turns()
    peer.send(b"abc")
    await eventually(lambda: target.startswith(b"abc"))
    reading.cancel()
    await asyncio.wait([reading])
    assert await stream.read_bytes(3) == b"abc"


@pytest.mark.gen_test
async def test_a_stream_closes_after_a_cancelled_read_into_a_view_that_is_gone(stream: IOStream, peer: Peer) -> None:
    target = bytearray(10)
    reading = asyncio.create_task(_read_into_view(stream, target))
    await turns()
    peer.send(b"abc")
    await eventually(lambda: target.startswith(b"abc"))
    reading.cancel()
    await asyncio.wait([reading])
    try:
        stream.close()
        assert stream.socket is None
        assert await peer.receive_all() == b""
    finally:
        if stream.socket is not None:
            stream.socket.close()


# ---- connecting


@pytest.fixture
def slow_address() -> Iterator[Any]:
    """An address that a connection takes a while to: the queue of its listener is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()


@pytest.mark.gen_test
async def test_a_close_callback_that_was_set_before_does_not_end_a_slow_connect(slow_address: Any) -> None:
    stream = IOStream(socket.socket())
    stream.set_close_callback(lambda: None)
    connecting = stream.connect(slow_address)
    await turns(20)
    assert not stream.closed()
    stream.abort()
    with pytest.raises(StreamClosedError):
        await connecting


@pytest.mark.gen_test
async def test_a_read_of_nothing_does_not_end_a_slow_connect(slow_address: Any) -> None:
    stream = IOStream(socket.socket())
    connecting = stream.connect(slow_address)
    stream.set_close_callback(lambda: None)
    assert await stream.read_bytes(0) == b""
    await turns(20)
    assert not stream.closed()
    stream.abort()
    with pytest.raises(StreamClosedError):
        await connecting


@pytest.mark.gen_test
async def test_connect_of_a_closed_stream_says_so() -> None:
    stream = IOStream(socket.socket())
    stream.close()
    with pytest.raises(StreamClosedError):
        await stream.connect(("127.0.0.1", 1))


@pytest.mark.gen_test
async def test_a_connect_that_raised_leaves_a_stream_that_can_connect() -> None:
    stream = IOStream(socket.socket())
    with pytest.raises(OverflowError):
        await stream.connect(("127.0.0.1", 70000))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await stream.connect(listener.getsockname())
        await stream.write(b"hello")
        accepted, _ = listener.accept()
    assert accepted.recv(5) == b"hello"
    accepted.close()
    stream.close()


@pytest.mark.gen_test
async def test_a_half_close_while_connecting_is_sent_once() -> None:
    shutdowns = []

    class Counting(socket.socket):
        def shutdown(self, how: int) -> None:
            shutdowns.append(how)
            super().shutdown(how)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = IOStream(Counting())
        connecting = stream.connect(listener.getsockname())
        await stream.send_eof()
        await connecting
        await turns()
    stream.close()
    assert shutdowns == [socket.SHUT_WR]


# ---- descriptors that give and take less than they could


@pytest.mark.gen_test
async def test_read_from_fd_may_give_as_little_as_it_likes_again_and_again(stream: IOStream, peer: Peer) -> None:
    original = stream.read_from_fd
    stream.read_from_fd = lambda buf: original(buf[:3])  # type: ignore[method-assign]
    for _ in range(3):
        reading = asyncio.ensure_future(stream.read_until(b"\n"))
        await turns()
        peer.send(b"0123456789\n")
        async with asyncio.timeout(PATIENCE):
            assert await reading == b"0123456789\n"


@pytest.mark.gen_test
async def test_write_to_fd_may_take_as_little_as_it_likes_again_and_again(stream: IOStream, peer: Peer) -> None:
    send = stream.write_to_fd
    stream.write_to_fd = lambda data: send(data[:3])  # type: ignore[method-assign]
    for _ in range(3):
        async with asyncio.timeout(PATIENCE):
            await stream.write(b"0123456789")
    assert await peer.receive(30) == b"0123456789" * 3


@pytest.mark.gen_test
@pytest.mark.skipif(sys.platform == "win32", reason="there are no terminals to open")
async def test_a_terminals_lines_are_all_read() -> None:
    master, terminal = os.openpty()
    stream = PipeIOStream(terminal)
    try:
        reading = asyncio.ensure_future(stream.read_until(b"\n"))
        await turns()
        os.write(master, b"one\ntwo\nthree\n")
        async with asyncio.timeout(PATIENCE):
            assert await reading == b"one\n"
            assert await stream.read_until(b"\n") == b"two\n"
            assert await stream.read_until(b"\n") == b"three\n"
    finally:
        stream.close()
        os.close(master)


@pytest.mark.gen_test
async def test_send_eof_of_a_pipe_raises_at_the_call_also_while_bytes_are_queued() -> None:
    ends = os.pipe()
    reader, writer = PipeIOStream(ends[0]), PipeIOStream(ends[1])
    try:
        writing = writer.write(bytes(1_000_000))
        with pytest.raises(OSError, match="half-close"):
            writer.send_eof()
        assert len(await reader.read_bytes(1_000_000)) == 1_000_000
        await writing
        await writer.write(b"more")
    finally:
        reader.close()
        writer.close()


def test_a_pipe_that_could_not_be_made_leaves_the_descriptor_to_its_owner() -> None:
    reader, writer = os.pipe()
    with pytest.raises(OptionError):
        PipeIOStream(reader, read_chunk_size=0)
    gc.collect()
    os.close(reader)
    os.close(writer)


# ---- many at once


@pytest.mark.gen_test
async def test_what_fails_in_one_streams_write_does_not_hold_up_the_others(
    make_pair: MakePair, caplog: pytest.LogCaptureFixture
) -> None:
    (bad, bad_peer), (good, good_peer) = make_pair(), make_pair()

    def broken(data: Any) -> int:
        raise RuntimeError("of the subclass's own")

    bad.write_to_fd = broken  # type: ignore[method-assign]

    async def answer(stream: IOStream) -> None:
        with contextlib.suppress(StreamClosedError, RuntimeError):
            await stream.write(await stream.read_until(b"\n"))

    answering = [asyncio.create_task(answer(stream)) for stream in (bad, good)]
    await turns()
    for peer in (bad_peer, good_peer):
        peer.send(b"line\nmore")
    async with asyncio.timeout(PATIENCE):
        assert await good_peer.receive(5) == b"line\n"
    await asyncio.wait(answering)


@pytest.mark.gen_test
async def test_many_small_corked_writes_let_the_loop_have_its_turns(stream: IOStream, peer: Peer) -> None:
    counted = 0

    async def answer() -> None:
        nonlocal counted
        await stream.read_until(b"\n")
        with Ticker() as ticker:
            for _ in range(50_000):
                await stream.write(b"x")
                if ticker.count == 4:
                    break
            counted = ticker.count

    answering = asyncio.create_task(answer())
    receiving = asyncio.create_task(read_to_the_end(peer))
    await turns()
    peer.send(b"go\nmore")
    await answering
    assert counted == 4
    stream.close()
    await receiving


@pytest.mark.gen_test
async def test_streams_that_are_ready_together_share_one_slice_of_a_turn(make_pair: MakePair) -> None:
    pairs = [make_pair() for _ in range(20)]

    async def compute(stream: IOStream) -> None:
        await stream.read_until(b"\n")
        busy(0.002)

    computing = [asyncio.create_task(compute(stream)) for stream, _ in pairs]
    await turns()
    for _, peer in pairs:
        peer.send(b"\n")
    with Ticker() as ticker:
        await asyncio.wait(computing)
        assert ticker.count >= 6


@pytest.mark.gen_test
async def test_a_stream_that_keeps_receiving_waits_for_its_turn_but_once(make_pair: MakePair) -> None:
    pairs = [make_pair() for _ in range(20)]

    async def compute(stream: IOStream) -> None:
        while await stream.read_until(b"\n") != b"end\n":
            busy(0.001)

    computing = [asyncio.create_task(compute(stream)) for stream, _ in pairs]
    await turns()
    longest = 0
    for _ in range(30):
        for _, peer in pairs:
            peer.send(b"\n")
        await turns(1)
        longest = max(longest, len(hub.hub_of(IOLoop.current())._due))
    for task in computing:
        task.cancel()
    await asyncio.wait(computing)
    assert longest <= 2 * len(pairs)


@pytest.mark.gen_test
async def test_the_write_limit_bounds_the_memory_of_small_writes_too(make_pair: MakePair) -> None:
    stream, _ = make_pair(max_write_buffer_size=50_000)
    fill(stream)
    tracemalloc.start()
    try:
        with pytest.raises(StreamBufferFullError):
            while True:
                stream.write(b"x")
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 2_000_000


# ---- after the loop


@pytest.fixture
def other_loop(io_loop: IOLoop) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for the test to close."""
    loop = asyncio.new_event_loop()
    yield loop
    if not loop.is_closed():
        loop.close()


@pytest.mark.parametrize("waiting", ["read", "write"])
def test_a_stream_with_waiters_closes_after_its_loop(other_loop: asyncio.AbstractEventLoop, waiting: str) -> None:
    async def begin() -> tuple[IOStream, Peer]:
        ours, theirs = tcp_pair()
        stream, peer = IOStream(ours), Peer(theirs)
        fill(stream)
        future = stream.read_bytes(1) if waiting == "read" else stream.write(b"last")
        future.add_done_callback(lambda _: None)
        return stream, peer

    stream, peer = other_loop.run_until_complete(begin())
    other_loop.close()
    descriptor = stream.socket
    try:
        stream.close(RuntimeError())
        assert stream.socket is None
    finally:
        descriptor.close()
        peer.close()


def test_a_loop_that_closes_all_it_knows_closes_the_streams(other_loop: asyncio.AbstractEventLoop) -> None:
    async def begin() -> tuple[IOStream, Peer, IOLoop]:
        ours, theirs = tcp_pair()
        stream, peer = IOStream(ours), Peer(theirs)
        stream.read_bytes(1)
        return stream, peer, IOLoop.current()

    stream, peer, io_loop = other_loop.run_until_complete(begin())
    io_loop.close(all_fds=True)
    try:
        assert stream.closed()
        peer.socket.setblocking(True)
        peer.socket.settimeout(PATIENCE)
        assert peer.socket.recv(1) == b""
    finally:
        stream.close()
        peer.close()


@pytest.mark.gen_test
async def test_what_a_match_raises_at_the_close_is_what_its_read_raises(
    stream: IOStream, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SLICE", 1e-9)  # so that soon a read has to wait although its bytes are there
    peer.send(bytes(500))
    await stream.read_bytes(1)
    divisor = 1
    reads = (stream.read_until_match(lambda _: (1, 1 // divisor)) for _ in range(400))
    waiting = next(read for read in reads if not read.done())
    divisor = 0
    stream.close()
    with pytest.raises(ZeroDivisionError):
        await waiting
