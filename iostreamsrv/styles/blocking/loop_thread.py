"""An event loop that other threads call functions in, and wait for the results."""

import errno
import os
import threading
from asyncio import Future
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

from tornado.ioloop import IOLoop

from ...runtime.cleanup import cancel_remaining_tasks
from ...runtime.loops import asyncio_loop

POLL_INTERVAL = 0.05
"""Seconds after which a thread that waits while another one runs the loop checks whether it must run it itself."""


class Call:
    """One call that a thread makes in the loop and waits for."""

    __slots__ = ("_done", "_future", "error", "result")

    def __init__(self) -> None:
        self._done = threading.Lock()  # released when the call is done; a Condition costs several times as much
        self._done.acquire()
        self._future: Future[Any] | None = None
        self.result: Any = None
        self.error: BaseException | None = None

    def begin(self, start: "Callable[[], Future[Any]]", on_done: Callable[[], None]) -> None:
        """Call ``start`` in the loop's thread, and take the result of its future. Then call ``on_done``."""
        try:
            future = self._future = start()
        except Exception as error:
            self.error = error
            self._done.release()
            on_done()
        else:
            if future.done():
                self._finish(on_done, future)
            else:
                future.add_done_callback(lambda future: self._finish(on_done, future))

    def _finish(self, on_done: Callable[[], None], future: "Future[Any]") -> None:
        self.error = stopped_error() if future.cancelled() else future.exception()
        if self.error is None:
            self.result = future.result()
        self._future = None
        self._done.release()
        on_done()

    def cancel(self) -> None:
        """Cancel the future, in the loop's thread: the calling thread no longer waits."""
        if self._future is not None:
            self._future.cancel()

    def wait(self) -> None:
        """Block until the call is done."""
        self._done.acquire()

    def done(self) -> bool:
        """Whether the call has returned or raised."""
        return self.error is not None or not self._done.locked()

    def take_result(self) -> Any:
        """Return the result, or raise the error."""
        if self.error is None:
            return self.result
        try:
            raise self.error
        finally:
            self.error = None  # its traceback would keep this object alive


class LoopThread:
    """An event loop that other threads call functions in. It runs in a separate thread after :meth:`start`; before, it
    is run by the thread that waits for a call, or by :meth:`run_once`.

    :param on_run: called after each run of the loop by :meth:`run_once`, in the same thread.
    :ivar io_loop: the loop.
    """

    def __init__(self, on_run: Callable[[], None]) -> None:
        self.io_loop = IOLoop(make_current=False)
        self.loop = asyncio_loop(self.io_loop)
        self._calls: deque[Callable[[], object]] = deque()
        self._woken = False
        self._waking: set[int] = set()  # threads that have set the flag, and are about to wake the loop
        self._lock = threading.RLock()  # reentrant: a signal handler may call stop() from within call()
        self._closed = False
        self._process = os.getpid()
        self._thread: threading.Thread | None = None
        self._runner: int | None = None  # the thread in which the loop is running, if it is
        self._run_lock = threading.Lock()
        self._on_run = on_run

    @property
    def has_thread(self) -> bool:
        """Whether :meth:`start` was called."""
        return self._thread is not None

    @property
    def in_forked_child(self) -> bool:
        """Whether this process is a forked child: the loop and its thread belong to the parent process."""
        return os.getpid() != self._process

    @property
    def closed(self) -> bool:
        """Whether it accepts no more calls, at least not in this process."""
        return self._closed or self.in_forked_child

    def start(self) -> None:
        """Run the loop in a separate thread."""
        self._thread = threading.Thread(target=self._run_forever, name="BlockingServer", daemon=True)
        self._thread.start()

    def _run_forever(self) -> None:
        self._runner = threading.get_ident()
        try:
            self.loop.run_forever()
        finally:
            self._runner = None

    def call(self, start: "Callable[[], Future[Any]]") -> Any:
        """Call ``start`` in the loop, and wait for the result of the future that it returns.

        :raises ConnectionAbortedError: the loop was stopped, before the call or during it.
        :raises RuntimeError: this is the loop's thread, where waiting would be a deadlock.
        """
        self.check_thread()
        call = Call()
        if self.in_forked_child:
            raise stopped_error()
        with self._lock:
            if self._closed:
                raise stopped_error()
            self._calls.append(lambda: call.begin(start, self.interrupt))
        return self._wait_for(call)

    def run(self, coroutine: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Like :meth:`call`, for a coroutine function: run it in the loop, and return its result."""
        return self.call(lambda: self.loop.create_task(coroutine()))

    def _wait_for(self, call: Call) -> Any:
        self._wake()
        if self.loop.is_closed() and not call.done():
            raise stopped_error()  # a signal handler has just stopped it
        try:
            if not self.has_thread:
                while not call.done():
                    self.run_once(POLL_INTERVAL, call)
            else:
                call.wait()
        except BaseException:  # Ctrl-C
            self.call_soon(call.cancel)
            raise
        return call.take_result()

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have ``function`` called in the loop, after all earlier calls. Does not wait."""
        self._calls.append(function)
        self._wake()

    def _wake(self) -> None:
        thread = threading.get_ident()
        if self._woken and thread not in self._waking:
            return  # _work() clears the flag before it looks at the queue, so it sees what was appended
        # If a signal handler interrupts this, and waits for a call of its own, this thread wakes no loop meanwhile.
        self._waking.add(thread)
        self._woken = True
        try:
            self.loop.call_soon_threadsafe(self._work, context=Context())
        except RuntimeError:
            pass  # the loop is closed, and no thread waits for it
        finally:
            self._waking.discard(thread)

    def _work(self) -> None:
        self._woken = False
        calls = self._calls
        try:
            for _ in range(len(calls)):  # not those appended meanwhile: the loop has other work, too
                calls.popleft()()
        finally:
            if calls:
                self._wake()

    def interrupt(self) -> None:
        """Return from :meth:`run_once`, which may be waiting for this. To be called in the loop."""
        if self._thread is None:
            self.loop.stop()

    def run_once(self, timeout: float, call: Call | None = None) -> None:
        """Run the loop in this thread until :meth:`interrupt`, or for ``timeout`` seconds.

        :param call: the call that this thread waits for. If it is done, return at once.
        """
        if not self._run_lock.acquire(timeout=timeout):
            return  # another thread runs it
        try:
            if self.loop.is_closed() or (call is not None and call.done()):
                return
            timer = self.loop.call_later(timeout, self.loop.stop)
            self._run_forever()
            timer.cancel()
        finally:
            self._run_lock.release()
        self._on_run()

    def stop(self, coroutine: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Accept no more calls, run ``coroutine`` in the loop, cancel all other tasks and close the loop. Threads that
        are still waiting for a call get a `ConnectionAbortedError`."""
        self.check_thread()
        call = Call()
        with self._lock:
            self._closed = True
            self._calls.append(lambda: call.begin(lambda: self.loop.create_task(_run_last(coroutine)), self.interrupt))
        try:
            self._wait_for(call)
        finally:
            if self._thread is not None:
                self.loop.call_soon_threadsafe(self.loop.stop)
                self._thread.join()
            with self._run_lock:
                self.io_loop.close()

    def check_thread(self) -> None:
        """Check that this thread can wait for the loop.

        :raises RuntimeError: it is the loop's thread.
        """
        if threading.get_ident() == self._runner:
            raise RuntimeError("this is the thread of the server's loop, which must not wait for itself")


async def _run_last(coroutine: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    try:
        await coroutine()
    finally:
        await cancel_remaining_tasks()


def stopped_error() -> ConnectionAbortedError:
    """The error of every call to a server that has been stopped."""
    return ConnectionAbortedError(errno.ECONNABORTED, "the server was stopped")
