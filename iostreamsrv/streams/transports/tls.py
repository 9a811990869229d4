"""TLS on a socket as a transport.

The engine of :mod:`iostreamsrv.sansio.tls` sits between the socket and the stream: ``recv`` gives plaintext, ``send``
takes it. Limits, counters, corks and futures of the stream are those of plaintext.

**Sending.** What is encrypted must be sent, whole and in order. So data is encrypted when it is its turn, and counts as
sent when the kernel has the last byte of its ciphertext. Until then ``send`` reports nothing sent; the stream's queue
keeps the plaintext, gives it again, and it is not encrypted a second time.

**Receiving.** A receive is as large as the socket gives; what is decrypted of it is as much as the caller wants. That
the socket is empty says nothing yet: records may wait in the engine. One receive, and a bounded number of records, are
all that one ``recv`` does, also when they bring no data: then it raises `BlockingIOError`, and
``incomplete`` says so.

**What TLS sends by itself** (alerts, answers to a new key) leaves with the ``recv`` that caused it. What of it the
kernel does not take is :meth:`~TLSTransport.own_output`: the stream counts it as queued, so that its write timeout
holds for it, and receives nothing more while there is much of it.
"""

import contextlib
import errno
import os
import socket
import ssl

from ...errors import CloseReason
from ...sansio.tls import TLSEngine, Truncated
from ..file_region import FileRegion
from .base import Transport
from .socket import SocketTransport

CIPHERTEXT = 4 * (16384 + 22)
"""Bytes received at once: four full records of TLS 1.3, so that a fast peer's chunks are not cut short by the end of
one. Twice as much would have malloc map and unmap memory each time."""

PLAINTEXT = 1 << 16
"""Bytes encrypted at once: what a send may have to leave behind in memory, while the plaintext is kept as well."""

SENT_AT_ONCE = 4 * PLAINTEXT
"""Bytes of one write that are sent before a look at the clock, however fast the peer takes them."""

HANDSHAKE_CHUNK = 16384
"""Bytes received at once during the handshake."""

NOTHING = memoryview(b"")


class TLSTransport(Transport):
    """TLS on ``below``, whose handshake is still to be done: :meth:`handshake`.

    :param below: connected.
    :param received: what has been received from it already.
    :raises ssl.SSLError: the context cannot be used.
    :raises ValueError: there is no host name to check.

    :ivar below: the socket's transport.
    :ivar engine: encrypts and decrypts.
    :ivar handshaken: whether the handshake is done.
    """

    __slots__ = (
        "_accepted",
        "_ciphertext",
        "_close_notify_made",
        "_pending",
        "_raw",
        "_silent",
        "_truncated",
        "below",
        "engine",
        "handshaken",
        "incomplete",
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
        self.engine.feed(received)
        self.below = below
        self._raw = below.socket
        self.handshaken = False
        self.incomplete = False
        self.stuck = False
        self._ciphertext: bytes | memoryview = NOTHING  # encrypted, and not sent
        self._accepted = 0  # bytes of plaintext that are in it
        self._pending = False
        self._truncated = False  # the peer's side ended without a close_notify
        self._close_notify_made = False
        self._silent = False  # the peer is not told of the end

    # ---- the handshake

    def handshake(self) -> bool:
        """Do what can be done of the handshake with what was received; whether it is done.

        :raises ssl.SSLError: it failed; the peer was told why, as far as there was room.
        """
        try:
            self.handshaken = self.engine.handshake()
        finally:
            # Also if it failed: then it is what tells the peer so.
            self.stuck = not self.flush()
        if self.handshaken and self.engine.holds_tickets:
            _acknowledge(self._raw)
        return self.handshaken

    def receive_handshake(self) -> None:
        """Receive what :meth:`handshake` goes on with.

        :raises BlockingIOError: there is nothing now.
        :raises EOFError: the peer has ended its side.
        """
        chunk = self._raw.recv(HANDSHAKE_CHUNK)
        if not chunk:
            raise EOFError
        self.engine.feed(chunk)

    # ---- receiving

    def recv(self, size: int) -> bytes:
        engine = self.engine
        drained = self._pending = self.stuck = self.incomplete = False
        try:
            plaintext = engine.read(size) if engine.has_input else None
            if plaintext is None and not engine.has_input:
                chunk = self._raw.recv(CIPHERTEXT)
                drained = len(chunk) < CIPHERTEXT
                if chunk:
                    plaintext = engine.decrypt(chunk, size)
                else:
                    engine.feed_end()
                    plaintext = engine.read(size)
        except Truncated:
            self._truncated = True
            return b""
        finally:
            if engine.outgoing.pending:
                with contextlib.suppress(OSError):  # a send that fails says so at the next write
                    self.stuck = not self.flush()
        self._pending = engine.has_input or not drained
        if plaintext is None:
            self.incomplete = True
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return plaintext

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
        """Send ``data``, which begins with what was encrypted before, if that has not been reported sent."""
        sent = 0
        while True:
            if not self._accepted:
                if self._ciphertext and not self.flush():
                    return sent
                chunk = memoryview(data)[sent : sent + PLAINTEXT] if sent or len(data) > PLAINTEXT else data
                self.engine.write(chunk)
                self._accepted = len(chunk)
            if not self.flush():
                return sent
            sent += self._accepted
            self._accepted = 0
            if sent >= len(data) or sent >= SENT_AT_ONCE:
                return sent

    def sendfile(self, region: FileRegion, size: int) -> int | None:
        if self._accepted:  # what is encrypted goes first, even if the file has become shorter since
            return self.send(b"")
        return Transport.sendfile(self, region, size)  # the kernel does not know the key

    def flush(self) -> bool:
        while ciphertext := self._ciphertext or self.engine.take_outgoing():
            try:
                sent = self._raw.send(ciphertext)
            except BlockingIOError:
                sent = 0
            if sent < len(ciphertext):
                self._ciphertext = memoryview(ciphertext)[sent:]
                return False
            if not self._ciphertext:
                break  # it was all there is
            self._ciphertext = NOTHING
        return True

    def own_output(self) -> int:
        return self.engine.outgoing.pending + (0 if self._accepted else len(self._ciphertext))

    def committed(self) -> int:
        return self._accepted  # half a record would break the rest

    def unsent(self) -> int:
        return self.below.unsent()

    def untaken(self) -> int:
        # Of a large write all is counted at its end only.
        return self.below.untaken() - self._accepted + len(self._ciphertext)

    # ---- the end

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
        if not self._silent:
            # Session tickets, which a client that only writes never reads: to close with them unread would be a reset.
            with contextlib.suppress(OSError):  # there are none, or the peer is gone
                self._raw.recv(CIPHERTEXT)
        self.below.close()


def _acknowledge(sock: socket.socket) -> None:
    """Have the kernel acknowledge at once what was received.

    The tickets that are held back would have carried the acknowledgement. Without it a client with Nagle's algorithm
    keeps its first request until the kernel's delayed one, 40 ms later.
    """
    if _QUICKACK is not None:
        with contextlib.suppress(OSError):  # no TCP socket, or the peer is gone
            sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)


_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
