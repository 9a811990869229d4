"""Whose context variables (`contextvars`) a callback sees.

asyncio runs a callback in a copy of the context in which it was registered. A server registers most of its callbacks
while it works for some client: it accepts again because one has gone, it opens the hub's epoll for the first one. If
these kept the context they were made in, what that client's handler had set would be seen by all later ones. So:

- A server takes its context once, where it is told to listen, and accepts in it.
- Each client has a copy of it, made when it is accepted (``BaseIOStream.callback_context``). All that users write for
  this client runs in that one context: the handler's task has it, and :func:`run_in` enters it for the rest.
- Whatever the package registers for itself, timers, the hub's readers, tasks that close streams, has an empty context:
  ``call_soon(..., context=Context())``, or ``Context().run(...)`` where the callee takes no context. An empty context
  is never shared, so nothing can be left in it for somebody else.
"""

from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any, Protocol

_MARK: ContextVar[None] = ContextVar("iostreamsrv_mark")


class HasContext(Protocol):
    """A stream, as far as this module needs it."""

    callback_context: Context | None


def is_current(context: Context) -> bool:
    """Whether this code runs in ``context`` itself, not in a copy of it."""
    token = _MARK.set(None)
    try:
        return _MARK in context
    finally:
        _MARK.reset(token)


def run_in(context: Context, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function`` in ``context``, and give what it returns.

    A context can be entered once at a time. Where this code runs in it already, the function is just called. Where code
    further up the stack does (one client's handler has ended another client, whose callback ends the first one), the
    function runs in a copy.
    """
    if is_current(context):
        return function(*arguments)
    try:
        context.run(_nothing)
    except RuntimeError:
        context = context.copy()
    return context.run(function, *arguments)


def run_for(stream: HasContext, function: Callable[..., Any], *arguments: Any) -> Any:
    """:func:`run_in` the context of a stream's callbacks; without one, where this code runs."""
    context = stream.callback_context
    return function(*arguments) if context is None else run_in(context, function, *arguments)


def _nothing() -> None:
    pass
