"""Servers and clients in a simulation."""

import asyncio
from typing import Any

from iostreamsrv import CloseReason, IOStream, StreamClosedError
from iostreamsrv.testing import Faults, Simulation
from tests.support.servers import Echo

FAULTS = Faults(delay=(0, 0.2), rst=0.002, partition=0.001, stop=0.001, accept=0.02, recv=0.005, send=0.005)


class Counts(Echo):
    """Notes the reason of each end."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ends: list[tuple[int, CloseReason]] = []

    def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        self.ends.append((stream.id, reason))


async def talk(sim: Simulation, server: Any, rounds: int = 10) -> str:
    """A client that speaks until it is done, or its connection breaks; how it ends. What it reads is what it wrote."""
    try:
        stream = await sim.connect(server)
    except StreamClosedError:
        return "not connected"
    try:
        for number in range(rounds):
            line = b"%06d %d\n" % (stream.id, number)  # of the same length in each run: ids go on from run to run
            await stream.write(line)
            assert await stream.read_until(b"\n") == line
            await sim.sleep(0.1)
    except StreamClosedError:
        return "broken"
    await stream.aclose()
    return "done"


async def answers(stream: IOStream, line: bytes = b"hello\n") -> bool:
    await stream.write(line)
    return bool(await stream.read_until(b"\n") == line)


async def a_day_at_work(sim: Simulation) -> None:
    """Clients that come and go, of which some are hit by faults; then a shutdown."""
    server = sim.serve(Echo(idle_timeout=5, max_connections=6), hosts=2)

    async def client(number: int) -> None:
        await sim.sleep(number / 10)
        try:
            stream = await sim.connect(server, bandwidth=1000 if number % 3 == 0 else None)
            for _ in range(4):
                await answers(stream)
                await sim.sleep(number % 4)
            await stream.aclose()
        except (OSError, StreamClosedError) as error:
            sim.note("client", type(error).__name__)

    await asyncio.gather(*[client(number) for number in range(8)])
    await server.shutdown(timeout=5)


def digest_of(seed: int) -> str:
    sim = Simulation(seed, FAULTS)
    sim.run(a_day_at_work)
    assert sim.open_descriptors == 0
    return sim.trace.digest()
