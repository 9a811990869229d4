"""Completes a future and wakes the task that waits for it at once, not a turn of the loop later.

``wakeup.pyx`` is the compiled twin. Its futures of pending reads are of a class of its own: to make one of asyncio's,
and to find the task that waits for it, costs as much as all the rest of a read.
"""

import asyncio
import operator
import types
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any

from .eager import TASK_WAKEUP, WAKEUP, step_watched

EAGER_WAKEUP = WAKEUP is not None
"""Whether this interpreter's tasks can be stepped at once. If not, :func:`resolve_now` goes through ``call_soon``. Then
replies to pipelined requests are sent one by one, and a task that is cancelled between completion and wake-up loses
that one read.
"""

debugging = False
"""Whether a hub was made for a loop in asyncio's debug mode."""


PendingFuture = asyncio.Future
"""The class of the futures of pending reads."""


is_done = asyncio.Future.done
"""Whether a future of a stream is done."""

make_pending = operator.call
"""Makes a future of the type that :func:`pending_future_type` has given."""


def pending_future_type(loop: asyncio.AbstractEventLoop) -> "Callable[[], asyncio.Future[Any]]":
    """Makes futures of ``loop`` for pending reads."""
    return partial(asyncio.Future, loop=loop)


def resolve_now(future: "asyncio.Future[Any]", result: object, error: BaseException | None = None) -> None:
    """Set the result of ``future``, or ``error``. If its only callback is a task's wake-up, step that task now.

    Call it only outside any task, as in a dispatch: a task cannot be entered from within another one. Every other
    kind of callback goes through ``call_soon`` as usual: `IOLoop.add_future` promises the next turn of the loop.
    asyncio does not complain if a future with an error is never awaited.
    """
    wakeup: Callable[..., object] | None = None
    callbacks: list[tuple[Callable[..., object], Context]] | None = future._callbacks
    if EAGER_WAKEUP and callbacks is not None and len(callbacks) == 1:
        callback, context = callbacks[0]
        if type(callback) is types.BuiltinMethodType and callback.__name__ == TASK_WAKEUP:
            future.remove_done_callback(callback)
            wakeup = callback
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
        future.exception()
    if wakeup is None:
        return
    if debugging:
        step_watched(future.get_loop(), wakeup, context, future)
    else:
        context.run(wakeup, future)
