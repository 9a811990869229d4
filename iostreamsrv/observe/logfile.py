"""A file of lines that a thread writes, so that a full disk or a slow reader never blocks a loop.

Lines wait in a queue of a fixed size. What does not fit there, or cannot be written, is counted and lost, and the log
says so: once when it begins, and once when it is over. The file is opened for appending, and each write has whole lines
only, so several processes may write to one file.
"""

import contextlib
import os
import queue
import threading

from ..errors import OptionError
from ..runtime.clock import real_time
from ..runtime.logs import LogRateLimit, general

MOST_WAITING = 10_000
"""Lines that may wait: some megabytes; of 10,000 connections a second, those of one in which the disk hangs."""

BATCH = 64
"""Lines that are written at once, at most: some 20 KB, so that a pipe takes them without mixing those of others."""

MODE = 0o640
"""Of a new file: it has the addresses of clients."""

STDOUT = "-"


class LogFile:
    """See the module. The thread starts with the first line, also in a forked child.

    :param name: what the option is called that has the path, for errors.
    :param path: the file, or "-" for stdout.
    :raises OptionError: it cannot be opened.
    :ivar lost: how many lines were lost so far.
    """

    def __init__(self, name: str, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.lost = 0
        try:
            self._fd = self._open()
        except (OSError, ValueError) as error:
            problem = error.strerror if isinstance(error, OSError) else str(error)
            raise OptionError(name, self.path, f"cannot be opened: {problem}") from None
        self._waiting: queue.Queue[bytes | None] = queue.Queue(MOST_WAITING)
        self._reopen = False
        self._closing = False
        self._failing = False
        self._torn = False  # the last write has ended within a line
        self._told = 0  # of the lost lines
        self._limit = LogRateLimit(real_time)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def _open(self) -> int:
        if self.path == STDOUT:
            return os.dup(1)
        # A pipe without a reader would block here.
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, MODE)
        os.set_blocking(fd, True)
        return fd

    # ---- for the loop: none of these waits

    def write(self, line: str) -> None:
        """Have a line written, which has no newline. Does not wait, and does not raise."""
        if self._closing:
            self.lost += 1
            return
        try:
            self._waiting.put_nowait(line.encode("utf-8", "backslashreplace") + b"\n")
        except queue.Full:
            self.lost += 1
        if self._thread is None or not self._thread.is_alive():  # a forked child has no thread
            self._start()

    def reopen(self) -> None:
        """Go on in a new file of the same name: the old one was renamed. What waits goes there."""
        self._reopen = self.path != STDOUT
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(b"")

    def _start(self) -> None:
        with self._starting:
            if self._closing or (self._thread is not None and self._thread.is_alive()):
                return
            thread = threading.Thread(target=self._run, name=f"iostreamsrv log {self.path}", daemon=True)
            with contextlib.suppress(RuntimeError):  # too many threads, or the interpreter ends
                thread.start()
                self._thread = thread

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for so many seconds at most, and close the file. What is written later is lost."""
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=timeout)
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():  # it writes: its descriptor must stay
                general.warning("%s takes no lines: %d are lost", self.path, self._waiting.qsize())
                return
        os.close(self._fd)

    # ---- the thread

    def _run(self) -> None:
        while True:
            lines = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(lines) < BATCH and lines[-1] is not None:
                    lines.append(self._waiting.get_nowait())
            if self._reopen:
                self._reopen = False
                self._open_again()
            self._write([line for line in lines if line])
            if lines[-1] is None:
                return

    def _open_again(self) -> None:
        try:
            fd = self._open()
        except OSError as error:
            general.error("%s cannot be opened again: %s; the file of before goes on", self.path, error.strerror)
            return
        before, self._fd = self._fd, fd
        os.close(before)

    def _write(self, lines: list[bytes]) -> None:
        data, written = b"".join((b"\n" if self._torn else b"", *lines)), 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError as error:
            self._lose(lines, data[:written], error)
        else:
            self._torn = self._failing = False
            if self.lost > self._told and self._waiting.empty() and self._limit.admit() is not None:
                general.warning("%s is written again; %d lines are lost so far", self.path, self.lost)
                self._told = self.lost

    def _lose(self, lines: list[bytes], written: bytes, error: OSError) -> None:
        self.lost += len(lines) - written.removeprefix(b"\n").count(b"\n")
        self._torn = not written.endswith(b"\n") if written else self._torn
        if not self._failing:
            self._failing = True
            general.error("%s cannot be written: %s; the server goes on without it", self.path, error.strerror)
