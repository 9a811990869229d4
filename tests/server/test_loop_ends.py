"""A loop that is closed while clients are connected: neither asyncio nor Python has anything to complain of."""

import asyncio
import gc
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from tornado.ioloop import IOLoop
from tornado.web import Application

from iostreamsrv import IOStream, TCPServer
from iostreamsrv.httpserver import HTTPServer
from iostreamsrv.runtime.loops import asyncio_loop
from iostreamsrv.styles import CallbackServer
from tests.support.servers import Echo
from tests.support.waiting import eventually


class Silent(TCPServer):
    async def handle_reject(self, stream: IOStream, address: Any) -> None:
        await asyncio.Event().wait()

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await stream.write(bytes(1 << 20))
        await asyncio.Event().wait()


class Reporting(Silent):
    async def handle_close(self, stream: IOStream, reason: Any) -> None:
        await asyncio.sleep(0)


class Disconnecting(CallbackServer):
    async def on_disconnect(self, stream: IOStream, unread: bytes, error: str) -> None:
        await asyncio.sleep(0)


SERVERS: dict[str, Callable[[], TCPServer]] = {
    "echo": Echo,
    "silent": Silent,
    "with an async handle_close": Reporting,
    "rejecting": partial(Silent, max_connections=1, when_full="reject"),
    "awaiting a header": partial(Echo, proxy_protocol=["127.0.0.0/8"]),
    "http": partial(HTTPServer, Application()),
    "callbacks": CallbackServer,
    "with an async on_disconnect": Disconnecting,
}


def cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    """As `asyncio.run` and Tornado's `AsyncTestCase` do."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))


ENDINGS: dict[str, Callable[[IOLoop], None]] = {
    "closed": lambda io_loop: io_loop.close(),
    "closed with its descriptors": lambda io_loop: io_loop.close(all_fds=True),
    "cancelled": lambda io_loop: (cancel_all(asyncio_loop(io_loop)), io_loop.close())[1],
    "cancelled, closed with its descriptors": lambda io_loop: (
        cancel_all(asyncio_loop(io_loop)),
        io_loop.close(all_fds=True),
    )[1],
}


def serve_for_a_moment(make: Callable[[], TCPServer], end: Callable[[IOLoop], None]) -> None:
    server = make()
    clients: list[socket.socket] = []

    async def main() -> None:
        server.listen(0, "127.0.0.1")
        clients.extend(socket.create_connection(server.addresses[0]) for _ in range(2))
        await eventually(lambda: len(server.streams) >= (server.options.max_connections or 2))
        await asyncio.sleep(0)

    io_loop = IOLoop(make_current=True)
    try:
        io_loop.run_sync(main)
        end(io_loop)
    finally:
        for client in clients:
            client.close()
        for listener in server._sockets.values():
            listener.close()
        asyncio.set_event_loop(None)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("which", SERVERS)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_no_task_is_complained_of(which: str, ending: str, caplog: pytest.LogCaptureFixture) -> None:
    serve_for_a_moment(SERVERS[which], ENDINGS[ending])
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
