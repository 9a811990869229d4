"""Listening sockets that another process opened, and passed on."""

import errno
import os
import socket

from ..errors import ListenError, OptionError
from ..runtime.checks import is_int
from ..runtime.exports import set_module
from .acceptor import why_not_listening

FIRST_INHERITED = 3
"""The first descriptor that systemd passes on (SD_LISTEN_FDS_START)."""


@set_module("iostreamsrv.netutil")
def socket_from_fd(fd: int) -> socket.socket:
    """The listening socket of a descriptor, as passed on by a parent process. ::

        server.add_socket(socket_from_fd(int(arguments.fd)))

    The socket then owns the descriptor: it is non-blocking, not inherited by other programs, and closed with the
    socket.

    :param fd: the descriptor, an integer.
    :raises OptionError: if the descriptor is not a listening stream socket; it is not changed.
    """
    if not is_int(fd, 0, (1 << 31) - 1):
        raise OptionError("fd", fd, "must be the descriptor of a listening socket")
    try:
        return _adopt(fd)
    except OSError as error:
        raise OptionError("fd", fd, str(error.strerror)) from error


@set_module("iostreamsrv.netutil")
def inherited_sockets(name: str | None = None) -> list[socket.socket]:
    """The listening sockets that systemd, or a program that follows its protocol, opened for this process. ::

        server.add_sockets(inherited_sockets() or bind_sockets(8888))

    The environment variables ``LISTEN_PID``, ``LISTEN_FDS`` and ``LISTEN_FDNAMES`` describe them; see
    ``sd_listen_fds(3)``. They are non-blocking, and not inherited by other programs. Request each of them once,
    and before ``server.start(n)``: they are for the process that systemd started. Closing a socket closes its
    descriptor.

    :param name: return only the sockets of this name (``FileDescriptorName=`` in a socket unit); None for all.
    :returns: the sockets in systemd's order; an empty list if the process was not socket-activated.
    :raises OptionError: if the name is invalid.
    :raises ListenError: if no socket has that name, one is not a listening stream socket, or the variables are
        inconsistent. The descriptors are not changed.
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


def _variable(name: str) -> int | None:
    """The number in an environment variable; None if it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 7:  # above Linux' limits for processes and descriptors
        return int(text)
    raise ListenError(errno.EINVAL, f"cannot listen on inherited sockets: {name}={text!r} is not a number")


def _inherited_names(count: int) -> list[str]:
    text = os.environ.get("LISTEN_FDNAMES")
    if text is None:
        return ["unknown"] * count  # systemd's word for it
    names = text.split(":")
    if len(names) != count:
        raise ListenError(
            errno.EINVAL, f"cannot listen on inherited sockets: LISTEN_FDS={count} and LISTEN_FDNAMES={text!r}"
        )
    return names
