"""What threads have sent to a stream, and the stream has not taken yet."""

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Callable
from functools import partial

from ..errors import StreamBufferFullError, StreamClosedError
from ..iostream import IOStream


def closed_error(stream: IOStream) -> StreamClosedError:
    """What a write to a stream that is closed raises."""
    return StreamClosedError(stream.error, "write", stream.close_reason, stream.id)


class Outbox:
    """Bytes for a stream, from any thread. What is put within one turn of the loop is one write.

    The loop waits for no lock here: a signal handler may interrupt a put, and itself wait for the loop.

    :param post: has a function called in the loop's thread, after those that were posted before.
    :param on_room: is called in the loop when fewer bytes wait, or none ever will.
    """

    def __init__(
        self,
        stream: IOStream,
        post: Callable[[Callable[[], None]], object],
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._stream = stream
        self._post = post
        self._on_room = on_room
        self._pieces: deque[bytes | bytearray | memoryview] = deque()
        self._posted = False
        self._put = 0  # bytes, in all
        self._taken = 0  # of these, by the kernel
        self._waiting = bytearray()  # what the stream has not been given yet
        self._busy = False  # the stream has something that it has not sent, and is given no more

    @property
    def size(self) -> int:
        """Bytes that were put, and that the kernel has not taken."""
        return self._put - self._taken

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Have ``data`` sent, after all that was put before. Not for two threads at once."""
        self._append(data)
        if not self._posted:
            self._posted = True
            self._post(self.flush)

    def put_in_loop(self, data: bytes | bytearray | memoryview) -> None:
        """The same in the loop's thread."""
        self._append(data)
        self.flush()

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        self._put += len(data)
        self._pieces.append(data if type(data) is bytes else bytes(data))

    def flush(self) -> None:
        """In the loop: give the stream what waits."""
        self._posted = False  # before the look at what there is: who puts more from now on posts again
        while self._pieces:
            self._waiting += self._pieces.popleft()
        if self._busy or not self._waiting:
            return
        data, self._waiting = self._waiting, bytearray()
        count = len(data)
        try:
            future = self._stream.write(data)
        except StreamClosedError:
            self._took(count)
        except StreamBufferFullError:  # many small pieces wait there, or what somebody else has written
            self._waiting = data
            self._go_on_after(self._stream.drain(), 0)
        else:
            if future.done():
                self._took(count)
            else:
                self._go_on_after(future, count)  # one write at a time: each costs a future

    def _go_on_after(self, future: "Future[None]", count: int) -> None:
        self._busy = True
        future.add_done_callback(partial(self._go_on, count))

    def _go_on(self, count: int, future: "Future[None]") -> None:
        future.exception()  # the stream was closed: flush() finds out
        self._busy = False
        self._took(count)
        self.flush()

    def _took(self, count: int) -> None:
        self._taken += count
        self._on_room()

    async def drain(self, remaining: int = 0) -> None:
        """In the loop: return when there are no more than so many bytes left to send.

        :raises StreamClosedError: there always will be.
        """
        await self._stream.drain(remaining)
        while self.size > remaining:
            await asyncio.sleep(0)  # _go_on() is called in the loop's next turn
            await self._stream.drain(remaining)
