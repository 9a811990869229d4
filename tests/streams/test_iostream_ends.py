"""`IOStream`: closing, in every manner and for every reason."""

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

import pytest

from iostreamsrv import CloseReason, IOLoop, IOStream, OptionError, StreamClosedError
from iostreamsrv.streams import closing as ends
from tests.support.cores import python_core
from tests.support.engines import on_every_stream
from tests.support.peers import MakePair, Peer, tcp_pair
from tests.support.waiting import PATIENCE, eventually, fill, turns

pytestmark = on_every_stream


# ---- close


@pytest.mark.gen_test
async def test_close_closes_now_and_once(stream: IOStream, peer: Peer) -> None:
    assert not stream.closed()
    assert stream.close_reason is None
    stream.close()
    assert stream.closed()
    assert stream.close_reason is CloseReason.LOCAL
    assert stream.error is None
    assert stream.fileno() == -1
    assert stream.socket is None
    stream.close(RuntimeError())
    stream.abort()
    assert stream.close_reason == "local"
    assert stream.error is None
    assert await peer.receive_all() == b""


@pytest.mark.gen_test
async def test_close_takes_an_error_in_each_of_its_forms(make_pair: MakePair) -> None:
    error = RuntimeError("why")
    for form in (error, (RuntimeError, error, None), True):
        stream, _ = make_pair()
        future = stream.read_bytes(1)
        try:
            raise error
        except RuntimeError:
            stream.close(form)
        assert stream.error is error
        assert stream.real_error is error
        with pytest.raises(StreamClosedError, match="why") as caught:
            await future
        assert caught.value.real_error is error


@pytest.mark.gen_test
async def test_close_without_a_current_error_has_none(stream: IOStream) -> None:
    stream.close(True)
    assert stream.error is None


@pytest.mark.gen_test
async def test_close_may_come_from_another_task_and_from_the_reader_itself(make_pair: MakePair) -> None:
    (one, one_peer), (other, other_peer) = make_pair(), make_pair()
    reading = asyncio.create_task(_read_line(other))

    async def closer() -> None:
        await one.read_until(b"\n")
        other.close()
        one.close()

    closing = asyncio.create_task(closer())
    await turns()
    one_peer.send(b"go\n")
    await closing
    with pytest.raises(StreamClosedError):
        await reading
    assert await one_peer.receive_all() == await other_peer.receive_all() == b""


async def _read_line(stream: IOStream) -> bytes:
    return await stream.read_until(b"\n")


@pytest.mark.gen_test
async def test_closing_after_the_loop_closed_everything_is_harmless(engine: str) -> None:
    """As `tornado.testing` does it: ``IOLoop.close(all_fds=True)`` first."""

    def on_a_loop_of_its_own() -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        ours, theirs = socket.socketpair()
        io_loop = IOLoop.current()

        async def pending() -> IOStream:
            stream = IOStream(ours)
            stream.read_until(b"\n")
            return stream

        stream = io_loop.run_sync(pending)
        io_loop.close(all_fds=True)
        stream.close()
        theirs.close()
        ours.close()
        asyncio.set_event_loop(None)

    await asyncio.to_thread(on_a_loop_of_its_own)
    await asyncio.get_running_loop().shutdown_default_executor()


# ---- aclose


@pytest.mark.gen_test
async def test_aclose_delivers_everything_and_then_the_end(make_pair: MakePair) -> None:
    stream, peer = make_pair(socket.socketpair())
    future = stream.write(bytes(3_000_000))
    assert stream.writing()
    closing = asyncio.create_task(stream.aclose())
    assert len(await peer.receive_all()) == 3_000_000
    await future
    peer.close()
    await closing
    assert stream.close_reason == "local"


@pytest.mark.parametrize("size", [1_000, 100_000, 256_000])
@pytest.mark.gen_test
async def test_the_last_reply_survives_unread_input(stream: IOStream, peer: Peer, size: int) -> None:
    await peer.send_all(b"request\n" + bytes(size))
    await stream.read_until(b"\n")
    stream.write(b"x" * 100_000)
    closing = asyncio.create_task(stream.aclose())
    assert await peer.receive_all() == b"x" * 100_000  # a reset would raise here
    peer.close()
    await closing


@pytest.mark.gen_test
async def test_aclose_gives_up_after_its_timeout(stream: IOStream, peer: Peer) -> None:
    fill(stream)
    await stream.aclose(timeout=0.02)
    assert stream.closed()
    assert stream.close_reason == "write_timeout"


@pytest.mark.gen_test
async def test_aclose_does_not_wait_for_ever_for_a_peer_who_stays(stream: IOStream, peer: Peer) -> None:
    await stream.aclose(timeout=0.02)
    assert stream.closed()
    assert await peer.receive_all() == b""


@pytest.mark.gen_test
async def test_aclose_stops_receiving_from_a_peer_who_does_not_stop_sending(
    stream: IOStream, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "LINGER_BYTES", 1 << 20)
    closing = asyncio.create_task(stream.aclose())
    with pytest.raises(ConnectionError):
        while True:
            await peer.send_all(bytes(100_000))
    await closing
    assert stream.bytes_read < 2 << 20


@pytest.mark.gen_test
async def test_aclose_ends_at_once_when_the_peer_ended_first(stream: IOStream, peer: Peer) -> None:
    peer.half_close()
    async with asyncio.timeout(1):  # the linger would take two
        await stream.aclose()
    assert stream.closed()


@pytest.mark.gen_test
async def test_aclose_keeps_what_is_buffered(stream: IOStream, peer: Peer) -> None:
    peer.send(b"abcdef")
    assert await stream.read_bytes(2) == b"ab"
    peer.close()
    await stream.aclose()
    assert await stream.read_bytes(4) == b"cdef"


@pytest.mark.gen_test
async def test_aclose_fails_the_pending_read_and_later_writes(stream: IOStream, peer: Peer) -> None:
    future = stream.read_until(b"\n")
    closing = asyncio.create_task(stream.aclose())
    with pytest.raises(StreamClosedError, match=r"on this side \(local\)"):
        await future
    with pytest.raises(StreamClosedError):
        stream.write(b"abc")
    peer.close()
    await closing


@pytest.mark.gen_test
async def test_a_cancelled_aclose_closes_all_the_same(stream: IOStream, peer: Peer) -> None:
    fill(stream)
    closing = asyncio.create_task(stream.aclose())
    await turns()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert stream.closed()


@pytest.mark.gen_test
async def test_aclose_of_a_closed_stream_does_nothing(stream: IOStream, peer: Peer) -> None:
    peer.close()
    await stream.aclose()
    await stream.aclose()
    stream.close()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "1"])
@pytest.mark.gen_test
async def test_aclose_names_a_bad_timeout(stream: IOStream, timeout: Any) -> None:
    with pytest.raises(OptionError, match="timeout="):
        await stream.aclose(timeout=timeout)
    assert not stream.closed()


def without_task(coroutine: Coroutine[Any, Any, None]) -> "asyncio.Future[None]":
    """Run a coroutine by callbacks."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def step(_: object = None) -> None:
        assert asyncio.current_task() is None
        try:
            waited_for = coroutine.send(None)
        except StopIteration:
            ended.set_result(None)
        except Exception as error:
            ended.set_exception(error)
        else:
            waited_for.add_done_callback(step)

    loop.call_soon(step)
    return ended


@pytest.mark.gen_test
async def test_aclose_outside_of_a_task_delivers_everything(stream: IOStream, peer: Peer) -> None:
    count = fill(stream)
    first, second = without_task(stream.aclose()), without_task(stream.aclose(timeout=PATIENCE))
    assert len(await peer.receive_all()) == count
    peer.close()
    await first
    await second
    assert stream.close_reason == "local"


@pytest.mark.parametrize("limits", [(0.02, None), (None, 0.02)])
@pytest.mark.gen_test
async def test_aclose_outside_of_a_task_gives_up_after_its_timeout(
    stream: IOStream, peer: Peer, limits: tuple[float | None, float | None]
) -> None:
    fill(stream)
    closing = [without_task(stream.aclose(timeout=timeout)) for timeout in limits]
    await asyncio.gather(*closing)
    assert stream.close_reason == "write_timeout"


@pytest.mark.gen_test
async def test_a_reset_while_aclose_waits_ends_it_and_the_first_reason_stays(stream: IOStream, peer: Peer) -> None:
    fill(stream)
    closing = asyncio.create_task(stream.aclose())
    await turns()
    peer.reset()
    await closing
    assert stream.close_reason == "local"
    assert isinstance(stream.error, ConnectionError)


# ---- abort


@pytest.mark.gen_test
async def test_abort_resets_the_connection(stream: IOStream, peer: Peer) -> None:
    await stream.write(b"abc")
    assert await peer.receive(3) == b"abc"
    stream.abort()
    assert stream.closed()
    assert stream.close_reason is CloseReason.ABORTED
    with pytest.raises(ConnectionResetError):
        await peer.receive_all()


@pytest.mark.gen_test
async def test_abort_throws_away_what_is_queued(stream: IOStream, peer: Peer) -> None:
    fill(stream)
    future = stream.write(b"abc")
    read = stream.read_bytes(1)
    stream.abort()
    for failed in (future, read):
        with pytest.raises(StreamClosedError) as caught:
            await failed
        assert caught.value.reason == "aborted"
    assert not stream.writing()


# ---- the close callback


@pytest.mark.parametrize("how", ["close", "aclose", "abort", "eof", "reset", "unsatisfiable"])
@pytest.mark.gen_test
async def test_the_close_callback_is_called_once_however_the_stream_ends(
    stream: IOStream, peer: Peer, how: str
) -> None:
    reasons: list[CloseReason | None] = []
    stream.set_close_callback(lambda: reasons.append(stream.close_reason))
    if how == "close":
        stream.close()
        assert reasons == [], "it was called within close()"
    elif how == "aclose":
        peer.half_close()
        await stream.aclose()
    elif how == "abort":
        stream.abort()
    elif how == "eof":
        peer.close()
    elif how == "reset":
        peer.reset()
    else:
        peer.send(b"abcdef")
        with pytest.raises(StreamClosedError):
            await stream.read_until(b"\n", 3)
    await eventually(lambda: reasons)
    stream.close()
    await turns()
    assert len(reasons) == 1
    expected = {"close": "local", "aclose": "local", "abort": "aborted", "unsatisfiable": "buffer_full"}
    assert reasons[0] in (expected.get(how, how), "eof" if how == "aclose" else None)


@pytest.mark.parametrize("before", ["nothing", "a served read", "a cancelled read"])
@pytest.mark.gen_test
async def test_the_close_callback_notices_the_end_while_nobody_reads(stream: IOStream, peer: Peer, before: str) -> None:
    closed = asyncio.Event()
    stream.set_close_callback(closed.set)
    if before == "a served read":
        peer.send(b"abc")
        assert await stream.read_bytes(3) == b"abc"
    elif before == "a cancelled read":
        stream.read_bytes(3).cancel()
    await turns()
    peer.close()
    await closed.wait()
    assert stream.closed()
    assert stream.close_reason == "eof"


@pytest.mark.gen_test
async def test_a_close_callback_of_a_closed_stream_is_called(stream: IOStream) -> None:
    stream.close()
    closed = asyncio.Event()
    stream.set_close_callback(closed.set)
    assert not closed.is_set()
    await closed.wait()


@pytest.mark.gen_test
async def test_none_takes_the_close_callback_back(stream: IOStream) -> None:
    called: list[int] = []
    stream.set_close_callback(lambda: called.append(1))
    stream.set_close_callback(None)
    stream.close()
    await turns()
    assert not called


@pytest.mark.gen_test
async def test_with_a_close_callback_unread_bytes_stay_readable_after_the_end(stream: IOStream, peer: Peer) -> None:
    closed = asyncio.Event()
    stream.set_close_callback(closed.set)
    peer.send(b"one\ntwo\n")
    assert await stream.read_until(b"\n") == b"one\n"
    peer.close()
    assert await stream.read_until(b"\n") == b"two\n"
    await closed.wait()


@pytest.mark.gen_test
async def test_without_a_close_callback_an_unread_end_waits_for_a_reader(stream: IOStream, peer: Peer) -> None:
    peer.send(b"one\n")
    assert await stream.read_until(b"\n") == b"one\n"
    peer.half_close()
    await turns()
    assert not stream.closed()
    await stream.write(b"the reply of a half-closed client")
    assert await peer.receive(33) == b"the reply of a half-closed client"
    with pytest.raises(StreamClosedError, match=r"by the peer \(eof\)"):
        await stream.read_until(b"\n")


# ---- at any point


@pytest.mark.parametrize("how", ["reset", "close", "half_close"])
@pytest.mark.parametrize("point", ["idle", "reading", "reading in part", "writing", "both", "closing"])
@pytest.mark.gen_test
async def test_an_end_by_the_peer_at_any_point_is_a_clear_error(
    stream: IOStream, peer: Peer, point: str, how: str
) -> None:
    futures: list[Any] = []
    if point in ("reading", "both"):
        futures.append(stream.read_until(b"\n"))
    if point == "reading in part":
        peer.send(b"abc")
        futures.append(stream.read_until(b"\n"))
    if point in ("writing", "both"):
        fill(stream)
        futures.append(stream.drain())
    if point == "closing":
        stream.write(b"abc")
        futures.append(asyncio.ensure_future(stream.aclose(timeout=0.05)))
        await turns(2)
    getattr(peer, how)()
    if how == "half_close" and point in ("writing", "both"):
        receiving = asyncio.create_task(peer.receive_all())  # it goes on reading, and so it gets all
        await stream.drain()
        await stream.aclose(timeout=0.05)
        await receiving
    for future in futures:
        try:
            await future
        except StreamClosedError as error:
            assert error.reason in ("eof", "reset")
            assert error.operation in ("read", "write")
    if point == "idle":
        with pytest.raises(StreamClosedError) as caught:
            await stream.read_bytes(1)
        assert caught.value.reason == ("reset" if how == "reset" else "eof")
    assert stream.closed()
    assert not stream.reading()
    assert not stream.writing()


class Counting(IOStream):
    """Counts its looks at the socket."""

    looks = 0

    def _receive_some(self, ahead: bool = False) -> bytes | None:
        self.looks += 1
        return super()._receive_some(ahead)


@python_core
@pytest.mark.plain("it counts calls of recv")
@pytest.mark.gen_test
async def test_a_close_callback_takes_no_look_at_a_socket_that_has_just_been_emptied(engine: str) -> None:
    if engine not in ("epoll", "uvloop"):
        pytest.skip("without edges there is nothing but to look")
    ours, theirs = tcp_pair()
    stream, peer = Counting(ours), Peer(theirs)
    closed = asyncio.Event()
    for number in range(1, 4):
        reading = stream.read_until(b"\n")
        await turns()
        before = stream.looks
        peer.send(b"abc\n")
        assert await reading == b"abc\n"
        stream.set_close_callback(closed.set)
        await turns()
        assert stream.looks == before + 1, number
        stream.set_close_callback(None)
    stream.set_close_callback(closed.set)
    peer.close()
    await closed.wait()
