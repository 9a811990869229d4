"""What happens to servers at moments that are drawn."""

import asyncio
from typing import Any

import pytest

from iostreamsrv import CloseReason, OptionError, StreamClosedError
from iostreamsrv.netutil import bind_unix_socket
from iostreamsrv.testing import Faults, Simulation
from tests.support.certificates import TRUSTING_ALL
from tests.support.simulations import Counts, talk

KINDS = ["cancel", "kick", "shutdown", "replace", "block", "jump"]


def run(seed: int, server: Counts, clients: int = 6, **faults: Any) -> tuple[Simulation, list[str]]:
    async def main(sim: Simulation) -> list[str]:
        sim.serve(server)
        ends = await asyncio.gather(*[talk(sim, ("10.1.0.1", 7000)) for _ in range(clients)])
        await server.shutdown(timeout=5)
        return ends

    sim = Simulation(seed, Faults(**faults))
    ends = sim.run(main)
    assert (sim.open_descriptors, sim.errors) == (0, [])
    assert len({stream for stream, _ in server.ends}) == len(server.ends)
    return sim, ends


def struck(sim: Simulation, name: str) -> int:
    return sum(str(what) == f"meets {name}" for _, _, what in sim.trace.entries)


@pytest.mark.parametrize("kind", KINDS)
def test_each_strikes_and_harms_no_more_clients_than_it_must(kind: str) -> None:
    times = 0
    for seed in range(10):
        sim, ends = run(seed, Counts(), **{kind: 0.02})
        times += struck(sim, kind)
        assert struck(sim, kind) == sim.struck
        if kind in ("cancel", "kick"):
            assert 6 - ends.count("done") <= sim.struck
        elif kind != "shutdown":
            assert ends == ["done"] * 6
    assert times >= 5


@pytest.mark.parametrize("kind", [*KINDS, "all"])
def test_the_same_seed_strikes_at_the_same_moments(kind: str) -> None:
    faults = dict.fromkeys(KINDS if kind == "all" else [kind], 0.02)
    for seed in range(5):
        digests = {run(seed, Counts(), delay=(0, 0.1), **faults)[0].trace.digest() for _ in range(2)}
        assert len(digests) == 1


def test_a_kicked_client_hears_why_and_a_cancelled_handler_says_so() -> None:
    reasons: dict[str, set[CloseReason]] = {"kick": set(), "cancel": set()}
    for kind, seen in reasons.items():
        for seed in range(10):
            server = Counts()
            run(seed, server, **{kind: 0.02})
            seen |= {reason for _, reason in server.ends}
    assert CloseReason.KICKED in reasons["kick"] - reasons["cancel"]
    assert len(reasons["cancel"]) >= 2


def test_a_client_of_a_unix_socket_that_is_kicked_has_a_name_in_the_trace() -> None:
    path = "/run/simulated.sock"

    async def main(sim: Simulation) -> list[str]:
        server = Counts()
        server.add_socket(bind_unix_socket(path))
        sim.serve(server)
        return await asyncio.gather(*[talk(sim, path) for _ in range(6)])

    kicked: set[str] = set()
    for seed in range(20):
        sim = Simulation(seed, Faults(kick=0.05))
        ends = sim.run(main)
        met = {who for _, who, what in sim.trace.entries if what == "meets kick"}
        assert 6 - ends.count("done") <= len(met)
        kicked |= met
    assert len(kicked) > 3
    assert kicked <= {f"unix-{number}" for number in range(1, 7)}


def test_a_shutdown_refuses_new_clients_and_comes_once_for_each_server() -> None:
    async def main(sim: Simulation) -> None:
        servers = [sim.serve(Counts()), sim.serve(Counts())]
        for _ in range(100):
            await sim.sleep(1)
        assert [server.addresses for server in servers] == [[], []]
        with pytest.raises(StreamClosedError):
            await sim.connect(("10.1.0.1", 7000))

    sim = Simulation(0, Faults(shutdown=0.3))
    sim.run(main)
    assert sim.struck == 2


def test_options_are_replaced_by_one_of_those_that_are_given() -> None:
    seen = set()

    async def main(sim: Simulation) -> None:
        server = sim.serve(Counts())
        for _ in range(50):
            await sim.sleep(1)
            seen.add(server.options.idle_timeout)

    default = Counts().options.idle_timeout
    Simulation(0, Faults(replace=0.2, replacements=[{"idle_timeout": 7}, {"idle_timeout": 8}])).run(main)
    assert seen == {default, 7, 8}


def test_certificates_are_reloaded(ssl_options: dict[str, str]) -> None:
    async def main(sim: Simulation) -> None:
        server = sim.serve(Counts(ssl_options=dict(ssl_options)))
        for _ in range(5):
            stream = await sim.connect(server, ssl_options=TRUSTING_ALL)
            await stream.write(b"hello\n")
            assert await stream.read_until(b"\n") == b"hello\n"

    sim = Simulation(0, Faults(reload=0.3))
    sim.run(main)
    assert struck(sim, "reload") == sim.struck > 0


def test_a_callback_blocks_amid_a_turn() -> None:
    late = []

    async def main(sim: Simulation) -> None:
        for _ in range(50):
            due = sim.loop.time() + 1
            times = [sim.loop.create_future() for _ in range(3)]
            for each in times:
                sim.loop.call_at(due, lambda each=each: each.set_result(sim.loop.time()))  # type: ignore[misc]
            late.append(len(set(await asyncio.gather(*times))))

    Simulation(0, Faults(block=0.5)).run(main)
    assert {1, 2} <= set(late)


def test_the_date_jumps_forward_and_back_and_timers_do_not() -> None:
    jumps = []

    async def main(sim: Simulation) -> None:
        for _ in range(50):
            before = sim.loop.wall_time()
            await sim.sleep(1)
            jumps.append(sim.loop.wall_time() - before - 1)
        assert sim.time == pytest.approx(50)
        before = sim.loop.wall_time()
        sim.jump(-3600)
        assert sim.loop.wall_time() == pytest.approx(before - 3600)

    Simulation(0, Faults(jump=0.5, jump_time=(100, 200))).run(main)
    assert all(abs(each) < 1e-5 or 99 < abs(each) < 401 for each in jumps)
    assert min(jumps) < -99
    assert max(jumps) > 99


@pytest.mark.parametrize("option", [{"kick": 2}, {"jump_time": -1}, {"cancel": "x"}])
def test_an_invalid_one_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Faults(**option)
