"""Connect to servers: :class:`TCPClient`.

Most hosts have several addresses, of IPv4 and IPv6, and some of these may not answer at all. Trying one after the other
could take minutes, so the attempts overlap (RFC 8305, "happy eyeballs"): each has a short head start before the next
one, and the first to succeed ends the others. `_Race` does this with the futures of the streams and one timer, without
a task besides the caller's.
"""

import asyncio
import datetime
import errno
import ipaddress
import os
import socket
import ssl
from asyncio import Future
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import zip_longest
from typing import Any

import tornado.netutil
import tornado.tcpclient

from .certs.cache import context_for_one
from .errors import OptionError, ResolveError, StreamClosedError, StreamTimeoutError, reason_for
from .iostream import IOStream
from .options import check_size, check_timeout
from .runtime.addresses import check_port, show
from .runtime.checks import check_int, is_int, is_number
from .runtime.exports import names_of
from .runtime.kernel import current_kernel
from .runtime.loops import asyncio_loop, current_loop

__all__ = ["TCPClient"]

__getattr__, __dir__ = names_of(tornado.tcpclient, globals())

HEAD_START = 0.25
"""Seconds between the start of an attempt and the next one, unless it fails earlier; the value that RFC 8305
recommends."""

Address = tuple[int, Any]
"""An address from a resolver: the family, and the argument of `socket.socket.connect`."""

Attempt = tuple[IOStream, "Future[IOStream]"]


class TCPClient:
    """Connects to servers by name or by address.

    One client can make any number of connections::

        client = iostreamsrv.TCPClient()
        stream = await client.connect("localhost", 8888, timeout=10)
        await stream.write(b"hello\\n")
        print(await stream.read_until(b"\\n"))
        await stream.aclose()

    :param resolver: an object with the interface of Tornado's resolvers: ``await resolver.resolve(host, port, family)``
        returns a list of (family, address). Default (None): `tornado.netutil.Resolver`, which asks the operating system
        in a thread unless configured otherwise.
    """

    def __init__(self, resolver: tornado.netutil.Resolver | None = None) -> None:
        self.resolver = tornado.netutil.Resolver() if resolver is None else resolver
        self._owns_resolver = resolver is None

    def close(self) -> None:
        """Close the resolver, unless it was passed to the constructor. Connections stay open."""
        if self._owns_resolver:
            self.resolver.close()

    async def connect(
        self,
        host: str,
        port: int | str,
        af: socket.AddressFamily = socket.AF_UNSPEC,
        ssl_options: dict[str, Any] | ssl.SSLContext | None = None,
        max_buffer_size: float | None = None,
        source_ip: str | None = None,
        source_port: int | None = None,
        timeout: float | datetime.timedelta | None = None,
    ) -> IOStream:
        """Connect to a host: to the first of its addresses that answers.

        The addresses are tried in the resolver's order, alternating between IPv4 and IPv6. The next attempt starts when
        one fails, or 250 ms after the last start; earlier attempts continue. When one succeeds, the others are closed.

        :param host: a name or an IP address.
        :param port: 0 to 65535, or the name of a service if the resolver supports names.
        :param af: ``AF_INET`` or ``AF_INET6`` to use only addresses of that family; the default is both.
        :param ssl_options: for TLS: a dict, where {} means defaults that verify the certificate and its ``host``, or an
            `ssl.SSLContext`; see :func:`iostreamsrv.certificates.client_context`. None, the default: no TLS.
        :param max_buffer_size: most unread bytes that the stream holds; default (None) 100 MiB, see `BaseIOStream`.
        :param source_ip: the IP address of this host to connect from; addresses of another family are not tried. None:
            the kernel chooses.
        :param source_port: the port to connect from, 0 to 65535; 0 or None: the kernel chooses.
        :param timeout: seconds or a `datetime.timedelta`, for the whole call; None: only the system's limits. With 0 or
            less nothing is tried, and the call times out at once, as in Tornado.
        :returns: the connected stream.
        :raises OptionError: an argument is invalid.
        :raises ResolveError: the host has no address, or the service name has no port.
        :raises StreamClosedError: all attempts failed. ``real_error`` is an `OSError` with the reason for each address;
            its ``errno`` is that of the first attempt that failed.
        :raises StreamTimeoutError: the ``timeout`` passed. The message names the step; nothing is left open.
        """
        _check_host(host, af)
        port = check_port("port", port)
        _check_source(source_ip, source_port)
        check_size("max_buffer_size", max_buffer_size)
        context = None if ssl_options is None else context_for_one(ssl_options, False)
        seconds = _seconds(timeout)
        if seconds == 0:
            raise StreamTimeoutError("connect", 0, f"Timeout while resolving {host}")
        attempt = partial(self._create_stream, max_buffer_size, source_ip=source_ip, source_port=source_port)
        connecting = self._connect(host, port, af, context, attempt, seconds)
        if seconds is None or _runs_in_task():
            return await connecting
        return await asyncio_loop(current_loop()).create_task(connecting)  # a timeout needs a task

    async def _connect(
        self,
        host: str,
        port: int | str,
        af: socket.AddressFamily,
        context: ssl.SSLContext | None,
        attempt: Callable[[int, Any], Attempt],
        seconds: float | None,
    ) -> IOStream:
        race = stream = None
        try:
            async with nullcontext() if seconds is None else asyncio.timeout(seconds):
                race = _Race(show((host, port)), await self._resolve(host, port, af), attempt)
                stream = await race.winner()
                return stream if context is None else await stream.start_tls(False, context, host, timeout=None)
        except TimeoutError:  # nothing else raises one
            assert seconds is not None
            where = f"while resolving {host}" if race is None else f"while connecting to {race.pending()}"
            if stream is not None:
                where = f"during TLS handshake with {show((host, port))}"
            raise StreamTimeoutError("connect", seconds, f"Timeout {where}") from None

    async def _resolve(self, host: str, port: int | str, family: socket.AddressFamily) -> list[Address]:
        try:
            found = await self.resolver.resolve(host, port, family)  # type: ignore[arg-type]  # by name: some can
            if not found:
                raise socket.gaierror(socket.EAI_NONAME, "it has no address")
        except (OSError, UnicodeError) as error:  # UnicodeError: the name has no encoding in IDNA
            number = getattr(error, "errno", None) or socket.EAI_FAIL
            raise ResolveError(number, f"cannot resolve {show((host, port))}: {_reason(error)}") from error
        return found

    def _create_stream(
        self,
        max_buffer_size: float | None,
        af: int,
        addr: Any,
        source_ip: str | None = None,
        source_port: int | None = None,
    ) -> Attempt:
        """Start to connect to one address. Returns the stream, and the future of its ``connect``."""
        made: Any = current_kernel().socket(af)
        try:
            if source_ip or source_port:
                _bind(made, source_ip, source_port or 0)
            made = IOStream(made, max_buffer_size)
            return made, made.connect(addr)
        except BaseException:
            made.close()
            raise


class _Race:
    """Connects to one of ``addresses``: the first attempt to succeed wins.

    :param target: the host and port for error messages.
    :param attempt: ``attempt(family, address)`` starts an attempt.
    """

    def __init__(self, target: str, addresses: list[Address], attempt: Callable[[int, Any], Attempt]) -> None:
        self._target = target
        self._attempt = attempt
        self._waiting = deque(interleaved(addresses))
        self._running: dict[IOStream, Any] = {}
        self._reasons: list[str] = []
        self._errno = 0
        self._loop = asyncio_loop(current_loop())
        self._timer: asyncio.TimerHandle | None = None
        self._winner: Future[IOStream | None] = self._loop.create_future()

    async def winner(self) -> IOStream:
        """Run the race, and return the stream that was connected first. All others are closed, also after an error.

        :raises StreamClosedError: all attempts failed.
        """
        winner = None
        try:
            self._begin_next()
            winner = await self._winner
        finally:
            self._stop_timer()
            for stream in self._running:
                if stream is not winner:
                    stream.close()
        if winner is None:
            raise self._error()
        return winner

    def pending(self) -> str:
        """The addresses of the attempts in progress, as text."""
        return ", ".join(sorted(map(show, self._running.values())))

    def _begin_next(self) -> None:
        """Start the next attempt, and the timer for the one after it. The race ends if all attempts have failed."""
        self._stop_timer()
        while self._waiting:
            family, address = self._waiting.popleft()
            try:
                stream, connected = self._attempt(family, address)
            except Exception as error:  # the next address may still work
                self._record_failure(address, error)
                continue
            self._running[stream] = address
            connected.add_done_callback(partial(self._ended, stream))
            self._timer = self._loop.call_later(HEAD_START, self._begin_next)
            return
        if not self._running:
            self._winner.set_result(None)

    def _ended(self, stream: IOStream, connected: "Future[IOStream]") -> None:
        error = asyncio.CancelledError("cancelled") if connected.cancelled() else connected.exception()
        if self._winner.done():
            return
        if error is None:
            self._winner.set_result(stream)
            return
        self._record_failure(self._running.pop(stream), error)
        stream.close()
        self._begin_next()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _record_failure(self, address: Any, error: BaseException) -> None:
        shown = show(address)
        reason = _reason(error)
        self._reasons.append(reason if shown == self._target else f"{shown}: {reason}")
        self._errno = self._errno or getattr(error, "errno", None) or 0

    def _error(self) -> StreamClosedError:
        error = OSError(self._errno or errno.EIO, ", ".join(self._reasons), self._target)
        return StreamClosedError(error, "connect", reason_for(error))


def interleaved(addresses: list[Address]) -> list[Address]:
    """The addresses in the order in which to try them: alternating between families, else in the given order."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    return [address for turn in zip_longest(*families.values()) for address in turn if address is not None]


def _bind(connection: socket.socket, ip: str | None, port: int) -> None:
    """Bind the source address of a connection; without ``ip``, only its port."""
    shown = show((ip or "*", port))
    if ip is not None and _IP_VERSIONS.get(connection.family) != ipaddress.ip_address(ip).version:
        raise OSError(errno.EAFNOSUPPORT, f"the source {shown} is of another family")
    if port and os.name != "nt":
        # Overlapping attempts use the same port, and recent connections may have used it.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        connection.bind((ip or "", port))
    except OSError as error:
        raise OSError(error.errno, f"cannot bind the source {shown}: {_reason(error)}") from error


_IP_VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}


def _runs_in_task() -> bool:
    """Whether the current code runs in a task: not if a coroutine is stepped by other code, perhaps before a loop runs,
    as Tornado's client allows."""
    loop = asyncio._get_running_loop()
    return loop is not None and asyncio.current_task(loop) is not None


def _check_host(host: object, af: object) -> None:
    if not isinstance(host, str) or not host or "\0" in host:
        raise OptionError("host", host, "must be a host name or an IP address")
    if not is_int(af, 0):
        raise OptionError("af", af, "must be socket.AF_INET, AF_INET6 or AF_UNSPEC")


def _check_source(ip: object, port: object) -> None:
    if port is not None:
        check_int("source_port", port, 0, 65535, hint=", or None")
    try:
        if ip is not None:
            ipaddress.ip_address(ip if isinstance(ip, str) else "")  # which would also accept an integer
    except ValueError:
        raise OptionError("source_ip", ip, "must be an IP address, or None") from None


def _seconds(timeout: float | datetime.timedelta | None) -> float | None:
    if isinstance(timeout, datetime.timedelta):
        timeout = timeout.total_seconds()
    if is_number(timeout) and timeout <= 0:
        return 0.0
    return None if timeout is None else check_timeout("timeout", timeout)


def _reason(error: BaseException) -> str:
    """The reason of an error as text, without its number."""
    cause = getattr(error, "real_error", None) or error
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
