"""Servers and clients in a simulation."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from iostreamsrv import CloseReason, IOStream, StreamClosedError, TCPServer
from iostreamsrv.testing import Faults, Simulation
from tests.support.peers import Peer, TLSEnd, TLSPeer, tls_contexts
from tests.support.servers import Echo
from tests.support.waiting import eventually

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


# ---- for tests of other folders, whose clients are the plain sockets of `tests.support.peers`

SEEDS = 3


def simulate(main: Callable[[Simulation], Awaitable[Any]], **faults: Any) -> None:
    """Run ``main`` with some seeds; in the end everything is closed, and each exception was caught."""
    for seed in range(SEEDS):
        sim = Simulation(seed, Faults(**faults))
        sim.run(main)
        assert sim.open_descriptors == 0, seed
        assert sim.errors == [], seed


async def connected(sim: Simulation, address: Any, **buffers: int) -> Any:
    """A socket that is connected to an address.

    :param buffers: values of options of the socket, such as ``SO_RCVBUF``.
    """
    sock = sim.loop.kernel.socket(socket.AF_INET)
    sock.setblocking(False)
    await sim.loop.sock_connect(sock, address)
    for name, size in buffers.items():
        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), size)
    return sock


async def pair(sim: Simulation, **buffers: int) -> tuple[Any, Any]:
    """Two connected sockets; the second has these options."""
    with contextlib.closing(sim.loop.kernel.socket(socket.AF_INET)) as listener:
        listener.setblocking(False)
        listener.bind(("10.1.0.1", 0))
        listener.listen()
        theirs = await connected(sim, listener.getsockname(), **buffers)
        ours, _ = await sim.loop.sock_accept(listener)
    return ours, theirs


async def peer_of(sim: Simulation, server: TCPServer, tls: bool = False, **buffers: int) -> Peer:
    """A client of a server, under TLS if that is wanted."""
    sock = await connected(sim, server.addresses[0], **buffers)
    if not tls:
        return Peer(sock)
    end = TLSEnd(sock, tls_contexts()[1])
    await eventually(end.handshake)
    return TLSPeer(end)
