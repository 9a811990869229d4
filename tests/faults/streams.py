"""A server of asyncio's streams, as its documentation has one write it: for each behaviour the same as in
`tests.faults.handlers`."""

import asyncio
import functools
import signal
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from typing import Any

from .child import BACKLOG, Surroundings, port_of
from .handlers import COPIED, PIECE, Tally
from .tornados import server_context


async def echo(reader: StreamReader, writer: StreamWriter, tally: Tally) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()


async def length(reader: StreamReader, writer: StreamWriter, tally: Tally) -> None:
    while line := await reader.readline():
        writer.write(b"%d\n" % len(line))
        await writer.drain()


async def take(reader: StreamReader, writer: StreamWriter, tally: Tally) -> None:
    await reader.readline()


async def flood(reader: StreamReader, writer: StreamWriter, tally: Tally) -> None:
    count = int(await reader.readline())
    for number in range((count << 20) // PIECE):
        writer.write(bytes([number & 255]) * PIECE)
    tally["floods"] += 1
    await asyncio.Event().wait()


async def stall(reader: StreamReader, writer: StreamWriter, tally: Tally) -> None:
    await reader.readline()
    while True:
        writer.write(bytes(65536))
        await writer.drain()


async def reply(reader: StreamReader, writer: StreamWriter, tally: Tally) -> None:
    writer.write(bytes(int(await reader.readline())))
    await writer.drain()


async def leave(reader: StreamReader, writer: StreamWriter, tally: Tally) -> None:
    writer.write(bytes(int(await reader.readline())))


async def serve(reader: StreamReader, writer: StreamWriter, tally: Tally) -> None:
    while line := await reader.readline():
        writer.write(b"begun\n")
        await writer.drain()
        await asyncio.sleep(float(line))
        writer.write(b"done\n")
        await writer.drain()


async def copy(reader: StreamReader, writer: StreamWriter, tally: Tally) -> None:
    while data := await reader.read(COPIED):
        writer.write(data)
        await writer.drain()


async def work(reader: StreamReader, writer: StreamWriter, tally: Tally) -> None:
    seconds = float(await reader.readline())
    tally["begun"] += 1
    await asyncio.sleep(seconds)
    writer.write(b"done\n")
    await writer.drain()


async def fail(reader: StreamReader, writer: StreamWriter, tally: Tally) -> None:
    await reader.readline()
    raise ZeroDivisionError("made up")


async def part(reader: StreamReader, writer: StreamWriter, tally: Tally) -> None:
    name = (await reader.readline()).decode().strip()
    writer.write(b"hello\n")
    try:
        tally[f"{name}: {await reader.readline()!r}"] += 1
    except OSError as error:
        tally[f"{name}: {error!r}"] += 1


Handler = Callable[[StreamReader, StreamWriter, Tally], Awaitable[None]]

HANDLERS: dict[str, Handler] = {
    each.__name__: each for each in (echo, length, take, flood, stall, reply, leave, serve, copy, work, fail, part)
}


async def handle(surroundings: Surroundings, reader: StreamReader, writer: StreamWriter) -> None:
    try:
        if "proxy_protocol" in surroundings.options:
            await reader.readline()
            await writer.start_tls(server_context(surroundings.files))
        await HANDLERS[surroundings.behaviour](reader, writer, surroundings.tally)
    finally:
        writer.close()


def serve(surroundings: Surroundings) -> None:
    asyncio.run(_serve(surroundings))


async def _serve(surroundings: Surroundings) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it has nothing to reload certificates with
    options: dict[str, Any] = {"backlog": BACKLOG}
    if surroundings.files is not None and "proxy_protocol" not in surroundings.options:
        options["ssl"] = server_context(surroundings.files)
        options["ssl_handshake_timeout"] = surroundings.options.get("handshake_timeout")
    if "max_buffer_size" in surroundings.options:
        options["limit"] = surroundings.options["max_buffer_size"]
    server = await asyncio.start_server(functools.partial(handle, surroundings), "127.0.0.1", 0, **options)
    surroundings.listening(asyncio.get_running_loop(), port_of(server.sockets[0]))
    await asyncio.Event().wait()
