"""TLS on a socket as a transport.

The engine of :mod:`iostreamsrv.sansio.tls` sits between the socket and the stream: ``recv`` gives plaintext, ``send``
takes it. Limits, counters, corks and futures of the stream count plaintext.

**Sending.** Ciphertext must be sent whole and in order. So data is encrypted only when it is its turn, and counts as
sent when the kernel has the last byte of its ciphertext. Until then ``send`` reports 0 bytes, and the stream's queue
keeps the plaintext. It passes the same data to the next ``send``, which does not encrypt it a second time.

**Receiving.** One ``recv`` does at most one receive from the socket, and decrypts as much as the caller asks for. So an
empty socket does not mean that there is no more: records may wait in the engine. The number of records that one call
processes is bounded, also if they have no data. If it gets no data, it raises `BlockingIOError` and sets
``incomplete``.

**What TLS sends by itself** (alerts, answers to key updates) is sent in the ``recv`` that caused it. What the kernel
does not take is :meth:`~TLSTransport.own_output`. The stream counts it as queued, so that its write timeout applies,
and stops receiving if there is too much of it.
"""

import contextlib
import socket
import ssl

from ...errors import CloseReason
from ...sansio.tls import TLSEngine, Truncated
from ..file_region import FileRegion
from .base import Transport, would_block
from .socket import SocketTransport

CIPHERTEXT = 4 * (16384 + 22)
"""Bytes to receive at once: four full records of TLS 1.3, so that a fast peer's data does not end within a record.
With twice as much malloc would map and unmap memory each time."""

MUCH_CIPHERTEXT = 4 * CIPHERTEXT
"""Bytes to receive at once for a read into a larger buffer. They are received into memory that all connections share:
so they may be more than what malloc keeps."""

PLAINTEXT = 1 << 16
"""Bytes to encrypt at once. A send may leave so much ciphertext in memory, while the queue keeps the plaintext, too."""

SENT_AT_ONCE = 4 * PLAINTEXT
"""Bytes of one write that are sent before a check of the clock, however fast the peer takes them."""

TICKETS = 4096
"""Bytes to discard before the socket is closed. More would empty the buffer of a peer that sends all it can: then the
kernel sends no reset, and no window either, so that the peer waits for a minute until it learns of the close."""

HANDSHAKE_CHUNK = 16384
"""Bytes to receive at once during the handshake."""

_CIPHERTEXT, _PLAINTEXT = CIPHERTEXT, PLAINTEXT  # in the compiled core these are numbers of C

_shared: list[bytearray] = []
"""Memory to receive into, while no receive uses it: one for each thread that has ever used one at the same time."""


class TLSTransport(Transport):
    """TLS on ``below``. Call :meth:`handshake` first.

    :param below: the transport of a connected socket.
    :param received: bytes that were received from it already.
    :raises ssl.SSLError: the context is unusable.
    :raises ValueError: the context checks host names, and none was given.

    :ivar below: the socket's transport.
    :ivar engine: encrypts and decrypts.
    :ivar handshaken: whether the handshake is done.
    :ivar spoke_last: the last :meth:`handshake` had something to send: the peer's answer takes a round trip.
    """

    __slots__ = (
        "_accepted",
        "_ciphertext",
        "_close_notify_made",
        "_ended",
        "_pending",
        "_raw",
        "_silent",
        "_truncated",
        "below",
        "engine",
        "handshaken",
        "incomplete",
        "spoke_last",
        "stuck",
    )

    has_half_close = True
    layered = True
    empties = True

    def __init__(
        self,
        below: SocketTransport,
        context: ssl.SSLContext,
        server_side: bool,
        server_hostname: str | None = None,
        received: bytes = b"",
    ) -> None:
        self.engine = TLSEngine(context, server_side, server_hostname)
        if received:
            self.engine.feed(received)
        self.below = below
        self._raw = below.carrier()
        self.handshaken = False
        self.incomplete = False
        self.spoke_last = False
        self.stuck = False
        self._ciphertext: memoryview | None = None  # encrypted, and not sent
        self._accepted = 0  # bytes of plaintext that are in it
        self._pending = False
        self._ended = False  # the socket has given EOF
        self._truncated = False  # the peer's side ended without a close_notify
        self._close_notify_made = False
        self._silent = False  # close without a close_notify

    # ---- the handshake

    def handshake(self) -> bool:
        """Continue the handshake with what was received; return whether it is done.

        :raises ssl.SSLError: it failed; an alert was sent to the peer, if there was room.
        """
        try:
            self.handshaken = self.engine.handshake()
        finally:
            # Also if it failed: then this sends the alert.
            self.spoke_last = self.engine.outgoing.pending > 0
            self.stuck = not self.flush()
        if self.handshaken and self.engine.holds_tickets:
            _acknowledge(self.below.socket)
        return self.handshaken

    def receive_handshake(self) -> bool:
        """Receive more bytes for :meth:`handshake`; return whether there may be more of them.

        :raises BlockingIOError: there are none now.
        :raises EOFError: the peer has sent EOF.
        """
        chunk = self._raw.recv(HANDSHAKE_CHUNK)
        if not chunk:
            raise EOFError
        self.engine.feed(chunk)
        return len(chunk) == HANDSHAKE_CHUNK

    # ---- receiving

    def recv(self, size: int) -> bytes:
        engine = self.engine
        drained = self._pending = self.stuck = self.incomplete = False
        try:
            plaintext = engine.read(size) if engine.has_input else None
            if plaintext is None and not engine.has_input:
                chunk = self._raw.recv(_CIPHERTEXT)
                drained = len(chunk) < _CIPHERTEXT
                if chunk:
                    plaintext = engine.decrypt(chunk, size)
                else:
                    self._input_ended()
                    plaintext = engine.read(size)
        except Truncated:
            self._truncated = True
            return b""
        finally:
            if engine.may_answer:
                self._send_answers()
        self._pending = engine.has_input or not drained
        if plaintext is None:
            self.incomplete = True
            raise would_block()
        return plaintext

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:
        engine = self.engine
        drained = self._pending = self.stuck = self.incomplete = False
        try:
            with memoryview(buffer) as space:
                count = engine.read_into(space) if engine.has_input else None
                if count is None and not engine.has_input:
                    count, drained = self._receive_into(space)
        except Truncated:
            self._truncated = True
            return 0
        finally:
            if engine.may_answer:
                self._send_answers()
        self._pending = engine.has_input or not drained
        if count is None:
            self.incomplete = True
            raise would_block()
        return count

    def _input_ended(self) -> None:
        self._ended = True
        self.engine.feed_end()

    def _send_answers(self) -> None:
        """Send what OpenSSL answers to what was received."""
        self.engine.may_answer = False
        with contextlib.suppress(OSError):  # the next write raises the error as well
            self.stuck = not self.flush()

    def _receive_into(self, space: memoryview) -> tuple[int | None, bool]:
        """Receive ciphertext and decrypt it into ``space``; return how many bytes, and whether there is no more."""
        shared = _shared.pop() if _shared else bytearray(MUCH_CIPHERTEXT)
        size = MUCH_CIPHERTEXT if len(space) > MUCH_CIPHERTEXT else CIPHERTEXT
        engine = self.engine
        try:
            with memoryview(shared) as all_of_it, all_of_it[:size] as part:
                received = self._raw.recv_into(part)
                with part[:received] as ciphertext:
                    if received:
                        engine.feed(ciphertext)
                    else:
                        self._input_ended()
                    try:
                        return engine.read_into(space), received < CIPHERTEXT
                    finally:
                        engine.copy_input()
        finally:
            _shared.append(shared)

    def pending(self) -> bool:
        return self._pending

    def partial(self) -> int:
        return self.engine.undecrypted

    def has_input(self) -> bool:
        return self.engine.has_input or self.below.has_input()

    def eof_reason(self) -> CloseReason:
        return CloseReason.TRUNCATED if self._truncated else CloseReason.EOF

    # ---- sending

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send ``data``. It begins with what an earlier call has encrypted and not reported as sent, if any."""
        size, sent = len(data), 0
        while True:
            if not self._accepted:
                if self._ciphertext is not None and not self.flush():
                    return sent
                chunk = memoryview(data)[sent : sent + _PLAINTEXT] if sent or size > _PLAINTEXT else data
                self.engine.write(chunk)
                self._accepted = len(chunk)
            if not self.flush():
                return sent
            sent += self._accepted
            self._accepted = 0
            if sent >= size or sent >= SENT_AT_ONCE:
                return sent

    def sendfile(self, region: FileRegion, size: int) -> int | None:
        if self._accepted:  # ciphertext goes first, even if the file has become shorter since
            return self.send(b"")
        return Transport.sendfile(self, region, size)  # the kernel does not know the key

    def flush(self) -> bool:
        waiting = self._ciphertext
        ciphertext = self.engine.take_outgoing() if waiting is None else waiting
        while ciphertext:
            try:
                sent = self._raw.send(ciphertext)
            except BlockingIOError:
                sent = 0
            if sent < len(ciphertext):
                self._ciphertext = memoryview(ciphertext)[sent:]
                return False
            if waiting is None:
                break  # take_outgoing gave everything: no second call
            waiting = self._ciphertext = None
            ciphertext = self.engine.take_outgoing()
        return True

    def own_output(self) -> int:
        return self.engine.outgoing.pending + (0 if self._accepted else self._unsent_ciphertext())

    def _unsent_ciphertext(self) -> int:
        return 0 if self._ciphertext is None else len(self._ciphertext)

    def committed(self) -> int:
        return self._accepted  # after a part of a record the peer could not read what follows

    def unsent(self) -> int:
        return self.below.unsent()

    def untaken(self) -> int:
        # A write counts as sent only when all of its ciphertext is sent, so subtract what is sent already.
        return self.below.untaken() - self._accepted + self._unsent_ciphertext()

    # ---- closing

    def shutdown_write(self) -> bool:
        return self.send_close_notify() and self.below.shutdown_write()

    def send_close_notify(self) -> bool:
        if self._silent or not self.handshaken:
            return True
        if not self._close_notify_made:
            self._close_notify_made = True
            self.engine.close()
        return self.flush()

    def reset(self) -> None:
        self._silent = True
        self.below.reset()

    def leave_silently(self) -> None:
        self._silent = True

    def fileno(self) -> int:
        return self.below.fileno()

    def error(self) -> Exception | None:
        return self.below.error()

    def detach(self) -> None:
        self.below.detach()

    def close(self) -> None:
        if not (self._silent or self._ended):
            # Session tickets: a client that only writes never reads them, and closing with unread bytes sends a reset.
            with contextlib.suppress(OSError):  # there are none, or the peer is gone
                self._raw.recv(TICKETS)
        self.below.close()


def _acknowledge(sock: socket.socket) -> None:
    """Make the kernel acknowledge at once what was received.

    Session tickets would carry the acknowledgement, but they are held back. A client with Nagle's algorithm would keep
    its first request until the kernel's delayed acknowledgement, 40 ms later.
    """
    if _QUICKACK is not None:
        with contextlib.suppress(OSError):  # not a TCP socket, or the peer is gone
            sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)


_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
