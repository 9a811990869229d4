"""A clock that tests move; `MockClock` is public in :mod:`iostreamsrv.testing`.

**How.** An asyncio loop asks its own ``time()`` which timers are due, and gives its selector the seconds until the next
one. The clock stands in for both functions, of one loop, for a while. What is real goes on: the selector still waits
for sockets.

**Why a jump takes steps.** A server that finds one of its timers 60 s late takes the process to have been stopped, and
forgives its clients that time. That is also what users of `asyncio` see: a timer that repeats would run once. So a jump
goes from timer to timer. Before each step the loop must be idle, so that all that comes of a timer happens at its time.

**Timers that the loop has already** stay in real time: the time limit of a test is one, and must end the test also when
it hangs because its clock stands still.
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
"""Real seconds without an event after which the loop is idle, during a jump: what was sent on this host has come."""


class TimersBefore:
    """The timers that a loop had before it got another clock. They are taken out of the loop, and run in real time."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._timers: list[Any] = [timer for timer in loop._scheduled if not timer.cancelled()]
        loop._scheduled.clear()
        loop._timer_cancelled_count = 0
        for timer in self._timers:
            timer._scheduled = False  # a cancel would be counted

    def left(self) -> float:
        """Real seconds until the next one; infinite if there is none."""
        return min((timer.when() for timer in self._timers if not timer.cancelled()), default=math.inf) - real_time()

    def run_due(self) -> bool:
        """Have those run that are due; whether there are any."""
        now = real_time()
        due = sorted(timer for timer in self._timers if timer.when() <= now and not timer.cancelled())
        self._timers = [timer for timer in self._timers if timer.when() > now]
        for timer in due:
            self._loop.call_soon(_run, timer, context=Context())  # the timer has its own
        return bool(due)

    def give_back(self) -> None:
        """The loop has its own clock again."""
        for timer in self._timers:
            if not timer.cancelled():
                timer._scheduled = True
                heapq.heappush(self._loop._scheduled, timer)


def _run(timer: Any) -> None:
    if not timer.cancelled():
        timer._run()


class MockClock:
    """A clock that stands still, and that a test moves; names and meaning are those of Trio's. ::

        async def test_an_idle_client_is_closed():
            clock = MockClock()
            with clock.installed():
                async with running(Chat(idle_timeout=60)) as address:
                    stream = await TCPClient().connect(*address)
                    await clock.jump(70)
                    assert await stream.read_until_close() == b""

    While it is installed on a loop, ``loop.time()`` follows it, and so do `asyncio.sleep`, `asyncio.timeout`,
    ``loop.call_later`` and all timeouts and dates of this package in that loop. Sockets work as ever. Other loops,
    other threads and other processes go by the real clock; so does the kernel.

    It needs an asyncio loop with a selector, which is the default but for Windows. uvloop's has its clock inside.

    :param rate: seconds that pass per real second; 0 stands still.
    :param autojump_threshold: real seconds after which a loop that has nothing to do jumps to its next timer;
        ``math.inf`` never does. 0 is right for streams in memory. With sockets 0.01 is better: it leaves the kernel
        time to deliver, and 0.05 covers an ACK that it puts off. A thread that is at work does not keep the loop from
        jumping.
    :raises OptionError: one of them is negative or not a number.

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
        """The time in seconds; it goes on from that of the loop. Only differences mean something."""
        return self._at + (real_time() - self._since) * self._rate if self._rate else self._at

    def jump(self, seconds: float) -> "asyncio.Future[None]":
        """Move the time forward. ::

            await clock.jump(60)

        It moves when the loop is idle, from one timer to the next, so that each runs at its own time and in order, with
        all that comes of it. (Trio's moves at once, as :meth:`block` does.) Call it in the loop's thread, or before the
        loop runs.

        :param seconds: how far, on top of jumps that are under way.
        :returns: done when the time is reached, and everything due has run.
        :raises OptionError: it is negative or not a finite number.
        :raises RuntimeError: the clock is not installed.
        """
        seconds = _finite("seconds", seconds)
        if self._loop is None:
            raise RuntimeError("the clock is not installed on a loop")
        done = self._loop.create_future()
        self._jumps.append(((self._jumps[-1][0] if self._jumps else self.current_time()) + seconds, done))
        return done

    def block(self, seconds: float) -> None:
        """Let time pass while the loop does not turn: what `time.sleep` is in a handler, or the stop of a process. ::

            clock.block(2)  # in place of time.sleep(2)

        Timers that are due meanwhile run late, when the loop turns again.

        :raises OptionError: it is negative or not a finite number.
        """
        self._move_to(self.current_time() + _finite("seconds", seconds))

    @contextlib.contextmanager
    def installed(self, loop: asyncio.AbstractEventLoop | None = None) -> Iterator[Self]:
        """Have a loop follow the clock while the ``with`` lasts. Best for a whole test: timers that are left when it
        ends are late by what the clock was moved. Timers that the loop has already stay in real time.

        :param loop: an asyncio loop; None is the running one.
        :raises RuntimeError: the loop has no selector (uvloop, Windows' default), or another clock already, or the
            clock is on a loop.
        """
        loop = asyncio.get_running_loop() if loop is None else loop
        selector = getattr(loop, "_selector", None)
        if not isinstance(selector, selectors.BaseSelector):
            kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
            raise RuntimeError(f"MockClock needs an asyncio loop with a selector, not {kind}")
        if self._loop is not None:
            raise RuntimeError("the clock is on a loop already")
        if clock_of(loop) is not real_time:
            raise RuntimeError("the loop has a clock already")
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
        """
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
        """The selector's own ``select()``, for real seconds: the events, and whether nothing at all happened."""
        seconds = max(0.0, min(seconds, self._before.left()))
        events: list[Any] = type(self._selector).select(self._selector, None if seconds == math.inf else seconds)
        return events, not self._before.run_due() and not events

    def _step(self, timeout: float | None) -> None:
        """Go towards the end of the jump, as far as the next timer; or, if it is reached, say so."""
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
