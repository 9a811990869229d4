"""Witnesses whether our classes or Tornado's are at work."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import iostreamsrv
from iostreamsrv.tornado.replacements import REPLACEMENTS

THEIRS = {each.name: each.theirs for each in REPLACEMENTS}
"""What `iostreamsrv.tornado` replaces in Tornado, by its name."""

CHILD_REPORT = "IOSTREAMSRV_CONFORMANCE_REPORT"
"""The environment variable that tells a child process the file to report to."""


class Seen(NamedTuple):
    """The classes that were instantiated, each by its name, ours and Tornado's."""

    ours: set[str]
    theirs: set[str]


class Witness:
    """Sees every stream, client and server that is made, in this process and in the children that have `report`.

    :param report: the file that children append to.
    """

    def __init__(self, report: Path) -> None:
        self.report = report
        self._lines: list[str] = []

    def watch(self) -> None:
        """Begin to see, in this process."""
        _observe(self._lines.append)

    def take(self) -> Seen:
        """What was seen since the last time."""
        lines = self._lines + self.report.read_text().split()
        self._lines.clear()
        self.report.write_text("")
        sides = [line.split(":") for line in lines]
        return Seen(
            {name for side, name in sides if side == "ours"}, {name for side, name in sides if side == "theirs"}
        )


def watch_child() -> None:
    """Begin to see, in a child process: report to the file that the environment names."""

    def append(line: str) -> None:
        # Each line in one write to the end of the file: children may be several, and end by os._exit.
        with Path(os.environ[CHILD_REPORT]).open("a") as report:
            report.write(f"{line}\n")

    _observe(append)


def _observe(note: Any) -> None:
    """Call ``note("ours:IOStream")`` and the like whenever a stream, client or server is made, of whichever subclass.

    All streams are Tornado's by inheritance, ours too. But an extension type of the compiled core makes its objects
    without Tornado's class.
    """
    _hook(iostreamsrv.BaseIOStream, lambda made: note(_side(made, iostreamsrv.BaseIOStream)))
    _hook(THEIRS["BaseIOStream"], lambda made: note(_side(made, iostreamsrv.BaseIOStream)))
    _hook(iostreamsrv.TCPClient, lambda made: note(_side(made, iostreamsrv.TCPClient)))
    _hook(THEIRS["TCPClient"], lambda made: note(_side(made, iostreamsrv.TCPClient)))
    _hook(iostreamsrv.TCPServer, lambda made: note(_side(made, iostreamsrv.TCPServer)))
    _hook(
        THEIRS["TCPServer"],
        lambda made: issubclass(made, THEIRS["HTTPServer"]) or note(_side(made, iostreamsrv.TCPServer)),
    )


def _side(made: type, ours: type) -> str:
    return f"{'ours' if issubclass(made, ours) else 'theirs'}:{made.__name__}"


def _hook(watched: Any, made: Any) -> None:
    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:
        made(cls)
        create = super(watched, cls).__new__
        return create(cls) if create is object.__new__ else create(cls, *args, **kwargs)

    watched.__new__ = __new__
