"""Private names of Tornado's streams that other projects use."""

import asyncio
import contextlib
import inspect
import re
import socket
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import tornado.iostream

from iostreamsrv import IOStream, PipeIOStream, SSLIOStream, StreamClosedError
from tests.support.peers import Peer, tcp_pair, tls_contexts
from tests.support.servers import Echo, Serving
from tests.support.waiting import fill, turns

LARGE = 3_000_000


@pytest.fixture
def pair(io_loop: Any) -> Iterator[tuple[Any, Peer]]:
    ours, theirs = tcp_pair()
    stream, peer = IOStream(ours), Peer(theirs)
    yield stream, peer
    stream.close()
    peer.close()


def frames(*sizes: int) -> list[bytes]:
    return [bytes([number]) * size for number, size in enumerate(sizes)]


def send_as_distributed_does(stream: Any, message: list[bytes]) -> Any:
    for frame in message:
        stream._write_buffer.append(memoryview(frame))
        stream._total_write_index += len(frame)
    return stream.write(b"")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.gen_test
async def test_frames_that_are_put_in_the_write_buffer_are_sent_by_a_write_of_nothing(
    serving: Serving, tls: bool
) -> None:
    server = serving.started(Echo(ssl_options=tls_contexts()[0] if tls else None, max_buffer_size=2 * LARGE))
    stream: Any = IOStream(socket.create_connection(server.addresses[0]))
    if tls:
        stream = await stream.start_tls(False, tls_contexts()[1], "localhost")
    message = [*frames(8, 100, LARGE, 1), b"\n"]
    total = sum(map(len, message))
    written = send_as_distributed_does(stream, message)
    assert await stream.read_bytes(total) == b"".join(message)
    await written
    assert (len(stream._write_buffer), stream._total_write_index) == (0, total)
    await stream.aclose()


@pytest.mark.gen_test
async def test_frames_are_sent_in_order_behind_a_queue_that_is_full(pair: tuple[Any, Peer]) -> None:
    stream, peer = pair
    queued = fill(stream)
    stream.max_write_buffer_size = 10
    written = send_as_distributed_does(stream, frames(70_000, 5))
    await turns()
    assert not written.done()
    assert (await peer.receive(queued + 70_005))[queued:] == b"".join(frames(70_000, 5))
    await written


@pytest.mark.gen_test
async def test_frames_are_sent_without_the_write_of_nothing_too(pair: tuple[Any, Peer]) -> None:
    stream, peer = pair
    stream._write_buffer.append(b"hello")
    assert await peer.receive(5) == b"hello"


@pytest.mark.gen_test
async def test_frames_that_are_queued_in_a_dispatch_are_sent_in_the_same_turn(pair: tuple[Any, Peer]) -> None:
    stream, peer = pair
    received: list[bytes] = []

    def receive() -> None:
        with contextlib.suppress(BlockingIOError):
            received.append(peer.socket.recv(100))

    async def answer() -> None:
        await stream.read_until(b"\n")
        asyncio.get_running_loop().call_soon(receive)  # for the next turn
        send_as_distributed_does(stream, [b"one", b"two"])

    answering = asyncio.create_task(answer())
    await turns()
    peer.send(b"line\n")
    await answering
    await turns()
    assert received == [b"onetwo"]


@pytest.mark.gen_test
async def test_a_write_of_nothing_sends_what_is_queued_and_not_nothing() -> None:
    sizes: list[int] = []

    class Recording(IOStream):
        def write_to_fd(self, data: Any) -> int | None:
            sizes.append(len(data))
            return super().write_to_fd(data)

    ours, theirs = tcp_pair()
    stream = Recording(ours)
    await send_as_distributed_does(stream, [b"12345678", b"message"])
    assert sizes == [15]
    stream.close()
    theirs.close()


@pytest.mark.gen_test
async def test_a_write_of_nothing_waits_for_the_connection() -> None:
    server = Echo()
    server.listen(0, "127.0.0.1")
    stream: Any = IOStream(socket.socket())
    connecting = stream.connect(server.addresses[0])
    written = send_as_distributed_does(stream, [b"line\n"])
    await connecting
    await written
    assert await stream.read_until(b"\n") == b"line\n"
    stream.close()
    await server.shutdown()


@pytest.mark.gen_test
async def test_a_closed_stream_has_no_write_buffer(pair: tuple[Any, Peer]) -> None:
    stream, _ = pair
    kept: Any = stream._write_buffer
    stream.close()
    assert stream._write_buffer is None
    with pytest.raises(StreamClosedError):
        kept.append(b"late")


@pytest.mark.parametrize("kind, sees_the_change", [(memoryview, True), (bytearray, False), (bytes, False)])
@pytest.mark.gen_test
async def test_only_a_large_view_is_queued_by_reference(
    pair: tuple[Any, Peer], kind: Any, sees_the_change: bool
) -> None:
    stream, peer = pair
    queued = fill(stream)
    data = bytearray(100_000)
    given = data if kind is bytearray else kind(data)
    writing = stream.write(given)
    data[:] = b"x" * len(data)
    assert (await peer.receive(queued + len(data)))[queued:] == (bytes(data) if sees_the_change else bytes(len(data)))
    await writing


@pytest.mark.gen_test
async def test_a_small_view_and_the_rest_of_a_bytearray_may_change(pair: tuple[Any, Peer]) -> None:
    stream, peer = pair
    queued = fill(stream)
    data = bytearray(LARGE)
    stream.write(data)
    small = bytearray(1000)
    stream.write(memoryview(small))
    data[:], small[:] = b"x" * LARGE, b"x" * 1000
    data.clear()
    assert await peer.receive(queued + LARGE + 1000) == bytes(queued + LARGE + 1000)


@pytest.mark.gen_test
async def test_what_was_received_can_be_taken_out_of_the_buffer(pair: tuple[Any, Peer]) -> None:
    stream, peer = pair
    peer.send(b"line\nmore")
    assert await stream.read_until(b"\n") == b"line\n"
    assert stream._read_buffer_size == 4
    assert stream._consume(stream._read_buffer_size) == b"more"
    assert stream._read_buffer_size == 0
    assert stream._consume(0) == b""


# ---- what is not there

OTHERS = {"_write_buffer", "_total_write_index", "_read_buffer_size", "_consume"}
OURS = {"_close_callback", "_connect_future", "_read_future", "_server_hostname"}
"""Names of our own fields that Tornado's streams have, too."""


def private_names_of_tornado() -> set[str]:
    kinds = [tornado.iostream.BaseIOStream, tornado.iostream.IOStream, tornado.iostream.SSLIOStream]
    return {name for kind in kinds for name in re.findall(r"self\.(_[a-z]\w*)", inspect.getsource(kind))}


@pytest.mark.parametrize("name", sorted(private_names_of_tornado() - OTHERS - OURS))
def test_a_private_name_of_tornado_that_is_not_here_says_so(name: str) -> None:
    stream: Any = IOStream.__new__(IOStream)
    assert not hasattr(stream, name)
    with pytest.raises(AttributeError, match=f"'IOStream' has no attribute '{name}'.*Tornado.*report"):
        getattr(stream, name)
    assert not hasattr(PipeIOStream, name)
    assert not hasattr(SSLIOStream, name)


def test_the_names_that_others_use_are_not_taken_from_tornado() -> None:
    for name in OTHERS:
        assert inspect.getattr_static(IOStream, name) is not getattr(tornado.iostream.BaseIOStream, name, None)


# ---- reading into a buffer


@pytest.mark.gen_test
async def test_a_large_read_into_a_buffer_allocates_almost_nothing(pair: tuple[Any, Peer]) -> None:
    stream, peer = pair
    data = bytes(range(256)) * 40_000
    buffer = bytearray(len(data))
    reading = stream.read_into(buffer)
    sending = asyncio.create_task(peer.send_all(data))
    tracemalloc.start()
    try:
        assert await reading == len(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    await sending
    assert buffer == data
    assert peak < 200_000  # the peer's own pieces


@pytest.mark.gen_test
async def test_a_cancelled_read_into_gives_back_what_was_received_into_the_buffer(pair: tuple[Any, Peer]) -> None:
    stream, peer = pair
    reading = stream.read_into(bytearray(1000))
    peer.send(b"hello\n")
    while stream.bytes_read < 6:
        await asyncio.sleep(0)
    reading.cancel()
    assert await stream.read_until(b"\n") == b"hello\n"


# ---- another object in the place of the socket


class Deflated:
    """Decompresses what it receives. It takes more from its socket than it gives, or less, or nothing."""

    def __init__(self, socket: Any, kept: bytes = b"") -> None:
        self._socket = socket
        self._decompress = zlib.decompressobj()
        self._kept = self._decompress.decompress(kept)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def recv_into(self, buffer: Any, size: int = 0) -> int:
        if not self._kept:
            chunk = self._socket.recv(100)
            if not chunk:
                return 0
            self._kept = self._decompress.decompress(chunk)
            if not self._kept:
                raise OSError(11)
        given, self._kept = self._kept[: size or len(buffer)], self._kept[size or len(buffer) :]
        buffer[: len(given)] = given
        return len(given)

    def send(self, data: bytes) -> int:
        return int(self._socket.send(data))


@pytest.mark.parametrize("count", [1, 3, 500, 6_000])  # the last is more than one chunk
@pytest.mark.gen_test
async def test_a_stream_receives_through_an_object_that_decompresses(pair: tuple[Any, Peer], count: int) -> None:
    stream, peer = pair
    lines = b"".join(b"%d, or so\n" % number for number in range(count))
    peer.send(b"compress\n")
    compressed = zlib.compress(lines)
    peer.send(compressed[:20])
    assert await stream.read_until(b"\n") == b"compress\n"
    await asyncio.sleep(0.01)
    assert await stream.read_bytes(0) == b""
    stream.socket = Deflated(stream.socket, stream._consume(stream._read_buffer_size))
    peer.send(compressed[20:])
    for number in range(count):
        assert await stream.read_until(b"\n") == b"%d, or so\n" % number
    await stream.write(b"plain")
    assert await peer.receive(5) == b"plain"
    reading = asyncio.ensure_future(stream.read_bytes(1))
    peer.close()
    with pytest.raises(StreamClosedError):
        await reading
    assert stream.socket is None


@pytest.mark.gen_test
async def test_what_such_an_object_has_already_is_read_without_an_event(pair: tuple[Any, Peer]) -> None:
    stream, peer = pair
    reading = stream.read_until(b"\n")
    peer.send(b"begin\n")
    assert await reading == b"begin\n"
    stream.socket = Deflated(stream.socket, zlib.compress(b"kept\n"))
    assert await stream.read_until(b"\n", timeout=5) == b"kept\n"


@pytest.mark.gen_test
async def test_the_socket_of_tls_and_that_of_a_closed_stream_cannot_be_replaced(serving: Serving) -> None:
    server = serving.started(Echo(ssl_options=tls_contexts()[0]))
    plain = IOStream(socket.create_connection(server.addresses[0]))
    stream = await plain.start_tls(False, tls_contexts()[1], "localhost")
    with pytest.raises(AttributeError, match="under TLS"):
        stream.socket = Deflated(stream.socket)
    stream.close()
    with pytest.raises(StreamClosedError):
        stream.socket = object()
