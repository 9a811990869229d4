"""For the tests of what is built on iostreamsrv: streams in memory, ports that are free, servers for a while,
a clock that the test moves.

It needs no test framework. Fixtures for pytest are in :mod:`iostreamsrv.pytest_plugin`.
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
    """Two streams that are connected to each other in memory: no descriptors, no ports, no kernel.

    They are `IOStream` on the engine that serves real clients; half-close, reset and a peer that does not read work as
    over TCP. So a handler can be tested by itself::

        ours, theirs = memory_stream_pair()
        handling = asyncio.create_task(EchoServer().handle_stream(theirs, theirs.remote_address))
        await ours.write(b"hello\\n")
        assert await ours.read_until(b"\\n") == b"hello\\n"
        ours.close()

    :param capacity: bytes on their way in each direction before a write has to wait; 256 KiB.
    :param options: keywords of `IOStream`, for both.
    :returns: both ends. Their addresses are ``("memory", 1)`` and ``("memory", 2)``.
    :raises OptionError: an option cannot have this value.
    """
    check_int("capacity", capacity, 1, what="a number of bytes")
    one, other = MemorySocket.pair(capacity)
    return MemoryStream(cast(socket.socket, one), **options), MemoryStream(cast(socket.socket, other), **options)


def bind_unused_port(reuse_port: bool = False, address: str = "127.0.0.1") -> tuple[socket.socket, int]:
    """A listening socket on a port that was free, and that port: for ``server.add_socket``. ::

        listener, port = bind_unused_port()
        server.add_socket(listener)

    :param reuse_port: whether others may bind the same port, too.
    :param address: an IP address of this host.
    :raises ListenError: the address cannot be listened on.
    """
    (listener,) = bind_sockets(0, address, reuse_port=reuse_port)
    return listener, listener.getsockname()[1]


@contextlib.asynccontextmanager
async def running(server: TCPServer, address: str = "127.0.0.1") -> AsyncIterator[Any]:
    """A server for as long as the ``async with`` lasts. Then it stops, and its handlers and streams are ended. ::

        async with running(EchoServer()) as address:
            stream = await TCPClient().connect(*address)
            await stream.write(b"hello\\n")
            assert await stream.read_until(b"\\n") == b"hello\\n"

    Gives the first address it listens on: ``(host, port)`` for IPv4.

    :param server: listens on a free port of ``address``, unless it listens already.
    :param address: an IP address of this host.
    :raises ListenError: the address cannot be listened on.
    """
    if not server.addresses:
        server.listen(0, address)
    serving = asyncio.ensure_future(server.serve_forever())
    try:
        yield server.addresses[0]
    finally:
        await end(server, serving)


async def end(server: TCPServer, serving: "asyncio.Task[None]") -> None:
    """End a server at once, where a cancel of ``serving``, its ``serve_forever``, would let its clients finish."""
    server.stop()
    await server.close_all_connections()
    serving.cancel()  # in case it has not begun
    await asyncio.wait([serving])
