"""`IOStream.sendfile`: parts of files in the stream's order, whatever happens to the file and the connection."""

import asyncio
import errno
import io
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import IOStream, OptionError, PipeIOStream, StreamBufferFullError, StreamClosedError
from iostreamsrv.streams import hub
from iostreamsrv.streams.transports import socket as transport
from iostreamsrv.streams.writing import MAX_QUEUED_FILES
from tests.support.engines import on_every_stream
from tests.support.leaks import open_descriptors
from tests.support.peers import MakePair, Peer, tcp_pair
from tests.support.waiting import PATIENCE, fill, turns

pytestmark = on_every_stream

CONTENT = random.Random(1).randbytes(3_000_000)
"""More than a socket pair's kernel buffers hold, and different at every place."""

SHORT = b"a short file\n"
LINE = b"0123456789abcde\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def short(tmp_path: Path) -> Path:
    path = tmp_path / "short"
    path.write_bytes(SHORT)
    return path


@pytest.fixture
def make_narrow(make_pair: MakePair, engine: str) -> MakePair:
    """`make_pair` for connections that hold less than `CONTENT`: over TCP they may hold more."""
    return lambda **options: make_pair(None if engine == "memory" else socket.socketpair(), **options)


def send(stream: IOStream, path: Path, offset: int = 0, count: int | None = None) -> "asyncio.Future[int]":
    """The file is closed as soon as the call has returned."""
    with path.open("rb") as file:
        return stream.sendfile(file, offset, count)


async def fails(future: "asyncio.Future[Any]", reason: str) -> StreamClosedError:
    with pytest.raises(StreamClosedError) as caught:
        await future
    assert caught.value.reason == reason
    assert caught.value.operation == "write"
    return caught.value


# ---- what is sent


@pytest.mark.gen_test
async def test_a_file_arrives_and_the_result_is_its_size(stream: IOStream, peer: Peer, path: Path) -> None:
    future = send(stream, path)
    assert isinstance(future, asyncio.Future)
    assert await peer.receive(len(CONTENT)) == CONTENT
    assert await future == len(CONTENT) == stream.bytes_written
    assert not stream.writing()
    assert not peer.has_input()


@pytest.mark.gen_test
async def test_a_file_the_kernel_takes_is_done_at_once(stream: IOStream, peer: Peer, short: Path) -> None:
    future = send(stream, short)
    assert future.done()
    assert not stream.writing()
    assert await peer.receive(len(SHORT)) == SHORT
    await stream.write(b"x")
    assert await peer.receive(1) == b"x"


@pytest.mark.parametrize(
    "offset, count", [(0, 5), (2, None), (2, 5), (8, 100), (13, None), (14, 1), (1 << 70, None), (3, 0), (0, 1 << 70)]
)
@pytest.mark.parametrize("in_memory", [False, True], ids=["descriptor", "memory"])
@pytest.mark.gen_test
async def test_a_part_of_a_file_ends_with_the_file(
    stream: IOStream, peer: Peer, short: Path, offset: int, count: int | None, in_memory: bool
) -> None:
    expected = SHORT[offset:] if count is None else SHORT[offset : offset + count]
    with io.BytesIO(SHORT) if in_memory else short.open("rb") as file:
        file.seek(4)
        assert await stream.sendfile(file, offset, count) == len(expected)
        assert file.tell() == 4
    await stream.write(b"!")
    assert await peer.receive(len(expected) + 1) == expected + b"!"


@pytest.mark.gen_test
async def test_an_empty_file_is_done_in_its_turn(stream: IOStream, peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert await send(stream, tmp_path / "empty") == 0
    before = fill(stream)
    future = send(stream, tmp_path / "empty")
    assert not future.done()
    await peer.receive(before)
    assert await future == 0
    assert not stream.closed()


@pytest.mark.gen_test
async def test_what_is_added_to_the_file_later_is_not_sent(stream: IOStream, peer: Peer, short: Path) -> None:
    before = fill(stream)
    future = send(stream, short)
    with short.open("ab") as file:
        file.write(b"more")
    behind = stream.write(b"!")
    await peer.receive(before)
    assert await peer.receive(len(SHORT) + 1) == SHORT + b"!"
    assert await future == len(SHORT)
    await behind


@pytest.mark.gen_test
async def test_a_file_may_be_deleted_as_soon_as_it_was_given(make_narrow: MakePair, path: Path) -> None:
    stream, peer = make_narrow()
    future = send(stream, path, 1)
    path.unlink()
    assert await peer.receive(len(CONTENT) - 1) == CONTENT[1:]
    assert await future == len(CONTENT) - 1


@pytest.mark.gen_test
async def test_the_descriptor_of_a_file_is_closed_once_it_was_sent(
    make_narrow: MakePair, path: Path, short: Path
) -> None:
    stream, peer = make_narrow()

    async def send_both() -> None:
        futures = [send(stream, path), send(stream, short)]
        assert await peer.receive(len(CONTENT + SHORT)) == CONTENT + SHORT
        assert await asyncio.gather(*futures) == [len(CONTENT), len(SHORT)]

    await send_both()  # which may open the hub's own
    before = open_descriptors()
    await send_both()
    assert open_descriptors() == before


# ---- in order


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.gen_test
async def test_any_mixture_arrives_in_order_at_a_slow_reader_and_ends_in_order(
    make_narrow: MakePair, path: Path, seed: int
) -> None:
    generator = random.Random(seed)
    stream, peer = make_narrow()
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, generator.choice([4096, 65536]))
    memory = io.BytesIO(CONTENT)
    expected, results, ended = [], [], []
    futures: list[asyncio.Future[Any]] = []
    for number in range(60):
        while number >= 20 and not stream.writing():
            expected.append(bytes(fill(stream)))
            await turns()  # what waits only for the stream's next turn goes out
        offset, count = generator.randrange(100_000), generator.choice([0, 1, 500, 5_000, 70_000])
        part, how = CONTENT[offset : offset + count], generator.choice(["write", "sendfile", "memory", "drain"])
        if how == "write":
            future: asyncio.Future[Any] = stream.write(part)
        elif how == "sendfile":
            future = send(stream, path, offset, count)
        elif how == "memory":
            future = stream.sendfile(memory, offset, count)
        else:
            future, part = stream.drain(), b""
        expected.append(part)
        results.append(len(part) if how in ("sendfile", "memory") else None)
        futures.append(future)
        if stream.writing():  # one that is done at once may be given out a turn later
            future.add_done_callback(lambda _, number=number: ended.append(number))
        if not generator.randrange(10):
            await turns(1)
    ending = stream.send_eof()
    received = bytearray()
    while chunk := await peer.receive_some(generator.randrange(1, 20_000)):
        received += chunk
        await turns(generator.randrange(3))
    assert received == b"".join(expected)
    assert await asyncio.gather(*futures) == results
    assert len(ended) >= 40, "nothing had to wait"
    assert ended == sorted(ended)
    await ending


@pytest.mark.gen_test
async def test_a_file_follows_what_is_corked(stream: IOStream, peer: Peer, short: Path) -> None:
    async def reply() -> None:
        for number in range(10):
            line = await stream.read_until(b"\n")
            await stream.write(line)
            if number == 5:
                assert stream.writing(), "nothing was corked"
                await send(stream, short)
                assert stream.bytes_written == 6 * len(LINE) + len(SHORT)

    task = asyncio.create_task(reply())
    await turns(1)
    peer.send(LINE * 10)
    await task
    expected = LINE * 6 + SHORT + LINE * 4
    assert await peer.receive(len(expected)) == expected


@pytest.mark.gen_test
async def test_a_cancelled_file_arrives_all_the_same(make_narrow: MakePair, path: Path) -> None:
    stream, peer = make_narrow()
    sending = asyncio.ensure_future(send(stream, path))
    behind = stream.write(b"!")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await sending
    assert await peer.receive(len(CONTENT) + 1) == CONTENT + b"!"
    await behind


@pytest.mark.gen_test
async def test_reads_go_on_while_a_file_is_sent(make_narrow: MakePair, path: Path) -> None:
    stream, peer = make_narrow()
    future = send(stream, path)
    for _ in range(3):
        peer.send(LINE)
        assert await stream.read_until(b"\n") == LINE
    reading = stream.read_until(b"\n")
    assert await peer.receive(len(CONTENT)) == CONTENT
    assert await future == len(CONTENT)
    peer.send(LINE)
    assert await reading == LINE


@pytest.mark.gen_test
async def test_a_file_before_the_connection_waits_for_it(stream: IOStream, short: Path, path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = IOStream(socket.socket())
        connecting = client.connect(listener.getsockname())
        sent = [client.write(b"head"), send(client, short, 0, 0), send(client, short), send(client, path)]
        ended = client.send_eof()
        assert await connecting is client
        connection, _ = listener.accept()
    peer = Peer(connection)
    assert await peer.receive_all() == b"head" + SHORT + CONTENT
    assert await asyncio.gather(*sent, ended) == [None, 0, len(SHORT), len(CONTENT), None]
    client.close()
    peer.close()


@pytest.mark.gen_test
async def test_a_file_for_a_connection_that_fails_fails_with_it(stream: IOStream, short: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    client = IOStream(socket.socket())
    for future in [client.connect(address), send(client, short), send(client, short, 0, 0)]:
        with pytest.raises(StreamClosedError) as caught:
            await future
        assert caught.value.reason == "reset"


# ---- files that change


@pytest.mark.parametrize("end", ["drain", "send_eof", "aclose"])
@pytest.mark.gen_test
async def test_a_file_that_has_become_shorter_gives_what_there_was_and_the_rest_follows(
    make_narrow: MakePair, path: Path, short: Path, end: str
) -> None:
    stream, peer = make_narrow()
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    parts: list[asyncio.Future[Any]] = [stream.write(b"head"), send(stream, path)]
    parts += [stream.write(b"between"), send(stream, path, 2_000_000), send(stream, short), stream.write(b"tail")]
    assert stream.bytes_written < 2_000_000 - 4096
    os.truncate(path, 2_000_000)
    ending = asyncio.ensure_future(getattr(stream, end)())
    await turns()
    assert not any(future.done() for future in [*parts[1:], ending])
    expected = b"head" + CONTENT[:2_000_000] + b"between" + SHORT + b"tail"
    assert await peer.receive(len(expected)) == expected
    assert await asyncio.gather(*parts) == [None, 2_000_000, None, 0, len(SHORT), None]
    peer.half_close()
    await ending
    assert stream.bytes_written == len(expected)
    assert not stream.writing()


@pytest.mark.gen_test
async def test_later_writes_are_done_right_after_a_file_that_has_become_shorter(
    make_narrow: MakePair, path: Path
) -> None:
    stream, peer = make_narrow()
    before = fill(stream)
    future = send(stream, path)
    os.truncate(path, 0)
    await peer.receive(before)
    assert await future == 0
    for _ in range(3):
        await stream.write(LINE)
        assert await peer.receive(len(LINE)) == LINE
    again = fill(stream)
    behind = stream.write(LINE)
    assert not behind.done()
    await peer.receive(again + len(LINE))
    await behind


@pytest.mark.gen_test
async def test_a_file_in_memory_may_become_shorter_too(make_narrow: MakePair) -> None:
    stream, peer = make_narrow()
    before = fill(stream)
    file = io.BytesIO(SHORT)
    future, behind = stream.sendfile(file), stream.write(b"!")
    file.truncate(5)
    await peer.receive(before)
    assert await peer.receive(6) == SHORT[:5] + b"!"
    assert await future == 5
    await behind


@pytest.mark.gen_test
async def test_a_file_that_cannot_be_read_any_more_closes_the_stream_with_that_error(
    make_narrow: MakePair, caplog: pytest.LogCaptureFixture
) -> None:
    stream, peer = make_narrow()
    before = fill(stream)
    file = io.BytesIO(SHORT)
    futures: list[asyncio.Future[Any]] = [stream.sendfile(file), stream.write(b"behind"), stream.drain()]
    file.close()
    assert len(await peer.receive_all()) == before
    for future in futures:
        assert isinstance((await fails(future, "local")).real_error, ValueError)
    assert stream.closed()
    assert "closed file" in caplog.text


# ---- where the kernel does not copy


def recorded(stream: IOStream) -> list[bytes]:
    """What goes through a ``write_to_fd`` of the stream's own."""
    pieces: list[bytes] = []
    send = stream.write_to_fd

    def write_to_fd(data: memoryview) -> int:
        sent = send(data[:10_000]) or 0
        pieces.append(bytes(data[:sent]))
        return sent

    stream.write_to_fd = write_to_fd  # type: ignore[method-assign, assignment]
    return pieces


@pytest.mark.gen_test
async def test_a_file_goes_through_a_write_to_fd_that_was_assigned(make_narrow: MakePair, path: Path) -> None:
    stream, peer = make_narrow()
    pieces = recorded(stream)
    future = send(stream, path, 7)
    assert await peer.receive(len(CONTENT) - 7) == CONTENT[7:]
    assert await future == len(CONTENT) - 7
    assert b"".join(pieces) == CONTENT[7:]


@pytest.mark.gen_test
async def test_a_file_goes_through_the_write_to_fd_of_a_subclass(stream: IOStream, path: Path) -> None:
    class Masked(IOStream):
        def write_to_fd(self, data: Any) -> int | None:
            return super().write_to_fd(bytes(data).translate(MASK))

    ours, theirs = socket.socketpair()
    masked, peer = Masked(ours), Peer(theirs)
    future = send(masked, path)
    behind = masked.write(b"abc")
    assert await peer.receive(len(CONTENT) + 3) == (CONTENT + b"abc").translate(MASK)
    assert await future == len(CONTENT)
    await behind
    masked.close()
    peer.close()


MASK = bytes(byte ^ 0x55 for byte in range(256))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, None])
@pytest.mark.gen_test
async def test_a_file_is_read_where_the_kernel_cannot_copy_it(
    make_narrow: MakePair, path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    def refuse(*_: int) -> int:
        raise OSError(number, "not here")

    monkeypatch.setattr(transport, "_SENDFILE", refuse if number else None)
    stream, peer = make_narrow()
    future = send(stream, path)
    behind = stream.write(b"!")
    assert await peer.receive(len(CONTENT) + 1) == CONTENT + b"!"
    assert await future == len(CONTENT)
    await behind


@pytest.mark.plain("the kernel has no key")
@pytest.mark.skipif(not hasattr(os, "sendfile"), reason="there is no os.sendfile")
@pytest.mark.gen_test
async def test_the_kernel_copies_where_it_can(
    make_pair: MakePair, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, peer = make_pair(tcp_pair())
    monkeypatch.setattr(os, "pread", None)
    assert await send(stream, short) == len(SHORT)
    assert await peer.receive(len(SHORT)) == SHORT


@pytest.mark.gen_test
async def test_a_pipe_sends_files_too(stream: IOStream, path: Path, short: Path) -> None:
    reading, writing = os.pipe()
    source, sink = PipeIOStream(reading), PipeIOStream(writing)
    futures: list[asyncio.Future[Any]] = [sink.write(b"head"), send(sink, path, 5), sink.sendfile(io.BytesIO(SHORT))]
    expected = b"head" + CONTENT[5:] + SHORT
    assert await source.read_bytes(len(expected)) == expected
    assert await asyncio.gather(*futures) == [None, len(CONTENT) - 5, len(SHORT)]
    sink.close()
    source.close()


# ---- limits and turns


@pytest.mark.gen_test
async def test_a_file_does_not_count_for_the_write_buffer_but_what_is_written_behind_it_does(
    make_narrow: MakePair, path: Path
) -> None:
    stream, peer = make_narrow(max_write_buffer_size=1000)
    files = [send(stream, path), send(stream, path)]
    writes = [stream.write(b"x" * 600), stream.write(b"y" * 400)]
    with pytest.raises(StreamBufferFullError, match="1000 of 1000 bytes are queued"):
        stream.write(b"z")
    files.append(send(stream, path, 0, 10))
    expected = CONTENT + CONTENT + b"x" * 600 + b"y" * 400 + CONTENT[:10]
    assert await peer.receive(len(expected)) == expected
    await asyncio.gather(*files, *writes)
    await stream.write(b"z")


@pytest.mark.gen_test
async def test_one_larger_write_is_taken_behind_a_file(make_narrow: MakePair, path: Path) -> None:
    stream, peer = make_narrow(max_write_buffer_size=1000)
    future = send(stream, path)
    large = stream.write(bytes(5000))
    with pytest.raises(StreamBufferFullError):
        stream.write(b"z")
    assert await peer.receive(len(CONTENT) + 5000) == CONTENT + bytes(5000)
    await large
    await future


def into_nowhere(stream: IOStream, monkeypatch: pytest.MonkeyPatch) -> None:
    """As to a reader who is always faster."""
    stream.write_to_fd = len  # type: ignore[method-assign, assignment]


def into_nowhere_by_the_kernel(stream: IOStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_SENDFILE", lambda out, file, offset, count: count)


every_sink = pytest.mark.parametrize(
    "sink",
    [
        pytest.param(into_nowhere, id="read"),
        pytest.param(into_nowhere_by_the_kernel, id="sendfile", marks=pytest.mark.plain("the kernel has no key")),
    ],
)


@every_sink
@pytest.mark.gen_test
async def test_a_huge_file_to_the_fastest_reader_lets_the_loop_have_its_turns(
    make_pair: MakePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: Callable[..., None]
) -> None:
    stream, _ = make_pair(tcp_pair())
    sink(stream, monkeypatch)
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, 1 << (32 if sink is into_nowhere else 40))
    future = send(stream, huge)
    for _ in range(3):
        await asyncio.sleep(0.001)
    assert not future.done()
    sent = stream.bytes_written
    await turns(20)
    assert stream.bytes_written > sent
    stream.abort()
    await fails(future, "aborted")


@every_sink
@pytest.mark.parametrize("count", [0, 5], ids=["empty", "short"])
@pytest.mark.gen_test
async def test_small_files_in_a_row_let_the_loop_have_its_turns(
    make_pair: MakePair, short: Path, monkeypatch: pytest.MonkeyPatch, sink: Callable[..., None], count: int
) -> None:
    stream, _ = make_pair(tcp_pair())
    sink(stream, monkeypatch)
    loop = asyncio.get_running_loop()
    ticks: list[None] = []
    loop.call_later(0.005, ticks.append, None)
    end = loop.time() + 1
    with short.open("rb") as file:
        while not ticks and loop.time() < end:
            assert await stream.sendfile(file, 0, count) == count
    assert ticks


# ---- ends


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.gen_test
async def test_an_end_that_does_not_wait_fails_the_files_and_frees_them(
    make_narrow: MakePair, path: Path, short: Path, end: str
) -> None:
    stream, peer = make_narrow()
    before = open_descriptors()
    futures: list[asyncio.Future[Any]] = [send(stream, path), stream.write(b"!"), send(stream, short)]
    sent = stream.bytes_written
    assert not any(future.done() for future in futures)
    getattr(stream, end)()
    hub.close_unused(asyncio.get_running_loop())  # the hub's own
    assert open_descriptors() <= before
    for future in futures:
        await fails(future, {"close": "local", "abort": "aborted"}[end])
    assert await peer.receive(sent) == CONTENT[:sent]


@pytest.mark.gen_test
async def test_aclose_delivers_the_files_first(make_narrow: MakePair, path: Path, short: Path) -> None:
    stream, peer = make_narrow()
    futures: list[asyncio.Future[Any]] = [send(stream, path), stream.write(b"!"), send(stream, short)]
    closing = asyncio.create_task(stream.aclose())
    assert await peer.receive_all() == CONTENT + b"!" + SHORT
    peer.close()
    await closing
    assert await asyncio.gather(*futures) == [len(CONTENT), None, len(SHORT)]


@pytest.mark.gen_test
async def test_aclose_that_gives_up_fails_and_frees_a_file(make_narrow: MakePair, path: Path) -> None:
    stream, _ = make_narrow()
    before = open_descriptors()
    future = send(stream, path)
    await stream.aclose(timeout=0.02)
    hub.close_unused(asyncio.get_running_loop())  # the hub's own
    assert open_descriptors() <= before
    await fails(future, "write_timeout")


@pytest.mark.gen_test
async def test_send_eof_follows_a_file(make_narrow: MakePair, path: Path) -> None:
    stream, peer = make_narrow()
    future, ended = send(stream, path), stream.send_eof()
    assert not ended.done()
    with pytest.raises(StreamClosedError):
        send(stream, path)
    assert await peer.receive_all() == CONTENT
    await ended
    assert await future == len(CONTENT)
    peer.send(LINE)
    assert await stream.read_until(b"\n") == LINE


@pytest.mark.gen_test
async def test_close_delivers_what_is_owed_and_no_file_behind_it(
    make_pair: MakePair, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SLICE", PATIENCE)  # all lines are dispatched in one run, so that all replies are corked
    stream, peer = make_pair(socket.socketpair())
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    reply = b"x" * 6000

    async def reply_and_close() -> "asyncio.Future[int]":
        for _ in range(10):
            await stream.read_until(b"\n")
            assert stream.write(reply).done()
        future = send(stream, path)
        stream.close()
        return future

    task = asyncio.create_task(reply_and_close())
    await turns(1)
    peer.send(LINE * 11)
    assert await peer.receive_all() == reply * 10
    await fails(await task, "local")


@pytest.mark.gen_test
async def test_a_peer_that_half_closed_gets_the_whole_file(make_narrow: MakePair, path: Path) -> None:
    stream, peer = make_narrow()
    peer.send(LINE)
    peer.half_close()
    assert await stream.read_until(b"\n") == LINE
    future = send(stream, path)
    with pytest.raises(StreamClosedError, match="eof"):
        await stream.read_until(b"\n")
    assert await peer.receive_all() == CONTENT
    assert await future == len(CONTENT)
    assert stream.close_reason == "eof"


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.gen_test
async def test_a_peer_that_goes_in_the_middle_of_a_file_is_a_clear_error(
    stream: IOStream, peer: Peer, path: Path, how: str
) -> None:
    before = open_descriptors()
    fill(stream)
    futures: list[asyncio.Future[Any]] = [send(stream, path), stream.write(b"!"), stream.drain()]
    await peer.receive(100_000)
    getattr(peer, how)()
    for future in futures:
        assert isinstance((await fails(future, "reset")).real_error, ConnectionError)
    assert stream.closed()
    assert not stream.writing()
    hub.close_unused(asyncio.get_running_loop())  # the hub's own
    assert open_descriptors() <= before


@pytest.mark.gen_test
async def test_a_reset_is_no_trouble_worth_a_log_line(
    stream: IOStream, peer: Peer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peer.reset()
    with pytest.raises(StreamClosedError):
        while True:
            await send(stream, path, 0, 10)
    assert stream.close_reason == "reset"
    assert not caplog.records


@pytest.mark.parametrize("end", ["close", "abort", "send_eof", "aclose"])
@pytest.mark.gen_test
async def test_after_an_end_a_file_is_refused_at_the_call(stream: IOStream, peer: Peer, short: Path, end: str) -> None:
    ending = getattr(stream, end)()
    task = asyncio.ensure_future(ending) if ending is not None else None
    await turns(1)
    before = open_descriptors()
    with pytest.raises(StreamClosedError) as caught:
        send(stream, short)
    assert caught.value.operation == "write"
    assert open_descriptors() == before
    peer.close()
    if task is not None:
        await task


# ---- what cannot be


@pytest.mark.parametrize(
    "option, give",
    [
        ("file", lambda path: (path,)),
        ("file", lambda path: (str(path),)),
        ("file", lambda path: (None,)),
        ("file", lambda path: (io.StringIO("text"),)),
        ("offset", lambda path: (io.BytesIO(SHORT), -1)),
        ("offset", lambda path: (io.BytesIO(SHORT), None)),
        ("offset", lambda path: (io.BytesIO(SHORT), 1.5)),
        ("count", lambda path: (io.BytesIO(SHORT), 0, -1)),
        ("count", lambda path: (io.BytesIO(SHORT), 0, True)),
        ("count", lambda path: (io.BytesIO(SHORT), 0, "all")),
    ],
)
@pytest.mark.gen_test
async def test_a_bad_argument_is_named_and_does_no_harm(
    stream: IOStream, peer: Peer, short: Path, option: str, give: Callable[[Path], tuple[Any, ...]]
) -> None:
    with pytest.raises(OptionError, match=f"^{option}="):
        stream.sendfile(*give(short))
    assert not stream.writing()
    assert await send(stream, short) == len(SHORT)
    assert await peer.receive(len(SHORT)) == SHORT
    with pytest.raises(OptionError, match=r"^file=.*binary mode"), short.open() as text:
        stream.sendfile(text)  # type: ignore[arg-type]
    assert not stream.closed()


# ---- descriptors


@pytest.mark.gen_test
async def test_files_that_nobody_awaits_take_no_more_descriptors_than_16(make_narrow: MakePair, path: Path) -> None:
    stream, peer = make_narrow(max_write_buffer_size=1_000_000)
    size = 300_000  # more than the kernel takes at once
    reading = stream.read_bytes(1)  # so there is an epoll
    await turns()
    before = len(open_descriptors())
    for _ in range(2):
        sending = [send(stream, path, 0, size) for _ in range(MAX_QUEUED_FILES)]
        with pytest.raises(StreamBufferFullError, match="16 files are queued") as caught:
            sending.extend(send(stream, path, 0, size) for _ in range(100))
        assert caught.value.stream_id == stream.id
        assert not stream.closed()
        assert len(open_descriptors()) <= before + MAX_QUEUED_FILES
        total = size * len(sending)
        receiving = asyncio.ensure_future(peer.receive(total))
        assert await asyncio.gather(*sending) == [size] * len(sending)
        assert len(await receiving) == total
        assert len(open_descriptors()) == before
    peer.send(b"!")
    assert await reading == b"!"


@pytest.mark.gen_test
async def test_a_stream_without_a_limit_queues_any_number_of_files(make_narrow: MakePair, path: Path) -> None:
    stream, peer = make_narrow()
    sending = [send(stream, path, 0, 100_000) for _ in range(3 * MAX_QUEUED_FILES)]
    assert len(await peer.receive(3 * MAX_QUEUED_FILES * 100_000)) == 3 * MAX_QUEUED_FILES * 100_000
    assert await asyncio.gather(*sending) == [100_000] * len(sending)
