"""A server that has served very many connections has no more memory than one that has served some."""

import socket
import struct
import sys

import pytest

from tests.support.programs import printed, program

pytestmark = pytest.mark.alone

SERVER = """
import asyncio
import os
from pathlib import Path

from iostreamsrv import StreamClosedError, TCPServer


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Server(TCPServer):
    async def handle_stream(self, stream, address):
        try:
            while True:
                line = await stream.read_until(b"\\n", max_bytes=100, timeout=10)
                if line == b"resident\\n":
                    await stream.write(b"%d\\n" % resident())
                elif line == b"fail\\n":
                    await stream.read_bytes(5)
                    await stream.write("text")
                elif line == b"wait\\n":
                    try:
                        await asyncio.wait_for(stream.read_until(b"\\n"), 0.001)
                    except TimeoutError:
                        await stream.write(b"still here\\n")
                else:
                    await stream.write(line)
        except (StreamClosedError, TypeError):
            pass


async def main():
    server = Server()
    server.listen(0, "127.0.0.1", backlog=1000)
    print(server.addresses[0][1])
    await asyncio.Event().wait()


asyncio.run(main())
"""

CONNECTIONS = 100_000
WARM = 5_000
MOST = 1 << 20
"""Bytes: 10 for each connection."""


def ask(port: int, request: bytes, *, reset: bool = False) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(request)
        return client.recv(1000)


def connect_often(port: int, count: int) -> None:
    for number in range(count):
        match number % 5:
            case 0:
                assert ask(port, b"a line\n", reset=True) == b"a line\n"
            case 1:
                assert ask(port, b"a line\n" * 20).startswith(b"a line\n")
            case 2:
                assert ask(port, b"a line\nand a half", reset=True) == b"a line\n"
            case 3:
                assert ask(port, b"fail\n12345") == b""
            case 4:
                assert ask(port, b"wait\n" if number % 100 == 4 else b"x\n") in (b"still here\n", b"x\n")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc/self/statm")
def test_very_many_connections_leave_no_memory_behind() -> None:
    with program(SERVER) as child:
        port = printed(child)
        connect_often(port, WARM)
        before = int(ask(port, b"resident\n"))
        connect_often(port, CONNECTIONS)
        assert int(ask(port, b"resident\n")) - before <= MOST
