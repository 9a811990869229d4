"""The same calls on real and on simulated sockets give the same results, errors and events."""

import asyncio
import errno
import select
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import pytest

from iostreamsrv.testing import Simulation
from iostreamsrv.testing.simulation import polling

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the simulation is of Linux")

Script = Callable[["World"], Any]

WATCHED = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
WRITABLE = select.EPOLLOUT
FAMILIES = [socket.AF_INET, socket.AF_UNIX]


class World:
    """Two connected sockets, each in an epoll, and what was observed of them."""

    def __init__(self, client: Any, server: Any, epolls: dict[str, Any], settle: Callable[[], Any]) -> None:
        self.ends = {"client": client, "server": server}
        self.epolls = epolls
        self.settle = settle
        self.seen: list[Any] = []

    async def call(self, end: str, method: str, *arguments: Any) -> None:
        """Note what a call does, and what epoll reports when its effects have arrived."""
        try:
            result = getattr(self.ends[end], method)(*arguments)
        except OSError as error:
            result = errno.errorcode[error.errno or 0]
        await self.settle()
        # That it can still be written to is reported whenever an acknowledgement comes, which depends on timers.
        events = {name: [mask for _, mask in each.poll(0) if mask != WRITABLE] for name, each in self.epolls.items()}
        self.seen.append((end, method, result, events))


async def play(world: World, script: list[tuple[Any, ...]]) -> list[Any]:
    try:
        for step in script:
            await world.call(*step)
    finally:
        for epoll in world.epolls.values():
            epoll.close()
        for end in world.ends.values():
            end.close()
    return world.seen


def watched(epolls: dict[str, Any], **ends: Any) -> dict[str, Any]:
    for name, end in ends.items():
        epolls[name].register(end.fileno(), WATCHED)
        epolls[name].poll(0)  # that it can be written to
    return epolls


def in_reality(family: int, script: list[tuple[Any, ...]]) -> list[Any]:
    async def main() -> list[Any]:
        with socket.socket(family) as listener:
            listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else f"\0{id(listener)}")
            listener.listen()
            client = socket.socket(family)
            client.connect(listener.getsockname())
            server, _ = listener.accept()
        client.setblocking(False)
        server.setblocking(False)
        epolls = watched({"client": select.epoll(), "server": select.epoll()}, client=client, server=server)
        return await play(World(client, server, epolls, lambda: asyncio.sleep(0.01)), script)

    return asyncio.run(main())


def in_a_simulation(family: int, script: list[tuple[Any, ...]]) -> list[Any]:
    async def main(sim: Simulation) -> list[Any]:
        kernel = sim.loop.kernel
        with kernel.socket(family) as listener:
            listener.setblocking(False)
            listener.bind(("127.0.0.1", 80) if family == socket.AF_INET else "name")
            listener.listen()
            client = kernel.socket(family)
            client.setblocking(False)
            await sim.loop.sock_connect(client, listener.getsockname())
            await sim.sleep(1)
            server, _ = listener.accept()
        server.setblocking(False)
        epolls = watched({"client": kernel.epoll(), "server": kernel.epoll()}, client=client, server=server)
        return await play(World(client, server, epolls, lambda: sim.sleep(1)), script)

    return Simulation().run(main)


SEND = ("client", "send", b"hello")
ANSWER = ("server", "send", b"answer")
RECEIVE = ("server", "recv", 100)
RECEIVE_ANSWER = ("client", "recv", 100)
END = ("client", "shutdown", socket.SHUT_WR)
END_SERVER = ("server", "shutdown", socket.SHUT_WR)
CLOSE = ("client", "close")
ERROR = ("server", "getsockopt", socket.SOL_SOCKET, socket.SO_ERROR)
RESET_ON_CLOSE = ("client", "setsockopt", socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

SCRIPTS: dict[str, list[tuple[Any, ...]]] = {
    "a message": [RECEIVE, SEND, RECEIVE, RECEIVE, ANSWER, RECEIVE_ANSWER],
    "a part of a message": [SEND, ("server", "recv", 2), ("server", "recv", 2, socket.MSG_PEEK), RECEIVE, RECEIVE],
    "two messages": [SEND, SEND, RECEIVE, RECEIVE],
    "half-close": [SEND, END, SEND, RECEIVE, RECEIVE, RECEIVE, ANSWER, RECEIVE_ANSWER],
    "half-close of both": [END, END_SERVER, RECEIVE, RECEIVE_ANSWER, ANSWER, SEND],
    "two ends": [END, END, RECEIVE],
    "close": [SEND, CLOSE, RECEIVE, RECEIVE, RECEIVE],
    "close of both halves": [END, END_SERVER, CLOSE, RECEIVE, ANSWER],
    "data after a close": [CLOSE, RECEIVE, ANSWER, ANSWER, RECEIVE, ERROR],
    "data after a close, and a look at the error": [CLOSE, ANSWER, ERROR, ERROR, ANSWER, RECEIVE],
    "a reset": [RESET_ON_CLOSE, CLOSE, RECEIVE, RECEIVE, ANSWER],
    "a reset, seen by a send": [RESET_ON_CLOSE, CLOSE, ANSWER, ANSWER, RECEIVE],
    "a reset, seen by SO_ERROR": [RESET_ON_CLOSE, CLOSE, ERROR, ERROR, RECEIVE, ANSWER],
    "a reset behind data": [SEND, RESET_ON_CLOSE, CLOSE, RECEIVE, RECEIVE, RECEIVE],
    "a reset after an end": [END, RESET_ON_CLOSE, CLOSE, RECEIVE, ANSWER, ANSWER],
    "a close with unread bytes": [ANSWER, SEND, CLOSE, RECEIVE, RECEIVE, RECEIVE, ANSWER],
    "a close with unread bytes after an end": [ANSWER, END, CLOSE, RECEIVE, ANSWER, ANSWER],
    "a shutdown after a reset": [RESET_ON_CLOSE, CLOSE, END_SERVER, ERROR],
    "a closed socket": [CLOSE, SEND, RECEIVE_ANSWER, END, ("client", "getsockname"), ("client", "fileno")],
    "the peer's name": [CLOSE, ("server", "send", b"x"), ERROR],
    "a shutdown of the reading side": [("server", "shutdown", socket.SHUT_RD), RECEIVE, ANSWER, RECEIVE_ANSWER],
}


@pytest.mark.parametrize("family", FAMILIES, ids=["tcp", "unix"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_of_calls_gives_the_same_on_both(name: str, family: int) -> None:
    assert in_a_simulation(family, SCRIPTS[name]) == in_reality(family, SCRIPTS[name])


def test_events_have_the_numbers_of_epoll() -> None:
    ours = (polling.READ, polling.WRITE, polling.ERROR, polling.HANGUP, polling.PEER_ENDED, polling.EDGE)
    assert ours == (
        select.EPOLLIN,
        select.EPOLLOUT,
        select.EPOLLERR,
        select.EPOLLHUP,
        select.EPOLLRDHUP,
        select.EPOLLET,
    )
