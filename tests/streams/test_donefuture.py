"""What a write returns: one awaitable for each, that passes for a future wherever futures are taken."""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest
from tornado import concurrent, gen

from iostreamsrv import IOStream
from tests.support.peers import tcp_pair

DRAWERS: dict[str, Callable[[IOStream], "asyncio.Future[Any]"]] = {
    "write": lambda stream: stream.write(b"x"),
    "drain": lambda stream: stream.drain(),
    "write-many": lambda stream: [stream.write(b"x") for _ in range(40)][-1],  # also beyond one turn's inline writes
}


@pytest.fixture(params=DRAWERS, ids=str)
def make(request: pytest.FixtureRequest) -> Callable[[IOStream], "asyncio.Future[Any]"]:
    return DRAWERS[request.param]


def stream_and_peer() -> tuple[IOStream, Any]:
    ours, theirs = tcp_pair()
    return IOStream(ours), theirs


@pytest.mark.gen_test
async def test_each_write_gives_an_awaitable_of_its_own(make: Any) -> None:
    stream, peer = stream_and_peer()
    futures = {make(stream): number for number in range(100)}
    assert len(futures) == 100
    done, pending = await asyncio.wait(futures, timeout=5)
    assert len(done) == 100 and not pending
    assert sorted(futures[future] for future in done) == list(range(100))
    stream.close()
    peer.close()


@pytest.mark.gen_test
async def test_waiting_for_the_writes_of_several_streams_loses_none() -> None:
    pairs = [stream_and_peer() for _ in range(3)]
    owner = {stream.write(b"x"): stream for stream, _ in pairs}
    done, _ = await asyncio.wait(owner)
    assert {owner[future].id for future in done} == {stream.id for stream, _ in pairs}
    for stream, peer in pairs:
        stream.close()
        peer.close()


@pytest.mark.gen_test
async def test_a_write_that_is_done_passes_for_a_future_everywhere(make: Any) -> None:
    stream, peer = stream_and_peer()
    assert isinstance(make(stream), asyncio.Future)
    assert asyncio.isfuture(make(stream))
    assert concurrent.is_future(make(stream))
    assert await make(stream) is None
    assert await asyncio.wait_for(make(stream), 5) is None
    assert await asyncio.gather(make(stream), make(stream)) == [None, None]
    assert await asyncio.shield(make(stream)) is None
    assert await asyncio.ensure_future(make(stream)) is None
    assert await gen.with_timeout(timedelta(seconds=5), make(stream)) is None
    assert await gen.multi([make(stream), make(stream)]) == [None, None]
    async with asyncio.timeout(5):
        assert [await future for future in asyncio.as_completed([make(stream), make(stream)])] == [None, None]
    stream.close()
    peer.close()


@pytest.mark.gen_test
async def test_a_coroutine_of_tornado_may_yield_a_write(make: Any) -> None:
    stream, peer = stream_and_peer()

    @gen.coroutine
    def old_style() -> Any:
        yield make(stream)
        return "done"

    assert await old_style() == "done"
    stream.close()
    peer.close()


@pytest.mark.gen_test
async def test_a_callback_of_a_done_write_is_called_in_the_next_turn_and_in_its_context() -> None:
    stream, peer = stream_and_peer()
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("set before")
    future = stream.write(b"x")
    called: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: called.set_result((done is future, variable.get())))
    assert not called.done()
    assert await called == (True, "set before")
    stream.close()
    peer.close()


@pytest.mark.gen_test
async def test_a_done_write_answers_as_a_finished_future_does() -> None:
    stream, peer = stream_and_peer()
    future = stream.write(b"x")
    assert future.done() and not future.cancelled()
    assert future.result() is None and future.exception() is None
    assert not future.cancel()
    assert future.remove_done_callback(print) == 0
    assert future.get_loop() is asyncio.get_running_loop()
    with pytest.raises(asyncio.InvalidStateError):
        future.set_result(None)
    with pytest.raises(asyncio.InvalidStateError):
        future.set_exception(ValueError())
    assert "finished" in repr(future)
    stream.close()
    peer.close()


def test_a_loop_that_does_not_run_yet_may_be_asked_to_complete_a_done_write(io_loop: Any) -> None:
    stream, peer = stream_and_peer()
    io_loop.asyncio_loop.run_until_complete(stream.write(b"x"))
    stream.close()
    peer.close()
