"""What threads have sent to a stream, and the stream has not taken yet."""

import asyncio
import threading
from asyncio import Future
from collections.abc import Callable

from ..errors import StreamBufferFullError, StreamClosedError
from ..iostream import IOStream


class Outbox:
    """Bytes for a stream, from any thread. What is put within one turn of the loop is one write.

    :param post: has a function called in the loop's thread, after those that were posted before.
    :ivar size: bytes that were put, and that the kernel has not taken.
    :ivar changed: is notified when that has become less, or the stream was closed. Hold it to put.
    """

    def __init__(self, stream: IOStream, post: Callable[[Callable[[], None]], object]) -> None:
        self.size = 0
        self.changed = threading.Condition()
        self._stream = stream
        self._post = post
        self._waiting = bytearray()  # what the stream has not been given yet
        self._posted = False
        self._refused = False  # by the stream, for now

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Have ``data`` sent, after all that was put before."""
        self._waiting += data
        self.size += len(data)
        if not self._posted:
            self._posted = True
            self._post(self.flush)

    def put_in_loop(self, data: bytes | bytearray | memoryview) -> None:
        """The same in the loop's thread."""
        self._waiting += data
        self.size += len(data)
        self.flush()

    def flush(self) -> None:
        """In the loop: give the stream what waits."""
        with self.changed:
            self._posted = False
            if self._refused or not self._waiting:
                return
            data, self._waiting = self._waiting, bytearray()
        count = len(data)
        try:
            future = self._stream.write(data)
        except StreamClosedError:
            self._taken(count)
        except StreamBufferFullError:  # many small pieces wait there, or what somebody else has written
            with self.changed:
                self._waiting[:0] = data
                self._refused = True
            self._stream.drain().add_done_callback(self._retry)
        else:
            if future.done():
                self._taken(count)
            else:
                future.add_done_callback(lambda future: self._taken(count))

    def _retry(self, drained: "Future[None]") -> None:
        drained.exception()  # the stream was closed: flush() finds out
        self._refused = False
        self.flush()

    def _taken(self, count: int) -> None:
        with self.changed:
            self.size -= count
            self.changed.notify_all()

    async def drain(self, remaining: int = 0) -> None:
        """In the loop: return when there are no more than so many bytes left to send.

        :raises StreamClosedError: there always will be.
        """
        await self._stream.drain(remaining)
        while self.size > remaining:
            await asyncio.sleep(0)  # _taken() or _retry() is called in the loop's next turn
            await self._stream.drain(remaining)

    def wake(self) -> None:
        """The stream was closed: nobody need wait."""
        with self.changed:
            self.changed.notify_all()
