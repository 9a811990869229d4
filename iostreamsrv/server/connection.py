"""What a client of a server goes through before its handler: PROXY header, admission, TLS handshake.

Only a header is read in a task; what follows a handshake is called at its end. A client without header and handshake
has nothing to wait for: its handler starts as soon as it is accepted, without one of these objects. See
:mod:`iostreamsrv.server.handlers`.

A client counts as *being set up* (`Deadlines.is_armed`) from the accept until its handler is called. If it is closed
before that, ``handle_close`` is not called.
"""

import asyncio
import logging
from collections.abc import Coroutine
from contextvars import Context
from functools import partial
from typing import Any, Protocol

from ..certs.certificates import Certificates
from ..errors import CloseReason, StreamClosedError
from ..events import Event
from ..iostream import IOStream, SSLIOStream
from ..net.trusted_proxies import TrustedNetworks
from ..options import ServerOptions
from ..sansio.proxy import ProxyError, parse_header
from .handlers import Handlers, HandlersOwner, client_name
from .limits import ConnectionLimits


class ConnectionSetup:
    """What the clients of one listener go through before their handler.

    :ivar certificates: for the TLS handshake; None for plain connections.
    :ivar trusted: the proxies that send a PROXY header; None if no header is expected.
    :ivar reading_headers: how many clients' headers are being read.
    """

    def __init__(self, certificates: Certificates | None, trusted: TrustedNetworks | None) -> None:
        self.certificates = certificates
        self.trusted = trusted
        self.reading_headers = 0

    @classmethod
    def of(cls, ssl_options: Any, options: ServerOptions) -> "ConnectionSetup":
        """The setup for TLS options of a listener; None or False for plain connections.

        :raises CertificateError: the options are unusable.
        """
        certificates = None if ssl_options is False else ssl_options
        if certificates is not None and not isinstance(certificates, Certificates):
            certificates = Certificates(
                certificates, strict_validity=options.strict_validity, allow_legacy_tls=options.allow_legacy_tls
            )
        networks = options.proxy_protocol
        return cls(certificates, None if networks is None else TrustedNetworks(networks))


class ConnectionOwner(HandlersOwner, Protocol):
    """What a connection uses of its server's `Connections`; see there."""

    handlers: Handlers
    limits: ConnectionLimits
    handshakes: "dict[asyncio.Future[SSLIOStream], None]"

    def admit(self, stream: IOStream, address: Any) -> bool:
        """Whether a client with this address may be served."""

    def set_up(self, serving: Coroutine[Any, Any, None], stream: IOStream) -> None:
        """Run ``serve`` of a connection in a task."""


class Connection:
    """One accepted socket, until its handler is called; see the module.

    :ivar owner: the `Connections` of the server.
    """

    __slots__ = ("_setup", "_stream", "owner")

    def __init__(self, owner: ConnectionOwner, setup: ConnectionSetup, stream: IOStream) -> None:
        self.owner = owner
        self._setup = setup
        self._stream = stream

    def start(self, address: Any) -> None:
        """Begin with the client, whose header or handshake is still to come. A task reads the header.

        Steps that need no waiting are done within the accept: this client must be counted before the next one is
        accepted, and no stream in ``server.streams`` may send before its TLS has started.

        :param address: the address of the connection: the client's, or a proxy's.
        """
        if self._setup.trusted is not None:
            self._arm(CloseReason.PROXY_ERROR, "read", self.owner.options.proxy_header_timeout)
            if address not in self._setup.trusted:
                return self._refuse(address, "a connection that is not from a trusted proxy", logging.INFO)
            return self.owner.set_up(self.serve(address), self._stream)
        return self._continue(address)

    async def serve(self, address: Any) -> None:
        """Read the header, and go on with the address that it gives."""
        if await self._read_header(address):
            self._continue(self._stream.remote_address)

    def _continue(self, address: Any) -> None:
        """Do what follows the header, if there was one."""
        if not self.owner.admit(self._stream, address):
            return
        if self._setup.certificates is None:
            return self.owner.handlers.call(self._stream, address)
        handshake = self._start_tls(self._setup.certificates)
        self.owner.handshakes[handshake] = None
        handshake.add_done_callback(partial(self._finish_tls, address), context=Context())

    def _arm(self, reason: CloseReason, operation: Any, seconds: float | None) -> None:
        self.owner.deadlines.arm(self._stream, reason, operation, seconds)

    # ---- the PROXY header

    async def _read_header(self, address: Any) -> bool:
        """Read the header; return whether it is valid and the stream is still open."""
        stream = self._stream
        self._setup.reading_headers += 1
        try:
            info = await stream.read_until_match(parse_header)
        except ProxyError as error:
            self._refuse(address, str(error), logging.WARNING)
            return False
        except StreamClosedError as error:
            if error.reason is CloseReason.PROXY_ERROR:  # it was late
                self._report_header(address, str(error.real_error), logging.WARNING)
            stream.close()
            return False
        except OSError:  # receiving has failed, ENOMEM for example, and the stream is closed
            return False
        finally:
            self._setup.reading_headers -= 1
        if stream.closed():  # since then: by another task, where a read does not step this one at once
            return False
        self.owner.deadlines.disarm(stream)
        stream.set_proxied(info)
        return True

    def _refuse(self, address: Any, why: str, level: int) -> None:
        self._report_header(address, why, level)
        self._stream.terminate(CloseReason.PROXY_ERROR)

    def _report_header(self, address: Any, why: str, level: int) -> None:
        """Emit an event. WARNING: a trusted proxy is configured wrongly. INFO: a connection from any other address."""
        text = f"PROXY header of {client_name(self._stream)}: {why}"
        self.owner.events.emit(Event("error", text, level, self._stream, address, CloseReason.PROXY_ERROR))

    # ---- the TLS handshake

    def _start_tls(self, certificates: Certificates) -> "asyncio.Future[SSLIOStream]":
        self._arm(CloseReason.HANDSHAKE_TIMEOUT, "handshake", self.owner.options.handshake_timeout)
        return self._stream.start_tls(True, certificates, timeout=None)

    def _finish_tls(self, address: Any, handshake: "asyncio.Future[SSLIOStream]") -> None:
        """Call the handler, if the handshake has succeeded, the stream is still open, and no shutdown cancels this."""
        wanted = self.owner.handshakes.pop(handshake, handshake) is None
        if handshake.cancelled() or handshake.exception() is not None or not wanted:
            return
        self._stream = stream = handshake.result()
        if stream.closed():  # since then
            return
        self.owner.limits.handshaken(stream)
        self.owner.deadlines.disarm(stream)
        self.owner.handlers.call(stream, address)
