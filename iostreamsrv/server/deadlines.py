"""The deadlines of a server. One timer checks all streams; no stream has a timer.

A message costs one time stamp, recorded when it is received. So a timeout is noticed a little late: by an eighth of the
shortest timeout, and by a second at most.

**If the process did not run**, because it was stopped or a handler blocked the loop, its clients may have been active
all the time. So what `Stalls` says does not count: a check that comes late moves all earlier times by that much. A
stream that is overdue even then is closed. A stream with bytes that are still to be received is never closed.
"""

import asyncio
import math
from asyncio import Future, TimerHandle
from collections.abc import Iterator, Mapping
from contextvars import Context
from typing import Any, NamedTuple

from ..errors import CloseReason, Operation, StreamTimeoutError, of_stream
from ..iostream import IOStream
from ..options import ServerOptions, Timeouts
from ..runtime.clock import clock_of
from ..runtime.stalls import Stalls
from ..streams.served import loop_of

CHECKS_PER_TIMEOUT = 8
"""Checks within the shortest timeout: so it is noticed at most an eighth late."""

SHORTEST, LONGEST = 0.02, 1.0
"""Seconds between two checks, at least and at most. More frequent ones would cost too much with thousands of streams;
with less frequent ones a deadline would be noticed more than a second late."""

DISCARD_OUTPUT = frozenset({CloseReason.MIN_RATE, CloseReason.REJECTED})
"""Reasons to close a stream without waiting for its output: its client sends almost nothing, or had enough time."""


class SetupDeadline(NamedTuple):
    """The deadline of what comes before a client's handler: the PROXY header, or the handshake."""

    reason: CloseReason
    operation: Operation
    since: float
    seconds: float | None


class Window(NamedTuple):
    """How much was received for a read when its rate was last checked."""

    read: "Future[Any]"
    since: float
    received: int


class Sent(NamedTuple):
    """The send progress at a check, None if nothing was queued; and the time of the check that first found it."""

    progress: int | None
    since: float


class Deadlines:
    """Closes streams whose deadline has passed.

    :param streams: the streams of a server, in one or several dicts by id.
    :ivar options: the timeouts; may be replaced at any time.
    :ivar armed: the ids of the streams whose handler is still to be called.
    :ivar running: whether a check is scheduled: there are streams, or there were at the last check.
    """

    def __init__(self, options: ServerOptions, *streams: Mapping[int, IOStream]) -> None:
        self.options = options
        self.running = False
        self._streams = streams
        self._setups: dict[int, SetupDeadline] = {}
        self.armed = self._setups.keys()
        self._windows: dict[int, Window] = {}
        self._sent: dict[int, Sent] = {}  # of streams that had a queue since bytes were last received
        self._timer: TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = 0.0
        self._stalls = Stalls(0.0)

    # ---- before the handler

    def arm(self, stream: IOStream, reason: CloseReason, operation: Operation, seconds: float | None) -> None:
        """Close ``stream`` with ``reason`` unless :meth:`disarm` is called within ``seconds``; None for no limit."""
        loop = loop_of(stream)
        now = clock_of(loop)()
        self._setups[stream.id] = SetupDeadline(reason, operation, now, seconds)
        if seconds is not None:
            self._bring_forward(loop, now, seconds)

    def disarm(self, stream: IOStream) -> bool:
        """Remove the deadline of :meth:`arm`; return whether there was one."""
        return self._setups.pop(stream.id, None) is not None

    def is_armed(self, stream: IOStream) -> bool:
        """Whether the handler of ``stream`` is still to be called."""
        return stream.id in self._setups

    def forget(self, stream: IOStream) -> bool:
        """Forget a closed stream; return whether its handler was still to be called."""
        self._windows.pop(stream.id, None)
        self._sent.pop(stream.id, None)
        return self.disarm(stream)

    def replaced(self, stream: IOStream) -> None:
        """Reset the send progress: TLS has started, so the stream counts bytes from 0."""
        self._sent.pop(stream.id, None)

    # ---- checks

    def run(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Begin to check, for as long as there are streams; return False if checks are running already."""
        if self.running and self._loop is loop:
            return False
        self.running = True
        self._stalls = Stalls(clock_of(loop)())
        self._schedule_next(loop)
        return True

    def restart(self) -> None:
        """Apply new options."""
        if self._timer is not None and self._loop is not None and not self._loop.is_closed():
            self._bring_forward(self._loop, clock_of(self._loop)(), self._shortest())

    def stop(self) -> None:
        """Cancel the next check."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule_next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._schedule(loop, clock_of(loop)(), self._shortest())

    def _bring_forward(self, loop: asyncio.AbstractEventLoop, now: float, shortest: float) -> None:
        """Check earlier for a timeout of ``shortest`` seconds; never later, or a rush of calls would postpone it."""
        if self._due > now + _interval(shortest):
            self._schedule(loop, now, shortest)

    def _schedule(self, loop: asyncio.AbstractEventLoop, now: float, shortest: float) -> None:
        self.stop()
        self._loop = loop
        self._due = now + _interval(shortest)
        self._timer = loop.call_later(self._due - now, self._check, context=Context())

    def _shortest(self) -> float:
        """The shortest of all timeouts."""
        options = self.options
        timeouts = [*options.timeouts, options.min_rate_window if options.min_rate else None]
        timeouts += [setup.seconds for setup in self._setups.values()]
        timeouts += [seconds for stream in self._all() for seconds in (stream.own_timeouts or {}).values()]
        return min((seconds for seconds in timeouts if seconds is not None), default=math.inf)

    def _all(self) -> Iterator[IOStream]:
        for streams in self._streams:
            yield from streams.values()

    def _check(self) -> None:
        self._timer = None
        streams = list(self._all())
        if not streams:
            self.running = False
            return  # until run() is called for the next one
        assert self._loop is not None
        now = clock_of(self._loop)()
        checked_at = self._stalls.checked_at
        uncounted = self._stalls.uncounted(now, self._due)
        if uncounted:
            self._shift_times(streams, uncounted, checked_at, now)
        self._close_overdue(streams, now)
        self._schedule_next(self._loop)

    def _shift_times(self, streams: list[IOStream], seconds: float, checked_at: float, now: float) -> None:
        """Move all times that are before the check at ``checked_at``, and what has happened since it to ``now``."""

        def later(since: float) -> float:
            return now if since > checked_at else since + seconds

        for stream in streams:
            stream.shift_times(later)
        for id, sent in self._sent.items():
            self._sent[id] = Sent(sent.progress, later(sent.since))
        for id, setup in self._setups.items():
            self._setups[id] = setup._replace(since=later(setup.since))
        for id, window in self._windows.items():
            self._windows[id] = window._replace(since=later(window.since))

    def _close_overdue(self, streams: list[IOStream], now: float) -> None:
        timeouts, setups, rate = self.options.timeouts, self._setups, self.options.min_rate
        for stream in streams:
            if setups and stream.id in setups:
                overdue = self._overdue_setup(setups[stream.id], now)
            else:
                own = stream.own_timeouts
                overdue = self._overdue(stream, timeouts if own is None else timeouts._replace(**own), now)
                if rate is not None and overdue is None:
                    overdue = self._overdue_rate(stream, rate, now)
            if overdue is not None and not _is_input_pending(stream, overdue[1].operation):
                self._close(stream, *overdue)

    def _close(self, stream: IOStream, reason: CloseReason, error: StreamTimeoutError) -> None:
        of_stream(error, stream.id)
        if reason is CloseReason.WRITE_TIMEOUT:
            stream.abort_with(reason, error)
            return
        stream.terminate(reason, error)
        if reason in DISCARD_OUTPUT:
            stream.discard_output()

    def _overdue(self, stream: IOStream, timeouts: Timeouts, now: float) -> "Overdue | None":
        """The timeout of ``stream`` that has passed, if any."""
        idle, read, write = timeouts
        if stream.close_reason is not None:
            return None  # the stream itself has a timeout for its close
        received_at, _, read_since, pending = stream.activity()
        sent = self._sent.get(stream.id)
        if stream.queued:
            progress = stream.send_progress()
            if sent is None or progress != sent.progress:
                sent = self._sent[stream.id] = Sent(progress, now)
            elif write is not None and now - sent.since > write:
                text = f"the peer took nothing for {write:g} s"
                return CloseReason.WRITE_TIMEOUT, StreamTimeoutError("write", write, text)
        elif sent is not None:
            if sent.since <= received_at:
                del self._sent[stream.id]
            else:
                sent = self._sent[stream.id] = Sent(None, sent.since)
        reading = pending is not None and not pending.done()
        if read is not None and reading and now - read_since > read:
            return CloseReason.READ_TIMEOUT, StreamTimeoutError("read", read)
        active_at = received_at if sent is None else max(received_at, sent.since)
        if idle is not None and now - active_at > idle:
            if not reading and stream.has_pending_input():  # the handler is busy, not the client idle
                stream.count_as_received()
                return None
            return CloseReason.IDLE_TIMEOUT, StreamTimeoutError("read", idle, f"idle for {idle:g} s")
        return None

    def _overdue_setup(self, setup: SetupDeadline, now: float) -> "Overdue | None":
        if setup.seconds is None or now - setup.since <= setup.seconds:
            return None
        return setup.reason, StreamTimeoutError(setup.operation, setup.seconds)

    def _overdue_rate(self, stream: IOStream, rate: float, now: float) -> "Overdue | None":
        """Whether too little was received in a window of time, for a read of which a part has arrived."""
        read = stream.activity().read
        if read is None or read.done() or stream.close_reason is not None or not stream.read_has_begun():
            self._windows.pop(stream.id, None)
            return None
        window = self._windows.get(stream.id)
        if window is None or window.read is not read:
            self._windows[stream.id] = Window(read, now, stream.receive_progress())
            return None
        seconds = now - window.since
        if seconds < self.options.min_rate_window:
            return None
        came = stream.receive_progress() - window.received
        if came < rate * seconds:
            text = f"{came} bytes in {seconds:.1f} s are less than {rate:g} per second"
            return CloseReason.MIN_RATE, StreamTimeoutError("read", seconds, text)
        self._windows[stream.id] = Window(read, now, stream.receive_progress())
        return None


Overdue = tuple[CloseReason, StreamTimeoutError]


def _interval(shortest: float) -> float:
    return min(max(shortest / CHECKS_PER_TIMEOUT, SHORTEST), LONGEST)


def _is_input_pending(stream: IOStream, operation: Operation | None) -> bool:
    """Whether the server itself is late: the awaited input has arrived, but handlers have blocked the loop since."""
    return (operation == "handshake" or (operation == "read" and stream.reading())) and stream.has_pending_input()
