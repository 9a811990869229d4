"""The retirement of a server: other processes take the new clients, this one serves those that it has."""

import asyncio
import logging

from ..errors import CloseReason
from ..events import Event
from ..runtime.clock import clock_of
from .connections import Connections
from .shutdown import CANCEL_GRACE, LINGER, cancel_handler, clients, close_if_idle, close_lingering, is_drained

TICK = 0.05
"""Seconds between two checks of which clients are left."""

LONGEST_ANSWER = 10.0
"""Seconds for the answer to a client that is to be closed, if ``drain_timeout`` allows more."""


class Retirement:
    """Waits until all clients have left, and after a time closes them at a steady rate.

    Those without a request in progress are closed first, and of these the ones that were silent for the longest time.
    When none is left, others are chosen at the same rate; each is closed when it has been answered. One that was not
    for ``drain_timeout``, but at most for `LONGEST_ANSWER`, is cut off as in a shutdown: its handler is cancelled and
    has `CANCEL_GRACE` for its last writes. So it is with handlers that only write, and never wait in a read.
    """

    def __init__(self, connections: Connections, timeout: float | None, rate: float) -> None:
        self._connections = connections
        self._time = clock_of(asyncio.get_running_loop())
        self._chosen: dict[int, float] = {}  # when streams were chosen that are closed once they are answered, by id
        self._cancelled: dict[int, float] = {}  # when the handlers of those that were not were cancelled
        self.set_pace(timeout, rate)
        count = clients(connections.count())
        limit = "for as long as they like" if timeout is None else f"for up to {timeout:g} s"
        self._report(f"retiring: {count} may stay {limit}", logging.INFO)

    def set_pace(self, timeout: float | None, rate: float) -> None:
        """Close the clients that are left after ``timeout`` seconds, from now on: each second at most the share
        ``rate`` of them. None: close no client."""
        self._begins_at = None if timeout is None else self._time() + timeout
        self._rate = rate
        self._per_second: float | None = None  # clients; None until it begins
        self._counted = 0  # clients that were closed or chosen

    def _report(self, text: str, level: int) -> None:
        self._connections.events.emit(Event("shutdown", text, level, reason=CloseReason.SHUTDOWN))

    async def wait(self) -> None:
        """Return when all clients are gone, or when a shutdown has begun."""
        connections = self._connections
        try:
            while not (is_drained(connections) or connections.draining):
                if self._begins_at is not None and (passed := self._time() - self._begins_at) >= 0:
                    self._close_some(passed)
                await asyncio.sleep(TICK)
        finally:
            if not connections.draining:
                connections.end_draining()  # of the chosen ones, if it was cancelled

    def _close_some(self, passed: float) -> None:
        connections, idle, now = self._connections, self._connections.options.drain_idle, self._time()
        if self._per_second is None:
            self._per_second = self._rate * len(connections.open)
            count = clients(len(connections.open))
            self._report(
                f"retiring: {count} still there, and closed by {self._per_second:.1f} a second", logging.WARNING
            )
        connections.closes_answered = self._chosen
        connections.track_answers()
        close_lingering(connections, LINGER)
        for id in [id for id in self._chosen if id in connections.open]:
            close_if_idle(connections, connections.open[id], idle)
        self._cut_off_late_ones(now)
        due = int(passed * self._per_second) - self._counted
        if due <= 0:
            return
        waiting = [stream for id, stream in connections.open.items() if id not in self._chosen]
        waiting = [stream for stream in waiting if stream.close_reason is None]
        waiting.sort(key=lambda stream: stream.idle_time, reverse=True)
        for stream in list(waiting):
            if due and close_if_idle(connections, stream, idle):
                waiting.remove(stream)
                self._chosen[stream.id] = now  # it may wait for its client to read the last bytes
                self._counted += 1
                due -= 1
        self._chosen.update((stream.id, now) for stream in waiting[:due])
        self._counted += len(waiting[:due])

    def _cut_off_late_ones(self, now: float) -> None:
        """Cancel the handlers of those that were chosen long ago, and close those that have then had their last second.
        They were chosen at the rate, and so they are closed at it."""
        connections, limit = self._connections, self._connections.options.drain_timeout
        self._chosen = {id: at for id, at in self._chosen.items() if id in connections.open}
        self._cancelled = {id: at for id, at in self._cancelled.items() if id in connections.open}
        connections.closes_answered = self._chosen
        if limit is None:  # handlers may take as long as they like
            return
        late = [id for id, at in self._chosen.items() if now - at >= min(limit, LONGEST_ANSWER)]
        for id in late:
            stream = connections.open[id]
            if id not in self._cancelled:
                self._cancelled[id] = now
                cancel_handler(connections, stream)
            elif now - self._cancelled[id] >= CANCEL_GRACE:
                stream.close_or_abort(CloseReason.SHUTDOWN)
                stream.discard_output()
