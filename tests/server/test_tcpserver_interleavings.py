"""`TCPServer`: what happens while something else is still under way."""

import asyncio
import itertools
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from iostreamsrv import CloseReason, IOLoop, IOStream, OptionError, TCPServer
from iostreamsrv.server.base import core_of
from iostreamsrv.streams import wakeup
from tests.support import PROJECT
from tests.support.engines import on_every_loop
from tests.support.peers import Peer
from tests.support.servers import TRUSTING, Echo, Serving, header
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
    listener = core_of(server).listeners._acceptors[0].listener
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
    # A busy machine makes any callback slow.
    assert [line for line in complaints.splitlines() if not line.startswith("Executing ")] == []


# ---- ports


@pytest.mark.parametrize("port", ["+70000", " 70000", "²", "+0"])
def test_a_port_that_only_the_resolver_takes_for_a_number_is_refused(port: str) -> None:
    server = Echo()
    with pytest.raises(OptionError, match="port"):
        try:
            server.listen(port, "127.0.0.1")
        finally:
            server.stop()


class Counted(TCPServer):
    """Notes, by the ids of their streams, for which clients its two handlers are called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.served: list[int] = []
        self.ended: list[int] = []
        self.kick_on_return = False

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        self.served.append(stream.id)
        await stream.read_until(b"\n")
        if self.kick_on_return:
            self.kick_all()

    def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        self.ended.append(stream.id)


ENDS: dict[str, Callable[[Peer, TCPServer], object]] = {
    "resets": lambda peer, server: peer.reset(),
    "closes": lambda peer, server: peer.close(),
    "half-closes": lambda peer, server: peer.half_close(),
    "is kicked": lambda peer, server: server.kick_all(),
}


@pytest.mark.parametrize("eager", [True, False], ids=["stepped at once", "stepped later"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.gen_test
async def test_a_client_of_a_proxy_has_both_handlers_or_neither_whenever_it_ends(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, end: str, eager: bool
) -> None:
    monkeypatch.setattr(wakeup, "EAGER_WAKEUP", eager and wakeup.EAGER_WAKEUP)
    server = Counted(**TRUSTING)
    serving.started(server)
    message = header("192.0.2.1") + b"request"
    for split, before, after in itertools.product((0, 9, len(message) - 7, len(message)), range(4), range(6)):
        peer = serving.connect(server)
        peer.send(message[:split])
        await turns(before)
        peer.send(message[split:])
        await turns(after)
        ENDS[end](peer, server)
    await eventually(lambda: server.addresses and not server.streams)
    await turns()
    assert sorted(server.ended) == sorted(server.served)
    assert 0 < len(server.served) <= 96


@pytest.mark.gen_test
async def test_a_client_that_is_closed_right_after_its_proxy_header_has_no_handler_and_no_place(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a read does not step its task at once, another client's handler may run between the two."""
    monkeypatch.setattr(wakeup, "EAGER_WAKEUP", False)
    server = Counted(max_connections_per_ip=1, **TRUSTING)
    serving.started(server)
    for _ in range(3):
        kicker, peer = serving.connect(server), serving.connect(server)
        kicker.send(header("192.0.2.2"))
        await eventually(lambda: len(server.streams) == 2 and len(server.served) == len(server.ended) + 1)
        server.kick_on_return = True
        kicker.send(b"kick them all\n")  # is dispatched first
        peer.send(header("192.0.2.1") + b"request\n")
        await eventually(lambda: not server.streams)
        await turns()
    assert server.served == server.ended
    assert len(server.served) == 3
    serving.connect(server).send(header("192.0.2.1"))
    await eventually(lambda: len(server.served) == 4)
