"""Finds what blocks a loop, and for which client: another thread reads the stack of the loop's thread.

**What blocks.** Only the frames that the loop has called count. How many frames are around the loop is known from the
loop's last call to the watchdog. Of the frames that belong neither to Python nor to Tornado nor to this package, the
outermost is the handler, and the innermost has the line.

**For which client.** The client is found

- by the task: a handler's, or one that a handler waits for (``await``, ``gather``, ``wait_for``, a ``TaskGroup``);
- otherwise by the frames that have called the handler: those of this package, and of Tornado's HTTP server, have the
  stream;
- otherwise it is the stream that the loop's hub is dispatching.

A task that a handler has made and does not wait for belongs to no client; only the task is named.

All this only reads. No frame is kept, and no code of users is called: it may not be safe in another thread.
"""

import asyncio
import functools
import gc
import os
import selectors
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import tornado
from tornado.iostream import BaseIOStream

from ..streams.hub import dispatching_in

OURS = str(Path(__file__).parents[1]) + os.sep
TORNADOS = str(Path(tornado.__file__).parent) + os.sep
PYTHONS = str(Path(os.__file__).parent) + os.sep
PACKAGES = {"site-packages", "dist-packages"}  # may be within Python's

RELATED = 100
"""Most futures and callbacks to search for the handler that waits for a task."""


class Watched(Protocol):
    """The clients of a server."""

    @property
    def watched(self) -> bool:
        """Whether there may be clients."""

    def client_of(self, task: Any) -> Any:
        """The stream that ``task`` serves as its handler; None if there is none."""

    def has(self, stream: Any, caller: Any) -> bool:
        """Whether ``stream`` is one of them; ``caller`` is the object whose method works for it."""

    def blocked(self, stream: Any, where: str, seconds: float) -> None:
        """Report that the code that serves ``stream`` has blocked the loop."""


class Seen(NamedTuple):
    """What runs in a loop.

    :ivar key: identifies the call: it is the same as long as that call runs.
    :ivar where: the handler and its line, for people.
    :ivar clients: the clients of the handler's server; None if unknown, or if the stream is not one of them any more.
    :ivar stream: the client's stream; None if unknown.
    """

    key: tuple[Any, ...]
    where: str
    clients: Watched | None
    stream: Any


def waits_for_events(frame: types.FrameType) -> bool:
    """Whether an asyncio loop is waiting in its selector. (If a handler uses a selector, asyncio is not its caller.)"""
    caller = frame.f_back
    return (
        frame.f_code.co_filename == selectors.__file__
        and caller is not None
        and caller.f_code.co_filename == asyncio.base_events.__file__
    )


def outside(frame: types.FrameType | None) -> int:
    """How many frames are around a loop that has called ``frame``: from the program's innermost one outwards."""
    while frame is not None and not _is_programs(frame):
        frame = frame.f_back
    return len(_stack(frame))


def see(loop: asyncio.AbstractEventLoop, frame: types.FrameType, around: int, clients: list[Any]) -> Seen:
    """What runs in ``loop`` now.

    :param frame: the innermost frame of the loop's thread.
    :param around: how many frames are around the loop; see :func:`outside`.
    :param clients: the `Watched` of each server in this loop.
    """
    task = asyncio.current_task(loop)
    stack = _stack(frame)
    stack = stack[: len(stack) - around] or stack[:1]
    programs = [number for number, each in enumerate(stack) if _is_programs(each)] or [0]
    inner, outer = stack[programs[0]], stack[programs[-1]]
    found, stream = _client_of(loop, task, stack[programs[-1] :], clients)
    where = f"{outer.f_code.co_qualname} ({_line(outer)}"
    if inner is not outer:
        where += f", in {inner.f_code.co_qualname}, {_line(inner)}"
    return Seen((id(task), id(stream), outer.f_code), where + ")", found, stream)


def _stack(frame: types.FrameType | None) -> list[types.FrameType]:
    """The frame and its callers, the innermost first."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _line(frame: types.FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _is_programs(frame: types.FrameType) -> bool:
    return _is_program(frame.f_code.co_filename)


@functools.lru_cache(1024)
def _is_program(filename: str) -> bool:
    """Whether a file belongs neither to Python nor to Tornado nor to this package."""
    if filename.startswith((OURS, TORNADOS, "<frozen ")):
        return False
    return not filename.startswith(PYTHONS) or not PACKAGES.isdisjoint(Path(filename).parts)


def _client_of(
    loop: asyncio.AbstractEventLoop, task: Any, callers: list[types.FrameType], clients: list[Any]
) -> tuple[Watched | None, Any]:
    """The client that a task serves, or for which its frames were called."""
    for related in _waiters(task):
        for each in clients:
            stream = each.client_of(related)
            if stream is not None:
                return each, stream
        frame = getattr(related.get_coro(), "cr_frame", None)
        if frame is not None and related is not task:
            callers.append(frame)
    for frame in callers:
        if frame.f_code.co_filename.startswith((OURS, TORNADOS)):
            stream, caller = _stream_of(frame.f_locals)
            if stream is not None:
                return next((each for each in clients if each.has(stream, caller)), None), stream
    stream = dispatching_in(loop)  # the compiled core has no frames
    return None if stream is None else next((each for each in clients if each.has(stream, None)), None), stream


def _stream_of(variables: Any) -> tuple[Any, Any]:
    """The stream in the local variables of a method of this package or of Tornado, and the method's object."""
    itself = variables.get("self")
    connection = _field(_field(itself, "request"), "connection")  # of Tornado's RequestHandler
    for stream in variables.get("stream"), itself, _field(itself, "stream"), _field(connection, "stream"):
        if isinstance(stream, BaseIOStream):
            return stream, itself
    return None, None


def _field(thing: Any, name: str) -> Any:
    """An attribute in the instance's dict, not a property: that could run code of users."""
    return getattr(thing, "__dict__", {}).get(name)


def _waiters(task: Any) -> Iterator[Any]:
    """A task, the tasks that wait for it, and so on."""
    todo, known = [task], set[int]()
    while todo and len(known) < RELATED:
        thing = todo.pop()
        if id(thing) in known:
            continue
        known.add(id(thing))
        if isinstance(thing, asyncio.Task):
            yield thing
        if isinstance(thing, asyncio.Future):
            todo += [callback for callback, _ in thing._callbacks or ()]
        elif isinstance(thing, types.MethodType | types.BuiltinMethodType):
            todo.append(thing.__self__)
        elif isinstance(thing, types.FunctionType):
            todo += gc.get_referents(*(thing.__closure__ or ()))
        elif isinstance(thing, functools.partial):
            todo += thing.args
        elif isinstance(thing, asyncio.TaskGroup):
            todo.append(_field(thing, "_parent_task"))
