"""Addresses: checked as arguments, and formatted for people."""

import os
from typing import Any

from ..errors import OptionError
from .checks import is_int
from .text import printable


def check_port(name: str, port: int | str) -> int | str:
    """A port: an int from 0 to 65535, or the name of a service.

    :raises OptionError: if it is anything else.
    """
    if isinstance(port, str):
        # Numbers are parsed here: getaddrinfo takes 70000 for 4464, and accepts "+70000" as well.
        if port.isascii() and port.isdigit():
            if len(port) < 10 and int(port) <= 65535:
                return int(port)
        elif port and "\0" not in port and not port.strip(" +-").isdigit():
            return port
    elif is_int(port, 0, 65535):
        return port
    raise OptionError(name, port, "must be an integer from 0 to 65535 or the name of a service")


def check_host(name: str, host: str | None) -> str | None:
    """An IP address or a host name; None, "" or "*" for all interfaces.

    :raises OptionError: if it is anything else.
    """
    # getaddrinfo would ignore all after a zero byte.
    if host is not None and (not isinstance(host, str) or "\0" in host):
        raise OptionError(name, host, "must be an IP address or a host name, or None for all interfaces")
    return None if host in ("", "*") else host


def show(address: Any) -> str:
    """An address for people: ``127.0.0.1:80``, ``[::1]:80``, ``*:80``, ``/run/echo.sock``, ``@abstract``.

    Unprintable characters are escaped: a peer may have chosen them.
    """
    if isinstance(address, tuple) and len(address) >= 2:
        host, port, *_ = address
        return printable(f"[{host}]:{port}" if ":" in str(host or "") else f"{host or '*'}:{port}")
    if isinstance(address, str | bytes):
        address = os.fsdecode(address).replace("\0", "@")
    return printable(str(address))
