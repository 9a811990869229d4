"""Sockets and the test kit in situations that are easily forgotten."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import IOStream, OptionError, TCPServer, bind_sockets, bind_unix_socket
from iostreamsrv.testing import memory_stream_pair, running


class Sleepy(TCPServer):
    """A handler that waits for nothing of its stream, and takes a moment to end."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.ended = asyncio.Event(), asyncio.Event()
        self.may_end = asyncio.Event()

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await self.may_end.wait()
            self.ended.set()


def test_a_stale_socket_is_replaced_also_under_a_path_with_a_slash_at_its_end(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with bind_unix_socket(path + "/"), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


@pytest.mark.parametrize("option", [{"backlog": 1 << 40}, {"flags": 1 << 40}])
def test_bind_sockets_refuses_numbers_that_the_kernel_cannot_take(option: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        bind_sockets(0, "127.0.0.1", **option)


def test_running_ends_handlers_also_of_a_server_that_was_stopped() -> None:
    async def main() -> None:
        server = Sleepy()
        server.may_end.set()
        async with running(server) as address:
            with socket.create_connection(address):
                await server.begun.wait()
            server.stop()
            await asyncio.sleep(0)
        assert server.ended.is_set()

    asyncio.run(main())


def test_a_cancel_while_running_ends_is_not_lost() -> None:
    async def main() -> None:
        server = Sleepy()
        asyncio.get_running_loop().call_later(0.05, server.may_end.set)
        entered = asyncio.Event()

        async def use() -> None:
            async with running(server) as address:
                with socket.create_connection(address):
                    await server.begun.wait()
                entered.set()

        using = asyncio.create_task(use())
        await entered.wait()
        await asyncio.sleep(0)
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using

    asyncio.run(main())


def test_a_memory_stream_can_be_closed_after_its_loop() -> None:
    async def main() -> tuple[IOStream, IOStream]:
        one, other = memory_stream_pair()
        one.read_bytes(1)
        await asyncio.sleep(0)  # the hub has seen all there is
        return one, other

    for stream in reversed(asyncio.run(main())):
        stream.close()
