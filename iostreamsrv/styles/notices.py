"""What a `BlockingServer` tells of its clients, one notice after another."""

import asyncio
import functools
import logging
import queue
import threading
from asyncio import Future
from collections.abc import Callable
from enum import StrEnum

from ..errors import CloseReason
from ..events import Event
from ..runtime.addresses import show
from ..runtime.futures import set_result
from .handles import Handle


class Notice(StrEnum):
    """What ``notify`` is told of a client."""

    CONNECT = "connect"
    RECV = "recv"
    DISCONNECT = "disconnect"


Notify = Callable[[Handle, Notice], None]


class Notices:
    """Calls ``notify``, in a thread for it or whenever it is asked to.

    :param notify: what users wrote.
    :param post: has a function called in the loop.
    :param added: is called in the loop when there is something to tell.
    :param log: is told, in whichever thread, of what ``notify`` raises.
    :ivar thread: the thread; None where there is none.
    """

    def __init__(
        self,
        notify: Notify,
        post: Callable[[Callable[[], object]], None],
        added: Callable[[], None],
        log: Callable[[Event], None],
    ) -> None:
        self.thread: threading.Thread | None = None
        self._notify = notify
        self._post = post
        self._added = added
        self._log = log
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._telling = threading.Lock()

    def start(self) -> None:
        """From now on, in a thread."""
        self.thread = threading.Thread(target=self._tell_until_stopped, name="notify", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Tell of what is left; then the thread ends."""
        self._queue.put(None)
        if self.thread is None:
            self.tell_now()

    def add(self, handle: Handle, notice: Notice) -> "Future[None]":
        """In the loop: have this told; the future is done when it has been."""
        told = asyncio.get_running_loop().create_future()
        self._queue.put(functools.partial(self._tell, handle, notice, functools.partial(set_result, told)))
        self._added()
        return told

    def tell_now(self) -> None:
        """Tell of what there is, in this thread."""
        if not self._telling.acquire(blocking=False):
            return  # it is being done, perhaps by who has called what calls this
        try:
            while not self._queue.empty():
                tell = self._queue.get()
                if tell is not None:
                    tell()
        finally:
            self._telling.release()

    def _tell_until_stopped(self) -> None:
        while (tell := self._queue.get()) is not None:
            tell()

    def _tell(self, handle: Handle, notice: Notice, told: Callable[[], None]) -> None:
        try:
            handle.context.run(self._notify, handle, notice)
        except (Exception, SystemExit) as error:
            if not isinstance(error, OSError) or getattr(error, "stream_id", None) != handle.stream.id:
                text = f"Exception in callback notify for {show(handle.address)}"
                reason = CloseReason.HANDLER_ERROR
                self._log(Event("error", text, logging.ERROR, handle.stream, handle.address, reason, error))
            handle.close()
        finally:
            self._post(told)
