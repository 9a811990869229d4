"""The processes of `TCPServer.start`: the first one, which stays in that call, and the workers, which go on from it.

The first process runs no loop and no code of the program. It waits for signals and for the end of workers. To each
worker it has a pipe: a byte asks the worker to stop, and the end of the pipe tells it that the first process is gone.
"""

import contextlib
import math
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tornado import process

from ..runtime.clock import real_time
from ..runtime.lifeline import watch
from ..runtime.logs import general
from ..runtime.loops import existing_loop
from ..runtime.stops import stop_requests
from .scoreboard import Scoreboard
from .workers import WorkerSiblings

MAX_RESTARTS = 100
"""Tornado's default."""

END_TIME = 2.0
"""Seconds that a worker has to end when it is to end at once, and after its ``drain_timeout``. Then it is killed."""

ADVICE = {
    "SIGUSR2": "does not start new code: `iostreamsrv serve` does, on SIGUSR2",
    "SIGTTIN": "starts no more workers: `iostreamsrv serve` does, on SIGTTIN",
    "SIGTTOU": "ends no worker: `iostreamsrv serve` does, on SIGTTOU",
}
"""What the first process says for signals that it does not act on."""


def fork_workers(
    num_processes: int | None, max_restarts: int | None, drain_timeout: float | None, stop: Callable[[], None]
) -> WorkerSiblings:
    """Fork, and return in each worker. The first process stays in this call until all workers have ended, then exits.

    :param drain_timeout: seconds that a worker has for its clients when it is to stop; None for no limit.
    :param stop: called before the first process exits.
    :raises RuntimeError: this is not the main thread, or this process is a worker already, or a loop exists; or in the
        first process: too many workers have died.
    """
    if not hasattr(os, "fork"):
        raise RuntimeError("start() with more than one process forks, which this system can't")
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("start() with more than one process forks, which only the main thread may do")
    if process.task_id() is not None:
        raise RuntimeError("start() with more than one process forks, and this process is a worker: start(1) here")
    loop = existing_loop()
    if loop is not None:
        raise RuntimeError(
            f"start() with more than one process forks, and there is a loop already, which the workers would share:"
            f" {loop}. Call bind() and start() before anything makes a loop (listen(), a stream, asyncio.run())"
        )
    count = num_processes or process.cpu_count()
    drain_time = math.inf if drain_timeout is None else drain_timeout
    first = FirstProcess(count, MAX_RESTARTS if max_restarts is None else max_restarts, drain_time + END_TIME)
    pid = os.getpid()
    try:
        index = first.run()
    except BaseException:
        if os.getpid() == pid:
            stop()
        raise
    return WorkerSiblings(first.scoreboard, index, index)


class Worker(NamedTuple):
    """A worker, as the first process sees it.

    :ivar task: its task id, and that of the ones before it that it replaces.
    :ivar pipe: the end to write to.
    """

    task: int
    pipe: int


class FirstProcess:
    """Forks workers, replaces those that die, and passes signals on.

    :param patience: seconds that workers have to end when they are asked to stop. Then they are killed.
    :ivar scoreboard: has a row for each worker.
    """

    def __init__(self, count: int, max_restarts: int, patience: float) -> None:
        self.scoreboard = Scoreboard.create(count, inherited=True)
        self._patience = patience
        self._restarts_left = max_restarts
        self._workers: dict[int, Worker] = {}  # by process
        self._signals = Signals()
        self._stops = 0
        self._deadline = math.inf

    def run(self) -> int:
        """Return in each worker, with its index; the first process exits when all have ended."""
        pid = os.getpid()
        general.info("starting %d processes", self.scoreboard.rows)
        self._signals.take()
        try:
            for index in range(self.scoreboard.rows):
                if self._fork(index):
                    return index
            while self._workers:
                dead = self._next()
                if dead is not None and self._fork(dead):
                    return dead
        except BaseException:
            if os.getpid() == pid:
                self._end_all()
            raise
        finally:
            if os.getpid() == pid:
                self._signals.give_back()
        sys.exit(0)

    def _fork(self, task: int) -> bool:
        """Fork a worker; return whether this is the one."""
        reading, writing = os.pipe()
        with self._signals.blocked():
            pid = os.fork()
            if pid:
                self._workers[pid] = Worker(task, writing)
                os.close(reading)
                return False
            process._reseed_random()
            process._task_id = task  # type: ignore[assignment]
            for pipe in (writing, *(worker.pipe for worker in self._workers.values())):
                os.close(pipe)
            self._signals.give_back()
            if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # it is to reload certificates, or to do nothing
                signal.signal(signal.SIGHUP, do_nothing)
        watch(reading, lambda: self._patience, stop_requests.ask)
        return True

    def _next(self) -> int | None:
        """Wait for a signal, or for time to pass; return the index of a worker to be replaced, if any."""
        for number in self._signals.wait(self._deadline - real_time()):
            self._on_signal(number)
        if real_time() >= self._deadline:
            self._deadline = math.inf
            general.warning("%d processes have not ended in time, and are killed", len(self._workers))
            self._kill_all()
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid in self._workers and (index := self._ended(pid, status)) is not None:
                self._signals.wake()  # others may have ended
                return index
        return None

    def _ended(self, pid: int, status: int) -> int | None:
        """A worker has ended; return its index if it is to be replaced."""
        index, pipe = self._workers.pop(pid)
        os.close(pipe)
        self.scoreboard.fold(index)
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by signal {-code}" if code < 0 else f"exited with status {code}"
        if not code or self._stops:
            general.info("process %d (pid %d) %s", index, pid, how)
            return None
        if not self._restarts_left:
            raise RuntimeError(f"process {index} (pid {pid}) {how}: too many processes have died")
        self._restarts_left -= 1
        general.warning("process %d (pid %d) %s, restarting", index, pid, how)
        return index

    # ---- signals

    def _on_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop(self._stops + 1)
        elif number == signal.SIGQUIT:
            self._stop(max(self._stops + 1, 2))
        elif number == signal.SIGHUP:
            self._send_all(signal.SIGHUP)
        elif number != signal.SIGCHLD:
            name = signal.Signals(number).name
            general.warning("%s %s", name, ADVICE[name])

    def _stop(self, times: int) -> None:
        """The workers are to stop, as if they had been asked so many times; the third time they are killed."""
        if times > 2:
            return self._kill_all()
        limit = END_TIME if times == 2 else self._patience
        general.info("stopping %d processes%s", len(self._workers), " at once" if times == 2 else "")
        for _, pipe in self._workers.values():
            with contextlib.suppress(OSError):  # it has just ended
                os.write(pipe, bytes(times - self._stops))
        self._stops = times
        self._deadline = min(self._deadline, real_time() + limit)

    def _send_all(self, number: signal.Signals) -> None:
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _kill_all(self) -> None:
        self._send_all(signal.SIGKILL)

    def _end_all(self) -> None:
        """End all workers, as this process has failed."""
        self._stop(1)
        while self._workers:
            self._next()


class Signals:
    """The signals of the first process: taken from the program's handlers, and given back to them in each worker."""

    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup = -1

    def take(self) -> None:
        """Keep signals for :meth:`wait`, except those that are ignored."""
        self._pipe = os.pipe()
        for fd in self._pipe:
            os.set_blocking(fd, False)
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, do_nothing)
        for name in ADVICE:
            number = signal.Signals[name]
            if signal.getsignal(number) is signal.SIG_DFL:
                self._handlers[number] = signal.signal(number, do_nothing)
        self._handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, do_nothing)

    def give_back(self) -> None:
        """Have all of them handled as before."""
        if self._pipe is None:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set in Python
        for fd in self._pipe:
            os.close(fd)
        self._pipe = None

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Let all of them wait, so that none comes to a worker that has this process's handlers."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def wait(self, seconds: float) -> bytes:
        """Wait for signals, at most so many seconds; return their numbers."""
        assert self._pipe is not None
        reading = self._pipe[0]
        select.select([reading], [], [], None if seconds == math.inf else max(seconds, 0))
        with contextlib.suppress(BlockingIOError):
            return os.read(reading, 1024)
        return b""

    def wake(self) -> None:
        """Have the next :meth:`wait` return at once."""
        assert self._pipe is not None
        with contextlib.suppress(BlockingIOError):
            os.write(self._pipe[1], bytes([signal.SIGCHLD]))


def do_nothing(number: int, frame: object) -> None:
    """A handler of a signal that has no effect of its own."""
