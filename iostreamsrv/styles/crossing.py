"""The way from threads to a loop, and back."""

import errno
import os
import threading
from asyncio import Future
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

from tornado.ioloop import IOLoop

from ..runtime.cleanup import cancel_remaining_tasks
from ..runtime.loops import asyncio_loop

TURN = 0.05
"""Seconds after which a thread that waits for another one to run the loop looks whether it must do so itself."""


class Answer:
    """What one thread waits for."""

    __slots__ = ("_arrived", "_future", "error", "result")

    def __init__(self) -> None:
        self._arrived = threading.Lock()  # a Condition costs several times as much
        self._arrived.acquire()
        self._future: Future[Any] | None = None
        self.result: Any = None
        self.error: BaseException | None = None

    def begin(self, start: "Callable[[], Future[Any]]", answered: Callable[[], None]) -> None:
        """In the loop: have ``start`` begin with it."""
        try:
            future = self._future = start()
        except Exception as error:
            self.error = error
            self._arrived.release()
            answered()
        else:
            if future.done():
                self._settle(answered, future)
            else:
                future.add_done_callback(lambda future: self._settle(answered, future))

    def _settle(self, answered: Callable[[], None], future: "Future[Any]") -> None:
        self.error = stopped() if future.cancelled() else future.exception()
        if self.error is None:
            self.result = future.result()
        self._future = None
        self._arrived.release()
        answered()

    def give_up(self) -> None:
        """In the loop: nobody waits for it any more."""
        if self._future is not None:
            self._future.cancel()

    def wait(self) -> None:
        """Return when it has arrived."""
        self._arrived.acquire()

    def arrived(self) -> bool:
        """Whether it has."""
        return self.error is not None or not self._arrived.locked()

    def take(self) -> Any:
        """The result; or the error is raised."""
        if self.error is None:
            return self.result
        try:
            raise self.error
        finally:
            self.error = None  # whose traceback would keep this alive


class Crossing:
    """A loop that threads ask to do something. It has a thread of its own, or is run by whoever waits for an answer, or
    by :meth:`pump`.

    :param pumped: is called, without a thread for the loop, when it has been run.
    :ivar io_loop: the loop.
    """

    def __init__(self, pumped: Callable[[], None]) -> None:
        self.io_loop = IOLoop(make_current=False)
        self.loop = asyncio_loop(self.io_loop)
        self._calls: deque[Callable[[], object]] = deque()
        self._woken = False
        self._asking = threading.RLock()  # a signal handler may call end() from within ask()
        self._closed = False
        self._process = os.getpid()
        self._thread: threading.Thread | None = None
        self._runner: int | None = None  # the thread in which the loop is running, if it is
        self._pumping = threading.Lock()
        self._pumped = pumped

    @property
    def has_thread(self) -> bool:
        """Whether :meth:`start` was called."""
        return self._thread is not None

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child: the loop, and its thread, are the parent's."""
        return os.getpid() != self._process

    @property
    def closed(self) -> bool:
        """Whether it answers no more, or only in the parent of this process."""
        return self._closed or self.inherited

    def start(self) -> None:
        """Run the loop in a thread of its own."""
        self._thread = threading.Thread(target=self._run_forever, name="BlockingServer", daemon=True)
        self._thread.start()

    def _run_forever(self) -> None:
        self._runner = threading.get_ident()
        try:
            self.loop.run_forever()
        finally:
            self._runner = None

    def ask(self, start: "Callable[[], Future[Any]]") -> Any:
        """Have ``start`` called in the loop, and wait for the result of the future it gives.

        :raises ConnectionAbortedError: the loop has come to its end, now or before.
        :raises RuntimeError: this is the loop's thread, which cannot wait for itself.
        """
        self.check_thread()
        answer = Answer()
        if self.inherited:
            raise stopped()
        with self._asking:
            if self._closed:
                raise stopped()
            self._calls.append(lambda: answer.begin(start, self.happened))
        return self._wait_for(answer)

    def run(self, coroutine: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """:meth:`ask` for what a coroutine returns."""
        return self.ask(lambda: self.loop.create_task(coroutine()))

    def _wait_for(self, answer: Answer) -> Any:
        self._wake()
        if self.loop.is_closed() and not answer.arrived():
            raise stopped()  # by a signal handler, just now
        try:
            if not self.has_thread:
                while not answer.arrived():
                    self.pump(TURN, answer)
            else:
                answer.wait()
        except BaseException:  # Ctrl-C
            self.post(answer.give_up)
            raise
        return answer.take()

    def post(self, function: Callable[[], object]) -> None:
        """Have ``function`` called in the loop, after all that was posted and asked before."""
        self._calls.append(function)
        self._wake()

    def _wake(self) -> None:
        if self._woken:
            return  # and what was appended is seen: _work() takes this back before it looks
        self._woken = True
        try:
            self.loop.call_soon_threadsafe(self._work, context=Context())
        except RuntimeError:
            pass  # the loop is closed: nobody is left to whom it would matter

    def _work(self) -> None:
        self._woken = False
        calls = self._calls
        try:
            for _ in range(len(calls)):  # and no more: the loop has other things to do, too
                calls.popleft()()
        finally:
            if calls:
                self._wake()

    def happened(self) -> None:
        """In the loop: something did that whoever runs it may be waiting for."""
        if self._thread is None:
            self.loop.stop()

    def pump(self, timeout: float, answer: Answer | None = None) -> None:
        """Run the loop in this thread until something has happened, for ``timeout`` seconds at most.

        :param answer: is waited for: nothing to do, if it has arrived.
        """
        if not self._pumping.acquire(timeout=timeout):
            return  # another thread runs it
        try:
            if self.loop.is_closed() or (answer is not None and answer.arrived()):
                return
            timer = self.loop.call_later(timeout, self.loop.stop)
            self._run_forever()
            timer.cancel()
        finally:
            self._pumping.release()
        self._pumped()

    def end(self, coroutine: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Run this as the last thing that is asked for; then close the loop. Who still waits gets to know."""
        self.check_thread()
        answer = Answer()
        with self._asking:
            self._closed = True
            self._calls.append(lambda: answer.begin(lambda: self.loop.create_task(_end(coroutine)), self.happened))
        try:
            self._wait_for(answer)
        finally:
            if self._thread is not None:
                self.loop.call_soon_threadsafe(self.loop.stop)
                self._thread.join()
            with self._pumping:
                self.io_loop.close()

    def check_thread(self) -> None:
        """Whether this thread can wait for the loop.

        :raises RuntimeError: it is the loop's.
        """
        if threading.get_ident() == self._runner:
            raise RuntimeError("this is the thread of the server's loop, which cannot wait for itself")


async def _end(coroutine: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    try:
        await coroutine()
    finally:
        await cancel_remaining_tasks()


def stopped() -> ConnectionAbortedError:
    """What a thread gets that wants something of a server that has been stopped."""
    return ConnectionAbortedError(errno.ECONNABORTED, "the server was stopped")
