"""Checks that the peer of a stream that is being closed still takes its output."""

from asyncio import TimerHandle
from contextvars import Context
from typing import Any, Protocol

from ..errors import CloseReason, StreamTimeoutError
from ..runtime.stalls import Stalls
from .hub import Hub

CHECKS_PER_TIMEOUT = 8
"""Checks within one write timeout: so a timeout is noticed at most an eighth late."""

MAX_INTERVAL = 1.0
"""Most seconds between two checks."""

MIN_RATE = 240
"""Bytes per second that a peer must take, counted over `RATE_WINDOW`. Otherwise a peer could keep its connection
forever by taking a byte now and then. (Kestrel's figure, for what is received.)"""

RATE_WINDOW = 60.0
"""Seconds over which the rate is counted."""


class Ending(Protocol):
    """What the watch needs of a stream."""

    _hub: Hub

    def _write_timeout(self) -> float | None:
        """Seconds without progress after which the stream is aborted."""

    def send_progress(self) -> int:
        """A number that grows with what the peer takes."""

    def _is_sending(self) -> bool:
        """Whether the peer has not yet taken everything."""

    def _peer_too_slow(self, reason: CloseReason, error: StreamTimeoutError) -> None:
        """The peer takes too little."""


class ProgressWatch:
    """Checks at intervals how much a peer has taken, and aborts the stream if that is too little."""

    __slots__ = ("_due", "_rated", "_rated_at", "_seen", "_seen_at", "_stalls", "_stream", "_timeout", "_timer")

    def __init__(self, stream: Any) -> None:
        self._stream: Ending = stream
        self._timeout = stream._write_timeout()
        self._seen = self._rated = stream.send_progress()
        self._seen_at = self._rated_at = self._stream._hub.time()
        self._stalls = Stalls(self._seen_at)
        self._timer: TimerHandle
        self._schedule(self._seen_at)

    def stop(self) -> None:
        """Stop checking."""
        self._timer.cancel()

    def _schedule(self, now: float) -> None:
        interval = min(RATE_WINDOW if self._timeout is None else self._timeout, RATE_WINDOW) / CHECKS_PER_TIMEOUT
        self._due = now + min(interval, MAX_INTERVAL)
        self._timer = self._stream._hub.loop.call_later(self._due - now, self._check, context=Context())

    def _check(self) -> None:
        now = self._stream._hub.time()
        uncounted = self._stalls.uncounted(now, self._due)
        self._seen_at += uncounted
        self._rated_at += uncounted
        overdue = self._overdue(now)
        if overdue is None:
            self._schedule(now)
        else:
            self._stream._peer_too_slow(*overdue)

    def _overdue(self, now: float) -> tuple[CloseReason, StreamTimeoutError] | None:
        progress = self._stream.send_progress()
        if not self._stream._is_sending():
            self._rated, self._rated_at = progress, now
        if progress != self._seen or self._rated_at == now:
            self._seen, self._seen_at = progress, now
        elif self._timeout is not None and now - self._seen_at > self._timeout:
            text = f"the peer took nothing for {self._timeout:g} s"
            return CloseReason.WRITE_TIMEOUT, StreamTimeoutError("write", self._timeout, text)
        seconds = now - self._rated_at
        if seconds < RATE_WINDOW:
            return None
        taken = progress - self._rated
        if taken < MIN_RATE * seconds:
            text = f"the peer took {taken} bytes in {seconds:.0f} s: less than {MIN_RATE} per second"
            return CloseReason.MIN_RATE, StreamTimeoutError("write", seconds, text)
        self._rated, self._rated_at = progress, now
        return None
