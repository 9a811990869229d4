"""Echo servers.

Modes: ``lines`` echoes line by line, ``timed`` as well with a timer beside it, ``chunks`` echoes whatever comes, and
``length`` answers a line with its length. A peer that has a way to read a line and to wait for a write uses it. With
a ``context`` they do so under TLS.
"""

import asyncio
import math
import socket
from collections.abc import Callable
from functools import partial
from ssl import SSLContext
from typing import Any, Literal, cast

from .machine import BACKLOG, CHUNK

Mode = Literal["lines", "timed", "chunks", "length"]

LONGEST = 64 << 20


def tornado_like(base: type, closed: type[Exception], mode: Mode) -> Any:
    """A server class with the same handler, word for word, for Tornado and for iostreamsrv."""

    async def handle_stream(_self: Any, stream: Any, _address: Any) -> None:
        stream.set_nodelay(True)
        try:
            if mode == "chunks":
                while True:
                    await stream.write(await stream.read_bytes(CHUNK, partial=True))
            elif mode == "length":
                while True:
                    await stream.write(b"%d\n" % len(await stream.read_until(b"\n")))
            else:
                while True:
                    await stream.write(await stream.read_until(b"\n"))
        except closed:
            pass

    return type("Server", (base,), {"handle_stream": handle_stream})


async def start_iostreamsrv(
    listener: socket.socket, mode: Mode, context: SSLContext | None = None, **options: Any
) -> object:
    from iostreamsrv import StreamClosedError, TCPServer

    longest = LONGEST if mode == "length" else None
    server = tornado_like(TCPServer, StreamClosedError, mode)(
        ssl_options=context, **{"max_buffer_size": longest, **options}
    )
    server.add_socket(listener)
    return server


async def start_tornado(listener: socket.socket, mode: Mode, context: SSLContext | None = None) -> object:
    from tornado.iostream import StreamClosedError
    from tornado.tcpserver import TCPServer

    longest = LONGEST if mode == "length" else None
    server = tornado_like(TCPServer, StreamClosedError, mode)(ssl_options=context, max_buffer_size=longest)
    server.add_socket(listener)
    return server


async def start_streams(listener: socket.socket, mode: Mode, context: SSLContext | None = None) -> object:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if mode == "chunks":
                while chunk := await reader.read(CHUNK):
                    writer.write(chunk)
                    await writer.drain()
            elif mode == "length":
                while True:
                    writer.write(b"%d\n" % len(await reader.readuntil(b"\n")))
                    await writer.drain()
            else:
                while True:
                    writer.write(await reader.readuntil(b"\n"))
                    await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    limit = LONGEST if mode == "length" else CHUNK
    return await asyncio.start_server(handle, sock=listener, backlog=BACKLOG, limit=limit, ssl=context)


class Chunks(asyncio.Protocol):
    """Echoes all data, and stops reading while the client does not read."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class Lines(Chunks):
    """Echoes lines. A Protocol has no lines, so it splits them here."""

    rest = b""

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        start = 0
        while end := data.find(b"\n", start) + 1:
            self.transport.write(data[start:end])
            start = end
        self.rest = data[start:]


async def start_protocol(listener: socket.socket, mode: Mode, context: SSLContext | None = None) -> object:
    if mode == "length":
        raise ValueError("a Protocol has no read to wait for a long line with")
    protocol = Chunks if mode == "chunks" else Lines
    return await asyncio.get_running_loop().create_server(protocol, sock=listener, backlog=BACKLOG, ssl=context)


ECHOES = {
    "iostreamsrv": start_iostreamsrv,
    "Tornado": start_tornado,
    "asyncio streams": start_streams,
    "raw Protocol": start_protocol,
}

NO_LIMITS: dict[str, Any] = {
    "idle_timeout": None,
    "read_timeout": None,
    "write_timeout": None,
    "min_rate": None,
    "max_connections": math.inf,
    "max_connections_per_ip": None,
    "max_buffer_size": math.inf,
    "max_write_buffer_size": math.inf,
}
ALL_LIMITS: dict[str, Any] = {
    "idle_timeout": 60,
    "read_timeout": 30,
    "write_timeout": 30,
    "min_rate": 240,
    "max_connections": 10_000,
    "max_connections_per_ip": 1000,
}

VARIANTS: dict[str, Callable[..., Any]] = {
    "iostreamsrv, Python core": start_iostreamsrv,  # its process has IOSTREAMSRV_PURE set
    "iostreamsrv, no limits": partial(start_iostreamsrv, **NO_LIMITS),
    "iostreamsrv, all limits": partial(start_iostreamsrv, **ALL_LIMITS),
}
"""The same servers on the Python core, without limits and timeouts, and with all of them."""
