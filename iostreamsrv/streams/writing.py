"""The writes that users call, and what happens to queued writes when the stream is closed."""

import errno
from asyncio import Future
from collections.abc import Container
from typing import IO, Any

from ..errors import CloseReason, Operation, StreamBufferFullError, StreamClosedError, of_stream
from ..sansio.buffers import WriteBuffer
from .core import fail
from .donefuture import make_done
from .file_region import FileRegion, check_amount
from .sending import CORK_SIZE, SendSide
from .state import CLOSED, FINISHING

REASONS_WITHOUT_CLOSE_NOTIFY = frozenset({CloseReason.ABORTED, CloseReason.RESET, CloseReason.TLS_ERROR})
"""Reasons to close without a close_notify: the peer is gone, or must notice that data is missing."""

MAX_QUEUED_FILES = 16
"""Most files in a queue that has a limit: each takes a descriptor."""


class WriteSide(SendSide):
    """Has every kind of write."""

    __slots__ = ()

    # write has four outcomes; nearly all writes have one of the first two:
    #
    # 1. Corked. More requests have already arrived, on this stream (its buffer is not empty) or on others of the loop.
    #    So the hub will call uncork soon, and all answers are sent together. A stream that has begun to cork continues
    #    to: later writes must not overtake earlier ones.
    # 2. Sent. The kernel takes all of it now.
    # 3. Sent in part. The rest is queued, with a future for its last byte; the hub reports when there is room.
    # 4. Queued behind earlier writes, or until the stream is connected.
    #
    # In the first two the future is done when it is returned: hub.done makes one without fields, at a third of the
    # cost of an asyncio.Future. A writer that awaits it is not suspended. So _budget counts these writes, too, and now
    # and then the future is done one turn later.
    #
    # _output is checked twice because uncork may have found that there is no room, or that the connection is broken.

    def write(self, data: bytes | bytearray | memoryview) -> "Future[None]":
        """Write ``data``. The future is done when the kernel has taken all of it; if corked, at once. ::

            await stream.write(b"200 OK\\n")

        Bytes that the kernel does not take now are queued: ``bytes`` by reference, a ``bytearray`` as a copy, which the
        caller may change as soon as this returns. A view of 64 KiB or more is queued by reference, as in Tornado: what
        it shows must not change before the future is done.

        **Cork.** While more requests that have already arrived are waiting, on this stream or on others of the loop,
        writes are *corked*: done at once, and sent together when those requests were dispatched (some milliseconds
        later at most), or at 64 KiB. So "done" means *accepted and committed*: ``close()`` still delivers it. After
        ``await stream.drain()`` or ``await stream.write(b"")`` the kernel has it; with ``cork=False`` that holds for
        every write.

        :raises StreamClosedError: from the call, if the stream is closed; from the future, if it is closed before the
            future is done.
        :raises StreamBufferFullError: ``max_write_buffer_size`` bytes are queued; nothing of ``data`` was taken.
        :raises TypeError: ``data`` is a str, or anything else that is not bytes.
        """
        if self._phase or self._sending_eof:
            raise self._closed_error("write")
        if type(data) is not bytes:
            data = _as_bytes(data)
        hub = self._hub
        if hub.checked:
            hub.check()
        if self._output is None:
            if (hub.others_pending or self._buffer.size or self._corked is not None) and self._cork(data):
                self._budget -= 1
                return self._done_next_turn() if self._budget <= 0 and self._must_yield() else make_done(hub.done)
            if self._corked is not None:
                self.uncork()
                if not data and self._output is None and self._phase != CLOSED:
                    return make_done(hub.done)  # it was only to send what enqueue has corked
        if self._output is None:
            if self._phase == CLOSED:
                return self._failed_future(self._closed_error("write"))
            sent = self._send(data)
            if sent == len(data):
                self._budget -= 1
                return self._done_next_turn() if self._budget <= 0 and self._must_yield() else make_done(hub.done)
            if self._phase == CLOSED:
                return self._failed_future(self._closed_error("write"))
            rest = memoryview(data)[sent:]
            data = bytes(rest) if type(data) is bytearray else rest
            self._wait_for_room()
        return self._queue(data)

    def enqueue(self, data: bytes | bytearray | memoryview) -> None:
        """Queue ``data`` without a future, however much is queued; the next :meth:`write` sends it, or the end of the
        hub's run, or else the loop.

        :raises StreamClosedError: as :meth:`write`.
        """
        if self._phase or self._sending_eof:
            raise self._closed_error("write")
        self._hub.check()
        data = _as_bytes(data)
        if self._output is None and self._corked_size + len(data) <= CORK_SIZE:
            corked = self._corked
            if isinstance(corked, list):
                corked.append(bytes(data))
            else:
                self._corked = [bytes(data)] if corked is None else [corked, bytes(data)]
            if corked is None:
                if self._hub.running:
                    self._hub.corked.append(self)
                else:
                    self._call_soon(self._send_corked)
            self._corked_size += len(data)
        else:
            self.uncork()
            output = self._wait_for_room() if self._output is None else self._output
            output.append(data)

    def write_shared(self, data: bytes) -> bool:
        """:meth:`write` without a future, for the same data to many streams: a queued entry is only a reference.

        :returns: whether the stream is still open: the write may have found that the connection is broken.
        """
        if self._phase or self._sending_eof:
            raise self._closed_error("write")
        if self._output is not None:
            self._check_room(self._output, len(data))
            self._output.append(data)
            return True
        hub = self._hub
        if hub.checked:
            hub.check()
        self._budget -= 1
        if self._budget <= 0:
            self._has_budget()
        if (hub.others_pending or self._buffer.size or self._corked is not None) and self._cork(data):
            return True
        if self._corked is not None:
            self.write(data)  # behind what is corked
        else:
            sent = self._send(data)
            if sent == len(data):
                return True
            if self._phase != CLOSED:
                self._wait_for_room().append(memoryview(data)[sent:])
        return self._phase < FINISHING

    def sendfile(self, file: IO[bytes], offset: int = 0, count: int | None = None) -> "Future[int]":
        """Send a part of a file, after all earlier writes and before all later ones.

        The kernel copies from the file to the socket (``os.sendfile``) where it can; otherwise the file is read in
        pieces. A file with a descriptor may be closed as soon as this returns. The file's position is neither used nor
        moved. The file does not count for ``max_write_buffer_size``; but if there is such a limit, at most 16 files may
        be queued, because each takes a descriptor until it is sent. If you have written to the file, call its
        ``flush()`` first: what is still in Python's buffer is not sent. ::

            with open(path, "rb") as file:
                await stream.write(b"%d\\n" % os.fstat(file.fileno()).st_size)
                await stream.sendfile(file)

        :param file: a regular file that is open in binary mode, or an object with ``seek``, ``tell`` and ``read``.
        :param offset: where to begin, in bytes.
        :param count: how many bytes; None for all up to the present end of the file.
        :returns: a future of the number of bytes sent, once the kernel has taken them: less than ``count`` if the file
            is shorter.
        :raises OptionError: ``file`` is not such a file, or a number is invalid.
        :raises StreamBufferFullError: the queue has a limit and holds 16 files; nothing was taken.
        :raises StreamClosedError: as :meth:`write`; also if reading the file fails, with that error.
        """
        if self._phase or self._sending_eof:
            raise self._closed_error("write")
        self._hub.check()
        if self._output is not None and self._output.files >= MAX_QUEUED_FILES and self.max_write_buffer_size:
            raise of_stream(StreamBufferFullError(f"{MAX_QUEUED_FILES} files are queued", "write"), self.id)
        region = FileRegion(file, offset, count)
        self.uncork()
        if self._phase == CLOSED:
            return self._failed_future(self._closed_error("write"))
        waiting = self._output is not None
        if self._output is None:
            self._output = WriteBuffer()
        if region.left:
            self._output.append_file(region)
        future = self._future_of_queued(region)
        if not waiting:
            self._flush()
        if future.done() and self._phase != CLOSED:
            self._budget -= 1
            if self._budget <= 0 and self._must_yield():
                return self._done_next_turn(region.sent)
        return future

    def drain(self, remaining: int = 0) -> "Future[None]":
        """Wait until the kernel has taken all earlier writes, except for ``remaining`` bytes. ::

            await stream.write(b"moved\\n")
            await stream.drain()
            os.execv(sys.executable, [sys.executable, *sys.argv])

        If you do not await each write, fill the queue to a high-water mark and wait for a low-water mark::

            for record in records:
                stream.write(record)
                if stream.queued > 500_000:
                    await stream.drain(100_000)

        :param remaining: how many bytes may stay in the queue (``queued``); default 0.
        :raises OptionError: ``remaining`` is not a number of bytes.
        :raises StreamClosedError: as :meth:`write`.
        """
        self._hub.check()
        if remaining != 0:
            check_amount("remaining", remaining)
        self.uncork()
        if self._phase == CLOSED:
            return self._failed_future(self._closed_error("write"))
        if self._output is None or (remaining and self._output.size <= remaining):
            return make_done(self._hub.done)
        return self._future_of_queued(None, remaining)

    def send_eof(self) -> "Future[None]":
        """Half-close: the peer reads EOF after all that was written; this side may still read. ::

            await stream.write(request)
            await stream.send_eof()
            answer = await stream.read_until_close()

        The future is done when EOF is sent. Later writes raise `StreamClosedError`.

        :raises StreamClosedError: the stream is closed.
        :raises OSError: the transport has no half-close (pipes).
        """
        if self._phase == CLOSED:
            raise self._closed_error("write")
        if not self._transport.has_half_close:
            raise OSError(errno.EOPNOTSUPP, f"{type(self).__name__} has no half-close")
        self._hub.check()
        if not self._sending_eof:
            self.uncork()
            self._sending_eof = True
            if self._output is None and self._phase != CLOSED:
                self._try_shutdown_writes()
                if self._phase != CLOSED and self._eof is not None and self._output is None:
                    self.terminate(self._eof)
                    return make_done(self._hub.done)
        return self.drain()

    # ---- when the stream is closed

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

    def _drop_uncommitted(self, output: WriteBuffer) -> None:
        """Remove from the queue what was not reported done. The rest is still sent, as the kernel has room."""
        if self._layered:
            self._committed_until = max(self._committed_until, self.bytes_written + self._transport.committed())
        output.truncate(max(0, self._committed_until - self.bytes_written))
        if not output.size:
            self._output = None

    def _flush_committed(self) -> None:
        if self._output is not None:
            self._flush()
            if self._output is None:
                self._finish_close()

    def _finish_close(self) -> bool:
        """Send close_notify, under TLS, and close the descriptor; return whether that was done at once."""
        if not self._send_close_notify() and not self._hub.loop.is_closed():
            try:
                self._wait_for_room()  # _flush_committed sends the rest
                return False
            except OSError:
                self._output = None  # the descriptor was closed by other code
        self._close_descriptor()
        return True

    def _send_close_notify(self) -> bool:
        """Send close_notify, under TLS, unless the peer must notice a loss. Return False if it waits for room."""
        if not self._layered:
            return True
        if self._hub.inherited or self.close_reason in REASONS_WITHOUT_CLOSE_NOTIFY:
            self._transport.leave_silently()
            return True
        try:
            return self._transport.send_close_notify()
        except OSError:
            return True  # the peer is gone

    def _loses_bytes(self) -> bool:
        """Whether a close would discard a part of the queue."""
        return self._output is not None and self._output.size > max(0, self._committed_until - self.bytes_written)

    def _request_reset(self) -> None:
        """Make the close of the descriptor show the peer that data is missing, where the transport can."""
        if self._hub.inherited:
            self._transport.leave_silently()
        else:
            self._transport.reset()

    def discard_output(self) -> None:
        """Close the descriptor of a closed stream; what is still to be sent is lost."""
        if self._output is not None:
            if self._output.size:
                self._request_reset()
            self._output = None
            self._close_descriptor()


def _as_bytes(data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
    """``data`` in a form whose ``len`` counts bytes."""
    if isinstance(data, memoryview):
        return data.cast("B") if data.c_contiguous else data.tobytes()
    if isinstance(data, bytes | bytearray):
        return data
    raise TypeError(f"can only write bytes, bytearray or memoryview, not {type(data).__name__}")


def write_to_each(streams: list[Any], data: bytes, left_out: Container[int], full: list[Any]) -> int:
    """Write ``data`` to each of ``streams`` whose ``id`` is not in ``left_out``, without futures; they share one copy.

    :param full: gets the streams whose queue has no room.
    :returns: how many streams took it, and are not closed by that.
    """
    taken = 0
    for each in streams:
        stream = each  # which has a type where this is compiled
        if left_out and stream.id in left_out:
            continue
        try:
            taken += stream.write_shared(data)
        except StreamBufferFullError:
            full.append(stream)
        except StreamClosedError:
            pass  # it is being closed
    return taken
