"""Listening sockets."""

import errno
import os
import socket
import sys
from typing import Any

from .errors import ListenError, OptionError

__all__ = ["bind_sockets"]

BACKLOG = 1024
"""Connections the kernel keeps for us until they are accepted (it takes the lower of this and net.core.somaxconn)."""


def bind_sockets(
    port: int | str,
    address: str | None = None,
    family: socket.AddressFamily = socket.AF_UNSPEC,
    backlog: int = BACKLOG,
    flags: int | None = None,
    reuse_port: bool = False,
) -> list[socket.socket]:
    """Listening, non-blocking sockets for a port, one for each address that ``address`` stands for.

    :param port: 0 to 65535, or the name of a service; 0 has the kernel choose one, the same for all addresses.
    :param address: an IP address or a host name; None or "" for all interfaces, IPv4 and IPv6.
    :param family: ``AF_INET`` or ``AF_INET6`` for only these.
    :param backlog: how many connections may wait to be accepted; 1024.
    :param flags: ``AI_*`` flags for `socket.getaddrinfo`; None for ``AI_PASSIVE``.
    :param reuse_port: let other processes bind the same port too, and the kernel spread the connections.
    :raises OptionError: an argument that cannot be.
    :raises ListenError: the address does not resolve or cannot be bound. Nothing is left bound.
    """
    port = _check_port(port)
    _check_types(address, backlog, flags, reuse_port)
    if not socket.has_ipv6 and family == socket.AF_UNSPEC:
        family = socket.AF_INET
    endpoints = _resolve(port, address or None, family, socket.AI_PASSIVE if flags is None else flags)
    sockets: list[socket.socket] = []
    try:
        for endpoint_family, sockaddr in endpoints:
            # One port for all, also where the kernel chose it.
            chosen = sockets[0].getsockname()[1] if sockets and not sockaddr[1] else sockaddr[1]
            listener = _listener(endpoint_family, (sockaddr[0], chosen, *sockaddr[2:]), backlog, reuse_port)
            if listener is not None:
                sockets.append(listener)
    except BaseException:
        for listener in sockets:
            listener.close()
        raise
    if not sockets:
        raise ListenError(
            errno.EADDRNOTAVAIL, f"cannot listen on {address or '*'}:{port}: no address of it is available"
        )
    return sockets


def _check_port(port: int | str) -> int | str:
    if isinstance(port, str):
        # Numbers are taken apart here: getaddrinfo has 70000 for 4464, and "+70000" as well.
        if port.isascii() and port.isdigit():
            if int(port) <= 65535:
                return int(port)
        elif port and not port.strip(" +-").isdigit():
            return port
    elif isinstance(port, int) and not isinstance(port, bool) and 0 <= port <= 65535:
        return port
    raise OptionError("port", port, "must be an integer from 0 to 65535 or the name of a service")


def _check_types(address: object, backlog: object, flags: object, reuse_port: object) -> None:
    if address is not None and not isinstance(address, str):
        raise OptionError("address", address, "must be an IP address or a host name, or None for all interfaces")
    if isinstance(backlog, bool) or not isinstance(backlog, int) or backlog < 1:
        raise OptionError("backlog", backlog, "must be a positive integer")
    if flags is not None and not isinstance(flags, int):
        raise OptionError("flags", flags, "must be an integer of socket.AI_* flags")
    if not isinstance(reuse_port, bool):
        raise OptionError("reuse_port", reuse_port, "must be True or False")
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise OptionError("reuse_port", reuse_port, "this platform has no SO_REUSEPORT")


def _resolve(port: int | str, address: str | None, family: int, flags: int) -> list[tuple[int, Any]]:
    try:
        found = socket.getaddrinfo(address, port, family, socket.SOCK_STREAM, 0, flags)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or errno.EADDRNOTAVAIL
        raise ListenError(number, f"cannot listen on {address or '*'}:{port}: {_reason(error)}") from error
    # IPv4 first: where the kernel chooses the port, it is more likely to be free for both.
    return sorted({(info[0], info[4]) for info in found}, key=lambda endpoint: endpoint[0])


def _listener(family: int, sockaddr: Any, backlog: int, reuse_port: bool) -> socket.socket | None:
    """A bound, listening socket; None for IPv6 on a host that has it compiled in and switched off."""
    listener = None
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setblocking(False)
        if os.name != "nt":  # there it means that others may steal the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # IPv4 has a socket of its own, on every system alike.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(sockaddr)
        listener.listen(backlog)
        return listener
    except BaseException as error:
        if listener is not None:
            listener.close()
        if not isinstance(error, OSError):
            raise
        if family == socket.AF_INET6 and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) and _is_any(sockaddr):
            return None
        host = f"[{sockaddr[0]}]" if family == socket.AF_INET6 else sockaddr[0]
        raise ListenError(error.errno, f"cannot listen on {host}:{sockaddr[1]}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _is_any(sockaddr: Any) -> bool:
    return sockaddr[0] in ("::", "::1") and sys.platform == "linux"
