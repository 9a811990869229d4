"""A network that does its worst: a proxy between clients and a server, which delays, slices, throttles, half-closes and
resets; clients who say through it what they must hear again; and the server that repeats it.

All is drawn from a seed: what a client says, and at which byte what befalls it. How the bytes meet in time is not.
"""

import asyncio
import hashlib
import math
import random
import socket
import ssl
import struct
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iostreamsrv import CloseReason, IOStream, TCPServer
from tests.support.peers import tcp_pair

LONGEST = 0.01
"""Seconds that a piece is held up at most."""

KERNEL = 8192
"""Bytes that the kernel is to hold between server and proxy: with its usual megabytes no write would ever wait."""

PATIENCE = 60.0
"""Seconds that a connection takes at most: more than ten times what it does take on a machine with time to spare."""


# ---- what befalls a connection


@dataclass(frozen=True)
class Road:
    """How bytes travel.

    :ivar sizes: of the pieces they are cut into.
    :ivar delayed: how many of these are held up, of one.
    :ivar length: for how many bytes that holds; those behind have an easy way. Single bytes are a lot of work.
    """

    sizes: tuple[int, ...] = (65536,)
    delayed: float = 0.0
    length: float = math.inf


ROADS = {
    "wide": Road(),
    "late": Road((1_000, 20_000), 0.3),
    "narrow": Road((1_000,), 1.0, 100_000),
    "in pieces": Road((1, 2, 3, 35, 36, 37, 1_000), 0.02, 5_000),
    "in single bytes": Road((1,), 0.01, 300),
}

ENDS = [None] * 8 + ["reset", "half-close"]
"""How a direction ends: a connection has two, so two in three survive."""


@dataclass(frozen=True)
class Fate:
    """What befalls one direction of a connection.

    :ivar end: None: nothing but its road.
    :ivar at: after how many bytes it ends so.
    """

    road: Road
    end: str | None
    at: float
    chance: random.Random

    @classmethod
    def of(cls, chance: random.Random) -> "Fate":
        road = ROADS[chance.choice(list(ROADS))]
        end = chance.choice(ENDS)
        at = math.inf if end is None else int(10 ** chance.uniform(0, 5.5))
        return cls(road, end, at, random.Random(chance.random()))


class Journey:
    """A connection through the proxy.

    :ivar socket: the client's end.
    :ivar ends: what it has come to: "reset" or "half-close", and of which direction, "there" or "back".
    :ivar arrived: how many bytes of the client the server was given.
    """

    def __init__(self, address: Any, chance: random.Random) -> None:
        self.socket, self._client = tcp_pair()
        self._address = address
        self._there, self._back = Fate.of(chance), Fate.of(chance)
        self.ends: list[str] = []
        self.arrived = 0

    async def relay(self) -> None:
        """Carry the bytes until both sides have ended."""
        with self._client, socket.socket() as server:
            for sock in (self._client, server):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL)
            await asyncio.get_running_loop().sock_connect(server, self._address)
            try:
                async with asyncio.TaskGroup() as group:
                    there = group.create_task(self._carry("there", self._client, server, self._there))
                    group.create_task(self._carry("back", server, self._client, self._back))
                    self.arrived = await there
            except* OSError:  # one of them has reset, or is to be
                for sock in (self._client, server):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _carry(self, direction: str, source: socket.socket, sink: socket.socket, fate: Fate) -> int:
        """One direction, to its end; how many bytes there were."""
        count = 0
        while count < fate.at and (chunk := await _receive(source, int(min(65536, fate.at - count)))):
            await self._send_in_pieces(sink, chunk, count, fate)
            count += len(chunk)
        if count >= fate.at:
            self.ends.append(f"{fate.end} {direction}")
        if count >= fate.at and fate.end == "reset":
            raise ConnectionResetError
        sink.shutdown(socket.SHUT_WR)
        while count >= fate.at and await _receive(source, 65536):
            pass  # into the void
        return count

    async def _send_in_pieces(self, sink: socket.socket, chunk: bytes, count: int, fate: Fate) -> None:
        road, chance, sent = fate.road, fate.chance, 0
        while sent < len(chunk):
            size = chance.choice(road.sizes) if count + sent < road.length else len(chunk)
            delayed = chance.random() < road.delayed and count + sent < road.length
            await asyncio.sleep(chance.uniform(0, LONGEST) if delayed else 0)
            await asyncio.get_running_loop().sock_sendall(sink, chunk[sent : sent + size])
            sent += size


async def _receive(sock: socket.socket, size: int) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, size)


# ---- messages

HEADER = struct.Struct("!I32s")
"""The length of the body, and its SHA-256."""


def frame(body: bytes) -> bytes:
    """A message as it is sent."""
    return HEADER.pack(len(body), hashlib.sha256(body).digest()) + body


def some_messages(chance: random.Random) -> list[bytes]:
    """What a client says."""
    count, longest = chance.choice([(30, 100), (20, 5_000), (10, 50_000), (2, 300_000)])
    return [frame(chance.randbytes(chance.randint(0, longest))) for _ in range(chance.randint(1, count))]


# ---- clients


class Lost(AssertionError):
    """What came is not what was sent."""


class Clients:
    """Many clients of a server behind the proxy.

    :param context: for TLS; None for plain connections.
    :ivar ends: how many connections came to which end; "" is none.
    :ivar messages: how many came back.
    """

    def __init__(self, address: Any, seed: int, context: ssl.SSLContext | None) -> None:
        self.ends: Counter[str] = Counter()
        self.messages = 0
        self._address = address
        self._seed = seed
        self._context = context

    async def run(self, count: int, seconds: float) -> None:
        """So many clients at a time make one connection after the other, for so long.

        :raises Lost: a byte was lost, doubled, changed or reordered.
        """
        late = asyncio.get_running_loop().time() + seconds

        async def one(number: int) -> None:
            connection = 0
            while not connection or asyncio.get_running_loop().time() < late:
                await self.connect(f"seed {self._seed}, client {number}, connection {connection}")
                connection += 1

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))

    async def connect(self, name: str) -> None:
        """One connection, all of which follows from its name."""
        chance = random.Random(name)
        messages = some_messages(chance)
        journey = Journey(self._address, chance)
        relaying = asyncio.create_task(journey.relay())
        echoes = Echoes(messages, name)
        began, end = asyncio.get_running_loop().time(), "an end"
        try:
            async with asyncio.timeout(PATIENCE):
                await self._speak(journey.socket, messages, echoes, half_closes=chance.random() < 0.5)
        except TimeoutError:
            raise Lost(f"nothing came any more after {echoes.count} messages of {len(messages)}: {name}") from None
        except (OSError, EOFError) as error:  # perhaps it was to come so, which the number of echoes tells
            end = f"{error!r} after {asyncio.get_running_loop().time() - began:.1f} s"
        finally:
            await asyncio.sleep(0)  # for the transport to let go of it
            journey.socket.close()
            await relaying
        self._check(journey, echoes, messages, end)

    async def _speak(self, sock: socket.socket, messages: Sequence[bytes], echoes: "Echoes", half_closes: bool) -> None:
        tls: dict[str, Any] = {"ssl": self._context, "server_hostname": "localhost", "ssl_shutdown_timeout": 5}
        reader, writer = await asyncio.open_connection(sock=sock, **(tls if self._context else {}))
        half_closes = half_closes and writer.can_write_eof()  # which TLS cannot
        sending = asyncio.create_task(_send(writer, messages, half_closes))
        try:
            await echoes.receive(reader)
            if half_closes:
                await echoes.end(reader)
            writer.close()
            await writer.wait_closed()
        finally:
            writer.transport.abort()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def _check(self, journey: Journey, echoes: "Echoes", messages: Sequence[bytes], end: str) -> None:
        expected = echoes.count  # with a reset the kernel may throw anything away
        if not journey.ends:
            expected = len(messages)
        elif journey.ends == ["half-close there"] and self._context is None:
            expected = complete(messages, journey.arrived)
        if echoes.count != expected:
            raise Lost(f"{echoes.count} messages of {expected} came back, then {end}: {echoes.name}")
        self.ends.update(journey.ends or [""])
        self.messages += echoes.count


def complete(messages: Sequence[bytes], size: int) -> int:
    """How many of the messages are whole within so many bytes of them."""
    count = 0
    for message in messages:
        size -= len(message)
        if size < 0:
            break
        count += 1
    return count


async def _send(writer: StreamWriter, messages: Sequence[bytes], half_closes: bool) -> None:
    for message in messages:
        writer.write(message)
        await writer.drain()
    if half_closes:
        writer.write_eof()


class Echoes:
    """What a client hears, which must be what it has said."""

    def __init__(self, messages: Sequence[bytes], name: str) -> None:
        self._messages = messages
        self.name = name
        self.count = 0

    async def receive(self, reader: StreamReader) -> None:
        """Return when all have come.

        :raises EOFError: the stream ended before.
        :raises Lost: something else has come.
        """
        for message in self._messages:
            await self._expect(reader, message[: HEADER.size])
            await self._expect(reader, message[HEADER.size :])
            self.count += 1

    async def _expect(self, reader: StreamReader, expected: bytes) -> None:
        try:
            came = await reader.readexactly(len(expected))
        except IncompleteReadError as error:
            if not expected.startswith(error.partial):
                raise Lost(f"of message {self.count} other bytes came before the end: {self.name}") from None
            raise
        if came != expected:
            raise Lost(f"in place of message {self.count} other bytes came: {self.name}")

    async def end(self, reader: StreamReader) -> None:
        """Return at the end of the stream.

        :raises Lost: something has come before.
        """
        if await reader.read():
            raise Lost(f"more came than was sent: {self.name}")


# ---- the server


MARK = 200_000
"""Queued bytes at which the server waits for half of them to leave. It awaits no write, so that many are under way when
its client ends."""


class FrameServer(TCPServer):
    """Repeats messages, each of which it reads in another way, and checks.

    :ivar reasons: why its streams ended, with or without a handler.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.reasons: Counter[str] = Counter()
        self.events.subscribe(lambda event: self.reasons.update([str(event.reason)]), "close")

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        ways = (_read_bytes, _read_into, _read_match)
        number = 0
        while True:
            body, digest = await ways[number % len(ways)](stream)
            if hashlib.sha256(body).digest() != digest:
                raise Lost(f"message {number} has other bytes")
            number += 1
            stream.write(self.reply(number, frame(body)))
            if stream.queued > MARK:
                await stream.drain(MARK // 2)

    def reply(self, number: int, message: bytes) -> bytes:
        """What to answer to a message."""
        return message


async def _read_bytes(stream: IOStream) -> tuple[bytes, bytes]:
    size, digest = HEADER.unpack(await stream.read_bytes(HEADER.size))
    return await stream.read_bytes(size), digest


async def _read_into(stream: IOStream) -> tuple[bytearray, bytes]:
    size, digest = HEADER.unpack(await stream.read_bytes(HEADER.size))
    body, filled = bytearray(size), 0
    while filled < size:
        filled += await stream.read_into(memoryview(body)[filled:], partial=True)
    return body, digest


async def _read_match(stream: IOStream) -> tuple[bytes, bytes]:
    def match(buffer: bytes | bytearray) -> tuple[int, tuple[bytes, bytes]] | None:
        if len(buffer) < HEADER.size:
            return None
        size, digest = HEADER.unpack_from(buffer)
        end = HEADER.size + size
        return (end, (bytes(buffer[HEADER.size : end]), digest)) if len(buffer) >= end else None

    found: tuple[bytes, bytes] = await stream.read_until_match(match)
    return found


class LosingServer(FrameServer):
    """Every tenth message of a stream lacks its last byte."""

    def reply(self, number: int, message: bytes) -> bytes:
        return message if number % 10 else message[:-1]


class DoublingServer(FrameServer):
    """Every tenth message of a stream comes twice."""

    def reply(self, number: int, message: bytes) -> bytes:
        return message if number % 10 else message * 2


class ReorderingServer(FrameServer):
    """Every tenth message of a stream has its body from back to front."""

    def reply(self, number: int, message: bytes) -> bytes:
        return message if number % 10 else message[: HEADER.size] + message[HEADER.size :][::-1]


class LeakingServer(FrameServer):
    """Never lets go of a descriptor whose client has reset."""

    kept: list[socket.socket]

    def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        if reason == "reset":
            self.kept = [*getattr(self, "kept", []), socket.socket()]
