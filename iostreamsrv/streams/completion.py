"""How a read gets its result: at once from its call, or later from a dispatch."""

from asyncio import Future
from contextvars import Context
from typing import Any

from ..errors import (
    StreamBufferFullError,
    StreamClosedError,
    UnsatisfiableReadError,
)
from ..options import check_timeout
from ..sansio.reads import (
    MORE,
    Discard,
    Read,
    ReadFailed,
    ReadMatch,
)
from .core import INLINE_BUDGET
from .pending import PendingSide, RestoringFuture
from .readiness import BROKEN, HANGUP, READABLE, WRITABLE
from .state import CLOSED
from .wakeup import resolve_now


class CompletionSide(PendingSide):
    """Completes reads."""

    __slots__ = ()

    # ---- from the call to a result
    #
    # Every read of a user begins in _begin_read, once for each message, so what it does is written out in one
    # function. Its checks are in the order in which they apply:
    #
    # 1. A stream that is being closed in order gives what it has buffered, and no more. Only the close itself reads
    #    (Discard).
    # 2. While the server shuts down, a handler that has answered and reads again has no request in progress: the
    #    stream is closed for that, and the read raises.
    # 3. There is one pending read. One that was cancelled is cleared away; another is an error.
    # 4. After EOF, and on a closed stream, the buffer is all there is.
    #
    # Then it tries at once. Most reads end here: the bytes are in the buffer, as requests come in batches, or in the
    # kernel. Their future is done when it is returned, so the task that awaits it is not suspended, and the loop gets
    # no turn. So _budget bounds how many may do so in a row, and is given back by the next dispatch; without any left,
    # the read waits for a turn although its bytes may be there, and _unoffered remembers that it has not seen them.
    #
    # Otherwise it becomes the pending read, and dispatch completes it. If bytes are left (the kernel may have more, or
    # the buffer has some that this read has not been offered), no event will come for them: edges are reported once.
    # Then the stream itself asks the hub to be dispatched again. It is registered with the hub at its first pending
    # read, for good where there is epoll.
    #
    # Reads that fail raise here only if they failed before they were pending in a way that is the caller's doing. All
    # that depends on the peer comes from the future, so that `await` sees it in one place.

    def _begin_read(self, read: Read, timeout: float | None) -> "Future[Any]":
        if timeout is not None:
            timeout = check_timeout("timeout", timeout)
        if self._closing is not None and not isinstance(read, Discard):
            return self._read_after_eof(read)
        if self._written_before is not None and self._has_answered():
            raise self._closed_error("read")
        if self._read is not None:
            self._expect_no_read()
        if self._phase == CLOSED or self._eof:
            return self._read_after_eof(read)
        self._unoffered = False
        if self._buffer.size or self._readable:
            if self._budget > 0 or self._has_budget():
                self._budget -= 1
                try:
                    result = self._attempt(read, self._buffer.size > 0)
                except Exception as error:
                    return self._failed_inline(read, error)
                if result is not MORE:
                    return self._done_future(result)
                if self._phase == CLOSED or self._eof:
                    return self._read_hit_eof(read)
                self._unoffered = read.unfinished
            else:
                self._unoffered = True
            if self._readable or self._buffer.size:
                self._hub.dispatch_again(self)
        future: Future[Any] = RestoringFuture(self) if read.holds_bytes else Future(loop=self._hub.loop)
        self._read = read
        self._read_future = future
        hub = self._hub
        self._read_since = hub.now if hub.running else hub.time()
        if timeout is not None:
            self._read_timer = self._hub.loop.call_later(
                timeout, self._read_timed_out, future, timeout, context=Context()
            )
        if not self._reads_watched and self._connect_future is None:
            self._reads_watched = self._hub.watch_reads(self)
        return future

    def _done_future(self, result: Any) -> "Future[Any]":
        """A future that is done already."""
        if self._close_callback is not None:
            self._poll_for_eof_soon()
        future: Future[Any] = Future(loop=self._hub.loop)
        future.set_result(result)
        return future

    def _empty_read(self, result: Any) -> "Future[Any]":
        if self._read is not None and self._closing is None:
            self._expect_no_read()
        return self._done_future(result)

    def _failed_inline(self, read: Read, error: Exception) -> "Future[Any]":
        """What a read returns, or raises, that failed before it was pending."""
        read.abandon(self._buffer)
        if isinstance(error, UnsatisfiableReadError | StreamBufferFullError):
            self._close_for_limit(error)
            return self._failed_future(self._closed_error("read"))
        if isinstance(error, ReadFailed):
            return self._failed_future(error.error)
        raise error

    def _read_after_eof(self, read: Read) -> "Future[Any]":
        """What a read returns, or raises, when no more bytes can come and the buffer is all there is."""
        try:
            result = self._last_result(read)
        except ReadFailed as failed:
            return self._failed_future(failed.error)
        if result is MORE:
            if read.unfinished and self._read is None:
                return self._settle_later(read)
            read.abandon(self._buffer)
            raise self._closed_error("read")
        if isinstance(self._read, Discard):
            self._read.keep = self._buffer.size
        return self._done_future(result)

    def _settle_later(self, read: Read) -> "Future[Any]":
        """Make ``read`` the pending one although no more bytes will come: there are more than suit one turn."""
        self._read = read
        future: Future[Any] = Future(loop=self._hub.loop)
        self._read_future = future
        self._call_soon(self._settle_read, future)
        return future

    def _read_hit_eof(self, read: Read) -> "Future[Any]":
        """What a read returns that itself met the end."""
        try:
            return self._read_after_eof(read)
        except StreamClosedError as error:
            return self._failed_future(error)

    # ---- from an event to a result
    #
    # dispatch is what the hub calls with the events of a stream, never from within a task. In the usual case (READABLE
    # alone, a pending read, enough bytes) it receives, completes the future and returns: resolve_now steps the waiting
    # task before it returns, so that the handler's whole answer is written, and corked, inside of this function.
    #
    # Before it come the cases in which there is nothing to read: a stream that is still connecting, or closed and with
    # output to send; and events for the writing side. WRITABLE alone ends there. An announced end (HANGUP) is
    # remembered in _recv_until_eagain: edge-triggered, it is reported once, perhaps together with bytes that are
    # received before it, and from then on a short receive does not mean that the kernel has no more.
    #
    # A cancelled future is noticed here at the latest. Its read gives back what it took, before anything is received,
    # so a cancel loses nothing.
    #
    # After _attempt nothing of the stream may be taken for granted: a match function, or a transport, may have closed
    # it or begun another read. Then self._read_future is not the one that was to be completed. The pending read is
    # cleared before its future is completed, as the task that is stepped begins its next read in there.

    def dispatch(self, events: int) -> None:
        if self._phase == CLOSED or self._connect_future is not None:
            return self._dispatch_not_open(events)
        if events != READABLE:
            if events & HANGUP:
                self._recv_until_eagain |= events & HANGUP
            # Not for an end or urgent data: to wait for room again would report those again, round and round.
            if self._write_buffer is not None and events & (WRITABLE | BROKEN):
                self._flush()
            if self._phase == CLOSED or events == WRITABLE:
                return None
        self._readable = True
        read, future = self._read, self._read_future
        if read is None or future is None:
            return self._dispatch_without_read()
        if future.done():  # cancelled; what has come stays where it is
            self._abandon_read()
            return self._dispatch_without_read()
        try:
            if read.calls_back:
                result = self._run_for_reader(future, self._attempt, read, self._unoffered)
            else:
                result = self._attempt(read, self._unoffered)
        except Exception as error:
            return self._failed_in_dispatch(error)
        if result is MORE:
            return self._wait_for_more()
        if self._read_future is not future:
            return None  # a match function has ended the stream
        self._read = self._read_future = None  # as _forget_read does, without a call for each message
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        self._budget = INLINE_BUDGET
        if self._written_before is not None:
            self._written_before = self._written()  # what comes behind it is the answer
        resolve_now(future, result)
        if self._close_callback is not None:
            self._poll_for_eof_soon()
        return None

    def _wait_for_more(self) -> None:
        read = self._read
        self._unoffered = read is not None and read.unfinished
        if read is not None and read.restarted:
            assert isinstance(read, ReadMatch)
            read.restarted = False
            if self._written_before is not None and self._has_answered():
                return None
            self._read_since = self._hub.now
            self._budget = INLINE_BUDGET
        if self._readable or self._unoffered:
            self._hub.dispatch_again(self)
        elif not self._reads_watched and self._phase != CLOSED:
            self._reads_watched = self._hub.watch_reads(self)
