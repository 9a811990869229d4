"""Whose fault it is that a handler failed: only what its client's own stream raised is the client's."""

import asyncio
import contextlib
import datetime
import errno
import functools
import importlib.util
import logging
import socket
import ssl
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from tornado import gen, web

from iostreamsrv import (
    CloseReason,
    FramingError,
    IOLoop,
    IOStream,
    StreamBufferFullError,
    StreamClosedError,
    StreamTimeoutError,
    TCPClient,
    TCPServer,
)
from iostreamsrv.framing import JSONLines
from iostreamsrv.httpserver import HTTPServer
from iostreamsrv.styles import BlockingServer, CallbackServer, Handle, Notice, QueueServer
from tests.support.engines import on_every_loop
from tests.support.leaks import complaints
from tests.support.peers import Peer, tls_contexts
from tests.support.servers import Handler, Serving
from tests.support.threads import connect, everything
from tests.support.waiting import PATIENCE, eventually

pytestmark = on_every_loop


@contextlib.asynccontextmanager
async def upstream(act: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[tuple[str, int]]:
    """Somebody else's server, who does this to each client; its address."""

    acting: set[asyncio.Task[Any] | None] = set()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        acting.add(asyncio.current_task())
        try:
            await act(writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        for task in acting:
            assert task is not None
            task.cancel()


async def is_silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(PATIENCE)


async def resets(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def ends(writer: asyncio.StreamWriter) -> None:
    pass


async def talks_nonsense(writer: asyncio.StreamWriter) -> None:
    writer.write(b"this is neither TLS nor JSON\n" * 100)
    await writer.drain()


def refused() -> tuple[str, int]:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address: tuple[str, int] = listener.getsockname()
    return address


async def ended(serving: Serving, server: TCPServer, data: bytes = b"go\n") -> CloseReason | None:
    """A client sends this, and stays; the reason that its stream ends with."""
    streams: list[Any] = []
    server.events.subscribe(lambda event: streams.append(event.stream), "close")
    peer = serving.connect(server)
    peer.send(data)
    await peer.receive_all()
    peer.close()
    await eventually(lambda: streams)
    reason: CloseReason | None = streams[0].close_reason
    return reason


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[type[BaseException]]:
    """What the log has in full."""
    return [record.exc_info[0] for record in caplog.records if record.exc_info and record.exc_info[0] is not None]


# ---- a gateway


async def read_of_ours(address: Any, timeout: float = PATIENCE) -> None:
    stream = await TCPClient().connect(*address)
    try:
        await stream.read_until(b"!", timeout=timeout)
    finally:
        stream.close()


async def read_that_times_out(address: Any) -> None:
    await read_of_ours(address, timeout=0.05)


async def timeout_round_a_read_of_ours(address: Any) -> None:
    stream = await TCPClient().connect(*address)
    try:
        async with asyncio.timeout(0.05):
            await stream.read_until(b"!")
    finally:
        stream.close()


async def connect_to(address: Any) -> None:
    (await TCPClient().connect(*address)).close()


async def start_tls(address: Any) -> None:
    await TCPClient().connect(*address, ssl_options={})


async def read_json(address: Any) -> None:
    stream = await TCPClient().connect(*address)
    try:
        await JSONLines(stream).read()
    finally:
        stream.close()


async def fill(address: Any) -> None:
    stream = await TCPClient().connect(*address)
    stream.max_write_buffer_size = 1000
    try:
        while True:
            stream.write(bytes(1 << 20)).add_done_callback(lambda future: future.exception())
    finally:
        stream.abort()


async def read_of_asyncio(address: Any) -> None:
    reader, writer = await asyncio.open_connection(*address)
    try:
        await reader.readuntil(b"!")
    finally:
        writer.close()


async def timeout_round_a_read_of_asyncio(address: Any) -> None:
    async with asyncio.timeout(0.05):
        await read_of_asyncio(address)


GATEWAYS: dict[str, tuple[Any, Callable[[Any], Awaitable[None]], type[BaseException]]] = {
    "is refused": (None, connect_to, StreamClosedError),
    "is reset": (resets, read_of_ours, StreamClosedError),
    "reads an end": (ends, read_of_ours, StreamClosedError),
    "runs into the timeout of a read": (is_silent, read_that_times_out, StreamTimeoutError),
    "runs into asyncio.timeout": (is_silent, timeout_round_a_read_of_ours, TimeoutError),
    "meets a bad certificate": (talks_nonsense, start_tls, ssl.SSLError),
    "reads what is no message": (talks_nonsense, read_json, FramingError),
    "writes more than fits": (is_silent, fill, StreamBufferFullError),
    "is refused by asyncio": (None, read_of_asyncio, ConnectionRefusedError),
    "reads an end by asyncio": (ends, read_of_asyncio, asyncio.IncompleteReadError),
    "runs into asyncio.timeout by asyncio": (is_silent, timeout_round_a_read_of_asyncio, TimeoutError),
}


@pytest.mark.parametrize("what", GATEWAYS)
@pytest.mark.gen_test
async def test_what_a_handlers_upstream_does_is_the_handlers_error_with_a_traceback(
    serving: Serving, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    act, ask, error = GATEWAYS[what]

    async def handler(stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        await ask(there)

    server = serving.with_handler(handler)
    async with upstream(act or ends) as there:
        if act is None:
            there = refused()
        assert await ended(serving, server) == "handler_error"
    (raised,) = tracebacks(caplog)
    assert issubclass(raised, error)


@pytest.mark.gen_test
async def test_a_timeout_of_the_upstream_is_the_handlers_also_after_one_of_the_client(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        other = await TCPClient().connect(*there)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await stream.read_until(b"\n")
            async with asyncio.timeout(0.02):
                await other.read_until(b"\n")
        finally:
            other.close()

    server = serving.with_handler(handler)
    async with upstream(is_silent) as there:
        assert await ended(serving, server) == "handler_error"
    assert tracebacks(caplog) == [TimeoutError]


# ---- the client


async def read_on(stream: IOStream) -> None:
    await stream.read_until(b"\n")


async def read_until_its_timeout(stream: IOStream) -> None:
    await stream.read_until(b"\n", timeout=0.05)


class Distant:
    """What an object may be that a handler has at hand: each attribute is asked for elsewhere."""

    def __getattribute__(self, name: str) -> Any:
        raise ConnectionRefusedError


async def read_within_asyncio_timeout(stream: IOStream) -> None:
    others: list[Any] = [weakref.proxy(set()), Distant()]  # whatever asks these raises
    _first, _second = others
    async with asyncio.timeout(0.05):
        await stream.read_until(b"\n")


async def read_into_within_asyncio_timeout(stream: IOStream) -> None:
    async with asyncio.timeout(0.05):
        await stream.read_into(bytearray(100))


async def read_by_wait_for(stream: IOStream) -> None:
    await asyncio.wait_for(stream.read_until(b"\n"), 0.05)


class Session:
    def __init__(self, stream: IOStream) -> None:
        self.messages = JSONLines(stream)

    async def run(self) -> None:
        async with asyncio.timeout(0.05):
            async for _ in self.messages:
                pass


async def read_messages_within_asyncio_timeout(stream: IOStream) -> None:
    await Session(stream).run()


class Slotted:
    __slots__ = ("stream",)

    def __init__(self, stream: IOStream) -> None:
        self.stream = stream


class Nested:
    def __init__(self, stream: IOStream) -> None:
        self.inner = Slotted(stream)

    async def read(self) -> None:
        async with asyncio.timeout(0.05):
            await self.inner.stream.read_until(b"\n")


async def read_of_a_nested_object(stream: IOStream) -> None:
    await Nested(stream).read()


async def line_by(read: Callable[[bytes], Awaitable[bytes]]) -> bytes:
    return await read(b"\n")


async def read_by_a_method_at_hand(stream: IOStream) -> None:
    async with asyncio.timeout(0.05):
        await line_by(stream.read_until)


async def read_by_a_partial_at_hand(stream: IOStream) -> None:
    async with asyncio.timeout(0.05):
        await line_by(functools.partial(stream.read_until, max_bytes=100))


async def gather_reads(stream: IOStream) -> None:
    async with asyncio.timeout(0.05):
        both = asyncio.gather(stream.read_until(b"\n"), asyncio.sleep(PATIENCE))
        await both


async def read_by_with_timeout(stream: IOStream) -> None:
    await gen.with_timeout(SHORT, stream.read_until(b"\n"), quiet_exceptions=StreamClosedError)


async def read_a_coroutine_by_with_timeout(stream: IOStream) -> None:
    await gen.with_timeout(SHORT, read_on(stream), quiet_exceptions=StreamClosedError)


async def read_within_fail_after(stream: IOStream) -> None:
    anyio = pytest.importorskip("anyio")
    with anyio.fail_after(0.05):
        await read_on(stream)


async def read_within_fail_after_in_a_group(stream: IOStream) -> None:
    anyio = pytest.importorskip("anyio")
    async with anyio.create_task_group() as group:
        group.start_soon(read_within_fail_after, stream)


SHORT = datetime.timedelta(seconds=0.05)

READS: dict[str, tuple[Callable[[IOStream], Awaitable[None]], str]] = {
    "an end": (read_on, "eof"),
    "the timeout of a read": (read_until_its_timeout, "read_timeout"),
    "asyncio.timeout": (read_within_asyncio_timeout, "read_timeout"),
    "asyncio.wait_for": (read_by_wait_for, "read_timeout"),
    "asyncio.timeout round a read into a buffer": (read_into_within_asyncio_timeout, "read_timeout"),
    "asyncio.timeout round a framing": (read_messages_within_asyncio_timeout, "read_timeout"),
    "asyncio.timeout round the stream of an object's object": (read_of_a_nested_object, "read_timeout"),
    "asyncio.timeout round a bound method": (read_by_a_method_at_hand, "read_timeout"),
    "asyncio.timeout round a partial": (read_by_a_partial_at_hand, "read_timeout"),
    "asyncio.timeout round a gather": (gather_reads, "read_timeout"),
    "gen.with_timeout": (read_by_with_timeout, "read_timeout"),
    "gen.with_timeout round a coroutine": (read_a_coroutine_by_with_timeout, "read_timeout"),
    "anyio.fail_after": (read_within_fail_after, "read_timeout"),
    "anyio.fail_after in a group of anyio": (read_within_fail_after_in_a_group, "read_timeout"),
}
if importlib.util.find_spec("anyio") is None:
    READS = {what: read for what, read in READS.items() if "anyio" not in what}


async def write_within_asyncio_timeout(stream: IOStream) -> None:
    async with asyncio.timeout(0.05):
        await stream.write(MUCH)


async def drain_within_asyncio_timeout(stream: IOStream) -> None:
    stream.write(MUCH)
    async with asyncio.timeout(0.05):
        await stream.drain()


async def write_by_wait_for(stream: IOStream) -> None:
    await asyncio.wait_for(stream.write(MUCH), 0.05)


async def write_by_with_timeout(stream: IOStream) -> None:
    await gen.with_timeout(SHORT, stream.write(MUCH), quiet_exceptions=StreamClosedError)


MUCH = bytes(1 << 24)

WRITES: dict[str, Callable[[IOStream], Awaitable[None]]] = {
    "asyncio.timeout": write_within_asyncio_timeout,
    "asyncio.timeout round a drain": drain_within_asyncio_timeout,
    "asyncio.wait_for": write_by_wait_for,
    "gen.with_timeout": write_by_with_timeout,
}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("what", READS)
@pytest.mark.gen_test
async def test_what_the_client_does_is_quiet_and_has_its_reason_also_in_a_task_group(
    serving: Serving, caplog: pytest.LogCaptureFixture, what: str, grouped: bool
) -> None:
    caplog.set_level(logging.INFO)
    read, reason = READS[what]

    async def handler(stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        if not grouped:
            await read(stream)
        async with asyncio.TaskGroup() as outer:
            outer.create_task(asyncio.sleep(PATIENCE))
            async with asyncio.TaskGroup() as group:
                group.create_task(read(stream))
                group.create_task(stream.wait_draining())

    server = serving.with_handler(handler)
    streams: list[Any] = []
    server.events.subscribe(lambda event: streams.append(event.stream), "close")
    peer = serving.connect(server)
    peer.send(b"go\n")
    if what == "an end":
        peer.half_close()
    assert await peer.receive_all() == b""
    peer.close()  # or the server would linger
    await eventually(lambda: streams)
    assert streams[0].close_reason == reason
    assert caplog.records == []


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("what", WRITES)
@pytest.mark.gen_test
async def test_a_client_that_does_not_take_what_is_written_within_a_timeout_is_quiet_and_has_its_reason(
    serving: Serving, caplog: pytest.LogCaptureFixture, what: str, grouped: bool
) -> None:
    caplog.set_level(logging.INFO)

    async def handler(stream: IOStream, address: Any) -> None:
        if not grouped:
            await WRITES[what](stream)
        async with asyncio.TaskGroup() as group:
            group.create_task(WRITES[what](stream))
            group.create_task(stream.wait_draining())

    server = serving.with_handler(handler)
    peer = serving.connect(server)
    await eventually(lambda: len(server.streams))
    (stream,) = server.streams
    await eventually(lambda: stream.close_reason)
    assert stream.close_reason == "write_timeout"
    peer.reset()
    await eventually(stream.closed)
    assert stream.close_reason == "write_timeout"
    assert caplog.records == []


async def timeout_round_a_write_of_ours(address: Any) -> None:
    stream = await TCPClient().connect(*address)
    try:
        async with asyncio.timeout(0.05):
            await stream.write(MUCH)
    finally:
        stream.abort()


async def with_timeout_round_a_read_of_ours(address: Any) -> None:
    stream = await TCPClient().connect(*address)
    try:
        await gen.with_timeout(SHORT, stream.read_until(b"!"), quiet_exceptions=StreamClosedError)
    finally:
        stream.close()


async def timeout_round_a_future(address: Any) -> None:
    future = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(0.05):
        await future


async def timeout_of_the_kernel(address: Any) -> None:
    raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")


OTHERS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "asyncio.timeout round a write": timeout_round_a_write_of_ours,
    "gen.with_timeout": with_timeout_round_a_read_of_ours,
    "asyncio.timeout round a future": timeout_round_a_future,
    "the kernel's timeout": timeout_of_the_kernel,
}


@pytest.mark.parametrize("before", ["nothing", "a timeout", "a read that goes on"])
@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.gen_test
async def test_a_timeout_of_something_else_is_the_handlers_error_whatever_the_client_did(
    serving: Serving, caplog: pytest.LogCaptureFixture, what: str, before: str
) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        reading: Any = None
        await stream.read_until(b"\n")
        if before == "a timeout":
            with contextlib.suppress(TimeoutError):
                await read_within_asyncio_timeout(stream)
        elif before == "a read that goes on":
            reading = asyncio.ensure_future(stream.read_until(b"\n"))
        try:
            await OTHERS[what](there)
        finally:
            del reading

    server = serving.with_handler(handler)
    events: list[Any] = []
    server.events.subscribe(events.append, "error")
    async with upstream(is_silent) as there:
        peer = serving.connect(server)
        peer.send(b"go\n")
        await eventually(lambda: events)
    assert events[0].reason == "handler_error"
    assert tracebacks(caplog) == [TimeoutError]


@pytest.mark.gen_test
async def test_fifty_clients_that_leave_a_task_group_write_no_line(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def read(stream: IOStream) -> None:
        while True:
            await stream.write(await stream.read_until(b"\n"))

    async def handler(stream: IOStream, address: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(read(stream))
            group.create_task(stream.wait_draining())

    server = serving.with_handler(handler)
    reasons: list[Any] = []
    server.events.subscribe(lambda event: reasons.append(event.reason), "close")
    peers = [serving.connect(server) for _ in range(50)]
    for peer in peers:
        peer.send(b"hello\n")
        assert await peer.receive(6) == b"hello\n"
        peer.close()
    await eventually(lambda: len(reasons) == 50)
    assert set(reasons) == {"eof"}
    assert caplog.records == []


@pytest.mark.gen_test
async def test_a_group_in_which_one_error_is_the_handlers_is_the_handlers(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        try:
            await stream.read_until(b"\n", timeout=0.01)
        except StreamTimeoutError as error:
            raise ExceptionGroup("both", [error, ExceptionGroup("deep", [ZeroDivisionError()])]) from None

    assert await ended(serving, serving.with_handler(handler)) == "handler_error"
    assert tracebacks(caplog) == [ExceptionGroup]


@pytest.mark.gen_test
async def test_a_failed_start_tls_of_the_client_is_quiet_and_knows_its_stream(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    async def handler(stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        try:
            await stream.start_tls(True, tls_contexts()[0])
        except ssl.SSLError as error:
            seen.append((error.stream_id, stream.id))  # type: ignore[attr-defined]
            raise

    assert await ended(serving, serving.with_handler(handler), b"go\nthis is no TLS\n") == "tls_error"
    assert seen[0][0] == seen[0][1]
    assert tracebacks(caplog) == []


@pytest.mark.gen_test
async def test_each_error_of_a_stream_knows_which_stream_raised_it(serving: Serving) -> None:
    known: dict[str, bool] = {}

    async def handler(stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        messages = JSONLines(stream)

        async def late() -> None:
            await stream.read_until(b"\n", timeout=0.01)

        async def two_reads() -> None:
            pending = stream.read_until(b"\n")
            try:
                stream.read_until(b"\n")
            finally:
                pending.cancel()

        async def too_much() -> None:
            stream.max_write_buffer_size = 1
            while True:
                stream.write(bytes(1 << 20)).add_done_callback(lambda future: future.exception())

        async def no_message() -> None:
            await messages.read()

        async def closed() -> None:
            stream.kick("you")
            assert stream.error is not None
            assert stream.error.stream_id == stream.id  # type: ignore[attr-defined]
            await stream.read_until(b"!")

        async def cannot_be_sent() -> None:
            await messages.write(object())

        for attempt in (late, two_reads, too_much, cannot_be_sent, no_message, closed):
            try:
                await attempt()
            except Exception as error:
                known[attempt.__name__] = getattr(error, "stream_id", None) == stream.id

    server = serving.with_handler(handler)
    peer = serving.connect(server)
    peer.send(b"go\n")
    await eventually(lambda: "cannot_be_sent" in known)
    peer.send(b"nonsense\n")
    await eventually(lambda: "closed" in known)
    assert known == dict.fromkeys(known, True)
    assert len(known) == 6


# ---- cancels


@pytest.mark.parametrize("kind", ["function", "coroutine", "decorated coroutine"])
@pytest.mark.gen_test
async def test_a_handler_that_raises_a_cancelled_error_by_itself_has_its_stream_closed(
    serving: Serving, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    def function(stream: IOStream, address: Any) -> None:
        raise asyncio.CancelledError

    async def coroutine(stream: IOStream, address: Any) -> None:
        raise asyncio.CancelledError

    def decorated(stream: IOStream, address: Any) -> Any:
        yield gen.moment
        raise asyncio.CancelledError

    handlers: dict[str, Handler] = {
        "function": function,
        "coroutine": coroutine,
        "decorated coroutine": gen.coroutine(decorated),
    }
    server = serving.with_handler(handlers[kind])
    assert await ended(serving, server) == "handler_error"
    assert tracebacks(caplog) == [asyncio.CancelledError]
    assert not len(server.streams)


@pytest.mark.gen_test
async def test_a_handle_close_that_raises_a_cancelled_error_is_logged_and_keeps_nobodys_place(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    class Server(TCPServer):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await stream.read_until(b"\n")

        def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
            raise asyncio.CancelledError

    server = serving.started(Server(max_connections=1))
    for _ in range(3):
        assert await ended(serving, server) == "local"
    assert tracebacks(caplog) == [asyncio.CancelledError] * 3


# ---- the log


@pytest.mark.gen_test
async def test_a_client_that_makes_a_handler_raise_does_not_fill_the_disk(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        int(await stream.read_until(b"\n"))

    server = serving.with_handler(handler)
    for _ in range(60):
        assert await ended(serving, server, b"no number\n") == "handler_error"
    assert 10 <= len(caplog.records) <= 30  # one more for each second that this takes
    assert all(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("kind", ["function", "coroutine"])
@pytest.mark.gen_test
async def test_clients_without_a_place_do_not_fill_the_disk_by_an_on_error_that_raises(
    serving: Serving, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    def function(stream: IOStream, error: StreamClosedError) -> None:
        raise ZeroDivisionError

    async def coroutine(stream: IOStream, error: StreamClosedError) -> None:
        raise ZeroDivisionError

    server = serving.started(CallbackServer(max_connections=1, on_error={"function": function}.get(kind, coroutine)))
    serving.connect(server)
    await eventually(lambda: len(server.streams))
    for _ in range(60):
        peer = serving.connect(server)
        await peer.receive_all()
        peer.close()
    await eventually(lambda: len(tracebacks(caplog)) >= 10)
    assert len(tracebacks(caplog)) <= 30


# ---- styles


@pytest.mark.gen_test
async def test_a_callback_servers_upstream_is_told_to_on_error_as_the_handlers_error(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[StreamClosedError] = []

    async def on_data(stream: IOStream, data: bytes) -> int:
        await connect_to(address)
        return len(data)

    address = refused()
    server = serving.started(CallbackServer(on_data=on_data, on_error=lambda stream, error: told.append(error)))
    assert await ended(serving, server) == "handler_error"
    await eventually(lambda: told)
    assert isinstance(told[0].real_error, StreamClosedError)
    assert told[0].real_error.operation == "connect"
    assert tracebacks(caplog) == [StreamClosedError]


@pytest.mark.gen_test
async def test_an_http_handlers_upstream_is_its_error_with_a_traceback(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    class Gateway(web.RequestHandler):
        async def get(self) -> None:
            await connect_to(refused())

    server = HTTPServer(web.Application([("/", Gateway)]))
    serving.started(server)
    peer = serving.connect(server)
    peer.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await peer.receive_all()).startswith(b"HTTP/1.1 500 ")
    assert tracebacks(caplog) == [StreamClosedError]


def raises_upstream(sock: Any) -> None:
    """What a blocking handler does that asks somebody else, who resets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
        peer = Peer(listener.accept()[0])
        peer.reset()
        with other:
            other.recv(1)


@pytest.mark.parametrize("secured", [False, True])
def test_a_blocking_handlers_upstream_is_its_error_with_a_traceback(
    io_loop: IOLoop, caplog: pytest.LogCaptureFixture, secured: bool
) -> None:
    class Gateway(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            sock.recv(1)
            raises_upstream(sock)

    options: dict[str, Any] = {"ssl_options": tls_contexts()[0]} if secured else {}
    with Gateway(**options) as server:
        server.listen(0, "127.0.0.1")
        with connect(server) as raw:
            client = tls_contexts()[1].wrap_socket(raw) if secured else raw
            client.sendall(b"x")
            assert everything(client) == b""
            client.close()
    assert tracebacks(caplog) == [ConnectionResetError]


def test_a_client_that_resets_is_no_error_of_notify_and_a_reset_upstream_is(
    io_loop: IOLoop, caplog: pytest.LogCaptureFixture
) -> None:
    told = threading.Event()
    ended = threading.Event()

    def notify(handle: Handle, notice: Notice) -> None:
        if notice is Notice.DISCONNECT:
            ended.set()
        elif notice is Notice.RECV and handle.recv(1) == b"u":
            told.set()
            raises_upstream(handle)
        elif notice is Notice.RECV:
            told.set()
            handle.recv(1)  # until the client resets

    with BlockingServer(notify=notify) as server:
        server.listen(0, "127.0.0.1")
        for letter in (b"c", b"u"):
            told.clear()
            ended.clear()
            with connect(server) as client:
                client.sendall(letter)
                assert told.wait(PATIENCE)
                if letter == b"c":
                    Peer(client).reset()
            assert ended.wait(PATIENCE)
            assert len(tracebacks(caplog)) == (letter == b"u")
    assert tracebacks(caplog) == [ConnectionResetError]


def test_a_queue_servers_upstream_is_its_error_and_its_own_full_queue_is_not(
    io_loop: IOLoop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def callback(queue: Any, data: bytes) -> None:
        if data == b"u":
            raises_upstream(None)
        while True:
            queue.put(bytes(1 << 20))

    server = QueueServer("localhost", 0, callback)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for data in (b"f", b"u"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
                client.sendall(data)
                with contextlib.suppress(ConnectionResetError):
                    while client.recv(1 << 20):
                        pass
            assert len(tracebacks(caplog)) == (data == b"u")
    finally:
        server.stop()
        thread.join()
    assert [record.levelname for record in complaints(caplog)] == ["WARNING", "ERROR"]


# ---- messages


@pytest.mark.parametrize("line", [b"1e999\n", b"[1, -1e999]\n", b'"\\ud800"\n', b'{"\\udfff": 1}\n'])
@pytest.mark.gen_test
async def test_json_that_could_not_be_written_is_refused_on_reading(
    serving: Serving, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        messages = JSONLines(stream)
        async for message in messages:
            await messages.write(message)

    assert await ended(serving, serving.with_handler(handler), line) == "local"
    assert tracebacks(caplog) == []


@pytest.mark.gen_test
async def test_json_with_a_surrogate_pair_and_large_numbers_is_answered(serving: Serving) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        messages = JSONLines(stream)
        async for message in messages:
            await messages.write(message)

    peer = serving.connect(serving.with_handler(handler))
    peer.send(b'["\\ud83d\\ude00",1e300]\n')
    expected = '["\U0001f600",1e+300]\n'.encode()
    assert await peer.receive(len(expected)) == expected


@pytest.mark.parametrize("message", ["\ud800", float("inf"), object()])
@pytest.mark.gen_test
async def test_a_message_that_fails_to_encode_is_the_handlers_error_once(
    serving: Serving, caplog: pytest.LogCaptureFixture, message: Any
) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        messages = JSONLines(stream)
        async for _ in messages:
            await messages.write(message)

    assert await ended(serving, serving.with_handler(handler), b"1\n") == "handler_error"
    assert tracebacks(caplog) == [FramingError]
    assert len(caplog.records) == 1
