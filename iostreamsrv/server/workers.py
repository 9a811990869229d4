"""A worker of several: what its server knows of the others, by their rows of a `Scoreboard`."""

import asyncio
import os
from collections.abc import Callable
from contextvars import Context

from ..errors import CloseReason
from ..runtime.clock import clock_of, real_time_ns
from .scoreboard import (
    ACCEPTED,
    BLOCKED,
    BUCKET,
    CELL_OF,
    CLOSED,
    ERRORS,
    GIVEN,
    HEARTBEAT,
    LATE,
    OPEN,
    RECEIVED,
    REJECTED,
    SENT,
    STATE,
    TAKEN,
    TLS_1_2,
    TLS_1_3,
    AddressTable,
    Scoreboard,
    State,
    count_duration,
    count_in,
)
from .siblings import LONGEST_WAIT

BEAT = 0.5
"""Seconds between two heartbeats."""

BEATS_FOR_BYTES = 4
"""Heartbeats after which the bytes of all open connections are added up."""

STALE = 2_000_000_000
"""Nanoseconds without a heartbeat after which no other worker leaves clients to this one."""

NEW = 8
"""Rows that are looked at above the last one that was in use. A new worker takes the first free row. To look at all of
them for each accept would take longer than all else that it does."""

LOOK_AT_ALL = 20_000_000
"""Nanoseconds between two looks which row is the last one in use."""

SLACK = 6
SLACK_SHARE = 8
"""A worker may have so many connections more than the one with the fewest: 6, and an eighth; and as many as it closes
while a client waits at most. Where connections are short they need no balance, and to wait costs most of the time: two
workers without this served a sixth of what two processes without any balance did."""

READY = int(State.READY)  # compared for each accept: an enum's own comparison is slower

MOST_AT_ONCE = 64
"""Clients that a worker takes, at most, when others did not in time."""

LEFT = 50_000_000
"""Nanoseconds within which it takes them."""

AGAIN = 100_000_000
"""Nanoseconds afterwards in which it is the same again: the others are stuck, and it takes twice as many."""


class WorkerSiblings:
    """The other workers, and this one's row, which it writes. Implements `Siblings`.

    :param index: of the row of this worker. Only one process may have it.
    :param number: see `Row`.
    :param generation: see `Row`.
    :ivar scoreboard: that of all workers.
    """

    def __init__(self, scoreboard: Scoreboard, index: int, number: int = 0, generation: int = 0) -> None:
        self.scoreboard = scoreboard
        self._index = index
        row = scoreboard.row(index)
        self._cells = row.cells
        self._addresses = AddressTable(row, scoreboard.table(index))
        self._open, self._state, self._heartbeat, self._accepted = (
            scoreboard.column(cell) for cell in (OPEN, STATE, HEARTBEAT, ACCEPTED)
        )
        self._near = 0  # so many rows are looked at
        self._near_until = 0
        # Where the row's counters stand: they go on if a worker before this one was not folded.
        self._bytes = [row.bytes_received, row.bytes_sent]  # of the closed connections
        self._closed_before = row.closed
        self._leaving = 0  # connections that this worker closes in `LONGEST_WAIT`
        self._at_once = 1
        self._left = 0  # clients that it still takes, whatever the others have
        self._left_until = 0
        self._waited_for: dict[int, int] = {}  # what the others had accepted then
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # the next heartbeat, by the loop's clock
        row.pid, row.number, row.generation = os.getpid(), number, generation
        row.open = 0
        row.heartbeat = real_time_ns()
        row.state = State.STARTING

    # ---- the others

    def _ready(self) -> list[int]:
        """The rows of the other workers that take clients."""
        now = real_time_ns()
        states, beats, late = self._state, self._heartbeat, now - STALE
        if now >= self._near_until:
            self._near_until = now + LOOK_AT_ALL
            self._near = max((index for index, state in enumerate(states.tolist()) if state), default=0) + 1 + NEW
        return [
            index
            for index, state in enumerate(states[: self._near].tolist())
            if state == READY and index != self._index and beats[index] > late
        ]

    def may_accept(self, open: int) -> bool:
        """See `Siblings`."""
        if open < SLACK:
            return True
        counts = self._open
        least = min([counts[index] for index in self._ready()], default=open)
        if open < least + SLACK + least // SLACK_SHARE + self._leaving:
            return True
        if self._left and real_time_ns() < self._left_until:
            self._left -= 1
            return True
        return False

    def waited_in_vain(self) -> None:
        """See `Siblings`. If it is the same again, because others are stuck, it takes more and more."""
        accepted, now = self._accepted.tolist(), real_time_ns()
        others = {index: accepted[index] for index in self._ready()}
        again = now < self._left_until + AGAIN and others.items() & self._waited_for.items()
        self._at_once = min(self._at_once * 2, MOST_AT_ONCE) if again else 1
        self._waited_for = others
        self._left = self._at_once
        self._left_until = now + LEFT

    def others(self) -> int:
        """See `Siblings`."""
        return sum(self._open.tolist()) - self._cells[OPEN]

    def of_host(self, host: str) -> int:
        """See `Siblings`."""
        board = self.scoreboard
        start, tag = board.place(host)
        return sum(
            count_in(board.table(index)[start : start + BUCKET].tolist(), tag)
            for index, state in enumerate(self._state.tolist())
            if state != State.FREE and index != self._index
        )

    # ---- this one

    def opened(self, open: int) -> None:
        """See `Siblings`."""
        cells = self._cells
        cells[OPEN] = open
        cells[ACCEPTED] += 1

    def closed(self, open: int, reason: CloseReason, seconds: float, received: int, sent: int) -> None:
        """See `Siblings`."""
        cells = self._cells
        cells[OPEN] = open
        cells[CLOSED] += 1
        cells[CELL_OF[reason]] += 1
        count_duration(cells, seconds)
        self._bytes[0] += received
        self._bytes[1] += sent

    def resumed(self, open: int) -> None:
        """See `Siblings`."""
        self._cells[OPEN] = open
        self._cells[TAKEN] += 1

    def handed_over(self, open: int, received: int, sent: int) -> None:
        """See `Siblings`. This worker may end before its next heartbeat."""
        cells = self._cells
        cells[OPEN] = open
        cells[GIVEN] += 1
        self._bytes[0] += received
        self._bytes[1] += sent
        for cell, closed in zip((RECEIVED, SENT), self._bytes, strict=True):
            cells[cell] = max(cells[cell], closed)

    def count_host(self, host: str, change: int) -> None:
        """See `Siblings`."""
        self._addresses.add(self.scoreboard.place(host), change)

    def rejected(self, open: int) -> None:
        """See `Siblings`."""
        self._cells[OPEN] = open
        self._cells[REJECTED] += 1

    def failed(self) -> None:
        """See `Siblings`."""
        self._cells[ERRORS] += 1

    def blocked(self) -> None:
        """See `Siblings`."""
        self._cells[BLOCKED] += 1

    def handshaken(self, version: str | None) -> None:
        """See `Siblings`."""
        self._cells[TLS_1_3 if version == "TLSv1.3" else TLS_1_2] += 1

    def listening(self, loop: asyncio.AbstractEventLoop, bytes_of_open: Callable[[], tuple[int, int]]) -> None:
        """See `Siblings`."""
        self._cells[STATE] = State.READY
        if loop is not self._loop:
            self._cancel()
            self._loop = loop
            self._due = clock_of(loop)()
            self._beat(loop, bytes_of_open, 0)

    def stopped(self) -> None:
        """See `Siblings`. Its heart goes on beating while it has clients."""
        self._cells[STATE] = State.RETIRING

    def _beat(self, loop: asyncio.AbstractEventLoop, bytes_of_open: Callable[[], tuple[int, int]], beats: int) -> None:
        cells = self._cells
        cells[HEARTBEAT] = real_time_ns()
        now = clock_of(loop)()
        cells[LATE] += int(max(now - self._due, 0.0) * 1e9)
        self._due = now + BEAT
        self._leaving = int((cells[CLOSED] - self._closed_before) * LONGEST_WAIT / BEAT)
        self._closed_before = cells[CLOSED]
        if not beats % BEATS_FOR_BYTES:
            for cell, closed, open in zip((RECEIVED, SENT), self._bytes, bytes_of_open(), strict=True):
                cells[cell] = max(cells[cell], closed + open)  # a stream that begins TLS counts from 0 again
        self._timer = loop.call_later(BEAT, self._beat, loop, bytes_of_open, beats + 1, context=Context())

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
