"""What a client goes through before its handler: the PROXY header, and the TLS handshake."""

import asyncio
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

from tornado.log import gen_log

from .addresses import show
from .certificates import Certificates
from .errors import CloseReason, StreamClosedError, StreamTimeoutError
from .iostream import IOStream, SSLIOStream
from .loglimit import LogLimit
from .networks import TrustedNetworks
from .options import ServerOptions
from .sansio.proxy import ProxyError, parse_header

Serve = Callable[[IOStream, Any], None]


class Greeter:
    """Greets the clients of one listener, and hands those who pass to ``serve(stream, address)``.

    :param certificates: None for plain connections.
    :param trusted: from whom a PROXY header is wanted; None if it is from nobody.
    """

    def __init__(
        self,
        options: ServerOptions,
        certificates: Certificates | None,
        trusted: TrustedNetworks | None,
        serve: Serve,
    ) -> None:
        self.certificates = certificates
        self._options = options
        self._trusted = trusted
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()
        self._log_tls = LogLimit(gen_log.warning)
        self._log_header = LogLimit(gen_log.info)

    def greet(self, stream: IOStream, address: Any) -> None:
        """``address`` is that of the connection: of the client, or of a proxy."""
        if self._trusted is None:
            self._secure(stream, address)
        elif address not in self._trusted:
            self._refuse(stream, "a connection that is not from a trusted proxy")
        else:
            task = stream.io_loop.asyncio_loop.create_task(self._read_header(stream, address))  # type: ignore[attr-defined]
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def cancel(self) -> list["asyncio.Task[None]"]:
        """Stop reading headers; the tasks that did."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        return tasks

    async def _read_header(self, stream: IOStream, address: Any) -> None:
        try:
            info = await stream.read_until_match(parse_header, timeout=self._options.proxy_header_timeout)
        except (ProxyError, StreamTimeoutError) as error:
            self._refuse(stream, str(error))
        except StreamClosedError:
            stream.close()
        else:
            stream.proxy = info
            if info.source is not None:  # else it is the proxy itself that has come
                stream._remote_address = address = info.source
            self._secure(stream, address)

    def _refuse(self, stream: IOStream, why: str) -> None:
        self._log_header("PROXY header of %s: %s", show(stream.remote_address), why)
        stream._close(CloseReason.PROXY_ERROR)

    def _secure(self, stream: IOStream, address: Any) -> None:
        if self.certificates is None:
            return self._serve(stream, address)
        handshake = stream._start_tls(self.certificates.context, True, None, self._options.handshake_timeout)
        handshake.add_done_callback(partial(self._secured, address))

    def _secured(self, address: Any, handshake: "asyncio.Future[SSLIOStream]") -> None:
        if handshake.cancelled():
            return
        error = handshake.exception()
        if error is None:
            self._serve(handshake.result(), address)
        elif isinstance(error, ssl.SSLError):
            self._log_tls("SSL Error on a connection from %s: %s", show(address), error)
