"""The future of a pending read is one of asyncio's; the compiled core has a class of its own that must pass for it."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from tornado import gen
from tornado.ioloop import IOLoop

from iostreamsrv.streams.eager import waiter_of
from iostreamsrv.streams.wakeup import pending_future_type, resolve_now
from tests.support.waiting import turns

Future = asyncio.Future[Any]


@pytest.fixture
def new(io_loop: IOLoop) -> Callable[[], Future]:
    return pending_future_type(io_loop.asyncio_loop)  # type: ignore[attr-defined]


def later(function: Callable[..., object], *arguments: object) -> None:
    asyncio.get_running_loop().call_later(0.001, function, *arguments)


async def wait_for(future: Future) -> Any:
    return await future


@pytest.mark.parametrize("result", [None, 5, (), (1, 2), b"line\n", ValueError("a value"), StopIteration(3)])
@pytest.mark.gen_test
async def test_every_result_arrives(new: Callable[[], Future], result: object) -> None:
    for await_it in (wait_for, lambda future: asyncio.wait_for(future, 5), asyncio.shield):
        future = new()
        assert not future.done()
        later(future.set_result, result)
        assert await await_it(future) is result
        assert future.done() and not future.cancelled()
        assert future.result() is result and future.exception() is None
        assert await future is result  # once more


@pytest.mark.gen_test
async def test_an_exception_is_raised_each_time_with_its_own_traceback(new: Callable[[], Future]) -> None:
    future = new()
    error = ValueError("wrong")
    later(future.set_exception, error)
    lengths = []
    for _ in range(3):
        with pytest.raises(ValueError, match="wrong") as raised:
            await future
        assert raised.value is error
        lengths.append(len(raised.traceback))
    assert lengths[1] == lengths[2]  # it does not grow
    assert future.exception() is error and future.done() and not future.cancelled()


@pytest.mark.gen_test
async def test_what_is_no_exception_is_refused(new: Callable[[], Future]) -> None:
    future = new()
    with pytest.raises(TypeError):
        future.set_exception("text")  # type: ignore[arg-type]
    future.set_exception(ValueError)
    assert isinstance(future.exception(), ValueError)


@pytest.mark.gen_test
async def test_it_is_done_once(new: Callable[[], Future]) -> None:
    future = new()
    for look in (future.result, future.exception):
        with pytest.raises(asyncio.InvalidStateError):
            look()
    future.set_result(1)
    with pytest.raises(asyncio.InvalidStateError):
        future.set_result(2)
    with pytest.raises(asyncio.InvalidStateError):
        future.set_exception(ValueError())
    assert not future.cancel()
    assert await future == 1


@pytest.mark.gen_test
async def test_it_can_be_cancelled_with_a_message(new: Callable[[], Future]) -> None:
    future = new()
    assert future.cancel("enough")
    assert not future.cancel()
    assert future.cancelled() and future.done()
    for look in (future.result, future.exception):
        with pytest.raises(asyncio.CancelledError, match="enough"):
            look()
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await future


@pytest.mark.gen_test
async def test_a_task_that_is_cancelled_cancels_it(new: Callable[[], Future]) -> None:
    future = new()
    task = asyncio.create_task(wait_for(future))
    await turns(1)
    assert waiter_of(future) is task
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert future.cancelled()


@pytest.mark.gen_test
async def test_every_way_to_wait_takes_it(new: Callable[[], Future]) -> None:
    one, other = new(), new()
    assert isinstance(one, asyncio.Future) and asyncio.isfuture(one) and asyncio.ensure_future(one) is one
    assert one.get_loop() is asyncio.get_running_loop()
    later(one.set_result, 1)
    later(other.set_result, 2)
    assert await asyncio.gather(one, other) == [1, 2]
    done, pending = await asyncio.wait({one: "key", other: "value"})
    assert done == {one, other} and not pending
    for kind in (asyncio.gather, asyncio.shield):
        cancelled = new()
        waiting = asyncio.ensure_future(kind(cancelled))
        cancelled.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await waiting
    late = new()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(late, 0.001)
    assert late.cancelled()
    with pytest.raises(gen.TimeoutError):
        await gen.with_timeout(timedelta(milliseconds=1), new())
    called = new()
    happened: list[Future] = []
    IOLoop.current().add_future(called, happened.append)
    called.set_result(None)
    assert not happened
    await turns(3)
    assert happened == [called]


@pytest.mark.gen_test
async def test_callbacks_are_called_in_the_loops_next_turn_and_can_be_removed(new: Callable[[], Future]) -> None:
    future = new()
    happened: list[str] = []

    def first(_: Future) -> None:
        happened.append("first")

    def second(_: Future) -> None:
        happened.append("second")

    for callback in (first, second, first):
        future.add_done_callback(callback)
    assert future.remove_done_callback(first) == 2
    assert future.remove_done_callback(first) == 0
    future.add_done_callback(first)
    future.set_result(None)
    assert not happened
    await turns(1)
    assert happened == ["second", "first"]
    future.add_done_callback(first)
    await turns(1)
    assert happened == ["second", "first", "first"]


@pytest.mark.gen_test
async def test_with_a_task_and_a_callback_both_get_the_result_later(new: Callable[[], Future]) -> None:
    future = new()
    task = asyncio.create_task(wait_for(future))
    await turns(1)
    results: list[Any] = []
    future.add_done_callback(lambda done: results.append(done.result()))
    at_once: list[bool] = []

    def complete() -> None:
        resolve_now(future, "result")
        at_once.append(task.done())

    asyncio.get_running_loop().call_soon(complete)
    assert await task == "result"
    assert at_once == [False] and results == ["result"]


@pytest.mark.gen_test
async def test_an_exception_of_the_task_that_is_stepped_stays_in_the_task(new: Callable[[], Future]) -> None:
    async def fail(future: Future) -> None:
        await future
        raise LookupError

    future = new()
    task = asyncio.create_task(fail(future))
    await turns(1)
    asyncio.get_running_loop().call_soon(resolve_now, future, None)
    with pytest.raises(LookupError):
        await task


@pytest.mark.gen_test
async def test_it_is_an_object_as_others_are(new: Callable[[], Future]) -> None:
    future = new()
    future.note = "mine"  # type: ignore[attr-defined]
    assert "pending" in repr(future)
    future.set_result(7)
    assert "7" in repr(future)
    assert {future: 1}[future] == 1
    seen = weakref.ref(future)
    future.add_done_callback(future.remove_done_callback)
    await turns(1)
    del future
    gc.collect()
    assert seen() is None


@pytest.mark.gen_test
async def test_its_method_add_done_callback_can_be_kept(new: Callable[[], Future]) -> None:
    one, other = new(), new()
    add_to_one, add_to_other = one.add_done_callback, other.add_done_callback
    called: list[Future] = []
    add_to_one(called.append)
    add_to_other(called.append)
    add_to_one(called.append, context=None)
    one.set_result(1)
    await turns()
    assert called == [one, one]
    other.set_result(2)
    await turns()
    assert called == [one, one, other]


@pytest.mark.parametrize("arguments", [(), (print, None)])
@pytest.mark.parametrize("keywords", [{}, {"other": 1}, {"context": None, "other": 1}])
def test_add_done_callback_checks_its_arguments(
    new: Callable[[], Future], arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    add: Any = new().add_done_callback
    with pytest.raises(TypeError):
        add(*arguments, **keywords)
    with pytest.raises(TypeError):
        add(print, **{"other": 1, **keywords})
