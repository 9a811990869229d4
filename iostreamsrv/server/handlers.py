"""The handlers of a server's clients: called, run in tasks, and what follows when they end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import Any, Protocol

import tornado.iostream
from tornado import gen

from ..errors import CloseReason, FramingError, StreamClosedError
from ..events import Event, EventKind, Events
from ..iostream import IOStream
from ..options import ServerOptions
from ..runtime.addresses import show
from ..runtime.cleanup import may_end_with_loop
from ..streams.served import loop_of
from .deadlines import Deadlines
from .faults import fault

REJECT_TIMEOUT = 2.0
"""Seconds for ``handle_reject``, and for its client to read what it wrote."""


class HandlerMethods(Protocol):
    """The methods that users write."""

    def handle_stream(self, stream: IOStream, address: Any) -> Awaitable[None] | None:
        """Serve a client."""

    def handle_reject(self, stream: IOStream, address: Any) -> Awaitable[None] | None:
        """Tell a client that it is rejected."""

    def handle_close(self, stream: IOStream, reason: CloseReason) -> Awaitable[None] | None:
        """Called after a client's stream is closed."""

    def handle_handover(self, stream: IOStream) -> Any:
        """What to remember of a client that another process is to serve."""

    def handle_resume(self, stream: IOStream, address: Any, state: Any) -> Awaitable[None] | None:
        """Serve such a client further."""


class HandlersOwner(Protocol):
    """What `Handlers` uses of its server's `Connections`; see there."""

    server: HandlerMethods
    options: ServerOptions
    events: Events
    deadlines: Deadlines
    open: dict[int, IOStream]
    rejected: dict[int, IOStream]
    cancel_reason: CloseReason
    handling: "dict[asyncio.Future[Any], IOStream]"

    def current(self, stream: IOStream) -> IOStream:
        """The stream, or the one that has replaced it."""

    def overrides(self, name: str) -> bool:
        """Whether users have written the method of this name."""

    def keep(self, task: "asyncio.Task[Any]") -> None:
        """Make a shutdown wait for a task that closes a stream or runs ``handle_close``."""

    def close_gracefully(self, stream: IOStream, reason: CloseReason) -> None:
        """Close a stream in the background: its client reads everything that was written, then EOF."""


class Handlers:
    """Runs the handlers of all clients. Of one that only waits for its client there is its task, and nothing else.

    :ivar owner: the `Connections` of the server.
    """

    def __init__(self, owner: HandlersOwner) -> None:
        self.owner = owner
        # One bound method for all tasks: a new one for each costs 64 bytes.
        self._on_done: Callable[[asyncio.Future[Any]], None] = self._done

    def call(self, stream: IOStream, address: Any) -> None:
        """Call ``handle_stream``; for a rejected client ``handle_reject``."""
        owner = self.owner
        if stream.id in owner.rejected:
            owner.deadlines.arm(stream, CloseReason.REJECTED, "write", REJECT_TIMEOUT)
            self._call("handle_reject", stream, address)
        elif not owner.events.wanted("open") or self._announce(stream, address):
            self._call("handle_stream", stream, address)

    def resume(self, stream: IOStream, state: Any) -> None:
        """Call ``handle_resume``."""
        self._call("handle_resume", stream, stream.remote_address, state)

    def _announce(self, stream: IOStream, address: Any) -> bool:
        """Emit the event "open"; return whether the stream is still open: a subscriber may have closed it."""
        deadlines = self.owner.deadlines
        deadlines.arm(stream, CloseReason.LOCAL, "read", None)  # if it is closed now, handle_close is not called
        text = f"{client_name(stream)} is connected"
        self.owner.events.emit(Event("open", text, stream=stream, address=address))
        return not stream.closed() and deadlines.disarm(stream)

    def _call(self, name: str, stream: IOStream, address: Any, *more: Any) -> None:
        owner, context = self.owner, stream.callback_context
        assert context is not None
        try:
            result = context.run(getattr(owner.server, name), stream, address, *more)
            if result is None:
                return self._returned_at_once(stream)
            coroutine = result if isinstance(result, CoroutineType) else as_coroutine(result)
            rejected = name == "handle_reject"
            task = _bounded_reject(coroutine) if rejected else coroutine
            handling = loop_of(stream).create_task(task, context=context)
        except (Exception, asyncio.CancelledError) as error:
            return self._handler_failed(owner.current(stream), name, error)
        may_end_with_loop(handling)
        if rejected:
            # If it is cancelled before its first step, as by a shutdown, it never awaits the coroutine.
            handling.add_done_callback(lambda _: coroutine.close(), context=context)
        owner.handling[handling] = stream
        owner.current(stream).has_handler = True
        handling.add_done_callback(self._on_done, context=context)
        return None

    def _returned_at_once(self, stream: IOStream) -> None:
        """After a plain function the stream stays open, for other code to use; but not that of a rejected client."""
        if stream.id in self.owner.rejected:
            self.owner.close_gracefully(self.owner.current(stream), CloseReason.REJECTED)

    # ---- after the handler

    def _done(self, handling: "asyncio.Future[Any]") -> None:
        """Close the stream after its handler has ended, as the options and the handler's error require."""
        owner = self.owner
        stream = owner.current(owner.handling.pop(handling))
        stream.has_handler = False
        rejected = stream.id in owner.rejected
        is_open = rejected or stream.id in owner.open
        if handling.cancelled() and isinstance(handling, asyncio.Task) and handling.cancelling():
            owner.close_gracefully(stream, owner.cancel_reason)
        elif (error := _error_of(handling)) is not None:
            self._handler_failed(stream, "handle_reject" if rejected else "handle_stream", error)
        elif rejected:
            owner.close_gracefully(stream, CloseReason.REJECTED)
        elif is_open and owner.options.close_on_return:
            self._close_unless_read(stream)
        if not is_open or not (stream.id in owner.open or stream.id in owner.rejected):
            stream.callback_context = None

    def _close_unless_read(self, stream: IOStream) -> None:
        """Close the stream unless a read is pending. If one is, decide again when it is done."""
        stream = self.owner.current(stream)
        if stream.closed() or stream.has_close_callback():
            return
        if stream.reading():
            stream.when_read_done(partial(self._close_unless_read, stream))
        else:
            self.owner.close_gracefully(stream, CloseReason.LOCAL)

    def _handler_failed(self, stream: IOStream, name: str, error: BaseException) -> None:
        if type(error) is StreamClosedError and error.stream_id == stream.id:  # how most handlers end
            return self.owner.close_gracefully(stream, CloseReason.LOCAL)
        reason, cause = fault(stream, error)
        if reason is CloseReason.HANDLER_ERROR:
            report_raised(self.owner.events, name, stream, error)
        elif isinstance(cause, tornado.iostream.StreamBufferFullError):
            self._report(stream, "limit", logging.WARNING, reason, cause)
        elif isinstance(cause, FramingError):
            self._report(stream, "error", logging.INFO, reason, cause)
        return self.owner.close_gracefully(stream, reason)

    def _report(self, stream: IOStream, kind: EventKind, level: int, reason: CloseReason, error: BaseException) -> None:
        text = f"closing {client_name(stream)}: {error}"
        self.owner.events.emit(Event(kind, text, level, stream, stream.remote_address, reason, error))


def client_name(stream: IOStream) -> str:
    """The client's address, for people. A client of a Unix socket has none: the name has the listener's instead."""
    return show(stream.remote_address) or f"a client of {show(stream.local_address or 'a Unix socket')}"


def report_raised(events: Events, name: str, stream: IOStream, error: BaseException) -> None:
    """Emit the event that a user's callback has raised ``error``."""
    text = f"Exception in callback {name} for {client_name(stream)}"
    address = stream.remote_address
    events.emit(Event("error", text, logging.ERROR, stream, address, CloseReason.HANDLER_ERROR, error))


def as_coroutine(result: Any) -> Coroutine[Any, Any, None]:
    """The awaitable that a user's callback has returned, as a coroutine."""
    return result if isinstance(result, CoroutineType) else _wait_for(result)


async def _wait_for(result: Any) -> None:
    """Await a future. A coroutine for each stream, because several handlers may return the same future."""
    await gen.convert_yielded(result)


async def _bounded_reject(handling: Awaitable[None]) -> None:
    """Await ``handle_reject``, but not longer than its stream may live: rejected clients must leave no tasks behind."""
    try:
        async with asyncio.timeout(REJECT_TIMEOUT) as limit:
            await handling
    except TimeoutError:
        if not limit.expired():
            raise


def _error_of(handling: "asyncio.Future[Any]") -> BaseException | None:
    """The exception of a handler, also a `CancelledError` of something that it awaited."""
    try:
        return handling.exception()
    except asyncio.CancelledError as error:
        return error
