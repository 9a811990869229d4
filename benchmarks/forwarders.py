"""TCP forwarders: ``examples/proxy.py``, and the same with the other libraries.

Each reads at most a chunk ahead of what the other side has room for, passes an end on where its API has a half-close,
and drops both sides where one breaks.
"""

import asyncio
import importlib
import socket
from typing import Any, cast

from .machine import BACKLOG, CHUNK

HOST = "127.0.0.1"


async def start_iostreamsrv(listener: socket.socket, port: int) -> object:
    server = importlib.import_module("examples.proxy").Proxy(HOST, port)
    server.add_socket(listener)
    return server


async def start_tornado(listener: socket.socket, port: int) -> object:
    from tornado.iostream import IOStream, StreamClosedError
    from tornado.tcpclient import TCPClient
    from tornado.tcpserver import TCPServer

    async def forward(source: IOStream, sink: IOStream) -> None:
        try:
            while True:
                await sink.write(await source.read_bytes(CHUNK, partial=True))
        except StreamClosedError:
            source.close()
            sink.close()

    class Forwarder(TCPServer):
        async def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
            upstream = await TCPClient().connect(HOST, port)
            stream.set_nodelay(True)
            upstream.set_nodelay(True)
            await asyncio.gather(forward(stream, upstream), forward(upstream, stream))

    server = Forwarder()
    server.add_socket(listener)
    return server


async def start_streams(listener: socket.socket, port: int) -> object:
    async def forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while chunk := await source.read(CHUNK):
                sink.write(chunk)
                await sink.drain()
            sink.write_eof()
        except (OSError, RuntimeError):  # the latter is uvloop's for a transport that is closed
            sink.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(HOST, port)
        await asyncio.gather(forward(reader, upstream_writer), forward(upstream_reader, writer))
        upstream_writer.close()
        writer.close()

    return await asyncio.start_server(handle, sock=listener, backlog=BACKLOG)


class Early(asyncio.Transport):
    """Keeps what a client sends until the connection to the other server is made."""

    def __init__(self) -> None:
        self._written: list[Any] = []
        self._ended = False

    def write(self, data: Any) -> None:
        self._written.append(data)

    def write_eof(self) -> None:
        self._ended = True

    def pass_on(self, transport: asyncio.Transport) -> None:
        transport.writelines(self._written)
        if self._ended:
            transport.write_eof()

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass


class End(asyncio.Protocol):
    """One end of a forwarded connection. It writes to the other end, and stops reading while that one has no room."""

    other: "End"
    ended = False

    def __init__(self) -> None:
        self.transport: asyncio.Transport = Early()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        early, self.transport = self.transport, cast(asyncio.Transport, transport)
        if isinstance(early, Early):
            early.pass_on(self.transport)

    def data_received(self, data: bytes) -> None:
        self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        if not self.other.transport.is_closing():
            self.other.transport.write_eof()
        return not self.other.ended

    def pause_writing(self) -> None:
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.other.transport.close()


class ClientEnd(End):
    """The end that the forwarder accepted."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.other = End()
        self.other.other = self
        connecting = asyncio.get_running_loop().create_connection(lambda: self.other, HOST, self._port)
        self._connecting = asyncio.create_task(connecting)


async def start_protocol(listener: socket.socket, port: int) -> object:
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: ClientEnd(port), sock=listener, backlog=BACKLOG)


FORWARDERS = {
    "iostreamsrv": start_iostreamsrv,
    "Tornado": start_tornado,
    "asyncio streams": start_streams,
    "raw Protocol": start_protocol,
}
