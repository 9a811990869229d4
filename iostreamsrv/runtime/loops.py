"""The loop of a thread: the running one, the one that is set, or a new one."""

import asyncio
import warnings

from tornado.ioloop import IOLoop


def current_loop() -> IOLoop:
    """The running loop, else the one that is set for this thread. If there is none, it is made and set."""
    with warnings.catch_warnings():
        # Python 3.12 and 3.13 warn programs that listen first and run a loop afterwards, which is allowed here.
        warnings.filterwarnings("ignore", "There is no current event loop", DeprecationWarning)
        return IOLoop.current()


def existing_loop() -> asyncio.AbstractEventLoop | None:
    """A loop that is open: the running one, the one that is set for this thread, or any that has an `IOLoop`."""
    loops = (asyncio._get_running_loop(), _loop_that_is_set(), *IOLoop._ioloop_for_asyncio)
    return next((loop for loop in loops if loop is not None and not loop.is_closed()), None)


def _loop_that_is_set() -> asyncio.AbstractEventLoop | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        policy = asyncio.get_event_loop_policy()
    # Not get_event_loop(): up to Python 3.13 it makes a loop where there is none.
    loop: asyncio.AbstractEventLoop | None = getattr(getattr(policy, "_local", None), "_loop", None)
    return loop


def asyncio_loop(io_loop: IOLoop) -> asyncio.AbstractEventLoop:
    """The asyncio loop of an `IOLoop`. (All of Tornado's have one; its annotations do not say so.)"""
    loop: asyncio.AbstractEventLoop = io_loop.asyncio_loop  # type: ignore[attr-defined]
    return loop


def is_closing(io_loop: IOLoop) -> bool:
    """Whether nothing can run in a loop any more: it is closed, or `IOLoop.close` is closing it and its streams."""
    return io_loop.closing or asyncio_loop(io_loop).is_closed()  # type: ignore[attr-defined]
