"""Where a server listens, as a text says it: ``127.0.0.1:8888``, ``unix:/run/echo.sock?mode=0660``."""

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from ..errors import ListenError, OptionError
from ..net.bind import bind_sockets, bind_unix_socket
from ..net.inherited import inherited_sockets, socket_from_fd
from ..net.unixlistener import LONGEST_PATH
from ..runtime.addresses import check_port
from ..runtime.checks import did_you_mean

FORMS = '"host:port", "[::]:port", ":port", "unix:/path", "fd://3" or "systemd:name"'

Kind = Literal["tcp", "unix", "fd", "systemd"]

UNIX_PARAMETERS = ("mode", "tls")
PARAMETERS = ("tls",)
"""What may follow the ``?``: of a Unix socket, and of all else."""

PRIVILEGED = 1024
"""Ports below it are for root, unless the system says otherwise."""


@dataclass(frozen=True, slots=True)
class Bind:
    """One place to listen at. Made by :meth:`parse`, which has the forms.

    :ivar text: as it was written; ``Bind.parse(bind.text) == bind``.
    :ivar kind: what it is.
    :ivar where: "tcp": ``(host, port)``, host None for all interfaces; "unix": the path, with a first zero byte where
        it is abstract; "fd": the descriptor; "systemd": the name of the sockets.
    :ivar mode: "unix": the permissions of the file.
    :ivar tls: whether the TLS options of the server apply; False: its clients are plain, whatever these are.
    """

    text: str
    kind: Kind
    where: Any
    mode: int = 0o600
    tls: bool = True

    @classmethod
    def parse(cls, text: str) -> "Bind":
        """What a text says.

        ======================== =====================================================================
        ``127.0.0.1:8888``       an address or a host name, and a port (0: a free one) or a service name
        ``[::1]:8888``           an IPv6 address
        ``:8888``                all interfaces, IPv4 and IPv6
        ``unix:/run/echo.sock``  a Unix socket; ``?mode=0660`` are its permissions (0600); ``unix:@name``: abstract
        ``fd://3``               a listening socket that the process inherits
        ``systemd:echo``         the sockets of this name that systemd passes on
        ======================== =====================================================================

        Each may end with ``?tls=off``.

        :raises OptionError: it says something else.
        """
        if not isinstance(text, str):
            raise OptionError("bind", text, f"must be {FORMS}")
        place, _, query = text.partition("?")
        kind, where = _place(text, place)
        parameters = _parameters(text, kind, query)
        mode = _mode(text, parameters["mode"]) if "mode" in parameters else 0o600
        if parameters.get("tls", "off") != "off":
            raise OptionError("bind", text, "tls may only be off: it is on wherever the server has a certificate")
        return cls(text, kind, where, mode, "tls" not in parameters)

    def __str__(self) -> str:
        return self.text

    def open(self) -> list[socket.socket]:
        """Listening, non-blocking sockets for it; several where a name has several addresses.

        :raises ListenError: it is not possible; nothing is left bound.
        """
        match self.kind:
            case "tcp":
                return self._open_port(*self.where)
            case "unix":
                return [bind_unix_socket(self.where, self.mode)]
            case "fd":
                return [self._open_descriptor()]
            case "systemd":
                return self._inherited()

    def _open_port(self, host: str | None, port: int | str) -> list[socket.socket]:
        try:
            return bind_sockets(port, host)
        except ListenError as error:
            if error.errno != errno.EACCES or not isinstance(port, int) or port >= PRIVILEGED:
                raise
            hint = f"a port below {PRIVILEGED} needs root, the capability CAP_NET_BIND_SERVICE, or a socket of systemd"
            raise ListenError(error.errno, f"{error}: {hint}") from error

    def _open_descriptor(self) -> socket.socket:
        try:
            return socket_from_fd(self.where)
        except OptionError as error:
            # What was inherited is no mistake in the option, but how the process was started.
            problem = str(error).partition(": ")[2]
            raise ListenError(errno.EBADF, f"cannot listen on {self.text}: {problem}") from error

    def _inherited(self) -> list[socket.socket]:
        sockets = inherited_sockets(self.where)
        if not sockets:
            problem = "systemd has passed no sockets to this process (LISTEN_PID and LISTEN_FDS do not say so)"
            raise ListenError(errno.ENOENT, f"cannot listen on {self.text}: {problem}")
        return sockets


def check_binds(binds: Iterable[Bind]) -> tuple[Bind, ...]:
    """At least one, and no two that are the same place.

    :raises OptionError: there are none, or two are alike.
    """
    found = tuple(binds)
    if not found:
        raise OptionError("bind", [], f"needs one or more: {FORMS}")
    for one, other in combinations(found, 2):
        if _collide(one, other):
            same = "is there twice" if one.text == other.text else f"is at the same place as {one.text!r}"
            raise OptionError("bind", other.text, same)
    return found


# ---- parts of a text


def _place(text: str, place: str) -> tuple[Kind, Any]:
    scheme, colon, rest = place.partition(":")
    match scheme:
        case "unix" if colon:
            return "unix", _path(text, rest)
        case "fd" if colon:
            return "fd", _descriptor(text, rest)
        case "systemd" if colon:
            return "systemd", _name(text, rest)
    return "tcp", _host_and_port(text, place)


def _path(text: str, path: str) -> str:
    if not path or "\0" in path:
        raise OptionError("bind", text, 'needs a path, as in "unix:/run/echo.sock" (or "unix:@name": abstract)')
    path = "\0" + path[1:] if path[0] == "@" else path
    length = len(os.fsencode(path))
    if length > LONGEST_PATH + path.startswith("\0"):
        problem = f"a Unix socket's path has at most {LONGEST_PATH} bytes, this one has {length}"
        raise OptionError("bind", text, problem)
    return path


def _descriptor(text: str, rest: str) -> int:
    number = rest.removeprefix("//")
    if number == rest or not _is_digits(number) or len(number) > 7:
        raise OptionError("bind", text, 'needs the number of a descriptor, as in "fd://3"')
    return int(number)


def _name(text: str, name: str) -> str:
    if not name or ":" in name or "/" in name:
        hint = "FileDescriptorName= of the socket unit, which is by default the unit's own name"
        raise OptionError("bind", text, f'needs a name, as in "systemd:echo.socket": {hint}')
    return name


def _host_and_port(text: str, place: str) -> tuple[str | None, int | str]:
    host, colon, port = place.rpartition(":")
    if not colon:
        as_port = f'for that port of all interfaces write ":{place}"' if _is_digits(place) else "the port is missing"
        raise OptionError("bind", text, f"must be {FORMS}: {as_port}")
    if "/" in place:
        raise OptionError("bind", text, f"must be {FORMS}")
    bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host and not bracketed:
        raise OptionError("bind", text, f'an IPv6 address needs brackets: "[{host}]:{port}"')
    host = host[1:-1] if bracketed else host
    if "\0" in host or any(letter in host for letter in "[] ") or (bracketed and not _is_ipv6(host)):
        raise OptionError("bind", text, f"{host!r} is neither an IP address nor the name of a host")
    try:
        return (None if host in ("", "*") else host), check_port("bind", port)
    except OptionError:
        raise OptionError("bind", text, "the port must be 0 to 65535, or the name of a service") from None


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _parameters(text: str, kind: Kind, query: str) -> dict[str, str]:
    known = UNIX_PARAMETERS if kind == "unix" else PARAMETERS
    found: dict[str, str] = {}
    for part in query.split("&") if "?" in text else []:
        name, equals, value = part.partition("=")
        if name not in known:
            hint = "only a Unix socket has it" if name in UNIX_PARAMETERS else did_you_mean(name, known)
            raise OptionError("bind", text, f"there is no {name!r} here: {hint}")
        if not equals or name in found:
            raise OptionError("bind", text, f"{name} needs one value: {'mode=0660' if name == 'mode' else 'tls=off'}")
        found[name] = value
    return found


def _mode(text: str, value: str) -> int:
    digits = value.removeprefix("0o")
    if not digits or set(digits) - set("01234567") or int(digits, 8) > 0o777:
        raise OptionError("bind", text, "mode must be permissions in octal, 0 to 0777, as in mode=0660")
    return int(digits, 8)


# ---- two that are alike


def _collide(one: Bind, other: Bind) -> bool:
    """Whether both are at the same place, as far as texts can tell: names are not resolved."""
    if one.kind != other.kind:
        return False
    if one.kind == "tcp":
        (host, port), (other_host, other_port) = one.where, other.where
        return bool(port == other_port != 0 and _share(_network(host), _network(other_host)))
    if one.kind == "unix":
        return _real(one.where) == _real(other.where)
    return bool(one.where == other.where)


def _real(path: str) -> str:
    return path if path.startswith("\0") else os.path.realpath(path)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network | str | None
"""What a host covers: an address, all of a family, a name of which that is not known, or None for everything."""


def _network(host: str | None) -> Network:
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host and host.lower()
    return ipaddress.ip_network((address, 0 if address.is_unspecified else address.max_prefixlen))


def _share(one: Network, other: Network) -> bool:
    """Whether there is an address that both cover: only one can listen on a port of it."""
    if one is None or other is None:
        return True
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return one.version == other.version and one.overlaps(other)
