"""The reports that a client's stream is closed: the event, and ``handle_close``."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Collection

from ..events import Event
from ..iostream import IOStream
from ..runtime.contexts import run_for
from ..runtime.loops import is_closing
from ..streams.served import loop_of
from .groups import Group
from .handlers import HandlersOwner, as_coroutine, client_name, report_raised


class CloseReports:
    """Reports closed streams one after the other, never one within another.

    A callback may write to all the other streams, find them broken, and so close them. A hundred such calls within each
    other are more than Python's stack takes.

    :ivar owner: the `Connections` of the server.
    """

    def __init__(self, owner: HandlersOwner) -> None:
        self.owner = owner
        self._queue: deque[tuple[IOStream, bool, Collection[Group]]] = deque()
        self._reporting = False

    def add(self, stream: IOStream, had_handler: bool, groups: Collection[Group]) -> None:
        """Report that a stream is closed, now or after the report that is under way.

        :param groups: those that it was in.
        """
        if self._reporting:
            self._queue.append((stream, had_handler, groups))
            return
        self._reporting = True
        try:
            self._report(stream, had_handler, groups)
            while self._queue:
                self._report(*self._queue.popleft())
        finally:
            self._reporting = False

    def _report(self, stream: IOStream, had_handler: bool, groups: Collection[Group]) -> None:
        owner = self.owner
        if owner.events.wanted("close"):
            self._emit_close(stream, groups)
        if had_handler and owner.overrides("handle_close"):
            run_for(stream, self._call_handle_close, stream)
        if not stream.has_handler:
            # Nothing runs there any more, and a variable may keep the stream.
            stream.callback_context = None

    def _emit_close(self, stream: IOStream, groups: Collection[Group]) -> None:
        reason, address = stream.close_reason, stream.remote_address
        text = f"{client_name(stream)} is closed: {reason}{f' ({stream.error})' if stream.error else ''}"
        names = tuple(group.name for group in groups)
        self.owner.events.emit(Event("close", text, logging.DEBUG, stream, address, reason, stream.error, names))

    def _call_handle_close(self, stream: IOStream) -> None:
        assert stream.close_reason is not None
        try:
            result = self.owner.server.handle_close(stream, stream.close_reason)
            if result is not None:
                handling = as_coroutine(result)
                if is_closing(stream.io_loop):  # nothing can run any more
                    return handling.close()
                task = loop_of(stream).create_task(self._await_handle_close(stream, handling))
                # A task that is cancelled before its first step, as at the end of a loop, would never await it.
                task.add_done_callback(lambda _: handling.close())
                self.owner.keep(task)
            return None
        except (Exception, asyncio.CancelledError) as error:
            return report_raised(self.owner.events, "handle_close", stream, error)

    async def _await_handle_close(self, stream: IOStream, handling: Awaitable[None]) -> None:
        try:
            await handling
        except Exception as error:
            report_raised(self.owner.events, "handle_close", stream, error)
