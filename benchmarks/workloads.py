"""The workloads: each is a kind of traffic, and the figures that are measured under it."""

import contextlib
import dataclasses
import math
import resource
import shutil
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from .http import load as pages
from .load import WARM, Counted, Kind, Load
from .peers import (
    COPYING,
    FAST_PROTOCOL,
    FLOOR,
    H11,
    HTTPTOOLS,
    LIMITED,
    OURS,
    PEERS,
    PROTOCOL,
    PYTHON_CORE,
    STREAMS,
    TORNADO,
    UNDER_TLS,
    UNLIMITED,
    UVICORN,
    Mode,
    Peer,
)
from .resp import load as commands
from .servers import FILE_SIZE, MeasurementError, Server

Figures = dict[str, float]

KILOBYTE = 1 << 10
MEGABYTE = 1 << 20
SETTLE = 0.3  # seconds until a server has nothing left to do
PATIENCE = 30.0

TLS_PEERS = (OURS, PYTHON_CORE, TORNADO, STREAMS, PROTOCOL, FAST_PROTOCOL, FLOOR)
"""Of the peers on uvloop, which has another TLS implementation, only the fastest: all would take minutes."""


@dataclass(frozen=True)
class Workload:
    """A kind of traffic.

    :ivar name: what it is called on the command line.
    :ivar title: its column in the table.
    :ivar about: what is done, for people.
    :ivar rounds: as many are enough, because the figure hardly differs between them.
    """

    name: str
    title: str
    about: str
    mode: ClassVar[Mode] = "lines"
    peers: ClassVar[Sequence[Peer]] = PEERS
    rounds: float = field(default=math.inf, kw_only=True)

    @property
    def tls(self) -> bool:
        """Whether the workload uses TLS."""
        return self.mode in UNDER_TLS

    def measure(self, server: Server, load: Load | None, seconds: float) -> Figures:
        raise NotImplementedError


@dataclass(frozen=True)
class Loaded(Workload):
    """Echo under a load from the load generator.

    :ivar connections: how many there are at a time.
    :ivar size: bytes in a line, or in a write.
    :ivar depth: lines a connection sends at once.
    :ivar longer: how many times the usual it takes, where that would be too short.
    """

    connections: int
    size: int
    depth: int = 1
    kind: ClassVar[Kind] = "lines"
    longer: ClassVar[int] = 1

    def count(self, server: Server, load: Load | None, seconds: float) -> Counted:
        if load is None:
            raise MeasurementError("it needs a C compiler")
        return load.run(server, self.kind, self.connections, self.size, self.depth, self.longer * seconds)


@dataclass(frozen=True)
class Rate(Loaded):
    """Messages echoed per second, the server's CPU time for them, and the load generator's share of its core."""

    unit: ClassVar[str] = "/s"
    peers: ClassVar[Sequence[Peer]] = (*PEERS, PYTHON_CORE, FLOOR)

    def measure(self, server: Server, load: Load | None, seconds: float) -> Figures:
        counted = self.count(server, load, seconds)
        units = counted.bytes / self.bytes_per_unit
        return {
            "rate": units / counted.seconds,
            "cpu": counted.server_cpu / units,
            "load": counted.load_cpu / counted.seconds,
        }

    @property
    def bytes_per_unit(self) -> float:
        return self.size


@dataclass(frozen=True)
class Churn(Rate):
    """Connections served per second."""

    kind: ClassVar[Kind] = "churn"


@dataclass(frozen=True)
class Bulk(Rate):
    """Megabytes (10⁶ bytes) echoed per second."""

    mode: ClassVar[Mode] = "chunks"
    kind: ClassVar[Kind] = "bulk"
    unit: ClassVar[str] = " MB/s"

    @property
    def bytes_per_unit(self) -> float:
        return 1e6


@dataclass(frozen=True)
class ProxyRate(Rate):
    """Messages echoed per second through a forwarder. The load generator contains the echo server."""

    mode: ClassVar[Mode] = "forward"
    peers: ClassVar[Sequence[Peer]] = PEERS


@dataclass(frozen=True)
class ProxyBulk(Bulk):
    """Megabytes (10⁶ bytes) echoed per second through a forwarder."""

    mode: ClassVar[Mode] = "forward"
    peers: ClassVar[Sequence[Peer]] = PEERS
    kind: ClassVar[Kind] = "flow"


@dataclass(frozen=True)
class Files(Bulk):
    """Megabytes (10⁶ bytes) of a file sent per second."""

    mode: ClassVar[Mode] = "file"
    kind: ClassVar[Kind] = "file"
    peers: ClassVar[Sequence[Peer]] = (OURS, COPYING)


@dataclass(frozen=True)
class Broadcast(Rate):
    """Copies of broadcast messages delivered per second."""

    peers: ClassVar[Sequence[Peer]] = (*PEERS, FLOOR)
    mode: ClassVar[Mode] = "broadcast"
    kind: ClassVar[Kind] = "broadcast"


@dataclass(frozen=True)
class Held(Rate):
    """How much comes back in a second where there are very many connections, and what share that is of the same with a
    hundred, just before and with the same server.
    """

    peers: ClassVar[Sequence[Peer]] = (OURS,)
    longer: ClassVar[int] = 3  # because a line takes a tenth of a second to come back

    def measure(self, server: Server, load: Load | None, seconds: float) -> Figures:
        hundred = dataclasses.replace(self, connections=100)
        few, many = (Rate.measure(each, server, load, seconds) for each in (hundred, self))
        return many | {
            "hundred": few["rate"],
            "share": many["rate"] / few["rate"],
            "share by cpu": few["cpu"] / many["cpu"],
        }


@dataclass(frozen=True)
class Defaults(Rate):
    """The cost of the default limits and timeouts, compared with none and with all."""

    peers: ClassVar[Sequence[Peer]] = (UNLIMITED, OURS, LIMITED)
    longer: ClassVar[int] = 3  # because the difference is small


@dataclass(frozen=True)
class Fairness(Loaded):
    """The lateness of a 10 ms timer in the server, in milliseconds."""

    mode: ClassVar[Mode] = "timed"
    peers: ClassVar[Sequence[Peer]] = (OURS, TORNADO, STREAMS, PROTOCOL)
    longer: ClassVar[int] = 3  # because the timer fires no more than 100 times a second

    def measure(self, server: Server, load: Load | None, seconds: float) -> Figures:
        counted = self.count(server, load, seconds)
        seen = server.stop()
        late = sorted(late * 1e3 for when, late in seen if counted.start <= when <= counted.end)
        if not late:
            raise MeasurementError("the timer never fired")
        return {"p50": percentile(late, 0.50), "p99": percentile(late, 0.99)}


@dataclass(frozen=True)
class Idle(Workload):
    """Resident memory of the server process per idle connection, in bytes; without the kernel's."""

    peers: ClassVar[Sequence[Peer]] = (*PEERS, PYTHON_CORE)
    connections: int

    def measure(self, server: Server, load: Load | None, seconds: float) -> Figures:
        time.sleep(SETTLE)
        before = server.resident_bytes()
        with contextlib.ExitStack() as clients:
            for _ in range(self.connections):
                client = clients.enter_context(server.connect())
                # Closed with a reset: thousands in TIME_WAIT would stay behind.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(b"hello\n")
                if client.recv(100) != b"hello\n":
                    raise MeasurementError("a connection was not served")
            time.sleep(SETTLE)
            return {"bytes": (server.resident_bytes() - before) / self.connections}


@dataclass(frozen=True)
class TLSRate(Rate):
    """Messages echoed per second under TLS."""

    mode: ClassVar[Mode] = "tls-lines"
    peers: ClassVar[Sequence[Peer]] = TLS_PEERS


@dataclass(frozen=True)
class TLSChurn(Churn):
    """Connections served per second, each with a full TLS handshake (no resumption)."""

    mode: ClassVar[Mode] = "tls-lines"
    peers: ClassVar[Sequence[Peer]] = TLS_PEERS


@dataclass(frozen=True)
class TLSBulk(Bulk):
    """Megabytes (10⁶ bytes) echoed per second under TLS."""

    mode: ClassVar[Mode] = "tls-chunks"
    peers: ClassVar[Sequence[Peer]] = TLS_PEERS


@dataclass(frozen=True)
class TLSIdle(Idle):
    """Memory per idle connection under TLS."""

    mode: ClassVar[Mode] = "tls-lines"
    peers: ClassVar[Sequence[Peer]] = TLS_PEERS


@dataclass(frozen=True)
class Drip(Workload):
    """The server's CPU seconds for lines that arrive in pieces, by the line's length.

    :ivar sizes: lengths of the lines, in bytes.
    :ivar piece: bytes written at once.
    :ivar gap: seconds between two writes, so that the server reads each by itself.
    """

    sizes: tuple[int, ...]
    piece: int
    gap: float
    mode: ClassVar[Mode] = "length"
    peers: ClassVar[Sequence[Peer]] = (OURS, TORNADO, STREAMS)

    def measure(self, server: Server, load: Load | None, seconds: float) -> Figures:
        return {str(size): self._cost(server, size) for size in self.sizes}

    def _cost(self, server: Server, size: int) -> float:
        with server.connect() as client:
            client.settimeout(PATIENCE)
            time.sleep(0.05)  # the accept is not the line's
            before = server.cpu_seconds()
            self._send(client, size)
            if client.recv(100) != b"%d\n" % size:
                raise MeasurementError("the line did not arrive as it was sent")
            return server.cpu_seconds() - before

    def _send(self, client: socket.socket, size: int) -> None:
        piece = b"x" * self.piece
        start = time.perf_counter()
        for i in range(size // self.piece - 1):
            client.sendall(piece)
            while time.perf_counter() < start + (i + 1) * self.gap:
                pass  # a sleep is not that exact
        client.sendall(piece[:-1] + b"\n")


@dataclass(frozen=True)
class Requests(Workload):
    """Requests answered per second, under the load of a program of others.

    :ivar tool: the program.
    :ivar package: of Debian and Ubuntu, which has it.
    """

    tool: ClassVar[str]
    package: ClassVar[str]
    unit: ClassVar[str] = "/s"

    def available(self) -> bool:
        return shutil.which(self.tool) is not None

    def measure(self, server: Server, load: Load | None, seconds: float) -> Figures:
        self.run(server.port, WARM)
        cpu, own, start = server.cpu_seconds(), _children_seconds(), time.monotonic()
        requests, rate = self.run(server.port, seconds)
        took = time.monotonic() - start
        return {
            "rate": rate,
            "cpu": (server.cpu_seconds() - cpu) / requests,
            "load": (_children_seconds() - own) / took,
        }

    def run(self, port: int, seconds: float) -> tuple[int, float]:
        """Load the server about so long; return the number of requests, and how many there were per second."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pages(Requests):
    """Pages per second, by wrk, for whole seconds."""

    mode: ClassVar[Mode] = "http"
    peers: ClassVar[Sequence[Peer]] = (OURS, TORNADO, H11, HTTPTOOLS, UVICORN)
    tool: ClassVar[str] = "wrk"
    package: ClassVar[str] = "wrk"

    def run(self, port: int, seconds: float) -> tuple[int, float]:
        return pages(port, math.ceil(seconds))


@dataclass(frozen=True)
class Commands(Requests):
    """GET commands per second, by redis-benchmark.

    :ivar depth: commands a connection sends at once.
    :ivar speed: about how many a second there are; redis-benchmark wants a number of commands, not a time.
    """

    depth: int
    speed: int
    mode: ClassVar[Mode] = "resp"
    peers: ClassVar[Sequence[Peer]] = (OURS, TORNADO)
    tool: ClassVar[str] = "redis-benchmark"
    package: ClassVar[str] = "redis-tools"

    def run(self, port: int, seconds: float) -> tuple[int, float]:
        requests = max(1000, int(self.speed * seconds))
        return requests, commands(port, "GET", self.depth, requests)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that is not exceeded by ``share`` of all values."""
    return ordered[math.ceil(share * len(ordered)) - 1]


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Rate("echo", "50x64", "50 connections, each with one line of 64 bytes under way", 50, 64),
        Rate("pipelined", "16 in flight", "50 connections, each sends 16 lines of 64 bytes at once", 50, 64, 16),
        Rate("large", "50x4096", "50 connections, each with one line of 4,096 bytes under way", 50, 4096),
        Rate("many", "1000x64", "1,000 connections, each with one line of 64 bytes under way", 1000, 64),
        Churn("churn", "churn", "20 clients, each connects, has one line of 64 bytes answered, and closes", 20, 64),
        Bulk("bulk", "bulk", "4 connections, each sends all it can and reads it back", 4, 65536),
        Broadcast("broadcast", "broadcast", "1 KB to 4,000 connections, and again when all have it", 4000, KILOBYTE),
        Held("held", "echo on 100 and on 10,000 connections", "echo on 10,000 connections, and on 100", 10_000, 64),
        Defaults(
            "defaults",
            "what limits and timeouts cost",
            "the same as echo, with the default ones, none, and all",
            50,
            64,
        ),
        ProxyRate("proxy-echo", "50x64", "the same as echo, but through a forwarder to an echo server", 50, 64),
        ProxyBulk("proxy-bulk", "bulk", "4 connections, each with 256 KB under way through a forwarder", 4, 65536, 4),
        Files("file", "a file of 16 MB", "16 connections, each asks for a file again and again", 16, FILE_SIZE),
        Pages("http", "HTTP hello", "50 connections, each asks for the same small page again and again"),
        Commands("resp", "GET", "50 connections, each with one GET of redis-benchmark under way", 1, 50_000),
        Commands("resp-16", "GET, 16 in flight", "the same, but 16 at once", 16, 120_000),
        Idle(
            "idle",
            "memory per idle connection",
            "5,000 connections that were served a line and now wait",
            5000,
            rounds=1,
        ),
        TLSRate("tls", "50x64", "the same as echo, but under TLS", 50, 64),
        TLSRate("tls-pipelined", "16 in flight", "the same as pipelined, but under TLS", 50, 64, 16),
        TLSChurn("tls-churn", "churn", "20 clients, each: a full handshake, one line of 64 bytes, close", 20, 64),
        TLSBulk("tls-bulk", "bulk", "the same as bulk, but under TLS", 4, 65536),
        TLSIdle(
            "tls-idle",
            "memory per idle connection under TLS",
            "1,000 connections under TLS that were served a line and now wait",
            1000,
            rounds=1,
        ),
        Drip(
            "line",
            "one line in 4 KB writes",
            "one line of 4, 8, 16 MB that comes in writes of 4 KB, 0.25 ms apart",
            (4 * MEGABYTE, 8 * MEGABYTE, 16 * MEGABYTE),
            4 * KILOBYTE,
            250e-6,
        ),
        Drip(
            "bytes",
            "one line byte by byte",
            "one line of 16, 32, 64 KB that comes byte by byte, 50 µs apart",
            (16 * KILOBYTE, 32 * KILOBYTE, 64 * KILOBYTE),
            1,
            50e-6,
            rounds=1,
        ),
        Fairness(
            "fairness",
            "lateness of a 10 ms timer",
            "50 connections, each sends 256 lines of 64 bytes at once; beside them a timer of 10 ms",
            50,
            64,
            256,
        ),
    )
}
