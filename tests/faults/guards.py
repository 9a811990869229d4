"""What protects ours, switched off one by one: so a probe shows that it would notice.

Guards that an option switches off are not here; see `tests.faults.probes.Guard`.
"""

import logging
from collections.abc import Callable
from typing import Any

from tornado.log import app_log

from iostreamsrv import sansio, streams
from iostreamsrv.certificates import Certificates, Reload
from iostreamsrv.errors import CloseReason
from iostreamsrv.events import Event
from iostreamsrv.iostream import IOStream
from iostreamsrv.net.acceptor import Acceptor
from iostreamsrv.runtime.logs import LogRateLimit
from iostreamsrv.sansio.buffers import ReadBuffer
from iostreamsrv.server.connection import Connection
from iostreamsrv.server.connections import Connections
from iostreamsrv.server.handlers import Handlers
from iostreamsrv.server.listeners import Listeners
from iostreamsrv.streams.handshake import TLSStream
from iostreamsrv.streams.transports.tls import TLSTransport


def accept_without_pause() -> None:
    """Out of descriptors, it tries again at once."""

    def complain(self: Any, error: OSError) -> None:
        self._events.emit(Event("limit", f"accept: {error}", logging.ERROR, error=error))

    Acceptor._back_off = complain  # type: ignore[method-assign]


def shut_down_without_the_queue() -> None:
    """Who waits in the kernel's queue is not accepted any more."""
    Listeners.accept_queued = lambda self: None  # type: ignore[method-assign]


def leave_failed_handlers_open() -> None:
    """The stream of a handler that raised stays open."""

    def complain(self: Any, stream: Any, name: str, error: BaseException) -> None:
        app_log.error("%s of %s failed", name, stream, exc_info=error)

    Handlers._handler_failed = complain  # type: ignore[method-assign]


def search_from_the_start() -> None:
    """How far a fruitless search for a delimiter came is forgotten. Such a search is so fast that it is made ten times,
    for its cost to stand out from the rest.
    """
    take_until = ReadBuffer.take_until

    def forgetful(self: ReadBuffer, needle: bytes, limit: int | None) -> bytes | None:
        for _ in range(9):
            self._needle = None
            if needle in self.contents():
                break
        self._needle = None
        return take_until(self, needle, limit)

    ReadBuffer.take_until = forgetful  # type: ignore[method-assign]


def log_without_limit() -> None:
    """Every line is logged."""
    LogRateLimit.admit = lambda self: 0  # type: ignore[method-assign]


def leave_failed_handshakes_open() -> None:
    """The socket of a handshake that failed stays open."""
    TLSStream._handshake_failed = lambda self, error: None  # type: ignore[method-assign]


def take_every_end_for_an_orderly_one() -> None:
    """An end is an end, whether it was announced or not."""
    TLSTransport.eof_reason = lambda self: CloseReason.EOF  # type: ignore[method-assign]


def reload_in_place() -> None:
    """Certificates are loaded into the context that serves, without a look at them before."""

    def renew(self: Any) -> Reload:
        try:
            self.context.load_cert_chain(*self._ssl_options["certfile"], *self._ssl_options["keyfile"])
        except OSError as error:
            return Reload(logging.ERROR, str(error))
        return Reload(logging.INFO, "reloaded")

    Certificates.renew = renew  # type: ignore[method-assign]


def forget_what_follows_the_header() -> None:
    """What came with a PROXY header is not given to the handshake."""
    start_tls = Connection._start_tls

    def forgetful(self: Any, certificates: Any) -> Any:
        if self._stream.proxy is not None:
            self._stream._buffer.take(self._stream._buffer.size)
        return start_tls(self, certificates)

    Connection._start_tls = forgetful  # type: ignore[method-assign]


def work_off_all_records_at_once() -> None:
    """A read works off all that was received, whatever it is."""
    sansio.tls.WORK = 1 << 30


def receive_while_stuck() -> None:
    """However much TLS has to say itself, and the client does not take, receiving goes on."""
    streams.receiving.OWN_OUTPUT = 1 << 30


def serve_who_asks_again() -> None:
    """A shutdown waits for whoever asks again at once."""
    Connections.close_if_answered = lambda self, stream: False  # type: ignore[method-assign]


def close_at_once() -> None:
    """A close takes 0.3 s, however the client goes on taking what is sent."""
    finish = IOStream._finish_closing

    async def hurried(self: IOStream, timeout: float | None = None) -> None:
        await finish(self, 0.3)

    IOStream._finish_closing = hurried  # type: ignore[method-assign]


def end_in_order_whatever_is_lost() -> None:
    """A stream that is given up ends as any other."""
    IOStream._request_reset = lambda self: None  # type: ignore[method-assign]


def end_before_all_is_read() -> None:
    """A look ahead that meets the end of a client's side takes it for that of the stream, whatever is still unread."""
    receive = IOStream._receive_some
    IOStream._receive_some = lambda self, ahead=False: receive(self)  # type: ignore[method-assign]


SWITCHES: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        accept_without_pause,
        shut_down_without_the_queue,
        leave_failed_handlers_open,
        search_from_the_start,
        log_without_limit,
        leave_failed_handshakes_open,
        take_every_end_for_an_orderly_one,
        reload_in_place,
        forget_what_follows_the_header,
        work_off_all_records_at_once,
        receive_while_stuck,
        serve_who_asks_again,
        close_at_once,
        end_in_order_whatever_is_lost,
        end_before_all_is_read,
    )
}
