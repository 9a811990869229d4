"""One client of a `CallbackServer`: when its callbacks are called, and with which data.

**Unconsumed data.** ``on_data`` is called within the stream's pending read (`IOStream.read_until_match`), so what it
does not consume stays in the stream: the limits, timeouts and counters of the stream apply to it, and a shutdown sees
that half a message is there. As ``bytes`` it is also kept in an `io.BytesIO`, whose ``getvalue()`` does not copy: it
returns the very object it writes to, and copies it only if a reference to it exists at the next write. So a message
that arrives in n pieces costs n appends.
"""

import asyncio
import io
from asyncio import Future
from collections.abc import Awaitable, Callable
from contextvars import Context
from inspect import isawaitable
from typing import Any, Protocol

from ..errors import CloseReason, Operation, StreamBufferFullError, StreamClosedError, of_stream
from ..iostream import MORE, IOStream
from ..options import UNLIMITED
from ..runtime.contexts import run_for

ERROR_REASONS = frozenset(
    {
        CloseReason.RESET,
        CloseReason.TRUNCATED,
        CloseReason.TLS_ERROR,
        CloseReason.BUFFER_FULL,
        CloseReason.HANDLER_ERROR,
        CloseReason.WRITE_TIMEOUT,
        CloseReason.MIN_RATE,
    }
)
"""Close reasons for which ``on_error`` is called before ``on_disconnect``. All others are normal."""

MAX_CONSECUTIVE_CALLS = 16
"""Calls of ``on_data`` for data that is buffered already, after which other clients have their turn."""


class Callbacks(Protocol):
    """The callbacks of one client; see `CallbackServer`."""

    def on_connect(self, stream: IOStream) -> Awaitable[None] | None: ...

    def on_data(self, stream: IOStream, data: bytes) -> Awaitable[int | None] | int | None: ...

    def on_write(self, stream: IOStream) -> Awaitable[None] | None: ...

    def on_disconnect(self, stream: IOStream, unread: bytes, error: str) -> Awaitable[None] | None: ...

    def on_error(self, stream: IOStream, error: StreamClosedError) -> Awaitable[None] | None: ...


class Session:
    """Calls the callbacks for one client, one after another. Most calls are made by :meth:`run`, which waits in a read
    between them.

    :param callbacks: the server.
    :param reports_writes: whether ``on_write`` is overridden.
    :param on_end: called after the last callback.
    :ivar ending: whether to close the client after the current callback; set by the server.
    """

    def __init__(
        self, callbacks: Callbacks, stream: IOStream, reports_writes: bool, on_end: Callable[[IOStream], None]
    ) -> None:
        self.ending = False
        self._callbacks = callbacks
        self._stream = stream
        self._on_data = callbacks.on_data
        self._on_end = on_end
        self._kept: io.BytesIO | None = None  # what on_data has seen and not consumed, as bytes
        self._seen = 0  # how many bytes of the stream's buffer that is
        self._reading: Future[Any] | None = None
        # Callbacks to call when the current one has returned; with the coroutine, if it was called already.
        self._due: dict[Callable[..., Any], Awaitable[Any] | None] = {}
        self._failure: BaseException | None = None  # what a callback has raised
        self._ran = False  # run() has returned
        self._reason: CloseReason | None = None  # set when the stream is closed
        self._reports_writes = reports_writes
        self._watching = False
        self._reported_writes = 0  # of the stream's bytes_written, those that on_write was called for
        self._half = (stream.max_write_buffer_size or UNLIMITED) // 2

    async def run(self) -> None:
        """Call ``on_connect``, then ``on_data`` for all data until the stream ends; then close the stream."""
        try:
            await self._call(self._callbacks.on_connect)
            await self._receive()
            await self._stream.aclose()
        except GeneratorExit:  # the loop was closed: nothing can run any more
            self._reason = None
            raise
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._ran = True
            for started in self._due.values():
                _discard(started)
            if self._reason is not None:
                await self._report_closed(self._reason)

    async def _receive(self) -> None:
        read, match = self._stream.read_until_match, self._match
        while not self.ending:
            if self._due:
                await self._call_due()
            if self._failure is not None:
                raise self._failure
            if self._stream.queued > self._half:
                await self._wait_for_room()
                continue
            self._reading = reading = read(match)
            try:
                rest = await reading
            except asyncio.CancelledError:
                if not self._was_woken():
                    raise
            else:
                if rest is not None:
                    await rest

    async def _wait_for_room(self) -> None:
        """Receive nothing until most of the queued replies have been sent. A notification ends the wait."""
        self._reading = draining = self._stream.drain(self._half // 2)
        try:
            await draining
        except asyncio.CancelledError:
            if not self._was_woken():
                raise

    def closed(self, reason: CloseReason) -> Awaitable[None] | None:
        """The stream is closed. The last of this call and :meth:`run`, whose callback may take its time, calls
        ``on_disconnect``.

        Neither waits for the other: otherwise a callback that waits for the server's shutdown would wait for itself.
        """
        self._reason = reason
        return self._report_closed(reason) if self._ran else None

    async def _report_closed(self, reason: CloseReason) -> None:
        stream = self._stream
        error = stream.error or (None if self._is_own_closing(self._failure) else self._failure)
        unread = await stream.read_bytes(stream.buffered)
        try:
            if reason in ERROR_REASONS:
                operation: Operation = getattr(error, "operation", None) or "read"
                await self._call(self._callbacks.on_error, StreamClosedError(error, operation, reason, stream.id))
        finally:
            try:
                await self._call(self._callbacks.on_disconnect, unread, _error_text(error, reason))
            finally:
                self._on_end(stream)

    def _is_own_closing(self, failure: BaseException | None) -> bool:
        """Whether a callback failed only because this client's stream was closed."""
        return isinstance(failure, StreamClosedError) and failure.stream_id == self._stream.id

    # ---- data

    def _match(self, buffer: bytearray) -> tuple[int, Any] | None:
        """The match function of the pending read, which lasts as long as possible: pass the data to ``on_data``."""
        stream, size = self._stream, len(buffer)
        if size <= self._seen or stream.close_reason is not None:
            return None
        data = self._append_new(buffer) if self._seen else bytes(buffer)
        try:
            returned = self._on_data(stream, data)
        except Exception as error:
            self._failure = error
            return 0, None
        if type(returned) is int and returned == size:  # the usual case, and the one that must be fast
            if self._seen:
                self._keep(b"", size)
            found: tuple[int, Any] | None = (size, None if self._due or stream.queued > self._half else MORE)
        else:
            found = self._offer_again(returned, data)
        if self._reports_writes:
            self.watch_writes()
        return found

    def _offer_again(self, returned: Any, data: bytes) -> tuple[int, Any] | None:
        """``on_data`` has returned ``returned`` for ``data``: call it again for what is left."""
        consumed = 0
        try:
            for turn in range(MAX_CONSECUTIVE_CALLS):
                if turn:
                    if self._stream.queued > self._half:
                        self._keep(b"", consumed)
                        return consumed, None  # to be offered when there is room for the replies
                    returned = self._on_data(self._stream, data)
                if type(returned) is not int and isawaitable(returned):
                    self._keep(data, consumed)
                    return consumed, self._consume_later(returned, len(data))
                taken = _consumed(returned, len(data))
                consumed += taken
                data = data[taken:]
                if not taken or not data or self._stream.closed():
                    break
            else:
                self._keep(b"", consumed)
                return consumed, None  # the rest is for the next turn
            self._keep(b"" if taken else data, consumed)
        except Exception as error:
            self._failure = error
        if self._failure or self._due or self._stream.queued > self._half:
            return consumed, None
        return (consumed, MORE) if consumed else None

    async def _consume_later(self, returned: Awaitable[int | None], size: int) -> None:
        """Await an ``on_data`` that is a coroutine, then consume what it returns."""
        taken = _consumed(await returned, size)
        if taken:
            await self._stream.read_bytes(taken)
            self._keep(b"", taken)
        elif size > self._stream.max_buffer_size:
            full = StreamBufferFullError("on_data leaves more than the buffer can hold", "read")
            raise of_stream(full, self._stream.id)
        self.watch_writes()

    def _append_new(self, buffer: bytearray) -> bytes:
        """Append what has arrived since to what was kept, and return all of it."""
        assert self._kept is not None
        with memoryview(buffer) as view, view[self._seen :] as fresh:
            self._kept.write(fresh)
        return self._kept.getvalue()

    def _keep(self, left: bytes, consumed: int) -> None:
        """Remember that ``left`` was seen: it is passed to ``on_data`` again only together with new data."""
        self._seen = len(left)
        if not left:
            self._kept = None
        elif self._kept is None or consumed:
            self._kept = io.BytesIO(left)
            self._kept.seek(len(left))

    # ---- calls

    async def _call(self, callback: Callable[..., Any], *arguments: Any) -> None:
        result = callback(self._stream, *arguments)
        if isawaitable(result):
            await result
        self.watch_writes()

    def notify(self, callback: Callable[..., Any]) -> None:
        """Call ``callback(stream)``, which is not caused by data: now, or after the current callback."""
        if self._reading is None or self._reading.done():
            self._due.setdefault(callback)
            return
        try:
            result = run_for(self._stream, callback, self._stream)
        except Exception as error:
            self._failure = error
        else:
            if not isawaitable(result):
                return self.watch_writes()
            self._due[callback] = result
        self._reading.cancel()

    def _was_woken(self) -> bool:
        """Whether :meth:`notify` has cancelled the read, and not other code that cancelled the task."""
        task = asyncio.current_task()
        return bool(self._due or self._failure) and task is not None and not task.cancelling()

    async def _call_due(self) -> None:
        for callback in list(self._due):  # not those that become due meanwhile, or nothing more would be received
            started = self._due.pop(callback)
            if started is not None:
                await started
            elif not self._stream.closed():
                await self._call(callback)

    def watch_writes(self) -> None:
        """Call ``on_write`` when all written data has been sent. Starts one turn later, so that corked data stays
        corked."""
        stream = self._stream
        unreported = stream.queued + stream.bytes_written > self._reported_writes
        if self._reports_writes and not self._watching and unreported:
            self._watching = True
            Context().run(stream.io_loop.add_callback, self._watch)

    def _watch(self) -> None:
        self._stream.drain().add_done_callback(self._drained, context=Context())

    def _drained(self, drained: "Future[None]") -> None:
        self._watching = False
        if not drained.exception() and self._stream.bytes_written > self._reported_writes:
            self._reported_writes = self._stream.bytes_written
            self.notify(self._callbacks.on_write)


def _discard(result: Any) -> None:
    """Close a coroutine that will not run; otherwise Python warns that it was never awaited."""
    getattr(result, "close", lambda: None)()


def _consumed(returned: Any, size: int) -> int:
    """The return value of ``on_data`` as a number of bytes."""
    if type(returned) is int:
        if 0 <= returned <= size:
            return returned
        if returned < -1:
            raise ValueError(f"on_data must return how many bytes are consumed, or -1 for all, not {returned}")
        return size
    if returned is None:
        return 0
    raise TypeError(f"on_data must return how many bytes are consumed, or None, not {returned!r}")


def _error_text(error: BaseException | None, reason: CloseReason) -> str:
    if error is not None:
        return str(error)
    return "" if reason in (CloseReason.EOF, CloseReason.LOCAL) else str(reason)
