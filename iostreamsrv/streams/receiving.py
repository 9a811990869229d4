"""How a stream receives, into its buffer or past it."""

import errno
import os
from collections.abc import Callable
from typing import Any

from ..errors import (
    CloseReason,
    StreamBufferFullError,
    of_stream,
    reason_for,
    without_frames,
)
from ..sansio.reads import (
    MORE,
    More,
    Read,
)
from .readiness import ENDED
from .sending import OWN_OUTPUT
from .served import Activity
from .writing import WriteSide

RECEIVES_PER_TURN = 4
"""Calls to receive after which a read that is still not satisfied lets other streams have their turn."""


class ReceiveSide(WriteSide):
    """Receives when it is asked to, and only then: otherwise the kernel's buffer, and in the end the peer, waits.

    ``_readable`` says whether the kernel may have bytes: a receive that gives less than it was asked for has emptied
    it.
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
        """Grows with whatever comes."""
        return self.bytes_read + self._transport.partial()

    def has_pending_input(self) -> bool:
        """Whether bytes wait in the kernel, or in the transport, that are still to be dispatched."""
        return self._transport.has_input()

    def at_eof(self) -> bool:
        """Whether the peer has ended its side and all that came before was read."""
        return self._eof is not None and not self._buffer.size

    # ---- receiving

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
            chunk = self._receive_layered(size) if self._layered else self._io.recv(size)
        except BlockingIOError:
            self._readable = False
            return None
        except OSError as error:
            self._receive_failed(error)
            return None
        if not chunk:
            if ahead and buffered:
                self._recv_until_eagain |= ENDED
            else:
                self._readable = False
                self._input_ended()
            return None
        if len(chunk) < size and not self._recv_until_eagain and not self._transport_buffered:
            self._readable = False
        self.bytes_read += len(chunk)
        hub = self._hub
        self._received_at = hub.now if hub.running else hub.time()
        return chunk

    def _receive_layered(self, size: int) -> bytes:
        """Receive from a transport that holds bytes, and sends some of its own."""
        transport = self._transport
        if self._write_buffer is not None and transport.own_output() > OWN_OUTPUT:
            self._held_back = True
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        try:
            return self._io.recv(size)
        except BlockingIOError:
            if transport.incomplete:
                self._receive_rest_soon()
            raise
        finally:
            self._transport_buffered = transport.pending()
            if transport.stuck and self._corked is None:  # or else the uncork sees to it
                self._wait_for_room()

    def _receive_rest_soon(self) -> None:
        """What has come is no byte for the application, but more may be there, without an event to come for it."""
        if self._transport.partial():  # a part of a record; new keys and the like are no sign of life
            self._received_at = self._hub.time()
        if (self._transport.pending() or self._recv_until_eagain) and not self._hub.loop.is_closed():
            self._hub.dispatch_again(self)

    def _rescue_input(self) -> None:
        """Bytes that came before the connection broke are still to be read."""
        receive = self._receive_layered if self._layered else self._io.recv
        try:
            while self._buffer.size < self.max_buffer_size and (chunk := receive(self.read_chunk_size)):
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
        """Receive into the buffer, for no read in particular."""
        chunk = self._receive_some(ahead=True)
        if chunk is not None:
            self._buffer.feed(chunk)

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

    def _input_ended(self) -> None:
        """The peer has sent its last byte."""
        raise NotImplementedError
