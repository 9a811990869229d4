"""`iostreamsrv.streams.hub`: the immediate wake-up, fairness, and batches in which much happens at once."""

import asyncio
import contextvars
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from iostreamsrv import IOLoop, IOStream, StreamClosedError
from iostreamsrv.streams import hub, receiving, wakeup
from iostreamsrv.streams.keeper import KEPT
from iostreamsrv.streams.wakeup import resolve_now
from tests.conftest import new_loop
from tests.support.engines import on_every_engine
from tests.support.leaks import open_descriptors
from tests.support.peers import MakePair, Peer
from tests.support.waiting import Ticker, eventually, turns

pytestmark = on_every_engine

LINE = b"0123456789abcde\n"


async def outside_any_task(function: Any, *arguments: Any) -> Any:
    """Call ``function`` from the loop, as a dispatch is."""
    called: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: called.set_result(function(*arguments)))
    return await called


# ---- resolve_now


@pytest.fixture
def future(io_loop: IOLoop) -> "asyncio.Future[Any]":
    return io_loop.asyncio_loop.create_future()  # type: ignore[attr-defined, no-any-return]


def completed_before(future: "asyncio.Future[Any]", happened: list[str]) -> list[str]:
    resolve_now(future, "result")
    return list(happened)


@pytest.mark.gen_test
async def test_the_one_task_that_waits_is_stepped_at_once(future: "asyncio.Future[Any]") -> None:
    happened: list[str] = []

    async def waiter() -> None:
        happened.append(await future)

    task = asyncio.create_task(waiter())
    await turns(1)
    assert wakeup.EAGER_WAKEUP
    assert await outside_any_task(completed_before, future, happened) == ["result"]
    await task


@pytest.mark.gen_test
async def test_without_immediate_wake_ups_the_task_gets_its_result_later(
    future: "asyncio.Future[Any]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeup, "EAGER_WAKEUP", False)
    happened: list[str] = []

    async def waiter() -> None:
        happened.append(await future)

    task = asyncio.create_task(waiter())
    await turns(1)
    assert await outside_any_task(completed_before, future, happened) == []
    await task
    assert happened == ["result"]


@pytest.mark.gen_test
async def test_a_callback_that_is_no_task_comes_in_the_next_turn(future: "asyncio.Future[Any]") -> None:
    happened: list[str] = []
    future.add_done_callback(lambda done: happened.append(done.result()))
    assert await outside_any_task(completed_before, future, happened) == []
    await turns(1)
    assert happened == ["result"]


@pytest.mark.gen_test
async def test_two_who_wait_are_both_woken_in_the_next_turn(future: "asyncio.Future[Any]") -> None:
    happened: list[str] = []

    async def waiter() -> None:
        happened.append(await future)

    tasks = [asyncio.create_task(waiter()) for _ in range(2)]
    await turns(1)
    assert await outside_any_task(completed_before, future, happened) == []
    await asyncio.gather(*tasks)
    assert happened == ["result", "result"]


@pytest.mark.gen_test
async def test_a_future_nobody_waits_for_keeps_its_result(future: "asyncio.Future[Any]") -> None:
    await outside_any_task(resolve_now, future, "result")
    assert await future == "result"


@pytest.mark.gen_test
async def test_the_step_happens_in_the_context_of_the_task(future: "asyncio.Future[Any]") -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody's")

    async def waiter() -> str:
        variable.set("the waiter's")
        await future
        return variable.get()

    task = asyncio.create_task(waiter())
    await turns(1)
    await outside_any_task(resolve_now, future, None)
    assert await task == "the waiter's"
    assert variable.get() == "nobody's"


@pytest.mark.gen_test
async def test_a_task_written_in_python_is_woken_as_usual(future: "asyncio.Future[Any]") -> None:
    async def waiter() -> Any:
        return await future

    task = asyncio.tasks._PyTask(waiter(), loop=asyncio.get_running_loop())  # type: ignore[attr-defined]
    await turns(1)
    await outside_any_task(resolve_now, future, "result")
    assert await task == "result"


@pytest.mark.gen_test
async def test_streams_work_without_immediate_wake_ups(
    stream: IOStream, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeup, "EAGER_WAKEUP", False)

    async def echo() -> None:
        for _ in range(20):
            await stream.write(await stream.read_until(b"\n"))

    task = asyncio.create_task(echo())
    await turns(1)
    for _ in range(4):
        peer.send(LINE * 5)
        assert await peer.receive(80) == LINE * 5
    await task


@pytest.mark.gen_test
async def test_a_reader_is_stepped_within_the_dispatch(stream: IOStream, peer: Peer) -> None:
    """What the cork lives on: the handler's step, and so its writes, belong to the dispatch of its packet."""
    inside: list[object] = []

    async def reader() -> None:
        await stream.read_until(b"\n")
        inside.append(hub.dispatching_in(asyncio.get_running_loop()))

    task = asyncio.create_task(reader())
    await turns(1)
    peer.send(LINE)
    await task
    assert inside == [stream]


# ---- fairness


@pytest.mark.gen_test
async def test_reads_from_the_buffer_let_the_loop_have_its_turns(
    stream: IOStream, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SLICE", 1e-9)  # each look at the clock finds the turn old
    peer.send(LINE * 2000)
    with Ticker() as ticker:
        for _ in range(2000):
            await stream.read_until(b"\n")
    assert ticker.count >= 2000 // 50


@pytest.mark.gen_test
async def test_writes_let_the_loop_have_its_turns(
    stream: IOStream, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SLICE", 1e-9)
    with Ticker() as ticker:
        for _ in range(500):
            await stream.write(LINE)
    assert ticker.count >= 500 // 50


@pytest.mark.gen_test
async def test_a_large_write_to_the_fastest_reader_lets_the_loop_have_its_turns(
    stream: IOStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SLICE", 1e-9)
    stream.write_to_fd = lambda data: min(len(data), 1000)  # type: ignore[method-assign]
    with Ticker() as ticker:
        await stream.write(bytes(100_000))
    assert ticker.count >= 100 // 4


@pytest.mark.gen_test
async def test_a_handler_that_does_not_await_its_writes_lets_the_loop_have_its_turns(
    stream: IOStream, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SLICE", 1e-9)
    peer.send(LINE * 2000)
    with Ticker() as ticker:
        for _ in range(2000):
            stream.write(await stream.read_until(b"\n"))
    assert ticker.count >= 2000 // 50


@pytest.mark.gen_test
async def test_one_large_read_lets_the_loop_have_its_turns(make_pair: MakePair) -> None:
    stream, peer = make_pair(read_chunk_size=1024)
    await peer.send_all(bytes(500_000))
    with Ticker() as ticker:
        await stream.read_bytes(500_000)
    assert ticker.count >= 500_000 // 1024 // 10


@pytest.mark.parametrize("slice_, at_once", [(10, True), (1e-9, False)])
@pytest.mark.gen_test
async def test_a_read_into_a_buffer_receives_all_there_is_within_its_slice(
    make_pair: MakePair, monkeypatch: pytest.MonkeyPatch, slice_: float, at_once: bool
) -> None:
    monkeypatch.setattr(hub, "SLICE", slice_)
    monkeypatch.setattr(receiving, "INTO_SIZE", 1000)
    stream, peer = make_pair()
    await peer.send_all(bytes(100_000))
    await eventually(stream.has_pending_input)
    reading = stream.read_into(bytearray(100_000))
    assert reading.done() == at_once
    with Ticker() as ticker:
        assert await reading == 100_000
    assert at_once or ticker.count >= 10


@pytest.mark.gen_test
async def test_a_large_read_into_a_buffer_lets_a_stream_that_waits_have_its_turn(
    make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SLICE", 10)
    monkeypatch.setattr(receiving, "INTO_SIZE", 1000)
    (large, large_peer), (calm, calm_peer) = make_pair(), make_pair()

    async def read_one() -> int:
        await calm.read_until(b"\n")
        return large.bytes_read

    reading_large, reading_one = large.read_into(bytearray(100_000)), asyncio.create_task(read_one())
    await turns(2)
    await large_peer.send_all(bytes(100_000))
    calm_peer.send(LINE)
    received_before = await reading_one
    if isinstance(hub.hub_of(IOLoop.current()), hub.EpollHub):
        assert received_before <= 1000
    assert await reading_large == 100_000


@pytest.mark.gen_test
async def test_a_run_of_the_hub_ends_with_its_slice(make_pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SLICE", 1e-9)  # over after one dispatch
    pairs = [make_pair() for _ in range(8)]
    seen: list[int] = []

    async def reader(stream: IOStream) -> None:
        await stream.read_until(b"\n")
        seen.append(ticker.count)

    tasks = [asyncio.create_task(reader(stream)) for stream, _ in pairs]
    await turns(1)
    with Ticker() as ticker:
        for _, peer in pairs:
            peer.send(LINE)
        await asyncio.gather(*tasks)
    assert len(set(seen)) == len(seen) or isinstance(hub.hub_of(IOLoop.current()), hub.LoopHub)
    assert len(seen) == 8


@pytest.mark.gen_test
async def test_a_busy_stream_does_not_keep_others_waiting(make_pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SLICE", 1e-9)
    (busy, busy_peer), (calm, calm_peer) = make_pair(), make_pair()
    served = 0

    async def serve() -> None:
        nonlocal served
        while True:
            await busy.read_until(b"\n")
            served += 1

    async def read_one() -> int:
        await calm.read_until(b"\n")
        return served

    serving = asyncio.create_task(serve())
    reading = asyncio.create_task(read_one())
    await turns(2)
    busy_peer.send(LINE * 3000)
    calm_peer.send(LINE)
    assert await reading < 1000
    await eventually(lambda: served == 3000)
    serving.cancel()


@pytest.mark.parametrize("what", ["bytes", "an end"])
@pytest.mark.gen_test
async def test_a_stream_nobody_reads_is_not_dispatched_over_and_over(
    io_loop: IOLoop, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 0

    class Counting(hub.driver):  # type: ignore[misc, name-defined]
        def _run(self) -> None:
            nonlocal runs
            runs += 1
            super()._run()

    monkeypatch.setattr(hub, "driver", Counting)
    ours, theirs = socket.socketpair()
    stream = IOStream(ours)
    stream.read_bytes(1).cancel()
    await turns()
    if what == "bytes":
        theirs.send(LINE)
    else:
        theirs.close()
    await asyncio.sleep(0.02)
    assert 1 <= runs <= 3
    stream.close()
    theirs.close()


# ---- much at once


class CountingReads(IOStream):
    """Knows how often it was asked to receive."""

    asked = 0

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        self.asked += 1
        return super().read_from_fd(buf)


@pytest.mark.gen_test
async def test_an_event_of_a_closed_stream_is_not_given_to_the_next_on_its_descriptor(io_loop: IOLoop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    streams = [IOStream(ours) for ours, _ in pairs]
    successors: list[tuple[CountingReads, socket.socket]] = []

    async def reader(own: IOStream, other: IOStream) -> None:
        """Whoever is dispatched first closes the other, and opens a stream on the very same descriptor."""
        try:
            await own.read_until(b"\n")
        except OSError:
            return
        if successors:
            return
        number = other.fileno()
        other.close()
        ours, theirs = socket.socketpair()
        while ours.fileno() != number:
            ours, spare = ours.dup(), ours
            spares.append(spare)
        successor = CountingReads(ours)
        successor.read_until(b"\n")
        successors.append((successor, theirs))

    spares: list[socket.socket] = []
    tasks = [asyncio.create_task(reader(*streams)), asyncio.create_task(reader(*reversed(streams)))]
    await turns(1)
    for _, theirs in pairs:
        theirs.send(LINE)
    await asyncio.wait(tasks)
    await turns()
    ((successor, theirs),) = successors
    assert successor.asked == 1, "the event of its predecessor reached it"
    assert not successor.closed()
    for sock in [*spares, theirs, *(theirs for _, theirs in pairs)]:
        sock.close()
    for stream in [*streams, successor]:
        stream.close()


@pytest.fixture
def interrupted(io_loop: IOLoop) -> Iterator[list[tuple[IOStream, socket.socket, "asyncio.Task[bytes]"]]]:
    """Streams whose first-stepped reader raised KeyboardInterrupt while all of them had a line to read."""
    loop = io_loop.asyncio_loop  # type: ignore[attr-defined]
    members: list[tuple[IOStream, socket.socket, asyncio.Task[bytes]]] = []
    interrupts = [KeyboardInterrupt()]

    async def reader(stream: IOStream) -> bytes:
        line = await stream.read_until(b"\n")
        stream.write(b"reply")
        if interrupts:
            raise interrupts.pop()
        return line

    async def start() -> None:
        for _ in range(4):
            ours, theirs = socket.socketpair()
            stream = IOStream(ours)
            members.append((stream, theirs, asyncio.create_task(reader(stream))))
        await turns(1)

    async def send() -> None:
        for _, theirs, _ in members:
            theirs.send(LINE * 2)
        await asyncio.sleep(1)

    loop.run_until_complete(start())
    sending = loop.create_task(send())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(sending)
    sending.cancel()
    yield members
    for stream, theirs, _ in members:
        stream.close()
        theirs.close()


def test_an_interrupted_dispatch_loses_no_event_of_the_others(io_loop: IOLoop, interrupted: Any) -> None:
    io_loop.run_sync(lambda: asyncio.wait([task for *_, task in interrupted], timeout=1))
    results = [task.exception() or task.result() for *_, task in interrupted]
    assert sorted(type(result).__name__ for result in results) == ["KeyboardInterrupt", "bytes", "bytes", "bytes"]


def test_an_interrupted_dispatch_delivers_what_its_reader_wrote(io_loop: IOLoop, interrupted: Any) -> None:
    io_loop.run_sync(lambda: asyncio.wait([task for *_, task in interrupted], timeout=1))
    for _, theirs, task in interrupted:
        theirs.setblocking(False)
        assert theirs.recv(100) == b"reply"
        task.exception()


# ---- the end


@pytest.mark.parametrize("callback", [False, True])
@pytest.mark.gen_test
async def test_a_reader_sees_the_end_in_the_turn_that_finds_it_but_after_a_close_callback(
    stream: IOStream, peer: Peer, callback: bool
) -> None:
    happened: list[str] = []

    async def read() -> None:
        try:
            await stream.read_until(b"\n")
        except StreamClosedError as error:
            happened.append(f"read: {error.reason}")

    if callback:
        stream.set_close_callback(lambda: happened.append("callback"))
    reading = asyncio.create_task(read())
    await turns(2)
    peer.close()
    await eventually(stream.closed)
    if not callback:
        assert happened == ["read: eof"]
    await reading
    assert happened == ["callback", "read: eof"] if callback else ["read: eof"]


# ---- the hub itself


async def come_and_go(count: int = 3) -> None:
    """Streams that are watched, and closed."""
    pairs = [socket.socketpair() for _ in range(count)]
    streams = [IOStream(ours) for ours, _ in pairs]
    for stream in streams:
        stream.read_bytes(1)
    for stream, (_, theirs) in zip(streams, pairs, strict=True):
        stream.close()
        theirs.close()
    await turns(2)


@pytest.mark.gen_test
async def test_the_hub_comes_with_the_first_stream_and_goes_a_second_after_the_last(io_loop: IOLoop) -> None:
    before = open_descriptors()
    await come_and_go()
    kept = open_descriptors() - before
    for _ in range(4):
        await asyncio.sleep(0.4)  # in all more than it is kept for
        await come_and_go()
        assert open_descriptors() - before == kept
    assert len(kept) == isinstance(hub.hub_of(io_loop), hub.EpollHub)
    await asyncio.sleep(KEPT + 0.2)
    assert open_descriptors() == before
    await come_and_go()
    await asyncio.sleep(KEPT + 0.2)
    assert open_descriptors() == before


def test_what_the_hub_keeps_goes_with_the_loop(engine: str) -> None:
    loop = new_loop(engine)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    before = open_descriptors()
    loop = new_loop(engine)
    loop.run_until_complete(come_and_go())
    loop.close()  # as asyncio.run() does it: Tornado's loop is not told
    assert open_descriptors() == before


@pytest.mark.gen_test
async def test_one_timer_is_enough_for_all_clients_that_come_and_go(io_loop: IOLoop) -> None:
    loop: Any = io_loop.asyncio_loop  # type: ignore[attr-defined]
    if not hasattr(loop, "_scheduled"):
        pytest.skip("this loop does not show its timers")
    before = len(loop._scheduled)
    for _ in range(50):
        await come_and_go(1)
    assert len(loop._scheduled) - before == isinstance(hub.hub_of(io_loop), hub.EpollHub)


@pytest.mark.gen_test
async def test_a_loop_has_one_hub(io_loop: IOLoop, engine: str) -> None:
    assert hub.hub_of(io_loop) is hub.hub_of(io_loop)
    assert isinstance(hub.hub_of(io_loop), hub.LoopHub if engine == "loop" else hub.EpollHub)
