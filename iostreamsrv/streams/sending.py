"""How a stream sends: at once, at the end of the hub's run, or when there is room."""

import errno
import logging
import sys
from asyncio import CancelledError, Future
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from ..errors import CloseReason, StreamBufferFullError, StreamError, of_stream, reason_for, without_frames
from ..events import UNOWNED_EVENTS, Event, EventKind
from ..runtime.futures import set_result
from ..sansio.buffers import WriteBuffer
from .core import INLINE_BUDGET, StreamCore, fail
from .file_region import FileRegion
from .state import CLOSED
from .transports.custom import CustomTransport

CORK_SIZE = 65536
"""Most bytes to cork. More are sent without waiting for the end of the hub's run."""

_CORK_SIZE = CORK_SIZE  # in the compiled core a number of C

OWN_OUTPUT = 1024
"""Bytes of a transport's own output that may wait for room while reading goes on: some dozens of TLS's answers. A peer
that sends everything before it reads must not be stopped by one of them."""

FUTURE_SIZE = 256
"""Bytes of memory that the future of a queued write takes, as long as its caller holds it."""

OVERHEAD_FREE = 32768
"""Bytes of futures and other overhead in a queue that do not count for ``max_write_buffer_size``, so that a few writes
may fill it to the last byte. The rest counts, or a million writes of one byte each would count as 1 MB."""

_references: Callable[[object], int] = getattr(sys, "getrefcount", lambda _: -1)  # not every Python counts them
_IN_A_QUEUE = deque([(0, object())])
_UNREFERENCED = max(0, _references(_IN_A_QUEUE[-1][1]))
"""The reference count of a future that only its queue entry holds."""


class QueuedWrite(Future[Any]):
    """The future of a queued write. If it is cancelled, its `CancelledError` has the id of the stream: so a
    `TimeoutError` made from it can be traced to that stream."""

    __slots__ = ("_stream_id",)

    def __init__(self, stream: "SendSide") -> None:
        super().__init__(loop=stream._hub.loop)
        self._stream_id = stream.id

    def result(self) -> Any:
        try:
            return super().result()
        except CancelledError as error:
            of_stream(error, self._stream_id)
            raise


class SendSide(StreamCore):
    """Sends what the kernel takes, and queues the rest, with a future for the last byte of each write.

    ``_output`` exists only while the kernel has no room, or while the stream is not yet connected.
    """

    __slots__ = ()

    def writing(self) -> bool:
        """Whether written bytes wait for the kernel to take them."""
        return self._corked is not None or (self._output is not None and self._output.size > 0)

    def queued_writes(self) -> list[Future[Any]]:
        """See `ServedStream`."""
        return [future for _, future, _ in self._unsent_futures or ()]

    def send_progress(self) -> int:
        """A number that grows whenever the peer takes output, as far as the transport can tell."""
        return self.bytes_written - self._transport.untaken()

    def unacknowledged(self) -> int:
        """Bytes that the kernel has taken, and that would be lost if the connection broke now."""
        return self._transport.unsent()

    # ---- for reading and writing

    def _has_budget(self) -> bool:
        """Whether another read or write may be done at once."""
        if self._budget <= 0 and self._hub.within_slice():
            self._budget = INLINE_BUDGET
        return self._budget > 0

    def _failed_future(self, error: BaseException) -> "Future[Any]":
        future: Future[Any] = Future(loop=self._hub.loop)
        fail(future, self._tag_error(error))
        return future

    def _tag_error(self, error: BaseException) -> BaseException:
        """Record in ``error`` that it is this stream's, unless it is another stream's or a user's error."""
        return of_stream(error, self.id) if isinstance(error, StreamError) else error

    def _report(
        self, kind: EventKind, level: int, text: str, reason: CloseReason | None, error: BaseException | None
    ) -> None:
        """Report a problem as an event: to the owner, if there is one."""
        if self._owner is None:
            UNOWNED_EVENTS.emit(Event(kind, text, level, cast(Any, self), None, reason, error))
        else:
            self._owner.report(self, kind, level, text, reason, error)

    # ---- at once, or corked

    def _cork(self, data: bytes | bytearray | memoryview) -> bool:
        """Keep ``data`` for the end of the hub's run. Return False if the hub is not running, if it is too much, or if
        there is none: to write nothing means to send everything."""
        hub = self._hub
        count = len(data)
        size = self._corked_size + count
        if not hub.running or not self.cork or size > _CORK_SIZE or not count:
            return False
        if type(data) is not bytes:
            data = bytes(data)
        self._corked_size = size
        corked = self._corked
        if corked is None:
            self._corked = data
            hub.corked.append(self)
        elif isinstance(corked, list):
            corked.append(data)
        else:
            self._corked = [corked, data]
        return True

    def _send_corked(self) -> None:
        """:meth:`uncork` for modules that are not compiled."""
        self.uncork()

    def uncork(self) -> None:
        corked = self._corked
        if corked is None:
            return
        self._corked = None
        data = b"".join(corked) if isinstance(corked, list) else corked
        self._corked_size = 0
        sent = self._send(data)
        if sent < len(data) and self._phase != CLOSED:
            self._wait_for_room().append(memoryview(data)[sent:])
            self._committed_until = self.bytes_written + len(data) - sent

    def _send(self, data: bytes | bytearray | memoryview) -> int:
        """Send ``data``; return how many bytes the kernel took. An error closes the stream.

        A user's write_to_fd may raise anything. That must not stop the hub from uncorking other streams.
        """
        try:
            sent = self._io.send(data)
        except BlockingIOError:
            return 0
        except Exception as error:
            self._send_failed(error)
            return 0
        self.bytes_written += sent
        hub = self._hub
        self._sent_at = hub.now if hub.timed else hub.time()
        return sent

    def _send_failed(self, error: Exception) -> None:
        reason = reason_for(error)
        if reason is not CloseReason.RESET:
            self._report("error", logging.WARNING, f"Write error on {self.fileno()}: {error}", reason, error)
        self._rescue_input()
        self._corked = self._output = None
        self.terminate(reason, without_frames(error))

    def _rescue_input(self) -> None:
        """Receive the bytes that arrived before the connection broke, so that they stay readable."""
        raise NotImplementedError

    def _must_yield(self) -> bool:
        """Whether a write that is done makes its writer wait for the loop's next turn: it has done many in a row.

        In a turn that has lasted too long this is every 16th write, not every one: a handler that awaits none of its
        writes would fill the memory with futures. It waits when it reads.
        """
        return not self._has_budget() and self._budget % INLINE_BUDGET == 0

    def _done_next_turn(self, result: Any = None) -> "Future[Any]":
        """The future of a write that is done, after which the loop has a turn first."""
        future: Future[Any] = Future(loop=self._hub.loop)
        self._call_soon(self._end_turn, future, result)
        return future

    def _end_turn(self, future: "Future[Any]", result: Any) -> None:
        self._budget = INLINE_BUDGET
        set_result(future, result)

    # ---- queued

    def _queue(self, data: bytes | bytearray | memoryview) -> "Future[None]":
        assert self._output is not None
        if not data:
            return self._flush_now()
        self._check_room(self._output, len(data))
        self._output.append(data)
        return self._future_of_queued()

    def _flush_now(self) -> "Future[None]":
        """Send what is queued, as far as there is room: a write of nothing, as in Tornado. The future is that of the
        queue."""
        future = self._future_of_queued()
        if self._connect_future is None:
            self._flush()
        return future

    def _check_room(self, output: WriteBuffer, size: int) -> None:
        """:raises StreamBufferFullError: there is no room for ``size`` more bytes."""
        limit = self.max_write_buffer_size
        queued = output.size - output.in_files
        if limit is None or queued <= max(0, self._committed_until - self.bytes_written):
            return  # only what was corked is queued, if anything: a handler that awaits each write may go on
        overhead = output.overhead + FUTURE_SIZE * len(self._unsent_futures or ())
        queued += max(0, overhead - OVERHEAD_FREE)
        if queued + size > limit:
            text = f"Reached maximum write buffer size: {queued} of {limit} bytes are queued"
            raise of_stream(StreamBufferFullError(text, "write"), self.id)

    def _wait_for_room(self) -> WriteBuffer:
        """The queue for what the kernel has no room for. _flush sends it."""
        if self._output is None:
            self._output = WriteBuffer()
        # Register again each time: there may be room by now, or there always was (a user's write_to_fd may take less
        # than it could). Then no edge would come; registering again reports it.
        self._reads_watched = self._hub.watch_writes(self) or self._reads_watched
        return self._output

    def _future_of_queued(self, region: FileRegion | None = None, remaining: int = 0) -> "Future[Any]":
        """A future, done when all but ``remaining`` bytes of the present queue are sent. If a file ends there, its
        result is how many bytes of the file were sent."""
        assert self._output is not None
        future = QueuedWrite(self)
        futures = self._unsent_futures
        if futures is None:
            futures = self._unsent_futures = deque()
        elif futures and _references(futures[-1][1]) == _UNREFERENCED and not futures[-1][1]._callbacks:
            futures.pop()  # only the queue still holds it; a caller that awaits none could queue thousands
        at = self.bytes_written + self._output.size - remaining
        place = len(futures)
        while remaining and place and futures[place - 1][0] > at:
            place -= 1
        futures.insert(place, (at, future, region))
        return future

    def _flush(self) -> None:
        """Send as much of the queue as the kernel takes. A fast peer may take all there is: so for a slice of the
        loop's time at most."""
        output = self._output
        assert output is not None
        began = self._hub.time()
        while output.size and self._send_first(output) and not self._hub.slice_is_over(began):
            pass
        if self._output is not output:
            return  # an error closed the stream
        if output.size or (self._layered and self._transport_has_output()):
            self._wait_for_room()
        else:
            self._output = None
        self._settle_writes()
        if self._output is None:
            self._all_sent()
        if self._held_back and self._phase != CLOSED:
            self._resume_receiving()

    def _transport_has_output(self) -> bool:
        """Whether output of the transport itself, as of TLS, waits for room."""
        try:
            return not self._transport.flush()
        except OSError as error:
            self._send_failed(error)
            return False

    def _resume_receiving(self) -> None:
        """Go on receiving, if the transport's own output is sent."""
        if self._output is None or self._transport.own_output() <= OWN_OUTPUT:
            self._held_back = False
            self._hub.dispatch_again(self)

    def _send_first(self, output: WriteBuffer) -> bool:
        """Send the first entry of the queue; return whether to try the next one."""
        first = output.peek()
        if not isinstance(first, memoryview):
            assert isinstance(first, FileRegion)
            return self._send_from_file(output, first)
        with first:
            sent = self._send(first)
        if sent:
            output.advance(sent)
        return sent > 0

    def _send_from_file(self, output: WriteBuffer, region: FileRegion) -> bool:
        sender = self._io if isinstance(self._io, CustomTransport) else self._transport  # a socket has no such sendfile
        size = min(region.left, sender.file_chunk if region.fd >= 0 else CORK_SIZE)
        try:
            sent = sender.sendfile(region, size)
        except BlockingIOError:
            return False
        except Exception as error:
            self._send_failed(error)
            return False
        if sent is None:
            missing = output.skip_file()
            # The file is shorter than it was: all that is queued behind it is sent that much earlier.
            self._unsent_futures = deque((at - missing, future, of) for at, future, of in self._unsent_futures or ())
            return True
        self.bytes_written += sent
        output.advance(sent)
        return sent == size

    def _settle_writes(self) -> None:
        futures = self._unsent_futures
        while futures and futures[0][0] <= self.bytes_written:
            _, future, region = futures.popleft()
            set_result(future, None if region is None else region.sent)
        if not futures:
            self._unsent_futures = None

    def _all_sent(self) -> None:
        if self._sending_eof and self._phase != CLOSED:
            self._try_shutdown_writes()
        self._close_if_ended()

    def forget_output(self) -> None:
        """For the hub, in a forked child: discard the output, because the parent sends it."""
        self._corked = self._output = None
        self._corked_size = 0

    # ---- the end of the output

    def _close_if_ended(self) -> None:
        """After the peer's EOF, once all is sent: close the stream. With ``allow_half_open`` only after our EOF."""
        if self._eof is None or self._output is not None or self._phase:
            return
        if self._sending_eof or not self.allow_half_open:
            self.terminate(self._eof)

    def _shutdown_writes(self) -> None:
        if not self._transport.shutdown_write():
            self._wait_for_room()  # _flush sends the rest, then calls this again

    def _try_shutdown_writes(self) -> None:
        try:
            self._shutdown_writes()
        except OSError as error:
            # ENOTCONN: the connection is gone. (Elsewhere it may also mean that there never was one.)
            reason = CloseReason.RESET if error.errno == errno.ENOTCONN else reason_for(error)
            self._rescue_input()
            self.terminate(reason, without_frames(error))
