"""The servers that are compared. A process runs one of them: ``python -m benchmarks.peers NAME LOOP MODE CORE``.

It prints the port it serves and, once its standard input ends, what its timer saw (see `Ticker`), and is gone.

Modes: ``lines`` echoes line by line, ``timed`` as well with a timer beside it, ``chunks`` echoes whatever comes, and
``length`` answers a line with its length. A peer that has a way to read a line and to wait for a write uses it.
A process imports what its peer needs and no other's.
"""

import asyncio
import importlib
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple, cast

from .machine import allow_files

Mode = Literal["lines", "timed", "chunks", "length"]

BACKLOG = 4096  # so that no peer loses a connection that another would have taken
LONGEST = 64 << 20
CHUNK = 64 << 10
TICK = 0.010  # seconds


class Peer(NamedTuple):
    """A server on an event loop."""

    name: str
    loop: Literal["asyncio", "uvloop"] = "asyncio"

    def __str__(self) -> str:
        return self.name if self.loop == "asyncio" else f"{self.name}, {self.loop}"

    def installed(self) -> bool:
        modules = (self.loop, *STARTS[self.name].module.split(".")[:1])
        return all(importlib.util.find_spec(module) for module in modules)


def tornado_like(base: type, closed: type[Exception], mode: Mode) -> Any:
    """A server class with the handler that is the same, word for word, for Tornado and for iostreamsrv."""

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


async def start_iostreamsrv(listener: socket.socket, mode: Mode) -> object:
    from iostreamsrv import StreamClosedError, TCPServer

    server = tornado_like(TCPServer, StreamClosedError, mode)(max_buffer_size=LONGEST if mode == "length" else None)
    server.add_socket(listener)
    return server


async def start_tornado(listener: socket.socket, mode: Mode) -> object:
    from tornado.iostream import StreamClosedError
    from tornado.tcpserver import TCPServer

    server = tornado_like(TCPServer, StreamClosedError, mode)(max_buffer_size=LONGEST if mode == "length" else None)
    server.add_socket(listener)
    return server


async def start_streams(listener: socket.socket, mode: Mode) -> object:
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
    return await asyncio.start_server(handle, sock=listener, backlog=BACKLOG, limit=limit)


class Chunks(asyncio.Protocol):
    """Echoes what comes, and does not read while the client does not."""

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
    """A Protocol has no lines, so they are cut here."""

    rest = b""

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        start = 0
        while end := data.find(b"\n", start) + 1:
            self.transport.write(data[start:end])
            start = end
        self.rest = data[start:]


async def start_protocol(listener: socket.socket, mode: Mode) -> object:
    if mode == "length":
        raise ValueError("a Protocol has no read to wait for a long line with")
    protocol = Chunks if mode == "chunks" else Lines
    return await asyncio.get_running_loop().create_server(protocol, sock=listener, backlog=BACKLOG)


class Start(NamedTuple):
    """How a peer is started, and the module it needs."""

    module: str
    start: Callable[[socket.socket, Mode], Awaitable[object]]


STARTS = {
    "iostreamsrv": Start("iostreamsrv", start_iostreamsrv),
    "Tornado": Start("tornado.tcpserver", start_tornado),
    "asyncio streams": Start("asyncio", start_streams),
    "raw Protocol": Start("asyncio", start_protocol),
}
OURS, TORNADO, STREAMS, PROTOCOL = (Peer(name) for name in STARTS)
PEERS = (*(Peer(name) for name in STARTS), *(Peer(name, "uvloop") for name in STARTS))


class Ticker:
    """A 10 ms timer that writes down when it fired (monotonic clock) and how late that was, in seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.seen: list[tuple[float, float]] = []
        self._loop = loop
        self._set()

    def _set(self) -> None:
        self._due = time.monotonic() + TICK
        self._loop.call_later(TICK, self._fire)

    def _fire(self) -> None:
        now = time.monotonic()
        self.seen.append((now, now - self._due))
        self._set()


def listen() -> socket.socket:
    # The protocol is spelt out because asyncio turns Nagle's algorithm off only where it sees it.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


async def serve(name: str, mode: Mode) -> None:
    """Serve until standard input ends, be it that the measuring process is done or that it died."""
    listener = listen()
    server = await STARTS[name].start(listener, mode)
    loop = asyncio.get_running_loop()
    ticker = Ticker(loop) if mode == "timed" else None
    done = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), done.set)
    print(listener.getsockname()[1], flush=True)
    await done.wait()
    print(json.dumps(ticker.seen if ticker else []), flush=True)
    del server  # was needed till here
    os._exit(0)  # thousands of connections may be open, and nobody waits for their farewell


def main(name: str, loop: str, mode: Mode, core: str) -> None:
    os.sched_setaffinity(0, {int(core)})
    allow_files()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the measuring process, and that this one's input
    logging.disable(logging.WARNING)  # when the load breaks off, asyncio warns of every line that is still to be sent
    importlib.import_module(STARTS[name].module)
    if loop == "uvloop":
        import uvloop

        uvloop.run(serve(name, mode))
    else:
        asyncio.run(serve(name, mode))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
