"""pynsq's Writer and Reader, with the features that they are given: tls, deflate, snappy, or none."""

import asyncio
import random
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import certificate
import checks
import nsq
from checks import acheck

COUNT = 500
checks.PATIENCE = 20.0


class Talk:
    """A writer, a reader, and what the reader got."""

    def __init__(self, port: int, topic: str, **options: Any) -> None:
        self.topic = topic
        self.got: list[bytes] = []
        self.attempts: list[int] = []
        self.refuse = 0
        self.changed = asyncio.Event()
        address = [f"127.0.0.1:{port}"]
        self.reader = nsq.Reader(
            topic, "channel", nsqd_tcp_addresses=address, message_handler=self.handle, max_in_flight=50, **options
        )
        self.writer = nsq.Writer(address, reconnect_interval=0.5, **options)

    def handle(self, message: Any) -> bool:
        self.changed.set()
        if self.refuse:
            self.refuse -= 1
            message.requeue(backoff=False, delay=0)
            return True
        self.got.append(message.body)
        self.attempts.append(message.attempts)
        return True

    async def until(self, count: int) -> list[bytes]:
        while len(self.got) < count:
            self.changed.clear()
            await self.changed.wait()
        return self.got

    async def connected(self) -> None:
        while not (self.writer.conns and all(map(nsq.AsyncConn.connected, self.writer.conns.values()))):
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)

    async def publish(self, command: str, *arguments: Any) -> bytes:
        replied = asyncio.get_running_loop().create_future()
        getattr(self.writer, command)(self.topic, *arguments, callback=lambda _conn, data: replied.set_result(data))
        data: bytes = await replied
        return data


def text(size: int) -> bytes:
    return bytes(random.Random(size).choices(b"abcdefgh", k=size))


async def main(features: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = certificate.make(folder)
        daemon = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nsqd.py")), *files], stdout=subprocess.PIPE, text=True
        )
        assert daemon.stdout is not None
        try:
            options = dict.fromkeys(features, True)
            if "tls_v1" in features:
                options["tls_options"] = {"cert_reqs": ssl.CERT_REQUIRED, "ca_certs": files[0]}
            await talk(int(daemon.stdout.readline()), options)
        finally:
            daemon.kill()
            daemon.wait()


async def talk(port: int, options: dict[str, Any]) -> None:
    one = Talk(port, "first", heartbeat_interval=1, **options)
    async with acheck("connect", 20):
        await one.connected()
    async with acheck(f"{COUNT} messages"):
        bodies = [b"%d " % number + text(number % 300) for number in range(COUNT)]
        for body in bodies:
            assert await one.publish("pub", body) == b"OK"
        assert sorted(await one.until(COUNT)) == sorted(bodies)
    async with acheck(f"{COUNT} messages without waiting for each"):
        one.got.clear()
        assert await asyncio.gather(*(one.publish("pub", body) for body in bodies)) == [b"OK"] * COUNT
        assert sorted(await one.until(COUNT)) == sorted(bodies)
    async with acheck(f"{COUNT} messages in one command"):
        one.got.clear()
        assert await one.publish("mpub", bodies) == b"OK"
        assert sorted(await one.until(COUNT)) == sorted(bodies)
    for size in (1, 50_000, 2_000_000):
        async with acheck(f"a message of {size:,} bytes"):
            one.got.clear()
            assert await one.publish("pub", text(size)) == b"OK"
            assert await one.until(1) == [text(size)]
    async with acheck("a delayed message"):
        one.got.clear()
        assert await one.publish("dpub", 200, b"late") == b"OK"
        assert await one.until(1) == [b"late"]
    async with acheck("a message requeued twice"):
        one.got.clear()
        one.attempts.clear()
        one.refuse = 2
        assert await one.publish("pub", b"again") == b"OK"
        assert await one.until(1) == [b"again"]
        assert one.attempts == [3]
    async with acheck("heartbeats"):
        await asyncio.sleep(2.5)
        one.got.clear()
        assert await one.publish("pub", b"alive") == b"OK"
        assert await one.until(1) == [b"alive"]
    async with acheck("the writer connects again"):
        for connection in list(one.writer.conns.values()):
            connection.close()
        await asyncio.sleep(0.1)
        await one.connected()
        one.got.clear()
        assert await one.publish("pub", b"back") == b"OK"
        assert await one.until(1) == [b"back"]
    async with acheck("close"):
        one.reader.close()
        while one.reader.conns:
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
