"""`IOStream`, `PipeIOStream` and `BaseIOStream`: what they are, connecting, and what subclasses override."""

import asyncio
import errno
import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tornado.iostream

from iostreamsrv import BaseIOStream, IOLoop, IOStream, OptionError, PipeIOStream, StreamClosedError
from tests.support.engines import on_every_stream
from tests.support.peers import MakePair, Peer, tcp_pair
from tests.support.waiting import PATIENCE, eventually, fill, turns

pytestmark = on_every_stream


# ---- what a stream says of itself


@pytest.mark.gen_test
async def test_streams_are_tornados_without_their_fields(stream: IOStream) -> None:
    assert isinstance(stream, tornado.iostream.IOStream)
    assert isinstance(stream, tornado.iostream.BaseIOStream)
    assert issubclass(PipeIOStream, tornado.iostream.PipeIOStream)
    assert not hasattr(stream, "_read_buffer")
    assert not hasattr(stream, "_state")


@pytest.mark.gen_test
async def test_a_new_stream_has_tornados_defaults(stream: IOStream) -> None:
    assert stream.max_buffer_size == 100 * 1024 * 1024
    assert stream.read_chunk_size == 65536
    assert stream.max_write_buffer_size is None
    assert stream.io_loop is IOLoop.current()
    assert stream.error is None
    assert not (stream.reading() or stream.writing() or stream.closed())
    assert stream.fileno() == stream.socket.fileno()
    assert stream.socket.getblocking() is False


@pytest.mark.gen_test
async def test_sizes_are_taken_as_given(make_pair: MakePair) -> None:
    stream, _ = make_pair(max_buffer_size=1000.9, read_chunk_size=600, max_write_buffer_size=math.inf)
    assert stream.max_buffer_size == 1000
    assert stream.read_chunk_size == 500  # never over half of max_buffer_size
    assert stream.max_write_buffer_size is not None
    assert stream.max_write_buffer_size > 1 << 60


@pytest.mark.parametrize("value", [0, -1, 0.5, math.nan, True, "1", b"1"])
@pytest.mark.parametrize("name", ["max_buffer_size", "read_chunk_size", "max_write_buffer_size"])
@pytest.mark.gen_test
async def test_a_bad_size_is_named_with_its_value(name: str, value: Any) -> None:
    with socket.socket() as sock, pytest.raises(OptionError, match=f"{name}={value!r}") as caught:
        IOStream(sock, **{name: value})
    assert caught.value.option == name
    assert caught.value.value is value


@pytest.mark.gen_test
async def test_each_stream_has_an_id_of_its_own(make_pair: MakePair) -> None:
    ids = [make_pair()[0].id for _ in range(5)]
    assert len(set(ids)) == 5


@pytest.mark.gen_test
async def test_opened_at_is_when_the_stream_was_made(make_pair: MakePair) -> None:
    before = time.time()
    stream, _ = make_pair()
    assert before <= stream.opened_at <= time.time()


@pytest.mark.gen_test
async def test_idle_time_counts_from_the_last_bytes(stream: IOStream, peer: Peer) -> None:
    before = time.monotonic()
    future = stream.read_bytes(3)
    await eventually(lambda: stream.idle_time >= 0.01)
    sent = time.monotonic()
    peer.send(b"abc")
    await future
    assert stream.idle_time <= time.monotonic() - sent
    idle = stream.idle_time
    await stream.write(b"abc")
    assert idle <= stream.idle_time <= time.monotonic() - before, "writing is not hearing from the peer"


@pytest.mark.gen_test
async def test_bytes_are_counted(stream: IOStream, peer: Peer) -> None:
    peer.send(b"abcdef")
    await stream.read_bytes(2)
    assert stream.bytes_read == 6
    assert stream.buffered == 4
    await stream.write(b"abc")
    assert stream.bytes_written == 3
    written = fill(stream)
    assert 3 < stream.bytes_written < 3 + written
    stream.close()
    assert stream.buffered == 4


@pytest.mark.gen_test
async def test_data_is_a_dict_of_the_streams_own(make_pair: MakePair) -> None:
    (one, _), (other, _) = make_pair(), make_pair()
    one.data["user"] = "x"
    assert one.data == {"user": "x"}
    assert other.data == {}
    one.close()
    assert one.data == {"user": "x"}


@pytest.mark.gen_test
async def test_addresses_are_those_of_the_socket(stream: IOStream, peer: Peer) -> None:
    assert stream.local_address == peer.socket.getpeername()
    assert stream.remote_address == peer.socket.getsockname()
    address = stream.remote_address
    stream.close()
    assert stream.local_address is None
    assert stream.remote_address == address


@pytest.mark.gen_test
async def test_an_unconnected_stream_has_no_remote_address() -> None:
    stream = IOStream(socket.socket())
    assert stream.remote_address is None
    stream.close()
    assert stream.remote_address is None


@pytest.mark.gen_test
async def test_repr_tells_the_state_and_the_peer(stream: IOStream) -> None:
    name, peer = type(stream).__name__, ""
    if stream.remote_address:
        peer = ", {}:{}".format(*stream.remote_address)
    assert repr(stream) == f"<{name} {stream.id} open{peer}>"
    stream.close()
    assert repr(stream) == f"<{name} {stream.id} closed, local{peer}>"


@pytest.mark.gen_test
async def test_repr_of_a_stream_without_a_connection() -> None:
    stream = IOStream(socket.socket())
    assert repr(stream) == f"<IOStream {stream.id} open>"
    stream.close()


@pytest.mark.gen_test
async def test_set_nodelay_sets_it(make_pair: MakePair) -> None:
    stream, _ = make_pair(tcp_pair())
    for value in (True, False):
        stream.set_nodelay(value)
        assert bool(stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is value
    stream.close()
    stream.set_nodelay(True)


@pytest.mark.gen_test
async def test_set_nodelay_of_a_unix_socket_does_nothing(make_pair: MakePair) -> None:
    stream, peer = make_pair(socket.socketpair())
    stream.set_nodelay(True)
    await stream.write(b"x")
    assert await peer.receive(1) == b"x"


# ---- connecting


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.mark.gen_test
async def test_connect_gives_the_stream(listener: socket.socket) -> None:
    stream = IOStream(socket.socket())
    assert await stream.connect(listener.getsockname()) is stream
    connection, address = listener.accept()
    assert stream.remote_address == listener.getsockname()
    assert stream.local_address == address
    connection.send(b"abc")
    assert await stream.read_bytes(3) == b"abc"
    stream.close()
    connection.close()


@pytest.mark.gen_test
async def test_a_refused_connection_says_so() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        stream = IOStream(socket.socket())
        future = stream.connect(unused.getsockname())
        with pytest.raises(StreamClosedError) as caught:
            await future
    assert caught.value.operation == "connect"
    assert caught.value.reason == "reset"
    assert isinstance(caught.value.real_error, ConnectionRefusedError)
    assert isinstance(stream.error, ConnectionRefusedError)
    assert stream.closed()


@pytest.mark.gen_test
async def test_a_connection_to_itself_is_a_refused_one() -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))  # TCP lets one connect from a port to the same port, with nobody listening
    stream = IOStream(sock)
    with pytest.raises(StreamClosedError) as caught:
        await stream.connect(sock.getsockname())
    assert isinstance(caught.value.real_error, ConnectionRefusedError)
    assert stream.closed()


@pytest.mark.gen_test
async def test_what_waits_for_a_refused_connection_fails_with_it() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        stream = IOStream(socket.socket())
        connecting = stream.connect(unused.getsockname())
        futures = [connecting, stream.write(b"abc"), stream.read_bytes(1)]
        for future in futures:
            with pytest.raises(StreamClosedError):
                await future


@pytest.mark.gen_test
async def test_close_while_connecting_fails_the_connection(listener: socket.socket) -> None:
    stream = IOStream(socket.socket())
    future = stream.connect(listener.getsockname())
    stream.close()
    with pytest.raises(StreamClosedError) as caught:
        await future
    assert caught.value.operation == "connect"


@pytest.mark.gen_test
async def test_aclose_while_connecting_delivers_what_was_written(listener: socket.socket) -> None:
    stream = IOStream(socket.socket())
    stream.connect(listener.getsockname())
    stream.write(b"abc")
    closing = asyncio.create_task(stream.aclose())
    connection, _ = listener.accept()
    peer = Peer(connection)
    assert await peer.receive_all() == b"abc"
    peer.close()
    await closing


@pytest.mark.gen_test
async def test_a_cancelled_connect_leaves_a_stream_that_can_be_closed(listener: socket.socket) -> None:
    stream = IOStream(socket.socket())
    stream.connect(listener.getsockname()).cancel()
    await turns()
    stream.close()


@pytest.mark.gen_test
async def test_unix_sockets_connect_too(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        stream = IOStream(socket.socket(socket.AF_UNIX))
        await stream.connect(path)
        connection, _ = listener.accept()
        assert stream.remote_address == path
        stream.close()
        connection.close()


@pytest.mark.gen_test
async def test_a_unix_socket_that_is_not_there_says_so(tmp_path: Path) -> None:
    stream = IOStream(socket.socket(socket.AF_UNIX))
    with pytest.raises(StreamClosedError) as caught:
        await stream.connect(str(tmp_path / "none"))
    assert isinstance(caught.value.real_error, FileNotFoundError)
    assert stream.closed()


# ---- what subclasses override


class Upside(BaseIOStream):
    """A stream of its own kind: bytes are inverted on their way, over a socket pair."""

    def __init__(self, sock: socket.socket, **options: Any) -> None:
        self.sock = sock
        self.closings = 0
        sock.setblocking(False)
        super().__init__(**options)

    def fileno(self) -> int:
        return self.sock.fileno()

    def close_fd(self) -> None:
        self.closings += 1
        self.sock.close()

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        try:
            count = self.sock.recv_into(buf)
        except BlockingIOError:
            return None
        buf[:count] = inverted(bytes(buf[:count]))
        return count

    def write_to_fd(self, data: bytes | memoryview) -> int | None:  # type: ignore[override]
        try:
            return self.sock.send(inverted(bytes(data)))
        except BlockingIOError:
            return None


def inverted(data: bytes) -> bytes:
    return data.translate(bytes(reversed(range(256))))


@pytest.mark.gen_test
async def test_a_stream_of_another_kind_needs_four_methods() -> None:
    ours, theirs = socket.socketpair()
    stream, peer = Upside(ours), Peer(theirs)
    future = stream.read_until(b"\n")
    peer.send(inverted(b"abc\ndef\n"))
    assert await future == b"abc\n"
    assert await stream.read_until(b"\n") == b"def\n"
    data = bytes(1_000_000)
    written = stream.write(data)
    assert stream.writing()
    assert await peer.receive(1_000_000) == inverted(data)
    await written
    with pytest.raises(OSError, match="no half-close"):
        stream.send_eof()
    await stream.aclose()
    stream.close()
    assert stream.closings == 1
    assert stream.fileno() == -1
    assert stream.get_fd_error() is None
    peer.close()


@pytest.mark.gen_test
async def test_a_stream_of_another_kind_notices_the_end() -> None:
    ours, theirs = socket.socketpair()
    stream, peer = Upside(ours), Peer(theirs)
    future = stream.read_until_close()
    peer.send(inverted(b"abc"))
    peer.close()
    assert await future == b"abc"
    assert stream.close_reason == "eof"


@pytest.mark.parametrize("name", ["fileno", "close_fd", "read_from_fd", "write_to_fd"])
def test_the_base_leaves_the_descriptor_to_subclasses(name: str) -> None:
    arguments = [BaseIOStream.__new__(BaseIOStream), b""][
        : 2 if name.endswith("from_fd") or name == "write_to_fd" else 1
    ]
    with pytest.raises(NotImplementedError):
        getattr(BaseIOStream, name)(*arguments)


@pytest.mark.parametrize("where", ["subclass", "instance"])
@pytest.mark.gen_test
async def test_read_from_fd_may_be_overridden(make_pair: MakePair, where: str) -> None:
    def shouting(self: IOStream, buf: bytearray | memoryview) -> int | None:
        try:
            count = self.socket.recv_into(buf)
        except BlockingIOError:
            return None
        buf[:count] = bytes(buf[:count]).upper()
        return count

    ours, theirs = socket.socketpair()
    if where == "subclass":
        stream: IOStream = type("Shouting", (IOStream,), {"read_from_fd": shouting})(ours)
    else:
        stream = IOStream(ours)
        stream.read_from_fd = shouting.__get__(stream)  # type: ignore[method-assign]
    peer = Peer(theirs)
    future = stream.read_until(b"\n")
    peer.send(b"abc\ndef\n")
    assert await future == b"ABC\n"
    assert await stream.read_until(b"\n") == b"DEF\n"
    stream.close()
    peer.close()


@pytest.mark.gen_test
async def test_an_override_on_the_instance_counts_from_the_next_dispatch(stream: IOStream, peer: Peer) -> None:
    future = stream.read_until(b"\n")

    def failing(buf: bytearray | memoryview) -> int | None:
        raise ConnectionResetError(errno.ECONNRESET, "made up")

    stream.read_from_fd = failing  # type: ignore[method-assign]
    peer.send(b"abc\n")
    with pytest.raises(StreamClosedError, match="made up") as caught:
        await future
    assert caught.value.reason == "reset"


@pytest.mark.gen_test
async def test_an_error_of_read_from_fd_closes_the_stream_with_it(
    stream: IOStream, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(buf: bytearray | memoryview) -> int | None:
        raise OSError(errno.EIO, "made up")

    future = stream.read_until(b"\n")
    stream.read_from_fd = failing  # type: ignore[method-assign]
    peer.send(b"abc\n")
    with pytest.raises(StreamClosedError) as caught:
        await future
    assert isinstance(caught.value.real_error, OSError)
    assert caught.value.real_error.errno == errno.EIO
    assert stream.error is caught.value.real_error
    assert "error on read" in caplog.text


@pytest.mark.gen_test
async def test_write_to_fd_may_send_as_little_as_it_likes(stream: IOStream, peer: Peer) -> None:
    send = stream.write_to_fd

    def stingy(data: bytes | memoryview) -> int | None:
        return send(bytes(data[:3]))

    stream.write_to_fd = stingy  # type: ignore[method-assign, assignment]
    await stream.write(b"abcdefgh")
    assert await peer.receive(8) == b"abcdefgh"


@pytest.mark.gen_test
async def test_close_fd_may_be_overridden() -> None:
    closed: list[int] = []

    class Counting(IOStream):
        def close_fd(self) -> None:
            closed.append(self.fileno())
            super().close_fd()

    ours, theirs = socket.socketpair()
    number = ours.fileno()
    stream = Counting(ours)
    stream.close()
    stream.close()
    theirs.close()
    assert closed == [number]


@pytest.mark.gen_test
async def test_get_fd_error_decides_whether_a_connection_was_made(listener: socket.socket) -> None:
    class Doubtful(IOStream):
        def get_fd_error(self) -> Exception | None:
            return OSError(errno.EHOSTUNREACH, "made up")

    stream = Doubtful(socket.socket())
    with pytest.raises(StreamClosedError, match="made up") as caught:
        await stream.connect(listener.getsockname())
    assert caught.value.reason == "reset"


# ---- pipes


@pytest.fixture
def pipe(io_loop: IOLoop) -> Iterator[tuple[PipeIOStream, PipeIOStream]]:
    reading, writing = os.pipe()
    streams = PipeIOStream(reading), PipeIOStream(writing)
    yield streams
    for stream in streams:
        stream.close()


Pipe = tuple[PipeIOStream, PipeIOStream]


@pytest.mark.gen_test
async def test_a_pipe_carries_bytes_one_way(pipe: Pipe) -> None:
    reader, writer = pipe
    future = reader.read_until(b"\n")
    await writer.write(b"abc\ndef\n")
    assert await future == b"abc\n"
    assert await reader.read_until(b"\n") == b"def\n"


@pytest.mark.gen_test
async def test_a_pipe_carries_more_than_it_holds(pipe: Pipe) -> None:
    reader, writer = pipe
    future = writer.write(bytes(1_000_000))
    assert writer.writing()
    assert len(await reader.read_bytes(1_000_000)) == 1_000_000
    await future


@pytest.mark.gen_test
async def test_aclose_of_a_pipe_delivers_what_is_queued(pipe: Pipe) -> None:
    reader, writer = pipe
    writer.write(bytes(1_000_000))
    closing = asyncio.create_task(writer.aclose())
    assert len(await reader.read_until_close()) == 1_000_000
    await closing
    assert reader.close_reason == "eof"


@pytest.mark.gen_test
async def test_a_pipe_without_a_reader_fails_writes(pipe: Pipe) -> None:
    reader, writer = pipe
    reader.close()
    with pytest.raises(StreamClosedError) as caught:
        await writer.write(b"abc")
    assert caught.value.reason == "reset"
    assert isinstance(caught.value.real_error, BrokenPipeError)


@pytest.mark.gen_test
async def test_a_waiting_writer_notices_that_the_reader_went(pipe: Pipe) -> None:
    reader, writer = pipe
    future = writer.write(bytes(1_000_000))
    reader.close()
    with pytest.raises(StreamClosedError):
        await asyncio.wait_for(future, PATIENCE)


@pytest.mark.gen_test
async def test_a_closed_pipe_has_no_descriptor(pipe: Pipe) -> None:
    reader, _ = pipe
    assert reader.fileno() == reader.fd
    reader.close()
    assert reader.fileno() == -1


# ---- what this release has not
