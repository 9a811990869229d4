"""The kernel of a simulated loop: its descriptors, its addresses, and the agenda of what arrives when."""

import errno
import heapq
import itertools
import os
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

from ...runtime.kernel import Kernel, Socket
from .faults import SYSTEM_CALLS, Faults, Injector, span
from .flow import Draw, Flow
from .polling import Epoll, File, fail
from .socketbase import Address
from .sockets import SimulatedSocket
from .trace import Trace

FIRST_NUMBER = 1 << 20
"""The first descriptor. The system has none that large, so a system call that gets one by mistake fails."""

FIRST_PORT = 32768
"""The first port that an unbound socket gets."""

LOCAL = {socket.AF_INET: "10.0.0.1", socket.AF_INET6: "fd00::1"}
"""The host of sockets that connect without an address of their own, except to the loopback address."""

LOOPBACK = {"127.0.0.1", "::1"}
WILDCARDS = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


class Network(Kernel):
    """All that is below the loop.

    :ivar now: the time.
    :ivar agenda: what happens when, a heap: the time, the order in which it was entered, and a function. The loop's
        timers are in it as well.
    :ivar sequence: the numbers of its entries.
    :ivar trace: what has happened.
    :ivar failing: whether system calls may fail.
    :ivar striking: whether segments may be lost for good.
    :ivar parted: whether some hosts may be, or were, apart.
    :ivar cuts: the probability that a segment is cut.
    :ivar draw: draws a number from 0 to 1, for what belongs to no connection.
    :ivar jitter: seconds by which delays vary, above ``least_delay``.
    """

    has_files = False
    has_threads = False

    def __init__(self, seed: object, faults: Faults, now: float, trace: Trace) -> None:
        self.now = now
        self.faults = faults
        self.trace = trace
        self.injector = Injector(faults, seed, self.note, self._note_fault)
        self._seed = seed
        self.draw = self.draws_of("network")
        self._draw_order = random.Random(f"{seed}:order").random
        self.agenda: list[tuple[float, int, Any]] = []
        self.sequence: Iterator[int] = itertools.count()
        self.striking = bool(faults.rst or faults.partition)
        self.parted = False
        self.failing = any(getattr(faults, call) for call in SYSTEM_CALLS)
        self._files: dict[int, File] = {}
        self._free: list[int] = []  # numbers below the highest used, a heap
        self._listeners: dict[tuple[int, Address], SimulatedSocket] = {}
        self._ports = itertools.count(FIRST_PORT)
        self._unnamed = itertools.count(1)
        self._apart: dict[tuple[str, str], float] = {}
        self.least_delay, most = span(faults.delay)
        self.jitter = most - self.least_delay
        self.cuts = faults.cut

    # ---- time

    def at(self, time: float, call: Callable[[], object]) -> None:
        """Call something at a time."""
        heapq.heappush(self.agenda, (time, next(self.sequence), call))

    def note(self, who: str, what: str) -> None:
        """Note what happens."""
        self.trace.add((self.now, who, what))

    def _note_fault(self, who: str, what: str) -> None:
        self.trace.add_fault((self.now, who, what))

    # ---- what is drawn

    def draws_of(self, name: str) -> Draw:
        """What draws for one connection. Each has its own, so that a fault that strikes one of them does not change the
        delays of all others."""
        return random.Random(f"{self._seed}:{name}").random

    def delay(self, draw: Draw) -> float:
        """How long the next segment takes."""
        return self.least_delay + self.jitter * draw() if self.jitter else self.least_delay

    def shuffle(self, ready: list[Any]) -> None:
        """Bring what is ready into a drawn order."""
        for index in range(len(ready) - 1, 0, -1):
            other = int(self._draw_order() * (index + 1))
            ready[index], ready[other] = ready[other], ready[index]

    # ---- the network between hosts

    def part(self, one: str, other: str, seconds: float) -> None:
        """Let nothing arrive from one host at the other, in both directions, for a time."""
        until = max(self.now + seconds, self._apart.get((one, other), 0.0))
        self._apart[one, other] = self._apart[other, one] = until
        self.parted = True
        self.note(f"{one}|{other}", f"apart until {until:.6f}")

    def heal(self) -> None:
        """End all partitions."""
        self._apart.clear()

    def apart(self, one: str, other: str) -> bool:
        """Whether nothing arrives from one of these hosts at the other."""
        return self.parted and self._apart.get((one, other), 0.0) > self.now

    def strikes(self, flow: Flow) -> bool:
        """Whether a reset comes in place of a segment."""
        source, target = flow.source, flow.target
        if self.injector.strikes("partition", flow.name) and source.host != target.host:
            self.part(source.host, target.host, self.injector.draw(self.faults.partition_time))
        if not self.injector.strikes("rst", flow.name):
            return False
        assert isinstance(target, SimulatedSocket)
        target.strike()
        return True

    def connected(self, client: SimulatedSocket, server: SimulatedSocket) -> None:
        """Note a connection."""
        self.note(server.name, "connection")

    # ---- descriptors

    def new_number(self, file: File) -> int:
        """A descriptor: the lowest that is free."""
        if len(self._files) >= self.faults.descriptors:
            fail(errno.EMFILE)
        number = heapq.heappop(self._free) if self._free else FIRST_NUMBER + len(self._files)
        self._files[number] = file
        file.number = number
        return number

    def file(self, number: int) -> File:
        """What a descriptor stands for."""
        return self._files.get(number) or fail(errno.EBADF)

    def release(self, file: File) -> None:
        """Close the descriptor of a file."""
        if self._files.get(file.number) is file:
            del self._files[file.number]
            heapq.heappush(self._free, file.number)
        file.number = -1

    @property
    def open(self) -> list[File]:
        """What the descriptors stand for that are open."""
        return list(self._files.values())

    # ---- in place of the kernel's

    def socket(self, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        made = SimulatedSocket(self, family, kind)
        self.new_number(made)
        return made

    def listening_socket(self, family: int) -> Socket:
        return self.socket(family)

    def epoll(self) -> Any:
        made = Epoll(self)
        self.new_number(made)
        return made

    def open_spare(self) -> int:
        return self.new_number(File())

    def close_spare(self, number: int) -> None:
        self.release(self.file(number))

    def descriptor_limit(self) -> int:
        return self.faults.descriptors

    def unsent(self, number: int) -> int:
        file = self._files.get(number)
        return file.unsent() if isinstance(file, SimulatedSocket) else 0

    def peer_name(self, number: int) -> str:
        """What the trace calls the peer of a socket: its address, or what stands for that of a Unix socket."""
        file = self._files.get(number)
        return file.peer_name if isinstance(file, SimulatedSocket) else ""

    # ---- addresses

    def bind(self, bound: SimulatedSocket, address: Address) -> Address:
        """Reserve an address; the address with its port."""
        if bound.unix:
            name = os.fsdecode(address) if isinstance(address, bytes) else address
            if (bound.family, name) in self._listeners:
                fail(errno.EADDRINUSE)
            return name
        host, port, *more = address
        host = host or WILDCARDS[bound.family]
        if (bound.family, (host, port)) in self._listeners:
            fail(errno.EADDRINUSE)
        tail = (*more, 0, 0)[:2] if bound.family == socket.AF_INET6 else ()
        return (host, port or next(self._ports), *tail)

    def listen(self, bound: SimulatedSocket) -> None:
        """Let connections to its address come to this socket."""
        self._listeners[_key(bound.family, bound.getsockname())] = bound
        self.note(bound.name, "listens")

    def new_label(self) -> str:
        """A name for a Unix socket that has none: most clients have none, and a trace needs one."""
        return f"unix-{next(self._unnamed)}"

    def unlisten(self, bound: SimulatedSocket) -> None:
        """No more."""
        key = next((key for key, each in self._listeners.items() if each is bound), None)
        if key is not None:
            del self._listeners[key]

    def listener(self, family: int, address: Address) -> SimulatedSocket | None:
        """Who listens on an address."""
        found = self._listeners.get(_key(family, address))
        if found is None and family in WILDCARDS:
            found = self._listeners.get((family, (WILDCARDS[socket.AddressFamily(family)], address[1])))
        return found

    def source_for(self, family: int, address: Address) -> Address:
        """The address of an unbound socket that connects to ``address``."""
        host = address[0] if address[0] in LOOPBACK else LOCAL[socket.AddressFamily(family)]
        return (host, 0)


def _key(family: int, address: Address) -> tuple[int, Address]:
    if family in WILDCARDS:
        return family, (address[0], address[1])
    return family, os.fsdecode(address) if isinstance(address, bytes) else address
