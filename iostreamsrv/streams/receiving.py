"""How a stream receives: into its buffer, or directly for the pending read."""

from collections.abc import Callable
from typing import Any

from ..errors import CloseReason, StreamBufferFullError, of_stream, reason_for, without_frames
from ..sansio.reads import MORE, More, Read, ReadInto
from .readiness import ENDED
from .sending import OWN_OUTPUT
from .served import Activity
from .transports.base import would_block
from .writing import WriteSide

RECEIVES_PER_TURN = 4
"""Receives for one read before other streams have their turn."""

INTO_SIZE = 1 << 22
"""Most bytes to receive at once into a caller's buffer, which is there already: so they may be more than
``read_chunk_size``. To copy them takes a millisecond."""

MUCH = 65536
"""Bytes in one receive from which on the next one follows at once."""


class ReceiveSide(WriteSide):
    """Receives only on request. Otherwise bytes stay in the kernel's buffer; when that is full, the peer waits.

    ``_readable`` says whether the kernel may have bytes. A receive that gives less than requested has emptied it.
    """

    __slots__ = ()

    def reading(self) -> bool:
        """Whether a read is pending."""
        return self._read_future is not None and not self._read_future.done()

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

    def receive_progress(self) -> int:
        """A number that grows with whatever is received."""
        return self.bytes_read + self._transport.partial()

    def has_pending_input(self) -> bool:
        """Whether bytes in the kernel, or in the transport, were not dispatched yet."""
        return self._transport.has_input()

    def at_eof(self) -> bool:
        """Whether the peer has sent EOF and all bytes before it were read."""
        return self._eof is not None and not self._buffer.size

    def take_buffered(self, count: int) -> bytes:
        """Remove and return up to ``count`` bytes that were received and not read."""
        self._hub.check()
        return self._buffer.take(min(count, self._buffer.size))

    # ---- receiving

    def _attempt(self, read: Read, untried: int) -> Any | More:
        """The result of ``read`` from what is buffered and what can be received now, or MORE.

        :param untried: not 0 if the buffer has bytes that this read has not seen yet.
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

    def _attempt_now(self, read: Read, untried: bool) -> Any | More:
        """:meth:`_attempt`, as an object that can be passed on."""
        return self._attempt(read, untried)

    def _attempt_into(self, read: ReadInto) -> int | More:
        """:meth:`_attempt` for a read into a caller's buffer: what arrives is received into it, without a copy. If no
        other stream waits, this goes on for a slice of the loop's time."""
        result = read.take(self._buffer)
        hub = self._hub
        began = hub.time()
        while result is MORE and self._readable:
            result = read.fill(self._receive_into)
            if hub.others_pending or hub.slice_is_over(began):
                break
        return result

    def _receive_into(self, space: memoryview) -> int:
        """As :meth:`_receive_some`, into ``space``; return how many bytes.

        If they are many, the peer is sending, and the kernel may have more by now, although it gave less than it was
        asked for. To try again costs less than to wait for an event.
        """
        size = min(len(space), INTO_SIZE)
        try:
            space = space[:size]
            count = self._receive_layered(size, space) if self._layered else self._io.recv_into(space)
        except BlockingIOError:
            self._readable = False
            return 0
        except OSError as error:
            self._receive_failed(error)
            return 0
        if not count:
            self._readable = False
            self._input_ended()
        elif count < size and count < MUCH and not self._recv_until_eagain and not self._transport_buffered:
            self._readable = False
        self.bytes_read += count
        self.count_as_received()
        return count

    def _receive_some(self, ahead: bool = False) -> bytes | None:
        """Receive once. None if there is nothing now, at EOF, and after an error, which closes the stream.

        :param ahead: no read needs it. EOF that would close the stream is left to the read that reaches it, and to
            ``_close_unread``: until then the answers to what came before it can be written.
        """
        size = self.read_chunk_size
        buffered = self._buffer.size
        if buffered:
            size = max(1, min(size, self.max_buffer_size - buffered + 1))
        try:
            chunk = self._receive_layered(size) if self._layered else self._io.recv(size)
        except BlockingIOError:
            self._readable = False
            return None
        except OSError as error:
            self._receive_failed(error)
            return None
        if not chunk:
            if ahead and (buffered or not self.allow_half_open):
                self._recv_until_eagain |= ENDED
            else:
                self._readable = False
                self._input_ended()
            return None
        if len(chunk) < size and not self._recv_until_eagain and not self._transport_buffered:
            self._readable = False
        self.bytes_read += len(chunk)
        hub = self._hub
        self._received_at = hub.now if hub.timed else hub.time()
        return chunk

    def _receive_layered(self, size: int, space: memoryview | None = None) -> Any:
        """Receive from a transport that holds received bytes, and has output of its own: up to ``size`` bytes, or into
        ``space``."""
        transport = self._transport
        if self._output is not None and transport.own_output() > OWN_OUTPUT:
            self._held_back = True
            raise would_block()
        try:
            if space is not None:
                return self._io.recv_into(space)
            return self._io.recv(size)
        except BlockingIOError:
            if transport.incomplete:
                self._receive_rest_soon()
            raise
        finally:
            self._transport_buffered = transport.pending()
            if transport.stuck and self._corked is None:  # otherwise uncork does it
                self._wait_for_room()

    def _receive_rest_soon(self) -> None:
        """Nothing for the application was received. Ask for a dispatch if more may be there: no event would come."""
        if self._transport.partial():  # a part of a record; a key update, say, does not count as activity
            self._received_at = self._hub.time()
        if (self._transport.pending() or self._recv_until_eagain) and not self._hub.loop.is_closed():
            self._hub.dispatch_again(self)

    def _rescue_input(self) -> None:
        """Receive the bytes that arrived before the connection broke, so that they stay readable."""
        size = self.read_chunk_size
        try:
            while self._buffer.size < self.max_buffer_size:
                chunk = self._receive_layered(size) if self._layered else self._io.recv(size)
                if not chunk:
                    break
                self._buffer.feed(chunk)
                self.bytes_read += len(chunk)
        except OSError:
            pass

    def _receive_failed(self, error: OSError) -> None:
        self._readable = False
        reason = reason_for(error)
        self.terminate(reason, without_frames(of_stream(error, self.id)))
        if reason not in (CloseReason.RESET, CloseReason.TLS_ERROR):
            raise error

    def _receive_ahead(self) -> None:
        """Receive once into the buffer, although no read needs it."""
        chunk = self._receive_some(ahead=True)
        if chunk is not None:
            self._buffer.feed(chunk)

    def _receive_chunk_ahead(self) -> bool:
        """Receive until a chunk is buffered, or all that has arrived; False if others must have their turn first."""
        turns = RECEIVES_PER_TURN
        before = -1
        while self._readable and before < self._buffer.size < self.read_chunk_size:
            if not turns:
                return False
            turns -= 1
            before = self._buffer.size
            self._receive_ahead()
        return True

    def _input_ended(self) -> None:
        """The peer has sent its last byte."""
        raise NotImplementedError
