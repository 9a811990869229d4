"""A queue of bytes that threads send to a stream."""

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Callable
from functools import partial

from ..errors import StreamBufferFullError, StreamClosedError
from ..iostream import IOStream

GATHERED = 65536
"""Bytes that the loop's thread may put within one turn of the loop before they are written to the stream."""


def closed_error(stream: IOStream) -> StreamClosedError:
    """The error of a write to a closed stream."""
    return StreamClosedError(stream.error, "write", stream.close_reason, stream.id)


class Outbox:
    """Bytes for a stream, from any thread. All bytes that are put within one turn of the loop are one write.

    The loop never waits for a lock here, because a signal handler may interrupt :meth:`put` and then wait for the loop.

    :param call_soon: has a function called in the loop's thread, after all earlier ones.
    :param on_room: called in the loop when the queue has become shorter, or the stream was closed.
    """

    def __init__(
        self,
        stream: IOStream,
        call_soon: Callable[[Callable[[], None]], object],
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._stream = stream
        self._call_soon = call_soon
        self._on_room = on_room
        self._pieces: deque[bytes | bytearray | memoryview] = deque()
        self._scheduled = False  # a call of flush()
        self._put = 0  # bytes, in all
        self._written = 0  # of these, to the stream
        self._sent = 0  # of these, to the kernel
        self._waiting = bytearray()  # not yet written to the stream
        self._blocked = False  # the stream's write buffer is full
        self._watched = False  # waiting for a write of the stream: for one at a time, because each wait has a cost

    @property
    def size(self) -> int:
        """Bytes that were put and not yet accepted by the kernel."""
        return self._put - self._sent

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Queue ``data`` behind all earlier data. Must not be called by two threads at the same time."""
        self._append(data)
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self.flush)

    def put_in_loop(self, data: bytes | bytearray | memoryview) -> None:
        """Like :meth:`put`, in the loop's thread, which may put much data in one turn: the first piece is written at
        once, and the following ones are gathered."""
        self._append(data)
        if not self._watched or self._stream.writing() or self._put - self._written >= GATHERED:
            self.flush()

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        self._put += len(data)
        self._pieces.append(data if type(data) is bytes else bytes(data))

    def flush(self) -> None:
        """Write the queue to the stream; to be called in the loop."""
        self._scheduled = False  # before the queue is read: data that is put after this schedules another call
        while self._pieces:
            self._waiting += self._pieces.popleft()
        if self._blocked or not self._waiting:
            return
        data, self._waiting = self._waiting, bytearray()
        try:
            # Even if earlier data is queued there: after the peer's EOF, an empty queue closes the stream.
            future = self._stream.write(data)
        except StreamClosedError:
            self._written += len(data)
            self._record_sent(self._written)
        except StreamBufferFullError:  # it holds many small pieces, or data written by other code
            self._waiting = data
            self._blocked = True
            self._stream.drain().add_done_callback(self._retry)
        else:
            self._written += len(data)
            if future.done():
                self._record_sent(self._written)
            elif not self._watched:
                self._watch(future)

    def _retry(self, drained: "Future[None]") -> None:
        drained.exception()  # marks it as retrieved; if the stream was closed, flush() notices
        self._blocked = False
        self.flush()

    def _watch(self, future: "Future[None]") -> None:
        self._watched = True
        future.add_done_callback(partial(self._on_written, self._written))

    def _on_written(self, written: int, future: "Future[None]") -> None:
        self._watched = False
        self._record_sent(written if future.exception() is None else self._written)
        self.flush()
        if self._sent < self._written and not self._watched:
            self._watch(self._stream.drain())

    def _record_sent(self, written: int) -> None:
        self._sent = max(self._sent, written)
        self._on_room()

    async def drain(self, remaining: int = 0) -> None:
        """Wait, in the loop, until at most ``remaining`` bytes are left to send.

        :raises StreamClosedError: the stream was closed before.
        """
        await self._stream.drain(remaining)
        # Writes are recorded as sent when the stream's queue is empty. If the client has taken a part of them, that is
        # recorded here: otherwise this would go round in circles until the client has taken the rest.
        self._record_sent(self._written - self._stream.queued)
        while self.size > remaining:
            await self._stream.drain()
            await asyncio.sleep(0)  # _on_written() or _retry() is called in the loop's next turn
            self._record_sent(self._written - self._stream.queued)
