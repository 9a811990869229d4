"""Wakes the task that waits for a future at once, not a turn of the loop later."""

import asyncio
import types
from asyncio.log import logger
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any

from ..runtime.clock import real_time

_WAKEUP = "task_wakeup"  # the name of the callback that CPython's C task adds to a future


def _supports_eager_wakeup() -> bool:
    """Whether a task that awaits a future adds one callback to it, of the kind that :func:`resolve_now` can call."""
    loop = asyncio.new_event_loop()
    try:
        future: asyncio.Future[str] = loop.create_future()

        async def waiter() -> str:
            return await future

        task = loop.create_task(waiter())
        loop.call_soon(loop.stop)
        loop.run_forever()
        try:
            ((callback, context),) = future._callbacks
            if type(callback) is not types.BuiltinMethodType or callback.__name__ != _WAKEUP:
                return False
            future.remove_done_callback(callback)
            future.set_result("woken")
            context.run(callback, future)
            return task.done() and task.result() == "woken"
        except Exception:
            return False
        finally:
            future.cancel()
            task.cancel()
            loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    finally:
        loop.close()


def _probe() -> bool:
    # In another thread: this module may be imported while a loop runs in this one.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_supports_eager_wakeup).result()


EAGER_WAKEUP = _probe()
"""Whether this interpreter's tasks can be stepped at once. If not, :func:`resolve_now` goes through ``call_soon``. Then
replies to pipelined requests are sent one by one, and a task that is cancelled between completion and wake-up loses
that one read.
"""


def resolve_now(future: "asyncio.Future[Any]", result: object) -> None:
    """Set the result of ``future``. If its only callback is a task's wake-up, step that task now.

    Call it only outside any task, as in a dispatch: a task cannot be entered from within another one. Every other
    kind of callback goes through ``call_soon`` as usual: `IOLoop.add_future` promises the next turn of the loop.
    """
    callbacks: list[tuple[Callable[..., object], Context]] | None = future._callbacks
    if EAGER_WAKEUP and callbacks is not None and len(callbacks) == 1:
        callback, context = callbacks[0]
        if type(callback) is types.BuiltinMethodType and callback.__name__ == _WAKEUP:
            future.remove_done_callback(callback)
            future.set_result(result)
            if debugging:
                _step_watched(callback, context, future)
            else:
                context.run(callback, future)
            return
    future.set_result(result)


def waiter_of(future: "asyncio.Future[Any]") -> "asyncio.Future[Any] | None":
    """The task that awaits ``future``, if there is one."""
    for callback, _ in future._callbacks or ():
        waiter = getattr(callback, "__self__", None)
        if asyncio.isfuture(waiter) and hasattr(waiter, "get_coro"):
            return waiter
    return None


debugging = False
"""Whether a hub was made for a loop in asyncio's debug mode."""


def _step_watched(callback: Any, context: Context, future: "asyncio.Future[Any]") -> None:
    """Step a task, and log it if it is slow, as a loop in debug mode does."""
    loop: Any = future.get_loop()
    began = real_time()
    context.run(callback, future)
    took = real_time() - began
    if loop.get_debug() and took >= loop.slow_callback_duration:
        logger.warning("Executing %r took %.3f seconds", callback.__self__, took)
