"""Tests that run in a simulation, with the plain sockets of `tests.support.peers` as clients."""

import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from iostreamsrv import TCPServer
from iostreamsrv.testing import Faults, Simulation
from tests.support.peers import Peer, TLSEnd, TLSPeer, tls_contexts
from tests.support.waiting import eventually

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
