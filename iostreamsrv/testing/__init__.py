"""Tools for tests of programs that use iostreamsrv: streams in memory, free ports, temporary servers, and a clock that
the test moves.

They need no test framework. Fixtures for pytest are in :mod:`iostreamsrv.pytest_plugin`.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

from ..iostream import IOStream
from ..net.bind import bind_sockets
from ..runtime.checks import check_int
from ..streams.memory import MemoryStream
from ..streams.transports.memory import CAPACITY, MemorySocket
from ..tcpserver import TCPServer
from .mockclock import MockClock

__all__ = ["MockClock", "bind_unused_port", "memory_stream_pair", "running"]


def memory_stream_pair(*, capacity: int = CAPACITY, **options: Any) -> tuple[IOStream, IOStream]:
    """Create two streams that are connected to each other in memory, without descriptors, ports or the kernel.

    They are `IOStream` objects with the same code that serves real clients. Half-close, reset and a peer that does not
    read work as over TCP. So you can test a handler alone::

        ours, theirs = memory_stream_pair()
        handling = asyncio.create_task(EchoServer().handle_stream(theirs, theirs.remote_address))
        await ours.write(b"hello\\n")
        assert await ours.read_until(b"\\n") == b"hello\\n"
        ours.close()

    :param capacity: bytes in transit in each direction before a write has to wait; default 256 KiB.
    :param options: keywords of `IOStream`, for both streams.
    :returns: both streams. Their addresses are ``("memory", 1)`` and ``("memory", 2)``.
    :raises OptionError: an option is invalid.
    """
    check_int("capacity", capacity, 1, what="a number of bytes")
    one, other = MemorySocket.pair(capacity)
    return MemoryStream(cast(socket.socket, one), **options), MemoryStream(cast(socket.socket, other), **options)


def bind_unused_port(reuse_port: bool = False, address: str = "127.0.0.1") -> tuple[socket.socket, int]:
    """Bind a free port, for ``server.add_socket``. ::

        listener, port = bind_unused_port()
        server.add_socket(listener)

    :param reuse_port: whether other sockets may bind the same port (SO_REUSEPORT).
    :param address: an IP address of this host.
    :returns: the listening socket and its port.
    :raises ListenError: it is not possible to listen on the address.
    """
    (listener,) = bind_sockets(0, address, reuse_port=reuse_port)
    return listener, listener.getsockname()[1]


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
    if not server.addresses:
        server.listen(0, address)
    serving = asyncio.ensure_future(server.serve_forever())
    try:
        yield server.addresses[0]
    finally:
        await end(server, serving)


async def end(server: TCPServer, serving: "asyncio.Task[None]") -> None:
    """Stop a server at once. (Only to cancel ``serving``, the task of its ``serve_forever``, would let clients
    finish.)"""
    server.stop()
    await server.close_all_connections()
    serving.cancel()  # if it has not started yet
    await asyncio.wait([serving])
