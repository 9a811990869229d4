"""Servers that run for the time of a test; `running` is public in :mod:`iostreamsrv.testing`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from ..server.base import core_of
from ..tcpserver import TCPServer


@contextlib.asynccontextmanager
async def running(server: TCPServer, address: str = "127.0.0.1") -> AsyncIterator[Any]:
    """Run a server during an ``async with`` block. At its end, stop the server, cancel its handlers and close its
    streams. ::

        async with running(EchoServer()) as address:
            stream = await TCPClient().connect(*address)
            await stream.write(b"hello\\n")
            assert await stream.read_until(b"\\n") == b"hello\\n"

    The value of ``as`` is the first address that the server listens on: ``(host, port)`` for IPv4.

    :param server: the server. Unless it listens already, it listens on a free port of ``address``.
    :param address: an IP address of this host.
    :raises ListenError: it is not possible to listen on the address.
    """
    listeners = core_of(server).listeners
    if not listeners.addresses:
        server.listen(0, address)
    serving = asyncio.ensure_future(server.serve_forever())
    try:
        yield listeners.addresses[0]
    finally:
        await end(server, serving)


async def end(server: TCPServer, serving: "asyncio.Task[None]") -> None:
    """Stop a server at once. (Only to cancel ``serving``, the task of its ``serve_forever``, would let clients
    finish.)"""
    server.stop()
    await server.close_all_connections()
    serving.cancel()  # if it has not started yet
    await asyncio.wait([serving])
