"""`IOStream`: reading."""

import asyncio
import logging
from asyncio import Future
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import tornado.iostream
from tornado import gen

from iostreamsrv import (
    CloseReason,
    ConcurrentReadError,
    IOStream,
    OptionError,
    StreamBufferFullError,
    StreamClosedError,
    StreamError,
    StreamTimeoutError,
    UnsatisfiableReadError,
)
from iostreamsrv.iostream import MORE
from tests.support.engines import on_every_stream
from tests.support.peers import MakePair, Peer
from tests.support.waiting import eventually, has_come, turns

pytestmark = on_every_stream

MESSAGE = b"abcd\r\n"


def six_bytes(buffer: bytearray) -> tuple[int, bytes] | None:
    return (6, bytes(buffer[:6])) if len(buffer) >= 6 else None


Way = Callable[..., "Future[Any]"]

WAYS: dict[str, tuple[Way, object]] = {
    "until": (lambda stream, **options: stream.read_until(b"\r\n", **options), MESSAGE),
    "regex": (lambda stream, **options: stream.read_until_regex(rb"\r\n", **options), MESSAGE),
    "bytes": (lambda stream, **options: stream.read_bytes(6, **options), MESSAGE),
    "into": (lambda stream, **options: stream.read_into(bytearray(6), **options), 6),
    "match": (lambda stream, **options: stream.read_until_match(six_bytes, **options), MESSAGE),
}
in_every_way = pytest.mark.parametrize("read, result", WAYS.values(), ids=list(WAYS))
"""Ways to read ``MESSAGE``, and what the read gives."""


# ---- what every way of reading has in common


@in_every_way
@pytest.mark.gen_test
async def test_a_read_gives_what_is_there_already(stream: IOStream, peer: Peer, read: Way, result: object) -> None:
    peer.send(MESSAGE)
    await eventually(lambda: has_come(stream, 6))
    future = read(stream)
    assert future.done()
    assert await future == result


@in_every_way
@pytest.mark.gen_test
async def test_a_read_waits_for_what_is_to_come(stream: IOStream, peer: Peer, read: Way, result: object) -> None:
    future = read(stream)
    assert stream.reading()
    peer.send(MESSAGE)
    assert await future == result
    assert not stream.reading()


@in_every_way
@pytest.mark.gen_test
async def test_a_read_resumes_byte_by_byte(stream: IOStream, peer: Peer, read: Way, result: object) -> None:
    future = read(stream)
    for number in range(len(MESSAGE)):
        assert not future.done()
        peer.send(MESSAGE[number : number + 1])
        await eventually(lambda count=number + 1: stream.bytes_read == count)
    assert await future == result


@in_every_way
@pytest.mark.gen_test
async def test_reads_take_no_more_than_is_theirs(stream: IOStream, peer: Peer, read: Way, result: object) -> None:
    peer.send(MESSAGE * 3 + b"rest")
    for _ in range(3):
        assert await read(stream) == result
    assert await stream.read_bytes(4) == b"rest"


@in_every_way
@pytest.mark.gen_test
async def test_a_read_in_time_is_not_troubled_by_its_timeout(
    stream: IOStream, peer: Peer, read: Way, result: object
) -> None:
    first = read(stream, timeout=0.02)
    peer.send(MESSAGE)
    assert await first == result
    second = read(stream)
    await asyncio.sleep(0.03)
    assert not second.done()
    peer.send(MESSAGE)
    assert await second == result


@pytest.mark.parametrize("arrived", [b"", b"abc"])
@in_every_way
@pytest.mark.gen_test
async def test_a_timeout_leaves_the_stream_and_its_bytes_usable(
    stream: IOStream, peer: Peer, read: Way, result: object, arrived: bytes
) -> None:
    peer.send(arrived)
    with pytest.raises(StreamTimeoutError) as caught:
        await read(stream, timeout=0.01)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.operation == "read"
    assert caught.value.reason is None
    assert not stream.closed()
    assert not stream.reading()
    peer.send(MESSAGE[len(arrived) :])
    assert await stream.read_until(b"\r\n") == MESSAGE


@pytest.mark.parametrize("arrived", [b"", b"abc"])
@in_every_way
@pytest.mark.gen_test
async def test_a_cancelled_read_leaves_the_stream_and_its_bytes_usable(
    stream: IOStream, peer: Peer, read: Way, result: object, arrived: bytes
) -> None:
    peer.send(arrived)
    task = asyncio.ensure_future(_awaited(read(stream)))
    await turns(1)
    await eventually(lambda: stream.bytes_read == len(arrived))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not stream.reading()
    peer.send(MESSAGE[len(arrived) :])
    assert await stream.read_until(b"\r\n") == MESSAGE


@in_every_way
@pytest.mark.gen_test
async def test_a_read_cancelled_while_its_bytes_arrive_loses_none(
    stream: IOStream, peer: Peer, read: Way, result: object
) -> None:
    for wait in range(6):
        task = asyncio.ensure_future(_awaited(read(stream)))
        await turns(1)
        peer.send(MESSAGE)
        await turns(wait)
        task.cancel()
        try:
            assert await task == result
        except asyncio.CancelledError:
            assert await stream.read_until(b"\r\n") == MESSAGE


@in_every_way
@pytest.mark.gen_test
async def test_a_new_read_may_follow_a_cancelled_one_at_once(
    stream: IOStream, peer: Peer, read: Way, result: object
) -> None:
    peer.send(b"abc")
    first = read(stream)
    await eventually(lambda: stream.bytes_read == 3)
    first.cancel()
    second = read(stream)
    peer.send(b"d\r\n")
    assert await second == result


@in_every_way
@pytest.mark.gen_test
async def test_a_second_read_is_refused_and_the_first_one_unharmed(
    stream: IOStream, peer: Peer, read: Way, result: object
) -> None:
    first = stream.read_until(b"\r\n")
    with pytest.raises(ConcurrentReadError) as caught:
        read(stream)
    assert isinstance(caught.value, AssertionError)
    assert caught.value.operation == "read"
    with pytest.raises(AssertionError):
        stream.read_bytes(0)
    peer.send(MESSAGE)
    assert await first == MESSAGE


@in_every_way
@pytest.mark.gen_test
async def test_what_came_before_the_end_is_readable_after_it(
    stream: IOStream, peer: Peer, read: Way, result: object
) -> None:
    peer.send(b"x" + MESSAGE)
    peer.close()
    with pytest.raises(StreamClosedError):
        await stream.read_bytes(100)
    assert stream.closed()
    assert stream.buffered == 7
    assert await stream.read_bytes(1) == b"x"
    assert await read(stream) == result


@in_every_way
@pytest.mark.gen_test
async def test_the_end_fails_a_read_and_leaves_its_bytes(
    stream: IOStream, peer: Peer, read: Way, result: object
) -> None:
    future = read(stream)
    peer.send(b"abc")
    await eventually(lambda: stream.bytes_read == 3)
    peer.half_close()
    with pytest.raises(StreamClosedError) as caught:
        await future
    assert caught.value.operation == "read"
    assert caught.value.reason == "eof" == stream.close_reason
    assert caught.value.real_error is None
    assert stream.buffered == 3
    assert await stream.read_bytes(10, partial=True) == b"abc"


@in_every_way
@pytest.mark.gen_test
async def test_a_reset_fails_a_read(stream: IOStream, peer: Peer, read: Way, result: object) -> None:
    future = read(stream)
    peer.reset()
    with pytest.raises(StreamClosedError) as caught:
        await future
    assert caught.value.reason == "reset" == stream.close_reason
    assert isinstance(caught.value.real_error, ConnectionResetError)
    assert stream.error is caught.value.real_error


@in_every_way
@pytest.mark.gen_test
async def test_a_read_of_a_closed_stream_raises_at_the_call(
    stream: IOStream, peer: Peer, read: Way, result: object
) -> None:
    stream.close()
    with pytest.raises(StreamClosedError) as caught:
        read(stream)
    assert caught.value.operation == "read"
    assert caught.value.reason == "local"


@in_every_way
@pytest.mark.gen_test
async def test_close_fails_the_pending_read(stream: IOStream, peer: Peer, read: Way, result: object) -> None:
    future = read(stream)
    stream.close()
    with pytest.raises(StreamClosedError, match=r"closed on this side \(local\), during read"):
        await future


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "1"])
@in_every_way
@pytest.mark.gen_test
async def test_a_bad_timeout_is_named_and_costs_no_bytes(
    stream: IOStream, peer: Peer, read: Way, result: object, timeout: Any
) -> None:
    peer.send(b"xabc")
    assert await stream.read_bytes(1) == b"x"
    with pytest.raises(OptionError, match="timeout="):
        read(stream, timeout=timeout)
    assert await stream.read_bytes(3) == b"abc"


@pytest.mark.gen_test
async def test_nothing_is_received_while_nobody_reads(stream: IOStream, peer: Peer) -> None:
    await stream.write(b"x")
    peer.send(b"abc")
    await turns()
    assert stream.bytes_read == 0
    first = stream.read_until(b"\n")
    await eventually(lambda: stream.bytes_read == 3)
    first.cancel()
    peer.send(b"def\n")
    await turns()
    assert stream.bytes_read == 3, "a cancelled read went on reading"
    assert await stream.read_until(b"\n") == b"abcdef\n"


# ---- one way of reading each


@pytest.mark.gen_test
async def test_read_until_resumes_after_a_split_delimiter(stream: IOStream, peer: Peer) -> None:
    future = stream.read_until(b"\r\n")
    peer.send(b"abc\r")
    await eventually(lambda: stream.bytes_read == 4)
    peer.send(b"\ndef")
    assert await future == b"abc\r\n"
    assert await stream.read_bytes(3) == b"def"


@pytest.mark.gen_test
async def test_partial_reads_give_what_there_is(stream: IOStream, peer: Peer) -> None:
    future = stream.read_bytes(10, partial=True)
    peer.send(b"abc")
    assert await future == b"abc"
    peer.send(b"defghi")
    assert await stream.read_bytes(2, partial=True) == b"de"
    assert await stream.read_bytes(10, partial=True) == b"fghi"


@pytest.mark.gen_test
async def test_a_partial_read_tops_up_from_the_socket(make_pair: MakePair) -> None:
    stream, peer = make_pair(read_chunk_size=4)
    peer.send(b"abcdefgh")
    assert await stream.read_bytes(1) == b"a"
    assert stream.buffered == 3
    assert await stream.read_bytes(5, partial=True) == b"bcdef"


@pytest.mark.gen_test
async def test_no_bytes_are_read_at_once(stream: IOStream) -> None:
    assert await stream.read_bytes(0) == b""
    assert await stream.read_bytes(0, partial=True) == b""
    assert await stream.read_into(bytearray()) == 0


@pytest.mark.gen_test
async def test_read_into_shows_the_bytes_as_they_come(stream: IOStream, peer: Peer) -> None:
    target = bytearray(6)
    future = stream.read_into(target)
    peer.send(b"abc")
    await eventually(lambda: target == b"abc\0\0\0")
    target += b"!"  # nobody holds a view of it meanwhile
    del target[6:]
    peer.send(b"defg")
    assert await future == 6
    assert target == b"abcdef"
    assert await stream.read_bytes(1) == b"g"


@pytest.mark.gen_test
async def test_read_into_partially(stream: IOStream, peer: Peer) -> None:
    target = bytearray(6)
    peer.send(b"abc")
    assert await stream.read_into(target, partial=True) == 3
    peer.send(b"defghijkl")
    assert await stream.read_into(memoryview(target)[3:], partial=True) == 3
    assert target == b"abcdef"
    assert await stream.read_bytes(6) == b"ghijkl"


@pytest.mark.gen_test
async def test_read_until_close_gives_all_there_ever_was(stream: IOStream, peer: Peer) -> None:
    data = bytes(range(256)) * 4096
    future = stream.read_until_close()
    await peer.send_all(data)
    peer.close()
    assert await future == data
    assert stream.closed()
    assert await stream.read_until_close() == b""


@pytest.mark.gen_test
async def test_read_until_close_notices_an_end_that_comes_with_the_last_bytes(make_pair: MakePair) -> None:
    for before in range(3):
        stream, peer = make_pair()
        future = stream.read_until_close()
        await turns(before)
        peer.send(b"abc")
        peer.close()
        assert await future == b"abc"


@pytest.mark.gen_test
async def test_read_until_close_takes_a_reset_for_an_end(stream: IOStream, peer: Peer) -> None:
    future = stream.read_until_close()
    peer.send(b"abc")
    await eventually(lambda: stream.bytes_read == 3)
    peer.reset()
    assert await future == b"abc"
    assert stream.close_reason == "reset"


@pytest.mark.gen_test
async def test_read_until_match_asks_whenever_there_is_more(stream: IOStream, peer: Peer) -> None:
    seen: list[bytes] = []

    def semicolon(buffer: bytearray) -> tuple[int, str] | None:
        seen.append(bytes(buffer))
        return (buffer.index(b";") + 1, "found") if b";" in buffer else None

    future = stream.read_until_match(semicolon)
    for part in (b"ab", b"c;d"):
        peer.send(part)
        await eventually(lambda part=part: seen and seen[-1].endswith(part))
    assert await future == "found"
    assert list(dict.fromkeys(seen)) == [b"ab", b"abc;d"]
    assert stream.buffered == 1


@pytest.mark.gen_test
async def test_a_match_may_consume_and_go_on_until_it_has_a_result(stream: IOStream, peer: Peer) -> None:
    lines: list[bytes] = []

    def each_line(buffer: bytearray) -> tuple[int, Any] | None:
        end = buffer.find(b"\n") + 1
        if not end:
            return None
        lines.append(bytes(buffer[:end]))
        return end, lines[-1] if len(lines) == 3 else MORE

    future = stream.read_until_match(each_line)
    for part in (b"one\n", b"tw", b"o\n"):
        peer.send(part)
        await turns()
        assert not future.done()
    await eventually(lambda: len(lines) == 2)
    assert stream.buffered == 0
    peer.send(b"three\nfour")
    assert await future == b"three\n"
    assert lines == [b"one\n", b"two\n", b"three\n"]
    await eventually(lambda: stream.buffered == 4)


@pytest.mark.gen_test
async def test_a_match_may_end_its_stream(stream: IOStream, peer: Peer) -> None:
    def kick(buffer: bytearray) -> tuple[int, Any]:
        stream.kick("enough")
        return 2, MORE

    future = stream.read_until_match(kick)
    await turns()
    peer.send(b"abc")
    with pytest.raises(StreamClosedError, match="enough"):
        await future
    assert stream.close_reason == "kicked"
    assert stream.buffered == 1


@pytest.mark.parametrize("error", [ZeroDivisionError, OSError, TimeoutError])
@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.gen_test
async def test_what_a_match_raises_the_read_raises_and_the_stream_goes_on(
    stream: IOStream, peer: Peer, pending: bool, error: type[Exception]
) -> None:
    def fail(buffer: bytearray) -> None:
        raise error("of the match's own")

    if not pending:
        peer.send(MESSAGE)
        await eventually(lambda: has_come(stream, 6))
    future = stream.read_until_match(fail)
    assert future.done() is not pending
    if pending:
        peer.send(MESSAGE)
    with pytest.raises(error, match="of the match's own"):
        await future
    assert not stream.closed()
    assert await stream.read_until(b"\r\n") == MESSAGE


# ---- limits


@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize(
    "read",
    [lambda stream: stream.read_until(b"\n", 5), lambda stream: stream.read_until_regex(rb"\n", 5)],
    ids=["until", "regex"],
)
@pytest.mark.gen_test
async def test_an_unsatisfiable_read_closes_the_stream_and_leaves_the_bytes(
    stream: IOStream, peer: Peer, read: Way, pending: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    if not pending:
        peer.send(b"xabcdefgh")
        await stream.read_bytes(1)
    future = read(stream)
    if pending:
        peer.send(b"abcdefgh")
    with pytest.raises(StreamClosedError) as caught:
        await future
    assert caught.value.reason == "buffer_full" == stream.close_reason
    assert isinstance(caught.value.real_error, UnsatisfiableReadError)
    assert isinstance(caught.value.real_error, tornado.iostream.UnsatisfiableReadError)
    assert stream.buffered == 8
    assert "Unsatisfiable read" in caplog.text


@pytest.mark.gen_test
async def test_a_full_read_buffer_closes_the_stream(make_pair: MakePair, caplog: pytest.LogCaptureFixture) -> None:
    stream, peer = make_pair(max_buffer_size=1000)
    future = stream.read_until(b"\n")
    peer.send(bytes(1001))
    with pytest.raises(StreamClosedError) as caught:
        await future
    assert caught.value.reason == "buffer_full"
    assert isinstance(caught.value.real_error, StreamBufferFullError)
    assert isinstance(caught.value.real_error, tornado.iostream.StreamBufferFullError)
    assert caught.value.real_error.operation == "read"
    assert "Reached maximum read buffer size" in caplog.text


@pytest.mark.gen_test
async def test_a_read_buffer_may_be_filled_to_its_last_byte(make_pair: MakePair) -> None:
    stream, peer = make_pair(max_buffer_size=1000)
    peer.send(bytes(999) + b"\n" + bytes(999) + b"\n")
    assert len(await stream.read_until(b"\n")) == 1000
    assert len(await stream.read_until(b"\n")) == 1000


# ---- a read's future among those of asyncio and Tornado


async def _awaited(future: "Future[Any]") -> Any:
    return await future


@gen.coroutine
def _yielded(future: "Future[Any]") -> Any:
    result = yield future
    raise gen.Return(result)


async def _called_back(future: "Future[Any]") -> Any:
    called: Future[Any] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: called.set_result(done.result()))
    return await called


async def _first_of(future: "Future[Any]") -> Any:
    done, _ = await asyncio.wait([future], timeout=5)
    return done.pop().result()


async def _gathered(future: "Future[Any]") -> Any:
    return (await asyncio.gather(future, asyncio.sleep(0)))[0]


async def _within(future: "Future[Any]") -> Any:
    async with asyncio.timeout(5):
        return await future


AWAITERS = {
    "await": _awaited,
    "yield": _yielded,
    "add_done_callback": _called_back,
    "asyncio.wait": _first_of,
    "asyncio.gather": _gathered,
    "asyncio.timeout": _within,
    "asyncio.shield": lambda future: asyncio.shield(future),
    "asyncio.wait_for": lambda future: asyncio.wait_for(future, 5),
    "asyncio.create_task": lambda future: asyncio.create_task(_awaited(future)),
    "gen.with_timeout": lambda future: gen.with_timeout(timedelta(seconds=5), future),
    "gen.multi": lambda future: _called_back(gen.multi_future({"only": future})),
}


@pytest.mark.parametrize("wait", AWAITERS.values(), ids=list(AWAITERS))
@pytest.mark.gen_test
async def test_a_read_can_be_awaited_in_any_manner(stream: IOStream, peer: Peer, wait: Way) -> None:
    peer.send(b"x")
    assert await wait(stream.read_bytes(1)) in (b"x", {"only": b"x"})
    future = stream.read_until(b"\r\n")
    assert isinstance(future, asyncio.Future)
    assert gen.is_future(future)
    asyncio.get_running_loop().call_soon(peer.send, MESSAGE)
    assert await wait(future) in (MESSAGE, {"only": MESSAGE})


@pytest.mark.parametrize("manner", ["wait_for", "timeout"])
@pytest.mark.gen_test
async def test_a_timeout_of_asyncio_leaves_the_stream_free(stream: IOStream, peer: Peer, manner: str) -> None:
    peer.send(b"abc")
    with pytest.raises(asyncio.TimeoutError):
        if manner == "wait_for":
            await asyncio.wait_for(stream.read_until(b"\r\n"), 0.01)
        else:
            async with asyncio.timeout(0.01):
                await stream.read_until(b"\r\n")
    assert not stream.reading()
    peer.send(b"d\r\n")
    assert await stream.read_until(b"\r\n") == MESSAGE


@pytest.mark.gen_test
async def test_a_timeout_of_tornado_leaves_the_read_pending(stream: IOStream, peer: Peer) -> None:
    future = stream.read_until(b"\r\n")
    with pytest.raises(gen.TimeoutError):
        await gen.with_timeout(timedelta(seconds=0.01), future)
    assert stream.reading()
    peer.send(MESSAGE)
    assert await future == MESSAGE


@pytest.mark.gen_test
async def test_a_failed_read_nobody_waits_for_causes_no_complaint(stream: IOStream, peer: Peer) -> None:
    stream.read_until(b"\n")
    stream.close()
    await turns()  # the loop's exception handler of the fixture would keep it


# ---- errors


@pytest.mark.gen_test
async def test_errors_are_tornados_as_well_and_say_who_did_it(stream: IOStream, peer: Peer) -> None:
    peer.close()
    with pytest.raises(tornado.iostream.StreamClosedError) as caught:
        await stream.read_bytes(1)
    assert isinstance(caught.value, StreamError | OSError)
    assert isinstance(caught.value, StreamClosedError)
    assert caught.value.reason is CloseReason.EOF
    assert caught.value.reason.by_peer
    assert str(caught.value) == "Stream is closed by the peer (eof), during read"
