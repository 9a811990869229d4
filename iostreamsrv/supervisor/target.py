"""The server that "module:Target" names: found, imported and made, in a worker or for ``--check``."""

import importlib
import inspect
import os
import pkgutil
import sys
import traceback
from functools import partial
from types import ModuleType, TracebackType
from typing import Any

import tornado.tcpserver
import tornado.web

from ..errors import OptionError
from ..runtime.addresses import show
from ..runtime.callables import takes
from ..runtime.checks import nearest
from ..runtime.text import printable
from ..server.base import core_of, has_core
from ..server.core import ServerCore
from ..tcpserver import TCPServer
from .settings import Settings


class TargetError(Exception):
    """The target is not there, or is no server; or its code raised, which is the ``__cause__`` then.

    :ivar details: the traceback of the user's code, if that raised, in lines; else "".
    """

    def __init__(self, target: str, problem: str, details: str = "") -> None:
        super().__init__(target, problem, details)
        self.details = details

    def __str__(self) -> str:
        target, problem, _ = self.args
        return printable(f"{target}: {problem}")


def load(target: str) -> Any:
    """What "module:Target" names. The current folder comes first in ``sys.path``, and stays there.

    :raises TargetError: there is no such module or attribute, or no current folder; or the module raised.
    """
    module_name, _, path = target.partition(":")
    try:
        folder = os.getcwd()  # noqa: PTH109
    except OSError as error:
        raise TargetError(target, f"the current folder is not there: {error.strerror}") from None
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    found: Any = _imported(target, module_name)
    where = f"the module {module_name}"
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            near = nearest(name, [each for each in dir(found) if not each.startswith("__")])
            hint = "" if near is None else f": did you mean {near!r}?"
            raise TargetError(target, f"{where} has no {name!r}{hint}") from None
        where = name
    return found


def server_of(loaded: Any, settings: Settings) -> TCPServer:
    """The server that a loaded target is, or makes, with the options of ``settings`` in place of its own.

    A subclass of `TCPServer` is called with these options; an instance is changed. A coroutine function of two
    arguments becomes the ``handle_stream`` of a `TCPServer`. Any other function is called without arguments, and
    returns a server.

    :raises TargetError: it is no server, or has no handler; it listens already; or its code raised.
    :raises OptionError: an option is invalid, or a certificate.
    """
    target = settings.target
    server = _made(target, loaded, _given(settings))
    if not isinstance(server, TCPServer):
        raise TargetError(target, _why_no_server(server))
    if not has_core(server):
        raise TargetError(target, "its __init__ does not call super().__init__()")
    core = core_of(server)
    if core.listeners.addresses:
        there = ", ".join(map(show, core.listeners.addresses))
        raise TargetError(target, f"listens already, on {there}: leave that to the option --bind")
    _apply(core, _given(settings))
    try:
        core.need_handler()
    except (NotImplementedError, OptionError) as error:
        raise TargetError(target, str(error)) from None
    return server


# ---- importing


def _imported(target: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise TargetError(target, f"the import of {name} failed: {error}", _traceback(error)) from error
        raise TargetError(target, _why_not_found(error.name)) from None
    except SystemExit as error:
        ended = f"the import of {name} ended the program, with exit code {error.code!r}"
        raise TargetError(target, f'{ended}: has it an if __name__ == "__main__"?', _traceback(error)) from error
    except Exception as error:
        raise TargetError(target, f"the import of {name} failed: {_shown(error)}", _traceback(error)) from error


def _why_not_found(missing: str) -> str:
    parent, _, name = missing.rpartition(".")
    if parent and not hasattr(sys.modules.get(parent), "__path__"):
        return f"there is no module {missing!r}: {parent!r} is not a package"
    folders = list(sys.modules[parent].__path__) if parent else [sys.path[0]]
    near = nearest(name, [module.name for module in pkgutil.iter_modules(folders)])
    hint = "" if near is None else f": did you mean {f'{parent}.{near}'.lstrip('.')!r}?"
    return f"there is no module {missing!r} in {', '.join(folders)}{'' if parent else ' or where Python looks'}{hint}"


# ---- making the server


def _given(settings: Settings) -> dict[str, Any]:
    """The keywords of a server that the settings have."""
    if settings.tls_cert is None:
        return settings.options
    return {**settings.options, "ssl_options": {"certfile": settings.tls_cert, "keyfile": settings.tls_key}}


def _made(target: str, loaded: Any, keywords: dict[str, Any]) -> Any:
    if isinstance(loaded, type) and issubclass(loaded, TCPServer):
        return _called(target, loaded, _accepted_by(target, loaded, keywords))
    if inspect.iscoroutinefunction(loaded):
        if not takes(loaded, 2):
            problem = f"is a coroutine function of {inspect.signature(loaded)}: a handler takes (stream, address)"
            raise TargetError(target, f"{problem}, and a function that makes the server is a plain one")
        server = TCPServer(**keywords)
        server.handle_stream = loaded  # type: ignore[method-assign]
        return server
    if inspect.isroutine(loaded) or isinstance(loaded, partial):
        if not takes(loaded, 0):
            problem = f"is a function of {inspect.signature(loaded)}: one that makes the server takes no arguments"
            raise TargetError(target, f"{problem}, and a handler is a coroutine function: async def")
        return _called(target, loaded, {})
    return loaded


def _accepted_by(target: str, kind: type[TCPServer], keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords, if a class takes them; none, if its constructor has no parameters: they are set afterwards."""
    signature = inspect.signature(kind)
    for arguments in (keywords, {}):
        try:
            signature.bind(**arguments)
        except TypeError:
            continue
        return arguments
    problem = f"needs other arguments than options, {signature}: name a function that makes the server"
    raise TargetError(target, problem)


def _called(target: str, make: Any, keywords: dict[str, Any]) -> Any:
    try:
        return make(**keywords)
    except OptionError:
        raise
    except (Exception, SystemExit) as error:
        name = target.partition(":")[2]
        raise TargetError(target, f"{name}() failed: {_shown(error)}", _traceback(error)) from error


def _why_no_server(found: Any) -> str:
    wrapped = "from iostreamsrv.httpserver import HTTPServer; server = HTTPServer(application)"
    if isinstance(found, tornado.web.Application):
        return f"is an Application of Tornado, which needs a server around it: {wrapped}"
    if isinstance(found, type) and issubclass(found, TCPServer):
        return f"made a class, {found.__name__}: it must make a server, {found.__name__}()"
    if isinstance(found, type):
        whose = " of Tornado's own server" if issubclass(found, tornado.tcpserver.TCPServer) else ""
        return f"is a class{whose}, {found.__name__}: it must be a subclass of iostreamsrv.TCPServer"
    if isinstance(found, tornado.tcpserver.TCPServer):
        return "is Tornado's own server: import it from iostreamsrv instead of tornado"
    if isinstance(found, ModuleType):
        return f"is a module, {found.__name__}: name a server in it"
    kind = type(found).__name__
    return f"is no server but {'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}: it must be an iostreamsrv.TCPServer"


def _apply(core: ServerCore, keywords: dict[str, Any]) -> None:
    """Have a server use these, if its constructor has not taken them."""
    changes = {name: value for name, value in keywords.items() if name != "ssl_options"}
    ssl_options = keywords.get("ssl_options", core.ssl_options)
    options = core.options.replaced(changes)
    if options != core.options or ssl_options != core.ssl_options:
        core.set_options(options)
        core.set_ssl_options(ssl_options)


# ---- errors of the user's code


def _shown(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _traceback(error: BaseException) -> str:
    """The traceback of an error, from the user's code on: without what has called that."""
    frames = error.__traceback__
    while frames is not None and _is_outside(frames):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


def _is_outside(frames: TracebackType) -> bool:
    name = frames.tb_frame.f_globals.get("__name__", "")
    return bool(name == __name__ or name.partition(".")[0] == "importlib")
