"""Servers that send each line of a client to all clients: by ``server.broadcast``, others use a loop.

None of them waits for a write: who says the next line has waited until all had the one before.
"""

import asyncio
import socket
from typing import Any

from .machine import BACKLOG, CHUNK


async def start_iostreamsrv(listener: socket.socket) -> object:
    from iostreamsrv import TCPServer

    class Server(TCPServer):
        async def handle_stream(self, stream: Any, _address: Any) -> None:
            while True:
                self.broadcast(await stream.read_until(b"\n"))

    server = Server()
    server.add_socket(listener)
    return server


async def start_tornado(listener: socket.socket) -> object:
    from tornado.iostream import IOStream, StreamClosedError
    from tornado.tcpserver import TCPServer

    streams: set[IOStream] = set()

    class Server(TCPServer):
        async def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
            stream.set_nodelay(True)
            streams.add(stream)
            try:
                while True:
                    line = await stream.read_until(b"\n")
                    for each in streams:
                        each.write(line)
            except StreamClosedError:
                streams.discard(stream)

    server = Server()
    server.add_socket(listener)
    return server


async def start_streams(listener: socket.socket) -> object:
    writers: set[asyncio.StreamWriter] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            while True:
                line = await reader.readuntil(b"\n")
                for each in writers:
                    each.write(line)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writers.discard(writer)
            writer.close()

    return await asyncio.start_server(handle, sock=listener, backlog=BACKLOG, limit=CHUNK)


async def start_protocol(listener: socket.socket) -> object:
    transports: set[asyncio.BaseTransport] = set()

    class Member(asyncio.Protocol):
        rest = b""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self._transport = transport
            transports.add(transport)

        def data_received(self, data: bytes) -> None:
            *lines, self.rest = (self.rest + data).split(b"\n")
            for line in lines:
                whole = line + b"\n"
                for each in transports:
                    each.write(whole)  # type: ignore[attr-defined]

        def connection_lost(self, error: Exception | None) -> None:
            transports.discard(self._transport)

    return await asyncio.get_running_loop().create_server(Member, sock=listener, backlog=BACKLOG)


BROADCASTERS = {
    "iostreamsrv": start_iostreamsrv,
    "Tornado": start_tornado,
    "asyncio streams": start_streams,
    "raw Protocol": start_protocol,
}
