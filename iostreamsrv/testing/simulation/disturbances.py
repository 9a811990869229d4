"""What happens to a process and to its servers at moments that are drawn.

At each instant at which something happens, each of these may strike, see `Faults`. What does, runs as a callback of the
loop in this turn, so that it meets servers and streams in whatever state they are at that moment. Victims are listed in
an order that does not depend on addresses of objects: streams by the server's order, tasks by their names.
"""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ...iostream import IOStream
from ...server.base import core_of
from ...tcpserver import TCPServer
from .faults import Faults
from .loop import SimulationLoop

Act = Callable[[], object]


class Disturbances:
    """Disturbs the servers of a simulation.

    :param servers: which are served, also those that have stopped since.
    """

    def __init__(self, loop: SimulationLoop, faults: Faults, servers: Iterable[TCPServer]) -> None:
        self._loop = loop
        self._faults = faults
        self._servers = servers
        self._shutdowns: list[asyncio.Task[None]] = []  # the loop has only weak references
        kinds = {
            "cancel": self._cancel,
            "kick": self._kick,
            "shutdown": self._shutdown,
            "reload": self._reload,
            "replace": self._replace,
            "block": self._block,
            "jump": self._jump,
        }
        self._kinds = [(name, victims) for name, victims in kinds.items() if getattr(faults, name)]

    def __bool__(self) -> bool:
        """Whether any of them may strike."""
        return bool(self._kinds)

    def strike(self) -> None:
        """Called at each instant."""
        injector = self._loop.kernel.injector
        for name, victims in self._kinds:
            possible = victims()
            if possible and injector.strikes(name, "process"):
                who, act = injector.pick(possible)
                self._loop.kernel.note(who, f"meets {name}")
                self._loop.call_soon(act)

    # ---- each gives a list of who it may strike, and how

    def _running(self) -> list[TCPServer]:
        return [server for server in self._servers if core_of(server).listeners.addresses]

    def _cancel(self) -> list[tuple[str, Act]]:
        codes = [getattr(server.handle_stream, "__code__", None) for server in self._servers]
        tasks = sorted(asyncio.all_tasks(self._loop), key=asyncio.Task.get_name)
        return [(task.get_name(), task.cancel) for task in tasks if _code(task) in codes]

    def _kick(self) -> list[tuple[str, Act]]:
        streams = [stream for server in self._servers for stream in core_of(server).streams]
        return [(self._client(stream), stream.kick) for stream in streams]

    def _client(self, stream: IOStream) -> str:
        address = stream.remote_address
        if isinstance(address, tuple):
            return f"{address[0]}:{address[1]}"
        return self._loop.kernel.peer_name(stream.fileno())

    def _shutdown(self) -> list[tuple[str, Act]]:
        serving = [server for server in self._running() if not core_of(server).connections.draining]
        return [(_name(server), partial(self._shut_down, server)) for server in serving]

    def _shut_down(self, server: TCPServer) -> None:
        self._shutdowns.append(self._loop.create_task(server.shutdown()))

    def _reload(self) -> list[tuple[str, Act]]:
        secured = [server for server in self._running() if core_of(server).certificates]
        return [(_name(server), server.reload_certificates) for server in secured]

    def _replace(self) -> list[tuple[str, Act]]:
        changes = self._faults.replacements
        return [
            (_name(server), partial(server.replace_options, **each)) for server in self._running() for each in changes
        ]

    def _block(self) -> list[tuple[str, Act]]:
        return [("a callback", self._loop.block)]

    def _jump(self) -> list[tuple[str, Act]]:
        return [("the date", self._loop.jump_by_chance)]


def _code(task: "asyncio.Task[Any]") -> Any:
    return getattr(task.get_coro(), "cr_code", task)


def _name(server: TCPServer) -> str:
    address = core_of(server).listeners.addresses[0]
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
