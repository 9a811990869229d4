"""The TLS handshake of a stream: it replaces the socket's transport by one with TLS.

The handshake is a part of connecting: until it is done, reads and writes wait as they do for a connection.
"""

import logging
import ssl
from asyncio import Future, TimerHandle
from contextvars import Context
from typing import Any, Self, cast

from ..errors import CloseReason, of_stream, reason_for, without_frames
from ..options import HANDSHAKE_TIMEOUT
from ..runtime.contexts import run_for
from ..runtime.futures import set_result
from ..sansio.buffers import WriteBuffer
from .core import fail
from .lifecycle import BaseIOStream
from .readiness import HANGUP, READABLE, WRITABLE
from .sockets import SocketStream
from .state import CLOSED
from .tlssocket import TLSSocket
from .transports.socket import SocketTransport
from .transports.tls import TLSTransport

HANDSHAKE_TURNS = 4
"""Receives for a handshake before other streams have their turn."""

default_timeout: float | None = HANDSHAKE_TIMEOUT
"""Seconds for a handshake by ``start_tls()`` on a stream without a server. `iostreamsrv.tornado.install` sets it."""


class TLSStream(SocketStream):
    """`SSLIOStream` without its constructor."""

    __slots__ = ("_context", "_handshake_timer", "_server_hostname", "_tls", "_waiting_for_handshake")

    def _prepare(self, context: ssl.SSLContext) -> None:
        """Set the fields, before the handshake has begun."""
        self._context = context
        self._server_hostname: str | None = None
        self._tls: TLSTransport | None = None  # once the handshake has begun
        self._handshake_timer: TimerHandle | None = None
        self._waiting_for_handshake: list[Future[Self]] | None = None

    # ---- the handshake

    def connect(self, address: Any, server_hostname: str | None = None) -> "Future[Self]":
        """Connect the socket and do the handshake; the future gives the stream itself.

        :param address: as for `socket.socket.connect`.
        :param server_hostname: the name that the server's certificate must have; it is also sent to the server (SNI).
        :raises ssl.SSLError: from the future; the handshake failed, often because of the server's certificate.
        :raises StreamClosedError: from the future; the connect failed, or the connection was closed.
        """
        self._server_hostname = server_hostname
        return SocketStream.connect(self, address)

    def _established(self, events: int) -> None:
        self._recv_until_eagain |= events & HANGUP
        self._readable = events != WRITABLE  # a server that speaks first does not speak TLS
        self._begin_handshake(False, None)

    def _begin_handshake(self, server_side: bool, timeout: float | None, received: bytes = b"") -> None:
        """Start TLS on a connected socket; reads and writes wait until the handshake is done.

        :param received: bytes of the handshake that were received already.
        """
        if self._connect_future is None:
            self._connect_future = Future(loop=self._hub.loop)
        if self._output is None:
            self._output = WriteBuffer()
        # A client's first message follows its connect at once, so it is usually there. Its server's answer is not; and
        # what has arrived before the socket is watched will be reported.
        self._readable = server_side or (self._readable and self._reads_watched)
        below = self._transport
        assert isinstance(below, SocketTransport)
        try:
            tls = self._tls = TLSTransport(below, self._context, server_side, self._server_hostname, received)
        except (OSError, ValueError) as error:  # ValueError: no host name was given to check
            return self._handshake_failed(error)
        self._socket = cast(Any, TLSSocket(below.socket, tls.engine.object))
        self._attach(tls)
        if timeout is not None:
            self._handshake_timer = self._hub.loop.call_later(timeout, self._handshake_timed_out, context=Context())
        self._continue_handshake()

    def wait_for_handshake(self) -> "Future[Self]":
        """A future of the stream itself, done after the handshake. May be called several times.

        :raises ssl.SSLError: from the future, if the handshake fails.
        :raises StreamClosedError: from the future, if the connection is closed before it is done.
        """
        self._hub.check()
        future: Future[Self] = Future(loop=self._hub.loop)
        if self._is_handshaken():
            future.set_result(self)
        elif self._phase == CLOSED:
            fail(future, self._handshake_error())
        else:
            self._waiting_for_handshake = [*(self._waiting_for_handshake or ()), future]
        return future

    def _is_handshaken(self) -> bool:
        return self._tls is not None and self._tls.handshaken

    def _dispatch_not_open(self, events: int) -> None:
        if self._tls is None or self._phase == CLOSED:
            return BaseIOStream._dispatch_not_open(self, events)
        self._recv_until_eagain |= events & HANGUP
        self._readable = self._readable or events != WRITABLE
        return self._continue_handshake()

    def _continue_handshake(self) -> None:
        try:
            done = self._advance_handshake()
        except EOFError:
            self.terminate(CloseReason.EOF)
        except OSError as error:
            self._handshake_failed(error)
        else:
            if done:
                self._handshake_done()
            elif not self._reads_watched and self._phase != CLOSED:
                self._reads_watched = self._hub.watch_reads(self)

    def _advance_handshake(self) -> bool:
        """Continue with what has arrived; return whether the handshake is done.

        After a flight the peer's answer takes at least a round trip. So nothing is received then: an event will report
        it, unless more has arrived than was received.
        """
        tls = self._tls
        assert tls is not None
        for _ in range(HANDSHAKE_TURNS):
            if tls.engine.has_input or tls.stuck:
                try:
                    done = run_for(self, tls.handshake) if tls.engine.by_name else tls.handshake()  # for sni_callback
                finally:
                    if tls.stuck:
                        self._reads_watched = self._hub.watch_writes(self) or self._reads_watched
                if done:
                    return True
                if tls.engine.has_input:
                    break
            if not self._readable:
                return False
            try:
                self._readable = tls.receive_handshake() or self._recv_until_eagain != 0
            except BlockingIOError:
                self._readable = False
                return False
            self._received_at = self._hub.time()
        self._hub.dispatch_again(self)
        return False

    def _handshake_done(self) -> None:
        self._stop_handshake_timer()
        waiting, self._waiting_for_handshake = self._waiting_for_handshake, None
        for future in waiting or ():
            set_result(future, self)
        tls = self._tls
        assert tls is not None
        # Bytes may have come behind the handshake, but not the answer to what has just been sent: an event reports it.
        waits = tls.spoke_last and self._reads_watched and not (self._readable or tls.engine.has_input)
        self._finish_connecting(0 if waits else READABLE)

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

    def _forget_all(self) -> None:
        self._waiting_for_handshake = None
        SocketStream._forget_all(self)
