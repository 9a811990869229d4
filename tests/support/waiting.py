"""Waiting for what must happen."""

import asyncio
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from iostreamsrv import IOStream

PATIENCE = 75.0 if sys.flags.dev_mode else 15.0
"""Seconds after which something that must happen is taken not to: far more than it ever takes. With ``-X dev``
everything takes several times as long."""


async def eventually(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Return once ``condition`` holds; for what has no event to wait for."""
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.001)


async def turns(count: int = 5) -> None:
    """Let the loop run ``count`` times."""
    for _ in range(count):
        await asyncio.sleep(0)


def has_come(stream: IOStream, count: int) -> bool:
    """Whether so many bytes wait to be received, of ciphertext under TLS."""
    transport: Any = stream._transport
    sock = getattr(transport, "below", transport).socket
    try:
        return len(sock.recv(count, socket.MSG_PEEK)) == count
    except BlockingIOError:
        return False


def fill(stream: IOStream) -> int:
    """Write until the kernel takes no more; how many bytes, of which some are queued now."""
    count = 0
    while not stream.writing():
        stream.write(bytes(65536)).add_done_callback(lambda future: future.exception())
        count += 65536
    return count


class Ticker:
    """Counts the turns of the running loop while it is open."""

    def __enter__(self) -> "Ticker":
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._tick)
        return self

    def _tick(self) -> None:
        self.count += 1
        self._handle = self._loop.call_soon(self._tick)

    def __exit__(self, *_: object) -> None:
        self._handle.cancel()


def waited(condition: Callable[[], object], patience: float = 20.0) -> bool:
    """Whether a condition holds within so many seconds, of other processes: this one sleeps meanwhile."""
    until = time.monotonic() + patience
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True
