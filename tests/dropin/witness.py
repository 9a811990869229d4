"""Notes which streams and servers a process makes, of Tornado's or of ours, in the file that the environment names.

Each Python of a venv runs it when it starts (see `venvs`), before the program and before anything is swapped. All
streams of ours are Tornado's by inheritance, so one place sees both.
"""

import os

import tornado.iostream
import tornado.tcpserver

REPORT = os.environ["IOSTREAMSRV_DROPIN_REPORT"]
noted: set[type] = set()


def note(made: type) -> None:
    """Write a line about a class, the first time that this process makes one of it.

    Each line is one write to the end of the file: processes may be several, and end by SIGKILL.
    """
    noted.add(made)
    ours = any(base.__module__.split(".")[0] == "iostreamsrv" for base in made.__mro__)
    with open(REPORT, "a") as report:
        report.write(f"{'ours' if ours else 'tornado'} {made.__module__}.{made.__qualname__}\n")


def watch(watched: type) -> None:
    def __new__(cls: type, *arguments: object, **options: object) -> object:
        if cls not in noted:
            note(cls)
        create = super(watched, cls).__new__
        return create(cls) if create is object.__new__ else create(cls, *arguments, **options)

    watched.__new__ = __new__  # type: ignore[method-assign, assignment]


watch(tornado.iostream.BaseIOStream)
watch(tornado.tcpserver.TCPServer)
