"""`TCPServer`: what happens while something else is still under way."""

import asyncio
import logging
import socket
import subprocess
import sys
from typing import Any

import pytest

from iostreamsrv import IOLoop, IOStream, OptionError, TCPServer
from tests.support import PROJECT
from tests.support.engines import on_every_loop
from tests.support.servers import Echo, Serving
from tests.support.waiting import PATIENCE, eventually, fill, turns

pytestmark = on_every_loop


@pytest.mark.gen_test
async def test_clients_whose_handlers_return_the_same_future_are_all_closed(serving: Serving) -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    server = serving.with_handler(lambda stream, address: done)
    peers = [serving.connect(server) for _ in range(3)]
    async with asyncio.timeout(PATIENCE):
        for peer in peers:
            assert await peer.receive_all() == b""


@pytest.mark.gen_test
async def test_a_handler_may_return_the_future_of_its_write(serving: Serving) -> None:
    server = serving.with_handler(lambda stream, address: stream.write(b"hello\n"))
    peers = [serving.connect(server) for _ in range(3)]
    async with asyncio.timeout(PATIENCE):
        for peer in peers:
            assert await peer.receive_all() == b"hello\n"


@pytest.mark.gen_test
async def test_a_client_that_resets_before_the_half_close_causes_no_traceback(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    gone = asyncio.Event()

    async def handle(stream: IOStream, address: Any) -> None:
        await gone.wait()
        await stream.send_eof()

    server = serving.with_handler(handle)
    peer = serving.connect(server)
    await eventually(lambda: len(server.streams))
    peer.reset()
    gone.set()
    with caplog.at_level(logging.INFO):
        await eventually(lambda: not len(server.streams))
    assert not caplog.records


@pytest.mark.gen_test
async def test_a_handler_that_meets_a_cancelled_future_has_its_output_delivered(serving: Serving) -> None:
    cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    written: list[tuple[IOStream, int]] = []

    async def handle(stream: IOStream, address: Any) -> None:
        written.append((stream, fill(stream)))
        await cancelled

    server = serving.with_handler(handle)
    peer = serving.connect(server)
    await eventually(lambda: written)
    await turns()
    ((stream, size),) = written
    assert len(await peer.receive_all()) == size
    peer.close()
    await eventually(stream.closed)
    assert stream.close_reason == "handler_error"


# ---- stopping


@pytest.mark.gen_test
async def test_serve_forever_returns_when_stop_came_first(serving: Serving) -> None:
    server = serving.started(Echo())
    serving_forever = asyncio.create_task(server.serve_forever())
    server.stop()
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait([serving_forever])  # whether it returns, or says that nothing is bound
    serving_forever.exception()


@pytest.mark.gen_test
async def test_all_who_serve_forever_return_on_stop(serving: Serving) -> None:
    server = serving.started(Echo())
    waiters = [asyncio.create_task(server.serve_forever()) for _ in range(2)]
    await turns()
    server.stop()
    _, pending = await asyncio.wait(waiters, timeout=1)
    for waiter in pending:
        waiter.cancel()
    assert not pending


def test_a_server_stops_after_its_loop_closed_all_it_knew(io_loop: IOLoop) -> None:
    loop = asyncio.new_event_loop()

    async def begin() -> tuple[TCPServer, IOLoop]:
        server = Echo()
        server.listen(0, "127.0.0.1")
        return server, IOLoop.current()

    server, closed_loop = loop.run_until_complete(begin())
    listener = server._listeners._acceptors[0].listener
    closed_loop.close(all_fds=True)
    try:
        server.stop()
        assert listener.fileno() == -1
    finally:
        if listener.fileno() >= 0:
            listener.detach()


STOPPED = """
import asyncio
import iostreamsrv

class Server(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        if await stream.read_until(b"\\n") == b"stop\\n":
            return self.stop()
        try:
            await stream.read_until(b"\\n")
        except asyncio.CancelledError:
            return  # as one must not

server = Server()
server.listen(0, "127.0.0.1")
print(server.addresses[0][1], flush=True)
iostreamsrv.run(server)
"""


def test_run_leaves_no_task_and_no_socket_behind_when_a_handler_stops_the_server() -> None:
    command = [sys.executable, "-X", "dev", "-W", "always::ResourceWarning", "-c", STOPPED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT) as program:
        assert program.stdout is not None
        port = int(program.stdout.readline())
        with (
            socket.create_connection(("127.0.0.1", port)) as idle,
            socket.create_connection(("127.0.0.1", port)) as stopper,
        ):
            idle.sendall(b"line\n")
            stopper.sendall(b"stop\n")
            _, complaints = program.communicate(timeout=PATIENCE)
    assert program.returncode == 0
    assert complaints == ""


# ---- ports


@pytest.mark.parametrize("port", ["+70000", " 70000", "²", "+0"])
def test_a_port_that_only_the_resolver_takes_for_a_number_is_refused(port: str) -> None:
    server = Echo()
    with pytest.raises(OptionError, match="port"):
        try:
            server.listen(port, "127.0.0.1")
        finally:
            server.stop()
