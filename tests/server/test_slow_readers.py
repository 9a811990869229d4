"""The ends of streams whose peer takes its time: what was written arrives as long as it takes something, and who takes
nothing gets no end that looks like one in order."""

import asyncio
import contextlib
import itertools
import logging
import socket
import time
from typing import Any

import pytest

from iostreamsrv import CloseReason, IOStream, StreamTimeoutError, TCPServer
from iostreamsrv.iostream import SSLIOStream
from iostreamsrv.runtime import stalls
from iostreamsrv.streams import closing as ends
from iostreamsrv.streams import progress
from iostreamsrv.testing import MockClock, Simulation
from tests.support.engines import on_every_loop
from tests.support.peers import Cut, Peer, TLSEnd, TLSPeer, tcp_pair, tls_contexts
from tests.support.servers import Serving
from tests.support.simulations import pair, peer_of, simulate
from tests.support.waiting import eventually, fill, turns

pytestmark = [*on_every_loop, pytest.mark.usefixtures("clock")]

WRITE_TIMEOUT = 0.4

SIZE = 12_000_000
"""Bytes of an answer: more than a kernel takes."""

OVER_BOTH = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])

ENDED = (ConnectionResetError, BrokenPipeError, Cut)
"""How a peer learns that something is missing."""


class Sending(TCPServer):
    """Writes much for each line, and returns.

    :ivar ends: the reason and the error of each stream.
    :ivar sent: is set when a handler has written.
    """

    def __init__(self, tls: bool = False, **options: Any) -> None:
        options = {"write_timeout": WRITE_TIMEOUT, "max_write_buffer_size": 1 << 26, **options}
        super().__init__(tls_contexts()[0] if tls else None, **options)
        self.ends: list[tuple[CloseReason, BaseException | None]] = []
        self.sent = asyncio.Event()

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        stream.write(bytes(SIZE)).add_done_callback(lambda future: future.exception())
        self.sent.set()

    def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        self.ends.append((reason, stream.error))


async def connect(serving: Serving, server: TCPServer, tls: bool, room: int = 65536) -> Peer:
    """A client whose kernel takes only so much."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    raw.connect(server.addresses[0])
    if not tls:
        peer = Peer(raw)
    else:
        end = TLSEnd(raw, tls_contexts()[1])
        peer = TLSPeer(end)
        await eventually(end.handshake)
    serving.peers.append(peer)
    return peer


async def read_slowly(peer: Peer, seconds: float) -> bytearray:
    """All of it, a little each time, so that it takes so long."""
    received = bytearray()
    began = asyncio.get_running_loop().time()
    while chunk := await peer.receive_some(100_000):
        received += chunk
        await asyncio.sleep(max(0.0, began + seconds * len(received) / SIZE - asyncio.get_running_loop().time()))
    return received


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- who takes something


@OVER_BOTH
@pytest.mark.gen_test(timeout=30)
async def test_a_client_that_reads_slowly_gets_all_that_was_written(
    serving: Serving, tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving.started(Sending(tls))
    peer = await connect(serving, server, tls)
    peer.send(b"please\n")
    began = asyncio.get_running_loop().time()
    assert len(await read_slowly(peer, 4 * WRITE_TIMEOUT)) == SIZE
    assert asyncio.get_running_loop().time() - began > 3 * WRITE_TIMEOUT
    peer.close()
    await eventually(lambda: server.ends)
    assert server.ends == [("local", None)]
    assert warnings(caplog) == []


@pytest.mark.gen_test(timeout=30)
async def test_a_client_that_still_reads_what_its_kernel_was_not_given_may_send(serving: Serving) -> None:
    server = serving.started(Sending(linger=0.1, send_buffer_size=1 << 22))
    peer = await connect(serving, server, False)
    peer.send(b"please\n")
    await server.sent.wait()
    received = await peer.receive(100_000)
    for _ in range(5):  # much later than the linger after the half-close
        await asyncio.sleep(0.1)
        peer.send(b"are you still there?\n")
        received += await peer.receive(100_000)
    received += await peer.receive_all()  # a reset would raise here
    assert len(received) == SIZE


@pytest.mark.gen_test
async def test_a_stream_without_a_server_waits_for_its_peer_as_well() -> None:
    ours, theirs = tcp_pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    stream, peer = IOStream(ours), Peer(theirs)
    stream.set_timeouts(write=WRITE_TIMEOUT)
    writing = stream.write(bytes(SIZE))
    closing = asyncio.create_task(stream.aclose())
    assert len(await read_slowly(peer, 3 * WRITE_TIMEOUT)) == SIZE
    peer.close()
    await closing
    await writing
    assert stream.close_reason == "local"


@pytest.mark.gen_test
async def test_a_pause_of_the_process_is_not_the_peers_fault(
    clock: MockClock | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tcp_pair()
    stream, peer = IOStream(ours), Peer(theirs)
    monkeypatch.setattr(stalls, "STALL_THRESHOLD", 0.05)
    stream.set_timeouts(write=WRITE_TIMEOUT)
    count = fill(stream)
    closing = asyncio.create_task(stream.aclose())
    await asyncio.sleep(0)
    (time.sleep if clock is None else clock.block)(2 * WRITE_TIMEOUT)
    await turns()  # the look that is late comes before the peer takes more
    assert len(await peer.receive_all()) == count
    peer.close()
    await closing
    assert stream.close_reason == "local"


@pytest.mark.parametrize("pause", [0.1, 0.3, 0.6])
def test_a_process_that_pauses_again_and_again_waits_twice_as_long_for_a_peer(pause: float) -> None:
    async def main(sim: Simulation) -> None:
        ours, theirs = await pair(sim, SO_RCVBUF=1024)
        stream = IOStream(ours)
        stream.set_timeouts(write=4.0)
        stream.write(bytes(SIZE)).add_done_callback(lambda future: future.exception())
        closing = asyncio.create_task(stream.aclose())
        await sim.sleep(0.5)
        began = sim.time
        while not stream.closed():
            await sim.sleep(pause)
            sim.stop(1.0)
        await closing
        assert 4 < sim.time - began < 2 * 4 + 3 * (pause + 1)
        assert stream.close_reason == "write_timeout"
        theirs.close()

    simulate(main)


@OVER_BOTH
def test_a_client_that_has_all_and_stays_is_not_blamed(tls: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def main(sim: Simulation) -> None:
        server = Sending(tls, linger=1.0, write_timeout=0.2)
        peer = await peer_of(sim, sim.serve(server), tls)
        peer.send(b"please\n")
        assert len(await peer.receive(SIZE)) == SIZE
        assert await peer.receive_all() == b""
        await eventually(lambda: server.ends)
        assert server.ends == [("local", None)]
        peer.close()

    simulate(main, delay=(0, 0.05))  # the last acknowledgement comes late
    assert warnings(caplog) == []


# ---- who takes nothing


@OVER_BOTH
@pytest.mark.gen_test
async def test_who_takes_nothing_of_the_last_words_gets_a_reset_which_is_said(
    serving: Serving, tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving.started(Sending(tls))
    peer = await connect(serving, server, tls)
    peer.send(b"please\n")
    await server.sent.wait()
    began = asyncio.get_running_loop().time()
    await eventually(lambda: server.ends)
    assert WRITE_TIMEOUT / 2 < asyncio.get_running_loop().time() - began < WRITE_TIMEOUT + 2
    ((reason, error),) = server.ends
    assert reason == "write_timeout"
    assert isinstance(error, StreamTimeoutError)
    (line,) = warnings(caplog)
    assert "before its peer has all" in line
    assert "took nothing for 0.4 s" in line
    assert "127.0.0.1" in line
    with pytest.raises(ENDED):
        await peer.receive_all()


@OVER_BOTH
@pytest.mark.gen_test
async def test_the_write_timeout_of_a_handler_that_writes_is_a_reset(serving: Serving, tls: bool) -> None:
    class Writing(Sending):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await stream.read_until(b"\n")
            await stream.write(bytes(SIZE))

    server = serving.started(Writing(tls))
    peer = await connect(serving, server, tls)
    peer.send(b"please\n")
    await eventually(lambda: server.ends)
    assert server.ends[0][0] == "write_timeout"
    with pytest.raises(ENDED):
        await peer.receive_all()


def test_who_takes_a_byte_now_and_then_is_given_up_for_its_rate(caplog: pytest.LogCaptureFixture) -> None:
    async def main(sim: Simulation) -> None:
        caplog.clear()
        ours, theirs = await pair(sim, SO_RCVBUF=1024)
        stream, peer = IOStream(ours), Peer(theirs)
        stream.set_timeouts(write=WRITE_TIMEOUT)
        stream.write(bytes(10_000)).add_done_callback(lambda future: future.exception())
        closing = asyncio.create_task(stream.aclose())
        with pytest.raises(ConnectionResetError):
            while await peer.receive_some(1):
                await sim.sleep(0.1)
        await closing
        assert sim.time > progress.RATE_WINDOW
        assert stream.close_reason == "min_rate"
        assert isinstance(stream.error, StreamTimeoutError)
        (line,) = warnings(caplog)
        assert "less than 240 per second" in line
        peer.close()

    simulate(main)


@pytest.mark.gen_test
async def test_without_a_write_timeout_the_rate_ends_who_takes_nothing(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "RATE_WINDOW", 0.5)
    server = serving.started(Sending(write_timeout=None))
    peer = await connect(serving, server, False)
    peer.send(b"please\n")
    await eventually(lambda: server.ends)
    assert server.ends[0][0] == "min_rate"


@OVER_BOTH
@pytest.mark.gen_test
async def test_what_is_left_after_the_time_of_an_aclose_is_no_end_in_order(serving: Serving, tls: bool) -> None:
    class Leaving(Sending):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await super().handle_stream(stream, address)
            await stream.aclose(timeout=0.1)

    server = serving.started(Leaving(tls, write_timeout=30))
    peer = await connect(serving, server, tls)
    peer.send(b"please\n")
    await eventually(lambda: server.ends)
    assert server.ends[0][0] == "write_timeout"
    with pytest.raises(ENDED):
        await peer.receive_all()


@OVER_BOTH
@pytest.mark.parametrize("ending", ["close", "kick"])
@pytest.mark.gen_test
async def test_what_a_close_leaves_of_a_graceful_close_is_no_end_in_order(
    serving: Serving, tls: bool, ending: str
) -> None:
    server = serving.started(Sending(tls, write_timeout=30))
    peer = await connect(serving, server, tls)
    peer.send(b"please\n")
    await server.sent.wait()
    await turns()
    (stream,) = server.streams
    assert stream.close_reason == "local", "it is being closed because its handler has returned"
    getattr(stream, ending)()
    await eventually(lambda: server.ends)
    with pytest.raises(ENDED):
        await peer.receive_all()


@OVER_BOTH
@pytest.mark.gen_test
async def test_what_close_owes_to_who_takes_nothing_is_given_up_with_a_reset(
    serving: Serving, tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Owing(Sending):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await stream.read_until(b"\n")
            assert stream.write(bytes(60_000)).done()  # corked, as a second line waits
            stream.close()

    server = serving.started(Owing(tls, send_buffer_size=4096))
    peer = await connect(serving, server, tls, room=4096)
    await eventually(lambda: [stream.reading() for stream in server.streams] == [True])
    peer.send(b"line\nline\n")
    await eventually(lambda: server.ends)
    assert server.ends[0][0] == "write_timeout"
    assert len(warnings(caplog)) == 1
    with pytest.raises(ENDED):
        await peer.receive_all()


@OVER_BOTH
@pytest.mark.gen_test
async def test_a_download_that_a_shutdown_cuts_off_does_not_look_whole(serving: Serving, tls: bool) -> None:
    server = serving.started(Sending(tls, drain_idle=0.01, write_timeout=30))
    peer = await connect(serving, server, tls)
    peer.send(b"please\n")
    await server.sent.wait()
    await server.shutdown(timeout=0.05)
    assert len(server.streams) == 0
    with pytest.raises(ENDED):
        await peer.receive_all()


@OVER_BOTH
@pytest.mark.gen_test
async def test_a_handler_that_a_shutdown_cuts_off_while_it_writes_does_not_look_done(
    serving: Serving, tls: bool
) -> None:
    class Writing(Sending):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await stream.read_until(b"\n")
            writing = stream.write(bytes(SIZE))
            self.sent.set()
            await writing

    server = serving.started(Writing(tls, drain_idle=0.01, write_timeout=30))
    peer = await connect(serving, server, tls)
    peer.send(b"please\n")
    await server.sent.wait()
    await server.shutdown(timeout=0.05)
    assert len(server.streams) == 0
    with pytest.raises(ENDED):
        await peer.receive_all()


@pytest.mark.gen_test
async def test_a_cancelled_aclose_of_a_half_sent_answer_is_a_reset() -> None:
    ours, theirs = tcp_pair()
    stream, peer = IOStream(ours), Peer(theirs)
    fill(stream)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await stream.aclose()
    assert stream.closed()
    assert stream.close_reason == "local"
    with pytest.raises(ConnectionResetError):
        await peer.receive_all()
    peer.close()


# ---- who goes on sending


@pytest.mark.gen_test
async def test_a_peer_that_goes_on_sending_is_lingered_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tcp_pair()
    stream, peer = IOStream(ours), Peer(theirs)
    stream.linger = 0.1
    closing = asyncio.create_task(stream.aclose())
    for _ in range(20):
        peer.send(b"and more\n")
        await asyncio.sleep(0.02)
    assert not closing.done()
    assert await peer.receive_all() == b""
    peer.close()
    await closing


@pytest.mark.gen_test
async def test_a_peer_that_goes_on_sending_does_not_keep_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "LINGER_TIME", 0.3)
    ours, theirs = tcp_pair()
    stream, peer = IOStream(ours), Peer(theirs)
    stream.linger = 0.1
    closing = asyncio.create_task(stream.aclose())
    while not closing.done():
        peer.send(b"and more\n")
        await asyncio.sleep(0.02)
    assert stream.close_reason == "local"
    peer.close()


@pytest.mark.gen_test
async def test_a_stream_under_tls_counts_progress_in_bytes_that_left() -> None:
    """A large write is encrypted long before it leaves: that must not look like a step back."""
    server, client = tls_contexts()
    ours, theirs = tcp_pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    end = TLSEnd(theirs, client)
    end.handshake()
    stream = SSLIOStream(server.wrap_socket(ours, server_side=True, do_handshake_on_connect=False))
    peer = TLSPeer(end)
    await eventually(lambda: end.handshake() and stream.wait_for_handshake().done())
    stream.write(bytes(SIZE)).add_done_callback(lambda future: future.exception())
    seen = [stream.send_progress()]
    received = 0
    while received < SIZE:
        received += len(await peer.receive_some(100_000))
        seen.append(stream.send_progress())
    steps = [later - earlier for earlier, later in itertools.pairwise(seen)]
    assert min(steps) > -16_384, "but for what each record adds"
    assert seen[-1] > SIZE - 100_000
    stream.abort()
    peer.close()
