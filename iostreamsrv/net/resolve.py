"""The addresses behind a name."""

import asyncio
import socket
from typing import Any, NamedTuple

from ..errors import ResolveError
from ..runtime.addresses import check_host, check_port, show
from ..runtime.exports import set_module


@set_module("iostreamsrv.netutil")
class Endpoint(NamedTuple):
    """One address of a host and a service, as :func:`resolve` returns it. ::

        for family, address in await resolve("localhost", 80):
            ...

    :ivar family: ``AF_INET`` or ``AF_INET6``.
    :ivar address: the address of that family, for `socket.socket.connect` and ``bind``.
    """

    family: socket.AddressFamily
    address: Any

    @property
    def host(self) -> str:
        """The IP address. A link-local one has the number of its interface: ``fe80::1%2``."""
        host, _, *more = self.address
        return f"{host}%{more[1]}" if more and more[1] else str(host)

    @property
    def port(self) -> int:
        """The port, a number."""
        return int(self.address[1])

    def __str__(self) -> str:
        return show((self.host, self.port))


@set_module("iostreamsrv.netutil")
async def resolve(
    host: str | None, service: int | str, family: socket.AddressFamily = socket.AF_UNSPEC
) -> list[Endpoint]:
    """Resolve a host and a service to endpoints, in the order in which the system would try them. ::

        for endpoint in await resolve("localhost", "http"):
            print(endpoint)  # 127.0.0.1:80

    The system's resolver runs in another thread. It has no time limit here: use `asyncio.timeout`.

    :param host: an IP address or a host name; None, "" or "*" for the wildcard addresses of all interfaces.
    :param service: a port, 0 to 65535, or the name of a service.
    :param family: ``AF_INET`` or ``AF_INET6`` for only these.
    :raises OptionError: if an argument is invalid.
    :raises ResolveError: if there is no such host or service.
    """
    host, service = check_host("host", host), check_port("service", service)
    loop = asyncio.get_running_loop()
    try:
        # Not the loop's own getaddrinfo: uvloop's forgets the interface in fe80::1%eth0.
        return await loop.run_in_executor(None, lookup, host, service, family, socket.AI_PASSIVE)
    except OSError as error:
        raise ResolveError(error.errno, f"cannot resolve {show((host, service))}: {error.strerror}") from error


def lookup(host: str | None, service: int | str, family: int, flags: int) -> list[Endpoint]:
    """The same, blocking.

    :param flags: ``AI_*`` flags for `socket.getaddrinfo`.
    :raises socket.gaierror: if there is no such host or service.
    """
    try:
        found = socket.getaddrinfo(host, service, family, socket.SOCK_STREAM, 0, flags)
    except (OSError, UnicodeError) as error:
        raise _lookup_error(host, error) from error
    return list(dict.fromkeys(Endpoint(info[0], info[4]) for info in found))


def _lookup_error(host: str | None, error: Exception) -> socket.gaierror:
    interface = (host or "").partition("%")[2]
    if interface and interface not in (name for _, name in socket.if_nameindex()):
        return socket.gaierror(socket.EAI_NONAME, f"there is no network interface {interface}")
    if isinstance(error, OSError):
        unknown = error.errno == socket.EAI_SERVICE
        return socket.gaierror(error.errno, "there is no such service" if unknown else error.strerror)
    return socket.gaierror(socket.EAI_NONAME, str(error))
