"""A socket's stream under TLS.

The engine of :mod:`iostreamsrv.sansio.tls` sits between the socket and everything a stream does: ``_receive`` gives
plaintext, ``write_to_fd`` takes it. Limits, counters, corks and futures are those of plaintext.

**Writing.** What is encrypted must be sent, whole and in order. So a write is encrypted when it is its turn, and counts
as sent when the kernel has the last byte of its ciphertext; until then ``write_to_fd`` reports nothing sent, and the
queue holds on to the plaintext, without ever encrypting it again.

**Reading.** A receive is as large as the socket gives; what is decrypted of it is as much as the read wants. That the
socket is empty says nothing yet: records may wait in the engine. One receive, and a bounded number of records, are all
that a read does at once, also when no byte comes of it: then the stream is dispatched again.

**What TLS has to say by itself** (alerts, answers to a new key) counts as queued, so that the write timeout holds for
it. Only reading brings it about: while more than a little of it is stuck nothing is received.

**The handshake** is a part of connecting: until it is done reads and writes wait as they do for a connection.
"""

import contextlib
import errno
import logging
import os
import socket
import ssl
from asyncio import Future, TimerHandle
from contextvars import Context
from types import MethodType
from typing import Any, Self, cast

from ..errors import CloseReason, of_stream, reason_for, without_frames
from ..runtime.contexts import run_for
from ..runtime.futures import set_result
from ..sansio.buffers import WriteBuffer
from ..sansio.tls import TLSEngine, Truncated
from .core import fail
from .file_region import FileRegion
from .hub import HANGUP
from .lifecycle import BaseIOStream
from .sockets import SocketStream, has_bytes

CIPHERTEXT = 4 * (16384 + 22)
"""Bytes received at once: four full records of TLS 1.3, so that a fast peer's chunks are not cut short by the end of
one. Twice as much would have malloc map and unmap memory each time."""

PLAINTEXT = 1 << 16
"""Bytes encrypted at once: what a send may have to leave behind in memory, while the plaintext is kept as well."""

SENT_AT_ONCE = 4 * PLAINTEXT
"""Bytes of one write that are sent before a look at the clock, however fast the peer takes them."""

HANDSHAKE_CHUNK = 16384
"""Bytes received at once during the handshake."""

HANDSHAKE_TURNS = 4
"""Receives of a handshake after which others have their turn."""

OWN_OUTPUT = 1024
"""Bytes of TLS's own output that may be stuck, behind what was written perhaps, while reading goes on: some dozens of
answers. A peer who sends all before it reads must not be stopped by one of them."""

NO_GOODBYE = frozenset({CloseReason.ABORTED, CloseReason.RESET, CloseReason.TLS_ERROR})
"""Ends in which the peer is not told of the end: it is gone, or is to notice."""

NOTHING = memoryview(b"")


class TLSSocket:
    """What ``stream.socket`` is under TLS: what one may ask a socket, and an `ssl.SSLSocket` beside it.

    There is nothing that would send or receive past TLS, or end the connection behind the stream's back: the error for
    it names the stream's method.
    """

    def __init__(self, raw: Any, tls: ssl.SSLObject) -> None:
        self._raw = raw
        self._tls = tls

    def __getattr__(self, name: str) -> Any:
        if name in _OF_TLS:
            return getattr(self._tls, name)
        if name in _OF_SOCKET:
            return getattr(self._raw, name)
        instead = _INSTEAD.get(name)
        hint = f": it would bypass TLS, use the stream's {instead}" if instead else ""
        raise AttributeError(f"the socket of a stream under TLS has no {name!r}{hint}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._tls.version()} over {self._raw!r}>"


_OF_SOCKET = frozenset(
    {
        "family",
        "fileno",
        "get_inheritable",
        "getblocking",
        "getpeername",
        "getsockname",
        "getsockopt",
        "gettimeout",
        "proto",
        "set_inheritable",
        "setsockopt",
        "timeout",
        "type",
    }
)

_OF_TLS = frozenset(
    {
        "cipher",
        "compression",
        "context",
        "get_channel_binding",
        "get_unverified_chain",
        "get_verified_chain",
        "getpeercert",
        "pending",
        "selected_alpn_protocol",
        "selected_npn_protocol",
        "server_hostname",
        "server_side",
        "session",
        "session_reused",
        "shared_ciphers",
        "version",
    }
)

_READS = "read_bytes() or another of its reads"
_INSTEAD = {
    "close": "close() or aclose()",
    "connect": "connect()",
    "connect_ex": "connect()",
    "detach": "close() or aclose()",
    "do_handshake": "wait_for_handshake()",
    "dup": "methods only",
    "makefile": "read and write methods",
    "read": _READS,
    "recv": _READS,
    "recv_into": "read_into()",
    "recvfrom": _READS,
    "recvfrom_into": "read_into()",
    "recvmsg": _READS,
    "recvmsg_into": "read_into()",
    "send": "write()",
    "sendall": "write()",
    "sendfile": "sendfile()",
    "sendmsg": "write()",
    "sendmsg_afalg": "write()",
    "sendto": "write()",
    "setblocking": "methods, which never block",
    "settimeout": "timeouts (timeout=, set_timeouts())",
    "share": "methods only",
    "shutdown": "send_eof() or abort()",
    "unwrap": "send_eof() or aclose()",
    "write": "write()",
}
"""What there is instead of what a socket has."""


class TLSStream(SocketStream):
    """What `SSLIOStream` is, but for what its constructor takes."""

    __slots__ = (
        "_accepted",
        "_ciphertext",
        "_context",
        "_cut_short",
        "_drained",
        "_handshake_timer",
        "_handshaken",
        "_held_back",
        "_raw",
        "_said_goodbye",
        "_server_hostname",
        "_tls",
        "_truncated",
        "_waiting_for_handshake",
    )

    def _prepare(self, context: ssl.SSLContext) -> None:
        """The fields, for a connection that is still to be made."""
        self._context = context
        self._server_hostname: str | None = None
        self._raw = self.socket
        self._tls: TLSEngine | None = None
        self._ciphertext = NOTHING  # encrypted, and not sent
        self._accepted = 0  # bytes of plaintext that are in it
        self._held_back = False  # nothing is received until TLS's own output has left
        self._drained = False  # the last receive emptied the socket
        self._truncated = False  # the peer's side ended without its word
        self._said_goodbye = False
        self._cut_short = False  # the peer is to notice that something is missing
        self._handshaken = False
        self._handshake_timer: TimerHandle | None = None
        self._waiting_for_handshake: list[Future[Self]] | None = None

    # ---- the handshake

    def connect(self, address: Any, server_hostname: str | None = None) -> "Future[Self]":
        """Connect the socket and do the handshake; the future gives the stream itself.

        :param address: as for `socket.socket.connect`.
        :param server_hostname: the name that the server's certificate is to have, and that it is told.
        :raises ssl.SSLError: from the future; the handshake failed, often for the server's certificate.
        :raises StreamClosedError: from the future; there was no connection, or it ended.
        """
        self._server_hostname = server_hostname
        return SocketStream.connect(self, address)

    def _established(self, events: int) -> None:
        self._begin_handshake(False, None)

    def _begin_handshake(self, server_side: bool, timeout: float | None, received: bytes = b"") -> None:
        """Begin with TLS on a socket that is connected; reads and writes wait until the handshake is done.

        :param received: what came of it already.
        """
        if self._connect_future is None:
            self._connect_future = Future(loop=self._hub.loop)
        if self._write_buffer is None:
            self._write_buffer = WriteBuffer()
        self._readable = False
        try:
            self._tls = TLSEngine(self._context, server_side, self._server_hostname)
        except (OSError, ValueError) as error:  # ValueError: there is no host name to check
            return self._handshake_failed(error)
        self.socket = cast(Any, TLSSocket(self._raw, self._tls.object))
        self._tls.feed(received)
        if timeout is not None:
            self._handshake_timer = self._hub.loop.call_later(timeout, self._handshake_timed_out, context=Context())
        self._go_on_with_handshake()

    def wait_for_handshake(self) -> "Future[Self]":
        """The stream itself, once the handshake is done. May be asked for again, and by several at once.

        :raises ssl.SSLError: from the future, when it fails.
        :raises StreamClosedError: from the future, when the connection ends before.
        """
        future: Future[Self] = Future(loop=self._hub.loop)
        if self._handshaken:
            future.set_result(self)
        elif self._closed:
            fail(future, self._handshake_error())
        else:
            self._waiting_for_handshake = [*(self._waiting_for_handshake or ()), future]
        return future

    def _dispatch_at_the_ends(self, events: int) -> None:
        if self._tls is None or self._closed:
            return BaseIOStream._dispatch_at_the_ends(self, events)
        if events & HANGUP:
            self._hangup |= events & HANGUP
        return self._go_on_with_handshake()

    def _go_on_with_handshake(self) -> None:
        try:
            done = self._advance_handshake()
        except EOFError:
            self.terminate(CloseReason.EOF)
        except OSError as error:
            self._handshake_failed(error)
        else:
            if done:
                self._handshake_done()
            elif not self._reads_watched and not self._closed:
                self._reads_watched = self._hub.watch_reads(self)

    def _advance_handshake(self) -> bool:
        tls = self._tls
        assert tls is not None
        for _ in range(HANDSHAKE_TURNS):
            try:
                done = run_for(self, tls.handshake) if tls.by_name else tls.handshake()  # for the sni_callback
            finally:
                # Also if it failed: then it is what tells the peer so.
                if not self._send_ciphertext():
                    self._reads_watched = self._hub.watch_writes(self) or self._reads_watched
            if done:
                return True
            if tls.has_input:
                break
            try:
                chunk = self._raw.recv(HANDSHAKE_CHUNK)
            except BlockingIOError:
                return False
            if not chunk:
                raise EOFError
            self._received_at = self._hub.time()
            tls.feed(chunk)
        self._hub.dispatch_again(self)
        return False

    def _handshake_done(self) -> None:
        self._stop_handshake_timer()
        self._handshaken = True
        if self._tls is not None and self._tls.holds_tickets:
            _acknowledge(self._raw)
        waiting, self._waiting_for_handshake = self._waiting_for_handshake, None
        for future in waiting or ():
            set_result(future, self)
        SocketStream._established(self, 0)  # bytes may have come behind the handshake

    def _handshake_failed(self, error: Exception) -> None:
        if isinstance(error, ssl.SSLError):
            self._report("error", logging.WARNING, f"SSL Error: {error}", CloseReason.TLS_ERROR, error)
        self.terminate(reason_for(error), without_frames(of_stream(error, self.id)))

    def _handshake_timed_out(self) -> None:
        self._handshake_timer = None
        self.terminate(CloseReason.HANDSHAKE_TIMEOUT)

    def _stop_handshake_timer(self) -> None:
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None

    def _handshake_error(self) -> BaseException:
        return self.error if isinstance(self.error, ssl.SSLError | ValueError) else self._closed_error("handshake")

    def _fail_writes(self) -> None:
        self._stop_handshake_timer()
        waiting, self._waiting_for_handshake = self._waiting_for_handshake, None
        if self._tls is not None and self._connect_future is not None:
            waiting = [self._connect_future, *(waiting or ())]
            self._connect_future = None
        for future in waiting or ():
            fail(future, self._handshake_error())
        SocketStream._fail_writes(self)

    # ---- reading

    def _receive(self, size: int) -> bytes | None:
        method = self.read_from_fd
        if type(method) is MethodType and method.__func__ is _READ_DECRYPTED:
            return self._decrypt(size)
        return BaseIOStream._receive(self, size)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        try:
            plaintext = self._decrypt(len(buf))
        except BlockingIOError:
            return None
        buf[: len(plaintext)] = plaintext
        return len(plaintext)

    def _decrypt(self, size: int) -> bytes:
        tls = self._tls
        if tls is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if self._ciphertext and self._own_output() > OWN_OUTPUT:
            self._held_back = True
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._drained = False
        try:
            plaintext = tls.read(size) if tls.has_input else None
            if plaintext is None and not tls.has_input:
                chunk = self._raw.recv(CIPHERTEXT)
                self._drained = len(chunk) < CIPHERTEXT
                if chunk:
                    plaintext = tls.decrypt(chunk, size)
                else:
                    tls.feed_end()
                    plaintext = tls.read(size)
        except Truncated:
            self._truncated = True
            return b""
        finally:
            if tls.outgoing.pending:
                self._send_own_output()
        self._more_inside = tls.has_input or not self._drained
        if plaintext is None:
            raise self._go_on_later(tls)
        return plaintext

    def _go_on_later(self, tls: TLSEngine) -> BlockingIOError:
        """What has come is no byte for the application: the error that says so."""
        if tls.undecrypted:  # a part of a record; new keys and the like are no sign of life
            self._received_at = self._hub.time()
        if (self._more_inside or self._hangup) and not self._hub.loop.is_closed():
            self._hub.dispatch_again(self)
        return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def receive_progress(self) -> int:
        return self.bytes_read + (0 if self._tls is None else self._tls.undecrypted)

    def read_has_begun(self) -> bool:
        return SocketStream.read_has_begun(self) or (self._tls is not None and self._tls.undecrypted > 0)

    def has_pending_input(self) -> bool:
        return (self._tls is not None and self._tls.has_input) or has_bytes(self._raw)

    def _how_input_ended(self) -> CloseReason:
        return CloseReason.TRUNCATED if self._truncated else CloseReason.EOF

    # ---- writing

    def write_to_fd(self, data: bytes | bytearray | memoryview) -> int:
        """Send ``data``, which begins with what was encrypted before, if that has not been reported sent."""
        assert self._tls is not None
        sent = 0
        while True:
            if not self._accepted:
                if self._ciphertext and not self._send_ciphertext():
                    return sent
                chunk = memoryview(data)[sent : sent + PLAINTEXT] if sent or len(data) > PLAINTEXT else data
                self._tls.write(chunk)
                self._accepted = len(chunk)
            if not self._send_ciphertext():
                return sent
            sent += self._accepted
            self._accepted = 0
            if sent >= len(data) or sent >= SENT_AT_ONCE:
                return sent

    def send_progress(self) -> int:
        # Of a large write all is counted at its end only.
        return SocketStream.send_progress(self) + self._accepted - len(self._ciphertext)

    def _send_ciphertext(self) -> bool:
        """Send what the engine has for the peer; whether all of it could be."""
        assert self._tls is not None
        while ciphertext := self._ciphertext or self._tls.take_outgoing():
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

    @property
    def queued(self) -> int:
        return super().queued + self._own_output()

    def _own_output(self) -> int:
        """Bytes that nobody has written, and that the kernel has not taken yet: alerts, answers to a new key."""
        if self._tls is None or self._write_buffer is None:
            return 0
        return self._tls.outgoing.pending + (0 if self._accepted else len(self._ciphertext))

    def _send_own_output(self) -> None:
        with contextlib.suppress(OSError):  # a send that fails says so at the next write
            if not self._send_ciphertext() and self._corked is None:  # or else the uncork sees to it
                self._wait_for_room()

    def _flush(self) -> None:
        SocketStream._flush(self)
        if self._held_back and not self._closed and self._own_output() <= OWN_OUTPUT:
            self._held_back = False
            self._hub.dispatch_again(self)

    def _sendfile(self, region: FileRegion, size: int) -> int | None:
        if self._accepted:  # what is encrypted goes first, even if the file has become shorter since
            return self.write_to_fd(b"")
        return BaseIOStream._sendfile(self, region, size)  # the kernel does not know the key

    _file_chunk = BaseIOStream._file_chunk

    # ---- the ends

    def _keep_what_is_owed(self) -> None:
        self._owed = max(self._owed, self.bytes_written + self._accepted)  # half a record would break the rest
        SocketStream._keep_what_is_owed(self)

    def _more_to_send(self) -> bool:
        try:
            return self._tls is not None and not self._send_ciphertext()
        except OSError as error:
            self._send_failed(error)
            return False

    def _shutdown_writes(self) -> None:
        if self._send_goodbye():
            self._raw.shutdown(socket.SHUT_WR)
        else:  # _flush goes on with it, and comes back here
            self._wait_for_room()

    def _ask_for_reset(self) -> None:
        self._cut_short = True
        SocketStream._ask_for_reset(self)

    def _leaves_silently(self) -> bool:
        return self._cut_short or self._hub.inherited or self.close_reason in NO_GOODBYE

    def _say_goodbye(self) -> bool:
        if self._leaves_silently():
            return True
        try:
            return self._send_goodbye()
        except OSError:
            return True  # the peer is gone

    def _send_goodbye(self) -> bool:
        if self._tls is None or not self._handshaken:
            return True
        if not self._said_goodbye:
            self._said_goodbye = True
            self._tls.close()
        return self._send_ciphertext()

    def _forget_all(self) -> None:
        self._waiting_for_handshake = None
        SocketStream._forget_all(self)

    def _forget_descriptor(self) -> None:
        self._raw.detach()

    def close_fd(self) -> None:
        if not self._leaves_silently():
            # Session tickets, which nobody reads who only writes: to close with them unread would be a reset.
            with contextlib.suppress(OSError):  # there are none, or the peer is gone
                self._raw.recv(CIPHERTEXT)
        self._raw.close()
        self.socket = cast(Any, None)


def _acknowledge(sock: Any) -> None:
    """Have the kernel acknowledge at once what was received.

    The tickets that are held back would have carried the acknowledgement. Without it a client with Nagle's algorithm
    keeps its first request until the kernel's delayed one, 40 ms later.
    """
    if _QUICKACK is not None:
        with contextlib.suppress(OSError):  # no TCP socket, or the peer is gone
            sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)


_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


_READ_DECRYPTED = TLSStream.read_from_fd
