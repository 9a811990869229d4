"""What servers with streams like Tornado's do, ours and Tornado's own: one handler for each behaviour.

Each is written as one writes it who trusts the library. `tests.faults.streams` has the same for asyncio.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from tornado.iostream import StreamClosedError

PIECE = 1 << 18
"""Bytes of one write in a flood, so few that a limit is met with little more than what it allows."""

COPIED = 3000
"""Most bytes of one piece of a copy."""

Tally = Counter[str]


async def echo(stream: Any, tally: Tally) -> None:
    """Lines come back."""
    while True:
        await stream.write(await stream.read_until(b"\n"))


async def length(stream: Any, tally: Tally) -> None:
    """Each line is answered with its length."""
    while True:
        await stream.write(b"%d\n" % len(await stream.read_until(b"\n")))


async def take(stream: Any, tally: Tally) -> None:
    """A line is read, with all the room that there is by default."""
    try:
        await stream.read_until(b"\n")
    finally:
        tally["received"] += getattr(stream, "bytes_read", 0)  # Tornado does not count


async def flood(stream: Any, tally: Tally) -> None:
    """So many MiB are written as the client says, and never awaited."""
    count = int(await stream.read_until(b"\n"))
    try:
        for number in range((count << 20) // PIECE):
            stream.write(bytes([number & 255]) * PIECE)
    except Exception:
        tally["errors"] += 1
        raise
    finally:
        tally["floods"] += 1
    await asyncio.Event().wait()


async def stall(stream: Any, tally: Tally) -> None:
    """Once the client has said a line, more and more is written, and awaited."""
    await stream.read_until(b"\n")
    while True:
        await stream.write(bytes(65536))


async def reply(stream: Any, tally: Tally) -> None:
    """As many bytes as the client says, and the end."""
    await stream.write(bytes(int(await stream.read_until(b"\n"))))


async def leave(stream: Any, tally: Tally) -> None:
    """As many bytes as the client says, not awaited, and the end."""
    stream.write(bytes(int(await stream.read_until(b"\n"))))


async def serve(stream: Any, tally: Tally) -> None:
    """Requests, one after the other, take as many seconds as the client says, and are said to have begun."""
    while True:
        seconds = float(await stream.read_until(b"\n"))
        await stream.write(b"begun\n")
        await asyncio.sleep(seconds)
        await stream.write(b"done\n")


async def copy(stream: Any, tally: Tally) -> None:
    """What comes goes back, piece by piece, until the end."""
    while True:
        await stream.write(await stream.read_bytes(COPIED, partial=True))


async def work(stream: Any, tally: Tally) -> None:
    """A request takes as many seconds as the client says."""
    seconds = float(await stream.read_until(b"\n"))
    tally["begun"] += 1
    await asyncio.sleep(seconds)
    await stream.write(b"done\n")


async def fail(stream: Any, tally: Tally) -> None:
    """There is a mistake in the handler."""
    await stream.read_until(b"\n")
    raise ZeroDivisionError("made up")


async def part(stream: Any, tally: Tally) -> None:
    """The client says who it is, and then ends; counted is what the handler learns of that."""
    name = (await stream.read_until(b"\n")).decode().strip()
    await stream.write(b"hello\n")
    try:
        await stream.read_until(b"\n")
    except StreamClosedError as error:
        tally[f"{name}: {getattr(error, 'reason', error.real_error)}"] += 1
        raise


HANDLERS: dict[str, Callable[[Any, Tally], Awaitable[None]]] = {
    each.__name__: each for each in (echo, length, take, flood, stall, reply, leave, serve, copy, work, fail, part)
}
