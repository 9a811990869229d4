"""The pending read: how it is given up, and what is noticed while there is none."""

import logging
from asyncio import Future
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
from ..sansio.reads import (
    MORE,
    More,
    Read,
    ReadFailed,
    ReadInto,
    ReadMatch,
)
from .core import fail
from .readiness import BROKEN, ENDED
from .receiving import ReceiveSide
from .state import CLOSED
from .wakeup import resolve_now, waiter_of

TURNS_TO_READ_AGAIN = 5
"""Of the loop, until the result of a read has reached all who wait for it: `asyncio.wait_for`, `asyncio.gather` and
Tornado's ``with_timeout`` take one or two each."""

ALL_ANSWERED = -1
"""What was written before a read that was pending when the server began to shut down: never as much as now."""


class RestoringFuture(Future[Any]):
    """The future of a read that puts bytes where its caller can change them: it may not learn of a cancel later."""

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
        """Call ``look`` some turns of the loop after the pending read is done: whoever waited for it may have begun
        another one by then. Or, if a task awaits it, when that has ended: the stream is the task's."""
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
        """Whether something has come of what the pending read waits for."""
        begun = isinstance(self._read, ReadInto) and self._read.filled > 0
        begun = begun or self._buffer.size > 0 or self._received_at > self._read_since
        return begun or self._transport.partial() > 0

    def is_waiting(self) -> bool:
        """Whether all there is to do is to wait for a message of which nothing has come yet."""
        return self.reading() and not self.read_has_begun() and not self.writing() and not self.has_pending_input()

    def has_close_callback(self) -> bool:
        """See `ServedStream`."""
        return self._close_callback is not None

    # ---- while the server shuts down

    def _written(self) -> int:
        """Bytes that were written so far."""
        return self.bytes_written + self.queued

    def track_answers(self, on: bool) -> None:
        """While the server shuts down, now and then: begin to note what is written between two reads. What is written
        while a read waits is no answer to it; a read that goes on and on has no end where that could be noted."""
        if not on:
            self._written_before = None
        elif isinstance(self._read, ReadMatch) or (self._written_before is None and not self.reading()):
            self._written_before = self._written()
        elif self._written_before is None:
            self._written_before = ALL_ANSWERED

    def is_unanswered(self) -> bool:
        """While the server shuts down: whether something was read since that began, and no answer to it written."""
        return self._written_before == self._written() and not isinstance(self._read, ReadMatch)

    def _has_answered(self) -> bool:
        """While the server shuts down, with each read: whether something was written since the last one, and the stream
        is closed for that, as the handler asks for the next request."""
        before, self._written_before = self._written_before, self._written()
        if self._written_before == before or self._phase or self._owner is None:
            return False
        return self._owner.close_if_answered(self)

    # ---- the pending read

    def _run_for_reader(self, future: "Future[Any]", function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function``, which calls what users wrote, in the context of the task that waits for ``future``; if
        there is none, in that of the stream's callbacks.

        It is called by dispatches and by the loop, so no task is running whose context could not be entered.
        """
        callbacks = future._callbacks
        context = callbacks[0][1] if callbacks else self.callback_context
        return function(*arguments) if context is None else context.run(function, *arguments)

    def _expect_no_read(self) -> None:
        """Clear away a read whose future was cancelled; any other is in the way of a new one."""
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
        """A read was cancelled that has taken bytes: they are given back before anybody can change them."""
        if self._read_future is future:
            self._abandon_read()
            self._read_future = future  # as after the cancel of any other read

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
        if self._phase != CLOSED:  # what is queued, or is still to be written, goes out
            self._finish_read_at_eof(None)
            if not self._reads_watched:  # the end was there at once; a reset is still to be noticed
                self._reads_watched = self._hub.watch_reads(self)

    def _finish_read_at_eof(self, error: BaseException | None) -> None:
        """Answer the pending read, for which no more bytes will come."""
        read, future = self._read, self._read_future
        if read is None or future is None:
            return
        if future.done():
            self._abandon_read()
        elif error is None or reason_for(error) is CloseReason.RESET:
            # Its result may be in the buffer. It is taken from there when no task runs, so that the reader gets it
            # or, being cancelled first, leaves it.
            self._call_soon(self._settle_read, future)
        else:
            self._fail_read(self._closed_error("read"))

    def _settle_read(self, future: "Future[Any]") -> None:
        read = self._read
        if self._read_future is not future or read is None:
            return
        if future.done():
            return self._abandon_read()
        try:
            if read.calls_back:
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
        else:
            self._fail_read(self._closed_error("read"))

    def _last_result(self, read: Read) -> Any | More:
        """The result of a read that can have no more than the buffer, or MORE where that is not enough."""
        try:
            result = read.take(self._buffer) if self._buffer.size else MORE
        except UnsatisfiableReadError:
            result = MORE  # beyond its limit, and nothing left to close for it
        return read.finish(self._buffer) if result is MORE else result

    # ---- with nobody reading

    def _dispatch_without_read(self) -> None:
        """What there is to be noticed all the same."""
        if self._close_callback is not None and not self._eof:
            self._poll_for_eof()
        if self._eof or self._recv_until_eagain & BROKEN:
            self._check_for_error()

    def _check_for_error(self) -> None:
        """The connection may be broken: behind its end, or behind bytes that nobody has read."""
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
        """Notice the end for the close callback: by receiving a chunk ahead, or because the kernel has announced it."""
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

    def _close_unread_later(self) -> None:
        """There are unread bytes, and the end behind them. Who is there to read them, and to answer, has ``linger``
        seconds for it; with neither done it is the end of the stream, and the bytes stay readable."""
        if self._unread_timer is None and (self._sending_eof or not self.allow_half_open):
            self._unread_timer = self._hub.loop.call_later(
                self.linger, self._close_unread, self._bytes_handled(), context=Context()
            )

    def _bytes_handled(self) -> int:
        return self.bytes_read - self._buffer.size + self.bytes_written

    def _close_unread(self, done: int) -> None:
        self._unread_timer = None
        if self._phase == CLOSED or self._eof or self._close_callback is None or self.reading():
            return
        if done == self._bytes_handled():
            self._rescue_input()
            self._input_ended()
        else:
            self._close_unread_later()

    # ---- errors

    def _failed_in_dispatch(self, error: Exception) -> None:
        if isinstance(error, UnsatisfiableReadError):
            self._close_for_limit(error)
        elif isinstance(error, ReadFailed):
            self._fail_read(self._tag_error(error.error))  # the function's own trouble: the stream goes on
        else:
            if isinstance(error, StreamBufferFullError):
                self._close_for_limit(error)
            self._report("error", logging.WARNING, f"error on read: {error}", reason_for(error), error)
            self.terminate(reason_for(error), without_frames(error))

    def _close_for_limit(self, error: UnsatisfiableReadError | StreamBufferFullError) -> None:
        of_stream(error, self.id)
        if isinstance(error, UnsatisfiableReadError):
            level, text = logging.INFO, f"Unsatisfiable read, closing connection: {error}"
        else:
            level, text = logging.ERROR, str(error)
        self._report("limit", level, text, CloseReason.BUFFER_FULL, error)
        self.terminate(CloseReason.BUFFER_FULL, without_frames(error))
