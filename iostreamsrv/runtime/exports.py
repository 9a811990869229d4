"""What public modules export.

Those with Tornado's names also export every public name of Tornado's module. So a program moves here by changing its
imports, even where it uses what this package leaves to Tornado, such as ``PeriodicCallback``, or a name that Tornado's
module only imports itself.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

MODULES = ("iostream", "ioloop", "tcpserver", "tcpclient", "netutil", "httpserver")
"""The module names that this package and Tornado share."""

OURS = {f"tornado.{name}": f"iostreamsrv.{name}" for name in MODULES}


def names_of(theirs: ModuleType, own: dict[str, Any]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a module that has all public names of Tornado's. ::

        __getattr__, __dir__ = names_of(tornado.ioloop, globals())

    :param theirs: Tornado's module.
    :param own: the module's own names, which come first.
    """

    def get(name: str) -> Any:
        if name.startswith("_") or not hasattr(theirs, name):
            raise AttributeError(f"module {own['__name__']!r} has no attribute {name!r}")
        return _ours(name, getattr(theirs, name), theirs)

    def names() -> list[str]:
        return sorted({*own, *(name for name in dir(theirs) if not name.startswith("_"))})

    return get, names


def _ours(name: str, value: Any, where: ModuleType) -> Any:
    """This package's counterpart of what Tornado's module ``where`` has imported from another one; else ``value``."""
    if isinstance(value, ModuleType):
        return importlib.import_module(OURS[value.__name__]) if value.__name__ in OURS else value
    home = getattr(value, "__module__", None)
    if home in OURS and home != where.__name__:
        return getattr(importlib.import_module(OURS[home]), name)
    return value


Public = TypeVar("Public", bound=Callable[..., Any])


def set_module(name: str) -> Callable[[Public], Public]:
    """Say that a class or function belongs to a public module, wherever in the package it is written.

    That is the name which ``repr``, `pickle` and the documentation show, and users should import from.
    """

    def decorate(named: Public) -> Public:
        named.__module__ = name
        return named

    return decorate
