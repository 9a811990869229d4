"""What several test files need: the engines to run on, and a peer that is a plain socket."""

import ast
import asyncio
import contextlib
import importlib.util
import os
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from iostreamsrv import IOStream
from iostreamsrv.memory import MemorySocket

PROJECT = Path(__file__).parent.parent

EVERY_ENGINE = [
    "epoll",
    "loop",
    "memory",
    pytest.param(
        "uvloop",
        marks=pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed"),
    ),
]
"""The hub on its own epoll, the hub on the loop's readers and writers, the hub of streams in memory, and the first of
them inside uvloop."""

on_every_engine = [
    pytest.mark.usefixtures("io_loop"),
    pytest.mark.parametrize("engine", EVERY_ENGINE, indirect=True),
]
"""``pytestmark`` of a file whose tests are to run on every engine."""

PATIENCE = 5.0
"""Seconds after which something that must happen is taken not to: far more than it ever takes."""


class Peer:
    """The other end of a stream: a plain socket that does as it is told.

    What is sent goes out at once; it must be less than the kernel takes without anybody reading.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        assert self.socket.send(data) == len(data)

    async def send_all(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive_some(self, size: int) -> bytes:
        """What there is, up to ``size`` bytes; b"" at the end."""
        return await asyncio.get_running_loop().sock_recv(self.socket, size)

    async def receive(self, count: int) -> bytes:
        """Exactly ``count`` bytes."""
        received = bytearray()
        while len(received) < count:
            chunk = await self.receive_some(count - len(received))
            assert chunk, f"the stream ended after {len(received)} bytes"
            received += chunk
        return bytes(received)

    async def chunks(self) -> AsyncIterator[bytes]:
        """What arrives, as it arrives, until the end."""
        while chunk := await self.receive_some(1 << 20):
            yield chunk

    async def receive_all(self) -> bytes:
        """Everything until the end of the stream."""
        return b"".join([chunk async for chunk in self.chunks()])

    def has_input(self) -> bool:
        """Whether bytes, an end or an error wait to be received."""
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        return True

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """End the connection with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class MemoryPeer(Peer):
    """The other end of a stream in memory, which is no descriptor that a loop could wait for."""

    def __init__(self, end: MemorySocket) -> None:
        self.socket = cast(Any, end)
        self._ready = asyncio.Event()
        end.notify = lambda _events: self._ready.set()

    async def _retry(self, attempt: Callable[..., Any], *arguments: Any) -> Any:
        while True:
            self._ready.clear()
            try:
                return attempt(*arguments)
            except BlockingIOError:
                await self._ready.wait()

    async def send_all(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            sent += await self._retry(self.socket.send, data[sent:])

    async def receive_some(self, size: int) -> bytes:
        received: bytes = await self._retry(self.socket.recv, size)
        return received


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


async def eventually(condition: Callable[[], object]) -> None:
    """Return once ``condition`` holds; for what has no event to wait for."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


async def turns(count: int = 5) -> None:
    """Let the loop run ``count`` times."""
    for _ in range(count):
        await asyncio.sleep(0)


def open_descriptors() -> set[int]:
    """The descriptors this process has open."""

    def is_open(number: int) -> bool:
        try:
            os.fstat(number)
        except OSError:
            return False
        return True

    directory = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    return {number for entry in directory.iterdir() if is_open(number := int(entry.name))}


def fill(stream: IOStream) -> int:
    """Write until the kernel takes no more; how many bytes, of which some are queued now."""
    count = 0
    while not stream.writing():
        stream.write(bytes(65536)).add_done_callback(lambda future: future.exception())
        count += 65536
    return count


@contextlib.contextmanager
def program(source: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program in a process of its own, with text pipes to read what it prints; killed if it is still there."""
    with subprocess.Popen(
        [sys.executable, "-u", "-W", "error", "-c", textwrap.dedent(source), *arguments],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def printed(process: "subprocess.Popen[str]") -> Any:
    """The next line that a `program` printed, as the Python value it is."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return ast.literal_eval(line)
