"""A stream against a string of bytes.

Programs made by hypothesis are carried out on both ends of a real connection: the peer sends in any segmentation,
half-closes, closes or resets; the stream reads in any way, with and without timeouts, is cancelled, writes, drains,
ends. The model knows what was sent and what was read. No byte may be lost, doubled or reordered, nothing may hang,
and errors come where, and only where, the model has them.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, given
from hypothesis import strategies as st

from iostreamsrv import ConcurrentReadError, IOLoop, IOStream, StreamClosedError, StreamTimeoutError
from iostreamsrv.streams import hub
from tests.conftest import new_loop
from tests.support.engines import EVERY_STREAM
from tests.support.leaks import open_descriptors
from tests.support.peers import Cut, Peer, TLSPeer, tcp_pair, tls_pair
from tests.support.tiers import generated
from tests.support.waiting import PATIENCE, turns

SOON = 0.002
"""Seconds: the timeouts of reads. Whether one passes before the bytes are there is left to chance."""

MORE = object()
NEVER = object()


# ---- reads, and what the model says of them


class Reading:
    """One read: how it is made, and what it gives, according to the model, for the bytes that were sent and not read.

    ``expected`` returns (result, how many bytes are consumed), `MORE`, or `NEVER` where more bytes would not help.
    ``exact`` says that the result is just this; otherwise any beginning of it will do.
    """

    def __init__(
        self,
        name: str,
        start: Callable[..., Awaitable[Any]],
        expected: Callable[[bytes], Any],
        exact: bool = True,
        until_close: bool = False,
    ) -> None:
        self.name = name
        self.start = start
        self.expected = expected
        self.exact = exact
        self.until_close = until_close

    def __repr__(self) -> str:
        return self.name


def until(delimiter: bytes, limit: int | None) -> Reading:
    def expected(unread: bytes) -> Any:
        end = unread.find(delimiter) + len(delimiter)
        found = delimiter in unread
        if limit is not None and (end if found else len(unread)) > limit:
            return NEVER
        return (unread[:end], end) if found else MORE

    return Reading(f"until({delimiter!r}, {limit})", lambda s, **o: s.read_until(delimiter, limit, **o), expected)


def until_regex(pattern: bytes, limit: int | None) -> Reading:
    def expected(unread: bytes) -> Any:
        match = re.search(pattern, unread if limit is None else unread[:limit])
        if match:
            return unread[: match.end()], match.end()
        return MORE if limit is None or len(unread) <= limit else NEVER

    return Reading(f"regex({pattern!r}, {limit})", lambda s, **o: s.read_until_regex(pattern, limit, **o), expected)


def exactly(count: int) -> Reading:
    return Reading(
        f"bytes({count})",
        lambda s, **o: s.read_bytes(count, **o),
        lambda unread: (unread[:count], count) if len(unread) >= count else MORE,
    )


def partial(count: int) -> Reading:
    return Reading(
        f"partial({count})",
        lambda s, **o: s.read_bytes(count, partial=True, **o),
        lambda unread: (unread[:count], count) if unread or not count else MORE,
        exact=False,
    )


def into(count: int, some: bool) -> Reading:
    async def start(stream: IOStream, **options: Any) -> bytes:
        target = bytearray(count)
        filled = await stream.read_into(target, partial=some, **options)
        return bytes(target[:filled])

    return Reading(f"into({count}, {some})", start, (partial if some else exactly)(count).expected, exact=not some)


def frame(buffer: bytes | bytearray) -> tuple[int, bytes] | None:
    """A length byte (modulo 8), and so many bytes."""
    count = 1 + buffer[0] % 8
    return (count, bytes(buffer[1:count])) if len(buffer) >= count else None


def expected_frame(unread: bytes) -> Any:
    found = frame(unread) if unread else None
    return (found[1], found[0]) if found else MORE


FRAME = Reading("match", lambda s, **o: s.read_until_match(frame, **o), expected_frame)
UNTIL_CLOSE = Reading("until_close", lambda s, **o: s.read_until_close(**o), lambda unread: MORE, until_close=True)

LIMITS = [None, None, None, None, 10]
READINGS = [
    *(exactly(count) for count in (1, 2, 3, 5, 9, 1000, 70_000)),
    *(partial(count) for count in (0, 1, 3, 8, 100_000)),
    *(into(count, some) for count in (0, 1, 4, 9, 1000) for some in (False, True)),
    *(until(delimiter, limit) for delimiter in (b"\n", b"\r\n", b"ab") for limit in LIMITS),
    *(until_regex(pattern, limit) for pattern in (rb"\r?\n", rb"a+b") for limit in LIMITS),
    *[FRAME] * 6,
    *[UNTIL_CLOSE] * 3,
]
MANNERS = ["patient"] * 5 + ["timeout=", "asyncio.timeout", "wait_for"]


# ---- the machine


@dataclass(repr=False)  # the bytes are too many to print
class Machine:
    """Both ends of a connection, and the model of what went through it."""

    stream: IOStream
    peer: Peer
    unread: bytes = b""  # sent by the peer and not read by the stream
    written: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    writes: list[tuple[int, "asyncio.Future[None]"]] = field(default_factory=list)
    reading: Reading | None = None
    task: "asyncio.Task[Any] | None" = None
    may_time_out: bool = False
    peer_open: bool = True  # it can still send
    peer_there: bool = True  # it can still receive
    lossy: bool = False  # a reset was, or may be, on its way: the kernel may have thrown bytes away
    eof_sent: bool = False  # the stream's output was ended
    ended: bool = False  # the stream was ended on this side
    owed: int = 0  # of what was written, reported done before that

    # -- the peer

    async def send(self, data: bytes) -> None:
        if not self.peer_open:
            return
        try:
            data = data[: self.peer.socket.send(data)]
        except BlockingIOError:
            return
        except OSError:
            assert self.stream.closed() or self.ended
            return
        if not self.stream.closed():
            self.unread += data

    async def half_close(self) -> None:
        if self.peer_open:
            self.peer_open = False
            try:
                self.peer.half_close()
            except OSError:
                assert self.stream.closed()

    async def leave(self) -> None:
        if self.peer_there:
            unread_end = self.eof_sent and isinstance(self.peer, TLSPeer)  # under TLS an end is bytes, too
            self.lossy = self.lossy or unread_end or len(self.received) < len(self.written)
            self.peer_open = self.peer_there = False
            self.peer.close()

    async def reset(self) -> None:
        if self.peer_there:
            self.lossy = True
            self.peer_open = self.peer_there = False
            self.peer.reset()

    async def receive(self) -> None:
        """Whatever has arrived."""
        while self.peer_there:
            try:
                chunk = self.peer.socket.recv(1 << 20)
            except BlockingIOError:
                break
            except Cut:
                assert self.may_be_cut()
                break
            except ConnectionError:
                assert self.stream.closed()
                break
            if not chunk:
                break
            self.received += chunk
        assert self.written.startswith(self.received)

    def may_be_cut(self) -> bool:
        """Whether the stream's end may come without its word: the kernel sends a reset for what is still unread."""
        reset = self.peer.socket.family != socket.AF_UNIX and len(self.unread) > self.stream.buffered
        return reset or self.lossy or self.stream.close_reason == "aborted"

    # -- reading

    async def read(self, reading: Reading, manner: str) -> None:
        if self.task is not None:
            await self.read_while_reading(reading)
            return
        self.reading = reading
        self.may_time_out = manner != "patient"
        self.task = asyncio.create_task(self.read_in(reading, manner))
        await turns(1)  # so that the read has been made

    async def read_in(self, reading: Reading, manner: str) -> Any:
        if manner == "timeout=":
            return await reading.start(self.stream, timeout=SOON)
        if manner == "asyncio.timeout":
            async with asyncio.timeout(SOON):
                return await reading.start(self.stream)
        if manner == "wait_for":
            return await asyncio.wait_for(reading.start(self.stream), SOON)
        return await reading.start(self.stream)

    async def read_while_reading(self, reading: Reading) -> None:
        if self.stream.reading():
            with pytest.raises((ConcurrentReadError, StreamClosedError)) as caught:
                await reading.start(self.stream)
            assert self.stream.closed() or caught.type is ConcurrentReadError

    async def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
            assert not self.stream.reading()
            self.settle()

    async def finish_read(self) -> None:
        """See the pending read to its end, which the model knows, or cancel it where it has none."""
        if self.task is None or self.reading is None:
            return
        await turns(3)
        endless = self.reading.expected(self.unread) is MORE and self.peer_open and not self.may_time_out
        if endless and not self.stream.closed():
            assert not self.task.done(), self.task
            await self.cancel()
            return
        await asyncio.wait([self.task], timeout=PATIENCE)
        assert self.task.done(), f"{self.reading} hangs with {self.unread[:100]!r} unread on {self.stream}"
        self.settle()

    def settle(self) -> None:
        """Compare how a read ended with the model."""
        task, reading = self.task, self.reading
        assert task is not None
        assert reading is not None
        self.task = self.reading = None
        if task.cancelled():
            event("read cancelled")
            return None
        error = task.exception()
        if error is None:
            event("read gave a result")
            return self.consume(reading, task.result())
        if isinstance(error, TimeoutError) and not isinstance(error, StreamClosedError):
            event("read timed out")
            assert self.may_time_out
            assert isinstance(error, StreamTimeoutError) or error.args in ((), ("",))
            return None
        assert isinstance(error, StreamClosedError), repr(error)
        event(f"read failed: {error.reason}")
        assert self.stream.closed() or self.ended or error.reason == "eof"
        self.fail(reading, error)
        return None

    def consume(self, reading: Reading, result: bytes) -> None:
        if reading.until_close:
            assert self.unread.startswith(result)
            assert result == self.unread or self.lossy or self.stream.close_reason != "eof"
            self.unread = self.unread[len(result) :]
            return
        expected = reading.expected(self.unread)
        assert isinstance(expected, tuple), f"{reading} gave {result!r} of {self.unread!r}"
        if reading.exact:
            assert result == expected[0]
            self.unread = self.unread[expected[1] :]
        else:
            assert expected[0].startswith(result)
            assert result or not expected[0]
            self.unread = self.unread[len(result) :]

    def fail(self, reading: Reading, error: StreamClosedError) -> None:
        """A read may fail for what the peer did or sent, or for what was done on this side."""
        if error.reason == "buffer_full":
            assert reading.expected(self.unread) is NEVER or self.stream.close_reason == "buffer_full"
        elif error.reason == "eof":
            assert not self.peer_open
            assert reading.expected(self.unread[: self.stream.buffered]) in (MORE, NEVER)
        elif error.reason in ("reset", "truncated"):  # a Unix socket has no reset: under TLS it is a bare end
            assert self.lossy
        else:
            assert self.ended
        if not self.ended and not self.lossy and error.reason == "eof":
            assert self.stream.buffered == len(self.unread), "bytes were lost"

    # -- writing

    async def write(self, size: int) -> None:
        data = bytes((len(self.written) + number) % 251 for number in range(min(size, 251))) * (size // 251 + 1)
        try:
            future = self.stream.write(data[:size])
        except StreamClosedError:
            assert self.stream.closed() or self.ended or self.eof_sent
            return
        assert not self.eof_sent
        if not self.peer_there:
            self.lossy = True
        self.written += data[:size]
        self.writes.append((len(self.written), future))

    async def drain(self) -> None:
        """Wait for all that was written, the peer receiving meanwhile."""
        drained = self.stream.drain()
        async with asyncio.timeout(PATIENCE):
            while not drained.done():
                await self.receive()
                await asyncio.sleep(0)
        if drained.exception() is None:
            assert self.stream.bytes_written == len(self.written) or self.stream.closed()
        else:
            assert isinstance(drained.exception(), StreamClosedError)
            assert self.stream.closed()

    # -- ending

    async def send_eof(self) -> None:
        if not self.peer_there and isinstance(self.peer, TLSPeer):
            self.lossy = True  # under TLS an end is bytes, too
        try:
            future = self.stream.send_eof()
        except (StreamClosedError, OSError):
            assert self.stream.closed() or self.lossy or not self.peer_there
            return
        self.eof_sent = True
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def end(self, how: str) -> None:
        """close, aclose or abort, and what each promises of the bytes that were written."""
        if self.stream.closed():
            return
        self.owed = max((end for end, future in self.writes if future.done()), default=0)
        self.ended = True
        if how == "aclose":
            self.owed = len(self.written)
            closing = asyncio.create_task(self.stream.aclose())
            await self.receive_the_rest()
            self.peer_open = self.peer_there = False
            self.peer.close()
            await asyncio.wait_for(closing, PATIENCE)
        elif how == "close":
            self.stream.close()
            await self.receive_the_rest()
        else:
            self.owed = 0
            self.stream.abort()
        assert self.stream.closed()

    async def receive_the_rest(self) -> None:
        if not self.peer_there:
            return
        try:
            async with asyncio.timeout(PATIENCE):
                async for chunk in self.peer.chunks():
                    self.received += chunk
        except Cut:
            assert self.may_be_cut()
        except ConnectionError:
            pass
        assert self.written.startswith(self.received)
        if not self.lossy and self.peer.socket.family == socket.AF_UNIX:  # TCP may reset for what is still unread
            assert len(self.received) >= self.owed

    # -- the end of all

    async def conclude(self) -> None:
        """All that is left must be there: what was not read on this side, what was written on the other."""
        await self.finish_read()
        if self.stream.closed():
            return await self.conclude_closed()
        await self.half_close()
        left, self.unread = self.unread, b""
        drained = asyncio.create_task(self.drain())
        try:
            assert await asyncio.wait_for(self.stream.read_until_close(), PATIENCE) == left or self.lossy
        except StreamClosedError as error:
            assert error.reason == "reset" and self.lossy
        await drained
        await self.receive()
        if not self.lossy:
            assert self.received == self.written
        return None

    async def conclude_closed(self) -> None:
        await self.receive()
        buffered = self.stream.buffered
        left = await self.stream.read_until_close() if buffered else b""
        assert len(left) == buffered
        assert self.unread.startswith(left)
        if self.stream.close_reason == "eof" and not self.lossy:
            assert left == self.unread
        if self.stream.close_reason == "eof" and not self.lossy and self.peer_there:
            assert self.received == self.written


class Run(bytes):
    """One byte many times, and not when it is printed."""

    def __repr__(self) -> str:
        return f"{self[:1]!r} * {len(self)}"


PIECES = [
    b"",
    b"a",
    b"b",
    b"\r",
    b"\n",
    b"\r\n",
    b"x",
    b"ab",
    b"\x02",
    b"aab\r",
    b"\n\n",
    b"one\r\ntwo\r\n",
    Run(b"x" * 500),
    Run(b"y" * 69_000),
]
READ_STEPS = ["finish_read"] * 7 + ["cancel", "go_on", "drain"]
ENDS = [
    *[("half_close",)] * 5,
    ("leave",),
    ("reset",),
    ("send_eof",),
    *[("end", how) for how in ("close", "aclose", "abort")],
]

pieces = st.sampled_from(PIECES)
# The peer sends, a read begins, the peer sends more, the read goes its way, something is written.
exchanges = st.tuples(
    st.lists(st.tuples(pieces, st.integers(0, 2)), max_size=3),
    st.sampled_from(READINGS),
    st.sampled_from(MANNERS),
    st.lists(st.tuples(pieces, st.integers(0, 2)), max_size=3),
    st.sampled_from(READ_STEPS),
    st.sampled_from([None, None, None, 0, 1, 100, 70_000, 300_000]),
)
programs = st.tuples(
    st.lists(exchanges, min_size=4, max_size=25),
    st.lists(st.sampled_from(ENDS), max_size=2),
    st.lists(exchanges, min_size=1, max_size=5),
)


async def exchange(
    machine: Machine,
    before: list[tuple[bytes, int]],
    reading: Reading,
    manner: str,
    after: list[tuple[bytes, int]],
    then: str,
    size: int | None,
) -> None:
    for piece, pause in before:
        await machine.send(piece)
        await turns(pause)
    await machine.read(reading, manner)
    for piece, pause in after:
        await machine.send(piece)
        await turns(pause)
    if then != "go_on":
        await getattr(machine, then)()
    if size is not None:
        await machine.write(size)
        await machine.receive()


def ends_of(engine: str, sockets: tuple[socket.socket, socket.socket], **options: Any) -> tuple[IOStream, Peer]:
    """The stream and its peer."""
    if engine == "tls":
        return tls_pair(sockets, **options)
    return IOStream(sockets[0], **options), Peer(sockets[1])


async def carry_out(
    program: tuple[list[Any], list[Any], list[Any]],
    engine: str,
    sockets: tuple[socket.socket, socket.socket],
    **options: Any,
) -> None:
    machine = Machine(*ends_of(engine, sockets, **options))
    try:
        first, ends, last = program
        for steps in first:
            await exchange(machine, *steps)
        for name, *arguments in ends:
            await getattr(machine, name)(*arguments)
        for steps in last:
            await exchange(machine, *steps)
        await machine.conclude()
    finally:
        machine.stream.abort()
        machine.peer.close()
        if machine.task is not None:
            machine.task.cancel()
            await asyncio.wait([machine.task])
        for _, future in machine.writes:
            future.cancelled() or future.exception()
        await turns(2)


def run_on(engine: str, coroutine: Awaitable[None]) -> None:
    """Run a case on a loop of its own, which must be left with no task and no descriptor."""
    loop = new_loop(engine)
    asyncio.set_event_loop(loop)
    complaints: list[Any] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        loop.run_until_complete(coroutine)
        assert asyncio.all_tasks(loop) == set()
        assert complaints == []
    finally:
        IOLoop.current().close()
        asyncio.set_event_loop(None)


@pytest.fixture(params=EVERY_STREAM)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(hub, "driver", hub.LoopHub if request.param == "loop" else hub.EpollHub)
    new_loop(request.param).close()
    return str(request.param)


every_case = generated(
    20,
    2000,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
pairs = st.sampled_from([tcp_pair, socket.socketpair])


@every_case
@given(program=programs, pair=pairs, chunk=st.sampled_from([None, None, 1000]), cork=st.booleans())
def test_a_stream_is_a_string_of_bytes_whatever_happens(
    engine: str, program: tuple[list[Any], list[Any], list[Any]], pair: Callable[[], Any], chunk: int | None, cork: bool
) -> None:
    before = open_descriptors()
    run_on(engine, carry_out(program, engine, pair(), read_chunk_size=chunk, cork=cork))
    assert open_descriptors() == before


# ---- replies to pipelined requests


async def reply_to_all(stream: IOStream, requests: int, size: int, ending: str) -> None:
    for _ in range(requests):
        line = await stream.read_until(b"\n")
        await stream.write(line[:-1] * size + b"\n")
    if ending == "aclose":
        await stream.aclose()
    elif ending == "close":
        stream.close()
    elif ending == "send_eof":
        await stream.send_eof()
    else:
        await stream.drain()


async def pipeline(
    engine: str, requests: list[bytes], cuts: list[int], size: int, ending: str, rest: bytes, pause: int
) -> None:
    stream, peer = ends_of(engine, socket.socketpair())
    replying = asyncio.create_task(reply_to_all(stream, len(requests), size, ending))
    data = b"".join(requests) + rest
    expected = b"".join(request[:-1] * size + b"\n" for request in requests)
    await turns(1)
    receiving = asyncio.create_task(peer.receive(len(expected)))
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if data[begin:end]:
            try:
                await peer.send_all(data[begin:end])
            except ConnectionError:
                assert begin >= len(data) - len(rest)
        await turns(pause)
    assert await asyncio.wait_for(receiving, PATIENCE) == expected
    if ending in ("aclose", "close", "send_eof"):
        try:
            assert await peer.receive_all() == b""
        except ConnectionResetError:
            assert rest
    peer.close()
    await asyncio.wait_for(replying, PATIENCE)
    stream.close()
    await turns(2)


lines = st.lists(
    st.binary(min_size=1, max_size=20).map(lambda line: line.replace(b"\n", b"x") + b"\n"), min_size=2, max_size=60
)


@every_case
@given(
    requests=lines,
    cuts=st.lists(st.integers(0, 1200), max_size=6).map(sorted),
    size=st.sampled_from([0, 1, 50, 3000]),
    ending=st.sampled_from(["aclose", "close", "send_eof", "drain"]),
    rest=st.sampled_from([b"", b"unread"]),
    pause=st.integers(0, 3),
)
def test_every_pipelined_request_is_answered_in_order_however_it_ends(
    engine: str, requests: list[bytes], cuts: list[int], size: int, ending: str, rest: bytes, pause: int
) -> None:
    before = open_descriptors()
    total = sum(map(len, requests)) + len(rest)
    cuts = [min(cut, total) for cut in cuts]
    run_on(engine, pipeline(engine, requests, cuts, size, ending, rest, pause))
    assert open_descriptors() == before
