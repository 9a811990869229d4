"""Notes which streams and servers a process makes, of Tornado's or of ours, in the file that the environment names.

Each Python of a venv runs it when it starts (see `venvs`), before the program and before anything is swapped. It does
not import Tornado: it waits until the program does. All streams of ours are Tornado's by inheritance, and all servers
that were swapped, so one place sees both.
"""

import os
import sys
from importlib.machinery import PathFinder
from typing import Any

REPORT = os.environ["IOSTREAMSRV_DROPIN_REPORT"]
WATCHED = {"tornado.iostream": "BaseIOStream", "tornado.tcpserver": "TCPServer"}
noted: set[type] = set()


def note(made: type) -> None:
    """Write a line about a class, the first time that this process makes one of it.

    Each line is one write to the end of the file: processes may be several, and end by SIGKILL.
    """
    noted.add(made)
    ours = any(base.__module__.split(".")[0] == "iostreamsrv" for base in made.__mro__)
    with open(REPORT, "a") as report:  # noqa: PTH123  # pathlib takes milliseconds to load, in every process
        report.write(f"{'iostreamsrv' if ours else 'tornado'} {made.__module__}.{made.__qualname__}\n")


def watch(watched: type) -> None:
    """Note what is made of a class and of all that inherit from it."""

    def __new__(cls: type, *arguments: object, **options: object) -> object:
        if cls not in noted and sys._getframe(1).f_globals["__name__"] != "iostreamsrv.httpserver":
            note(cls)
        create = super(watched, cls).__new__
        return create(cls) if create is object.__new__ else create(cls, *arguments, **options)

    watched.__new__ = __new__  # type: ignore[method-assign, assignment]


class Finder:
    """Sees Tornado's modules when they are imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in WATCHED:
            return None
        spec: Any = PathFinder.find_spec(name, path, target)
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                watch(getattr(module, WATCHED[name]))

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
