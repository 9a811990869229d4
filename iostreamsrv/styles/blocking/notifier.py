"""Calls the ``notify`` function of a `BlockingServer`, for one event after another."""

import asyncio
import functools
import logging
import queue
import threading
from asyncio import Future
from collections.abc import Callable
from enum import StrEnum

from ...errors import CloseReason
from ...events import Event
from ...runtime.addresses import show
from ...runtime.futures import set_result
from .handle import Handle


class Notice(StrEnum):
    """What has happened to a client: the second argument of ``notify``."""

    CONNECT = "connect"
    RECV = "recv"
    DISCONNECT = "disconnect"


Notify = Callable[[Handle, Notice], None]


class Notifier:
    """Queues notices, and calls ``notify`` for each: in a thread after :meth:`start`, else in :meth:`deliver_pending`.

    :param notify: the user's function.
    :param call_soon: has a function called in the loop.
    :param on_added: called in the loop when a notice was queued.
    :param log: called with an event for each exception that ``notify`` raises, in the thread that called ``notify``.
    :ivar thread: the thread; None before :meth:`start`.
    """

    def __init__(
        self,
        notify: Notify,
        call_soon: Callable[[Callable[[], object]], None],
        on_added: Callable[[], None],
        log: Callable[[Event], None],
    ) -> None:
        self.thread: threading.Thread | None = None
        self._notify = notify
        self._call_soon = call_soon
        self._on_added = on_added
        self._log = log
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._delivering = threading.Lock()

    def start(self) -> None:
        """Start the thread that calls ``notify``."""
        self.thread = threading.Thread(target=self._deliver_until_stopped, name="notify", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Deliver what is queued; then end the thread."""
        self._queue.put(None)
        if self.thread is None:
            self.deliver_pending()

    def add(self, handle: Handle, notice: Notice) -> "Future[None]":
        """Queue a notice, in the loop's thread.

        :returns: done when ``notify`` has returned.
        """
        delivered = asyncio.get_running_loop().create_future()
        self._queue.put(functools.partial(self._deliver, handle, notice, functools.partial(set_result, delivered)))
        self._on_added()
        return delivered

    def deliver_pending(self) -> None:
        """Call ``notify`` for all queued notices, in this thread."""
        if not self._delivering.acquire(blocking=False):
            return  # in progress already: in another thread, or in a caller of this one
        try:
            while not self._queue.empty():
                deliver = self._queue.get()
                if deliver is not None:
                    deliver()
        finally:
            self._delivering.release()

    def _deliver_until_stopped(self) -> None:
        while (deliver := self._queue.get()) is not None:
            deliver()

    def _deliver(self, handle: Handle, notice: Notice, delivered: Callable[[], None]) -> None:
        try:
            handle.context.run(self._notify, handle, notice)
        except (Exception, SystemExit) as error:
            if not isinstance(error, OSError) or getattr(error, "stream_id", None) != handle.stream.id:
                text = f"Exception in callback notify for {show(handle.address)}"
                reason = CloseReason.HANDLER_ERROR
                self._log(Event("error", text, logging.ERROR, handle.stream, handle.address, reason, error))
            handle.close()
        finally:
            self._call_soon(delivered)
