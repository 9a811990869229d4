"""Connections to a server: :class:`TCPClient`.

A host has several addresses as a rule, of IPv4 and of IPv6, and some of them lead nowhere without an error that would
say so. Trying one after the other would have the user wait for minutes, so the attempts overlap (RFC 8305, "happy
eyeballs"): each has a short head start on the next one, and the first to succeed ends the others. `_Race` does this
with the futures of the streams and one timer; the only task is that of the caller.
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

__all__ = ["TCPClient"]

__getattr__, __dir__ = names_of(tornado.tcpclient, globals())

HEAD_START = 0.25
"""Seconds that an attempt has before the next one begins, if it does not fail before: what RFC 8305 recommends."""

Address = tuple[int, Any]
"""What a resolver gives: the family, and what `socket.socket.connect` takes."""

Attempt = tuple[IOStream, "Future[IOStream]"]


class TCPClient:
    """Connects to servers, by name or by address.

    One client makes any number of connections::

        client = iostreamsrv.TCPClient()
        stream = await client.connect("localhost", 8888, timeout=10)
        await stream.write(b"hello\\n")
        print(await stream.read_until(b"\\n"))
        await stream.aclose()

    :param resolver: an object with Tornado's interface of a resolver, ``await resolver.resolve(host, port, family)``
        for a list of (family, address). Default (None): `tornado.netutil.Resolver`, which asks the operating system in
        a thread, unless it was configured otherwise.
    """

    def __init__(self, resolver: tornado.netutil.Resolver | None = None) -> None:
        self.resolver = tornado.netutil.Resolver() if resolver is None else resolver
        self._owns_resolver = resolver is None

    def close(self) -> None:
        """Close the resolver, if it is the client's own. Its connections stay open."""
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
        """Connect to the first address of a host that answers.

        The addresses are tried in the resolver's order, the families taking turns. The next attempt begins when one
        fails, or when none has for 250 ms; those before it go on. When one succeeds the others are closed.

        :param host: a name, or an IP address.
        :param port: 0 to 65535, or the name of a service if the resolver knows such.
        :param af: ``AF_INET`` or ``AF_INET6`` for only these.
        :param ssl_options: for TLS: a dict, {} for defaults that verify the certificate and its ``host``, or an
            `ssl.SSLContext`; see :func:`iostreamsrv.certificates.client_context`. None: a plain connection.
        :param max_buffer_size: most bytes the stream holds unread; default (None) 100 MiB, see `BaseIOStream`.
        :param source_ip: the IP address of this host to connect from; those of another family are not connected to.
            None: the kernel chooses.
        :param source_port: the port to connect from, 0 to 65535; 0 or None: the kernel chooses.
        :param timeout: seconds, or a `datetime.timedelta`, for all of it; None for no limit but the system's own. With
            0 or less the time has passed already, as with Tornado: nothing is tried.
        :returns: the stream, connected.
        :raises OptionError: an argument that cannot be.
        :raises ResolveError: the host has no address, or the port's name no number.
        :raises StreamClosedError: all attempts failed. ``real_error`` is an `OSError` that says why for each address;
            its ``errno`` is that of the first attempt that failed.
        :raises StreamTimeoutError: the ``timeout`` passed. The text says during what; nothing is left open.
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
        race = stream = None
        try:
            async with asyncio.timeout(seconds):
                race = _Race(show((host, port)), await self._resolve(host, port, af), attempt)
                stream = await race.winner()
                return stream if context is None else await stream.start_tls(False, context, host, timeout=None)
        except TimeoutError:  # nothing else raises one
            assert seconds is not None
            where = f"while resolving {host}" if race is None else f"while connecting to {race.under_way()}"
            if stream is not None:
                where = f"during TLS handshake with {show((host, port))}"
            raise StreamTimeoutError("connect", seconds, f"Timeout {where}") from None

    async def _resolve(self, host: str, port: int | str, family: socket.AddressFamily) -> list[Address]:
        try:
            found = await self.resolver.resolve(host, port, family)  # type: ignore[arg-type]  # by name: some can
            if not found:
                raise socket.gaierror(socket.EAI_NONAME, "it has no address")
        except (OSError, UnicodeError) as error:  # the latter of a name that cannot be encoded
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
        """Begin to connect to one address: the stream, and the future that tells when it is connected."""
        made: Any = socket.socket(af)
        try:
            if source_ip or source_port:
                _bind(made, source_ip, source_port or 0)
            made = IOStream(made, max_buffer_size)
            return made, made.connect(addr)
        except BaseException:
            made.close()
            raise


class _Race:
    """Attempts to connect to ``addresses``, begun by ``attempt(family, address)``; the first to succeed wins."""

    def __init__(self, target: str, addresses: list[Address], attempt: Callable[[int, Any], Attempt]) -> None:
        self._target = target
        self._attempt = attempt
        self._waiting = deque(interleaved(addresses))
        self._running: dict[IOStream, Any] = {}
        self._reasons: list[str] = []
        self._errno = 0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._winner: Future[IOStream | None] = self._loop.create_future()

    async def winner(self) -> IOStream:
        """The stream that was connected first. However this ends, no other one is open then.

        :raises StreamClosedError: there is none.
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

    def under_way(self) -> str:
        """The addresses that have neither been connected to nor failed, for people."""
        return ", ".join(sorted(map(show, self._running.values())))

    def _begin_next(self) -> None:
        """Begin the next attempt that can be begun. Where there is none and all have failed, the race is over."""
        self._stop_timer()
        while self._waiting:
            family, address = self._waiting.popleft()
            try:
                stream, connected = self._attempt(family, address)
            except Exception as error:  # whatever is wrong with this address, the next one may be better
                self._note(address, error)
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
        self._note(self._running.pop(stream), error)
        stream.close()
        self._begin_next()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _note(self, address: Any, error: BaseException) -> None:
        shown = show(address)
        reason = _reason(error)
        self._reasons.append(reason if shown == self._target else f"{shown}: {reason}")
        self._errno = self._errno or getattr(error, "errno", None) or 0

    def _error(self) -> StreamClosedError:
        error = OSError(self._errno or errno.EIO, ", ".join(self._reasons), self._target)
        return StreamClosedError(error, "connect", reason_for(error))


def interleaved(addresses: list[Address]) -> list[Address]:
    """The addresses in the order to try them in: the families take turns, each in the order that it has."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    return [address for turn in zip_longest(*families.values()) for address in turn if address is not None]


def _bind(connection: socket.socket, ip: str | None, port: int) -> None:
    """Choose the source of a connection; without ``ip`` its port only."""
    shown = show((ip or "*", port))
    if ip is not None and _IP_VERSIONS.get(connection.family) != ipaddress.ip_address(ip).version:
        raise OSError(errno.EAFNOSUPPORT, f"the source {shown} is of another family")
    if port and os.name != "nt":
        # Attempts that overlap have the same port, and so may connections of a moment ago.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        connection.bind((ip or "", port))
    except OSError as error:
        raise OSError(error.errno, f"cannot bind the source {shown}: {_reason(error)}") from error


_IP_VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}


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
            ipaddress.ip_address(ip if isinstance(ip, str) else "")  # it takes integers too
    except ValueError:
        raise OptionError("source_ip", ip, "must be an IP address, or None") from None


def _seconds(timeout: float | datetime.timedelta | None) -> float | None:
    if isinstance(timeout, datetime.timedelta):
        timeout = timeout.total_seconds()
    if is_number(timeout) and timeout <= 0:
        return 0.0
    return None if timeout is None else check_timeout("timeout", timeout)


def _reason(error: BaseException) -> str:
    """Why, in words without a number."""
    cause = getattr(error, "real_error", None) or error
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
