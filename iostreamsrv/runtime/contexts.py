"""Which context variables (`contextvars`) a callback sees.

asyncio runs a callback in the context in which it was registered. A server registers most of its callbacks while it
works for one client: it accepts again because a client has gone, or opens the hub's epoll for the first one. With that
context, a variable set by this client's handler would be visible to all later clients. Therefore:

- A server copies the current context once, when it begins to listen, and accepts in this copy.
- Each client gets a copy of that, made when it is accepted (``BaseIOStream.callback_context``). All user code for the
  client runs in this one context: the handler's task has it, and :func:`run_in` enters it for other callbacks.
- What the package registers for itself (timers, the hub's readers, tasks that close streams) gets an empty context:
  ``call_soon(..., context=Context())``, or ``Context().run(...)`` where the callee takes no context. Each of these is
  new, so no variable can pass from one client to another.
"""

from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any, Protocol

_MARK: ContextVar[None] = ContextVar("iostreamsrv_mark")


class HasContext(Protocol):
    """The part of a stream that this module uses."""

    callback_context: Context | None


def is_current(context: Context) -> bool:
    """Whether ``context`` itself is the current context, not merely a copy of it."""
    token = _MARK.set(None)
    try:
        return _MARK in context
    finally:
        _MARK.reset(token)


def run_in(context: Context, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function`` in ``context``, and return its result.

    A context can be entered only once at a time. If it is the current context, the function is simply called. If code
    further up the stack has entered it (one client's handler closes another client, whose callback closes the first
    one), the function runs in a copy.
    """
    if is_current(context):
        return function(*arguments)
    try:
        context.run(_nothing)
    except RuntimeError:
        context = context.copy()
    return context.run(function, *arguments)


def run_for(stream: HasContext, function: Callable[..., Any], *arguments: Any) -> Any:
    """:func:`run_in` the context of a stream's callbacks; if it has none, in the current context."""
    context = stream.callback_context
    return function(*arguments) if context is None else run_in(context, function, *arguments)


def _nothing() -> None:
    pass
