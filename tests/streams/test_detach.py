"""A connection that is taken out of its stream."""

import asyncio
import errno
import socket
from typing import Any

import pytest

from iostreamsrv import CloseReason, IOStream, StreamClosedError
from iostreamsrv.streams.hub import hub_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.gen_test


class Pair:
    """A stream, and the socket at its other end."""

    def __init__(self, **options: Any) -> None:
        mine, self.peer = socket.socketpair()
        self.stream = IOStream(mine, **options)
        self.peer.setblocking(False)


@pytest.fixture
def pair(io_loop: Any) -> Any:
    pair = Pair()
    yield pair
    pair.stream.close()
    pair.peer.close()


async def test_the_socket_goes_on_where_the_stream_has_stopped(pair: Pair) -> None:
    pair.peer.send(b"first\nsecond\nthi")
    assert await pair.stream.read_until(b"\n") == b"first\n"
    pair.stream.data["name"] = "x"
    await pair.stream.write(b"answer\n")
    number = pair.stream.fileno()
    detached = pair.stream.detach()
    with detached.socket as connection:
        assert connection.fileno() == number
        assert connection.gettimeout() == 0
        assert detached.unread == b"second\nthi"
        assert detached.data == {"name": "x"}
        assert (detached.bytes_read, detached.bytes_written) == (16, 7)
        pair.peer.send(b"rd\n")
        assert connection.recv(100) == b"rd\n"
        connection.send(b"more\n")
        assert pair.peer.recv(100) == b"answer\nmore\n"


async def test_the_stream_is_closed_and_its_pending_read_fails_without_a_byte_lost(pair: Pair) -> None:
    closed = asyncio.Event()
    pair.stream.set_close_callback(closed.set)
    reading = pair.stream.read_bytes(100)
    pair.peer.send(b"half")
    await eventually(lambda: pair.stream.bytes_read == 4)
    detached = pair.stream.detach()
    with detached.socket:
        assert detached.unread == b"half"
        with pytest.raises(StreamClosedError) as raised:
            await reading
        assert raised.value.reason is CloseReason.DETACHED
        assert pair.stream.close_reason is CloseReason.DETACHED
        assert pair.stream.closed()
        await closed.wait()


async def test_a_read_into_a_buffer_gives_back_what_it_took(pair: Pair) -> None:
    space = bytearray(10)
    reading = pair.stream.read_into(space)
    pair.peer.send(b"half")
    await eventually(lambda: pair.stream.bytes_read == 4)
    with (detached := pair.stream.detach()).socket:
        assert detached.unread == b"half"
    with pytest.raises(StreamClosedError):
        await reading


async def test_the_hub_knows_it_no_more(pair: Pair) -> None:
    other = Pair()  # keeps the hub
    detached = pair.stream.detach()
    pair.peer.send(b"for whoever has it\n")
    await asyncio.sleep(0.01)
    with detached.socket as connection:
        assert connection.recv(100) == b"for whoever has it\n"
        again = IOStream(connection)  # the same descriptor
        pair.peer.send(b"line\n")
        assert await again.read_until(b"\n") == b"line\n"
        again.close()
    other.stream.close()
    other.peer.close()
    await eventually(lambda: hub_of(again.io_loop) is not None)


async def test_corked_output_is_sent_first(pair: Pair) -> None:
    detached = []

    async def answer_both() -> None:
        await pair.stream.read_until(b"\n")
        await pair.stream.write(b"one\n")  # corked: a second request is there
        detached.append(pair.stream.detach())

    pair.peer.send(b"a\nb\n")
    await answer_both()
    with detached[0].socket:
        assert pair.peer.recv(100) == b"one\n"
        assert detached[0].unread == b"b\n"


async def test_queued_output_is_refused_and_nothing_changes(pair: Pair) -> None:
    writing = pair.stream.write(bytes(1 << 22))
    with pytest.raises(RuntimeError, match="drain"):
        pair.stream.detach()
    assert not pair.stream.closed()
    received = 0
    while received < 1 << 22:
        try:
            received += len(pair.peer.recv(1 << 20))
        except BlockingIOError:
            await asyncio.sleep(0)
    await writing
    pair.stream.detach().socket.close()


async def test_a_closed_stream_is_refused(pair: Pair) -> None:
    pair.stream.close()
    with pytest.raises(StreamClosedError):
        pair.stream.detach()


async def test_a_stream_whose_eof_was_sent_is_refused(pair: Pair) -> None:
    pair.stream.send_eof()
    with pytest.raises(RuntimeError):
        pair.stream.detach()


async def test_a_stream_with_a_wrapped_socket_is_refused(pair: Pair) -> None:
    class Wrapped:
        def __init__(self, inner: socket.socket) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    pair.stream.socket = Wrapped(pair.stream.socket)
    with pytest.raises(ValueError, match="a socket of one's own"):
        pair.stream.detach()


async def test_a_broken_connection_is_noticed_by_who_has_it(pair: Pair) -> None:
    detached = pair.stream.detach()
    pair.peer.close()
    with detached.socket as connection:
        assert connection.recv(1) == b""
        with pytest.raises(OSError) as raised:
            for _ in range(3):
                connection.send(b"x")
        assert raised.value.errno in (errno.EPIPE, errno.ECONNRESET)
