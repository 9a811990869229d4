"""The side of a stream that receives."""

import logging
from asyncio import Future
from collections.abc import Callable
from contextvars import Context
from re import Pattern
from typing import Any

from ..errors import (
    CloseReason,
    ConcurrentReadError,
    OptionError,
    StreamBufferFullError,
    StreamClosedError,
    StreamTimeoutError,
    UnsatisfiableReadError,
    of_stream,
    reason_for,
    without_frames,
)
from ..options import check_timeout
from ..sansio.reads import (
    MORE,
    Discard,
    Matcher,
    More,
    Read,
    ReadBytes,
    ReadFailed,
    ReadInto,
    ReadMatch,
    ReadPartial,
    ReadUntil,
    ReadUntilClose,
    ReadUntilRegex,
)
from .core import INLINE, fail
from .hub import BROKEN, ENDED, HANGUP, READABLE, WRITABLE, complete, waiter_of
from .served import Activity
from .writing import WriteSide

RECEIVES_PER_TURN = 4
"""Calls to receive after which a read that is still not satisfied lets other streams have their turn."""

TURNS_TO_READ_ON = 5
"""Of the loop, until the result of a read has reached all who wait for it: `asyncio.wait_for`, `asyncio.gather` and
Tornado's ``with_timeout`` take one or two each."""
ALL_ANSWERED = -1
"""What was written before a read that was pending when the server began to shut down: never as much as now."""

_UNTIL_CLOSE = ReadUntilClose()


class GivesBack(Future[Any]):
    """The future of a read that puts bytes where its caller can change them: it may not learn of a cancel later."""

    __slots__ = ("_stream",)

    def __init__(self, stream: "ReadSide") -> None:
        super().__init__(loop=stream._hub.loop)
        self._stream = stream

    def cancel(self, msg: Any = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._stream._give_back(self)
        return cancelled


class ReadSide(WriteSide):
    """Receives when somebody reads, and only then: otherwise the kernel's buffer, and in the end the peer, waits.

    A read that the buffer or the kernel can satisfy at once returns a finished future. Otherwise it becomes *the*
    pending read (``_read``, ``_read_future``) and the next dispatch goes on with it. ``_readable`` says whether the
    kernel may have bytes: a receive that gives less than it was asked for has emptied it.
    """

    __slots__ = ()

    def reading(self) -> bool:
        """Whether a read is pending."""
        return self._read_future is not None and not self._read_future.done()

    def when_read_done(self, look: Callable[[], None]) -> None:
        """Call ``look`` some turns of the loop after the pending read is done: whoever waited for it may have begun
        another one by then. Or, if a task awaits it, when that has ended: the stream is the task's."""
        future = self._read_future
        assert future is not None
        reader = waiter_of(future)
        if reader is None:
            future.add_done_callback(lambda _: self._look_again(look, TURNS_TO_READ_ON), context=Context())
        else:
            reader.add_done_callback(lambda _: look(), context=Context())

    def _look_again(self, look: Callable[[], None], turns: int) -> None:
        if turns and not self.reading():
            self._call_soon(self._look_again, look, turns - 1)
        else:
            look()

    def activity(self) -> Activity:
        """See `ServedStream`."""
        return Activity(self._received_at, self._sent_at, self._read_since, self._read_future)

    def shift_times(self, later: Callable[[float], float]) -> None:
        """See `ServedStream`."""
        self._received_at = later(self._received_at)
        self._read_since = later(self._read_since)

    def count_as_received(self) -> None:
        """See `ServedStream`."""
        self._received_at = self._hub.time()

    def read_has_begun(self) -> bool:
        """Whether something has come of what the pending read waits for."""
        begun = isinstance(self._read, ReadInto) and self._read.filled > 0
        return begun or self._buffer.size > 0 or self._received_at > self._read_since

    def receive_progress(self) -> int:
        """Grows with whatever comes."""
        return self.bytes_read

    def is_waiting(self) -> bool:
        """Whether all there is to do is to wait for a message of which nothing has come yet."""
        return self.reading() and not self.read_has_begun() and not self.writing() and not self.has_pending_input()

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
        if self._written_before == before or self._closed or self._closing is not None or self._owner is None:
            return False
        return self._owner.close_if_answered(self)

    def has_close_callback(self) -> bool:
        """See `ServedStream`."""
        return self._close_callback is not None

    def has_pending_input(self) -> bool:
        """Whether bytes wait in the kernel that are still to be dispatched."""
        return False

    def at_eof(self) -> bool:
        """Whether the peer has ended its side and all that came before was read."""
        return self._eof is not None and not self._buffer.size

    def read_until(
        self, delimiter: bytes, max_bytes: int | None = None, *, timeout: float | None = None
    ) -> "Future[bytes]":
        """Read up to and including ``delimiter``. ::

            line = await stream.read_until(b"\\n", max_bytes=1000, timeout=60)

        :param delimiter: one byte or more.
        :param max_bytes: close the stream (reason ``buffer_full``) when the first ``max_bytes`` have no delimiter.
            None: ``max_buffer_size`` is the limit.
        :param timeout: seconds; None for no limit. Afterwards the stream goes on and no byte is lost.
        :returns: a future of the bytes, with the delimiter.
        :raises OptionError: an argument that cannot be.
        :raises ConcurrentReadError: another read is pending.
        :raises StreamClosedError: at the call, when the stream is closed and holds no such bytes; from the future, when
            it is closed before they have come, also for a limit that was reached.
        :raises StreamTimeoutError: from the future.
        """
        try:
            read = ReadUntil.of(delimiter, max_bytes)
        except TypeError:
            raise OptionError("delimiter", delimiter, "must be bytes, at least one") from None
        return self._begin_read(read, timeout)

    def read_until_regex(
        self, regex: bytes | Pattern[bytes], max_bytes: int | None = None, *, timeout: float | None = None
    ) -> "Future[bytes]":
        """Read up to and including the first match of ``regex``. ::

            head = await stream.read_until_regex(rb"\\r?\\n\\r?\\n", max_bytes=8192)

        The pattern is searched for in the first ``max_bytes`` only (None: ``max_buffer_size``). Each time bytes
        arrive it is searched from the beginning, so give ``max_bytes`` for a pattern that backtracks. Otherwise as
        :meth:`read_until`.

        :param regex: of bytes, compiled or not.
        :raises re.error: it is not a regular expression.
        """
        return self._begin_read(ReadUntilRegex.of(regex, max_bytes), timeout)

    def read_bytes(self, num_bytes: int, partial: bool = False, *, timeout: float | None = None) -> "Future[bytes]":
        """Read ``num_bytes`` bytes, or with ``partial`` as many as there are, from one to ``num_bytes``. ::

            (length,) = struct.unpack(">I", await stream.read_bytes(4))
            some = await stream.read_bytes(65536, partial=True)

        :param num_bytes: 0 or more. More than ``max_buffer_size`` without ``partial`` closes the stream.

        Raises and ``timeout`` as :meth:`read_until`.
        """
        read = ReadPartial.of(num_bytes) if partial else ReadBytes.of(num_bytes)
        if not num_bytes:
            return self._nothing_to_read(b"")
        if partial and self._readable and not self._hangup and 0 < self._buffer.size < num_bytes and self._read is None:
            self._receive_ahead()  # the end behind it is for a later read to meet
        return self._begin_read(read, timeout)

    def read_into(
        self, buf: bytearray | memoryview, partial: bool = False, *, timeout: float | None = None
    ) -> "Future[int]":
        """Read into ``buf`` until it is full, or with ``partial`` until it has at least one byte; gives the number of
        bytes. ::

            frame = bytearray(1500)
            size = await stream.read_into(frame, partial=True)

        ``buf`` shows the bytes as they come, and can be resized again as soon as the future is done. What a read
        that times out or is cancelled had put there is put back for the next read.
        Raises and ``timeout`` as :meth:`read_until`.
        """
        if not len(buf):
            return self._nothing_to_read(0)
        if timeout is not None:
            check_timeout("timeout", timeout)  # before any byte moves
        read = ReadInto(buf, partial)
        at_once = self._buffer.size and self._read is None and self._written_before is None
        if at_once and read.take(self._buffer) is not MORE:
            return self._finished(read.filled)
        return self._begin_read(read, timeout)

    def read_until_close(self, *, timeout: float | None = None) -> "Future[bytes]":
        """Read all until the end of the stream: at most ``max_buffer_size`` bytes. ::

            upload = await stream.read_until_close(timeout=30)

        A reset counts as an end; another error fails the read. Raises and ``timeout`` as :meth:`read_until`.
        """
        return self._begin_read(_UNTIL_CLOSE, timeout)

    def read_until_match(self, match: Matcher, *, timeout: float | None = None) -> "Future[Any]":
        """Read whatever ``match`` makes of the bytes.

        :param match: called with a ``bytearray`` of all that is buffered, whenever there is more of it. It returns
            None to wait for more bytes, or ``(consumed, result)``: ``consumed`` bytes are removed and the read gives
            ``result``. It must neither change the ``bytearray`` nor keep it. What it raises, the read raises; the
            bytes stay. (A `RuntimeError` in place of a `StopIteration` and its like, as in a generator.)

        Raises and ``timeout`` as :meth:`read_until`. ::

            def frame(buffer):  # a length byte, then so many bytes
                if buffer and len(buffer) > buffer[0]:
                    return 1 + buffer[0], bytes(buffer[1 : 1 + buffer[0]])

            payload = await stream.read_until_match(frame)

        While the read waits, ``match`` is called with the context variables of the task that awaits it.

        A function that does all the work itself returns ``(consumed, MORE)``, with `iostreamsrv.iostream.MORE`: those
        bytes are removed, and it is called again for what is left, at once or when there is more.
        """
        return self._begin_read(ReadMatch(match), timeout)

    # ---- from the call to a result

    def _begin_read(self, read: Read, timeout: float | None) -> "Future[Any]":
        if timeout is not None:
            timeout = check_timeout("timeout", timeout)
        if self._closing is not None and not isinstance(read, Discard):
            return self._read_after_the_end(read)
        if self._written_before is not None and self._has_answered():
            raise self._closed_error("read")
        if self._read is not None:
            self._expect_no_read()
        if self._closed or self._eof:
            return self._read_after_the_end(read)
        self._untried = False
        if self._buffer.size or self._readable:
            if self._inline > 0 or self._may_go_on():
                self._inline -= 1
                try:
                    result = self._attempt(read, self._buffer.size > 0)
                except Exception as error:
                    return self._failed_inline(read, error)
                if result is not MORE:
                    return self._finished(result)
                if self._closed or self._eof:
                    return self._read_at_the_end(read)
                self._untried = read.unfinished
            else:
                self._untried = True
            if self._readable or self._buffer.size:
                self._hub.dispatch_again(self)
        future: Future[Any] = GivesBack(self) if read.holds_bytes else Future(loop=self._hub.loop)
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

    def _finished(self, result: Any) -> "Future[Any]":
        """A future that is done already."""
        if self._close_callback is not None:
            self._look_for_end_later()
        future: Future[Any] = Future(loop=self._hub.loop)
        future.set_result(result)
        return future

    def _nothing_to_read(self, result: Any) -> "Future[Any]":
        if self._read is not None and self._closing is None:
            self._expect_no_read()
        return self._finished(result)

    def _failed_inline(self, read: Read, error: Exception) -> "Future[Any]":
        """What a read returns, or raises, that failed before it was pending."""
        read.abandon(self._buffer)
        if isinstance(error, UnsatisfiableReadError | StreamBufferFullError):
            self._close_for_limit(error)
            return self._failed(self._closed_error("read"))
        if isinstance(error, ReadFailed):
            return self._failed(error.error)
        raise error

    def _read_after_the_end(self, read: Read) -> "Future[Any]":
        """What a read returns, or raises, when no more bytes can come and the buffer is all there is."""
        try:
            result = self._last_result(read)
        except ReadFailed as failed:
            return self._failed(failed.error)
        if result is MORE:
            if read.unfinished and self._read is None:
                return self._settle_later(read)
            read.abandon(self._buffer)
            raise self._closed_error("read")
        if isinstance(self._read, Discard):
            self._read.keep = self._buffer.size
        return self._finished(result)

    def _settle_later(self, read: Read) -> "Future[Any]":
        """Make ``read`` the pending one although no more bytes will come: there are more than suit one turn."""
        self._read = read
        future: Future[Any] = Future(loop=self._hub.loop)
        self._read_future = future
        self._call_soon(self._settle_read, future)
        return future

    def _last_result(self, read: Read) -> Any | More:
        """The result of a read that can have no more than the buffer, or MORE where that is not enough."""
        try:
            result = read.take(self._buffer) if self._buffer.size else MORE
        except UnsatisfiableReadError:
            result = MORE  # beyond its limit, and nothing left to close for it
        return read.finish(self._buffer) if result is MORE else result

    def _read_at_the_end(self, read: Read) -> "Future[Any]":
        """What a read returns that itself met the end."""
        try:
            return self._read_after_the_end(read)
        except StreamClosedError as error:
            return self._failed(error)

    def _attempt(self, read: Read, untried: bool) -> Any | More:
        """The result of ``read`` from what can be received without waiting, or MORE.

        :param untried: there are buffered bytes that this read has not been offered yet.
        """
        buffer = self._buffer
        if untried:
            result = read.take(buffer)
            if result is not MORE or read.unfinished:
                return result
        turns = RECEIVES_PER_TURN
        while self._readable and turns:
            turns -= 1
            chunk = self._receive_some()
            if chunk is None:
                break
            if not buffer.size:
                result = read.accept(chunk)
                if result is not MORE:
                    return result
            buffer.feed(chunk)
            result = read.take(buffer)
            if result is not MORE or read.unfinished:
                return result
            if buffer.size > self.max_buffer_size:
                raise StreamBufferFullError("Reached maximum read buffer size", "read")
        return MORE

    def _receive_some(self, ahead: bool = False) -> bytes | None:
        """Receive once. None where nothing came: none there now, the end, or an error that closed the stream.

        :param ahead: no read asks for it. An end behind bytes that are still unread is left for the read that will
            meet it: until then the answers to these bytes can be written.
        """
        size = self.read_chunk_size
        buffered = self._buffer.size
        if buffered:
            size = max(1, min(size, self.max_buffer_size + 1 - buffered))
        try:
            chunk = self._receive(size)
        except BlockingIOError:
            chunk = None
        except OSError as error:
            self._receive_failed(error)
            return None
        if not chunk:
            if chunk is None:
                self._readable = False
            elif ahead and buffered:
                self._hangup |= ENDED
            else:
                self._readable = False
                self._input_ended()
            return None
        if len(chunk) < size and not self._hangup and not self._more_inside:
            self._readable = False
        self.bytes_read += len(chunk)
        hub = self._hub
        self._received_at = hub.now if hub.running else hub.time()
        return chunk

    def _receive_failed(self, error: OSError) -> None:
        self._readable = False
        reason = reason_for(error)
        self.terminate(reason, without_frames(of_stream(error, self.id)))
        if reason not in (CloseReason.RESET, CloseReason.TLS_ERROR):
            raise error

    def _receive_ahead(self) -> None:
        """Receive into the buffer, for no read in particular."""
        chunk = self._receive_some(ahead=True)
        if chunk is not None:
            self._buffer.feed(chunk)

    # ---- dispatching

    def dispatch(self, events: int) -> None:
        if self._closed or self._connect_future is not None:
            return self._dispatch_at_the_ends(events)
        if events != READABLE:
            if events & HANGUP:
                self._hangup |= events & HANGUP
            # Not for an end or urgent data: to wait for room again would report those again, round and round.
            if self._write_buffer is not None and events & (WRITABLE | BROKEN):
                self._flush()
            if self._closed or events == WRITABLE:
                return None
        self._readable = True
        read, future = self._read, self._read_future
        if read is None or future is None:
            return self._nobody_reads()
        if future.done():  # cancelled; what has come stays where it is
            self._abandon_read()
            return self._nobody_reads()
        try:
            if read.calls_back:
                result = self._run_for_reader(future, self._attempt, read, self._untried)
            else:
                result = self._attempt(read, self._untried)
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
        self._inline = INLINE
        if self._written_before is not None:
            self._written_before = self._written()  # what comes behind it is the answer
        complete(future, result)
        if self._close_callback is not None:
            self._look_for_end_later()
        return None

    # ---- waiting

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
            if self._closed:
                raise self._closed_error("read")
            raise of_stream(ConcurrentReadError(), self.id)
        self._abandon_read()

    def _abandon_read(self) -> None:
        read = self._read
        self._forget_read()
        if read is not None:
            read.abandon(self._buffer)

    def _give_back(self, future: "Future[Any]") -> None:
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

    def _wait_for_more(self) -> None:
        read = self._read
        self._untried = read is not None and read.unfinished
        if read is not None and read.restarted:
            assert isinstance(read, ReadMatch)
            read.restarted = False
            if self._written_before is not None and self._has_answered():
                return None
            self._read_since = self._hub.now
            self._inline = INLINE
        if self._readable or self._untried:
            self._hub.dispatch_again(self)
        elif not self._reads_watched and not self._closed:
            self._reads_watched = self._hub.watch_reads(self)

    def _failed_in_dispatch(self, error: Exception) -> None:
        if isinstance(error, UnsatisfiableReadError):
            self._close_for_limit(error)
        elif isinstance(error, ReadFailed):
            self._fail_read(self._own(error.error))  # the function's own trouble: the stream goes on
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

    # ---- the end of the input

    def _how_input_ended(self) -> CloseReason:
        return CloseReason.EOF

    def _input_ended(self) -> None:
        """The peer has sent its last byte."""
        self._eof = self._how_input_ended()
        self.uncork()
        self._close_if_ended()
        if not self._closed:  # what is queued, or is still to be written, goes out
            self._end_read(None)
            if not self._reads_watched:  # the end was there at once; a reset is still to be noticed
                self._reads_watched = self._hub.watch_reads(self)

    def _end_read(self, error: BaseException | None) -> None:
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
            return self._fail_read(self._own(failed.error))
        if result is not MORE:
            self._forget_read()
            complete(future, result)
        elif read.unfinished:
            self._call_soon(self._settle_read, future)
        else:
            self._fail_read(self._closed_error("read"))

    def _fail_read(self, error: BaseException) -> None:
        future = self._read_future
        self._abandon_read()
        if future is not None:
            fail(future, error)

    # ---- with nobody reading

    def _nobody_reads(self) -> None:
        """What there is to be noticed all the same."""
        if self._close_callback is not None and not self._eof:
            self._look_for_end()
        if self._eof or self._hangup & BROKEN:
            self._look_for_error()

    def _look_for_error(self) -> None:
        """The connection may be broken: behind its end, or behind bytes that nobody has read."""
        try:
            error = None if self._closed else self.get_fd_error()
        except OSError as problem:
            error = problem
        if error is not None:
            self._rescue_input()
            self.terminate(reason_for(error), without_frames(error))

    def _look_for_end_later(self) -> None:
        if self._readable or not self._reads_watched:
            self._hub.dispatch_again(self)

    def _look_for_end(self) -> None:
        """Notice the end for the close callback: by receiving a chunk ahead, or because the kernel has announced it."""
        try:
            done = self._receive_chunk_ahead()
        except Exception as error:  # read_from_fd may be a user's own
            return self._failed_in_dispatch(error)
        if self._closed or self._eof:
            return
        if self._hangup & ENDED:
            self._end_unread_later()
        elif not done:
            self._hub.dispatch_again(self)
        elif not self._reads_watched and (self._hub.reports_ends or not self._readable):
            self._reads_watched = self._hub.watch_reads(self)

    def _receive_chunk_ahead(self) -> bool:
        """Receive until a chunk is buffered, or all that has come by now; whether that is done."""
        turns = RECEIVES_PER_TURN
        before = -1
        while self._readable and before < self._buffer.size < self.read_chunk_size:
            if not turns:
                return False
            turns -= 1
            before = self._buffer.size
            self._receive_ahead()
        return True

    def _end_unread_later(self) -> None:
        """There are unread bytes, and the end behind them. Who is there to read them, and to answer, has ``linger``
        seconds for it; with neither done it is the end of the stream, and the bytes stay readable."""
        if self._end_timer is None and (self._sending_eof or not self.allow_half_open):
            self._end_timer = self._hub.loop.call_later(
                self.linger, self._end_unread, self._done_so_far(), context=Context()
            )

    def _done_so_far(self) -> int:
        return self.bytes_read - self._buffer.size + self.bytes_written

    def _end_unread(self, done: int) -> None:
        self._end_timer = None
        if self._closed or self._eof or self._close_callback is None or self.reading():
            return
        if done == self._done_so_far():
            self._rescue_input()
            self._input_ended()
        else:
            self._end_unread_later()
