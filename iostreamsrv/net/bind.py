"""Bind listening sockets, TCP and Unix."""

import contextlib
import errno
import functools
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

from ..errors import ListenError, OptionError
from ..options import check_flag
from ..runtime.addresses import check_host, check_port, show
from ..runtime.checks import check_int, is_int
from ..runtime.exports import set_module
from ..runtime.kernel import current_kernel
from ..runtime.logs import general
from . import unixlistener
from .resolve import Endpoint, lookup

BACKLOG = 1024
"""Connections that the kernel queues until they are accepted. (Linux limits it to net.core.somaxconn.)"""

C_INT_MAX = (1 << 31) - 1

PORT_TRIES = 16
"""Attempts to find a port that is free on several addresses. If every second port were in use on the second address,
all attempts would fail once in 65,536 starts.
"""


# ---- TCP


@set_module("iostreamsrv.netutil")
def bind_sockets(
    port: int | str,
    address: str | None = None,
    family: socket.AddressFamily = socket.AF_UNSPEC,
    backlog: int = BACKLOG,
    flags: int | None = None,
    reuse_port: bool = False,
) -> list[socket.socket]:
    """Listening, non-blocking sockets for a port, one for each address that ``address`` resolves to. ::

        server.add_sockets(bind_sockets(8888, "localhost"))

    :param port: 0 to 65535, or the name of a service; with 0 the kernel chooses one, the same for all addresses.
    :param address: an IP address or a host name; None, "" or "*" for all interfaces, IPv4 and IPv6.
    :param family: ``AF_INET`` or ``AF_INET6`` for only these.
    :param backlog: most connections that the kernel queues until they are accepted; 1024.
    :param flags: ``AI_*`` flags for `socket.getaddrinfo`; None for ``AI_PASSIVE``.
    :param reuse_port: let other processes bind the same port; the kernel distributes the connections. A warning is
        logged once, where the program has a log, if Linux loses the backlog of a process that ends
        (``net.ipv4.tcp_migrate_req`` is 0).
    :raises OptionError: if an argument is invalid.
    :raises ListenError: if the address does not resolve or cannot be bound. Nothing is left bound.
    """
    port = check_port("port", port)
    host = check_host("address", address)
    check_int("backlog", backlog, 1, C_INT_MAX)
    _check_types(family, flags, reuse_port)
    if not socket.has_ipv6 and family == socket.AF_UNSPEC:
        family = socket.AF_INET
    try:
        endpoints = lookup(host, port, family, socket.AI_PASSIVE if flags is None else flags)
    except OSError as error:
        raise ListenError(error.errno, f"cannot listen on {show((host, port))}: {error.strerror}") from error
    # IPv4 first: a port that the kernel chooses there is more likely to be free on both.
    endpoints.sort(key=lambda endpoint: endpoint.family)
    sockets = _bind_with_one_port(endpoints, backlog, reuse_port)
    if reuse_port:
        _warn_of_lost_backlogs()
    if not sockets:
        raise ListenError(errno.EADDRNOTAVAIL, f"cannot listen on {show((host, port))}: no address of it is available")
    return sockets


def _bind_with_one_port(endpoints: list[Endpoint], backlog: int, reuse_port: bool) -> list[socket.socket]:
    """Bind all. If the port that the kernel chose for the first is in use on another, try again with another port."""
    for _ in range(PORT_TRIES - 1):
        try:
            return _bind_all(endpoints, backlog, reuse_port)
        except ListenError as error:
            if error.errno != errno.EADDRINUSE or endpoints[0].port:
                raise
    return _bind_all(endpoints, backlog, reuse_port)


def _bind_all(endpoints: list[Endpoint], backlog: int, reuse_port: bool) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as bound:
        for family, (host, port, *more) in endpoints:
            if sockets and not port:
                port = sockets[0].getsockname()[1]
            listener = _listener(Endpoint(family, (host, port, *more)), backlog, reuse_port)
            if listener is not None:
                sockets.append(bound.enter_context(listener))
        bound.pop_all()
    return sockets


def _listener(endpoint: Endpoint, backlog: int, reuse_port: bool) -> socket.socket | None:
    """A bound, listening socket; None for IPv6 on a host where it is compiled in but disabled."""
    try:
        with contextlib.ExitStack() as unfinished:
            listener = unfinished.enter_context(current_kernel().listening_socket(endpoint.family))
            _prepare(listener, reuse_port)
            listener.bind(endpoint.address)
            listener.listen(backlog)
            unfinished.pop_all()
            return listener
    except OSError as error:
        if _is_disabled(endpoint, error):
            return None
        raise ListenError(error.errno, f"cannot listen on {endpoint}: {_why_not_bound(endpoint, error)}") from error


def _prepare(listener: socket.socket, reuse_port: bool) -> None:
    listener.setblocking(False)
    if os.name != "nt":  # there it would let others take over the port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if listener.family == socket.AF_INET6:
        # IPv4 has a separate socket, on all systems.
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


MIGRATION = Path("/proc/sys/net/ipv4/tcp_migrate_req")
"""Whether Linux gives the backlog of a socket that is closed to the others on its port."""


@functools.cache
def _warn_of_lost_backlogs() -> None:
    """Say it once, where it is so. A program without a log says nothing: Python would write it to its stderr."""
    with contextlib.suppress(OSError):
        if logging.root.handlers and MIGRATION.read_text().strip() == "0":
            general.warning(
                "reuse_port: clients in the backlog of a process that ends are lost here;"
                " `sysctl net.ipv4.tcp_migrate_req=1` gives them to the others"
            )


def _is_disabled(endpoint: Endpoint, error: OSError) -> bool:
    missing = error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
    return missing and endpoint.host in ("::", "::1") and sys.platform == "linux"


def _why_not_bound(endpoint: Endpoint, error: OSError) -> str:
    if error.errno == errno.EINVAL and endpoint.host.startswith("fe80:") and "%" not in endpoint.host:
        return f"a link-local address needs its interface, as in {endpoint.host}%eth0"
    return str(error.strerror)


# ---- Unix sockets


@set_module("iostreamsrv.netutil")
def bind_unix_socket(path: str | bytes | os.PathLike[Any], mode: int = 0o600, backlog: int = BACKLOG) -> socket.socket:
    """A listening, non-blocking Unix socket. ::

        server.add_socket(bind_unix_socket("/run/echo.sock", mode=0o660))

    A file left by a dead server is replaced. The socket removes its file when the process that bound it closes it,
    unless another file has replaced it.

    :param path: at most 107 bytes. On Linux a name that begins with a zero byte is abstract: it has neither file nor
        mode, and disappears with its socket.
    :param mode: permissions of the file, set before anyone can connect. Users with write permission may connect; 0o600,
        this user only.
    :param backlog: most connections that the kernel queues until they are accepted; 1024.
    :raises OptionError: if an argument is invalid.
    :raises ListenError: if a server is listening there, or the path cannot be bound: it is too long, it is a file but
        no socket, its directory is missing or not writable. Nothing is left bound, and an existing file is untouched.
    """
    name = _check_path(path)
    if not is_int(mode, 0, 0o777):
        raise OptionError("mode", mode, "must be an integer from 0 to 0o777")
    check_int("backlog", backlog, 1, C_INT_MAX)
    try:
        return unixlistener.bind(name, mode, backlog)
    except OSError as error:
        raise ListenError(error.errno, f"cannot listen on {show(name)}: {error.strerror}") from error


def _check_path(path: object) -> str:
    try:
        name = os.fsdecode(path)  # type: ignore[arg-type]
        os.fsencode(name)
    except (TypeError, UnicodeError):
        raise OptionError("path", path, "must be a path: str, bytes or os.PathLike") from None
    if not name or "\0" in name[1:] or (name[0] == "\0" and sys.platform != "linux"):
        raise OptionError("path", path, "must be a path, without zero bytes (or with a first one, on Linux)")
    return name


# ---- arguments


def _check_types(family: object, flags: object, reuse_port: object) -> None:
    if family not in (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6):
        raise OptionError("family", family, "must be socket.AF_INET, AF_INET6 or AF_UNSPEC")
    if flags is not None and (not is_int(flags, 0, C_INT_MAX)):
        raise OptionError("flags", flags, "must be an integer of socket.AI_* flags")
    if check_flag("reuse_port", reuse_port) and not hasattr(socket, "SO_REUSEPORT"):
        raise OptionError("reuse_port", reuse_port, "this platform has no SO_REUSEPORT")
