"""Server options for the kernel: what an accepted socket says of them, and how connections end."""

import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import CloseReason, IOLoop, IOStream, ServerOptions, TCPServer
from iostreamsrv.options import Keepalive
from tests.support.engines import on_every_loop
from tests.support.peers import Peer
from tests.support.servers import Serving
from tests.support.waiting import PATIENCE, eventually

pytestmark = on_every_loop

KEEPALIVE = socket.SO_KEEPALIVE
IDLE = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", 0))


class Clients(Serving):
    """Servers that keep the streams of their clients, and the clients; all are ended when the test is."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted: asyncio.Queue[IOStream] = asyncio.Queue()

    def server(self, **options: Any) -> TCPServer:
        """A server that does not listen yet."""
        server = TCPServer(**options)
        server.handle_stream = self._keep  # type: ignore[method-assign]
        self.servers.append(server)
        return server

    def _keep(self, stream: IOStream, address: Any) -> None:
        self.accepted.put_nowait(stream)

    def connect(self, server: TCPServer) -> Peer:
        address = server.addresses[0]
        client = socket.socket({str: socket.AF_UNIX, bytes: socket.AF_UNIX}.get(type(address), socket.AF_INET))
        client.settimeout(PATIENCE)
        client.connect(address)
        peer = Peer(client)
        self.peers.append(peer)
        return peer

    async def stream(self, **options: Any) -> tuple[IOStream, Peer]:
        """The stream of a client of a server with ``options``, and the client."""
        server = self.server(**options)
        server.listen(0, "127.0.0.1")
        peer = self.connect(server)
        return await self.accepted.get(), peer


@pytest.fixture
def clients(io_loop: IOLoop) -> Iterator[Clients]:
    clients = Clients()
    yield clients
    clients.end()


def tcp(stream: IOStream, option: int) -> int:
    return stream.socket.getsockopt(socket.IPPROTO_TCP, option)


def level(stream: IOStream, option: int) -> int:
    return stream.socket.getsockopt(socket.SOL_SOCKET, option)


# ---- what the kernel is told


@pytest.mark.parametrize(
    "value, expected",
    [
        (True, (60, 10, 6)),
        ((1, 2, 3), (1, 2, 3)),
        ((32767, 32767, 127), (32767, 32767, 127)),
        (Keepalive(probes=9), (60, 10, 9)),
    ],
)
@pytest.mark.gen_test
async def test_keepalive_reaches_the_clients(clients: Clients, value: Any, expected: tuple[int, int, int]) -> None:
    stream, _ = await clients.stream(keepalive=value)
    assert level(stream, KEEPALIVE)
    times = (tcp(stream, IDLE), tcp(stream, socket.TCP_KEEPINTVL), tcp(stream, socket.TCP_KEEPCNT))
    assert times == expected


@pytest.mark.parametrize("value", [False, None])
@pytest.mark.gen_test
async def test_without_keepalive_nobody_is_asked(clients: Clients, value: Any) -> None:
    stream, _ = await clients.stream(keepalive=value)
    assert not level(stream, KEEPALIVE)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.gen_test
async def test_nodelay_reaches_the_clients(clients: Clients, value: bool) -> None:
    stream, _ = await clients.stream(nodelay=value)
    assert bool(tcp(stream, socket.TCP_NODELAY)) is value


def nodelay(stream: IOStream) -> bool:
    """Asked past the stream, which takes note when its socket is used."""
    with socket.socket(fileno=os.dup(stream.fileno())) as duplicate:
        return bool(duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


@pytest.mark.gen_test
async def test_set_nodelay_of_a_client_holds_whatever_was_set_before(clients: Clients) -> None:
    stream, _ = await clients.stream(nodelay=True)
    stream.set_nodelay(True)
    assert nodelay(stream)
    stream.set_nodelay(False)
    assert not nodelay(stream)
    stream.set_nodelay(True)
    assert nodelay(stream)
    stream, _ = await clients.stream(nodelay=True)
    stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    stream.set_nodelay(True)
    assert nodelay(stream)


@pytest.mark.parametrize("option, name", [("send_buffer_size", "SO_SNDBUF"), ("receive_buffer_size", "SO_RCVBUF")])
@pytest.mark.gen_test
async def test_buffer_sizes_reach_the_clients(clients: Clients, option: str, name: str) -> None:
    sizes = []
    for size in (16_384, 65_536):
        stream, _ = await clients.stream(**{option: size})
        sizes.append(level(stream, getattr(socket, name)))
        assert size <= sizes[-1] <= 2 * size  # Linux doubles it, for what it needs itself
    assert sizes[0] < sizes[1]


@pytest.mark.gen_test
async def test_a_size_beyond_what_the_kernel_gives_is_cut_and_does_no_harm(clients: Clients) -> None:
    stream, peer = await clients.stream(send_buffer_size=(1 << 31) - 1, receive_buffer_size=(1 << 31) - 1)
    peer.send(b"abc")
    assert await stream.read_bytes(3) == b"abc"
    await stream.write(b"def")
    assert await peer.receive(3) == b"def"


@pytest.mark.gen_test
async def test_by_default_the_kernel_decides_on_its_buffers(clients: Clients) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        plain, _ = listener.accept()
    stream, _ = await clients.stream()
    for name in ("SO_SNDBUF", "SO_RCVBUF"):
        option = getattr(socket, name)
        assert level(stream, option) == plain.getsockopt(socket.SOL_SOCKET, option)
    plain.close()


@pytest.mark.parametrize("linger", [2.0, 0.5, 0])
@pytest.mark.gen_test
async def test_only_a_linger_of_zero_is_the_kernels_so_that_no_close_blocks(clients: Clients, linger: float) -> None:
    stream, _ = await clients.stream(linger=linger)
    packed = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    assert struct.unpack("ii", packed) == ((1, 0) if linger == 0 else (0, 0))
    assert stream.linger == linger


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
@pytest.mark.gen_test
async def test_the_options_reach_the_clients_of_every_socket(clients: Clients) -> None:
    server = clients.server(keepalive=(5, 6, 7), send_buffer_size=20_000, linger=0)
    try:
        server.add_socket(socket.create_server(("::1", 0), family=socket.AF_INET6))
    except OSError:
        pytest.skip("this machine has no ::1")
    with socket.create_connection(server.addresses[0][:2]):
        stream = await clients.accepted.get()
    server.listen(0, "127.0.0.1")
    with socket.create_connection(server.addresses[1]):
        streams = [stream, await clients.accepted.get()]
    for stream in streams:
        assert (tcp(stream, IDLE), tcp(stream, socket.TCP_NODELAY)) == (5, 1)
        assert level(stream, socket.SO_SNDBUF) == level(streams[0], socket.SO_SNDBUF) <= 40_000


@pytest.mark.gen_test
async def test_clients_that_queued_before_the_start_have_the_options_as_well(clients: Clients) -> None:
    server = clients.server(keepalive=(5, 6, 7), send_buffer_size=20_000)
    server.bind(0, "127.0.0.1")
    for _ in range(20):  # more than are accepted in one turn
        clients.connect(server)
    server.start()
    for _ in range(20):
        stream = await clients.accepted.get()
        assert (tcp(stream, IDLE), tcp(stream, socket.TCP_NODELAY)) == (5, 1)
        assert level(stream, socket.SO_SNDBUF) <= 40_000
    clients.connect(server)
    assert tcp(await clients.accepted.get(), IDLE) == 5


@pytest.mark.gen_test
async def test_clients_that_were_there_before_the_server_have_the_options_as_well(clients: Clients) -> None:
    server = clients.server(keepalive=(5, 6, 7), linger=0)
    listener = socket.create_server(("127.0.0.1", 0))
    peer = Peer(socket.create_connection(listener.getsockname()))
    clients.peers.append(peer)
    server.add_socket(listener)
    stream = await clients.accepted.get()
    assert (tcp(stream, IDLE), tcp(stream, socket.TCP_NODELAY)) == (5, 1)
    await stream.aclose()
    with pytest.raises(ConnectionResetError):
        await peer.receive_all()


@pytest.mark.gen_test
async def test_a_client_that_has_gone_before_the_start_does_no_harm(clients: Clients) -> None:
    server = clients.server(keepalive=(5, 6, 7), send_buffer_size=20_000, linger=0)
    server.bind(0, "127.0.0.1")
    clients.connect(server).reset()
    staying = clients.connect(server)
    server.start()
    while (stream := await clients.accepted.get()).remote_address != staying.socket.getsockname():
        stream.abort()
    await stream.write(b"abc")
    assert await staying.receive(3) == b"abc"


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="there are no Unix sockets")
@pytest.mark.gen_test
async def test_buffer_sizes_reach_the_clients_of_a_unix_socket(clients: Clients, tmp_path: Path) -> None:
    server = clients.server(send_buffer_size=20_000, receive_buffer_size=20_000, linger=0, keepalive=(5, 6, 7))
    server.add_socket(unix_listener(tmp_path))
    for _ in range(2):
        peer = clients.connect(server)
        stream = await clients.accepted.get()
        assert level(stream, socket.SO_SNDBUF) <= 40_000
        assert level(stream, socket.SO_RCVBUF) <= 40_000
        await stream.write(b"abc")
        await stream.aclose()
        assert await peer.receive_all() == b"abc"


def unix_listener(directory: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "s"))
    listener.listen()
    return listener


# ---- how a connection ends


@pytest.mark.parametrize("end", ["close", "aclose"])
@pytest.mark.gen_test
async def test_with_a_linger_of_zero_an_end_is_a_reset_at_once(clients: Clients, end: str) -> None:
    stream, peer = await clients.stream(linger=0)
    await stream.write(b"abc")
    assert await peer.receive(3) == b"abc"
    async with asyncio.timeout(1):  # less than the default waits
        ending = getattr(stream, end)()
        if ending is not None:
            await ending
    assert stream.close_reason is CloseReason.LOCAL
    with pytest.raises(ConnectionResetError):
        await peer.receive_all()


@pytest.mark.gen_test
async def test_a_linger_of_zero_waits_for_the_kernel_to_take_all(clients: Clients) -> None:
    stream, peer = await clients.stream(linger=0)
    stream.write(bytes(8_000_000))
    closing = asyncio.create_task(stream.aclose())
    received = 0
    with pytest.raises(ConnectionResetError):
        async for chunk in peer.chunks():
            received += len(chunk)
    await closing
    assert stream.bytes_written == 8_000_000
    assert received > 1_000_000


@pytest.mark.parametrize("returning", [False, True], ids=["aclose", "handler"])
@pytest.mark.gen_test
async def test_the_linger_bounds_the_wait_for_a_client_that_stays(clients: Clients, returning: bool) -> None:
    server = TCPServer(linger=0.1)
    clients.servers.append(server)

    async def greet(stream: IOStream, address: Any) -> None:
        await stream.write(b"hello")
        if not returning:
            await stream.aclose()

    server.handle_stream = greet  # type: ignore[method-assign, assignment]
    server.listen(0, "127.0.0.1")
    peer = clients.connect(server)
    assert await peer.receive_all() == b"hello"
    assert len(server.streams) == 1, "it has waited for nothing"
    async with asyncio.timeout(1.5):  # the default waits for two seconds
        await eventually(lambda: not len(server.streams))


@pytest.mark.gen_test
async def test_a_longer_linger_ends_with_the_clients_side(clients: Clients) -> None:
    stream, peer = await clients.stream(linger=20)
    closing = asyncio.create_task(stream.aclose())
    assert await peer.receive_all() == b""
    assert not stream.closed()
    peer.half_close()
    await closing
    assert stream.close_reason is CloseReason.LOCAL


@pytest.mark.gen_test
async def test_the_linger_of_a_stream_may_be_set(stream: IOStream, peer: Peer) -> None:
    assert stream.linger == 2.0
    stream.linger = 0.05
    await stream.write(b"abc")
    async with asyncio.timeout(1.5):
        await stream.aclose()
    assert await peer.receive_all() == b"abc"


# ---- the options themselves


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, {"keepalive": Keepalive(60, 10, 6), "nodelay": True, "linger": 2.0, "allow_half_open": False}),
        ({}, {"send_buffer_size": None, "receive_buffer_size": None}),
        ({"keepalive": (1, 2, 3)}, {"keepalive": Keepalive(idle=1, interval=2, probes=3)}),
        ({"keepalive": False}, {"keepalive": None}),
        ({"linger": 1}, {"linger": 1.0}),
    ],
)
def test_options_are_what_was_asked_for(change: dict[str, Any], expected: dict[str, Any]) -> None:
    for options in (ServerOptions(**change), TCPServer(**change).options):
        assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.gen_test
async def test_a_stream_has_the_servers_options(clients: Clients) -> None:
    stream, _ = await clients.stream(linger=0.3, allow_half_open=True)
    assert stream.linger == 0.3
    assert stream.allow_half_open is True
