"""Tools for tests of programs that use iostreamsrv: streams in memory, free ports, temporary servers, a clock that the
test moves, and a simulation of network and time.

They need no test framework. Fixtures for pytest are in :mod:`iostreamsrv.pytest_plugin`.
"""

import socket
from typing import Any, cast

from ..iostream import IOStream
from ..net.bind import bind_sockets
from ..runtime.checks import check_int
from ..streams.memory import MemoryStream
from ..streams.transports.memory import CAPACITY, MemorySocket
from .mockclock import MockClock
from .serving import running
from .simulation import Faults, Simulation

__all__ = ["Faults", "MockClock", "Simulation", "bind_unused_port", "memory_stream_pair", "running"]


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
