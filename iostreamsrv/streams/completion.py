"""How a read gets its result: at once in its call, or later in a dispatch."""

from asyncio import Future
from contextvars import Context
from typing import Any

from ..errors import StreamBufferFullError, StreamClosedError, UnsatisfiableReadError
from ..options import check_timeout
from ..sansio.reads import MORE, Discard, Read, ReadFailed, ReadInto, ReadMatch
from .core import INLINE_BUDGET
from .donefuture import done_future
from .pending import PendingSide, RestoringFuture
from .readiness import BROKEN, HANGUP, READABLE, WRITABLE
from .state import CLOSED
from .wakeup import is_done, make_pending, resolve_now


class CompletionSide(PendingSide):
    """Completes reads."""

    __slots__ = ()

    # ---- from the call to a result
    #
    # Every read begins in _begin_read. It runs once for each message, so all of it is in one function, without calls
    # that can be avoided. The checks are in the order in which they apply:
    #
    # 1. A stream that is being closed gracefully gives what it has buffered, and no more. Only the close itself still
    #    receives (Discard).
    # 2. While the server shuts down, a handler that has answered and reads again has no request in progress: the
    #    stream is closed, and the read raises.
    # 3. There is one pending read. A cancelled one is cleared; any other is an error.
    # 4. After EOF, and on a closed stream, the buffer is all there is.
    #
    # Then the read is attempted. Most reads end here: the bytes are in the buffer, because requests arrive in batches,
    # or in the kernel. The future is done when it is returned, so the task that awaits it is not suspended, and the
    # loop gets no turn. So _budget limits how many reads may end here in a row; the next dispatch restores it. With no
    # budget left, the read waits for a turn although its bytes may be there; _unoffered records that it has not seen
    # them.
    #
    # Otherwise it becomes the pending read, and dispatch completes it. If bytes are left (the kernel may have more, or
    # the buffer has some that this read has not seen), no event will come for them: edges are reported once. Then the
    # stream asks the hub for another dispatch. Its first pending read registers it with the hub; with epoll that holds
    # until the stream is closed.
    #
    # A read raises at the call only for what the caller did. Everything that depends on the peer comes from the
    # future, so that `await` sees it in one place.

    def _begin_read(self, read: Read, timeout: float | None, into: ReadInto | None = None) -> "Future[Any]":
        hub = self._hub
        if hub.checked:
            hub.check()
        if timeout is not None:
            timeout = check_timeout("timeout", timeout)
        if self._closing is not None and not isinstance(read, Discard):
            return self._read_after_eof(read)
        if self._written_before is not None and self._has_answered():
            raise self._closed_error("read")
        if self._read is not None:
            self._expect_no_read()
        if self._phase == CLOSED or self._eof is not None:
            return self._read_after_eof(read)
        self._unoffered = False
        buffered = self._buffer.size
        if buffered or self._readable:
            if self._budget > 0 or self._has_budget():
                self._budget -= 1
                try:
                    result = self._attempt(read, buffered) if into is None else self._attempt_into(into)
                except Exception as error:
                    return self._failed_inline(read, error)
                if result is not MORE:
                    if self._close_callback is not None:  # as _done_future, without a call for each message
                        self._poll_for_eof_soon()
                    return done_future(hub.loop, result)
                if self._phase == CLOSED or self._eof is not None:
                    return self._read_hit_eof(read)
                self._unoffered = read.unfinished
            else:
                self._unoffered = True
            if self._readable or self._buffer.size:
                hub.dispatch_again(self)
        future = make_pending(hub.pending) if into is None else RestoringFuture(self)
        self._read = read
        self._read_future = future
        self._read_since = hub.now if hub.timed else hub.time()
        if timeout is not None:
            self._read_timer = hub.loop.call_later(timeout, self._read_timed_out, future, timeout, context=Context())
        if not self._reads_watched and self._connect_future is None:
            self._reads_watched = hub.watch_reads(self)
        return future

    def _done_future(self, result: Any) -> "Future[Any]":
        """The future of a read that is done already."""
        self._hub.check()
        if self._close_callback is not None:
            self._poll_for_eof_soon()
        return done_future(self._hub.loop, result)

    def _empty_read(self, result: Any) -> "Future[Any]":
        if self._read is not None and self._closing is None:
            self._expect_no_read()
        return self._done_future(result)

    def _failed_inline(self, read: Read, error: Exception) -> "Future[Any]":
        """For a read that failed before it was pending: return its failed future, or raise the caller's error."""
        read.abandon(self._buffer)
        if isinstance(error, UnsatisfiableReadError | StreamBufferFullError):
            self._close_for_limit(error)
            return self._failed_future(self._closed_error("read"))
        if isinstance(error, ReadFailed):
            return self._failed_future(error.error)
        raise error

    def _read_after_eof(self, read: Read) -> "Future[Any]":
        """For a read after EOF: return the future of what the buffer has, or raise if that is not enough."""
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
        """Make ``read`` the pending read although no more bytes will come: the buffer has too much for one turn."""
        self._read = read
        future: Future[Any] = Future(loop=self._hub.loop)
        self._read_future = future
        self._call_soon(self._settle_read, future)
        return future

    def _read_hit_eof(self, read: Read) -> "Future[Any]":
        """For a read that has itself reached EOF: as `_read_after_eof`, but errors come from the future."""
        try:
            return self._read_after_eof(read)
        except StreamClosedError as error:
            return self._failed_future(error)

    # ---- from an event to a result
    #
    # The hub calls dispatch with the events of a stream, never from within a task. In the usual case (READABLE alone,
    # a pending read, enough bytes) it receives and completes the future. resolve_now steps the waiting task before it
    # returns, so the handler's whole answer is written, and corked, within this function.
    #
    # The cases with nothing to read come first: a stream that is connecting, or closed with output to send; and events
    # for output. WRITABLE alone ends there. An announced EOF (HANGUP) is recorded in _recv_until_eagain: an edge is
    # reported once, perhaps together with bytes that come before it, and afterwards a short receive does not mean that
    # the kernel has no more.
    #
    # A cancelled future is noticed here at the latest. Its read gives back what it took, before anything is received,
    # so a cancel loses nothing.
    #
    # After _attempt the stream may be in any state: a match function, or a transport, may have closed it or begun
    # another read. Then self._read_future is not the future of this read. The pending read is cleared before its future
    # is completed, because the task that is stepped begins its next read before resolve_now returns.

    def dispatch(self, events: int) -> None:
        if self._phase == CLOSED or self._connect_future is not None:
            return self._dispatch_not_open(events)
        if events != READABLE:
            if events & HANGUP:
                self._recv_until_eagain |= events & HANGUP
            # Not for ENDED or URGENT: waiting for room registers again, which would report them again, forever.
            if self._output is not None and events & (WRITABLE | BROKEN):
                self._flush()
            if self._phase == CLOSED or events == WRITABLE:
                return None
        self._readable = True
        read, future = self._read, self._read_future
        if read is None or future is None:
            return self._dispatch_without_read()
        if is_done(future):  # cancelled; the bytes stay where they are
            self._abandon_read()
            return self._dispatch_without_read()
        try:
            if read.plain:
                result = self._attempt(read, self._unoffered)
            elif isinstance(read, ReadInto):
                result = self._attempt_into(read)
            else:
                result = self._run_for_reader(future, self._attempt_now, read, self._unoffered)
        except Exception as error:
            return self._failed_in_dispatch(error)
        if result is MORE:
            return self._wait_for_more()
        if self._read_future is not future:
            return None  # a match function has closed the stream
        self._read = self._read_future = None  # inline _forget_read: a call for each message would cost time
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        self._budget = INLINE_BUDGET
        if self._written_before is not None:
            self._written_before = self._written()  # what is written from here on is the answer
        resolve_now(future, result)
        if self._close_callback is not None:
            self._poll_for_eof_soon()
        return None

    def _dispatch_now(self, events: int) -> None:
        """:meth:`dispatch` for modules that are not compiled."""
        self.dispatch(events)

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
