"""Private names of Tornado's servers."""

import inspect
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import tornado.tcpserver

from ..runtime.logs import general
from .missing import Missing


class SocketsByDescriptor:
    """What ``server._sockets`` is: a new dict of the sockets that the server accepts on, by descriptor. Never empty
    while it listens. What is assigned to the name is ignored.

    :param listening: returns the sockets of a server.
    """

    def __init__(self, listening: Callable[[Any], Iterable[socket.socket]]) -> None:
        self._listening = listening

    def __get__(self, server: object, owner: type) -> Any:
        return self if server is None else {each.fileno(): each for each in self._listening(server)}

    def __set__(self, server: object, value: object) -> None:
        """A constructor of Tornado's sets it to an empty dict."""


if TYPE_CHECKING:
    # A subclass's handle_stream() takes a stream of ours; by Tornado's annotations, that narrows an argument.
    class Tornado:
        """Tornado's class of servers."""
else:
    Tornado = tornado.tcpserver.TCPServer


class TornadoServer(Tornado):
    """What makes a server an instance of Tornado's class, with its private names; see :mod:`iostreamsrv.compat`."""

    _handle_connection = Missing()
    _handlers = Missing()
    _pending_sockets = Missing()
    _started = Missing()
    _stopped = Missing()


_warned: WeakSet[type] = WeakSet()


def warn_of_uncalled(server: object) -> None:
    """Warn, once for each class, if it overrides a method that Tornado's servers call and ours do not."""
    kind = type(server)
    inherited = vars(TornadoServer)["_handle_connection"]
    if kind not in _warned and inspect.getattr_static(server, "_handle_connection", inherited) is not inherited:
        _warned.add(kind)
        general.warning(
            "%s._handle_connection() is never called: it is private to Tornado's TCPServer. Use handle_stream(stream,"
            " address): it gets each accepted connection as a stream, under TLS after the handshake",
            kind.__name__,
        )
