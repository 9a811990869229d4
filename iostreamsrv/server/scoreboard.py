"""Shared memory for the workers of one service: a row of numbers for each, which all of them read.

Each row has one writer, its worker. So there are no locks, and a worker that dies or is stopped blocks no other. A cell
is an aligned word of 64 bits, which is read and written as a whole.

**No total falls.** When a worker has died, its master moves its counters to the row of the past (`Scoreboard.fold`).
There are two such rows. One word says which of them counts, and which worker's row does no longer. It is written once
both are complete, so a sum has a dead worker's counters either in its row or in the past. A reader that finds the word
changed reads again. A master may die between any two steps: the word says what the next one has to finish.

**Connections of one address** are counted in a hash table beside each row, under a keyed hash of the address. Its
buckets have a fixed size. What finds no place there is counted by its own worker only.
"""

import contextlib
import hashlib
import mmap
import os
import secrets
import tempfile
from bisect import bisect_left
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple, Self

from ..errors import CloseReason

MAGIC = int.from_bytes(b"iostrsrv", "little")
VERSION = 2
"""Of the layout. A master that was upgraded opens the memory of the one before."""

CELL = 8
"""Bytes of a number."""

FIELDS = (
    "state",
    "pid",
    "number",
    "generation",
    "heartbeat",
    "open",
    "accepted",
    "closed",
    "rejected",
    "errors",
    "bytes_received",
    "bytes_sent",
    "addresses",
    "taken",
    "given",
    "late",
    "blocked",
    "tls_1_2",
    "tls_1_3",
)
"""The first cells of a row. ``addresses`` is not 0 if the row's table of addresses was used."""

STATE, PID, NUMBER, GENERATION, HEARTBEAT, OPEN, ACCEPTED, CLOSED, REJECTED, ERRORS, RECEIVED, SENT = range(12)
ADDRESSES, TAKEN, GIVEN, LATE, BLOCKED, TLS_1_2, TLS_1_3 = range(12, len(FIELDS))
COUNTERS = range(ACCEPTED, SENT + 1)
"""The cells of `Totals` that only grow, while a worker lives."""

TOTALS = FIELDS[OPEN : SENT + 1]
"""The names of the numbers of `Totals`, which a row has, too."""

REASONS = (*CloseReason, "worker_lost")
"""Why connections were closed; the last one: their worker has died."""

DURATIONS = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36000.0)
"""Seconds: the bounds of the classes that durations of connections are counted in. Of longer ones there is one more."""

CLOSED_BY = range(len(FIELDS), len(FIELDS) + len(REASONS))
LASTED = range(CLOSED_BY.stop, CLOSED_BY.stop + len(DURATIONS) + 1)
LASTED_SUM = LASTED.stop
"""Cells after the fields: closed connections for each of `REASONS`, for each class of `DURATIONS`, and the sum of the
durations in microseconds."""

CELL_OF = dict(zip(REASONS, CLOSED_BY, strict=True))
"""Where connections with a reason are counted."""

GROWING = (*COUNTERS, LATE, BLOCKED, TLS_1_2, TLS_1_3, *CLOSED_BY, *LASTED, LASTED_SUM)
"""All cells that only grow."""

ROW = 64
"""Cells of a row, with room for more."""

ENTRIES = 8
"""Addresses in one bucket of a table; each has a tag and a count."""

BUCKETS = 2048
BUCKET = 2 * ENTRIES
TABLE = BUCKETS * BUCKET

# The header: one page.
_MAGIC, _VERSION, _ROWS, _CURRENT, _KEY = range(5)
_KEY_CELLS = 4
_PAST = ROW  # two rows
_HEADER = mmap.PAGESIZE // CELL

MAX_ROWS = 4096
_INDEX_BITS = 16  # of _CURRENT: the index of a row and the number of a row of the past; above them a serial number


class State(IntEnum):
    """What a worker does. Its siblings leave clients to it only if it is `READY`."""

    FREE = 0
    STARTING = 1
    READY = 2
    RETIRING = 3


class Totals(NamedTuple):
    """The sums over all workers, the dead ones included. All but ``open`` never fall."""

    open: int
    accepted: int
    closed: int
    rejected: int
    errors: int
    bytes_received: int
    bytes_sent: int


class _Field:
    """One number of a `Row`."""

    def __init__(self, cell: int) -> None:
        self._cell = cell

    def __get__(self, row: "Row", owner: type) -> int:
        return row.cells[self._cell]

    def __set__(self, row: "Row", value: int) -> None:
        row.cells[self._cell] = value


class Row:
    """The numbers of one worker. Only this worker may set them.

    :ivar state: a `State`.
    :ivar pid: its process.
    :ivar number: which of the workers it is, from 1.
    :ivar generation: how many reloads were before it.
    :ivar heartbeat: when its loop has last run, in nanoseconds of `time.monotonic_ns`.
    :ivar open: how many connections it has.
    :ivar accepted: connections since it started, with those that were rejected.
    :ivar closed: connections that were closed here.
    :ivar rejected: those of them that were rejected.
    :ivar errors: exceptions in handlers.
    :ivar bytes_received: bytes from clients, as of the last heartbeat but one or two.
    :ivar bytes_sent: bytes to clients, likewise.
    :ivar addresses: not 0 if its table of addresses was used.
    :ivar taken: connections that have come from other workers. They do not count as accepted here.
    :ivar given: connections that have left for other workers. They do not count as closed here.
    :ivar late: by how much its heartbeats came too late, in nanoseconds, all added up: its loop had other things to do.
    :ivar blocked: how often a handler has blocked its loop.
    :ivar tls_1_2: handshakes that ended with TLS 1.2, or older.
    :ivar tls_1_3: with TLS 1.3.
    :ivar cells: the same numbers, by their places in `FIELDS`, and those of `CLOSED_BY`, `LASTED` and `LASTED_SUM`.
    """

    __slots__ = ("cells",)

    state = _Field(STATE)
    pid = _Field(PID)
    number = _Field(NUMBER)
    generation = _Field(GENERATION)
    heartbeat = _Field(HEARTBEAT)
    open = _Field(OPEN)
    accepted = _Field(ACCEPTED)
    closed = _Field(CLOSED)
    rejected = _Field(REJECTED)
    errors = _Field(ERRORS)
    bytes_received = _Field(RECEIVED)
    bytes_sent = _Field(SENT)
    addresses = _Field(ADDRESSES)
    taken = _Field(TAKEN)
    given = _Field(GIVEN)
    late = _Field(LATE)
    blocked = _Field(BLOCKED)
    tls_1_2 = _Field(TLS_1_2)
    tls_1_3 = _Field(TLS_1_3)

    def __init__(self, cells: "memoryview[int]") -> None:
        self.cells = cells


class ForeignMemoryError(ValueError):
    """The memory is no scoreboard, or one of another version of this package."""


class Scoreboard:
    """The memory of all workers; see the module. It takes space only where it was written.

    :ivar fd: the descriptor to hand to another process; None if only forked children can share the memory.
    :ivar rows: the number of rows.
    """

    def __init__(self, memory: mmap.mmap, fd: int | None) -> None:
        self.fd = fd
        self._cells = memoryview(memory).cast("Q")
        self.rows = self._cells[_ROWS]
        self._key = bytes(self._cells[_KEY : _KEY + _KEY_CELLS].cast("B"))

    @classmethod
    def create(cls, rows: int, inherited: bool = False) -> Self:
        """New memory, with so many rows. Needs no file system that can be written to.

        :param inherited: it is only for children that are forked: it has no descriptor.
        :raises ValueError: more rows than `MAX_ROWS`, or less than one.
        :raises OSError: there is no memory.
        """
        if not 1 <= rows <= MAX_ROWS:
            raise ValueError(f"rows must be from 1 to {MAX_ROWS}, not {rows}")
        size = _size(rows)
        fd = None if inherited else _new_file(size)
        memory = mmap.mmap(-1 if fd is None else fd, size)
        cells = memoryview(memory).cast("Q")
        cells[_VERSION], cells[_ROWS] = VERSION, rows
        for cell in range(_KEY, _KEY + _KEY_CELLS):
            cells[cell] = secrets.randbits(64)
        cells[_MAGIC] = MAGIC
        cells.release()
        return cls(memory, fd)

    @classmethod
    def open(cls, fd: int) -> Self:
        """The memory of a descriptor that another process has given; it is closed with this object.

        :raises ForeignMemoryError: it has another layout. The descriptor stays open.
        """
        size = os.fstat(fd).st_size
        if size < mmap.PAGESIZE:
            raise ForeignMemoryError(f"the scoreboard has only {size} bytes")
        memory = mmap.mmap(fd, size)
        cells = memoryview(memory).cast("Q")
        magic, version, rows = cells[_MAGIC], cells[_VERSION], cells[_ROWS]
        cells.release()
        if (magic, version) == (MAGIC, VERSION) and 1 <= rows <= MAX_ROWS and size == _size(rows):
            return cls(memory, fd)
        memory.close()
        raise ForeignMemoryError(
            f"the scoreboard has version {version}, not {VERSION}" if magic == MAGIC else "this is no scoreboard"
        )

    def close(self) -> None:
        """Let go of the memory and of the descriptor. The rows that were given must not be used any more."""
        self._cells = memoryview(b"").cast("Q")  # the mapping goes with the last view of it
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def row(self, index: int) -> Row:
        """The row with this index.

        :raises IndexError: there is none.
        """
        if not 0 <= index < self.rows:
            raise IndexError(f"there are {self.rows} rows, and none with the index {index}")
        return self._row_at(_HEADER + index * ROW)

    @property
    def past(self) -> Row:
        """The sums of the dead workers: only counters. It may be out of date a moment later."""
        return self._row_at(_PAST + (self._cells[_CURRENT] & 1) * ROW)

    def _row_at(self, start: int) -> Row:
        return Row(self._cells[start : start + ROW])

    def column(self, cell: int) -> "memoryview[int]":
        """One number of all rows, in their order: `OPEN`, for example."""
        return self._cells[_HEADER + cell : _HEADER + self.rows * ROW : ROW]

    # ---- the dead

    def fold(self, index: int) -> None:
        """Add the counters of a worker that has died to those of the past, and clear its row. All of its connections
        are closed. Only for the master.
        """
        self.recover()
        cells = self.row(index).cells
        current = self._cells[_CURRENT]
        other = ~current & 1
        old, new = self.past.cells, self._row_at(_PAST + other * ROW).cells
        for cell in GROWING:
            new[cell] = old[cell] + cells[cell]
        lost = max(cells[ACCEPTED] + cells[TAKEN] - cells[GIVEN] - cells[CLOSED], 0)
        new[CLOSED] += lost
        new[CLOSED_BY[-1]] += lost
        self._set_current(current, index + 1, other)
        self.recover()

    def recover(self) -> None:
        """Finish what :meth:`fold` of a master that has died left to do. Only for the master."""
        current = self._cells[_CURRENT]
        folded = (current & (1 << _INDEX_BITS) - 1) >> 1
        if not folded:
            return
        cells = self.row(folded - 1).cells
        cells[STATE] = State.FREE
        if cells[ADDRESSES]:
            table = self.table(folded - 1)
            table[:] = memoryview(bytes(len(table) * CELL)).cast("Q")
        for cell in range(ROW):
            cells[cell] = 0
        self._set_current(current, 0, current & 1)

    def _set_current(self, before: int, folded: int, past: int) -> None:
        serial = (before >> _INDEX_BITS) + 1 & (1 << 64 - _INDEX_BITS) - 1
        self._cells[_CURRENT] = serial << _INDEX_BITS | folded << 1 | past

    def totals(self) -> Totals:
        """The sums over all rows and the past."""
        return Totals(*self.sums((OPEN, *COUNTERS)))

    def sums(self, cells: Iterable[int]) -> list[int]:
        """The sum of each of these cells over all rows and the past, all as of one moment. Of `GROWING` none falls."""
        columns = [(cell, self.column(cell)) for cell in cells]
        while True:
            current = self._cells[_CURRENT]
            past = self._row_at(_PAST + (current & 1) * ROW).cells
            folded = (current & (1 << _INDEX_BITS) - 1) >> 1
            sums = []
            for cell, column in columns:
                values = column.tolist()
                if folded:
                    values[folded - 1] = 0
                sums.append(sum(values) + past[cell])
            if self._cells[_CURRENT] == current:
                return sums

    # ---- addresses

    def table(self, index: int) -> "memoryview[int]":
        """The table of addresses that belongs to a row."""
        start = _tables(self.rows) + index * TABLE
        return self._cells[start : start + TABLE]

    def place(self, address: str) -> tuple[int, int]:
        """Where in a table an address is counted: the start of its bucket, and its tag."""
        digest = hashlib.blake2b(address.encode(), digest_size=16, key=self._key).digest()
        tag = int.from_bytes(digest[:8], "little") or 1
        return int.from_bytes(digest[8:], "little") % BUCKETS * BUCKET, tag

    def of_address(self, index: int, place: tuple[int, int]) -> int:
        """How many connections the worker of a row counts at a `place`."""
        start, tag = place
        return count_in(self.table(index)[start : start + BUCKET].tolist(), tag)


def count_duration(cells: "memoryview[int]", seconds: float) -> None:
    """Count in a row that a connection was open for so long."""
    cells[LASTED[bisect_left(DURATIONS, seconds)]] += 1
    cells[LASTED_SUM] += int(max(seconds, 0.0) * 1e6)


def count_in(bucket: list[int], tag: int) -> int:
    """The count of a tag in a bucket, 0 if it is not there."""
    for entry in range(0, BUCKET, 2):
        if bucket[entry] == tag:
            return bucket[entry + 1]
    return 0


class AddressTable:
    """The table of a worker's own row, which it writes.

    :param row: the row; it is marked when the table is used.
    """

    def __init__(self, row: Row, table: "memoryview[int]") -> None:
        self._row = row
        self._table = table

    def add(self, place: tuple[int, int], change: int) -> None:
        """Change the count of an address by 1 or -1. Without room in its bucket it is not counted."""
        start, tag = place
        table, free = self._table, -1
        for entry in range(start, start + BUCKET, 2):
            found = table[entry]
            if found == tag:
                count = table[entry + 1] + change
                table[entry + 1] = max(count, 0)
                if count <= 0:
                    table[entry] = 0
                return
            if not found and free < 0:
                free = entry
        if change > 0 and free >= 0:
            self._row.addresses = 1
            table[free + 1] = change
            table[free] = tag  # last: a reader that finds the tag finds the count


def _tables(rows: int) -> int:
    """The cell where the tables begin, at a page of their own: a row without one costs no page of it."""
    cells = _HEADER + rows * ROW
    return -(-cells // _HEADER) * _HEADER


def _size(rows: int) -> int:
    return (_tables(rows) + rows * TABLE) * CELL


def _new_file(size: int) -> int | None:
    """A file of zeros that only its descriptor leads to; None if none can be made."""
    with contextlib.suppress(OSError, AttributeError):  # not every system has it
        return _truncated(os.memfd_create("iostreamsrv-scoreboard"), size)
    with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:
        return _truncated(os.dup(file.fileno()), size)
    return None


def _truncated(fd: int, size: int) -> int:
    try:
        os.truncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd
