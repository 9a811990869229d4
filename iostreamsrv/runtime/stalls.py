"""Finds out, from checks that come late, for how long the process did not run.

If it was stopped, or a handler blocked the loop, its peers may have been active all the time, and none of them is to
blame for the silence. So the time before a late check does not count. But where handlers block the loop again and
again, no timeout would ever fire. So of that time only as much is left out as the process ran on time since the late
check before, and half of it at least. In any case half of all time counts: a timeout fires after twice its time.
"""

import math

STALL_THRESHOLD = 0.5
"""Seconds that a check may be late because the process is busy. Beyond that the process did not run."""


class Stalls:
    """What is known of a process that checks something at certain times.

    :ivar checked_at: the time of the last check.
    """

    __slots__ = ("_late_at", "checked_at")

    def __init__(self, now: float) -> None:
        self.checked_at = now
        self._late_at = -math.inf

    def uncounted(self, now: float, due: float) -> float:
        """Report a check that was due at ``due``; return how many of the seconds since the last one do not count."""
        checked_at, self.checked_at = self.checked_at, now
        if now - due <= STALL_THRESHOLD:
            return 0.0
        ran, self._late_at = checked_at - self._late_at, now
        passed = now - checked_at
        return min(passed, max(passed / 2, ran))
