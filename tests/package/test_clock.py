"""The loop's clock, and the one that tests move."""

import asyncio
import functools
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from iostreamsrv import IOLoop, IOStream, OptionError, TCPClient, TCPServer
from iostreamsrv.runtime.clock import (
    clock_of,
    current_time,
    current_wall_time,
    real_time,
    real_wall_time,
    wall_clock_of,
)
from iostreamsrv.streams.core import INLINE_BUDGET
from iostreamsrv.streams.hub import hub_of
from iostreamsrv.testing import MockClock, memory_stream_pair, running
from tests.support.engines import EVERY_LOOP
from tests.support.peers import tcp_pair
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("io_loop")

HOUR = 3600.0

on_asyncios_loops = pytest.mark.engines("epoll", "loop")


@pytest.fixture
def loop(io_loop: IOLoop) -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = io_loop.asyncio_loop  # type: ignore[attr-defined]
    return loop


class Virtual(asyncio.SelectorEventLoop):
    """A loop with a clock of its own."""

    def time(self) -> float:
        return 1e6

    def wall_time(self) -> float:
        return 5.0


class Echo(TCPServer):
    async def handle_stream(self, stream: IOStream, address: object) -> None:
        while True:
            await stream.write(await stream.read_until(b"\n"))


# ---- which clock


@pytest.mark.engines(*EVERY_LOOP)
def test_on_a_real_loop_the_time_is_that_of_the_c_function_itself(loop: asyncio.AbstractEventLoop) -> None:
    assert clock_of(loop) is time.monotonic
    assert wall_clock_of(loop) is time.time
    assert hub_of(IOLoop.current()).time is time.monotonic


def test_a_loop_with_a_time_of_its_own_decides_and_others_are_not_touched(loop: asyncio.AbstractEventLoop) -> None:
    virtual = Virtual()
    try:
        assert clock_of(virtual)() == 1e6
        assert wall_clock_of(virtual)() == 5.0

        async def times() -> tuple[float, float, float, float]:
            ours, theirs = memory_stream_pair()
            await ours.write(b"x")
            await theirs.read_bytes(1)
            ours.close()
            theirs.close()
            return current_time(), current_wall_time(), ours.opened_at, theirs.idle_time

        asyncio.set_event_loop(virtual)
        assert virtual.run_until_complete(times()) == (1e6, 5.0, 5.0, 0.0)
        IOLoop.current().close(all_fds=False)
    finally:
        asyncio.set_event_loop(loop)
        virtual.close()
    assert clock_of(loop) is real_time
    assert abs(current_wall_time() - real_wall_time()) < PATIENCE
    assert abs(current_time() - real_time()) < PATIENCE


def test_the_attributes_of_a_loop_stay_where_it_finds_them_fast(loop: asyncio.AbstractEventLoop) -> None:
    fresh = asyncio.SelectorEventLoop()
    asyncio.set_event_loop(fresh)
    try:
        fresh.run_until_complete(echo_once())
        assert not [each for each in gc.get_referents(fresh) if isinstance(each, dict) and "_ready" in each]
        io_loop = IOLoop.current()
        assert not [each for each in gc.get_referents(io_loop) if isinstance(each, dict) and "handlers" in each]
        io_loop.close(all_fds=False)
    finally:
        asyncio.set_event_loop(loop)
        fresh.close()


async def echo_once() -> None:
    async with running(Echo()) as (host, port):
        stream = await TCPClient().connect(host, port)
        await stream.write(b"line\n")
        assert await stream.read_until(b"\n") == b"line\n"
        stream.close()


# ---- jumps


@on_asyncios_loops
@pytest.mark.gen_test
async def test_timers_run_in_order_each_at_its_own_time(loop: asyncio.AbstractEventLoop) -> None:
    ran: list[tuple[str, float]] = []
    with MockClock().installed() as clock:
        begun = loop.time()

        def note(name: str) -> None:
            ran.append((name, round(loop.time() - begun, 6)))

        def repeat() -> None:
            note("each")
            loop.call_later(20, repeat)

        async def sleeps() -> None:
            await asyncio.sleep(15)
            note("slept")
            await asyncio.sleep(15)
            note("slept")

        loop.call_later(50, note, "last")
        loop.call_later(20, repeat)
        sleeping = asyncio.create_task(sleeps())
        await clock.jump(50)
        await sleeping
        assert round(loop.time() - begun, 6) == 50
        assert ran == [("slept", 15), ("each", 20), ("slept", 30), ("each", 40), ("last", 50)]


@pytest.mark.gen_test
async def test_nothing_happens_before_its_time(loop: asyncio.AbstractEventLoop) -> None:
    with MockClock().installed() as clock:
        late = asyncio.create_task(asyncio.sleep(HOUR))
        await clock.jump(HOUR - 1)
        assert not late.done()
        await clock.jump(1)
        assert late.done()


@pytest.mark.gen_test
async def test_a_timeout_of_asyncio_strikes_by_the_clock() -> None:
    with MockClock().installed() as clock:
        clock.jump(HOUR)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(HOUR):
                await asyncio.Event().wait()


@pytest.mark.gen_test
async def test_jumps_add_up(loop: asyncio.AbstractEventLoop) -> None:
    with MockClock().installed() as clock:
        begun = clock.current_time()
        first, second = clock.jump(10), clock.jump(0)
        await clock.jump(5)
        assert first.done() and second.done()
        assert loop.time() - begun == pytest.approx(15)


def test_a_jump_can_be_made_before_the_loop_runs(loop: asyncio.AbstractEventLoop) -> None:
    with MockClock().installed(loop) as clock:
        begun = loop.time()
        done = clock.jump(HOUR)
        loop.run_until_complete(asyncio.sleep(HOUR))
        loop.run_until_complete(done)
        assert loop.time() - begun == pytest.approx(HOUR)


@pytest.mark.gen_test
async def test_who_waits_for_a_jump_may_be_cancelled(loop: asyncio.AbstractEventLoop) -> None:
    with MockClock().installed() as clock:
        begun = loop.time()
        clock.jump(10).cancel()
        await clock.jump(0)
        assert loop.time() - begun == pytest.approx(10)


@on_asyncios_loops
@pytest.mark.gen_test
async def test_an_idle_client_is_closed_after_its_time_and_not_before() -> None:
    with MockClock().installed() as clock:
        async with running(Echo(idle_timeout=60)) as address:
            stream = await TCPClient().connect(*address)
            await clock.jump(59)
            await stream.write(b"hello\n")
            assert await stream.read_until(b"\n") == b"hello\n"
            await clock.jump(59)
            assert not stream.closed()
            assert stream.idle_time == pytest.approx(59)
            await clock.jump(3)
            assert await stream.read_until_close() == b""


@pytest.mark.gen_test
async def test_dates_follow_the_clock() -> None:
    with MockClock().installed() as clock:
        before, _ = memory_stream_pair()
        await clock.jump(HOUR)
        after, _ = memory_stream_pair()
        assert after.opened_at - before.opened_at == pytest.approx(HOUR)
        assert abs(before.opened_at - time.time()) < PATIENCE
        before.close()
        after.close()


@pytest.mark.gen_test
async def test_what_is_due_while_the_loop_is_blocked_runs_late(loop: asyncio.AbstractEventLoop) -> None:
    with MockClock().installed() as clock:
        begun, ran = loop.time(), []
        loop.call_later(1, lambda: ran.append(loop.time() - begun))
        clock.block(5)
        assert not ran
        await clock.jump(0)
        assert ran == [pytest.approx(5)]


# ---- a clock that stands still


class Counting(MockClock):
    turns = 0

    def _select(self, timeout: float | None = None) -> list[Any]:
        self.turns += 1
        return super()._select(timeout)


@on_asyncios_loops
@pytest.mark.gen_test
async def test_a_clock_that_stands_still_neither_spins_nor_keeps_sockets_waiting(
    loop: asyncio.AbstractEventLoop,
) -> None:
    ours, theirs = tcp_pair()
    ours.setblocking(False)
    with ours, theirs, Counting().installed() as clock:
        never = loop.call_later(0.0001, pytest.fail)
        before = clock.turns
        sender = threading.Timer(0.1, theirs.send, [b"hello"])
        sender.start()
        assert await loop.sock_recv(ours, 5) == b"hello"
        sender.join()
        assert clock.turns - before < 10
        never.cancel()


@pytest.mark.gen_test
async def test_a_busy_stream_yields_also_when_the_clock_stands_still() -> None:
    with MockClock().installed():
        ours, theirs = memory_stream_pair()
        await ours.write(b"x" * 100_000)
        turn = asyncio.create_task(asyncio.sleep(0))
        left = 100_000
        while left and not turn.done():
            await theirs.read_bytes(1)
            left -= 1
        assert left > 50_000 - INLINE_BUDGET
        ours.close()
        theirs.close()


# ---- a clock that moves by itself


@on_asyncios_loops
@pytest.mark.gen_test
async def test_an_idle_loop_jumps_to_its_next_timer(loop: asyncio.AbstractEventLoop) -> None:
    with MockClock(autojump_threshold=0).installed():
        begun, really = loop.time(), time.monotonic()
        await asyncio.sleep(30 * 24 * HOUR)
        assert loop.time() - begun == pytest.approx(30 * 24 * HOUR)
        assert time.monotonic() - really < PATIENCE


@pytest.mark.gen_test
async def test_a_loop_does_not_jump_within_its_threshold(loop: asyncio.AbstractEventLoop) -> None:
    ours, theirs = tcp_pair()
    ours.setblocking(False)
    with ours, theirs, MockClock(autojump_threshold=PATIENCE).installed():
        loop.call_later(0.0001, pytest.fail).cancel()
        never = loop.call_later(0.0001, pytest.fail)
        sender = threading.Timer(0.05, theirs.send, [b"hello"])
        sender.start()
        assert await loop.sock_recv(ours, 5) == b"hello"
        never.cancel()
        sender.join()


@pytest.mark.gen_test
async def test_a_clock_with_a_rate_runs_that_much_faster() -> None:
    with MockClock(rate=1000).installed() as clock:
        really = time.monotonic()
        await asyncio.sleep(100)
        assert 0.09 < time.monotonic() - really < PATIENCE
        clock.rate = 0
        now = clock.current_time()
        assert clock.current_time() == now


@pytest.mark.gen_test
async def test_a_clock_with_a_rate_jumps_where_that_is_sooner() -> None:
    with MockClock(rate=1, autojump_threshold=0.001).installed():
        really = time.monotonic()
        await asyncio.sleep(HOUR)
        await asyncio.sleep(0.0001)
        assert time.monotonic() - really < PATIENCE


@pytest.mark.gen_test
async def test_timers_from_before_stay_in_real_time(loop: asyncio.AbstractEventLoop) -> None:
    ran: list[str] = []
    early = loop.call_later(0.3, ran.append, "early")
    cancelled = loop.call_later(0.2, ran.append, "cancelled")
    late = loop.call_later(PATIENCE, ran.append, "late")
    with MockClock().installed() as clock:
        cancelled.cancel()
        await clock.jump(HOUR)
        assert ran == []
        while not ran:  # nothing else moves
            await loop.run_in_executor(None, time.sleep, 0.01)
        assert ran == ["early"]
        assert late.when() > time.monotonic()
        again = loop.call_later(HOUR, ran.append, "again")
    early.cancel()
    again.cancel()
    late.cancel()


def test_a_test_that_hangs_on_a_still_clock_ends_by_its_time_limit(io_loop: IOLoop) -> None:
    async def hangs() -> None:
        with MockClock().installed():
            await asyncio.sleep(0.0001)

    with pytest.raises(TimeoutError):
        io_loop.run_sync(hangs, timeout=0.05)


# ---- where it goes, and where it does not


@on_asyncios_loops
@pytest.mark.gen_test
async def test_when_it_is_taken_off_the_loop_has_its_own_clock_again(loop: asyncio.AbstractEventLoop) -> None:
    stream, _ = memory_stream_pair()
    hub = hub_of(IOLoop.current())
    with MockClock().installed() as clock:
        assert hub.time == clock.current_time
        waiting = clock.jump(HOUR)
    assert waiting.cancelled()
    assert clock_of(loop) is hub.time is real_time
    assert loop.time() - time.monotonic() < PATIENCE
    async with asyncio.timeout(PATIENCE):
        await asyncio.sleep(0.01)
    stream.close()


def test_it_can_be_installed_again_on_another_loop() -> None:
    clock = MockClock(autojump_threshold=0)

    async def main() -> None:
        with clock.installed():
            await asyncio.sleep(HOUR)

    asyncio.run(main())
    asyncio.run(main())


@pytest.mark.engines(EVERY_LOOP[-1])
def test_on_uvloop_it_says_that_it_cannot(loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(RuntimeError, match=r"loop with a selector, not uvloop\.Loop"), MockClock().installed(loop):
        pass


def test_a_loop_has_one_clock_and_a_clock_one_loop(loop: asyncio.AbstractEventLoop) -> None:
    other = asyncio.new_event_loop()
    with MockClock().installed(loop) as clock:
        with pytest.raises(RuntimeError, match="the loop already has another clock"), MockClock().installed(loop):
            pass
        with pytest.raises(RuntimeError, match="the clock is already installed"), clock.installed(other):
            pass
    other.close()


def test_a_clock_on_no_loop_does_not_jump() -> None:
    with pytest.raises(RuntimeError, match="not installed"):
        MockClock().jump(1)


@pytest.mark.parametrize(
    "wrong",
    [
        functools.partial(MockClock, rate=-1),
        functools.partial(MockClock, rate=float("inf")),
        functools.partial(MockClock, rate=float("nan")),
        functools.partial(MockClock, autojump_threshold=-1),
        functools.partial(MockClock, autojump_threshold=True),
        functools.partial(MockClock().jump, -1),
        functools.partial(MockClock().jump, float("inf")),
    ],
)
def test_a_number_that_is_wrong_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(OptionError, match="must be"):
        wrong()
