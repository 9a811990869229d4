"""The memory that the workers of one service share."""

import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from iostreamsrv.server import scoreboard as module
from iostreamsrv.server.scoreboard import (
    BUCKET,
    ENTRIES,
    OPEN,
    AddressTable,
    ForeignMemoryError,
    Row,
    Scoreboard,
    State,
    Totals,
)
from tests.support import PROJECT


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard.create(4)
    yield board
    board.close()


COUNTERS = ("accepted", "closed", "rejected", "errors", "bytes_received", "bytes_sent")


def fill(row: Row, factor: int = 1) -> None:
    """A worker with 3 open of 10 connections."""
    row.state, row.pid, row.open = State.READY, 1234, 3 * factor
    row.accepted, row.closed, row.rejected, row.errors = 10 * factor, 7 * factor, 2 * factor, factor
    row.bytes_received, row.bytes_sent = 1000 * factor, 2000 * factor


def test_each_field_of_each_row_is_a_number_of_its_own(board: Scoreboard) -> None:
    rows = [board.row(index) for index in range(4)]
    expected = {}
    for index, row in enumerate(rows):
        for place, name in enumerate(module.FIELDS):
            expected[index, name] = value = (1 << 64) - 1 - index * 100 - place
            setattr(row, name, value)
    found = {(index, name): getattr(board.row(index), name) for index, name in expected}
    assert found == expected
    assert board.column(OPEN).tolist() == [row.open for row in rows]
    assert board.past.accepted == 0


@pytest.mark.parametrize("index", [-1, 4])
def test_there_is_no_row_before_the_first_or_after_the_last(board: Scoreboard, index: int) -> None:
    with pytest.raises(IndexError, match="there are 4 rows"):
        board.row(index)


@pytest.mark.parametrize("rows", [0, -1, 4097])
def test_the_number_of_rows_has_limits(rows: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to 4096, not {rows}"):
        Scoreboard.create(rows)


# ---- sums


def test_the_totals_are_those_of_all_rows(board: Scoreboard) -> None:
    fill(board.row(0))
    fill(board.row(3), 2)
    assert board.totals() == Totals(9, 30, 21, 6, 3, 3000, 6000)


def test_a_dead_worker_keeps_its_counters_and_has_no_open_connections(board: Scoreboard) -> None:
    fill(board.row(0))
    fill(board.row(3), 2)
    board.fold(3)
    assert board.totals() == Totals(3, 30, 7 + 20, 6, 3, 3000, 6000)  # what it had accepted is closed now
    assert board.row(3).cells.tolist() == [0] * len(board.row(3).cells)
    fill(board.row(3))
    board.fold(3)
    board.fold(0)
    assert board.totals() == Totals(0, 40, 40, 8, 4, 4000, 8000)


def test_what_has_lasted_and_why_it_ended_stays_when_a_worker_has_died(board: Scoreboard) -> None:
    cells = board.row(1).cells
    board.row(1).accepted, board.row(1).open, board.row(1).closed = 5, 2, 3
    for reason, seconds in (("eof", 0.01), ("eof", 0.02), ("kicked", 40_000.0)):
        cells[module.CELL_OF[reason]] += 1
        module.count_duration(cells, seconds)
    for _ in range(2):
        sums = dict(zip(module.REASONS, board.sums(module.CLOSED_BY), strict=True))
        assert {reason: count for reason, count in sums.items() if count and reason != "worker_lost"} == {
            "eof": 2,
            "kicked": 1,
        }
        assert board.sums(module.LASTED) == [1, 1, 0, 0, 0, 0, 0, 0, 1]
        assert board.sums([module.LASTED_SUM]) == [40_000_030_000]
        board.fold(1)
    assert sums["worker_lost"] == 2
    assert sum(sums.values()) == board.totals().closed == 5


def test_of_a_client_that_was_given_away_each_worker_counts_its_part(board: Scoreboard) -> None:
    old, new = board.row(0), board.row(1)
    old.accepted = old.given = 1
    new.taken = new.open = 1
    board.fold(0)
    assert board.totals()[:3] == (1, 1, 0)
    board.fold(1)
    assert board.totals()[:3] == (0, 1, 1)


class DiesAt:
    """The words of a scoreboard, for a master that dies before it writes one of them."""

    def __init__(self, cells: Any, writes: int) -> None:
        self._cells, self._left = cells, writes

    def __getitem__(self, key: Any) -> Any:
        found = self._cells[key]
        return DiesAt.within(self, found) if isinstance(found, memoryview) else found

    def __setitem__(self, key: Any, value: Any) -> None:
        self.spend()
        self._cells[key] = value

    def __len__(self) -> int:
        return len(self._cells)

    def spend(self) -> None:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1

    def tolist(self) -> Any:
        return self._cells.tolist()

    @staticmethod
    def within(whole: "DiesAt", cells: Any) -> "DiesAt":
        part = DiesAt(cells, 0)
        part.spend = whole.spend  # type: ignore[method-assign]
        return part


def test_no_total_falls_wherever_a_fold_is_interrupted_and_the_next_master_finishes_it() -> None:
    interrupted = 0
    for writes in range(300):
        board = Scoreboard.create(2)
        for index in 0, 1:
            fill(board.row(index), 5)
        AddressTable(board.row(1), board.table(1)).add(board.place("10.0.0.1"), 1)
        before = board.totals()
        cells = board._cells
        board._cells = DiesAt(cells, writes)  # type: ignore[assignment]
        try:
            board.fold(1)
        except KeyboardInterrupt:
            interrupted += 1
        board._cells = cells
        during = board.totals()
        assert [name for name in COUNTERS if getattr(during, name) < getattr(before, name)] == []
        board.recover()
        if board.row(1).state != State.FREE:  # it had not begun
            board.fold(1)
        done = board.totals()
        assert done == Totals(15, 100, 35 + 50, 20, 10, 10000, 20000), writes
        assert board.row(1).cells.tolist() == [0] * module.ROW
        assert board.of_address(1, board.place("10.0.0.1")) == 0
        board.close()
        if writes > interrupted:
            break
    assert 20 < interrupted < 300


# ---- the memory


def test_a_second_opening_sees_the_same_memory(board: Scoreboard) -> None:
    assert board.fd is not None
    other = Scoreboard.open(os.dup(board.fd))
    fill(board.row(2))
    assert (other.rows, other.row(2).accepted, other.totals()) == (4, 10, board.totals())
    assert other.place("10.0.0.1") == board.place("10.0.0.1")
    other.row(1).open = 7
    assert board.row(1).open == 7
    other.close()
    assert other.fd is None
    assert board.row(1).open == 7


def test_memory_of_another_version_or_of_something_else_is_refused_and_stays_open(board: Scoreboard) -> None:
    fd = board.fd
    assert fd is not None
    board._cells[1] = 1
    with pytest.raises(ForeignMemoryError, match="has version 1, not 2"):
        Scoreboard.open(fd)
    board._cells[0] = 2
    with pytest.raises(ForeignMemoryError, match="this is no scoreboard"):
        Scoreboard.open(fd)
    with tempfile.TemporaryFile() as file:
        with pytest.raises(ForeignMemoryError, match="has only 0 bytes"):
            Scoreboard.open(file.fileno())
        os.fstat(file.fileno())
    os.truncate(fd, os.fstat(fd).st_size - mmap.PAGESIZE)
    board._cells[0], board._cells[1] = module.MAGIC, module.VERSION
    with pytest.raises(ForeignMemoryError):
        Scoreboard.open(fd)


def test_rows_that_were_not_used_take_no_space() -> None:
    board = Scoreboard.create(256)
    assert board.fd is not None
    fill(board.row(0))
    assert board.totals().accepted == 10
    AddressTable(board.row(0), board.table(0)).add(board.place("10.0.0.1"), 1)
    assert os.fstat(board.fd).st_size > 256 * 200_000
    assert os.fstat(board.fd).st_blocks * 512 <= 256 * module.ROW * module.CELL + 8 * mmap.PAGESIZE
    board.close()


@pytest.mark.parametrize("files", [True, False])
def test_without_memfd_there_is_a_file_or_memory_for_forked_children(
    monkeypatch: pytest.MonkeyPatch, files: bool
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    if not files:

        def refuse() -> Any:
            raise FileNotFoundError("no usable temporary directory")

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    board = Scoreboard.create(2)
    assert (board.fd is not None) == files
    pid = os.fork()
    if not pid:
        fill(board.row(1))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert board.totals().accepted == 10
    board.close()


def test_two_processes_share_it_and_the_counters_of_one_that_was_killed_stay() -> None:
    board = Scoreboard.create(2)
    assert board.fd is not None
    child = """
import sys, time
from iostreamsrv.server.scoreboard import Scoreboard
row = Scoreboard.open(int(sys.argv[1])).row(1)
row.state = 2
while True:
    row.accepted += 1
    row.open = row.accepted - row.closed
    row.closed += row.accepted % 2
"""
    with subprocess.Popen([sys.executable, "-c", child, str(board.fd)], pass_fds=[board.fd], cwd=PROJECT) as process:
        highest = 0
        while highest < 20_000:
            accepted = board.totals().accepted
            assert accepted >= highest
            highest = accepted
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    before = board.totals()
    board.fold(1)
    after = board.totals()
    assert (after.open, after.accepted, after.closed) == (0, before.accepted, before.accepted)
    assert board.row(1).state == State.FREE
    board.close()


def test_a_reader_in_another_process_sees_no_total_fall_while_workers_are_folded() -> None:
    board = Scoreboard.create(3)
    assert board.fd is not None
    reader = """
import sys
from iostreamsrv.server.scoreboard import Scoreboard
board = Scoreboard.open(int(sys.argv[1]))
last, changes = board.totals(), 0
print("'ready'", flush=True)
while last.accepted < int(sys.argv[2]):
    now = board.totals()
    assert not [name for name in now._fields[1:] if getattr(now, name) < getattr(last, name)], (last, now)
    changes += now != last
    last = now
print(changes, flush=True)
"""
    rounds, generator = 2000, random.Random(17)
    with subprocess.Popen(
        [sys.executable, "-c", reader, str(board.fd), str(rounds * 10)],
        pass_fds=[board.fd],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "'ready'\n"
        for _ in range(rounds):
            index = generator.randrange(3)
            fill(board.row(index))
            board.fold(index)
            time.sleep(generator.random() / 4000)  # or the reader never finds a moment of rest
        assert int(process.stdout.read()) > rounds / 10
    assert process.returncode == 0
    board.close()


# ---- addresses


def test_an_address_is_counted_in_the_row_of_its_worker(board: Scoreboard) -> None:
    tables = [AddressTable(board.row(index), board.table(index)) for index in range(4)]
    place = board.place("10.0.0.1")
    for _ in range(3):
        tables[1].add(place, 1)
    tables[2].add(place, 1)
    tables[1].add(board.place("10.0.0.2"), 1)
    assert [board.of_address(index, place) for index in range(4)] == [0, 3, 1, 0]
    for _ in range(3):
        tables[1].add(place, -1)
    assert [board.of_address(index, place) for index in range(4)] == [0, 0, 1, 0]
    board.fold(2)
    assert [board.of_address(index, place) for index in range(4)] == [0, 0, 0, 0]
    assert board.of_address(1, board.place("10.0.0.2")) == 1


def test_what_finds_no_room_in_its_bucket_is_not_counted_and_does_no_harm(board: Scoreboard) -> None:
    table = AddressTable(board.row(0), board.table(0))
    places = [(5 * BUCKET, 100 + number) for number in range(ENTRIES + 1)]
    for place in places:
        table.add(place, 1)
    assert [board.of_address(0, place) for place in places] == [1] * ENTRIES + [0]
    table.add(places[-1], -1)
    table.add(places[2], -1)
    assert [board.of_address(0, place) for place in places] == [1, 1, 0, 1, 1, 1, 1, 1, 0]
    table.add(places[-1], 1)
    assert board.of_address(0, places[-1]) == 1
    assert sum(value != 0 for value in board.table(0).tolist()) == 2 * ENTRIES


def test_nobody_can_choose_addresses_that_fall_into_one_bucket() -> None:
    boards = [Scoreboard.create(1) for _ in range(2)]
    addresses = [f"10.0.{number // 256}.{number % 256}" for number in range(2000)]
    places = [[board.place(address) for address in addresses] for board in boards]
    assert places[0] != places[1], "each has a key of its own"
    for found in places:
        assert len(set(found)) == len(addresses)
        assert all(start % BUCKET == 0 and 0 <= start < module.TABLE and tag for start, tag in found)
        assert len({start for start, _ in found}) > 1000
    for board in boards:
        board.close()
