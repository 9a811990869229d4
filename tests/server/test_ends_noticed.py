"""Every end gives its place back: that of a client whose bytes nobody reads, of a read, of a function that raises."""

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from iostreamsrv import CloseReason, IOStream, StreamClosedError, StreamTimeoutError, TCPServer
from iostreamsrv.framing import Framing
from iostreamsrv.iostream import MORE
from iostreamsrv.testing import MockClock
from tests.support.engines import on_every_stream
from tests.support.peers import MakePair, Peer
from tests.support.servers import Serving
from tests.support.waiting import PATIENCE, eventually, turns

pytestmark = on_every_stream

CLIENTS = 20

of_a_server = pytest.mark.plain("the server's clients are plain sockets")


# ---- the end behind unread bytes


@pytest.mark.parametrize("how", ["close", "half_close", "reset"])
@pytest.mark.parametrize("where", ["in the kernel", "in the buffer"])
@pytest.mark.gen_test
async def test_a_close_callback_is_told_of_an_end_behind_an_unread_byte(
    make_pair: MakePair, where: str, how: str
) -> None:
    stream, peer = make_pair()
    stream.linger = 0.02
    if where == "in the buffer":
        reading = stream.read_until(b"\n")
        await turns()
        peer.send(b"line\n!")
        await reading
    closed = asyncio.Event()
    stream.set_close_callback(closed.set)
    await turns()
    if where == "in the kernel":
        peer.send(b"!")
        await turns()
    getattr(peer, how)()
    async with asyncio.timeout(PATIENCE):
        await closed.wait()
    assert stream.closed()
    assert stream.close_reason is (CloseReason.RESET if how == "reset" else CloseReason.EOF)
    assert await stream.read_bytes(1) == b"!", "it stays readable"


@pytest.mark.gen_test
async def test_time_in_which_the_process_did_not_run_does_not_count_for_an_end_behind_unread_bytes(
    make_pair: MakePair, clock: MockClock | None
) -> None:
    if clock is None:
        pytest.skip("time is real")
    stream, peer = make_pair()
    stream.linger = 2.0
    reading = stream.read_until(b"\n")
    await turns()
    peer.send(b"line\n!")
    peer.half_close()
    await reading
    closed = asyncio.Event()
    stream.set_close_callback(closed.set)
    await turns()
    clock.block(60)
    await turns()
    assert not stream.closed()
    await stream.write(b"answer")  # this is something that happens: the time begins anew
    assert await peer.receive(6) == b"answer"
    begun = clock.current_time()
    await closed.wait()
    assert 1.5 <= clock.current_time() - begun <= 2.5


@pytest.mark.gen_test
async def test_an_end_behind_more_than_one_chunk_is_noticed(make_pair: MakePair, engine: str) -> None:
    if engine == "loop":
        pytest.skip("there an end can be noticed only by receiving all that is before it")
    stream, peer = make_pair(read_chunk_size=1000)
    stream.linger = 0.02
    closed = asyncio.Event()
    stream.set_close_callback(closed.set)
    await turns()
    peer.send(bytes(50_000))
    await turns(20)
    assert stream.buffered <= 2000, "it receives but a chunk ahead"
    peer.close()
    async with asyncio.timeout(PATIENCE):
        await closed.wait()
    assert await stream.read_bytes(50_000) == bytes(50_000)


@pytest.mark.gen_test
async def test_a_cancelled_read_does_not_hide_the_end(stream: IOStream, peer: Peer) -> None:
    closed = asyncio.Event()
    stream.set_close_callback(closed.set)
    await turns()
    for _ in range(2):
        reading = stream.read_bytes(3)
        await turns()
        reading.cancel()
    peer.close()
    async with asyncio.timeout(PATIENCE):
        await closed.wait()
    assert stream.close_reason is CloseReason.EOF


@pytest.mark.gen_test
async def test_who_goes_on_reading_answers_all_that_came_before_the_end(stream: IOStream, peer: Peer) -> None:
    stream.linger = 0.2
    stream.set_close_callback(lambda: None)
    reading = stream.read_until(b"\n")
    await turns()
    peer.send(b"%b" % b"".join(b"%d\n" % number for number in range(10)))
    peer.half_close()
    line = await reading
    while stream.buffered:
        await asyncio.sleep(0.04)  # several of these are longer than the stream lingers
        await stream.write(line)
        line = await stream.read_until(b"\n")
    await stream.aclose()
    assert await peer.receive_all() == b"".join(b"%d\n" % number for number in range(9))


@pytest.mark.gen_test
async def test_an_end_that_waits_for_a_reader_costs_no_turns(stream: IOStream, peer: Peer) -> None:
    stream.set_close_callback(lambda: None)
    reading = stream.read_until(b"\n")
    await turns()
    peer.send(b"line\n!")
    peer.half_close()
    await reading
    await turns(20)
    last_dispatch = stream._hub.now
    await turns(200)
    assert stream._hub.now == last_dispatch
    assert not stream.closed()


@pytest.mark.plain("under TLS half a record may be lost with the connection")
@pytest.mark.gen_test
async def test_a_reset_behind_unread_bytes_is_noticed_without_a_close_callback(
    make_pair: MakePair, engine: str
) -> None:
    if engine == "loop":
        pytest.skip("there a stream that nobody reads learns of nothing")
    stream, peer = make_pair()
    reading = stream.read_until(b"\n")
    await turns()
    peer.send(b"line\n!")
    await reading
    peer.send(b"?")
    await turns()
    peer.reset()
    await eventually(stream.closed)
    assert stream.close_reason is CloseReason.RESET
    assert isinstance(stream.error, ConnectionError)
    assert await stream.read_bytes(2) == b"!?"


def _plain(stream: IOStream, closed: list[int]) -> None:
    stream.set_close_callback(lambda: closed.append(1))


async def _returning(stream: IOStream, closed: list[int]) -> None:
    _plain(stream, closed)


async def _at_work(stream: IOStream, closed: list[int]) -> None:
    is_closed = asyncio.Event()
    _plain(stream, closed)
    stream.set_close_callback(is_closed.set)
    await is_closed.wait()
    closed.append(1)


@of_a_server
@pytest.mark.parametrize("handler", [_plain, _returning, _at_work])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.gen_test
async def test_the_place_of_a_client_whose_last_byte_nobody_reads_comes_back(
    serving: Serving, how: str, handler: Any
) -> None:
    closed: list[int] = []
    server = serving.with_handler(lambda stream, address: handler(stream, closed), linger=0.02)
    peers = [serving.connect(server) for _ in range(CLIENTS)]
    await eventually(lambda: len(server.streams) == CLIENTS)
    for peer in peers:
        peer.send(b"!")
    await turns(20)
    for peer in peers:
        getattr(peer, how)()
    await eventually(lambda: not len(server.streams))
    await eventually(lambda: len(closed) == CLIENTS)


# ---- a read that outlives its handler


@of_a_server
@pytest.mark.parametrize("how", ["a result", "an end", "a timeout", "a cancel", "an error"])
@pytest.mark.gen_test
async def test_a_read_that_outlives_its_handler_ends_its_stream_when_it_is_done(serving: Serving, how: str) -> None:
    reads: list[asyncio.Future[Any]] = []
    half_open: dict[str, bool] = {"allow_half_open": True} if how == "an end" else {}

    async def handle(stream: IOStream, address: Any) -> None:
        reading: asyncio.Future[Any]
        if how == "an error":
            reading = stream.read_until_match(lambda buffer: 1 // 0)
        else:
            reading = stream.read_until(b"\n", timeout=0.02 if how == "a timeout" else None)
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        reads.append(reading)

    server = serving.with_handler(handle, **half_open)
    peers = [serving.connect(server) for _ in range(CLIENTS)]
    await eventually(lambda: len(reads) == CLIENTS)
    await turns()
    for peer, reading in zip(peers, reads, strict=True):
        if how in ("a result", "an error"):
            peer.send(b"line\n")
        elif how == "an end":
            peer.half_close()
        elif how == "a cancel":
            reading.cancel()
    for peer in peers:
        async with asyncio.timeout(PATIENCE):
            assert await peer.receive_all() == b"", "the client reads the end"
        peer.close()
    await eventually(lambda: not len(server.streams))


@of_a_server
@pytest.mark.gen_test
async def test_a_task_that_reads_on_has_the_stream_until_it_ends(serving: Serving) -> None:
    tasks = []
    returned = asyncio.Event()

    async def serve(stream: IOStream) -> None:
        for _ in range(3):
            line = await stream.read_until(b"\n")
            await asyncio.sleep(0.05)  # nobody reads, and far more than a few turns of the loop pass
            await stream.write(line)

    async def handle(stream: IOStream, address: Any) -> None:
        tasks.append(asyncio.create_task(serve(stream)))
        await turns()
        returned.set()

    server = serving.with_handler(handle)
    peer = serving.connect(server)
    await returned.wait()
    await turns()
    for _ in range(3):
        peer.send(b"line\n")
        assert await peer.receive(5) == b"line\n"
    assert await peer.receive_all() == b"", "the task has ended, and so the stream"
    peer.close()
    await eventually(lambda: not len(server.streams))
    await asyncio.gather(*tasks)


@of_a_server
@pytest.mark.parametrize("waiting", [lambda read: read, lambda read: asyncio.gather(read), asyncio.ensure_future])
@pytest.mark.gen_test
async def test_a_callback_that_reads_on_keeps_the_stream(serving: Serving, waiting: Callable[[Any], Any]) -> None:
    returned = asyncio.Event()

    async def handle(stream: IOStream, address: Any) -> None:
        read_on(stream)
        returned.set()

    def read_on(stream: IOStream) -> None:
        def answer(done: Any) -> None:
            if done.exception() is None:
                result = done.result()
                line = result[0] if isinstance(result, list) else result
                stream.write(line)
                if line != b"end\n":
                    read_on(stream)

        waiting(stream.read_until(b"\n")).add_done_callback(answer)

    server = serving.with_handler(handle)
    peer = serving.connect(server)
    await returned.wait()
    await turns()
    for line in (b"one\n", b"two\n", b"end\n"):
        peer.send(line)
        assert await peer.receive(4) == line
    assert await peer.receive_all() == b""
    peer.close()
    await eventually(lambda: not len(server.streams))


# ---- errors out of close


@of_a_server
@pytest.mark.gen_test
async def test_an_error_out_of_close_gives_the_place_back(serving: Serving) -> None:
    async def handle(stream: IOStream, address: Any) -> None:
        close_fd = stream.close_fd

        def fail() -> None:
            close_fd()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        stream.close_fd = fail  # type: ignore[method-assign]
        await stream.write(b"hello")

    server = serving.with_handler(handle, max_connections=1)
    for _ in range(3):
        peer = serving.connect(server)
        async with asyncio.timeout(PATIENCE):
            assert await peer.receive_all() == b"hello"
        peer.close()
    await eventually(lambda: not len(server.streams))


@of_a_server
@pytest.mark.gen_test
async def test_a_descriptor_that_somebody_else_has_closed_gives_the_place_back(serving: Serving) -> None:
    async def handle(stream: IOStream, address: Any) -> None:
        await stream.write(b"hello")
        await stream.read_until(b"\n")
        os.close(stream.fileno())
        stream.close()

    server = serving.with_handler(handle, max_connections=1)
    for _ in range(3):
        peer = serving.connect(server)
        async with asyncio.timeout(PATIENCE):
            assert await peer.receive(5) == b"hello"
            peer.send(b"line\n")
            assert await peer.receive_all() == b""
        peer.close()
    await eventually(lambda: not len(server.streams))


# ---- what users' functions raise


class Odd(Exception):
    """Something that nobody expects."""


SPECIAL = [StopIteration, StopAsyncIteration, asyncio.CancelledError, GeneratorExit, Odd]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.gen_test
async def test_whatever_a_match_function_raises_fails_its_read(
    stream: IOStream, peer: Peer, kind: type[BaseException], at_once: bool
) -> None:
    def match(buffer: bytearray) -> None:
        raise kind("by the function")

    if at_once:
        peer.send(b"line\n")
        await turns(20)
    reading = asyncio.ensure_future(stream.read_until_match(match))
    await turns()
    if not at_once:
        peer.send(b"line\n")
    async with asyncio.timeout(PATIENCE):
        with pytest.raises((RuntimeError, Odd)) as caught:
            await reading
    if kind is not Odd:
        assert kind.__name__ in str(caught.value)
        assert isinstance(caught.value.__cause__, kind)
    assert await stream.read_until(b"\n") == b"line\n", "the stream goes on, and no byte is lost"


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.gen_test
async def test_whatever_a_framing_raises_ends_the_iteration_with_an_error(
    stream: IOStream, peer: Peer, kind: type[BaseException]
) -> None:
    class Broken(Framing[bytes]):
        def decode(self, buffer: bytearray) -> tuple[int, bytes] | None:
            raise kind("by decode")

    async def read_all() -> None:
        async for _ in Broken(stream):
            pass

    reading = asyncio.create_task(read_all())
    await turns()
    peer.send(b"line\n")
    with pytest.raises((RuntimeError, Odd)):
        async with asyncio.timeout(PATIENCE):
            await reading


@of_a_server
@pytest.mark.parametrize("where", ["a plain handler", "a match function", "an event listener", "handle_close"])
@pytest.mark.gen_test
async def test_a_cancelled_error_out_of_plain_code_leaks_no_stream(serving: Serving, where: str) -> None:
    def handle(stream: IOStream, address: Any) -> Any:
        if where == "a plain handler":
            raise asyncio.CancelledError
        return serve(stream)

    def cancelled(*_: Any) -> Any:
        raise asyncio.CancelledError

    async def serve(stream: IOStream) -> None:
        if where == "a match function":
            await stream.read_until_match(cancelled)
        else:
            await stream.read_until(b"\n")

    server = TCPServer(max_connections=2)
    server.handle_stream = handle  # type: ignore[method-assign]
    if where == "handle_close":
        server.handle_close = cancelled  # type: ignore[method-assign]
    elif where == "an event listener":
        server.events.subscribe(cancelled)
    serving.started(server)
    for _ in range(3):
        peers = [serving.connect(server) for _ in range(2)]
        for peer in peers:
            peer.send(b"line\n")
        for peer in peers:
            async with asyncio.timeout(PATIENCE):
                try:
                    assert await peer.receive_all() == b""
                except ConnectionResetError:  # the byte that nobody has read
                    pass
            peer.close()
    await eventually(lambda: not len(server.streams))


@pytest.mark.gen_test
async def test_a_cancelled_error_out_of_a_close_callback_harms_no_other_stream(make_pair: MakePair) -> None:
    def cancelled() -> None:
        raise asyncio.CancelledError

    (one, one_peer), (other, other_peer) = make_pair(), make_pair()
    one.set_close_callback(cancelled)
    await turns()
    one_peer.close()
    await eventually(one.closed)
    other_peer.send(b"line\n")
    assert await other.read_until(b"\n") == b"line\n"


# ---- MORE


@pytest.mark.gen_test
async def test_a_match_function_that_wants_more_is_asked_again_for_what_is_left(stream: IOStream, peer: Peer) -> None:
    def answer(buffer: bytearray) -> tuple[int, Any] | None:
        end = buffer.find(b"\n") + 1
        if not end:
            return None
        stream.write(bytes(buffer[:end]).upper())
        return end, MORE

    reading = stream.read_until_match(answer)
    await turns()
    peer.send(b"a\nb\nc\n")
    async with asyncio.timeout(PATIENCE):
        assert await peer.receive(6) == b"A\nB\nC\n"
    peer.send(b"d\n" * 1000 + b"unfinished")
    async with asyncio.timeout(PATIENCE):
        assert await peer.receive(2000) == b"D\n" * 1000
    peer.half_close()
    with pytest.raises(StreamClosedError):
        await reading
    assert await stream.read_bytes(stream.buffered) == b"unfinished"


@pytest.mark.gen_test
async def test_a_match_function_gets_all_that_came_before_the_end(stream: IOStream, peer: Peer) -> None:
    seen: list[bytes] = []

    def take(buffer: bytearray) -> tuple[int, Any] | None:
        seen.append(bytes(buffer[:2]))
        return (2, "done") if buffer[:2] == b"z\n" else (2, MORE)

    peer.send(b"a\n" * 500 + b"z\n")
    peer.half_close()
    await turns(20)
    async with asyncio.timeout(PATIENCE):
        assert await stream.read_until_match(take) == "done"
    assert seen == [b"a\n"] * 500 + [b"z\n"]


@pytest.mark.gen_test
async def test_after_the_close_a_match_function_gets_all_that_is_buffered(stream: IOStream, peer: Peer) -> None:
    peer.send(b"-" + b"a\n" * 500 + b"z\n")
    assert await stream.read_bytes(1) == b"-"
    stream.close()
    reading = stream.read_until_match(lambda buffer: (2, "done" if buffer[:2] == b"z\n" else MORE))
    async with asyncio.timeout(PATIENCE):
        assert await reading == "done"


@pytest.mark.gen_test
async def test_a_match_function_that_wants_more_for_ever_lets_the_loop_have_its_turns(
    stream: IOStream, peer: Peer
) -> None:
    count = 0

    def one(buffer: bytearray) -> tuple[int, Any]:
        nonlocal count
        count += 1
        return 1, MORE

    reading = stream.read_until_match(one)
    await turns()
    peer.send(bytes(20_000))
    seen = []
    while count < 20_000:
        seen.append(count)
        await asyncio.sleep(0)
    assert len(set(seen)) > 10
    reading.cancel()


@pytest.mark.gen_test
async def test_a_match_function_that_consumes_nothing_is_asked_once(stream: IOStream, peer: Peer) -> None:
    calls: list[bytes] = []

    def nothing(buffer: bytearray) -> tuple[int, Any]:
        calls.append(bytes(buffer))
        return 0, MORE

    reading = stream.read_until_match(nothing, timeout=0.05)
    await turns()
    peer.send(b"a")
    with pytest.raises(StreamTimeoutError):
        await reading
    assert calls == [b"a"]
