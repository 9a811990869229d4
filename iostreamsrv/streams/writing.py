"""The side of a stream that sends."""

import errno
import logging
import sys
from asyncio import CancelledError, Future
from collections import deque
from collections.abc import Callable
from typing import IO, Any, ClassVar

from ..errors import CloseReason, Operation, StreamBufferFullError, of_stream, reason_for, without_frames
from ..runtime.futures import set_result
from ..sansio.buffers import WriteBuffer
from .core import INLINE, StreamCore, fail
from .file_region import FileRegion, check_amount

CORK_SIZE = 65536
"""Corked bytes that are sent without waiting for the end of the hub's run."""

FILE_CHUNK = 1 << 20
"""Bytes of a file that are sent before a look at the clock, so that one long download does not keep the loop."""

FUTURE_SIZE = 256
"""Bytes of memory that the future of a queued write takes, as long as somebody has it."""

OVERHEAD_FREE = 32768
"""Bytes of futures and the like in a queue that do not count for ``max_write_buffer_size``, so that few writes may fill
it to the last byte. All others count, or a million writes of one byte each would pass as 1 MB."""

FILES = 16
"""Files that may wait in a queue that has a limit: each takes a descriptor."""


_references: Callable[[object], int] = getattr(sys, "getrefcount", lambda _: -1)  # not every Python counts them
_IN_A_QUEUE = deque([(0, object())])
_FORGOTTEN = max(0, _references(_IN_A_QUEUE[-1][1]))
"""References to what is in a queue's last entry, and nowhere else."""


class QueuedWrite(Future[Any]):
    """The future of a queued write. If its wait is cancelled, the `CancelledError` says of which stream it was: for a
    `TimeoutError` that comes of it to be that stream's."""

    __slots__ = ("_stream_id",)

    def __init__(self, stream: "WriteSide") -> None:
        super().__init__(loop=stream._hub.loop)
        self._stream_id = stream.id

    def result(self) -> Any:
        try:
            return super().result()
        except CancelledError as error:
            of_stream(error, self._stream_id)
            raise


class WriteSide(StreamCore):
    """Sends at once what the kernel takes, and queues the rest, each write with a future for its last byte.

    ``_write_buffer`` is there only while the kernel has no room, or the stream is not yet connected.
    """

    __slots__ = ()

    def writing(self) -> bool:
        """Whether written bytes wait to be taken by the kernel."""
        return self._corked is not None or (self._write_buffer is not None and self._write_buffer.size > 0)

    def write(self, data: bytes | bytearray | memoryview) -> "Future[None]":
        """Write ``data``; the future is done when the kernel has taken all of it, or, corked, at once. ::

            await stream.write(b"200 OK\\n")

        Bytes that the kernel does not take now are queued: ``bytes`` by reference, anything else as a copy, so that
        the caller may change it as soon as this returns.

        **Cork.** While requests wait that have already arrived, on this stream or on others of the loop, writes are
        *corked*: done at once, and sent together when those have been dispatched, at most some milliseconds later, or
        at 64 KiB. So "done" means *accepted and owed*: ``close()`` still delivers it. ``await stream.drain()`` says
        that the kernel has it; ``cork=False`` makes every write mean that.

        :raises StreamClosedError: at the call, when the stream is closed; from the future, when it is closed before.
        :raises StreamBufferFullError: ``max_write_buffer_size`` bytes are queued; nothing of ``data`` was taken.
        :raises TypeError: ``data`` is a str, or anything else that is not bytes.
        """
        if self._closed or self._sending_eof or self._closing is not None:
            raise self._closed_error("write")
        if type(data) is not bytes:
            data = _as_bytes(data)
        hub = self._hub
        if self._write_buffer is None:
            if (hub.crowded or self._buffer.size or self._corked is not None) and self._cork(data):
                self._inline -= 1
                return self._done_next_turn() if self._inline <= 0 and self._must_yield() else hub.done()
            if self._corked is not None:
                self.uncork()
        if self._write_buffer is None:
            if self._closed:
                return self._failed(self._closed_error("write"))
            sent = self._send(data)
            if sent == len(data):
                self._inline -= 1
                return self._done_next_turn() if self._inline <= 0 and self._must_yield() else hub.done()
            if self._closed:
                return self._failed(self._closed_error("write"))
            data = memoryview(data)[sent:]
            self._wait_for_room()
        return self._queue(data)

    def _cork(self, data: bytes | bytearray | memoryview) -> bool:
        """Keep ``data`` for the end of the hub's run, if there is one and it is not too much."""
        hub = self._hub
        size = self._corked_size + len(data)
        if not hub.running or not self.cork or size > CORK_SIZE:
            return False
        if type(data) is not bytes:
            data = bytes(data)
        self._corked_size = size
        if self._corked is None:
            self._corked = [data]
            hub.corked.append(self)
        else:
            self._corked.append(data)
        return True

    def uncork(self) -> None:
        corked = self._corked
        if corked is None:
            return
        self._corked = None
        data = corked[0] if len(corked) == 1 else b"".join(corked)
        self._corked_size = 0
        sent = self._send(data)
        if sent < len(data) and not self._closed:
            self._wait_for_room().append(memoryview(data)[sent:])
            self._owed = self.bytes_written + len(data) - sent

    def _queue(self, data: bytes | bytearray | memoryview) -> "Future[None]":
        assert self._write_buffer is not None
        self._check_room(self._write_buffer, len(data))
        self._write_buffer.append(data)
        return self._future_of_queued()

    def _check_room(self, output: WriteBuffer, size: int) -> None:
        """:raises StreamBufferFullError: so many bytes more are too much."""
        limit = self.max_write_buffer_size
        queued = output.size - output.in_files
        if limit is None or not queued:
            return
        overhead = output.overhead + FUTURE_SIZE * len(self._unsent_futures or ())
        queued += max(0, overhead - OVERHEAD_FREE)
        if queued + size > limit:
            text = f"Reached maximum write buffer size: {queued} of {limit} bytes are queued"
            raise of_stream(StreamBufferFullError(text, "write"), self.id)

    def write_shared(self, data: bytes) -> None:
        """:meth:`write` for somebody who writes the same to many streams and waits for none: what waits costs each of
        them a reference."""
        if self._write_buffer is None or self._closed or self._sending_eof or self._closing is not None:
            self.write(data)
        else:
            self._check_room(self._write_buffer, len(data))
            self._write_buffer.append(data)

    def queued_writes(self) -> list[Future[Any]]:
        """See `ServedStream`."""
        return [future for _, future, _ in self._unsent_futures or ()]

    def sendfile(self, file: IO[bytes], offset: int = 0, count: int | None = None) -> "Future[int]":
        """Send a part of a file, after all that was written before and ahead of all that is written later.

        The kernel copies from the file to the socket (``os.sendfile``) where it can; elsewhere the file is read in
        pieces. The file may be closed as soon as this returns, if it has a descriptor. Its position is neither used
        nor moved, and none of it counts for ``max_write_buffer_size``, but where there is such a limit no more than 16
        files may wait: each takes a descriptor until it has been sent. What was written to it and is still in Python's
        own buffer is not in the file: flush it before. ::

            with open(path, "rb") as file:
                await stream.write(b"%d\\n" % os.fstat(file.fileno()).st_size)
                await stream.sendfile(file)

        :param file: a regular file that is open in binary mode, or an object with ``seek``, ``tell`` and ``read``.
        :param offset: where to begin, in bytes.
        :param count: how many bytes; None for all to the present end of the file.
        :returns: how many bytes were sent, once the kernel has taken them: less than ``count`` where the file ends
            before.
        :raises OptionError: not such a file, or a number that cannot be.
        :raises StreamBufferFullError: 16 files wait, and there is a limit of the queue; nothing was taken.
        :raises StreamClosedError: as :meth:`write`; also when the file cannot be read any more, with that error.
        """
        if self._closed or self._sending_eof or self._closing is not None:
            raise self._closed_error("write")
        self._hub.check()
        if self._write_buffer is not None and self._write_buffer.files >= FILES and self.max_write_buffer_size:
            raise of_stream(StreamBufferFullError(f"{FILES} files are queued", "write"), self.id)
        region = FileRegion(file, offset, count)
        self.uncork()
        if self._closed:
            return self._failed(self._closed_error("write"))
        waiting = self._write_buffer is not None
        if self._write_buffer is None:
            self._write_buffer = WriteBuffer()
        if region.left:
            self._write_buffer.append_file(region)
        future = self._future_of_queued(region)
        if not waiting:
            self._flush()
        if future.done() and not self._closed:
            self._inline -= 1
            if self._inline <= 0 and self._must_yield():
                return self._done_next_turn(region.sent)
        return future

    def drain(self, remaining: int = 0) -> "Future[None]":
        """Done when the kernel has taken all that was written before, but for ``remaining`` bytes. ::

            await stream.write(b"moved\\n")
            await stream.drain()
            os.execv(sys.executable, [sys.executable, *sys.argv])

        Whoever does not await each write can fill the queue up to one mark and wait for another::

            for record in records:
                stream.write(record)
                if stream.queued > 500_000:
                    await stream.drain(100_000)

        :param remaining: how many bytes may be left in the queue (``queued``); 0.
        :raises OptionError: it is not a number of bytes.
        :raises StreamClosedError: as :meth:`write`.
        """
        self._hub.check()
        if remaining != 0:
            check_amount("remaining", remaining)
        self.uncork()
        if self._closed:
            return self._failed(self._closed_error("write"))
        if self._write_buffer is None or (remaining and self._write_buffer.size <= remaining):
            return self._hub.done()
        return self._future_of_queued(remaining=remaining)

    def send_eof(self) -> "Future[None]":
        """Half-close: after all that was written the peer reads the end of the stream; reading goes on. ::

            await stream.write(request)
            await stream.send_eof()
            answer = await stream.read_until_close()

        The future is done when the end was sent. Writes raise `StreamClosedError` from now on.

        :raises StreamClosedError: the stream is closed.
        :raises OSError: the transport has no half-close (pipes).
        """
        if self._closed:
            raise self._closed_error("write")
        if not self._has_half_close:
            raise OSError(errno.EOPNOTSUPP, f"{type(self).__name__} has no half-close")
        self._hub.check()
        if not self._sending_eof:
            self.uncork()
            self._sending_eof = True
            if self._write_buffer is None and not self._closed:
                self._try_shutdown_writes()
                if not self._closed and self._eof is not None and self._write_buffer is None:
                    self.terminate(self._eof)
                    return self._hub.done()
        return self.drain()

    def _send(self, data: bytes | bytearray | memoryview) -> int:
        """How many bytes the kernel took now. An error closes the stream.

        That a write_to_fd of somebody's own may raise anything must not keep other streams from being uncorked.
        """
        try:
            sent = self.write_to_fd(data) or 0
        except BlockingIOError:
            return 0
        except Exception as error:
            self._send_failed(error)
            return 0
        self.bytes_written += sent
        hub = self._hub
        self._sent_at = hub.now if hub.running else hub.time()
        return sent

    def _send_failed(self, error: Exception) -> None:
        reason = reason_for(error)
        if reason is not CloseReason.RESET:
            self._report("error", logging.WARNING, f"Write error on {self.fileno()}: {error}", reason, error)
        self._rescue_input()
        self._corked = self._write_buffer = None
        self.terminate(reason, without_frames(error))

    def _rescue_input(self) -> None:
        """Bytes that came before the connection broke are still to be read."""
        try:
            while self._buffer.size < self.max_buffer_size and (chunk := self._receive(self.read_chunk_size)):
                self._buffer.feed(chunk)
                self.bytes_read += len(chunk)
        except OSError:
            pass

    def _wait_for_room(self) -> WriteBuffer:
        """Where to queue what the kernel has no room for; _flush goes on with it."""
        if self._write_buffer is None:
            self._write_buffer = WriteBuffer()
        # Each time anew, so that it is reported also if there is room by now, or always was (somebody's own write_to_fd
        # may take less than it could): then there is no edge to come.
        self._reads_watched = self._hub.watch_writes(self) or self._reads_watched
        return self._write_buffer

    def _future_of_queued(self, region: FileRegion | None = None, remaining: int = 0) -> "Future[Any]":
        """Done when all that is queued now has left, but for ``remaining`` bytes; for a file's last byte, with how many
        there were."""
        assert self._write_buffer is not None
        future = QueuedWrite(self)
        futures = self._unsent_futures
        if futures is None:
            futures = self._unsent_futures = deque()
        elif futures and _references(futures[-1][1]) == _FORGOTTEN and not futures[-1][1]._callbacks:
            futures.pop()  # its caller does not wait for it, and could queue thousands like it
        at = self.bytes_written + self._write_buffer.size - remaining
        place = len(futures)
        while remaining and place and futures[place - 1][0] > at:
            place -= 1
        futures.insert(place, (at, future, region))
        return future

    def _flush(self) -> None:
        """Send what is queued, as far as the kernel takes it."""
        output = self._write_buffer
        assert output is not None
        while output.size and self._send_first(output):
            pass
        if self._write_buffer is not output:
            return  # an error closed the stream
        if output.size or self._more_to_send():
            self._wait_for_room()
        else:
            self._write_buffer = None
        self._settle_writes()
        if self._write_buffer is None:
            self._all_sent()

    def _more_to_send(self) -> bool:
        """Whether something waits for room that nobody has written: what TLS has to say."""
        return False

    def _send_first(self, output: WriteBuffer) -> bool:
        """Send what is first in the queue; whether it is worth trying the next."""
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
        size = min(region.left, self._file_chunk if region.fd >= 0 else CORK_SIZE)
        try:
            sent = self._sendfile(region, size)
        except BlockingIOError:
            return False
        except Exception as error:
            self._send_failed(error)
            return False
        if sent is None:
            missing = output.skip_file()
            # Whatever is queued behind it leaves that much earlier.
            self._unsent_futures = deque((at - missing, future, of) for at, future, of in self._unsent_futures or ())
            return True
        self.bytes_written += sent
        output.advance(sent)
        return sent == size and self._hub.may_go_on()

    _file_chunk: ClassVar[int] = CORK_SIZE
    """Most bytes of a file with a descriptor that :meth:`_sendfile` is asked to send."""

    def _sendfile(self, region: FileRegion, size: int) -> int | None:
        """Send up to ``size`` bytes of a file: how many, 0 where there is no room, None where it has become shorter."""
        chunk = region.read(size)
        return (self.write_to_fd(chunk) or 0) if chunk else None

    def _must_yield(self) -> bool:
        """Whether a write that is done lets its writer wait for the loop's next turn, when it has done many in a row.

        In an old turn that is every 16th: a handler that awaits none of them would fill the memory with futures. It
        waits when it reads.
        """
        return not self._may_go_on() and self._inline % INLINE == 0

    def _done_next_turn(self, result: Any = None) -> "Future[Any]":
        """For a write that is done: a future that lets the loop have a turn first."""
        future: Future[Any] = Future(loop=self._hub.loop)
        self._call_soon(self._end_turn, future, result)
        return future

    def _end_turn(self, future: "Future[Any]", result: Any) -> None:
        self._inline = INLINE
        set_result(future, result)

    def send_progress(self) -> int:
        """Grows whenever the kernel takes something of what is queued."""
        return self.bytes_written

    def unacknowledged(self) -> int:
        """Bytes that the kernel has taken, and that would be lost if the peer broke the connection now."""
        return 0

    def _settle_writes(self) -> None:
        futures = self._unsent_futures
        while futures and futures[0][0] <= self.bytes_written:
            _, future, region = futures.popleft()
            set_result(future, None if region is None else region.sent)
        if not futures:
            self._unsent_futures = None

    def _all_sent(self) -> None:
        if self._sending_eof and not self._closed:
            self._try_shutdown_writes()
        self._close_if_ended()

    def _close_if_ended(self) -> None:
        """Once all has been sent the peer's end is that of the stream, or, where it may be half open, both ends are."""
        if self._eof is None or self._write_buffer is not None or self._closing is not None:
            return
        if self._sending_eof or not self.allow_half_open:
            self.terminate(self._eof)

    def _try_shutdown_writes(self) -> None:
        try:
            self._shutdown_writes()
        except OSError as error:
            # ENOTCONN: the connection is gone. (Elsewhere it may also mean that there never was one.)
            reason = CloseReason.RESET if error.errno == errno.ENOTCONN else reason_for(error)
            self._rescue_input()
            self.terminate(reason, without_frames(error))

    def _fail_writes(self) -> None:
        futures = self.queued_writes()
        self._unsent_futures = None
        if self._connect_future is not None:
            futures.append(self._connect_future)
            self._connect_future = None
            operation: Operation = "connect"
        else:
            operation = "write"
        for future in futures:
            fail(future, self._closed_error(operation))

    def _keep_what_is_owed(self) -> None:
        """Of what is queued, what was reported done still leaves, as the kernel finds room."""
        if self._write_buffer is not None:
            self._write_buffer.truncate(max(0, self._owed - self.bytes_written))
            if not self._write_buffer.size:
                self._write_buffer = None

    def _deliver_owed(self) -> None:
        if self._write_buffer is not None:
            self._flush()
            if self._write_buffer is None:
                self._part()

    def _part(self) -> bool:
        """Take leave of the peer and close the descriptor; whether that could be done at once."""
        if not self._say_goodbye() and not self._hub.loop.is_closed():
            try:
                self._wait_for_room()  # _deliver_owed goes on with it
                return False
            except OSError:
                self._write_buffer = None  # the descriptor was closed by somebody else
        self._close_descriptor()
        return True

    def _say_goodbye(self) -> bool:
        """Tell the peer, where there are words for it, that this side ends; whether that is on its way."""
        return True

    def _loses_bytes(self) -> bool:
        """Whether a close would throw away some of what is queued."""
        return self._write_buffer is not None and self._write_buffer.size > max(0, self._owed - self.bytes_written)

    def _ask_for_reset(self) -> None:
        """Have the descriptor's close tell the peer that something is missing, where there is a way to."""

    def discard_output(self) -> None:
        """Of a closed stream: close the descriptor, whatever is still to be sent."""
        if self._write_buffer is not None:
            if self._write_buffer.size:
                self._ask_for_reset()
            self._write_buffer = None
            self._close_descriptor()


def _as_bytes(data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
    """``data`` such that ``len`` counts bytes."""
    if isinstance(data, memoryview):
        return data.cast("B") if data.c_contiguous else data.tobytes()
    if isinstance(data, bytes | bytearray):
        return data
    raise TypeError(f"can only write bytes, bytearray or memoryview, not {type(data).__name__}")
