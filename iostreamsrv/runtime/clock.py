"""The time. No other module reads a clock by itself.

**The loop decides.** Timers, `asyncio.timeout` and `asyncio.sleep` use ``loop.time()``, as do timeouts and deadlines of
this package. A loop whose class or instance overrides ``time`` (a simulation, the clock of a test) is asked. So two
loops in one process may have different clocks, and nothing is patched globally.

**Real loops are not asked.** ``time()`` of asyncio's loops is a Python function that calls `time.monotonic`, and
uvloop's is the same clock in whole milliseconds. For these :func:`clock_of` returns `time.monotonic` itself, because
each dispatch calls it.

**Dates** (of events, of expiry) come from ``loop.wall_time()`` if the loop has such a method; asyncio's have none.

**Real time** is used where threads, the kernel or other processes wait: ``real_time``.
"""

import asyncio
import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns the time in seconds; see `time.monotonic`."""

real_time = time.monotonic
real_time_ns = time.monotonic_ns
real_wall_time = time.time
cpu_time = time.process_time

REAL_LOOPS = ("uvloop", "winloop")
"""Packages whose loops use the real clock, although they override ``time``."""


def clock_of(loop: asyncio.AbstractEventLoop) -> Clock:
    """The function that returns the time of ``loop``, in the seconds of its timers."""
    # Not by the loop's __dict__: CPython keeps attributes in an array until the dict is asked for, and finds them more
    # slowly from then on. A turn of asyncio's loop would cost a tenth more.
    time = loop.time
    if getattr(time, "__self__", None) is not loop:  # assigned to this loop
        return time
    definer = next(base for base in type(loop).__mro__ if "time" in vars(base))
    is_real = definer is asyncio.BaseEventLoop or definer.__module__.partition(".")[0] in REAL_LOOPS
    return real_time if is_real else time


def wall_clock_of(loop: asyncio.AbstractEventLoop) -> Clock:
    """The function that returns the date in ``loop``, in seconds of `time.time`."""
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
