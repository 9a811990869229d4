"""As much of nsqd as pynsq talks to, on asyncio's streams: the real one is no Python program, and no package of Debian.

``python nsqd.py CERTIFICATE KEY`` prints its port. It negotiates TLS, deflate and snappy as nsqd does: the reply to
IDENTIFY is the last that is not encrypted, or not compressed, and an OK follows each.
"""

import asyncio
import contextlib
import json
import ssl
import struct
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import ClassVar

import snappy

RESPONSE, ERROR, MESSAGE = range(3)
Change = Callable[[bytes], bytes]


class Topic:
    """The messages of a topic, each with the number of its attempts, for one channel."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, bytes]] = deque()
        self.subscribers: list[Client] = []

    def put(self, body: bytes, attempts: int = 0) -> None:
        self.waiting.append((attempts, body))
        self.deliver()

    def deliver(self) -> None:
        """Give what waits to those who are ready, in turn."""
        while self.waiting and (ready := [each for each in self.subscribers if len(each.in_flight) < each.ready]):
            attempts, body = self.waiting.popleft()
            client = min(ready, key=lambda each: len(each.in_flight))
            client.deliver(attempts + 1, body)


class Client:
    """One connection."""

    topics: ClassVar[dict[str, Topic]] = {}
    count = 0

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
        self.reader, self.writer, self.context = reader, writer, context
        self.ready = 0
        self.in_flight: dict[bytes, tuple[int, bytes]] = {}
        self.topic: Topic | None = None
        self.input = bytearray()
        self.decompress: Change | None = None
        self.compress: Change | None = None

    async def serve(self) -> None:
        beats = None
        try:
            assert await self.read(4) == b"  V2"
            while True:
                command, *arguments = (await self.line()).decode().split()
                if command == "IDENTIFY":
                    beats = asyncio.create_task(self.beat(await self.identify()))
                else:
                    await self.carry_out(command, arguments)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            if beats is not None:
                beats.cancel()
            self.leave()
            self.writer.close()

    async def identify(self) -> float:
        wanted = json.loads(await self.body())
        features = {name: bool(wanted.get(name)) for name in ("tls_v1", "snappy", "deflate")}
        reply = {"max_rdy_count": 2500, "version": "1.3.0", "auth_required": False, **features}
        self.send(RESPONSE, json.dumps(reply).encode())
        if features["tls_v1"]:
            await self.writer.start_tls(self.context)
            self.send(RESPONSE, b"OK")
        if features["snappy"]:
            self.decompress = snappy.StreamDecompressor().decompress
            self.compress = snappy.StreamCompressor().compress
            self.send(RESPONSE, b"OK")
        if features["deflate"]:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            deflate = zlib.compressobj(wanted.get("deflate_level", 6), zlib.DEFLATED, -zlib.MAX_WBITS)
            self.decompress = inflate.decompress
            self.compress = lambda data: deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH)
            self.send(RESPONSE, b"OK")
        return float(wanted["heartbeat_interval"]) / 1000

    async def carry_out(self, command: str, arguments: list[str]) -> None:
        match command, arguments:
            case "SUB", [name, _channel]:
                self.topic = self.of(name)
                self.topic.subscribers.append(self)
                self.send(RESPONSE, b"OK")
            case "RDY", [count]:
                self.ready = int(count)
                if self.topic is not None:
                    self.topic.deliver()
            case "PUB", [name]:
                self.of(name).put(await self.body())
                self.send(RESPONSE, b"OK")
            case "MPUB", [name]:
                for body in several(await self.body()):
                    self.of(name).put(body)
                self.send(RESPONSE, b"OK")
            case "DPUB", [name, delay]:
                asyncio.get_running_loop().call_later(int(delay) / 1000, self.of(name).put, await self.body())
                self.send(RESPONSE, b"OK")
            case "FIN", [identity]:
                self.in_flight.pop(identity.encode())
                if self.topic is not None:
                    self.topic.deliver()
            case "REQ", [identity, delay]:
                attempts, body = self.in_flight.pop(identity.encode())
                if self.topic is not None:
                    asyncio.get_running_loop().call_later(int(delay) / 1000, self.topic.put, body, attempts)
                    self.topic.deliver()
            case "CLS", []:
                self.send(RESPONSE, b"CLOSE_WAIT")
            case "NOP" | "TOUCH", _:
                pass
            case _:
                self.send(ERROR, b"E_INVALID")

    def of(self, name: str) -> Topic:
        return self.topics.setdefault(name, Topic())

    def deliver(self, attempts: int, body: bytes) -> None:
        Client.count += 1
        identity = b"%016x" % Client.count
        self.in_flight[identity] = attempts, body
        self.send(MESSAGE, struct.pack(">qH", time.time_ns(), attempts) + identity + body)

    def leave(self) -> None:
        """What it has not finished goes to others."""
        if self.topic is not None:
            self.topic.subscribers.remove(self)
            for attempts, body in self.in_flight.values():
                self.topic.put(body, attempts)

    async def beat(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            self.send(RESPONSE, b"_heartbeat_")

    def send(self, kind: int, data: bytes) -> None:
        frame = struct.pack(">ll", len(data) + 4, kind) + data
        self.writer.write(self.compress(frame) if self.compress else frame)

    async def read(self, size: int) -> bytes:
        while len(self.input) < size:
            await self.more()
        data = bytes(self.input[:size])
        del self.input[:size]
        return data

    async def line(self) -> bytes:
        while (end := self.input.find(b"\n")) < 0:
            await self.more()
        return await self.read(end + 1)

    async def body(self) -> bytes:
        (size,) = struct.unpack(">l", await self.read(4))
        return await self.read(size)

    async def more(self) -> None:
        data = await self.reader.read(1 << 16)
        if not data:
            raise ConnectionResetError
        self.input += self.decompress(data) if self.decompress else data


def several(data: bytes) -> Iterator[bytes]:
    (count,) = struct.unpack_from(">l", data)
    position = 4
    for _ in range(count):
        (size,) = struct.unpack_from(">l", data, position)
        yield data[position + 4 : position + 4 + size]
        position += 4 + size


async def main(certificate: str, key: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Client(reader, writer, context).serve()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
