"""The timer that warns once a day of certificates that expire soon."""

import asyncio
from collections.abc import Callable, Iterable
from contextvars import Context

from ..runtime.clock import wall_clock_of
from .certificates import Certificates
from .validity import DAY


class ExpiryTimer:
    """Checks certificates when it is started, and then once a day.

    :param certificates: returns those in use at the time of a check.
    """

    def __init__(self, certificates: Callable[[], Iterable[Certificates]]) -> None:
        self._certificates = certificates
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # while started

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Check now, and once a day from here on. Without certificates no timer is set."""
        self.stop()
        self._loop = loop
        certificates = list(self._certificates())
        for each in certificates:
            each.warn_of_expiry(wall_clock_of(loop)())
        if certificates:
            self._timer = loop.call_later(DAY, self.start, loop, context=Context())

    def restart(self) -> None:
        """Check now if it was started: there are other certificates."""
        if self._loop is not None and not self._loop.is_closed():
            self.start(self._loop)

    def stop(self) -> None:
        """Check no more."""
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
