"""Promises that Tornado's tests make about its private parts, kept by ours: they would pass whatever our streams did.

A write's data is the caller's again as soon as ``write`` returns, a read's buffer as soon as the read is over, what is
written in any mixture arrives in order, an error, or a ``stop``, at an awkward moment harms nobody else, and of a
client's attempts to connect one is left, or none.
"""

import asyncio
import functools
import random
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from iostreamsrv import (
    IOLoop,
    IOStream,
    StreamBufferFullError,
    StreamClosedError,
    StreamTimeoutError,
    TCPClient,
    TCPServer,
    UnsatisfiableReadError,
    tcpclient,
)
from iostreamsrv.sansio.buffers import SMALL_WRITE, WriteBuffer
from tests.support.tiers import EVERY_CASE
from tests.support.waiting import eventually, turns

TEN_MEGABYTES = 10 << 20
"""More than the kernel holds for a socket that nobody reads from."""

KINDS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "view of bytes": memoryview,
    "view of bytearray": lambda data: memoryview(bytearray(data)),
}

CHANGEABLE: dict[str, Callable[[bytearray], Any]] = {
    "bytearray": lambda data: data,
    "memoryview": memoryview,
}

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
every_changeable_kind = pytest.mark.parametrize("kind", CHANGEABLE.values(), ids=CHANGEABLE)


def random_bytes(generator: random.Random, size: int) -> bytes:
    """Differing at every place where a mistake by an offset would show."""
    return generator.randbytes(size)


def overwrite_and_resize(data: bytearray) -> None:
    """What a caller may do with bytes that are its own again. A view that was kept makes it a BufferError."""
    data[:] = bytes(len(data))
    del data[:]


def drained(buffer: WriteBuffer) -> bytes:
    """All that ``buffer`` holds, piece by piece, until it is empty."""
    content = b""
    while buffer.size:
        with buffer.peek() as piece:
            content += piece
            count = len(piece)
        buffer.advance(count)
    return content


# ---- the write buffer


@every_kind
def test_appends_and_advances_in_any_order_keep_every_byte_in_place(kind: Callable[[bytes], Any]) -> None:
    generator = random.Random(42)
    sizes = [1, 2, 3, 50, 1000, SMALL_WRITE - 1, SMALL_WRITE, SMALL_WRITE + 1, 3 * SMALL_WRITE]
    buffer = WriteBuffer()
    expected = b""
    for _ in range(1000 if EVERY_CASE else 100):
        if expected and generator.random() < 0.5:
            with buffer.peek() as piece:
                assert piece
                assert expected.startswith(piece)
                count = generator.randint(1, len(piece))
            buffer.advance(count)
            expected = expected[count:]
        else:
            data = random_bytes(generator, generator.choice(sizes))
            buffer.append(kind(data))
            expected += data
        assert buffer.size == len(expected)
    assert drained(buffer) == expected


@pytest.mark.parametrize(
    "kind, size",
    [
        *((bytearray, size) for size in (10, SMALL_WRITE - 1, SMALL_WRITE, 3 * SMALL_WRITE)),
        *((memoryview, size) for size in (10, SMALL_WRITE - 1)),
    ],
)
def test_what_was_appended_is_the_callers_again(size: int, kind: Any) -> None:
    buffer = WriteBuffer()
    for before in (0, 10, SMALL_WRITE):  # behind nothing, behind what it is joined to, behind what it is not
        data = bytearray(b"x" * size)
        appended = data if kind is bytearray else memoryview(data)
        buffer.append(b"-" * before)
        buffer.append(appended)
        if appended is not data:
            appended.release()
        overwrite_and_resize(data)
        assert drained(buffer) == b"-" * before + b"x" * size


def test_what_a_large_view_shows_is_the_callers_again_when_it_is_sent() -> None:
    buffer = WriteBuffer()
    data = bytearray(b"x" * SMALL_WRITE)
    with memoryview(data) as view:
        buffer.append(view)
    with pytest.raises(BufferError):
        overwrite_and_resize(data)
    drained(buffer)
    overwrite_and_resize(data)


def test_many_small_appends_leave_in_one_piece() -> None:
    buffer = WriteBuffer()
    for _ in range(1000):
        buffer.append(b"abc")
    with buffer.peek() as piece:
        assert piece == b"abc" * 1000


def test_large_bytes_are_not_copied() -> None:
    buffer = WriteBuffer()
    data = bytes(SMALL_WRITE)
    buffer.append(data)
    with buffer.peek() as piece:
        assert piece.obj is data


@pytest.mark.parametrize("advanced", [0, 3, SMALL_WRITE + 7])
def test_a_truncated_buffer_keeps_its_beginning_and_can_be_used_again(advanced: int) -> None:
    generator = random.Random(advanced)
    pieces = [random_bytes(generator, size) for size in (10, SMALL_WRITE, 1, 2 * SMALL_WRITE, 20)]
    content = b"".join(pieces)[advanced:]
    boundaries = [sum(map(len, pieces[:number])) - advanced for number in range(len(pieces) + 1)]
    counts = {boundary + step for boundary in boundaries for step in (-1, 0, 1)}
    for count in sorted(count for count in counts if 0 <= count <= len(content)):
        buffer = WriteBuffer()
        for piece in pieces:
            buffer.append(piece)
        left = advanced
        while left:
            with buffer.peek() as first:
                step = min(left, len(first))
            buffer.advance(step)
            left -= step
        buffer.truncate(count)
        assert buffer.size == count
        buffer.append(b"more")
        assert drained(buffer) == content[:count] + b"more"


# ---- writing


@pytest.fixture
def ends(io_loop: IOLoop) -> Iterator[tuple[IOStream, IOStream]]:
    """A stream that reads, and one that writes to it."""
    reader, writer = map(IOStream, socket.socketpair())
    yield reader, writer
    reader.abort()
    writer.abort()


Ends = tuple[IOStream, IOStream]


@every_changeable_kind
@pytest.mark.parametrize("size", [100, SMALL_WRITE + 1, TEN_MEGABYTES])
@pytest.mark.gen_test
async def test_what_was_written_is_the_callers_again(ends: Ends, size: int, kind: Callable[[bytearray], Any]) -> None:
    reader, writer = ends
    data = bytearray(b"x" * size)
    written = kind(data)
    done = writer.write(written)
    reading = reader.read_bytes(size)
    if written is not data:
        written.release()
        if size > SMALL_WRITE:
            await done  # a large view is queued by reference
    overwrite_and_resize(data)
    assert await reading == b"x" * size
    await done


@pytest.mark.gen_test
async def test_what_was_written_before_connecting_is_the_callers_again(io_loop: IOLoop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = IOStream(socket.socket())
        connected = stream.connect(listener.getsockname())
        data = bytearray(b"x" * 10_000)
        written = stream.write(data)
        assert not written.done()
        overwrite_and_resize(data)
        await connected
        await written
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(10_000, socket.MSG_WAITALL) == b"x" * 10_000
        stream.close()


@pytest.mark.gen_test
async def test_a_stream_closed_while_it_connects_keeps_no_view_of_what_was_written(io_loop: IOLoop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = IOStream(socket.socket())
        connected = stream.connect(listener.getsockname())
        data = bytearray(b"x" * 10_000)
        written = stream.write(data)
        stream.close()
        for future in (connected, written):
            with pytest.raises(StreamClosedError):
                await future
        overwrite_and_resize(data)


@pytest.mark.parametrize("end", [IOStream.close, IOStream.abort])
@pytest.mark.gen_test
async def test_a_stream_closed_while_it_writes_keeps_no_view_of_what_was_written(
    ends: Ends, end: Callable[[IOStream], None]
) -> None:
    _, writer = ends
    data = bytearray(b"x" * TEN_MEGABYTES)
    written = writer.write(data)
    assert writer.writing()
    end(writer)
    with pytest.raises(StreamClosedError):
        await written
    assert not writer.writing()
    overwrite_and_resize(data)


@pytest.mark.gen_test
async def test_a_stream_whose_peer_goes_while_it_writes_keeps_no_view_of_what_was_written(ends: Ends) -> None:
    reader, writer = ends
    data = bytearray(b"x" * TEN_MEGABYTES)
    written = writer.write(data)
    reader.close()
    with pytest.raises(StreamClosedError):
        await written
    assert writer.closed()
    overwrite_and_resize(data)


@pytest.mark.gen_test
async def test_a_write_to_a_peer_that_is_gone_keeps_no_view_of_what_was_written(ends: Ends) -> None:
    reader, writer = ends
    reader.close()
    data = bytearray(b"x" * TEN_MEGABYTES)
    with pytest.raises(StreamClosedError):
        await writer.write(data)
    assert writer.closed()
    overwrite_and_resize(data)


@pytest.mark.gen_test
async def test_a_view_of_larger_items_is_sent_by_bytes_over_any_number_of_sends(ends: Ends) -> None:
    reader, writer = ends
    data = random_bytes(random.Random(42), TEN_MEGABYTES)
    written = writer.write(memoryview(data).cast("L"))
    assert await reader.read_bytes(len(data)) == data
    await written


@pytest.mark.gen_test
async def test_a_view_of_every_other_byte_is_sent_as_what_it_shows(ends: Ends) -> None:
    reader, writer = ends
    await writer.write(memoryview(b"a-b-c-")[::2])
    assert await reader.read_bytes(3) == b"abc"


@pytest.mark.gen_test
async def test_writes_and_reads_in_any_mixture_deliver_every_byte_in_order(ends: Ends) -> None:
    reader, writer = ends
    generator = random.Random(42)
    kinds = list(KINDS.values())
    expected = b""
    sent = received = 0
    written: deque[asyncio.Future[None]] = deque()
    for _ in range(600):
        if generator.random() < 0.5:
            data = random_bytes(generator, generator.choice([1, 10, 1000, SMALL_WRITE, 4 * SMALL_WRITE]))
            written.append(writer.write(generator.choice(kinds)(data)))
            expected += data
            sent += len(data)
        elif received < sent:
            count = generator.randint(1, min(sent - received, 2 * SMALL_WRITE))
            how = generator.choice(["bytes", "partial", "into"])
            if how == "into":
                target = bytearray(count)
                assert await reader.read_into(target) == count
                got = bytes(target)
            else:
                got = await reader.read_bytes(count, partial=how == "partial")
            assert got == expected[: len(got)]
            expected = expected[len(got) :]
            received += len(got)
    assert await reader.read_bytes(sent - received) == expected
    for future in written:
        await future
    assert writer.bytes_written == reader.bytes_read == sent


@pytest.mark.gen_test
async def test_writes_are_done_in_order_and_each_only_once_its_bytes_have_left(ends: Ends) -> None:
    reader, writer = ends
    finished: list[int] = []

    def note(number: int, _: object) -> None:
        finished.append(number)

    written = [writer.write(bytes([number]) * TEN_MEGABYTES) for number in range(3)]
    for number, future in enumerate(written):
        future.add_done_callback(functools.partial(note, number))
    for number in range(3):
        assert not written[number].done()
        assert await reader.read_bytes(TEN_MEGABYTES) == bytes([number]) * TEN_MEGABYTES
        await written[number]
    assert finished == [0, 1, 2]


@pytest.mark.gen_test
async def test_pipelined_replies_made_in_one_reused_buffer_arrive_as_they_were(ends: Ends) -> None:
    client, stream = ends

    async def serve() -> None:
        reply = bytearray()
        for _ in range(100):
            reply[:] = b"re: " + await stream.read_until(b"\n")
            stream.write(reply)

    serving = asyncio.ensure_future(serve())
    requests = [b"request %d\n" % number for number in range(100)]
    await client.write(b"".join(requests))
    for request in requests:
        assert await client.read_until(b"\n") == b"re: " + request
    await serving


# ---- reading into a buffer of the caller's


async def complete(reader: IOStream, writer: IOStream, read: "asyncio.Future[int]") -> None:
    writer.write(b"rest")
    assert await read == 6


async def cancel(reader: IOStream, writer: IOStream, read: "asyncio.Future[int]") -> None:
    read.cancel()
    assert await reader.read_bytes(2) == b"in"


async def close(reader: IOStream, writer: IOStream, read: "asyncio.Future[int]") -> None:
    reader.close()
    with pytest.raises(StreamClosedError):
        await read


async def abort(reader: IOStream, writer: IOStream, read: "asyncio.Future[int]") -> None:
    reader.abort()
    with pytest.raises(StreamClosedError):
        await read


async def peer_closes(reader: IOStream, writer: IOStream, read: "asyncio.Future[int]") -> None:
    writer.close()
    with pytest.raises(StreamClosedError):
        await read
    assert await reader.read_bytes(2) == b"in"


@pytest.mark.parametrize("buffered", [False, True], ids=["as they come", "from what was buffered"])
@pytest.mark.parametrize("end", [complete, cancel, close, abort, peer_closes])
@pytest.mark.gen_test
async def test_a_buffer_that_was_read_into_is_the_callers_again(ends: Ends, end: Any, buffered: bool) -> None:
    reader, writer = ends
    await writer.write(b"begin")
    assert await reader.read_bytes(3) == b"beg"
    target = bytearray(6)
    if buffered:
        read = reader.read_into(target)
    else:
        assert await reader.read_bytes(2) == b"in"
        read = reader.read_into(target)
        writer.write(b"in")
    while target != b"in\0\0\0\0":
        await asyncio.sleep(0)
    assert reader.reading()
    await end(reader, writer, read)
    overwrite_and_resize(target)


@pytest.mark.gen_test
async def test_a_buffer_whose_read_timed_out_is_the_callers_again_and_its_bytes_are_still_to_be_read(
    ends: Ends,
) -> None:
    reader, writer = ends
    await writer.write(b"in")
    target = bytearray(6)
    with pytest.raises(StreamTimeoutError):
        await reader.read_into(target, timeout=0.01)
    overwrite_and_resize(target)
    assert await reader.read_bytes(2) == b"in"


# ---- errors


@pytest.mark.gen_test
async def test_an_error_at_the_first_attempt_of_read_until_close_is_raised_at_the_call(ends: Ends) -> None:
    reader, _ = ends

    def read_from_fd(buf: bytearray | memoryview) -> int | None:
        raise OSError("boom")

    cast(Any, reader).read_from_fd = read_from_fd
    with pytest.raises(OSError, match="boom"):
        reader.read_until_close()
    assert reader.closed()
    assert str(reader.error) == "boom"


@pytest.mark.parametrize("error", [StreamBufferFullError, StreamClosedError, UnsatisfiableReadError])
def test_an_error_of_ours_is_made_as_that_of_tornado_is(error: Any) -> None:
    assert isinstance(error(), error.__mro__[1])
    if error is not StreamClosedError:
        assert str(error("too much")) == "too much"


# ---- stopping


@pytest.mark.gen_test
async def test_a_server_stopped_by_a_handler_while_clients_queue_ends_without_an_error(io_loop: IOLoop) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    stopped = asyncio.Event()

    class Server(TCPServer):
        async def handle_stream(self, _stream: IOStream, _address: Any) -> None:
            self.stop()
            stopped.set()

    server = Server()
    server.listen(0, "127.0.0.1")
    (address,) = server.addresses
    clients = [IOStream(socket.create_connection(address)) for _ in range(40)]
    await stopped.wait()
    for client in clients:  # one was served, the others reset, or the other way round: all of them end
        assert await client.read_until_close() == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    assert server.addresses == []
    assert not complaints


# ---- a client's attempts to connect


class Attempts(TCPClient):
    """A client of a host with the addresses "a" to "d", of two families, whose attempts end when a test says so.

    :ivar streams: of the attempts that were made, by the address, in order.
    :ivar unmakeable: addresses for which there cannot even be an attempt.
    :ivar connecting: the whole of it.
    """

    def __init__(self, addresses: str = "abcd", unmakeable: str = "", timeout: float | None = None) -> None:
        super().__init__()
        self.addresses = addresses
        self.unmakeable = unmakeable
        self.streams: dict[str, IOStream] = {}
        self.connected: dict[str, asyncio.Future[IOStream]] = {}
        self.resolver = cast(Any, self)
        self.connecting = asyncio.ensure_future(self.connect("example.test", 80, timeout=timeout))

    async def resolve(self, *_: Any) -> list[tuple[int, Any]]:
        return [(socket.AF_INET if name in ("a", "b") else socket.AF_INET6, name) for name in self.addresses]

    def _create_stream(self, size: Any, af: Any, addr: Any, **source: Any) -> Any:
        if addr in self.unmakeable:
            raise OSError(f"no {addr}")
        self.streams[addr] = IOStream(socket.socket())
        self.connected[addr] = asyncio.get_running_loop().create_future()
        return self.streams[addr], self.connected[addr]

    async def begun(self, names: str) -> None:
        """Wait until the attempts are these, and see that in the next turns they stay these."""
        await eventually(lambda: len(self.streams) >= len(names))
        await turns()
        assert "".join(self.streams) == names

    def succeed(self, name: str) -> None:
        self.connected[name].set_result(self.streams[name])

    def fail(self, name: str) -> None:
        self.connected[name].set_exception(OSError(f"not {name}"))

    def open(self) -> str:
        return "".join(name for name, stream in self.streams.items() if not stream.closed())

    async def connected_to(self, name: str) -> None:
        """See that this was the outcome, and that nothing else is left."""
        assert await self.connecting is self.streams[name]
        assert self.open() == name
        self.streams[name].close()

    async def failed(self, *reasons: str) -> None:
        """See that this was the outcome, and that nothing is left."""
        with pytest.raises(StreamClosedError) as caught:
            await self.connecting
        assert [reason for reason in reasons if reason not in str(caught.value)] == []
        assert self.open() == ""


@pytest.fixture
def at_leisure(monkeypatch: pytest.MonkeyPatch, io_loop: IOLoop) -> None:
    """No attempt begins while another one is under way."""
    monkeypatch.setattr(tcpclient, "HEAD_START", 60)


@pytest.fixture
def in_haste(monkeypatch: pytest.MonkeyPatch, io_loop: IOLoop) -> None:
    """The next attempt begins in the next turn."""
    monkeypatch.setattr(tcpclient, "HEAD_START", 0)


@pytest.mark.gen_test
async def test_one_attempt_is_made_if_it_succeeds(at_leisure: None) -> None:
    attempts = Attempts()
    await attempts.begun("a")
    attempts.succeed("a")
    await attempts.connected_to("a")
    assert "".join(attempts.streams) == "a"


@pytest.mark.gen_test
async def test_the_next_attempt_is_of_the_other_family_and_begins_when_one_fails(at_leisure: None) -> None:
    attempts = Attempts()
    for made in ("a", "ac", "acb"):
        await attempts.begun(made)
        attempts.fail(made[-1])
    await attempts.begun("acbd")
    assert attempts.open() == "d"
    attempts.succeed("d")
    await attempts.connected_to("d")


@pytest.mark.parametrize("addresses", ["a", "ab", "abcd"])
@pytest.mark.gen_test
async def test_when_all_attempts_have_failed_the_error_has_every_reason(at_leisure: None, addresses: str) -> None:
    attempts = Attempts(addresses)
    for made in range(1, len(addresses) + 1):
        await eventually(lambda made=made: len(attempts.streams) == made)  # type: ignore[misc]
        attempts.fail(list(attempts.streams)[-1])
    await attempts.failed(*[f"{name}: not {name}" for name in addresses])


@pytest.mark.gen_test
async def test_attempts_that_are_all_under_way_may_fail_in_any_order(in_haste: None) -> None:
    attempts = Attempts()
    await attempts.begun("acbd")
    for name in "cbda":
        assert not attempts.connecting.done()
        attempts.fail(name)
        await turns()
    await attempts.failed("c: not c, b: not b, d: not d, a: not a")


@pytest.mark.parametrize("winner", "abcd")
@pytest.mark.gen_test
async def test_each_of_the_attempts_under_way_may_win_and_the_others_are_closed(in_haste: None, winner: str) -> None:
    attempts = Attempts()
    await attempts.begun("acbd")
    attempts.succeed(winner)
    await attempts.connected_to(winner)


@pytest.mark.gen_test
async def test_of_attempts_that_succeed_in_one_turn_the_later_is_closed(in_haste: None) -> None:
    attempts = Attempts()
    await attempts.begun("acbd")
    attempts.succeed("c")
    attempts.succeed("a")
    await attempts.connected_to("c")


@pytest.mark.gen_test
async def test_an_attempt_that_fails_in_the_turn_in_which_another_wins_begins_none(
    in_haste: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two(Attempts):
        def _create_stream(self, *args: Any, **source: Any) -> Any:
            if self.streams:
                monkeypatch.setattr(tcpclient, "HEAD_START", 60)
            return super()._create_stream(*args, **source)

    attempts = Two()
    await attempts.begun("ac")
    attempts.succeed("c")
    attempts.fail("a")
    await attempts.connected_to("c")
    await attempts.begun("ac")


@pytest.mark.gen_test
async def test_an_attempt_that_follows_a_failed_one_has_a_head_start_of_its_own(
    at_leisure: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SecondAtLeisure(Attempts):
        def _create_stream(self, *args: Any, **source: Any) -> Any:
            monkeypatch.setattr(tcpclient, "HEAD_START", 60 if self.streams else 0.2)
            return super()._create_stream(*args, **source)

    attempts = SecondAtLeisure()
    await attempts.begun("a")
    attempts.fail("a")
    await attempts.begun("ac")
    await asyncio.sleep(0.21)  # what the first had is over
    await attempts.begun("ac")
    attempts.succeed("c")
    await attempts.connected_to("c")


@pytest.mark.gen_test
async def test_an_attempt_that_cannot_be_made_counts_as_failed(at_leisure: None) -> None:
    attempts = Attempts(unmakeable="ac")
    await attempts.begun("b")
    attempts.succeed("b")
    await attempts.connected_to("b")


@pytest.mark.gen_test
async def test_a_failure_after_which_no_attempt_can_be_made_is_the_end(at_leisure: None) -> None:
    attempts = Attempts(unmakeable="bcd")
    await attempts.begun("a")
    attempts.fail("a")
    await attempts.failed("a: not a, c: no c, b: no b, d: no d")


@pytest.mark.gen_test
async def test_where_no_attempt_can_be_made_the_error_has_every_reason(at_leisure: None) -> None:
    await Attempts(unmakeable="abcd").failed("a: no a, c: no c, b: no b, d: no d")


@pytest.mark.gen_test
async def test_an_attempt_that_somebody_cancels_counts_as_failed_and_is_closed(at_leisure: None) -> None:
    attempts = Attempts("ab")
    await attempts.begun("a")
    attempts.connected["a"].cancel()
    await attempts.begun("ab")
    assert attempts.open() == "b"
    attempts.connected["b"].cancel()
    await attempts.failed("a: cancelled, b: cancelled")


@pytest.mark.gen_test
async def test_a_connect_that_is_cancelled_closes_what_is_under_way(in_haste: None) -> None:
    attempts = Attempts()
    await attempts.begun("acbd")
    attempts.connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempts.connecting
    assert attempts.open() == ""


@pytest.mark.gen_test
async def test_a_connect_that_times_out_closes_what_is_under_way_and_names_that_only(in_haste: None) -> None:
    attempts = Attempts("cba", timeout=0.3)
    await attempts.begun("cba")
    attempts.fail("c")
    with pytest.raises(StreamTimeoutError) as caught:
        await attempts.connecting
    assert str(caught.value) == "Timeout while connecting to a, b"
    assert attempts.open() == ""


@pytest.mark.gen_test
async def test_a_connect_that_times_out_begins_no_other_attempt(at_leisure: None) -> None:
    attempts = Attempts(timeout=0.05)
    with pytest.raises(StreamTimeoutError, match=r"^Timeout while connecting to a$"):
        await attempts.connecting
    await attempts.begun("a")
    assert attempts.open() == ""


@pytest.mark.gen_test
async def test_addresses_are_named_as_people_write_them(at_leisure: None) -> None:
    for address, shown in (
        (("1.2.3.4", 443), "1.2.3.4:443"),
        (("::1", 443, 0, 0), "[::1]:443"),
        ("/run/socket", "/run/socket"),
    ):
        attempts = Attempts(cast(Any, [address]), unmakeable=cast(Any, [address]))
        await attempts.failed(f": {shown}: no ")
