"""How fast time passes in a simulation."""

import asyncio
import random
import time

import pytest

from iostreamsrv.testing import Simulation
from tests.support.servers import Echo

CLIENTS = 50
SLICE = 5
"""Simulated seconds that are measured at a time. The best of them counts: others share the machine."""


@pytest.mark.alone
def test_fifty_clients_of_one_request_a_second_pass_faster_than_a_hundredfold() -> None:
    taken: list[float] = []

    async def main(sim: Simulation) -> None:
        server = sim.serve(Echo())
        phases = random.Random(1)

        async def client(phase: float) -> None:
            await sim.sleep(phase)
            stream = await sim.connect(server)
            while True:
                await stream.write(b"hello\n")
                assert await stream.read_until(b"\n") == b"hello\n"
                await sim.sleep(1)

        clients = [asyncio.ensure_future(client(phases.random())) for _ in range(CLIENTS)]
        await sim.sleep(2)
        for _ in range(10):
            before = time.process_time()
            await sim.sleep(SLICE)
            taken.append(time.process_time() - before)
        assert not any(each.done() for each in clients)

    Simulation().run(main)
    assert SLICE / min(taken) > 100
