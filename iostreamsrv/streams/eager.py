"""The task that awaits a future: which one it is, and whether it can be stepped at once, not a turn later."""

import asyncio
import types
from asyncio.log import logger
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any

from ..runtime.clock import real_time

TASK_WAKEUP = "task_wakeup"  # the name of the callback that CPython's C task adds to a future


def _find_wakeup() -> Callable[..., object] | None:
    """The one callback that a task adds to the future that it awaits, if it is of the kind that
    `wakeup.resolve_now` can call; else None."""
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
            if type(callback) is not types.BuiltinMethodType or callback.__name__ != TASK_WAKEUP:
                return None
            future.remove_done_callback(callback)
            future.set_result("woken")
            context.run(callback, future)
            return callback if task.done() and task.result() == "woken" else None
        except Exception:
            return None
        finally:
            future.cancel()
            task.cancel()
            loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    finally:
        loop.close()


def _probe() -> Callable[..., object] | None:
    # In another thread: this module may be imported while a loop runs in this one.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_find_wakeup).result()


WAKEUP = _probe()
"""Such a callback, of a task that is done; None if this interpreter's tasks cannot be stepped at once."""


def waiter_of(future: "asyncio.Future[Any]") -> "asyncio.Future[Any] | None":
    """The task that awaits ``future``, if there is one."""
    for callback, _ in future._callbacks or ():
        waiter = getattr(callback, "__self__", None)
        if asyncio.isfuture(waiter) and hasattr(waiter, "get_coro"):
            return waiter
    return None


def step_watched(loop: Any, callback: Any, context: Context, future: "asyncio.Future[Any]") -> None:
    """Step a task, and log it if it is slow, as a loop in debug mode does."""
    began = real_time()
    context.run(callback, future)
    took = real_time() - began
    if loop.get_debug() and took >= loop.slow_callback_duration:
        logger.warning("Executing %r took %.3f seconds", callback.__self__, took)
