"""thrift's TTornado: ``serve PORT`` is a server, ``load PORT PID`` makes calls, and measures."""

import asyncio
import sys

import thrift_calls
from meter import Meter
from thrift.TTornado import TTornadoServer

CONNECTIONS = 50


async def serve(port: str) -> None:
    server = TTornadoServer(thrift_calls.Processor(), thrift_calls.FACTORY)
    server.listen(int(port), "127.0.0.1")
    await asyncio.Event().wait()


async def load(port: str, pid: str) -> None:
    meter = Meter(int(pid))
    clients = [await first(int(port)), *[await thrift_calls.connect(int(port)) for _ in range(CONNECTIONS - 1)]]
    await call(clients[0], 300)
    with meter.measure("calls, one after another", 3000):
        await call(clients[0], 3000)
    await all_call(clients, 10)
    with meter.measure(f"calls, {CONNECTIONS} connections", 100 * CONNECTIONS):
        await all_call(clients, 100)


async def first(port: int) -> thrift_calls.Client:
    """A connection, as soon as the server listens."""
    while True:
        try:
            return await thrift_calls.connect(port)
        except thrift_calls.TTransportException:
            await asyncio.sleep(0.05)


async def call(client: thrift_calls.Client, count: int) -> None:
    for _ in range(count):
        assert await client.call("echo", "hello") == "hello"


async def all_call(clients: list[thrift_calls.Client], count: int) -> None:
    await asyncio.gather(*(call(client, count) for client in clients))


if __name__ == "__main__":
    asyncio.run({"serve": serve, "load": load}[sys.argv[1]](*sys.argv[2:]))
