"""A clock that tests move; `MockClock` is public in :mod:`iostreamsrv.testing`.

**How it works.** An asyncio loop calls its ``time()`` to find the timers that are due, and passes the seconds until the
next timer to its selector's ``select()``. The clock replaces both functions of one loop while it is installed. The
selector still waits for real sockets.

**Why a jump takes steps.** When a server finds one of its timers 60 s late, it assumes that the process was stopped,
and does not count that time against its clients. With plain `asyncio` it is similar: a repeating timer would run only
once. So a jump goes from timer to timer. Before each step the loop must be idle, so that all consequences of a timer
happen at its time.

**Timers that the loop has already** stay in real time. The time limit of a test is one of them, and must end the test
even if it hangs because its clock stands still.
"""

import asyncio
import contextlib
import heapq
import math
import selectors
from collections.abc import Iterator
from contextvars import Context
from typing import Any, Self

from ..errors import OptionError
from ..runtime.checks import is_number
from ..runtime.clock import clock_of, real_time, wall_clock_of
from ..streams.hub import follow_clock

SETTLE = 0.001
"""Real seconds without an event after which the loop counts as idle during a jump: by then, data sent on this host has
arrived."""


class TimersBefore:
    """The timers that a loop had before the clock was installed. They are removed from the loop, and run in real
    time."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._timers: list[Any] = [timer for timer in loop._scheduled if not timer.cancelled()]
        loop._scheduled.clear()
        loop._timer_cancelled_count = 0
        for timer in self._timers:
            timer._scheduled = False  # else the loop would count a cancelled one

    def left(self) -> float:
        """Real seconds until the next of these timers; infinite if there is none."""
        return min((timer.when() for timer in self._timers if not timer.cancelled()), default=math.inf) - real_time()

    def run_due(self) -> bool:
        """Run the timers that are due; return whether there were any."""
        now = real_time()
        due = sorted(timer for timer in self._timers if timer.when() <= now and not timer.cancelled())
        self._timers = [timer for timer in self._timers if timer.when() > now]
        for timer in due:
            self._loop.call_soon(_run, timer, context=Context())  # the timer itself has the right context
        return bool(due)

    def give_back(self) -> None:
        """Return the timers to the loop, which has its real clock again."""
        for timer in self._timers:
            if not timer.cancelled():
                timer._scheduled = True
                heapq.heappush(self._loop._scheduled, timer)


def _run(timer: Any) -> None:
    if not timer.cancelled():
        timer._run()


class MockClock:
    """A clock that stands still until a test moves it. The names and their meaning are Trio's. ::

        async def test_an_idle_client_is_closed():
            clock = MockClock()
            with clock.installed():
                async with running(Chat(idle_timeout=60)) as address:
                    stream = await TCPClient().connect(*address)
                    await clock.jump(70)
                    assert await stream.read_until_close() == b""

    While it is installed on a loop, ``loop.time()`` follows it, and so do `asyncio.sleep`, `asyncio.timeout`,
    ``loop.call_later`` and all timeouts and dates of this package in that loop. Sockets work as usual. Other loops,
    threads and processes follow the real clock, and so does the kernel.

    It needs an asyncio loop with a selector: the default, except on Windows. uvloop's clock is not accessible.

    :param rate: seconds that pass per real second; default 0: the clock stands still.
    :param autojump_threshold: real seconds after which an idle loop jumps to its next timer; default ``math.inf``:
        never. 0 suits streams in memory. With sockets, use 0.01, which leaves the kernel time to deliver data, or 0.05,
        which also covers a delayed ACK. A busy thread does not prevent a jump.
    :raises OptionError: a parameter is negative or not a number.

    :ivar rate: as the parameter; may be set.
    :ivar autojump_threshold: as the parameter; may be set.
    """

    def __init__(self, rate: float = 0.0, autojump_threshold: float = math.inf) -> None:
        self._at = 0.0  # the time when it was `_since`, in real time
        self._since = real_time()
        self._rate = 0.0
        self._wall = 0.0  # the date at time 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._selector: Any = None
        self._before: TimersBefore
        self._jumps: list[tuple[float, asyncio.Future[None]]] = []
        self.rate = rate
        self.autojump_threshold = autojump_threshold

    def __repr__(self) -> str:
        return f"<MockClock at {self.current_time():g}, rate {self._rate:g}>"

    @property
    def rate(self) -> float:
        """Seconds that pass per real second."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        rate = _finite("rate", rate)
        self._move_to(self.current_time())
        self._rate = rate

    @property
    def autojump_threshold(self) -> float:
        """Real seconds after which an idle loop jumps to its next timer."""
        return self._autojump_threshold

    @autojump_threshold.setter
    def autojump_threshold(self, seconds: float) -> None:
        self._autojump_threshold = _checked("autojump_threshold", seconds)

    def current_time(self) -> float:
        """The time in seconds. It continues from the loop's time; only differences have a meaning."""
        return self._at + (real_time() - self._since) * self._rate if self._rate else self._at

    def jump(self, seconds: float) -> "asyncio.Future[None]":
        """Move the time forward. ::

            await clock.jump(60)

        The clock moves while the loop is idle, from one timer to the next, so that each timer runs in order and at its
        time, with all its consequences. (Trio's clock moves at once, as :meth:`block` does.) Call it in the loop's
        thread, or before the loop runs.

        :param seconds: how far, in addition to jumps in progress.
        :returns: a future that is done when the time is reached and everything due has run.
        :raises OptionError: ``seconds`` is negative or not a finite number.
        :raises RuntimeError: the clock is not installed.
        """
        seconds = _finite("seconds", seconds)
        if self._loop is None:
            raise RuntimeError("the clock is not installed on a loop")
        done = self._loop.create_future()
        self._jumps.append(((self._jumps[-1][0] if self._jumps else self.current_time()) + seconds, done))
        return done

    def block(self, seconds: float) -> None:
        """Let time pass while the loop does not run: like `time.sleep` in a handler, or a stopped process. ::

            clock.block(2)  # in place of time.sleep(2)

        Timers that become due meanwhile run late, when the loop runs again.

        :param seconds: how much time passes.
        :raises OptionError: ``seconds`` is negative or not a finite number.
        """
        self._move_to(self.current_time() + _finite("seconds", seconds))

    @contextlib.contextmanager
    def installed(self, loop: asyncio.AbstractEventLoop | None = None) -> Iterator[Self]:
        """Install the clock on a loop during a ``with`` block. Best for a whole test: timers that are left at the end
        of the block are late by the time that the clock was moved. Timers that the loop has already stay in real time.

        :param loop: an asyncio loop; default (None) the running one.
        :raises RuntimeError: the loop has no selector (uvloop, Windows' default) or has another clock, or this clock is
            already installed.
        """
        loop = asyncio.get_running_loop() if loop is None else loop
        selector = getattr(loop, "_selector", None)
        if not isinstance(selector, selectors.BaseSelector):
            kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
            raise RuntimeError(f"MockClock needs an asyncio loop with a selector, not {kind}")
        if self._loop is not None:
            raise RuntimeError("the clock is already installed on a loop")
        if clock_of(loop) is not real_time:
            raise RuntimeError("the loop already has another clock")
        self._wall = wall_clock_of(loop)() - real_time()
        self._move_to(real_time())
        self._loop, self._selector, self._before = loop, selector, TimersBefore(loop)
        own: dict[str, Any] = {"time": self.current_time, "wall_time": self._wall_time}
        vars(loop).update(own)
        vars(selector)["select"] = self._select
        follow_clock(loop)
        try:
            yield self
        finally:
            self._loop = None
            for name in own:
                del vars(loop)[name]
            del vars(selector)["select"]
            follow_clock(loop)
            self._before.give_back()
            for _, done in self._jumps:
                done.cancel()
            self._jumps.clear()

    def _wall_time(self) -> float:
        return self._wall + self.current_time()

    def _move_to(self, at: float) -> None:
        self._at, self._since = at, real_time()

    # ---- in place of the selector's select()

    def _select(self, timeout: float | None = None) -> list[Any]:
        """Replaces the ``select()`` of the loop's selector.

        :param timeout: seconds of this clock until the next timer; None: there is none; 0: the loop is not idle.
        """
        if timeout is not None and timeout <= 0:
            return self._wait(0)[0]
        if self._jumps:
            events, idle = self._wait(SETTLE)
            if idle:
                self._step(timeout)
            return events
        real = math.inf if timeout is None or not self._rate else timeout / self._rate
        if timeout is None or real <= self._autojump_threshold:
            return self._wait(real)[0]
        due = self.current_time() + timeout
        events, idle = self._wait(self._autojump_threshold)
        if idle:
            self._move_to(max(due, self.current_time()))
        return events

    def _wait(self, seconds: float) -> tuple[list[Any], bool]:
        """Call the selector's real ``select()`` for up to ``seconds`` of real time. Returns the events, and whether the
        loop stayed idle."""
        seconds = max(0.0, min(seconds, self._before.left()))
        events: list[Any] = type(self._selector).select(self._selector, None if seconds == math.inf else seconds)
        return events, not self._before.run_due() and not events

    def _step(self, timeout: float | None) -> None:
        """Move towards the end of the jump, but not beyond the next timer. If the end is reached, finish the jump."""
        target, done = self._jumps[0]
        now = self.current_time()
        if now < target:
            self._move_to(target if timeout is None else min(target, now + timeout))
            return
        del self._jumps[0]
        if not done.done():
            done.set_result(None)


def _checked(name: str, value: float) -> float:
    if not is_number(value) or not value >= 0:
        raise OptionError(name, value, "must be a number, 0 or more")
    return float(value)


def _finite(name: str, value: float) -> float:
    if _checked(name, value) == math.inf:
        raise OptionError(name, value, "must be finite")
    return value
