"""Deadlines of a server's streams: who is closed, for what, and who is not.

Where somebody is to be left alone, another one that is due at the same time says how long.
"""

import asyncio
import contextlib
import inspect
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from iostreamsrv import CloseReason, IOLoop, IOStream, OptionError, StreamClosedError, StreamTimeoutError, TCPServer
from iostreamsrv.events import Event
from iostreamsrv.iostream import MORE
from iostreamsrv.server import deadlines
from iostreamsrv.server.base import core_of
from iostreamsrv.testing import MockClock, Simulation
from tests.support.peers import Peer, TLSEnd, TLSPeer, tls_contexts
from tests.support.programs import ReportingServer
from tests.support.programs import eventually as until
from tests.support.servers import Echo, Serving, answers
from tests.support.simulations import Counts, simulate
from tests.support.waiting import eventually, fill

pytestmark = pytest.mark.usefixtures("clock")

SOON = 0.15
"""Seconds of a timeout that a test waits for."""

SMALL = 4096
"""Bytes of a kernel's buffer that is full at once, and tells of each step of its reader."""


class Timed(Serving):
    """Servers whose closed streams are noted, with the reason."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[int, CloseReason | None]] = []

    def started(self, server: TCPServer, port: int = 0) -> TCPServer:
        server.events.subscribe(self._closed, "close")
        return super().started(server, port)

    def _closed(self, event: Event) -> None:
        assert event.stream is not None
        self.ends.append((event.address[1] if event.address else 0, event.reason))

    async def connect_tls(self, server: TCPServer, buffer: int | None = None) -> TLSPeer:
        raw = connect_small(server, buffer) if buffer else socket.create_connection(server.addresses[0])
        end = TLSEnd(raw, tls_contexts()[1])
        peer = TLSPeer(end)
        self.peers.append(peer)
        await eventually(end.handshake)
        return peer

    async def end_of(self, peer: Peer) -> CloseReason | None:
        """Why the peer's stream was closed, which it is waited for."""
        port = peer.socket.getsockname()[1]
        await eventually(lambda: any(each == port for each, _ in self.ends))
        return next(reason for each, reason in self.ends if each == port)

    def is_open(self, peer: Peer) -> bool:
        port = peer.socket.getsockname()[1]
        return all(each != port for each, _ in self.ends)


@pytest.fixture
def serving(io_loop: IOLoop) -> Iterator[Timed]:
    serving = Timed()
    yield serving
    serving.end()


def connect_small(server: TCPServer, size: int = SMALL) -> socket.socket:
    """A client whose kernel has room for little."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    sock.connect(server.addresses[0])
    return sock


@contextlib.asynccontextmanager
async def meanwhile(step: Callable[[], Any], every: float = 0.01) -> AsyncIterator[None]:
    """Do ``step`` again and again, until the block ends."""

    async def repeat() -> None:
        while True:
            result = step()
            if inspect.isawaitable(result):
                await result
            await asyncio.sleep(every)

    task = asyncio.create_task(repeat())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def silence(stream: IOStream, address: Any) -> None:
    """A handler that reads and never answers."""
    while True:
        await stream.read_until(b"\n")


def filling(stream: IOStream, address: Any) -> None:
    """A handler that writes more than the client takes."""
    fill(stream)


# ---- idle


@pytest.mark.gen_test
async def test_a_silent_stream_is_closed_and_its_handler_told_why(serving: Timed) -> None:
    errors: list[StreamClosedError] = []

    async def handler(stream: IOStream, address: Any) -> None:
        try:
            await stream.read_until(b"\n")
        except StreamClosedError as error:
            errors.append(error)

    server = serving.with_handler(handler, idle_timeout=SOON)
    peer = serving.connect(server)
    assert await peer.receive_all() == b""
    assert await serving.end_of(peer) == "idle_timeout"
    await eventually(lambda: errors)
    assert errors[0].reason is CloseReason.IDLE_TIMEOUT
    assert isinstance(errors[0].real_error, StreamTimeoutError)
    assert str(errors[0].real_error) == "idle for 0.15 s"


@pytest.mark.gen_test
async def test_a_stream_is_silent_also_where_nobody_reads_it(serving: Timed) -> None:
    server = serving.with_handler(lambda stream, address: None, idle_timeout=SOON)
    assert await serving.end_of(serving.connect(server)) == "idle_timeout"


@pytest.mark.gen_test
async def test_whoever_sends_now_and_then_is_not_idle(serving: Timed) -> None:
    server = serving.with_handler(silence, idle_timeout=4 * SOON)
    busy, silent = serving.connect(server), serving.connect(server)
    async with meanwhile(lambda: busy.send(b".")):
        assert await serving.end_of(silent) == "idle_timeout"
        assert serving.is_open(busy)
    assert await serving.end_of(busy) == "idle_timeout"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.gen_test
async def test_a_long_download_is_not_idle(serving: Timed, tls: bool) -> None:
    async def download(stream: IOStream, address: Any) -> None:
        await stream.write(bytes(1 << 20))

    server = serving.with_handler(
        download, idle_timeout=4 * SOON, send_buffer_size=SMALL, ssl_options=tls_contexts()[0] if tls else None
    )
    other = serving.with_handler(silence, idle_timeout=6 * SOON)
    slow = await serving.connect_tls(server, SMALL) if tls else Peer(connect_small(server))
    serving.peers.append(slow)
    silent = serving.connect(other)
    async with meanwhile(partial(slow.receive_some, 1024), 0.02):
        assert await serving.end_of(silent) == "idle_timeout"
        assert serving.is_open(slow)


@pytest.mark.gen_test
async def test_a_download_that_does_not_move_is_idle(serving: Timed) -> None:
    server = serving.with_handler(
        lambda stream, address: fill(stream) and None,
        idle_timeout=SOON,
        write_timeout=None,
        max_write_buffer_size=1 << 24,
    )
    assert await serving.end_of(serving.connect(server)) == "idle_timeout"


@pytest.mark.gen_test
async def test_receiving_broadcasts_keeps_nobody_alive(serving: Timed) -> None:
    server = serving.with_handler(silence, idle_timeout=SOON)
    peer = serving.connect(server)
    async with meanwhile(lambda: server.broadcast(b"news\n")):
        received = await peer.receive_all()
    assert received.startswith(b"news\nnews\n")
    assert await serving.end_of(peer) == "idle_timeout"


@pytest.mark.gen_test
async def test_a_record_that_comes_slowly_is_not_idle(serving: Timed) -> None:
    """As bytes that come slowly without TLS."""
    server = serving.with_handler(silence, idle_timeout=4 * SOON, ssl_options=tls_contexts()[0])
    other = serving.with_handler(silence, idle_timeout=6 * SOON)
    peer, silent = await serving.connect_tls(server), serving.connect(other)
    drip = dripping(peer, bytes(16000))
    async with meanwhile(drip):
        assert await serving.end_of(silent) == "idle_timeout"
        assert serving.is_open(peer)
    assert await serving.end_of(peer) == "idle_timeout"


def dripping(peer: TLSPeer, data: bytes) -> Callable[[], None]:
    """Sends, each time it is called, a byte of the record that ``data`` becomes."""
    peer.end.tls.write(data)
    record = iter(peer.end._outgoing.read())

    def drip() -> None:
        peer.end.raw.send(bytes([next(record)]))

    return drip


@pytest.mark.gen_test
async def test_the_time_of_the_handshake_is_not_that_of_its_stream(serving: Timed) -> None:
    server = serving.with_handler(Echo().handle_stream, idle_timeout=4 * SOON, ssl_options=tls_contexts()[0])
    end = TLSEnd(socket.create_connection(server.addresses[0]), tls_contexts()[1])
    peer = TLSPeer(end)
    serving.peers.append(peer)
    await asyncio.sleep(6 * SOON)
    await eventually(end.handshake)
    await asyncio.sleep(SOON)
    assert await answers(peer)


# ---- read


@pytest.mark.gen_test
async def test_a_read_that_drips_is_closed(serving: Timed) -> None:
    errors: list[StreamClosedError] = []

    async def handler(stream: IOStream, address: Any) -> None:
        try:
            await stream.read_until(b"\n")
        except StreamClosedError as error:
            errors.append(error)

    server = serving.with_handler(handler, read_timeout=2 * SOON)
    peer = serving.connect(server)
    async with meanwhile(lambda: peer.send(b".") if serving.is_open(peer) else None):
        assert await serving.end_of(peer) == "read_timeout"
    await eventually(lambda: errors)
    assert errors[0].reason is CloseReason.READ_TIMEOUT
    assert isinstance(errors[0].real_error, StreamTimeoutError)


async def only_who_drips_is_late(serving: Timed, server: TCPServer) -> None:
    """And not a client that sends whole lines, however long it goes on."""
    busy, dripping = serving.connect(server), serving.connect(server)

    def step() -> None:
        busy.send(b"line\n")
        if serving.is_open(dripping):
            dripping.send(b".")

    async with meanwhile(step):
        assert await serving.end_of(dripping) == "read_timeout"
        assert serving.is_open(busy)


@pytest.mark.gen_test
async def test_each_read_has_the_time_for_itself(serving: Timed) -> None:
    server = serving.started(Echo(read_timeout=4 * SOON))
    await only_who_drips_is_late(serving, server)


@pytest.mark.gen_test
async def test_a_read_that_goes_on_has_the_time_for_each_message(serving: Timed) -> None:
    def each_line(buffer: bytearray) -> tuple[int, Any] | None:
        end = buffer.rfind(b"\n") + 1
        return (end, MORE) if end else None

    async def read_on(stream: IOStream, address: Any) -> None:
        await stream.read_until_match(each_line)

    server = serving.with_handler(read_on, read_timeout=4 * SOON)
    await only_who_drips_is_late(serving, server)


@pytest.mark.gen_test
async def test_a_handler_that_does_not_read_takes_its_time(serving: Timed) -> None:
    done = asyncio.Event()

    async def work(stream: IOStream, address: Any) -> None:
        await done.wait()
        await stream.write(b"done\n")

    worker, other = serving.with_handler(work, read_timeout=SOON), serving.with_handler(silence, read_timeout=3 * SOON)
    peer, waiting = serving.connect(worker), serving.connect(other)
    assert await serving.end_of(waiting) == "read_timeout"
    done.set()
    assert await peer.receive(5) == b"done\n"


# ---- write


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.gen_test
async def test_a_client_that_takes_nothing_is_closed_with_its_descriptor(serving: Timed, tls: bool) -> None:
    errors: list[StreamClosedError] = []

    async def handler(stream: IOStream, address: Any) -> None:
        try:
            await stream.write(bytes(1 << 24))
        except StreamClosedError as error:
            errors.append(error)
            assert stream.fileno() == -1

    server = serving.with_handler(handler, write_timeout=SOON, ssl_options=tls_contexts()[0] if tls else None)
    peer = await serving.connect_tls(server) if tls else serving.connect(server)
    assert await serving.end_of(peer) == "write_timeout"
    await eventually(lambda: errors)
    assert errors[0].reason is CloseReason.WRITE_TIMEOUT
    assert isinstance(errors[0].real_error, StreamTimeoutError)


@pytest.mark.gen_test
async def test_what_is_owed_to_a_client_that_takes_nothing_is_given_up_after_the_close(serving: Timed) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        while not stream.queued:
            stream.write(bytes(60_000))  # corked, for the second request
            await stream.read_until(b"\n")
        stream.close()

    server = serving.with_handler(handler, write_timeout=2 * SOON, send_buffer_size=SMALL)
    peer = Peer(connect_small(server))
    serving.peers.append(peer)
    peer.send(b"\n" * 1000)
    assert await serving.end_of(peer) == "local"
    assert len(server.streams) == 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("buffer", [SMALL, None], ids=["little room", "much room"])
@pytest.mark.gen_test
async def test_a_client_that_takes_a_little_now_and_then_is_served(
    serving: Timed, tls: bool, buffer: int | None
) -> None:
    """Also where the kernel asks for more only when a third of its room is free."""
    size = 1 << 24

    async def handler(stream: IOStream, address: Any) -> None:
        await stream.write(bytes(size))

    server = serving.with_handler(
        handler, write_timeout=4 * SOON, send_buffer_size=buffer, ssl_options=tls_contexts()[0] if tls else None
    )
    other = serving.with_handler(silence, idle_timeout=8 * SOON)
    slow = await serving.connect_tls(server, SMALL) if tls else Peer(connect_small(server))
    serving.peers.append(slow)
    silent = serving.connect(other)
    async with meanwhile(partial(slow.receive_some, 1024), 0.02):
        assert await serving.end_of(silent) == "idle_timeout"
        assert serving.is_open(slow)


# ---- the minimum rate


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.gen_test
async def test_a_read_that_comes_too_slowly_is_closed(serving: Timed, tls: bool) -> None:
    server = serving.with_handler(
        silence, min_rate=10_000, min_rate_window=SOON, ssl_options=tls_contexts()[0] if tls else None
    )
    peer = await serving.connect_tls(server) if tls else serving.connect(server)
    async with meanwhile(lambda: peer.send(b".") if serving.is_open(peer) else None):
        assert await serving.end_of(peer) == "min_rate"


@pytest.mark.gen_test
async def test_a_record_that_comes_too_slowly_is_closed(serving: Timed) -> None:
    server = serving.with_handler(silence, min_rate=10_000, min_rate_window=SOON, ssl_options=tls_contexts()[0])
    peer = await serving.connect_tls(server)
    drip = dripping(peer, bytes(16000))
    async with meanwhile(lambda: drip() if serving.is_open(peer) else None):
        assert await serving.end_of(peer) == "min_rate"


@pytest.mark.gen_test
async def test_a_record_that_comes_fast_enough_is_served(serving: Timed) -> None:
    server = serving.with_handler(silence, min_rate=10, min_rate_window=2 * SOON, ssl_options=tls_contexts()[0])
    other = serving.with_handler(silence, idle_timeout=6 * SOON)
    peer, silent = await serving.connect_tls(server), serving.connect(other)
    async with meanwhile(dripping(peer, bytes(16000))):
        assert await serving.end_of(silent) == "idle_timeout"
        assert serving.is_open(peer)


@pytest.mark.gen_test
async def test_a_rate_is_asked_of_what_has_begun_to_come_and_not_of_silence(serving: Timed) -> None:
    server = serving.started(Echo(min_rate=10_000, min_rate_window=SOON))
    silent, slow = serving.connect(server), serving.connect(server)
    assert await answers(silent)
    slow.send(b"x")
    assert await serving.end_of(slow) == "min_rate"
    assert await answers(silent)


@pytest.mark.parametrize("into", [False, True], ids=["read_until", "read_into"])
@pytest.mark.gen_test
async def test_no_rate_is_asked_of_a_read_that_its_handler_has_given_up(serving: Timed, into: bool) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SOON / 2):
                await (stream.read_into(bytearray(100)) if into else stream.read_until(b"\n"))
        await asyncio.sleep(6 * SOON)
        await stream.write(b"too late\n")

    server = serving.with_handler(handler, min_rate=10_000, min_rate_window=SOON)
    peer = serving.connect(server)
    peer.send(b"half a line")
    assert await peer.receive_all() == b"too late\n"
    assert await serving.end_of(peer) == "local"


@pytest.mark.gen_test
async def test_an_upload_that_is_fast_enough_may_take_as_long_as_it_likes(serving: Timed) -> None:
    received: list[int] = []

    async def upload(stream: IOStream, address: Any) -> None:
        received.append(len(await stream.read_until_close()))

    server = serving.with_handler(upload, min_rate=100, min_rate_window=SOON)
    fast, slow = serving.connect(server), serving.connect(server)
    slow.send(b"x")
    async with meanwhile(lambda: fast.send(bytes(1000))):
        assert await serving.end_of(slow) == "min_rate"
        for _ in range(3):
            slow = serving.connect(server)
            slow.send(b"x")
            assert await serving.end_of(slow) == "min_rate"
    fast.half_close()
    await eventually(lambda: received)
    assert received[0] % 1000 == 0


# ---- before the handler


def proxied(timeout: float) -> dict[str, Any]:
    return {"proxy_protocol": ["127.0.0.1/32"], "proxy_header_timeout": timeout}


@pytest.mark.parametrize("phase", ["handshake", "header"])
@pytest.mark.gen_test
async def test_newcomers_put_nobodys_deadline_off(serving: Timed, phase: str) -> None:
    options = proxied(0.1) if phase == "header" else {"handshake_timeout": 0.1, "ssl_options": tls_contexts()[0]}
    server = serving.with_handler(silence, **options)
    first = serving.connect(server)
    async with meanwhile(lambda: serving.connect(server), 0.005):
        assert await serving.end_of(first) == ("proxy_error" if phase == "header" else "handshake_timeout")


@pytest.mark.gen_test
async def test_other_timeouts_begin_with_the_handler(serving: Timed) -> None:
    server = serving.with_handler(silence, idle_timeout=SOON, **proxied(30))
    waiting, served = serving.connect(server), serving.connect(server)
    served.send(b"PROXY UNKNOWN\r\n")
    assert await serving.end_of(served) == "idle_timeout"
    assert serving.is_open(waiting)


@pytest.mark.gen_test
async def test_a_close_in_order_has_its_time(serving: Timed) -> None:
    """Or what the client sends meanwhile would be answered with a reset, which may destroy the last reply."""

    async def reply(stream: IOStream, address: Any) -> None:
        await stream.write(b"reply\n")

    server = serving.with_handler(reply, idle_timeout=SOON, read_timeout=SOON, min_rate=10_000, min_rate_window=SOON)
    peer, silent = serving.connect(server), serving.connect(serving.with_handler(silence, idle_timeout=4 * SOON))
    assert await peer.receive_all() == b"reply\n"
    peer.send(b"more")
    assert await serving.end_of(silent) == "idle_timeout"
    assert serving.is_open(peer)
    peer.half_close()
    assert await serving.end_of(peer) == "local"


# ---- a stream's own, and others in the server's place


@pytest.mark.gen_test
async def test_a_stream_may_have_timeouts_of_its_own(serving: Timed) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        if await stream.read_until(b"\n") == b"patient\n":
            stream.set_timeouts(idle=None)
        await Echo().handle_stream(stream, address)

    server = serving.with_handler(handler, idle_timeout=4 * SOON)
    patient, other = serving.connect(server), serving.connect(server)
    patient.send(b"patient\n")
    other.send(b"other\n")
    assert await serving.end_of(other) == "idle_timeout"
    assert await answers(patient)


@pytest.mark.parametrize("name", ["idle", "read"])
@pytest.mark.gen_test
async def test_a_stream_may_have_timeouts_where_the_server_has_none(serving: Timed, name: str) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        stream.set_timeouts(**{name: SOON})
        await silence(stream, address)

    assert await serving.end_of(serving.connect(serving.with_handler(handler))) == f"{name}_timeout"


@pytest.mark.gen_test
async def test_timeouts_that_are_not_given_stay_as_they_are(serving: Timed) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        stream.set_timeouts(idle=SOON)
        stream.set_timeouts(read=30)
        await silence(stream, address)

    assert await serving.end_of(serving.connect(serving.with_handler(handler))) == "idle_timeout"


@pytest.mark.gen_test
async def test_a_streams_own_timeouts_stay_when_it_goes_on_under_tls(serving: Timed) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        stream.set_timeouts(idle=None)
        await Echo().handle_stream(await stream.start_tls(True, tls_contexts()[0]), address)

    server = serving.with_handler(handler, idle_timeout=4 * SOON)
    secured = await serving.connect_tls(server)
    other = serving.connect(serving.with_handler(silence, idle_timeout=6 * SOON))
    assert await serving.end_of(other) == "idle_timeout"
    assert await answers(secured)


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "1"])
@pytest.mark.gen_test
async def test_a_streams_own_timeout_must_be_one(serving: Timed, value: Any) -> None:
    server = serving.started(Echo())
    peer = serving.connect(server)
    assert await answers(peer)
    (stream,) = server.streams
    with pytest.raises(OptionError, match="idle"):
        stream.set_timeouts(idle=value)


@pytest.mark.gen_test
async def test_a_timeout_that_is_replaced_holds_for_the_streams_there_are(
    serving: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "LONGEST", 60.0)  # between two looks: it is not by the next one that this is found
    server = serving.started(Echo(write_timeout=None))
    peer = serving.connect(server)
    assert await answers(peer)
    server.replace_options(idle_timeout=SOON)
    assert await serving.end_of(peer) == "idle_timeout"


@pytest.mark.gen_test
async def test_a_timeout_that_is_taken_away_closes_nobody(serving: Timed) -> None:
    server, other = serving.started(Echo(idle_timeout=3 * SOON)), serving.started(Echo(idle_timeout=5 * SOON))
    peer, control = serving.connect(server), serving.connect(other)
    assert await answers(peer)
    server.replace_options(idle_timeout=None)
    assert await serving.end_of(control) == "idle_timeout"
    assert await answers(peer)


@pytest.mark.gen_test
async def test_options_that_are_replaced_again_and_again_postpone_no_timeout(serving: Timed) -> None:
    server = serving.started(Echo(idle_timeout=SOON))
    peer = serving.connect(server)
    assert await answers(peer)

    async def replace() -> None:
        for count in range(2, 1000):
            await asyncio.sleep(deadlines.SHORTEST / 2)  # more often than the server checks
            server.replace_options(max_connections=count)

    replacing = asyncio.create_task(replace())
    assert await serving.end_of(peer) == "idle_timeout"
    assert not replacing.done()
    replacing.cancel()


def test_options_may_be_replaced_when_the_loop_is_closed() -> None:
    server = Echo(idle_timeout=30)

    async def main() -> None:
        server.listen(0, "127.0.0.1")
        _, writer = await asyncio.open_connection(*server.addresses[0])
        await eventually(lambda: len(server.streams))
        server.stop()
        await server.close_all_connections()
        writer.close()
        await writer.wait_closed()

    asyncio.run(main())
    server.replace_options(idle_timeout=20)
    assert server.options.idle_timeout == 20


# ---- the clock


@pytest.mark.gen_test
async def test_the_clock_stops_with_the_last_stream_and_starts_again_with_the_next(serving: Timed) -> None:
    server = serving.with_handler(silence, idle_timeout=SOON)
    for _ in range(2):
        assert await serving.end_of(serving.connect(server)) == "idle_timeout"
        await eventually(lambda: core_of(server).connections.deadlines._timer is None)


def test_the_clock_goes_on_in_another_loop() -> None:
    server = Echo(idle_timeout=SOON)

    async def main(sim: Simulation) -> None:
        server.listen(7000, "10.1.0.1")
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        async with asyncio.timeout(2 * SOON):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        await eventually(lambda: len(server.streams))
        server.stop()
        await server.close_all_connections()  # while the clock runs
        writer.close()
        await writer.wait_closed()

    for _ in range(2):
        simulate(main)


@pytest.mark.gen_test
async def test_the_time_of_day_does_not_matter(serving: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serving.started(Echo(idle_timeout=60))
    peer = serving.connect(server)
    assert await answers(peer)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    assert await serving.end_of(serving.connect(serving.with_handler(silence, idle_timeout=2 * SOON))) == "idle_timeout"
    assert await answers(peer)


# ---- a server that slept, or is slow


SLEEP = 2.0
"""Seconds that a server sleeps, of whose timeouts each is shorter."""


async def has_slept(clock: MockClock) -> None:
    """Return after a sleep of the server, when it has looked at its streams again."""
    await asyncio.sleep(0.001)  # all that was sent has been received
    clock.block(SLEEP)
    await asyncio.sleep(SLEEP / 6)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.gen_test
async def test_nobody_is_closed_for_the_time_the_server_slept(serving: Timed, clock: MockClock, tls: bool) -> None:
    timeouts = {"idle_timeout": SLEEP / 2, "read_timeout": SLEEP / 2, "write_timeout": SLEEP / 2}
    server = serving.started(
        Echo(
            ssl_options=tls_contexts()[0] if tls else None,
            send_buffer_size=SMALL,
            max_buffer_size=2_000_000,
            **timeouts,
        )
    )
    large = bytes(1_000_000) + b"\n"
    idle, reading, writing = [await serving.connect_tls(server) if tls else serving.connect(server) for _ in range(3)]
    assert await answers(idle)
    clock.autojump_threshold = 0.02  # so much takes the kernel its time
    await writing.send_all(large)
    reading.send(b"half of ")
    await has_slept(clock)
    reading.send(b"a line\n")
    idle.send(b"hello\n")
    assert await reading.receive(15) == b"half of a line\n"
    assert await idle.receive(6) == b"hello\n"
    assert await writing.receive(len(large)) == large
    clock.autojump_threshold = 0
    assert await serving.end_of(idle) in {"idle_timeout", "read_timeout"}, "its time goes on"
    assert {reason for _, reason in serving.ends} <= {"idle_timeout", "read_timeout"}


@pytest.mark.gen_test
async def test_no_handshake_is_ended_for_the_time_the_server_slept(serving: Timed, clock: MockClock) -> None:
    server = serving.started(Echo(ssl_options=tls_contexts()[0], handshake_timeout=SLEEP / 2))
    early, silent = TLSEnd(socket.create_connection(server.addresses[0]), tls_contexts()[1]), serving.connect(server)
    peer = TLSPeer(early)
    serving.peers.append(peer)
    await has_slept(clock)
    await eventually(early.handshake)
    assert await answers(peer)
    assert await serving.end_of(silent) == "handshake_timeout", "its time goes on"


@pytest.mark.gen_test
async def test_no_header_is_ended_for_the_time_the_server_slept(serving: Timed, clock: MockClock) -> None:
    server = serving.started(Echo(**proxied(SLEEP / 2)))
    early, silent = serving.connect(server), serving.connect(server)
    await has_slept(clock)
    early.send(b"PROXY UNKNOWN\r\n")
    assert await answers(early)
    assert await serving.end_of(silent) == "proxy_error", "its time goes on"


STOP = 1.0
"""Seconds that a process is stopped for, in real time."""


def test_nobody_is_closed_for_the_time_the_process_was_stopped() -> None:
    with ReportingServer(read_timeout=STOP / 2) as server, server.client() as reading, server.client() as silent:
        reading.send(b"half of ")
        until(lambda: server.report()["streams"] == 2, server.report)
        server.send_signal(signal.SIGSTOP)
        time.sleep(STOP)
        server.send_signal(signal.SIGCONT)
        time.sleep(STOP / 6)
        assert reading.ask(b"a line\n") == b"half of a line\n"
        assert silent.line() == b"", "its time goes on"


@pytest.mark.parametrize("pause", [0.1, 0.2, 0.6, 1.1])
def test_handlers_that_block_the_loop_again_and_again_make_timeouts_twice_as_long(pause: float) -> None:
    async def main(sim: Simulation) -> None:
        server = sim.serve(Counts(idle_timeout=4.0))
        peer = await sim.connect(server)
        began = sim.time
        while not server.ends:
            await sim.sleep(pause)
            sim.stop(1.0)
        assert [reason for _, reason in server.ends] == ["idle_timeout"]
        assert 4 < sim.time - began < 2 * 4 + 3 * (pause + 1)
        await peer.aclose()

    simulate(main)


@pytest.mark.parametrize("seconds, clients", [(0.1, 12), (0.8, 3)])
@pytest.mark.gen_test
async def test_nobody_is_closed_while_handlers_keep_the_server_from_receiving(
    serving: Timed, clock: MockClock, seconds: float, clients: int
) -> None:
    """Neither for one long sleep nor for many that are short."""

    async def blocks(stream: IOStream, address: Any) -> None:
        while True:
            line = await stream.read_until(b"\n")
            clock.block(seconds)
            await stream.write(line)

    server = serving.with_handler(blocks, idle_timeout=0.5, read_timeout=0.5)
    crowd = [serving.connect(server) for _ in range(clients)]
    for client in crowd:
        client.send(b"line\n")
    for _ in range(2):
        for client in crowd:
            assert await client.receive(5) == b"line\n"
            client.send(b"line\n")
