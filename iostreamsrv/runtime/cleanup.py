"""The end of a loop: remaining tasks are cancelled, and threads waited for."""

import asyncio
import threading
import weakref
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from .clock import clock_of
from .logs import general

CLEANUP_TIMEOUT = 1.0
"""Seconds in all that run() waits at its end for cancelled tasks and for the threads of ``asyncio.to_thread``. Handlers
were waited for before, in the shutdown.
"""

CHECK_INTERVAL = 0.01
"""Seconds between two checks whether those threads have ended."""

given_up: "weakref.WeakSet[asyncio.Future[Any]]" = weakref.WeakSet()
"""Tasks that ignored their cancellation, and that a shutdown has already waited for."""


def may_end_with_loop(task: "asyncio.Task[Any] | asyncio.Future[Any]") -> None:
    """Have asyncio say nothing if this task is destroyed while it is pending.

    A loop may be closed while clients are connected, as `IOLoop.run_sync` and tests do. Even where all tasks are
    cancelled first, as by `asyncio.run`, the end of a handler starts a task that closes its stream. Nothing is wrong
    then that asyncio's "Task was destroyed but it is pending!" could help to find.
    """
    if isinstance(task, asyncio.Task):  # a loop may have others
        task._log_destroy_pending = False  # type: ignore[attr-defined]


async def end_loop(loop: asyncio.AbstractEventLoop, executor: Executor | None) -> None:
    """End all that runs in a loop, before it is closed."""
    deadline = clock_of(loop)() + CLEANUP_TIMEOUT
    await cancel_remaining_tasks()
    await loop.shutdown_asyncgens()
    await _join_threads(loop, executor, deadline)


async def cancel_remaining_tasks() -> None:
    """Cancel all other tasks of a loop that is about to be closed, and wait until they have ended.

    A task may start another one as it ends, so this goes on until none is left; each is cancelled once. It gives up
    after `CLEANUP_TIMEOUT` seconds, and at once if only tasks in `given_up` are left.
    """
    cancelled: set[asyncio.Task[Any]] = set()
    loop = asyncio.get_running_loop()
    deadline = clock_of(loop)() + CLEANUP_TIMEOUT
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in sorted(tasks - cancelled, key=age):
            task.cancel()
        cancelled |= tasks
        remaining = deadline - clock_of(loop)()
        if remaining <= 0 or tasks <= given_up:
            return _leave_alone(tasks)
        done, _ = await asyncio.wait(tasks, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled():
                task.exception()  # retrieved, so that asyncio does not log it


def age(task: "asyncio.Task[Any]") -> tuple[int, str]:
    """For a sort that does not go by addresses: by default the names of tasks end with a number, 9 before 10."""
    name = task.get_name()
    return len(name), name


def _leave_alone(tasks: set[Any]) -> None:
    for task in tasks:
        task._log_destroy_pending = False  # the warning below replaces asyncio's
    names = ", ".join(sorted(f"{task.get_name()} ({_where(task)})" for task in tasks))
    general.warning("the loop ends, and these tasks do not, though they were cancelled: %s", names)


def _where(task: "asyncio.Task[Any]") -> str:
    """The coroutine of a task, and the line where it is."""
    coroutine: Any = task.get_coro()
    name = getattr(coroutine, "__qualname__", repr(coroutine))
    frames = task.get_stack(limit=1)
    return f"{name}, {frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else name


def known_executor(loop: asyncio.AbstractEventLoop) -> Executor | None:
    """Give a loop that hides its executor, as uvloop does, a new one; None if the loop shows it."""
    if hasattr(loop, "_default_executor"):
        return None
    executor = ThreadPoolExecutor(thread_name_prefix="asyncio")
    loop.set_default_executor(executor)
    return executor


async def _join_threads(loop: asyncio.AbstractEventLoop, known: Executor | None, deadline: float) -> None:
    """Wait for the threads of ``asyncio.to_thread``, until the loop's time is ``deadline``.

    (``loop.shutdown_default_executor`` has no timeout in Python 3.11 and in uvloop, and blocks the loop when it is
    cancelled.)
    """
    executor: Executor | None = getattr(loop, "_default_executor", known)
    if executor is None:
        return
    joining = threading.Thread(target=executor.shutdown, daemon=True)
    joining.start()
    while joining.is_alive():
        if clock_of(loop)() > deadline:
            return _leave_threads(executor)
        await asyncio.sleep(CHECK_INTERVAL)


def _leave_threads(executor: Executor) -> None:
    """Warn of threads that are still busy, which cannot be stopped from outside. (Idle ones have ended by now.)"""
    working = sum(thread.is_alive() for thread in getattr(executor, "_threads", ()))
    threads = {0: "threads of its executor are", 1: "1 thread of its executor is"}.get(
        working, f"{working} threads of its executor are"
    )
    general.warning("the loop ends, and %s still at work; Python waits for them before the program ends", threads)
