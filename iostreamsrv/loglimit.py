"""A log that cannot be flooded by whoever connects."""

import time
from collections.abc import Callable

BURST = 10
PER_SECOND = 1.0
"""So many lines at once, and in the long run: enough to see what is going on, too few to fill a disk with."""


class LogLimit:
    """Passes lines on to ``log`` at a limited rate, and counts the rest: the next line that passes tells how many.

    :param log: a method of a logger, such as ``gen_log.warning``.
    """

    def __init__(self, log: Callable[..., None], clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._tokens = float(BURST)
        self._at = clock()
        self._left_out = 0

    def __call__(self, text: str, *arguments: object) -> None:
        now = self._clock()
        self._tokens = min(float(BURST), self._tokens + (now - self._at) * PER_SECOND)
        self._at = now
        if self._tokens < 1:
            self._left_out += 1
            return
        self._tokens -= 1
        if self._left_out:
            text += " (and %d lines like this one before)"
            arguments += (self._left_out,)
            self._left_out = 0
        self._log(text, *arguments)
