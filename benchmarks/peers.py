"""The servers that are compared. Each process runs one of them:

``python -m benchmarks.peers NAME LOOP MODE CORE [TARGET]``

It prints the port it serves and, once its standard input ends, what its timer saw (see `Ticker`), and is gone.

Modes: those of `echoes`; ``tls-lines`` and ``tls-chunks`` are two of them under TLS, with the certificate in the
directory TARGET; ``forward`` forwards to the port TARGET, ``file`` sends files from the directory TARGET,
``broadcast`` sends each line to all clients, ``http`` greets, and ``resp`` is the key-value store.
A process imports what its peer needs and no other's.
"""

import asyncio
import importlib
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import time
from typing import Literal, NamedTuple

from . import echoes
from .broadcasters import BROADCASTERS
from .echoes import ECHOES, VARIANTS
from .files import FILE_SERVERS
from .floor import floor_program
from .forwarders import FORWARDERS
from .machine import BACKLOG, allow_files, avoid_pacing

Mode = Literal[echoes.Mode, "tls-lines", "tls-chunks", "forward", "file", "broadcast", "http", "resp"]

UNDER_TLS: dict[Mode, echoes.Mode] = {"tls-lines": "lines", "tls-chunks": "chunks"}

TICK = 0.010  # seconds


class Peer(NamedTuple):
    """A server on an event loop."""

    name: str
    loop: Literal["asyncio", "uvloop"] = "asyncio"

    def __str__(self) -> str:
        return self.name if self.loop == "asyncio" else f"{self.name}, {self.loop}"

    def installed(self) -> bool:
        if self == FLOOR:
            return floor_program(tls=False) is not None
        if self == PYTHON_CORE:
            import iostreamsrv

            return iostreamsrv.core == "compiled"  # otherwise it is the same as OURS
        modules = (self.loop, *MODULES[self.name].split(".")[:1], *(["httptools"] if self == UVICORN else []))
        return all(importlib.util.find_spec(module) for module in modules)

    def environment(self) -> dict[str, str]:
        """The environment of its process."""
        return {**os.environ, "IOSTREAMSRV_PURE": "1"} if self == PYTHON_CORE else dict(os.environ)


MODULES = {
    "iostreamsrv": "iostreamsrv",
    "iostreamsrv, Python core": "iostreamsrv",
    "Tornado": "tornado.tcpserver",
    "asyncio streams": "asyncio",
    "raw Protocol": "asyncio",
    "iostreamsrv, read and write": "iostreamsrv",
    "iostreamsrv, no limits": "iostreamsrv",
    "iostreamsrv, all limits": "iostreamsrv",
    "iostreamsrv, h11": "h11",
    "iostreamsrv, httptools": "httptools",
}
"""The module that each of them needs."""

OURS, PYTHON_CORE, TORNADO, STREAMS, PROTOCOL, COPYING, UNLIMITED, LIMITED, H11, HTTPTOOLS = map(Peer, MODULES)
FAST_PROTOCOL = Peer(PROTOCOL.name, "uvloop")
UVICORN = Peer("uvicorn, httptools", "uvloop")
MODULES[UVICORN.name] = "uvicorn"
FLOOR = Peer("C, epoll")
"""The program of floor.c: what the kernel alone takes."""

PEERS = tuple(Peer(name, loop) for loop in ("asyncio", "uvloop") for name in ECHOES)
ALL = (OURS, PYTHON_CORE, *PEERS[1:], COPYING, UNLIMITED, LIMITED, H11, HTTPTOOLS, UVICORN, FLOOR)


class Ticker:
    """A 10 ms timer that records when it fired (monotonic clock) and how late, in seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.seen: list[tuple[float, float]] = []
        self._loop = loop
        self._set()

    def _set(self) -> None:
        self._due = time.monotonic() + TICK
        self._loop.call_later(TICK, self._fire)

    def _fire(self) -> None:
        now = time.monotonic()
        self.seen.append((now, now - self._due))
        self._set()


def listen() -> socket.socket:
    # The protocol is spelt out because asyncio turns Nagle's algorithm off only where it sees it.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    avoid_pacing(listener)
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


async def start(name: str, mode: Mode, listener: socket.socket, target: str) -> object:
    if mode == "forward":
        return await FORWARDERS[name](listener, int(target))
    if mode == "file":
        return await FILE_SERVERS[name](listener, target)
    if mode == "tls-lines" or mode == "tls-chunks":
        from .encryption import server_context  # imports more than the servers need for themselves

        return await (ECHOES | VARIANTS)[name](listener, UNDER_TLS[mode], server_context(target))
    if mode == "http":
        from .hello import GREETERS

        return await GREETERS[name](listener)
    if mode == "resp":
        from .resp import SERVERS

        server = SERVERS[name]()
        server.add_socket(listener)
        return server
    if mode == "broadcast":
        return await BROADCASTERS[name](listener)
    return await (ECHOES | VARIANTS)[name](listener, mode)


async def serve(name: str, mode: Mode, target: str) -> None:
    """Serve until EOF on standard input: the measuring process is done, or has died."""
    listener = listen()
    server = await start(name, mode, listener, target)
    loop = asyncio.get_running_loop()
    ticker = Ticker(loop) if mode == "timed" else None
    done = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), done.set)
    print(listener.getsockname()[1], flush=True)
    await done.wait()
    print(json.dumps(ticker.seen if ticker else []), flush=True)
    del server  # was needed till here
    os._exit(0)  # thousands of connections may be open, and nobody waits for their farewell


def main(name: str, loop: str, mode: Mode, core: str, target: str = "") -> None:
    os.sched_setaffinity(0, {int(core)})
    allow_files()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the measuring process, and that this one's input
    logging.disable(logging.WARNING)  # when the load breaks off, asyncio warns of every line that is still to be sent
    importlib.import_module(MODULES[name])
    if loop == "uvloop":
        import uvloop

        uvloop.run(serve(name, mode, target))
    else:
        asyncio.run(serve(name, mode, target))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
