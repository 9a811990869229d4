"""The clock of a server: one look at all its streams now and then, instead of a timer for each.

A message costs nothing but the time that is noted when it comes. So a timeout is found out a little late: by an eighth
of the shortest one, and by a second at most.

**When the server itself slept**, because the process was stopped or a handler blocked the loop, its clients may have
been as busy as ever. So a look that comes more than :data:`SLEPT` late does not count the time since the look before:
it is added to all that was noted before. Who is overdue all the same is closed. Were it so each time, no timeout would
ever strike where handlers block the loop back to back. So at late looks in a row half of that time counts, for all who
were waiting already at the look before: a timeout strikes after twice its time. Nor is one closed, ever, whose bytes
have come, and are still to be received.
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
from ..streams.served import loop_of

LOOKS = 8
"""Looks within the shortest timeout: one that is due is found at most an eighth late."""

SHORTEST, LONGEST = 0.02, 1.0
"""Seconds between two looks. More often would cost something with thousands of streams; less often would be more than
the second that a deadline may be late."""

SLEPT = 0.5
"""Seconds that a look may be late before the server is taken to have slept, and not merely to be busy."""

HOPELESS = frozenset({CloseReason.MIN_RATE, CloseReason.REJECTED})
"""Ends of streams whose client sends as good as nothing, or has had its time: what is owed to it is not waited for."""


class Phase(NamedTuple):
    """What a client is in before its handler: a handshake, or a PROXY header."""

    reason: CloseReason
    operation: Operation
    since: float
    seconds: float | None


class Window(NamedTuple):
    """What had come for a read when its rate was last looked at."""

    read: "Future[Any]"
    since: float
    received: int


class Sent(NamedTuple):
    """What had been sent of a queue at the last look, None if there was none; and the look at which that was new."""

    progress: int | None
    since: float


class Deadlines:
    """Closes those of ``streams`` whose time is up.

    :param streams: of a server, those that are rejected excepted.
    :ivar options: the timeouts; may be replaced at any time.
    :ivar running: whether it looks at streams, as there are some, or were at the last look.
    """

    def __init__(self, options: ServerOptions, *streams: Mapping[int, IOStream]) -> None:
        self.options = options
        self.running = False
        self._streams = streams
        self._phases: dict[int, Phase] = {}
        self._windows: dict[int, Window] = {}
        self._sent: dict[int, Sent] = {}  # of streams that had something queued since bytes last came
        self._timer: TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = 0.0
        self._looked = 0.0  # when it was looked last
        self._was_late = False  # that time

    # ---- phases

    def begin(self, stream: IOStream, reason: CloseReason, operation: Operation, seconds: float | None) -> None:
        """``stream`` is in a phase that is to be over in so many seconds, or else it is closed with ``reason``."""
        loop = loop_of(stream)
        now = clock_of(loop)()
        self._phases[stream.id] = Phase(reason, operation, now, seconds)
        if seconds is not None and self._due > now + _between_looks(seconds):  # never later: newcomers may be many
            self._schedule(loop, now, seconds)

    def end(self, stream: IOStream) -> bool:
        """Its phase is over; whether it was in one."""
        return self._phases.pop(stream.id, None) is not None

    def in_phase(self, stream: IOStream) -> bool:
        """Whether ``stream`` is before its handler."""
        return stream.id in self._phases

    def forget(self, stream: IOStream) -> bool:
        """It is closed; whether it was still in a phase."""
        self._windows.pop(stream.id, None)
        self._sent.pop(stream.id, None)
        return self.end(stream)

    def replaced(self, stream: IOStream) -> None:
        """It has begun to count its bytes anew."""
        self._sent.pop(stream.id, None)

    # ---- the clock

    def run(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Look at the streams from now on, as long as there are any; whether that is news."""
        if self.running and self._loop is loop:
            return False
        self.running = True
        self._looked, self._was_late = clock_of(loop)(), False
        self._look_again(loop)
        return True

    def restart(self) -> None:
        """The options have changed."""
        if self._timer is not None and self._loop is not None and not self._loop.is_closed():
            self._look_again(self._loop)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._schedule(loop, clock_of(loop)(), self._shortest())

    def _schedule(self, loop: asyncio.AbstractEventLoop, now: float, shortest: float) -> None:
        self.stop()
        self._loop = loop
        self._due = now + _between_looks(shortest)
        self._timer = loop.call_later(self._due - now, self._look, context=Context())

    def _shortest(self) -> float:
        """The shortest timeout there is."""
        options = self.options
        timeouts = [*options.timeouts, options.min_rate_window if options.min_rate else None]
        timeouts += [phase.seconds for phase in self._phases.values()]
        timeouts += [seconds for stream in self._all() for seconds in (stream.own_timeouts or {}).values()]
        return min((seconds for seconds in timeouts if seconds is not None), default=math.inf)

    def _all(self) -> Iterator[IOStream]:
        for streams in self._streams:
            yield from streams.values()

    def _look(self) -> None:
        self._timer = None
        streams = list(self._all())
        if not streams:
            self.running = False
            return  # until run() is called for the next one
        assert self._loop is not None
        now = clock_of(self._loop)()
        late = now - self._due > SLEPT
        if late:
            self._forgive(streams, now)
        self._looked, self._was_late = now, late
        self._close_overdue(streams, now)
        self._look_again(self._loop)

    def _forgive(self, streams: list[IOStream], now: float) -> None:
        """Nobody is to blame for the time since the last look, or, if that was late as well, for half of it."""
        looked = self._looked
        passed = now - looked
        forgiven = passed / 2 if self._was_late else passed

        def later(since: float) -> float:
            return min(now, since + (passed if since > looked else forgiven))

        for stream in streams:
            stream.shift_times(later)
        for id, sent in self._sent.items():
            self._sent[id] = Sent(sent.progress, later(sent.since))
        for id, phase in self._phases.items():
            self._phases[id] = phase._replace(since=later(phase.since))
        for id, window in self._windows.items():
            self._windows[id] = window._replace(since=later(window.since))

    def _close_overdue(self, streams: list[IOStream], now: float) -> None:
        timeouts, phases, rate = self.options.timeouts, self._phases, self.options.min_rate
        for stream in streams:
            if phases and stream.id in phases:
                overdue = self._overdue_phase(phases[stream.id], now)
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
        if reason in HOPELESS:
            stream.discard_output()

    def _overdue(self, stream: IOStream, timeouts: Timeouts, now: float) -> "Overdue | None":
        """Which of its timeouts has passed, if any."""
        idle, read, write = timeouts
        if stream.close_reason is not None:
            return None  # the stream itself watches over its end
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
            if not reading and stream.has_pending_input():  # it is the handler that is busy
                stream.count_as_received()
                return None
            return CloseReason.IDLE_TIMEOUT, StreamTimeoutError("read", idle, f"idle for {idle:g} s")
        return None

    def _overdue_phase(self, phase: Phase, now: float) -> "Overdue | None":
        if phase.seconds is None or now - phase.since <= phase.seconds:
            return None
        return phase.reason, StreamTimeoutError(phase.operation, phase.seconds)

    def _overdue_rate(self, stream: IOStream, rate: float, now: float) -> "Overdue | None":
        """Over each window, what has come of a read that has begun to come."""
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


def _between_looks(shortest: float) -> float:
    return min(max(shortest / LOOKS, SHORTEST), LONGEST)


def _is_input_pending(stream: IOStream, operation: Operation | None) -> bool:
    """Whether it is the server that is late: what is waited for has come, and handlers keep the loop from taking it."""
    return (operation == "handshake" or (operation == "read" and stream.reading())) and stream.has_pending_input()
