"""What is replaced in Tornado, and how.

A name is replaced in the module that defines it, so a module that is imported later gets ours, whether it says ``from
tornado.iostream import IOStream`` or ``tornado.iostream.IOStream``. Modules that are loaded already may have Tornado's
object among their globals, under any name: there it is replaced as well. What cannot be changed is a class that was
derived from Tornado's before: it is warned about.
"""

import importlib
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import tornado

from ..errors import StreamBufferFullError, StreamClosedError, UnsatisfiableReadError
from ..iostream import BaseIOStream, IOStream, PipeIOStream, SSLIOStream
from ..net.acceptor import add_accept_handler
from ..net.bind import bind_sockets
from ..streams import handshake
from ..tcpclient import TCPClient
from .options import OPTIONS
from .servers import HTTPServer, TCPServer
from .unixsocket import bind_unix_socket

MINIMUM_VERSION = (6, 5)
"""The oldest Tornado that this package supports, as in its dependencies."""


class Replacement(NamedTuple):
    """An object of Tornado's, the module and name that it is defined by, and ours in its place."""

    module: str
    name: str
    theirs: Any
    ours: Any


def _replacements(module: str, *ours: Any) -> Iterator[Replacement]:
    for each in ours:
        yield Replacement(module, each.__name__, getattr(importlib.import_module(module), each.__name__), each)


REPLACEMENTS = (
    *_replacements(
        "tornado.iostream",
        BaseIOStream,
        IOStream,
        SSLIOStream,
        PipeIOStream,
        StreamClosedError,
        StreamBufferFullError,
        UnsatisfiableReadError,
    ),
    *_replacements("tornado.tcpserver", TCPServer),
    *_replacements("tornado.tcpclient", TCPClient),
    *_replacements("tornado.httpserver", HTTPServer),
    *_replacements("tornado.netutil", add_accept_handler, bind_sockets, bind_unix_socket),
)

KEPT = {("tornado.httpserver", "TCPServer")}
"""Where Tornado's object stays: its HTTP server, from which ours inherits, calls the constructor of its TCP server."""


def install() -> dict[str, str]:
    """Put the streams, servers, clients, errors and functions of this package in the place of Tornado's. ::

        import iostreamsrv.tornado

        iostreamsrv.tornado.install()

    It applies to this process: to modules that are imported later, and to the globals of those that are loaded. A
    second call does nothing. Call it first: a subclass of Tornado's classes that exists already stays Tornado's, and
    causes a `RuntimeWarning`.

    :returns: what was replaced: the module and name of each, such as ``tornado.iostream.IOStream``, and the module and
        name of what is there now.
    :raises RuntimeError: this Tornado is too old.
    """
    check_version()
    if _is_installed():
        return {}
    for name in _stranded():
        warnings.warn(
            f"{name} was defined before iostreamsrv.tornado.install() was called, so it still inherits from Tornado's "
            "class: call install() first",
            RuntimeWarning,
            stacklevel=2,
        )
    handshake.default_timeout = OPTIONS.handshake_timeout
    return dict(_replace())


def check_version() -> None:
    """Do nothing if this Tornado is new enough.

    :raises RuntimeError: it is too old.
    """
    if tornado.version_info < MINIMUM_VERSION:
        needed = ".".join(map(str, MINIMUM_VERSION))
        raise RuntimeError(f"iostreamsrv.tornado needs Tornado {needed} or later, and this is {tornado.version}")


def _is_installed() -> bool:
    return all(getattr(sys.modules[each.module], each.name) is each.ours for each in REPLACEMENTS)


def _replace() -> Iterator[tuple[str, str]]:
    ours = {id(each.theirs): each.ours for each in REPLACEMENTS}
    for module_name, names in _loaded():
        for name, value in list(names.items()):
            if id(value) in ours and (module_name, name) not in KEPT:
                names[name] = ours[id(value)]
                yield f"{module_name}.{name}", _full_name(names[name])


def _loaded() -> Iterator[tuple[str, dict[str, Any]]]:
    """The globals of each loaded module, except those of this package: it is built on Tornado's objects."""
    for name, module in list(sys.modules.items()):
        if issubclass(type(module), ModuleType) and name.partition(".")[0] != "iostreamsrv":
            yield name, ModuleType.__getattribute__(module, "__dict__")  # which loads no lazy module


def _stranded() -> list[str]:
    """The subclasses that users have derived from what is to be replaced."""
    classes: list[Any] = [each.theirs for each in REPLACEMENTS if isinstance(each.theirs, type)]
    subclasses = [subclass for each in classes for subclass in each.__subclasses__()]
    return [_full_name(each) for each in subclasses if each.__module__.split(".")[0] not in ("tornado", "iostreamsrv")]


def _full_name(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"
