"""A connection of a client of the swarm: it sends requests, and checks what it receives."""

import asyncio
import contextlib
import math
import random
from collections.abc import Iterable
from typing import Any, Protocol

from iostreamsrv import CloseReason, IOStream, StreamTimeoutError, TCPServer
from iostreamsrv.testing import Simulation
from iostreamsrv.testing.simulation.sockets import SimulatedSocket
from tests.support.certificates import TRUSTING_ALL
from tests.support.tls_records import Records

from .http import Responses, wrapped
from .protocol import ECHO, Request
from .record import Record, Sent
from .scenario import Scenario

IN_CHUNKS = 0.3
"""How many requests of HTTP do not tell their length in advance."""

FEW_HOSTS = 3
"""Hosts that all clients are on, where the connections of a host are limited."""

ENDS_WITHIN = 5.0
"""Seconds until EOF, after an HTTP response that says that it is the last one."""

UNLIMITED = frozenset(CloseReason)
"""For a client that may be closed for any reason."""


class Surroundings(Protocol):
    """What a client needs of its world."""

    sim: Simulation
    scenario: Scenario
    server: TCPServer

    def new_record(self, character: str) -> Record:
        """For a new connection."""

    def connected(self, record: Record, name: str) -> None:
        """The server knows a connection by this name: an address, or what stands for that of a Unix socket."""

    def patience(self, seconds: float) -> float:
        """Seconds within which something must happen that takes so many without faults and blocked loops."""

    def ends_at(self) -> float:
        """When the shutdown is over at the latest."""


class Peer:
    """See the module.

    :param character: of the client.
    :param host: the host that the server takes it for; None for one that is drawn.
    :ivar stream: the connection, once there is one.
    :ivar records: makes TLS records by hand; None if the stream makes them, or there is no TLS.
    :ivar responses: takes responses of HTTP apart; None with other styles.
    """

    stream: IOStream
    records: Records | None = None
    responses: Responses | None = None

    def __init__(self, world: Surroundings, character: str, host: str | None = None) -> None:
        self.world = world
        self.sim = world.sim
        self.record = world.new_record(character)
        self.chance = random.Random(f"{world.scenario.seed}:{self.record.number}")
        if world.scenario.http:
            self.responses = Responses(self.record, strict=character != "garbling")
        self.host = host
        if host is None and (world.scenario.proxied or world.scenario.limits("max_connections_per_ip")):
            few = world.scenario.limits("max_connections_per_ip")
            self.host = self.host_of(self.chance.randrange(FEW_HOSTS) if few else self.record.number % 250)

    def host_of(self, number: int) -> str:
        """The address of a host of clients."""
        return f"198.51.100.{number + 1}" if self.world.scenario.proxied else f"10.2.200.{number + 1}"

    def may_end(self, *reasons: CloseReason) -> None:
        """The server may close this connection with these reasons."""
        self.record.expects |= frozenset(reasons)

    # ---- the connection

    async def open(self, *, header: bool = True, handshake: bool = True, **options: Any) -> bool:
        """Connect; whether there is a connection.

        :param header: whether to send a PROXY header where one is expected.
        :param handshake: whether to begin TLS where it is expected.
        """
        scenario, record = self.world.scenario, self.record
        try:
            host = None if scenario.proxied else self.host
            self.stream = await self.sim.connect(self.world.server, host=host, **options)
            record.connected_at = record.active_at = self.sim.time
            if self.stream.closed():
                raise ConnectionResetError("closed before its client has its turn")
            assert isinstance(self.stream.socket, SimulatedSocket)
            self.world.connected(record, self.stream.socket.own_name)
            if scenario.proxied and header:
                await self._send_header()
            if scenario.tls and header and handshake:
                self.stream = await self.stream.start_tls(False, TRUSTING_ALL)
                record.active_at = self.sim.time
        except OSError:
            self._ended()
            return False
        return True

    async def _send_header(self) -> None:
        port = 1000 + self.record.number
        self.world.connected(self.record, f"{self.host}:{port}")
        await self._write(f"PROXY TCP4 {self.host} 127.0.0.1 {port} 2000\r\n".encode())

    async def shake_hands(self, version: str) -> bool:
        """Begin TLS, with records that are made by hand; whether there is a connection.

        :param version: see `Records`.
        """
        records = Records(version)
        try:
            made, done = records.shake_hands()
            while not done:
                await self._write(made)
                made, done = records.shake_hands(await self.stream.read_bytes(65536, partial=True))
            await self._write(made)
        except OSError:
            self._ended()
            return False
        finally:
            records.end_handshake()
        self.records = records
        return True

    async def _write(self, data: bytes) -> None:
        await self.stream.write(data if self.records is None else self.records.record(data))
        self.record.active_at = self.record.wrote_at = self.sim.time

    def _ended(self) -> None:
        record = self.record
        if record.ended_at is None:
            record.ended_at = self.sim.time
            stream = getattr(self, "stream", None)
            record.end = str(stream.close_reason or "") if stream is not None else "refused"
            if self.responses is not None and self.responses.partial and record.answers < len(record.sent):
                record.tail = record.tail or b"a response"

    def close(self) -> None:
        """Close it; what the server does with it from here on is not looked at."""
        if self.record.ended_at is None:
            self.record.ended_at = self.sim.time
        if self.records is not None:
            self.may_end(CloseReason.TRUNCATED)  # there is no close_notify
        self.stream.close()

    def abort(self) -> None:
        """Close it with a reset."""
        if self.record.ended_at is None:
            self.record.ended_at = self.sim.time
        if "setsockopt" in self.world.scenario.faults or self.world.scenario.unix:
            self.may_end(CloseReason.TRUNCATED)  # without SO_LINGER it is no reset
        self.stream.abort()

    # ---- requests and answers

    def request(self, kind: bytes = ECHO, size: int | None = None, padding: int | None = None) -> bytes:
        """A new request, which is about to be sent."""
        record, chance = self.record, self.chance
        if size is None:
            size = chance.choice([0, 10, 100, 3000])
        if padding is None:
            padding = chance.choice([0, 10, 1000])
        if not self.world.scenario.knows(kind):
            kind = ECHO
        request = Request(kind, record.number, len(record.sent), size)
        record.sent.append(Sent(request, self.sim.time, math.inf))
        line = request.line(padding)
        return line if self.responses is None else wrapped(line, kind, chance.random() < IN_CHUNKS)

    async def send(self, lines: Iterable[bytes]) -> bool:
        """Send new requests; whether the connection holds."""
        record = self.record
        if record.last_announced:
            return await self._take_last()
        try:
            await self._write(b"".join(lines))
        except OSError:
            await self.read_to_end()
            return False
        for sent in reversed(record.sent):
            if sent.ended < math.inf:
                break
            sent.ended = self.sim.time
        return True

    async def _take_last(self) -> bool:
        """The server has said that it closes the connection, so a request is not sent: False."""
        del self.record.sent[self.record.answers :]
        if not await self.read_to_end(ENDS_WITHIN):
            self.record.problem("ends", f"no EOF within {ENDS_WITHIN:g} s of the response that says so")
        return False

    async def ask(self, kind: bytes = ECHO, size: int | None = None, padding: int | None = None) -> bool:
        """Send a request and wait for its answer; whether the connection holds."""
        return await self.send([self.request(kind, size, padding)]) and await self.answered()

    async def answered(self, within: float = 10.0, left: int = 0) -> bool:
        """Wait until all requests but ``left`` are answered; whether they are.

        :param within: seconds that this may take; the time until a full server takes the client does not count.
        """
        record = self.record
        begun = self.sim.time
        served = self._is_served()
        while record.answers < len(record.sent) - left:
            if not await self._receive(begun + self.world.patience(within)):
                if record.ended_at is None and record.innocent and self._is_served():
                    number = record.answers
                    record.problem("answers", f"no answer {number} within {self.sim.time - begun:.1f} s")
                self.may_end(CloseReason.RESET)
                self.close()
                return False
            if not served:
                begun, served = self.sim.time, True
        return True

    def _is_served(self) -> bool:
        """Whether it does not wait for a place."""
        return bool(self.record.answers) or not self.world.scenario.limits("max_connections", "max_connections_per_ip")

    async def _receive(self, until: float) -> bool:
        """Receive something; whether the connection holds, and it is not too late."""
        left = until - self.sim.time
        if left <= 0:
            return False
        try:
            self._received(await self.stream.read_bytes(65536, partial=True, timeout=left))
        except StreamTimeoutError:
            return False
        except OSError:  # also one that a fault causes
            self._ended()
            return False
        return True

    def _received(self, data: bytes) -> None:
        if self.records is None:
            return self._take(data)
        while plaintext := self.records.decrypt(data):
            self._take(plaintext)
            data = b""
        return None

    def _take(self, data: bytes) -> None:
        (self.record if self.responses is None else self.responses).received(data, self.sim.time)

    async def send_records(self, records: bytes) -> bool:
        """Send TLS records that were made by hand; whether the connection holds."""
        try:
            await self.stream.write(records)
        except OSError:
            return False
        self.record.active_at = self.record.wrote_at = self.sim.time
        return True

    async def read_to_end(self, within: float | None = None) -> bool:
        """Receive until the connection ends; whether it did.

        :param within: seconds; None for as long as the server may run.
        """
        until = self.world.ends_at() if within is None else self.sim.time + self.world.patience(within)
        while await self._receive(until):
            pass
        return self.record.ended_at is not None

    async def drip(self, data: bytes, pause: float) -> bool:
        """Send a request byte by byte; whether the connection holds."""
        if self.record.last_announced:
            return await self._take_last()
        for index in range(len(data)):
            try:
                await self._write(data[index : index + 1])
            except OSError:
                await self.read_to_end()
                return False
            await self.sim.sleep(pause)
        self.record.sent[-1].ended = self.sim.time
        return True

    async def half_close(self) -> None:
        """Send EOF."""
        with contextlib.suppress(OSError):
            await self.stream.send_eof()
        self.record.active_at = self.sim.time

    async def pause(self, least: float, most: float) -> None:
        """Do nothing for a while."""
        await asyncio.sleep(self.chance.uniform(least, most))
