"""distributed's comms over tcp or tls: ``serve PORT PROTOCOL`` receives, ``load PORT PID PROTOCOL`` sends and measures.

A message is acknowledged before the next is sent, but for those of 1 KB, of which a hundred are sent at a time.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import certificate
import numpy
from distributed import Security
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import to_serialize
from meter import Meter

KILOBYTE, MEGABYTE = 1000, 1_000_000
PAYLOAD = b"x" * KILOBYTE


def address(port: str, protocol: str) -> str:
    return f"{protocol}://127.0.0.1:{port}"


def security(protocol: str) -> Security:
    """With the certificate in the current folder, which the server has made."""
    if protocol == "tcp":
        return Security()
    files = dict.fromkeys(("tls_ca_file", "tls_scheduler_cert", "tls_client_cert"), "certificate.pem")
    keys = dict.fromkeys(("tls_scheduler_key", "tls_client_key"), "key.pem")
    return Security(require_encryption=True, **files, **keys)


async def serve(port: str, protocol: str) -> None:
    certificate.make(".")
    await listen(address(port, protocol), receive, **security(protocol).get_listen_args("scheduler"))
    Path("ready").touch()
    await asyncio.Event().wait()


async def receive(comm: Any) -> None:
    try:
        while True:
            message = await comm.read()
            if message["reply"]:
                await comm.write(message if message["reply"] == "the same" else "ok")
    except CommClosedError:
        pass


async def load(port: str, pid: str, protocol: str) -> None:
    while not Path("ready").exists():
        time.sleep(0.05)
    comm = await connect(address(port, protocol), **security(protocol).get_connection_args("client"))
    meter = Meter(int(pid))
    await round_trips(comm, 300)
    with meter.measure(f"round trip of 1 KB, {protocol}", 2000):
        await round_trips(comm, 2000)
    await small(comm, 500)
    with meter.measure(f"messages of 1 KB, {protocol}", 10_000):
        await small(comm, 10_000)
    for megabytes, count in ((1, 200), (100, 5)):
        array = numpy.random.default_rng(1).integers(0, 256, megabytes * MEGABYTE, numpy.uint8)
        await large(comm, array, 2)
        with meter.measure(f"messages of {megabytes} MB, {protocol}", megabytes * count):
            await large(comm, array, count)
    await comm.close()


async def round_trips(comm: Any, count: int) -> None:
    for _ in range(count):
        await comm.write({"reply": "the same", "data": PAYLOAD})
        await comm.read()


async def small(comm: Any, count: int) -> None:
    for number in range(1, count + 1):
        last = number % 100 == 0
        await comm.write({"reply": "ok" if last else "", "data": PAYLOAD})
        if last:
            await comm.read()


async def large(comm: Any, array: numpy.ndarray, count: int) -> None:
    for _ in range(count):
        await comm.write({"reply": "ok", "data": to_serialize(array)})
        await comm.read()


if __name__ == "__main__":
    asyncio.run({"serve": serve, "load": load}[sys.argv[1]](*sys.argv[2:]))
