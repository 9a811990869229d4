"""A process with one server: ``python -m tests.faults.child KIND BEHAVIOUR SETTINGS``.

It says on which port it listens, prints a report for SIGUSR1, and logs to stderr.
"""

import asyncio
import gc
import importlib
import json
import resource
import signal
import socket
import sys
from collections import Counter
from typing import Any

MODULES = {"iostreamsrv": "ours", "Tornado": "tornados", "asyncio": "streams"}
"""Where each kind is. A process imports its own and no other's."""

BACKLOG = 1024
"""Of all of them, so that nobody's clients are not even let into the queue."""


class Surroundings:
    """What a server is told, and what it tells.

    :ivar tally: what its handlers count.
    """

    def __init__(self, behaviour: str, settings: dict[str, Any]) -> None:
        self.behaviour = behaviour
        self.files: dict[str, str] | None = settings["files"]
        self.options: dict[str, Any] = settings["options"]
        self.without: str | None = settings["without"]
        self.tally: Counter[str] = Counter()
        self._descriptors: int | None = settings["descriptors"]

    def listening(self, loop: asyncio.AbstractEventLoop, address: tuple[str, int]) -> None:
        """The server is ready, on ``loop``: say so."""
        signal.signal(signal.SIGUSR1, lambda *_: self._report(loop))
        if self._descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._descriptors, self._descriptors))
        print("listening on {}:{}".format(*address))

    def _report(self, loop: asyncio.AbstractEventLoop) -> None:
        gc.collect()
        print({"tasks": len(asyncio.all_tasks(loop)), "tally": dict(self.tally)})


def port_of(listener: socket.socket) -> tuple[str, int]:
    address: tuple[str, int] = listener.getsockname()
    return address


def main(kind: str, behaviour: str, settings: str) -> None:
    importlib.import_module(f"tests.faults.{MODULES[kind]}").serve(Surroundings(behaviour, json.loads(settings)))


if __name__ == "__main__":
    main(*sys.argv[1:])
