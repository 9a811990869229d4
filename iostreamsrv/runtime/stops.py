"""The requests to stop that a process gets while :func:`iostreamsrv.run` serves."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextvars import Context

PAUSE = 0.02
"""Seconds between two acts. A task that is cancelled twice before it has run sees one cancellation."""


class StopRequests:
    """Counts the requests to stop: signals, and what the first process of `TCPServer.start` asks over a pipe.

    Ctrl-C, systemd and ``kill -- -PID`` send a signal to each process of a group, and the first process passes on what
    it gets. So each of them comes to a worker twice, in any order, and counts once: the count is the larger one of the
    two.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._act: Callable[[], None]
        self._signals = self._asked = self._acted = 0
        self._pausing = False

    @contextlib.contextmanager
    def served(self, loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> Iterator[None]:
        """Call ``act`` in ``loop`` for each request."""
        self._signals = self._asked = self._acted = 0
        self._pausing = False
        self._act = act
        with self._lock:
            self._loop = loop
        try:
            yield
        finally:
            with self._lock:
                self._loop = None

    def by_signal(self) -> int:
        """A signal has come. Only within `served`, in its loop.

        :returns: which one it is, from 1.
        """
        self._signals += 1
        self._update()
        return self._signals

    def ask(self) -> None:
        """Ask, from any thread, what `served` serves to stop; without that end the process by SIGTERM."""
        with self._lock:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._count_asked, context=Context())
                return
        os.kill(os.getpid(), signal.SIGTERM)

    def _count_asked(self) -> None:
        self._asked += 1
        self._update()

    def _update(self) -> None:
        if self._pausing or self._loop is None or self._acted >= max(self._signals, self._asked):
            return
        self._acted += 1
        self._pausing = True
        self._loop.call_later(PAUSE, self._end_pause, context=Context())
        self._act()

    def _end_pause(self) -> None:
        self._pausing = False
        self._update()


stop_requests = StopRequests()
"""Those of this process."""
