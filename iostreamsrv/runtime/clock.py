"""The time. No other module reads a clock by itself.

**The loop decides.** Timers, `asyncio.timeout` and `asyncio.sleep` go by ``loop.time()``, so timeouts and deadlines of
this package do as well. A loop whose class or instance has a ``time`` of its own (a simulation, a clock that a test
moves) is asked for it. So two loops in one process may have different clocks, and none is patched globally.

**Real loops are not asked.** ``time()`` of asyncio's loops is a Python function round `time.monotonic`, and uvloop's is
the same clock in whole milliseconds. For these :func:`clock_of` gives `time.monotonic` itself: it is called for each
dispatch.

**Dates** (of events, of expiry) are those of ``loop.wall_time()`` where the loop has such a method; asyncio knows none.

**Real time** remains the subject where threads, the kernel or other processes wait: there ``real_time`` is used.
"""

import asyncio
import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Gives the time in seconds; see `time.monotonic`."""

real_time = time.monotonic
real_wall_time = time.time
cpu_time = time.process_time

REAL_LOOPS = ("uvloop", "winloop")
"""Packages whose loops go by the real clock. They show ``time`` as a method that is theirs."""


def clock_of(loop: asyncio.AbstractEventLoop) -> Clock:
    """The function that gives the time of ``loop``, in seconds as its timers count them."""
    if "time" in getattr(loop, "__dict__", ()):
        return loop.time
    definer = next((base for base in type(loop).__mro__ if "time" in vars(base)), None)
    if definer is asyncio.BaseEventLoop or (definer and definer.__module__.partition(".")[0] in REAL_LOOPS):
        return real_time
    return loop.time


def wall_clock_of(loop: asyncio.AbstractEventLoop) -> Clock:
    """The function that gives the date in ``loop``, in seconds as `time.time` counts them."""
    clock: Clock = getattr(loop, "wall_time", real_wall_time)
    return clock


def current_time() -> float:
    """The time of the loop that runs in this thread; without one the real time."""
    loop = asyncio._get_running_loop()
    return real_time() if loop is None else clock_of(loop)()


def current_wall_time() -> float:
    """The date in the loop that runs in this thread; without one the real date."""
    loop = asyncio._get_running_loop()
    return real_wall_time() if loop is None else wall_clock_of(loop)()
