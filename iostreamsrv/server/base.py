"""What a server and its core know of each other."""

import socket
from collections.abc import Callable
from operator import attrgetter

from ..errors import OptionError
from ..options import ServerOptions
from ..runtime.addresses import show
from ..runtime.running import inside
from .core import ServerCore


class ServerBase:
    """Holds the `ServerCore` of a server, in the one attribute that is not the user's."""

    def __init__(self, core: ServerCore) -> None:
        self._iostreamsrv = core

    def __repr__(self) -> str:
        """Where it listens, and how many clients it has: ``<Echo listening on 127.0.0.1:8888, 2 clients>``."""
        name = type(self).__name__
        if not has_core(self):
            return f"<{name} without its constructor>"
        core = core_of(self)
        where = ", ".join(map(show, core.listeners.addresses))
        count = len(core.streams)
        return f"<{name} {f'listening on {where}' if where else 'not listening'}, {count} client{'s' * (count != 1)}>"


core_of: Callable[[ServerBase], ServerCore] = attrgetter("_iostreamsrv")
"""The core of a server, whatever names its class uses for itself."""


inside.register(ServerBase, core_of)


def listening_sockets(server: ServerBase) -> list[socket.socket]:
    """The sockets that a server accepts on."""
    return core_of(server).listeners.sockets


def has_core(server: ServerBase) -> bool:
    """Whether the constructor of a server has run. What is assigned to Tornado's attributes before that has no effect,
    as in Tornado, whose constructor sets them."""
    return hasattr(server, "_iostreamsrv")


def default_options(server: type, options: ServerOptions | None) -> ServerOptions:
    """The options of a server that gets these: those of its class if they are None.

    :raises OptionError: they are no `ServerOptions`, or an attribute of the class is invalid.
    """
    if options is None:
        return ServerOptions.of_class(server)
    if not isinstance(options, ServerOptions):
        raise OptionError("options", options, "must be a ServerOptions, or None")
    return options
