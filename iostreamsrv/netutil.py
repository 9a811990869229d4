"""Listening sockets of every kind, and the addresses behind a name."""

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from typing import Any, NamedTuple

import tornado.netutil

from .errors import ListenError, OptionError, ResolveError
from .net import unixlistener
from .net.acceptor import Acceptor
from .runtime.addresses import check_host, check_port, show
from .runtime.exports import names_of
from .runtime.loops import current_loop

__all__ = [
    "Endpoint",
    "add_accept_handler",
    "bind_sockets",
    "bind_unix_socket",
    "inherited_sockets",
    "resolve",
    "socket_from_fd",
]

__getattr__, __dir__ = names_of(tornado.netutil, globals())

BACKLOG = 1024
"""Connections the kernel keeps for us until they are accepted (it takes the lower of this and net.core.somaxconn)."""

PORT_TRIES = 16
"""How often the kernel is asked for a port that has to be free on several addresses. Were every other port taken on
the second address, so many would fail once in 65,536 starts.
"""

FIRST_INHERITED = 3
"""The number of the first socket that systemd passes on (SD_LISTEN_FDS_START)."""


class Endpoint(NamedTuple):
    """One address that a host and a service stand for, as :func:`resolve` finds them. ::

        for family, address in await resolve("localhost", 80):
            ...

    :ivar family: ``AF_INET`` or ``AF_INET6``.
    :ivar address: what `socket.socket.connect` and ``bind`` take for that family.
    """

    family: socket.AddressFamily
    address: Any

    @property
    def host(self) -> str:
        """The IP address; that of an interface comes with its number: ``fe80::1%2``."""
        host, _, *more = self.address
        return f"{host}%{more[1]}" if more and more[1] else str(host)

    @property
    def port(self) -> int:
        """The port's number."""
        return int(self.address[1])

    def __str__(self) -> str:
        return show((self.host, self.port))


# ---- TCP


def bind_sockets(
    port: int | str,
    address: str | None = None,
    family: socket.AddressFamily = socket.AF_UNSPEC,
    backlog: int = BACKLOG,
    flags: int | None = None,
    reuse_port: bool = False,
) -> list[socket.socket]:
    """Listening, non-blocking sockets for a port, one for each address that ``address`` stands for. ::

        server.add_sockets(bind_sockets(8888, "localhost"))

    :param port: 0 to 65535, or the name of a service; 0 has the kernel choose one, the same for all addresses.
    :param address: an IP address or a host name; None, "" or "*" for all interfaces, IPv4 and IPv6.
    :param family: ``AF_INET`` or ``AF_INET6`` for only these.
    :param backlog: how many connections may wait to be accepted; 1024.
    :param flags: ``AI_*`` flags for `socket.getaddrinfo`; None for ``AI_PASSIVE``.
    :param reuse_port: let other processes bind the same port too, and the kernel spread the connections.
    :raises OptionError: an argument that cannot be.
    :raises ListenError: the address does not resolve or cannot be bound. Nothing is left bound.
    """
    port = check_port("port", port)
    host = check_host("address", address)
    _check_backlog(backlog)
    _check_types(family, flags, reuse_port)
    if not socket.has_ipv6 and family == socket.AF_UNSPEC:
        family = socket.AF_INET
    try:
        endpoints = _lookup(host, port, family, socket.AI_PASSIVE if flags is None else flags)
    except OSError as error:
        raise ListenError(error.errno, f"cannot listen on {show((host, port))}: {error.strerror}") from error
    # IPv4 first: where the kernel chooses the port, it is more likely to be free for both.
    endpoints.sort(key=lambda endpoint: endpoint.family)
    sockets = _bind_with_one_port(endpoints, backlog, reuse_port)
    if not sockets:
        raise ListenError(errno.EADDRNOTAVAIL, f"cannot listen on {show((host, port))}: no address of it is available")
    return sockets


def _bind_with_one_port(endpoints: list[Endpoint], backlog: int, reuse_port: bool) -> list[socket.socket]:
    """Bind all, again with another port while the one the kernel chose for the first is taken for the next."""
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
    """A bound, listening socket; None for IPv6 on a host that has it compiled in and switched off."""
    try:
        with contextlib.ExitStack() as unfinished:
            listener = unfinished.enter_context(socket.socket(endpoint.family, socket.SOCK_STREAM))
            _prepare(listener, reuse_port)
            listener.bind(endpoint.address)
            listener.listen(backlog)
            unfinished.pop_all()
            return listener
    except OSError as error:
        if _is_switched_off(endpoint, error):
            return None
        raise ListenError(error.errno, f"cannot listen on {endpoint}: {_why_not_bound(endpoint, error)}") from error


def _prepare(listener: socket.socket, reuse_port: bool) -> None:
    listener.setblocking(False)
    if os.name != "nt":  # there it means that others may steal the port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if listener.family == socket.AF_INET6:
        # IPv4 has a socket of its own, on every system alike.
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def _is_switched_off(endpoint: Endpoint, error: OSError) -> bool:
    missing = error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
    return missing and endpoint.host in ("::", "::1") and sys.platform == "linux"


def _why_not_bound(endpoint: Endpoint, error: OSError) -> str:
    if error.errno == errno.EINVAL and endpoint.host.startswith("fe80:") and "%" not in endpoint.host:
        return f"a link-local address needs its interface, as in {endpoint.host}%eth0"
    return str(error.strerror)


# ---- Unix sockets


def bind_unix_socket(path: str | bytes | os.PathLike[Any], mode: int = 0o600, backlog: int = BACKLOG) -> socket.socket:
    """A listening, non-blocking Unix socket. ::

        server.add_socket(bind_unix_socket("/run/echo.sock", mode=0o660))

    The file that a dead server left is replaced. The socket removes its file when it is closed, if it is closed by the
    process that bound it, and the file is still the one that it made.

    :param path: at most 107 bytes. On Linux a name that begins with a zero byte is an abstract one: it has neither
        file nor mode, and ends with its socket.
    :param mode: permissions of the file; whoever may write may connect. 0o600, for this user alone; nobody can
        connect before they are in force.
    :param backlog: how many connections may wait to be accepted; 1024.
    :raises OptionError: an argument that cannot be.
    :raises ListenError: a server is listening there, or the path cannot be bound: it is too long or not a socket's,
        its directory is missing or forbidden. Nothing is left bound, and what was there is untouched.
    """
    name = _check_path(path)
    if isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode <= 0o777:
        raise OptionError("mode", mode, "must be an integer from 0 to 0o777")
    _check_backlog(backlog)
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


# ---- sockets that exist


def socket_from_fd(fd: int) -> socket.socket:
    """The listening socket with a number, for one that a parent process has passed on. ::

        server.add_socket(socket_from_fd(int(arguments.fd)))

    The number belongs to the socket from then on: it is non-blocking, closed with the socket, and not passed on to
    other programs.

    :raises OptionError: the number is not that of a listening stream socket; it is left as it is.
    """
    if isinstance(fd, bool) or not isinstance(fd, int) or not 0 <= fd < 1 << 31:
        raise OptionError("fd", fd, "must be the number of a listening socket")
    try:
        return _adopt(fd)
    except OSError as error:
        raise OptionError("fd", fd, str(error.strerror)) from error


def _adopt(number: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=number)
    except OSError as error:
        known = {errno.EBADF: "is not open", errno.ENOTSOCK: "is not a socket"}
        raise OSError(error.errno, known.get(error.errno or 0, error.strerror)) from error
    if (problem := why_not_listening(listener)) is not None:
        listener.detach()
        raise OSError(errno.EINVAL, problem)
    listener.set_inheritable(False)
    listener.setblocking(False)
    return listener


def why_not_listening(listener: object) -> str | None:
    """What keeps a server from accepting on ``listener``; None where nothing does."""
    if not isinstance(listener, socket.socket):
        return "must be a listening socket"
    if listener.fileno() < 0:
        return "is closed"
    if listener.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_STREAM:
        return "is not a stream socket"
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "is not listening"
    return None


def inherited_sockets(name: str | None = None) -> list[socket.socket]:
    """The listening sockets that systemd, or whoever does as it does, has opened for this process. ::

        server.add_sockets(inherited_sockets() or bind_sockets(8888))

    They are what ``LISTEN_PID``, ``LISTEN_FDS`` and ``LISTEN_FDNAMES`` tell of; see ``sd_listen_fds(3)``. They are
    non-blocking, and not passed on to other programs. Each is to be asked for once, and before ``server.start(n)``:
    they are meant for the process that systemd has started, and closed with their sockets.

    :param name: only those of this name (``FileDescriptorName=`` in a socket unit); None for all.
    :returns: them in systemd's order; none, if the process was not started for sockets.
    :raises OptionError: a name that cannot be.
    :raises ListenError: there is none of that name, one is not a listening stream socket, or the variables make no
        sense. All are left as they are.
    """
    if name is not None and not isinstance(name, str):
        raise OptionError("name", name, "must be the name of a socket, or None for all")
    if _variable("LISTEN_PID") != os.getpid() or not (count := _variable("LISTEN_FDS")):
        return []
    names = _inherited_names(count)
    numbers = [number for number, its in enumerate(names, FIRST_INHERITED) if name in (None, its)]
    if not numbers:
        there_are = ", ".join(map(repr, dict.fromkeys(names)))
        raise ListenError(errno.ENOENT, f"cannot listen on inherited socket {name!r}: there are {there_are}")
    sockets: list[socket.socket] = []
    for number in numbers:
        try:
            sockets.append(_adopt(number))
        except OSError as error:
            for listener in sockets:
                listener.detach()
            shown = f"{number} ({names[number - FIRST_INHERITED]!r})"
            raise ListenError(error.errno, f"cannot listen on inherited socket {shown}: {error.strerror}") from error
    return sockets


def _variable(name: str) -> int | None:
    """The number that an environment variable has; None if there is none."""
    text = os.environ.get(name)
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 7:  # Linux has no more processes nor descriptors
        return int(text)
    raise ListenError(errno.EINVAL, f"cannot listen on inherited sockets: {name}={text!r} is not a number")


def _inherited_names(count: int) -> list[str]:
    text = os.environ.get("LISTEN_FDNAMES")
    if text is None:
        return ["unknown"] * count  # as systemd says
    names = text.split(":")
    if len(names) != count:
        raise ListenError(
            errno.EINVAL, f"cannot listen on inherited sockets: LISTEN_FDS={count} and LISTEN_FDNAMES={text!r}"
        )
    return names


def add_accept_handler(sock: socket.socket, callback: Callable[[socket.socket, Any], None]) -> Callable[[], None]:
    """Accept on a listening socket while the current loop runs. ::

        (listener,) = bind_sockets(8888, "127.0.0.1")
        remove = add_accept_handler(listener, lambda connection, address: connection.close())

    :param sock: is made non-blocking, and stays the caller's to close.
    :param callback: is called with each connection, a `socket.socket`, and its address as ``accept`` gives it. An
        exception in it is logged, and the next connection is accepted. Each call has a copy of the context variables
        that are set here.
    :returns: a function that stops accepting; calling it again does nothing.
    :raises OptionError: ``sock`` is not a listening stream socket.
    """
    if (problem := why_not_listening(sock)) is not None:
        raise OptionError("sock", sock, problem)
    acceptor = Acceptor(sock, partial(_call_in_copy, copy_context(), callback))
    acceptor.start(current_loop())
    return acceptor.stop


def _call_in_copy(context: Context, callback: Callable[..., None], *arguments: Any) -> None:
    context.copy().run(callback, *arguments)


# ---- names


async def resolve(
    host: str | None, service: int | str, family: socket.AddressFamily = socket.AF_UNSPEC
) -> list[Endpoint]:
    """The endpoints that a host and a service stand for, in the order in which the system would try them. ::

        for endpoint in await resolve("localhost", "http"):
            print(endpoint)  # 127.0.0.1:80

    The names are looked up in another thread, for as long as the system's resolver takes: bound it with
    `asyncio.timeout`.

    :param host: an IP address or a host name; None, "" or "*" for the addresses that mean all interfaces.
    :param service: a port, 0 to 65535, or the name of a service.
    :param family: ``AF_INET`` or ``AF_INET6`` for only these.
    :raises OptionError: an argument that cannot be.
    :raises ResolveError: there is no such host or service.
    """
    host, service = check_host("host", host), check_port("service", service)
    loop = asyncio.get_running_loop()
    try:
        # Not the loop's own getaddrinfo: uvloop's forgets the interface in fe80::1%eth0.
        return await loop.run_in_executor(None, _lookup, host, service, family, socket.AI_PASSIVE)
    except OSError as error:
        raise ResolveError(error.errno, f"cannot resolve {show((host, service))}: {error.strerror}") from error


def _lookup(host: str | None, service: int | str, family: int, flags: int) -> list[Endpoint]:
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


# ---- arguments


def _check_backlog(backlog: object) -> None:
    if isinstance(backlog, bool) or not isinstance(backlog, int) or not 1 <= backlog < 1 << 31:
        raise OptionError("backlog", backlog, "must be an integer from 1 to 2147483647")


def _check_types(family: object, flags: object, reuse_port: object) -> None:
    if family not in (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6):
        raise OptionError("family", family, "must be socket.AF_INET, AF_INET6 or AF_UNSPEC")
    if flags is not None and (not isinstance(flags, int) or not 0 <= flags < 1 << 31):
        raise OptionError("flags", flags, "must be an integer of socket.AI_* flags")
    if not isinstance(reuse_port, bool):
        raise OptionError("reuse_port", reuse_port, "must be True or False")
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise OptionError("reuse_port", reuse_port, "this platform has no SO_REUSEPORT")
