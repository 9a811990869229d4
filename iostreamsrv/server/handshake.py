"""What a client goes through before its handler: the PROXY header, and the TLS handshake."""

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any

from ..certs.certificates import Certificates
from ..errors import CloseReason, StreamClosedError
from ..events import Event, Events
from ..iostream import IOStream, SSLIOStream
from ..net.trusted_proxies import TrustedNetworks
from ..runtime.addresses import show
from ..sansio.proxy import ProxyError, parse_header
from ..streams.served import loop_of
from .deadlines import Deadlines


class Greeter:
    """Greets the clients of one listener.

    :param certificates: None for plain connections.
    :param trusted: from whom a PROXY header is wanted; None if it is from nobody.
    :param deadlines: the clock of the server, for header and handshake.
    :param known: is asked as soon as a client's address is known, which a PROXY header may have to tell: whether the
        client may go on. If not, it has been dealt with.
    :param serve: is given those who pass.
    """

    def __init__(
        self,
        certificates: Certificates | None,
        trusted: TrustedNetworks | None,
        deadlines: Deadlines,
        events: Events,
        known: Callable[[IOStream, Any], bool],
        serve: Callable[[IOStream, Any], None],
    ) -> None:
        self.certificates = certificates
        self._trusted = trusted
        self._deadlines = deadlines
        self._events = events
        self._known = known
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()

    def greet(self, stream: IOStream, address: Any) -> None:
        """``address`` is that of the connection: of the client, or of a proxy."""
        if self._trusted is None:
            self._go_on(stream, address)
            return
        seconds = self._deadlines.options.proxy_header_timeout
        self._deadlines.begin(stream, CloseReason.PROXY_ERROR, "read", seconds)
        if address not in self._trusted:
            self._refuse(stream, address, "a connection that is not from a trusted proxy", logging.INFO)
        else:
            task = loop_of(stream).create_task(self._read_header(stream, address), context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard, context=Context())

    @property
    def greeting(self) -> bool:
        """Whether headers are being read."""
        return bool(self._tasks)

    def cancel(self) -> list["asyncio.Task[None]"]:
        """Stop reading headers; the tasks that did."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        return tasks

    async def _read_header(self, stream: IOStream, address: Any) -> None:
        try:
            info = await stream.read_until_match(parse_header)
        except ProxyError as error:
            self._refuse(stream, address, str(error), logging.WARNING)
        except StreamClosedError as error:
            if error.reason is CloseReason.PROXY_ERROR:  # it was late
                self._complain(stream, address, str(error.real_error), logging.WARNING)
            stream.close()
        else:
            self._deadlines.end(stream)
            stream.set_proxied(info)
            self._go_on(stream, address if info.source is None else info.source)

    def _refuse(self, stream: IOStream, address: Any, why: str, level: int) -> None:
        self._complain(stream, address, why, level)
        stream.terminate(CloseReason.PROXY_ERROR)

    def _complain(self, stream: IOStream, address: Any, why: str, level: int) -> None:
        """At WARNING of a proxy that is trusted, and so is set up wrongly; strangers are nothing special."""
        text = f"PROXY header of {client(stream)}: {why}"
        self._events.emit(Event("error", text, level, stream, address, CloseReason.PROXY_ERROR))

    def _go_on(self, stream: IOStream, address: Any) -> None:
        if not self._known(stream, address):
            return
        if self.certificates is None:
            return self._serve(stream, address)
        seconds = self._deadlines.options.handshake_timeout
        self._deadlines.begin(stream, CloseReason.HANDSHAKE_TIMEOUT, "handshake", seconds)
        handshake = stream.start_tls(True, self.certificates, timeout=None)
        handshake.add_done_callback(partial(self._secured, address), context=Context())

    def _secured(self, address: Any, handshake: "asyncio.Future[SSLIOStream]") -> None:
        if handshake.cancelled() or handshake.exception() is not None:
            return
        stream = handshake.result()
        if not stream.closed():  # since then
            self._deadlines.end(stream)
            self._serve(stream, address)


def client(stream: IOStream) -> str:
    """A client, for people; one of a Unix socket has no address, and is named after the one it came by."""
    return show(stream.remote_address) or f"a client of {show(stream.local_address or 'a Unix socket')}"
