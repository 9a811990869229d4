"""Servers, streams, TLS and deadlines on the simulation, and that the same seed does the same."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import CloseReason, IOStream, OptionError, StreamClosedError, TCPClient, TCPServer
from iostreamsrv.netutil import bind_unix_socket
from iostreamsrv.streams import hub, wakeup
from iostreamsrv.testing import Faults, Simulation
from iostreamsrv.testing.simulation import SimulationLoop, SimulationStuck
from iostreamsrv.testing.simulation import loop as loop_module
from iostreamsrv.testing.simulation import trace as trace_module
from iostreamsrv.testing.simulation.shrinking import Shrunk
from tests.support import PROJECT
from tests.support.certificates import TRUSTING_ALL
from tests.support.servers import Echo, header
from tests.support.simulations import a_day_at_work, answers, digest_of
from tests.support.tiers import EVERY_CASE

HOUR = 3600.0


def simulate(main: Callable[[Simulation], Awaitable[Any]], seed: int = 0, **faults: Any) -> Simulation:
    sim = Simulation(seed, Faults(**faults))
    sim.run(main)
    assert sim.open_descriptors == 0
    assert sim.errors == []
    return sim


class Reasons(Echo):
    """Notes why its streams end, and when."""

    def __init__(self, sim: Simulation, **options: Any) -> None:
        super().__init__(**options)
        self.sim = sim
        self.ends: list[tuple[CloseReason, float]] = []

    def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        self.ends.append((reason, self.sim.time))


# ---- servers


def test_an_hour_of_silence_passes_in_milliseconds_and_the_idle_timeout_strikes_in_time() -> None:
    async def main(sim: Simulation) -> None:
        server = Reasons(sim, idle_timeout=HOUR)
        stream = await sim.connect(sim.serve(server))
        assert await answers(stream)
        begun = sim.time
        assert await stream.read_until_close() == b""
        assert HOUR <= sim.time - begun <= HOUR + 1.1
        assert [reason for reason, _ in server.ends] == [CloseReason.IDLE_TIMEOUT]

    before = time.process_time()
    simulate(main)
    assert time.process_time() - before < 1.0


def test_a_server_on_two_hosts_serves_clients_of_different_bandwidth() -> None:
    async def main(sim: Simulation) -> None:
        server = sim.serve(Echo(), hosts=2)
        alice, bob = await sim.connect(server), await sim.connect(server, bandwidth=1000)
        assert {alice.remote_address[0], bob.remote_address[0]} == {"10.1.0.1", "10.1.0.2"}
        line = b"x" * 4999 + b"\n"
        for stream, least, most in ((alice, 0, 1), (bob, 10, 11)):
            before = sim.time
            assert await answers(stream, line)
            assert least <= sim.time - before <= most
        await sim.sleep(HOUR)

    simulate(main)


def test_a_shutdown_lets_a_request_in_progress_finish() -> None:
    class Slow(TCPServer):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await stream.read_until(b"\n")
            await asyncio.sleep(100)
            await stream.write(b"done\n")

    async def main(sim: Simulation) -> None:
        server = sim.serve(Slow())
        busy, idle = await sim.connect(server), await sim.connect(server)
        await busy.write(b"work\n")
        await sim.sleep(1)
        ending = asyncio.ensure_future(server.shutdown(timeout=200))
        assert await idle.read_until_close() == b""
        assert sim.time < 5
        assert await busy.read_until_close() == b"done\n"
        await ending
        assert 100 < sim.time < 105
        with pytest.raises(StreamClosedError):
            await sim.connect(("10.1.0.1", 7000))

    simulate(main)


def test_the_client_of_a_proxy_header_is_the_one_it_names() -> None:
    class WhoAmI(TCPServer):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await stream.write(f"{stream.remote_address[0]}\n".encode())

    async def main(sim: Simulation) -> None:
        server = sim.serve(WhoAmI(proxy_protocol=["10.2.0.0/16"]))
        stream = await sim.connect(server)
        await stream.write(header("198.51.100.7"))
        assert await stream.read_until(b"\n") == b"198.51.100.7\n"

    for seed in range(20):
        simulate(main, seed, cut=1, delay=(0, 0.1))


def test_a_unix_socket_has_a_name_and_no_file(tmp_path: Path) -> None:
    path = str(tmp_path / "echo.sock")

    async def main(sim: Simulation) -> None:
        server = Echo()
        server.add_socket(bind_unix_socket(path))
        sim.serve(server)
        assert await answers(await sim.connect(path))
        assert not os.path.lexists(path)

    simulate(main)


def test_tcp_client_and_asyncios_own_streams_use_the_simulated_network() -> None:
    async def main(sim: Simulation) -> None:
        sim.serve(Echo())
        stream = await TCPClient().connect("10.1.0.1", 7000)
        assert await answers(stream)
        stream.close()
        reader, writer = await asyncio.open_connection("10.1.0.1", 7000)
        writer.write(b"asyncio\n")
        assert await reader.readline() == b"asyncio\n"
        writer.close()
        await writer.wait_closed()

    simulate(main)


def test_asyncios_own_server_works() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async def main(sim: Simulation) -> None:
        async with await asyncio.start_server(serve, "10.1.0.9", 80):
            stream = await sim.connect(("10.1.0.9", 80))
            await stream.write(b"hello\n")
            assert await stream.read_until_close() == b"hello\n"

    simulate(main)


def test_a_partition_is_survived_by_a_stream() -> None:
    async def main(sim: Simulation) -> None:
        server = sim.serve(Echo())
        stream = await sim.connect(server)
        sim.partition(stream, server, 30)
        assert await answers(stream)
        assert 30 <= sim.time < 90

    simulate(main)


def test_a_stopped_process_does_not_count_against_its_clients() -> None:
    async def main(sim: Simulation) -> None:
        server = Reasons(sim, idle_timeout=60)
        stream = await sim.connect(sim.serve(server))
        assert await answers(stream)
        sim.stop(300)
        await sim.sleep(30)
        assert await answers(stream)
        assert server.ends == []

    simulate(main)


# ---- TLS


def over_tls(ssl_options: dict[str, str]) -> Callable[[Simulation], Awaitable[None]]:
    async def main(sim: Simulation) -> None:
        server = sim.serve(Echo(ssl_options=dict(ssl_options)))
        streams = await asyncio.gather(*[sim.connect(server, ssl_options=TRUSTING_ALL) for _ in range(3)])
        for stream in streams:
            assert await answers(stream, b"x" * 40_000 + b"\n")
        await asyncio.gather(*[stream.aclose() for stream in streams])

    return main


def test_tls_runs_over_cut_segments(ssl_options: dict[str, str]) -> None:
    for seed in range(5):
        simulate(over_tls(ssl_options), seed, cut=1, delay=(0, 0.1))


def test_tls_is_the_same_each_time_although_its_bytes_are_not(ssl_options: dict[str, str]) -> None:
    for seed in range(50 if EVERY_CASE else 5):
        first, second = (simulate(over_tls(ssl_options), seed, delay=(0, 0.1)) for _ in range(2))
        assert first.trace.entries == second.trace.entries


# ---- the same seed


def test_the_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    count = 200 if EVERY_CASE else 20
    digests = [digest_of(seed) for seed in range(count)]
    assert [digest_of(seed) for seed in range(count)] == digests
    assert len(set(digests)) == count


PROGRAM = """
from tests.support.simulations import digest_of
print(*[digest_of(seed) for seed in range(8)])
"""


def test_the_trace_is_the_same_in_every_process_whatever_the_seed_of_its_hashes() -> None:
    here = [digest_of(seed) for seed in range(8)]
    for hash_seed in ("0", "1", "4711") if EVERY_CASE else ("4711",):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(PROJECT)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, cwd=PROJECT, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == here


def test_most_faults_limits_them_and_leaves_what_comes_before_as_it_was() -> None:
    def run(most: int | None) -> Simulation:
        sim = Simulation(5, Faults(delay=(0, 0.2), send=0.05, recv=0.05, most=most))
        sim.run(a_day_at_work)
        return sim

    whole = run(None)
    assert whole.struck > 3
    part = run(2)
    assert part.struck == 2
    last = next(i for i, entry in enumerate(part.trace.entries) if "fault 2" in str(entry[2]))
    assert part.trace.entries[:last] == whole.trace.entries[:last]


# ---- how it is used


def test_it_runs_while_another_loop_runs() -> None:
    async def outer() -> None:
        async def main(sim: Simulation) -> int:
            assert await answers(await sim.connect(sim.serve(Echo())))
            return 42

        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert Simulation().run(main) == 42
        assert (asyncio.get_running_loop(), asyncio.current_task()) == (loop, task)
        await asyncio.sleep(0)

    asyncio.run(outer())


def test_async_with_works_in_a_simulated_loop_and_says_so_in_another() -> None:
    async def inside() -> None:
        async with Simulation(seed=7) as sim:
            assert await answers(await sim.connect(sim.serve(Echo())))

    loop = SimulationLoop()
    loop.run_until_complete(inside())
    loop.run_until_complete(inside())
    loop.close()
    with pytest.raises(RuntimeError, match=r"needs a SimulationLoop.*use Simulation\(seed\)\.run\(main\)"):
        asyncio.run(inside())


def test_it_says_when_nothing_can_happen_any_more() -> None:
    async def main(sim: Simulation) -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(SimulationStuck, match="all tasks wait"):
        Simulation().run(main)


def test_it_says_when_no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "MOST_TURNS", 1000)

    async def main(sim: Simulation) -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(SimulationStuck, match="no time has passed"):
        Simulation().run(main)


def test_it_says_so_again_when_no_time_passes_during_the_cleanup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "MOST_TURNS", 1000)

    left = 5000

    async def stubborn() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    with contextlib.closing(SimulationLoop()) as loop:
        task = loop.create_task(stubborn())
        for _ in range(3):
            with pytest.raises(SimulationStuck, match="no time has passed"):
                loop.run_until_complete(task)
            task.cancel()
        assert left > 1000
        left = 0
        loop.run_until_complete(task)


def test_sleeps_that_are_over_do_not_count_as_timers_that_were_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    tidied: list[int] = []
    monkeypatch.setattr(loop_module, "FEW_CANCELLED", 10)
    monkeypatch.setattr(loop_module, "heapify", lambda agenda: tidied.append(len(agenda)))

    async def main(sim: Simulation) -> None:
        tidied.clear()
        for _ in range(100):
            await sim.sleep(1)
        assert tidied == []
        for timer in [sim.loop.call_later(1000, int) for _ in range(100)]:
            timer.cancel()
        assert tidied
        assert len(sim.loop.kernel.agenda) < 50

    Simulation().run(main)


def test_a_timer_in_debug_mode_says_where_it_was_made() -> None:
    async def main(sim: Simulation) -> None:
        sim.loop.set_debug(False)  # Python's development mode switches it on
        assert "created at" not in repr(sim.loop.call_later(1, int))
        sim.loop.set_debug(True)
        timer = sim.loop.call_later(1, int)
        assert "test_simulation.py" in repr(timer)
        timer.cancel()
        assert "cancelled" in repr(timer)

    Simulation().run(main)


def test_what_nobody_catches_is_in_its_errors(caplog: pytest.LogCaptureFixture) -> None:
    async def main(sim: Simulation) -> None:
        sim.loop.call_soon(lambda: 1 / 0)
        await sim.sleep(1)

    sim = Simulation()
    sim.run(main)
    assert [type(context["exception"]) for context in sim.errors] == [ZeroDivisionError]
    assert (sim.trace.entries[0][1:]) == ("loop", "error: ZeroDivisionError")


def test_a_task_that_does_not_end_is_an_error_and_its_coroutine_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []

    async def stubborn() -> None:
        try:
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
        finally:
            ended.append("stubborn")

    async def ends() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    async def main(sim: Simulation) -> int:
        sim.loop.create_task(stubborn(), name="stubborn")
        sim.loop.create_task(ends(), name="ends")
        await sim.sleep(1)
        return 42

    sim = Simulation()
    assert sim.run(main) == 42
    assert [context["message"] for context in sim.errors] == ["stubborn was cancelled, and does not end"]
    assert sim.trace.entries[-1][1:] == ("loop", "error: stubborn was cancelled, and does not end")
    assert ended == ["stubborn"]
    assert "stubborn was cancelled" in caplog.text


def test_the_first_faults_of_a_long_trace_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "KEPT", 50)
    monkeypatch.setattr(trace_module, "CHUNK", 10)
    monkeypatch.setattr(loop_module, "CHUNK", 10)

    async def main(sim: Simulation) -> None:
        await sim.sleep(1)
        for number in range(200):
            sim.note("somebody", f"does {number}")
            await sim.sleep(1)
        raise ValueError

    sim = Simulation(0, Faults(stop=1, most=1))
    with pytest.raises(ValueError) as raised:
        sim.run(main)
    assert not any("fault 1" in str(what) for _, _, what in sim.trace.entries)
    report = Shrunk(raised.value, 1, 1).report(sim, "again")
    assert re.search(r"^ +\d+\.\d{6}  process +fault 1: stop$", report, re.MULTILINE)


def test_the_order_of_timers_of_one_instant_is_drawn_and_call_soon_keeps_its_own() -> None:
    orders = set()

    async def main(sim: Simulation) -> None:
        order: list[int] = []
        at = sim.loop.time() + 1
        for number in range(5):
            sim.loop.call_at(at, order.append, number)
        await sim.sleep(2)
        orders.add(tuple(order))
        order.clear()
        for number in range(5):
            sim.loop.call_soon(order.append, number)
        await sim.sleep(1)
        assert order == [0, 1, 2, 3, 4]

    for seed in range(20):
        simulate(main, seed)
    assert len(orders) > 10


def test_timers_that_were_cancelled_do_not_pile_up() -> None:
    async def main(sim: Simulation) -> None:
        for _ in range(20_000):
            sim.loop.call_later(HOUR, int).cancel()
        assert len(sim.loop.kernel.agenda) < 2_100
        async with asyncio.timeout(1):
            await sim.sleep(0.5)
        assert sim.time == 0.5

    simulate(main)


@pytest.mark.parametrize(
    "option", [{"rst": 2}, {"delay": -1}, {"delay": (2, 1)}, {"descriptors": 0}, {"most": -1}, {"cut": "x"}]
)
def test_an_invalid_fault_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Faults(**option)


def test_a_function_for_an_executor_runs_in_a_later_turn() -> None:
    async def main(sim: Simulation) -> None:
        assert await asyncio.to_thread(lambda: 42) == 42
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)

    simulate(main)


# ---- what went by the address of objects


async def everything_is_cut_off(sim: Simulation) -> None:
    """Handlers that wait for the shutdown, and others that are cancelled by it; and tasks that are left at the end."""

    class Busy(TCPServer):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            name = f"{address[0]}"
            try:
                if int(name.rpartition(".")[2]) % 2:
                    await stream.wait_draining()
                    sim.note(name, "drains")
                await asyncio.sleep(HOUR)
            except asyncio.CancelledError:
                sim.note(name, "is cancelled")
                raise

        async def handle_close(self, stream: IOStream, reason: CloseReason) -> None:  # type: ignore[override]
            sim.note(f"{stream.remote_address[0]}", f"closed: {reason}")
            await asyncio.sleep(HOUR)

    async def left(number: int) -> None:
        try:
            await asyncio.sleep(HOUR)
        finally:
            sim.note(f"task {number}", "is cancelled")

    server = sim.serve(Busy())
    for number in range(30):
        await sim.connect(server)
        sim.loop.create_task(left(number))
    await sim.sleep(1)
    await server.shutdown(timeout=1)


def test_tasks_are_cancelled_and_woken_in_the_same_order_each_time() -> None:
    digests = set()
    for _ in range(10):
        garbage = [object() for _ in range(len(digests) * 1000 + 17)]  # other addresses
        digests.add(simulate(everything_is_cut_off, 1).trace.digest())
        del garbage
    assert len(digests) == 1


def test_where_there_is_no_epoll_the_other_hub_runs_on_the_loops_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "driver", hub.LoopHub)
    for seed in range(10):
        assert digest_of(seed) == digest_of(seed)


def test_a_run_in_debug_mode_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = digest_of(3)
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    monkeypatch.setattr(wakeup, "debugging", wakeup.debugging)
    assert digest_of(3) == digest
