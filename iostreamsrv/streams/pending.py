"""The pending read: how it times out, is cancelled or fails; and what a stream notices while no read is pending."""

import logging
from asyncio import Future, current_task
from collections.abc import Callable
from contextvars import Context
from typing import Any

from ..errors import (
    CloseReason,
    ConcurrentReadError,
    StreamBufferFullError,
    StreamTimeoutError,
    UnsatisfiableReadError,
    of_stream,
    reason_for,
    without_frames,
)
from ..sansio.reads import MORE, More, Read, ReadFailed, ReadInto, ReadMatch
from .core import fail
from .eager import waiter_of
from .readiness import BROKEN, ENDED
from .receiving import ReceiveSide
from .state import CLOSED
from .wakeup import resolve_now

TURNS_TO_READ_AGAIN = 5
"""Turns of the loop until the result of a read has reached every waiter: `asyncio.wait_for`, `asyncio.gather` and
Tornado's ``with_timeout`` take one or two each."""

UNREAD_CHECKS = 4
"""Checks in the ``linger`` seconds after which a stream is closed whose bytes before EOF stay unread. The time in which
the process did not run counts as one of them."""

ALL_ANSWERED = -1
"""``_written_before`` of a read that was pending when the server began to shut down. It equals no number of bytes, so
the stream counts as answered."""


class RestoringFuture(Future[Any]):
    """The future of a read into the caller's buffer. A cancel must restore the bytes at once: the caller may change
    its buffer afterwards."""

    __slots__ = ("_stream",)

    def __init__(self, stream: "PendingSide") -> None:
        super().__init__(loop=stream._hub.loop)
        self._stream = stream

    def cancel(self, msg: Any = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._stream._restore(self)
        return cancelled


class PendingSide(ReceiveSide):
    """Has at most one pending read (``_read``, ``_read_future``)."""

    __slots__ = ()

    def when_read_done(self, look: Callable[[], None]) -> None:
        """See `ServedStream`. If a task awaits the read, wait for the end of that task. Otherwise wait some turns of
        the loop after the read: its waiter may begin another read."""
        future = self._read_future
        assert future is not None
        reader = waiter_of(future)
        if reader is None:
            future.add_done_callback(lambda _: self._check_again(look, TURNS_TO_READ_AGAIN), context=Context())
        else:
            reader.add_done_callback(lambda _: look(), context=Context())

    def _check_again(self, look: Callable[[], None], turns: int) -> None:
        if turns and not self.reading():
            self._call_soon(self._check_again, look, turns - 1)
        else:
            look()

    def read_has_begun(self) -> bool:
        """Whether a part of what the pending read waits for has arrived."""
        begun = isinstance(self._read, ReadInto) and self._read.filled > 0
        begun = begun or self._buffer.size > 0 or self._received_at > self._read_since
        return begun or self._transport.partial() > 0

    def is_waiting(self) -> bool:
        """Whether the stream only waits for a message, and no part of it has arrived."""
        return self.reading() and not self.read_has_begun() and not self.writing() and not self.has_pending_input()

    def has_close_callback(self) -> bool:
        """See `ServedStream`."""
        return self._close_callback is not None

    # ---- while the server shuts down

    def _written(self) -> int:
        """Bytes written so far, sent or not."""
        return self.bytes_written + self.queued

    def track_answers(self, on: bool) -> None:
        """See `ServedStream`. What is written while a read waits does not answer it. A `ReadMatch` may go on for many
        messages without an end, so its record is renewed with each call."""
        if not on:
            self._written_before = None
        elif isinstance(self._read, ReadMatch) or (self._written_before is None and not self.reading()):
            self._written_before = self._written()
        elif self._written_before is None:
            self._written_before = ALL_ANSWERED

    def is_unanswered(self) -> bool:
        """See `ServedStream`."""
        return self._written_before == self._written() and not isinstance(self._read, ReadMatch)

    def _has_answered(self) -> bool:
        """While the server shuts down, with each read: close the stream if the handler has written since the last read
        and now asks for the next request. Return whether it was closed."""
        before, self._written_before = self._written_before, self._written()
        if self._written_before == before or self._phase or self._owner is None:
            return False
        return self._owner.close_if_answered(self)

    # ---- the pending read

    def _run_for_reader(self, future: "Future[Any]", function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function``, which calls a user's code, in the context of the task that waits for ``future``; without
        such a task, in the context of the stream's callbacks.

        Only dispatches and the loop call this, so no task is running and the context can be entered.
        """
        callbacks = future._callbacks
        context = callbacks[0][1] if callbacks else self.callback_context
        return function(*arguments) if context is None else context.run(function, *arguments)

    def _expect_no_read(self) -> None:
        """Clear a pending read whose future was cancelled; raise for any other."""
        assert self._read_future is not None
        if not self._read_future.done():
            if self._phase == CLOSED:
                raise self._closed_error("read")
            raise of_stream(ConcurrentReadError(), self.id)
        self._abandon_read()

    def _abandon_read(self) -> None:
        read = self._read
        self._forget_read()
        if read is not None:
            read.abandon(self._buffer)

    def _restore(self, future: "Future[Any]") -> None:
        """Put the bytes of a cancelled read back into the buffer, before its caller can change them."""
        if self._read_future is future:
            self._abandon_read()
            self._read_future = future  # any other cancelled read leaves its future there, too

    def _forget_read(self) -> None:
        self._read = self._read_future = None
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _read_timed_out(self, future: "Future[Any]", timeout: float) -> None:
        if self._read_future is future:
            self._read_timer = None
            self._abandon_read()
            if not future.done():
                future.set_exception(of_stream(StreamTimeoutError("read", timeout), self.id))

    def _fail_read(self, error: BaseException) -> None:
        future = self._read_future
        self._abandon_read()
        if future is not None:
            fail(future, error)

    # ---- the end of the input

    def _input_ended(self) -> None:
        """The peer has sent its last byte."""
        self._eof = self._transport.eof_reason()
        self.uncork()
        self._close_if_ended()
        if self._phase != CLOSED:  # output is queued, or may still be written
            self._finish_read_at_eof(None)
            if not self._reads_watched:  # EOF came at once; watch for a reset
                self._reads_watched = self._hub.watch_reads(self)

    def _finish_read_at_eof(self, error: BaseException | None) -> None:
        """Complete or fail the pending read: no more bytes will come."""
        read, future = self._read, self._read_future
        if read is None or future is None:
            return
        if future.done():
            self._abandon_read()
        elif error is None or reason_for(error) is CloseReason.RESET:
            # Its result may be in the buffer. It is taken when no task is running: then its reader either gets it, or
            # was cancelled before and leaves it in the buffer.
            self._call_soon(self._settle_read, future)
        else:
            self._fail_read(self._closed_error("read"))

    def _read_to_settle(self, error: BaseException | None) -> "Future[Any] | None":
        """The future of the pending read, if it can be settled as soon as the stream is closed, in the same dispatch.

        A close callback is called before that, so that is done later. The context of a match function is entered.
        """
        read, future = self._read, self._read_future
        if self._hub.dispatching is not self or read is None or not read.plain or self._close_callback is not None:
            return None
        if future is None or future.done() or current_task(self._hub.loop) is not None:
            return None
        return future if error is None or reason_for(error) is CloseReason.RESET else None

    def _settle_read(self, future: "Future[Any]", wake_now: bool = False) -> None:
        read = self._read
        if self._read_future is not future or read is None:
            return
        if future.done():
            return self._abandon_read()
        try:
            if not read.plain:
                result = self._run_for_reader(future, self._last_result, read)
            else:
                result = self._last_result(read)
        except ReadFailed as failed:
            return self._fail_read(self._tag_error(failed.error))
        if result is not MORE:
            self._forget_read()
            resolve_now(future, result)
        elif read.unfinished:
            self._call_soon(self._settle_read, future)
        elif wake_now:
            self._abandon_read()
            resolve_now(future, None, self._closed_error("read"))
        else:
            self._fail_read(self._closed_error("read"))

    def _last_result(self, read: Read) -> Any | More:
        """The result of a read when the buffer is all there is, or MORE if that is not enough."""
        try:
            result = read.take(self._buffer) if self._buffer.size else MORE
        except UnsatisfiableReadError:
            result = MORE  # beyond its limit; the stream is at its end anyway
        return read.finish(self._buffer) if result is MORE else result

    # ---- while no read is pending

    def _dispatch_without_read(self) -> None:
        """Notice EOF, for the close callback, and a broken connection."""
        if self._close_callback is not None and not self._eof:
            self._poll_for_eof()
        if self._eof or self._recv_until_eagain & BROKEN:
            self._check_for_error()

    def _check_for_error(self) -> None:
        """Close the stream if the connection is broken, after EOF or behind unread bytes."""
        try:
            error = None if self._phase == CLOSED else self.get_fd_error()
        except OSError as problem:
            error = problem
        if error is not None:
            self._rescue_input()
            self.terminate(reason_for(error), without_frames(error))

    def _poll_for_eof_soon(self) -> None:
        if self._readable or not self._reads_watched:
            self._hub.dispatch_again(self)

    def _poll_for_eof(self) -> None:
        """Notice EOF for the close callback: by receiving a chunk ahead, or because the kernel has announced it."""
        try:
            done = self._receive_chunk_ahead()
        except Exception as error:  # read_from_fd may be a user's own
            return self._failed_in_dispatch(error)
        if self._phase == CLOSED or self._eof:
            return
        if self._recv_until_eagain & ENDED:
            self._close_unread_later()
        elif not done:
            self._hub.dispatch_again(self)
        elif not self._reads_watched and (self._hub.reports_ends or not self._readable):
            self._reads_watched = self._hub.watch_reads(self)

    def _close_unread_later(self, checks: int = UNREAD_CHECKS) -> None:
        """The peer has sent EOF, and no read is pending. If there are unread bytes before it, and nothing is read or
        written for ``linger`` seconds, close the stream; the bytes stay readable. If there are none, close it a turn
        later: a task that was started for the last request has its first step before, and may answer in it."""
        if self._unread_timer is None and (self._sending_eof or not self.allow_half_open):
            loop, handled = self._hub.loop, self._bytes_handled()
            if self._readable and not self._buffer.size:  # a receive has come to EOF
                self._unread_timer = loop.call_soon(self._close_unread, handled, 0, context=Context())
            else:
                delay = self.linger / UNREAD_CHECKS
                self._unread_timer = loop.call_later(delay, self._close_unread, handled, checks - 1, context=Context())

    def _bytes_handled(self) -> int:
        return self.bytes_read - self._buffer.size + self.bytes_written

    def _close_unread(self, done: int, checks: int) -> None:
        self._unread_timer = None
        if self._phase == CLOSED or self._eof or self._close_callback is None or self.reading():
            return
        if done != self._bytes_handled():
            self._close_unread_later()
        elif checks:
            self._close_unread_later(checks)
        else:
            self._rescue_input()
            self._input_ended()

    # ---- errors

    def _failed_in_dispatch(self, error: Exception) -> None:
        if isinstance(error, UnsatisfiableReadError):
            self._close_for_limit(error)
        elif isinstance(error, ReadFailed):
            self._fail_read(self._tag_error(error.error))  # an error of the match function: the stream stays open
        elif isinstance(error, StreamBufferFullError):
            if self._owner is None:  # a server reports it once; Tornado's streams log this line as well
                self._report_failed_read(error)
            self._close_for_limit(error)
        else:
            self._report_failed_read(error)
            self.terminate(reason_for(error), without_frames(error))

    def _report_failed_read(self, error: Exception) -> None:
        self._report("error", logging.WARNING, f"error on read: {error}", reason_for(error), error)

    def _close_for_limit(self, error: UnsatisfiableReadError | StreamBufferFullError) -> None:
        of_stream(error, self.id)
        if isinstance(error, UnsatisfiableReadError):
            level, text = logging.INFO, f"Unsatisfiable read, closing connection: {error}"
        else:
            level, text = logging.ERROR, str(error)
        self._report("limit", level, text, CloseReason.BUFFER_FULL, error)
        self.terminate(CloseReason.BUFFER_FULL, without_frames(error))
