"""How a stream is closed: gracefully, now, or because its peer is too slow."""

import asyncio
import errno
import logging
from asyncio import Future
from collections.abc import Callable
from contextvars import Context
from typing import Any

from ..errors import CloseReason, StreamTimeoutError, without_frames
from ..options import WRITE_TIMEOUT
from ..sansio.reads import Discard
from .progress import ProgressWatch
from .readiness import BROKEN, READABLE, WRITABLE
from .reading import ReadSide
from .state import CLOSED, CLOSING

LINGER_BYTES = 1 << 26
"""Most bytes that ``aclose()`` receives after its half-close. If a socket is closed with unread input, the kernel sends
a reset, which can destroy the last reply on its way (nginx: lingering_close). A client that uploads a file often reads
the reply, a refusal, only when it has sent the whole file."""

LINGER_TIME = 30.0
"""Most seconds for which a peer that goes on sending keeps a stream open after our EOF (nginx: lingering_time)."""

TOO_SLOW = frozenset({CloseReason.WRITE_TIMEOUT, CloseReason.MIN_RATE})
"""Reasons of a stream whose peer did not take what was sent to it."""


class CloseSide(ReadSide):
    """Closes the stream. Every way ends in :meth:`terminate`, which keeps the first reason."""

    __slots__ = ()

    def _dispatch_not_open(self, events: int) -> None:
        if self._phase == CLOSED:
            if events & (WRITABLE | BROKEN):
                self._flush_committed()
        elif events != READABLE:  # READABLE alone is only a dispatch that was asked for
            self._connected(events)

    def _connected(self, events: int) -> None:
        raise NotImplementedError

    # ---- gracefully: all that is queued is sent, and the peer has time to read it

    def _begin_closing(self, reason: CloseReason) -> None:
        """Refuse further writes, and reads beyond the buffer. :meth:`_finish_closing` must follow."""
        self._hub.check()
        self._closing = self._hub.loop.create_future()
        self._phase = CLOSING
        self.close_reason = reason
        self._fail_read(self._closed_error("read"))

    def close_in_background(self, reason: CloseReason) -> "asyncio.Task[None] | None":
        """See `ServedStream`."""
        if self.close_reason is not None:
            return None
        self._begin_closing(reason)
        task = self._hub.loop.create_task(self._finish_closing(), context=Context())
        # A task that is cancelled before its first step, as at the end of a loop, runs no "finally".
        task.add_done_callback(lambda _: None if self._phase == CLOSED else self.terminate(reason), context=Context())
        return task

    async def _finish_closing(self) -> None:
        try:
            await self._deliver()
        except OSError:
            pass
        finally:
            self.terminate(CloseReason.LOCAL)

    async def _deliver(self) -> None:
        """Send what is queued, then EOF, and let the peer read it."""
        if self._hub.inherited:
            return
        self.uncork()
        if self._output is not None:
            self._watch_progress()
        await self.drain()
        if self._transport.has_half_close and self.linger and not self._eof and self._phase != CLOSED:
            if not self._sending_eof:
                self._shutdown_writes()
                self._sending_eof = True
            await self._linger()

    async def _linger(self) -> None:
        """Receive and discard until the peer's EOF, or until the peer has had enough time to read everything."""
        discard = Discard(self._buffer, LINGER_BYTES)
        late = self._hub.time() + LINGER_TIME
        while self._phase != CLOSED:
            received = self.receive_progress()
            try:
                await self._begin_read(discard, self.linger)
                return
            except StreamTimeoutError:
                if self._is_sending():
                    self._watch_progress()
                    late = self._hub.time() + LINGER_TIME
                elif self.receive_progress() == received or self._hub.time() > late:
                    return

    def has_lingered(self, seconds: float) -> bool:
        """See `ServedStream`."""
        return (
            isinstance(self._read, Discard) and self._hub.time() - self._read_since > seconds and not self._is_sending()
        )

    def _is_sending(self) -> bool:
        """Whether the peer has not yet taken everything."""
        return self._output is not None or self.unacknowledged() > 0

    def _aclose_timed_out(self, seconds: float) -> None:
        """The ``timeout`` of ``aclose()`` has passed."""
        error = StreamTimeoutError("write", seconds, f"not sent within {seconds:g} s") if self._loses_bytes() else None
        if error is not None:
            self.abort_with(CloseReason.WRITE_TIMEOUT, error)
        else:
            self.terminate(CloseReason.LOCAL)

    # ---- because the peer is too slow

    def _watch_progress(self) -> None:
        if self._progress_watch is None:
            self._progress_watch = ProgressWatch(self)

    def _write_timeout(self) -> float | None:
        """For `ProgressWatch`."""
        if self.own_timeouts is not None and "write" in self.own_timeouts:
            return self.own_timeouts["write"]
        return WRITE_TIMEOUT if self._owner is None else self._owner.write_timeout

    def _peer_too_slow(self, reason: CloseReason, error: StreamTimeoutError) -> None:
        """For `ProgressWatch`: abort a stream that is being closed gracefully, or is closed with committed output."""
        text = f"closing a connection before its peer has all that was sent: {error}"
        self._report("limit", logging.WARNING, text, reason, error)
        self.abort_with(reason, error)

    def abort_with(self, reason: CloseReason, error: BaseException | None = None) -> None:
        """Close the stream now, with a reset where the transport has one: the peer must not take it for EOF."""
        self._corked = None
        self._request_reset()
        if reason in TOO_SLOW:
            self.close_reason = reason  # in place of the reason for which the close began
        if self._phase == CLOSED:
            self.error = self.error or error
            return self.discard_output()
        self._output = None
        self.terminate(reason, error)

    def close_or_abort(self, reason: CloseReason) -> None:
        """Close the stream; with a reset, if written bytes are lost."""
        if self._loses_bytes():
            self.abort_with(self.close_reason or reason)
        else:
            self.terminate(reason)

    # ---- because the connection leaves the stream

    def _take_input(self) -> "tuple[Future[Any] | None, bytes]":
        """Abandon the pending read: its future, which is to fail, and all that is unread."""
        future = self._read_future
        self._abandon_read()
        return future, self._buffer.take(self._buffer.size)

    def _give_input(self, unread: bytes) -> None:
        """The opposite, for a new stream."""
        if unread:
            self._buffer.feed(unread)

    # ---- now

    def terminate(self, reason: CloseReason, error: BaseException | None = None) -> None:
        """Close the stream now. Every stream is closed here, and the first reason stays."""
        self._hub.check()
        if self._hub.inherited:
            self.forget_output()
        if self._corked is not None:
            self.uncork()  # this closes the stream if it finds the connection broken
        if self._phase == CLOSED:
            return
        if self._closing is not None and self._loses_bytes():
            return self.abort_with(self.close_reason or reason, error)  # aclose() has promised to send all of it
        self._phase = CLOSED
        self._readable = False
        self.close_reason = self.close_reason or reason
        self.error = error
        if self._hub.loop.is_closed():
            self._forget_all()  # no callback can run, and nothing more can be sent
        future = self._read_to_settle(error)
        if future is None:
            self._finish_read_at_eof(error)
        try:
            self._close_when_sent()
        except BaseException:  # KeyboardInterrupt in a user's callback
            if future is not None:
                self._call_soon(self._settle_read, future)
            raise
        if future is not None:
            self._settle_read(future, True)

    def _close_when_sent(self) -> None:
        if self._output is not None:
            self._drop_uncommitted(self._output)
        if self._unsent_futures is not None or self._connect_future is not None:
            self._fail_writes()
        if self._output is not None or not self._finish_close():
            self._watch_progress()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        if self._closing is not None and not self._closing.done() and not self._hub.loop.is_closed():
            self._closing.set_result(None)
        if self._close_callback is not None:
            self._run_close_callback()

    def _forget_all(self) -> None:
        self._forget_read()
        self._output = None
        self._unsent_futures = None
        self._connect_future = None

    def _close_descriptor(self) -> None:
        if self._progress_watch is not None:
            self._progress_watch.stop()
        try:
            self._hub.unwatch(self)
            self.close_fd()
        except Exception as error:  # close_fd() may be a user's method
            if not isinstance(error, OSError) or error.errno != errno.EBADF:  # EBADF: closed already
                text = f"error on close: {error!r}"
                self._report("error", logging.WARNING, text, self.close_reason, without_frames(error))
        finally:
            if self._owner is not None:
                owner, self._owner = self._owner, None
                owner.stream_closed(self)

    def _run_close_callback(self) -> None:
        registered, self._close_callback = self._close_callback, None
        if registered is not None and not self._hub.loop.is_closed():
            context, callback = registered
            self._hub.loop.call_soon(self._call_close_callback, callback, context=context)

    def _call_close_callback(self, callback: Callable[[], None]) -> None:
        raise NotImplementedError
