"""A file of lines: nothing waits for it, and what is lost is counted."""

import errno
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv.errors import OptionError
from iostreamsrv.observe import logfile
from iostreamsrv.observe.logfile import LogFile
from tests.support.waiting import waited


@pytest.fixture
def file(tmp_path: Path) -> Iterator[LogFile]:
    file = LogFile("log", tmp_path / "log")
    yield file
    file.close()


def pipe_in(folder: Path) -> tuple[Path, int]:
    """The path of a named pipe, and a descriptor that reads from it and does not block."""
    os.mkfifo(folder / "pipe")
    return folder / "pipe", os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_all_that_was_written_before_the_close_is_there(tmp_path: Path) -> None:
    file = LogFile("log", tmp_path / "log")
    for number in range(5000):
        file.write(f"line {number}")
    file.close()
    assert (tmp_path / "log").read_text() == "".join(f"line {number}\n" for number in range(5000))
    assert file.lost == 0


def test_what_is_written_after_the_close_is_lost(file: LogFile, tmp_path: Path) -> None:
    file.close()
    file.write("x")
    file.close()
    assert file.lost == 1
    assert (tmp_path / "log").read_text() == ""


def test_lines_are_appended_and_only_the_owner_and_the_group_may_read_them(tmp_path: Path) -> None:
    for text in "one", "two":
        file = LogFile("log", tmp_path / "log")
        file.write(text)
        file.close()
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    assert (tmp_path / "log").stat().st_mode & 0o137 == 0


def test_after_a_reopen_lines_go_to_a_new_file(file: LogFile, tmp_path: Path) -> None:
    path = tmp_path / "log"
    file.write("one")
    assert waited(lambda: path.read_text() == "one\n")
    path.rename(tmp_path / "old")
    file.reopen()
    assert waited(path.exists)
    file.write("two")
    assert waited(lambda: path.read_text() == "two\n")
    assert (tmp_path / "old").read_text() == "one\n"


def test_a_file_that_cannot_be_opened_again_goes_on(
    file: LogFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write("one")
    old = tmp_path / "old"
    (tmp_path / "log").rename(old)
    (tmp_path / "log").mkdir()
    file.reopen()
    file.write("two")
    assert waited(lambda: old.read_text() == "one\ntwo\n")
    assert "cannot be opened again: Is a directory" in said(caplog)[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_said_once_and_what_is_lost_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    file = LogFile("log", "/dev/full")
    for number in range(10):
        file.write("x")
        assert waited(lambda number=number: file.lost == number + 1)
    assert len(said(caplog)) == 1
    assert "/dev/full cannot be written: No space left on device" in said(caplog)[0]
    file.close()


def test_a_line_that_was_written_in_part_is_ended_before_the_next_one(
    file: LogFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, full = os.write, threading.Event()

    def writes(fd: int, data: Any) -> int:
        line = bytes(data).lstrip()
        if line.startswith(b"three"):
            return write(fd, data[:2])
        if line.startswith((b"ree", b"four")):
            full.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    monkeypatch.setattr(logfile.os, "write", writes)
    for line in "one", "three", "four":
        file.write(line)
        time.sleep(0.05)
    assert waited(full.is_set)
    monkeypatch.undo()
    file.write("five")
    assert waited(lambda: (tmp_path / "log").read_text() == "one\nth\nfive\n")
    assert file.lost == 2
    assert waited(lambda: len(said(caplog)) == 2)
    assert said(caplog)[1].endswith("is written again; 2 lines are lost so far")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes")
def test_a_pipe_without_a_reader_is_refused(tmp_path: Path) -> None:
    path, reader = pipe_in(tmp_path)
    os.close(reader)
    with pytest.raises(OptionError, match="cannot be opened: No such device"):
        LogFile("log", path)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes")
def test_a_reader_that_does_not_read_blocks_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, reader = pipe_in(tmp_path)
    file = LogFile("log", path)
    begun = time.process_time()
    for number in range(30_000):
        file.write(f"{number:020}")
    assert time.process_time() - begun < 5
    assert waited(lambda: file.lost > 10_000)
    lost = file.lost
    os.set_blocking(reader, True)
    received = b""
    while received.count(b"\n") < 30_000 - lost:
        received += os.read(reader, 1 << 16)
    numbers = list(map(int, received.split()))
    assert numbers == sorted(set(numbers)), "in order, and none twice"
    file.write("the end")
    assert waited(lambda: said(caplog))
    assert said(caplog) == [f"{path} is written again; {lost} lines are lost so far"]
    file.close()
    os.close(reader)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes")
def test_several_processes_mix_no_lines_in_a_pipe(tmp_path: Path) -> None:
    path, reader = pipe_in(tmp_path)
    files = [LogFile("log", path) for _ in range(3)]  # each has a thread and a descriptor of its own, as a process has
    for number in range(2000):
        for name, file in zip("abc", files, strict=True):
            file.write(f"{name} {number:04} " + name * 393)
    os.set_blocking(reader, True)
    received = b""
    while received.count(b"\n") < 6000:
        received += os.read(reader, 5000)
    lines = received.decode().splitlines()
    for name in "abc":
        assert [line for line in lines if line[0] == name] == [f"{name} {n:04} " + name * 393 for n in range(2000)]
    for file in files:
        file.close()
    os.close(reader)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_thread_takes_no_signals(file: LogFile) -> None:
    file.write("x")
    assert waited(lambda: Path(file.path).read_text() == "x\n")
    (thread,) = (each for each in threading.enumerate() if each.name == f"iostreamsrv log {file.path}")
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    blocked = int(re.findall(r"^SigBlk:\s+(\w+)$", status, re.MULTILINE)[0], 16)
    assert blocked >> (signal.SIGTERM - 1) & 1
    assert blocked >> (signal.SIGHUP - 1) & 1
    assert not blocked >> (signal.SIGSEGV - 1) & 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_close_does_not_wait_for_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, reader = pipe_in(tmp_path)
    file = LogFile("log", path)
    for _ in range(9000):
        file.write("x" * 20)
    begun = time.monotonic()
    file.close(timeout=0.2)
    assert time.monotonic() - begun < 10
    assert "takes no lines" in said(caplog)[0]
    os.close(reader)  # the thread ends with EPIPE


def test_a_forked_child_writes_too(file: LogFile, tmp_path: Path) -> None:
    file.write("parent")
    assert waited(lambda: (tmp_path / "log").read_text() == "parent\n")
    pid = os.fork()
    if not pid:
        signal.alarm(10)
        file.write("child")
        file.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert (tmp_path / "log").read_text() == "parent\nchild\n"


def test_a_fork_in_the_midst_of_writing_neither_hangs_the_child_nor_doubles_a_line(
    file: LogFile, tmp_path: Path
) -> None:
    for number in range(40):
        for _ in range(100):
            file.write("parent")
        with file._waiting.mutex:  # as the thread has it at times
            pid = os.fork()
            if not pid:
                signal.alarm(10)
                file.write(f"child {number}")
                file.close()
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    file.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines.count("parent") == 4000
    assert {line for line in lines if line != "parent"} == {f"child {number}" for number in range(40)}


def test_stdout_is_not_closed(capfd: pytest.CaptureFixture[str]) -> None:
    file = LogFile("log", "-")
    file.write("one")
    file.reopen()
    file.write("two")
    file.close()
    os.write(1, b"three\n")
    assert capfd.readouterr().out == "one\ntwo\nthree\n"
