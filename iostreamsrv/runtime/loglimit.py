"""A log that cannot be flooded by whoever connects."""

from .clock import Clock, current_time

BURST = 10
PER_SECOND = 1.0
"""So many lines at once, and in the long run: enough to see what is going on, too few to fill a disk with."""


class LogLimit:
    """Says which lines may pass, at a limited rate, and counts the rest, which the next one that passes can tell."""

    def __init__(self, clock: Clock = current_time) -> None:
        self._clock = clock
        self._tokens = float(BURST)
        self._at = clock()
        self._left_out = 0

    def take(self) -> int | None:
        """For one line: None if it is to be left out; else how many were, since the last one that passed."""
        now = self._clock()
        self._tokens = min(float(BURST), self._tokens + max(0.0, now - self._at) * PER_SECOND)
        self._at = now
        if self._tokens < 1:
            self._left_out += 1
            return None
        self._tokens -= 1
        left_out, self._left_out = self._left_out, 0
        return left_out
