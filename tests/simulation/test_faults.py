"""What is made to go wrong in a simulation, and what of it the server survives."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

from iostreamsrv import ListenError
from iostreamsrv.netutil import bind_unix_socket
from iostreamsrv.runtime.kernel import current_kernel
from iostreamsrv.testing import Faults, Simulation
from iostreamsrv.testing.simulation.faults import SYSTEM_CALLS
from tests.support.servers import header
from tests.support.simulations import Counts, talk


def run(seed: int, clients: int = 8, **faults: Any) -> tuple[Simulation, list[str]]:
    async def main(sim: Simulation) -> list[str]:
        server = Counts()
        ends = await asyncio.gather(*[talk(sim, sim.serve(server) if not n else server) for n in range(clients)])
        await server.shutdown(timeout=5)
        assert len({stream for stream, _ in server.ends}) == len(server.ends)
        return ends

    sim = Simulation(seed, Faults(**faults))
    ends = sim.run(main)
    assert sim.open_descriptors == 0
    assert sim.errors == []
    return sim, ends


def words_of(sim: Simulation) -> str:
    return str(sim.trace)


@pytest.mark.parametrize("call, probability", [("accept", 0.2), ("recv", 0.03), ("send", 0.03)])
def test_every_error_of_a_system_call_strikes_and_others_are_served(call: str, probability: float) -> None:
    seen: set[str] = set()
    done = 0
    for seed in range(30):
        sim, ends = run(seed, **{call: probability})
        seen |= {errno.errorcode[number] for number in SYSTEM_CALLS[call] if errno.errorcode[number] in words_of(sim)}
        done += ends.count("done")
    assert seen == {errno.errorcode[number] for number in SYSTEM_CALLS[call]}
    assert done > 60


def test_clients_are_served_although_setsockopt_fails_for_their_connections() -> None:
    struck = 0
    for seed in range(20):
        try:
            sim, ends = run(seed, setsockopt=0.2)
        except ListenError as error:
            assert error.errno in SYSTEM_CALLS["setsockopt"]  # the listener's: the server cannot be started
        else:
            assert ends == ["done"] * 8
            struck += sim.struck
    assert struck > 5


def listen(server: Counts) -> None:
    server.listen(7000, "10.1.0.1")


def bind_and_start(server: Counts) -> None:
    server.bind(7000, "10.1.0.1")
    server.start()


@pytest.mark.parametrize("begin", [listen, bind_and_start])
def test_a_server_whose_listener_refuses_an_option_says_so_and_leaves_nothing_open(
    begin: Callable[[Counts], None],
) -> None:
    failed = set()
    for seed in range(30):

        async def main(sim: Simulation) -> None:
            server = Counts()
            while True:
                try:
                    begin(server)
                    break
                except ListenError as error:
                    failed.add(str(error))
                    assert str(error).startswith("cannot listen on 10.1.0.1:7000: ")
                    assert (sim.open_descriptors, server.addresses) == (0, [])
            assert server.addresses == [("10.1.0.1", 7000)]
            server.stop()

        Simulation(seed, Faults(setsockopt=0.3)).run(main)
    assert len(failed) == len(SYSTEM_CALLS["setsockopt"])


def test_sockets_that_were_added_stay_open_when_one_of_them_refuses_an_option() -> None:
    refused = []

    async def main(sim: Simulation) -> None:
        sockets = [current_kernel().socket(socket.AF_INET) for _ in range(2)]
        for host, each in enumerate(sockets):
            each.setblocking(False)
            each.bind((f"10.1.0.{host}", 7000))
            each.listen()
        server = Counts()
        try:
            server.add_sockets(sockets)
        except ListenError as error:
            refused.append(str(error)[:27])
            assert server.addresses == []
            assert [each.fileno() >= 0 for each in sockets] == [True, True]
            for each in sockets:
                each.close()
        server.stop()

    for seed in range(20):
        Simulation(seed, Faults(setsockopt=0.3)).run(main)
    assert {*refused} == {"cannot listen on 10.1.0.0:7", "cannot listen on 10.1.0.1:7"}


def test_resets_from_somewhere_on_the_way_break_connections_and_no_more() -> None:
    broken = done = 0
    for seed in range(20):
        sim, ends = run(seed, rst=0.01, delay=(0, 0.1))
        assert ends.count("broken") <= sim.struck
        broken, done = broken + ends.count("broken"), done + ends.count("done")
    assert broken > 10
    assert done > 50


def test_a_unix_socket_meets_neither_resets_on_the_way_nor_partitions() -> None:
    async def main(sim: Simulation) -> None:
        server = Counts()
        server.add_socket(bind_unix_socket("/run/simulated.sock"))
        sim.serve(server)
        assert await asyncio.gather(*[talk(sim, server) for _ in range(3)]) == ["done"] * 3

    sim = Simulation(0, Faults(rst=1, partition=1))
    sim.run(main)
    assert sim.struck == 0
    assert {who for _, who, what in sim.trace.entries if what == "close"} >= {
        f"unix-{number}>/run/simulated.sock" for number in (1, 2, 3)
    }


def by_name(sim: Simulation) -> dict[str, list[tuple[float, str | int]]]:
    """What the trace has of each connection."""
    found: dict[str, list[tuple[float, str | int]]] = {}
    for time, who, what in sim.trace.entries:
        found.setdefault(who, []).append((time, what))
    return found


async def one_after_the_other(sim: Simulation) -> None:
    """Eight clients of one server, none of which does anything at the same instant as another."""
    server = sim.serve(Counts())

    async def client(number: int) -> None:
        await sim.sleep(number * 0.0137)
        await talk(sim, server)

    await asyncio.gather(*[client(number) for number in range(8)])


@pytest.mark.parametrize("network", [{"cut": 0.0}, {"delay": (0, 0.1)}], ids=["even", "uneven"])
def test_a_reset_from_somewhere_on_the_way_changes_the_trace_of_its_connection_only(network: dict[str, Any]) -> None:
    for seed in range(5):
        without, never, once = (
            Simulation(seed, Faults(**network, **faults)) for faults in ({}, {"rst": 1e-12}, {"rst": 0.02, "most": 1})
        )
        for sim in (without, never, once):
            sim.run(one_after_the_other)
        assert never.trace.digest() == without.trace.digest()
        assert once.struck == 1
        begins = next(index for index, (*_, what) in enumerate(once.trace.entries) if what == "fault 1: rst")
        assert once.trace.entries[:begins] == without.trace.entries[:begins]
        struck = once.trace.entries[begins][1]
        before, after = by_name(without), by_name(once)
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        assert changed == {struck, ">".join(reversed(struck.split(">")))}


def test_partitions_and_stops_break_nothing_as_long_as_they_are_short() -> None:
    struck = 0
    for seed in range(20):
        sim, ends = run(seed, partition=0.01, partition_time=(0.1, 5), stop=0.01, stop_time=(0.1, 3))
        assert ends == ["done"] * 8
        struck += sim.struck
    assert struck > 20


def test_a_server_that_runs_out_of_descriptors_serves_all_in_the_end() -> None:
    for seed in range(5):
        ends = run(seed, clients=12, descriptors=21)[1]
        assert ends.count("done") + ends.count("broken") + ends.count("not connected") == 12
        assert ends.count("done") >= 6


def test_no_faults_strike_without_being_asked_for() -> None:
    sim, ends = run(0)
    assert (sim.struck, ends) == (0, ["done"] * 8)


def test_a_header_that_cannot_be_received_costs_its_client_only() -> None:
    async def main(sim: Simulation, server: Counts) -> None:
        sim.serve(server)
        for _ in range(10):
            with contextlib.suppress(OSError):
                stream = await sim.connect(server)
                await stream.write(header("192.0.2.1") + b"hello\n")
                await stream.read_until(b"\n")
        await server.shutdown(timeout=5)

    for seed in range(10):
        sim = Simulation(seed, Faults(recv=0.1))
        sim.run(lambda sim: main(sim, Counts(proxy_protocol=["10.0.0.0/8"])))
        assert (sim.open_descriptors, sim.errors) == (0, [])
