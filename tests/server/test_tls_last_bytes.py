"""Under TLS no byte is lost at an end: not to tickets that nobody reads, nor to a shutdown that does not see it."""

import asyncio
import errno
import socket
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iostreamsrv import IOLoop, IOStream, TCPServer
from iostreamsrv.certificates import self_signed
from tests.support.engines import on_every_loop
from tests.support.peers import TLSPeer, tcp_pair, tls_pair
from tests.support.waiting import PATIENCE, eventually, turns

pytestmark = on_every_loop

LINE = b"0123456789abcde\n"


MakeTLSPair = Callable[..., tuple[IOStream, TLSPeer]]


@pytest.fixture
def make_tls_pair(io_loop: IOLoop) -> Iterator[MakeTLSPair]:
    """As ``make_pair``, always under TLS."""
    made: list[tuple[IOStream, TLSPeer]] = []

    def make(**options: Any) -> tuple[IOStream, TLSPeer]:
        made.append(tls_pair(tcp_pair(), **options))
        return made[-1]

    yield make
    for stream, peer in made:
        stream.abort()
        peer.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return self_signed().write(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(params=["dict", "own context"])
def ssl_options(request: pytest.FixtureRequest, files: dict[str, str]) -> Any:
    """What a server may be given."""
    if request.param == "dict":
        return files
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(**files)
    return context


def trusting(files: dict[str, str], version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files["certfile"])
    context.maximum_version = version
    return context


class Serving:
    """A server with ``handler``."""

    def __init__(self, handler: Callable[[IOStream], Any], ssl_options: Any, **options: Any) -> None:
        class Server(TCPServer):
            async def handle_stream(self, stream: IOStream, address: Any) -> None:
                await handler(stream)

        self.server = Server(ssl_options=ssl_options, **options)
        self.server.listen(0, "127.0.0.1")
        self.address = self.server.addresses[0]

    async def __aenter__(self) -> "Serving":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.stop()
        await self.server.close_all_connections()


# ---- tickets

UPLOAD = 400_000


def upload(address: Any, context: ssl.SSLContext) -> None:
    """Write and close, without ever reading."""
    sock = socket.create_connection(address, PATIENCE)
    with sock, context.wrap_socket(sock, server_hostname="localhost") as tls:
        tls.sendall(bytes(UPLOAD))


@pytest.mark.gen_test(timeout=60)
async def test_clients_that_only_write_and_close_lose_nothing(ssl_options: Any, files: dict[str, str]) -> None:
    received = []

    async def take(stream: IOStream) -> None:
        count = 0
        try:
            while True:
                count += len(await stream.read_bytes(65536, partial=True))
        finally:
            received.append(count)

    async with Serving(take, ssl_options) as serving:
        for number in range(20):
            await asyncio.to_thread(upload, serving.address, trusting(files))
            await eventually(lambda: len(received) > number)  # noqa: B023
    assert received == [UPLOAD] * 20


def ask(address: Any, context: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[bool | None, Any]:
    """Whether the session was taken up, and the session to take up next time."""
    with (
        socket.create_connection(address, PATIENCE) as sock,
        context.wrap_socket(sock, server_hostname="localhost", session=session) as tls,
    ):
        tls.sendall(LINE)
        assert tls.recv(100) == LINE
        return tls.session_reused, tls.session


async def echo(stream: IOStream) -> None:
    while True:
        await stream.write(await stream.read_until(b"\n"))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.gen_test(timeout=30)
async def test_a_client_that_reads_an_answer_can_take_its_session_up_again(
    ssl_options: Any, files: dict[str, str], version: ssl.TLSVersion
) -> None:
    context = trusting(files, version)
    async with Serving(echo, ssl_options) as serving:
        reused, session = await asyncio.to_thread(ask, serving.address, context, None)
        assert not reused
        for _ in range(2):
            reused, session = await asyncio.to_thread(ask, serving.address, context, session)
            assert reused


@pytest.mark.gen_test
async def test_tickets_wait_for_the_first_write(make_tls_pair: MakeTLSPair) -> None:
    stream, peer = make_tls_pair()
    peer.send(LINE)
    assert await stream.read_until(b"\n") == LINE
    await turns()
    assert not peer.has_input()
    await stream.write(LINE)
    assert await peer.receive(len(LINE)) == LINE
    assert peer.end.tls.session is not None
    assert peer.end.tls.session.has_ticket


def first_answer(address: Any, context: ssl.SSLContext) -> float:
    """Seconds that a client with Nagle's algorithm waits for the answer to its first request."""
    with (
        socket.create_connection(address, PATIENCE) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        begun = time.monotonic()
        tls.sendall(LINE)
        assert tls.recv(100) == LINE
        return time.monotonic() - begun


@pytest.mark.gen_test(timeout=30)
async def test_a_first_request_does_not_wait_for_a_delayed_acknowledgement(files: dict[str, str]) -> None:
    """The tickets would have carried it. Its delay is 40 ms."""
    async with Serving(echo, files) as serving:
        waited = [await asyncio.to_thread(first_answer, serving.address, trusting(files)) for _ in range(9)]
    assert statistics.median(waited) < 0.03


# ---- what is inside the engine


class Piecewise:
    """A client whose ciphertext is sent as one likes."""

    def __init__(self, address: Any, context: ssl.SSLContext) -> None:
        self.sock = socket.create_connection(address, PATIENCE)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        while not self._attempt(self._tls.do_handshake)[0]:
            self._incoming.write(self.sock.recv(65536))

    def _attempt(self, call: Callable[[], Any]) -> tuple[bool, Any]:
        try:
            return True, call()
        except ssl.SSLWantReadError:
            return False, None
        finally:
            self.sock.sendall(self._outgoing.read())

    def record(self, data: bytes) -> bytes:
        self._tls.write(data)
        return self._outgoing.read()

    def line(self) -> bytes:
        found = b""
        while not found.endswith(b"\n"):
            done, data = self._attempt(lambda: self._tls.read(65536))
            found += data or b""
            if not done:
                chunk = self.sock.recv(65536)
                if not chunk:
                    return found
                self._incoming.write(chunk)
            elif not data:
                return found
        return found


@pytest.mark.parametrize("size", [1, 5, 20])
@pytest.mark.gen_test(timeout=30)
async def test_a_shutdown_waits_for_a_record_of_which_a_part_came_with_the_one_before(
    files: dict[str, str], size: int
) -> None:
    async with Serving(echo, files, drain_idle=0.1) as serving:
        client = await asyncio.to_thread(Piecewise, serving.address, trusting(files))
        first, second = client.record(LINE), client.record(LINE)
        client.sock.sendall(first + second[:size])
        assert await asyncio.to_thread(client.line) == LINE
        shutdown = asyncio.create_task(serving.server.shutdown(timeout=PATIENCE))
        await asyncio.sleep(0.3)  # longer than drain_idle: it would be closed by then
        client.sock.sendall(second[size:])
        assert await asyncio.to_thread(client.line) == LINE
        await asyncio.to_thread(client.line)
        client.sock.close()
        await shutdown


@pytest.mark.gen_test
async def test_a_read_whose_record_waits_inside_does_not_merely_wait(make_tls_pair: MakeTLSPair) -> None:
    stream, peer = make_tls_pair(read_chunk_size=len(LINE))
    for _ in range(100_000):
        peer.end.tls.write(LINE)
        if peer.end._outgoing.pending > 180_000:  # three receives: a fast core reads all of one in its slice
            break
    peer.end.flush()
    assert await stream.read_until(b"\n") == LINE
    reading = stream.read_until(b"\n")
    while reading.done():  # until it has had enough for one turn
        reading = stream.read_until(b"\n")
    assert not stream.buffered
    assert stream.has_pending_input()
    assert not stream.is_waiting()
    assert await reading == LINE


@pytest.mark.gen_test(timeout=30)
async def test_a_client_whose_next_record_waits_inside_is_not_idle(files: dict[str, str]) -> None:
    done = []

    async def slow(stream: IOStream) -> None:
        await stream.read_until(b"\n")
        await asyncio.sleep(0.6)
        await stream.read_until(b"\n")
        done.append(True)

    async with Serving(slow, files, idle_timeout=0.2, read_chunk_size=1024) as serving:
        client = await asyncio.to_thread(Piecewise, serving.address, trusting(files))
        line = b"x" * 999 + b"\n"
        client.sock.sendall(client.record(line) + client.record(line))
        await eventually(lambda: done or not serving.server.streams)
        client.sock.close()
    assert done


@pytest.mark.parametrize("shut_down", [False, True], ids=["close", "shutdown"])
@pytest.mark.gen_test
async def test_a_peer_whose_bytes_are_unread_gets_a_reset(make_tls_pair: MakeTLSPair, shut_down: bool) -> None:
    """If they were discarded the kernel would send none; and a peer that sends all it can, and so has no window, would
    wait for a minute until it learns of the close."""
    stream, peer = make_tls_pair()
    peer.send(bytes(20_000))
    await eventually(stream.has_pending_input)
    await turns()
    if shut_down:
        stream.socket.shutdown(socket.SHUT_RDWR)
    stream.close()
    errors = {errno.ECONNRESET, errno.EPIPE}  # EPIPE behind EOF
    await eventually(lambda: peer.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in errors)
