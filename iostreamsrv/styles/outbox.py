"""What threads have sent to a stream, and the stream has not taken yet."""

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Callable
from functools import partial

from ..errors import StreamBufferFullError, StreamClosedError
from ..iostream import IOStream

GATHERED = 65536
"""Bytes that are put in the loop before the stream is given them, while the loop has had no turn."""


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
        self._given = 0  # of these, to the stream
        self._taken = 0  # of these, by the kernel
        self._waiting = bytearray()  # what the stream has not been given yet
        self._refused = False  # by the stream, for now
        self._watched = False  # a future of the stream's says when more has been taken: one at a time, as each costs

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
        """The same in the loop's thread, which may go on putting for long: what is sent at once is gathered."""
        self._append(data)
        if not self._watched or self._stream.writing() or self._put - self._given >= GATHERED:
            self.flush()

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        self._put += len(data)
        self._pieces.append(data if type(data) is bytes else bytes(data))

    def flush(self) -> None:
        """In the loop: give the stream what waits."""
        self._posted = False  # before the look at what there is: who puts more from now on posts again
        while self._pieces:
            self._waiting += self._pieces.popleft()
        if self._refused or not self._waiting:
            return
        data, self._waiting = self._waiting, bytearray()
        try:
            # At once, also behind what waits there: a peer that has half-closed ends a stream that has all sent.
            future = self._stream.write(data)
        except StreamClosedError:
            self._given += len(data)
            self._took(self._given)
        except StreamBufferFullError:  # many small pieces wait there, or what somebody else has written
            self._waiting = data
            self._refused = True
            self._stream.drain().add_done_callback(self._retry)
        else:
            self._given += len(data)
            if future.done():
                self._took(self._given)
            elif not self._watched:
                self._watch(future)

    def _retry(self, drained: "Future[None]") -> None:
        drained.exception()  # the stream was closed: flush() finds out
        self._refused = False
        self.flush()

    def _watch(self, future: "Future[None]") -> None:
        self._watched = True
        future.add_done_callback(partial(self._sent, self._given))

    def _sent(self, given: int, future: "Future[None]") -> None:
        self._watched = False
        self._took(given if future.exception() is None else self._given)
        self.flush()
        if self._taken < self._given and not self._watched:
            self._watch(self._stream.drain())

    def _took(self, given: int) -> None:
        self._taken = max(self._taken, given)
        self._on_room()

    async def drain(self, remaining: int = 0) -> None:
        """In the loop: return when there are no more than so many bytes left to send.

        :raises StreamClosedError: there always will be.
        """
        await self._stream.drain(remaining)
        while self.size > remaining:
            await asyncio.sleep(0)  # _sent() or _retry() is called in the loop's next turn
            await self._stream.drain(remaining)
