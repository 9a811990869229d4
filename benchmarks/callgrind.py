"""Instructions of a server in user space, counted by valgrind's callgrind: hardly noisy, also on a busy machine."""

import os
import re
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .peers import Mode, Peer
from .programs import compiled
from .servers import MeasurementError, Server

LIBRARY = Path(__file__).with_suffix(".c")
CONNECTIONS = 50
PATIENCE = 60.0
LINE = b"x" * 63 + b"\n"
SETTINGS = ("env", "--unset=PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED=1")
"""The bytecode is cached, or the first run would compile it; and sets have the same order in each run."""

Spent = dict[str, float]
"""Instructions by the path of the program or library they belong to."""


@dataclass(frozen=True)
class Traffic:
    """What the clients do.

    :ivar title: a description, for people.
    :ivar warm: rounds that do not count; by then the interpreter has specialised its code.
    :ivar rounds: those that count.
    :ivar depth: lines that each connection sends at once; 0: a connection for each line.
    """

    name: str
    title: str
    mode: Mode
    warm: int
    rounds: int
    depth: int = 1

    @property
    def operations(self) -> int:
        return self.rounds * (CONNECTIONS * self.depth or 1)

    def connect(self, server: Server) -> list[socket.socket]:
        """The connections that stay, each after a first line."""
        clients = [server.connect() for _ in range(CONNECTIONS if self.depth else 0)]
        for client in clients:
            _exchange(client, LINE)
        return clients

    def drive(self, server: Server, clients: Sequence[socket.socket], rounds: int) -> None:
        for _ in range(rounds):
            if not self.depth:
                with server.connect() as client:
                    _exchange(client, LINE)
                continue
            with server.paused():  # or how many it finds at once would depend on how busy the machine is
                _send(clients, LINE * self.depth)
            _receive(clients, len(LINE) * self.depth)


TRAFFIC = {
    traffic.name: traffic
    for traffic in (
        Traffic("echo", "echo, 50 connections, 64 bytes", "lines", 10, 40),
        Traffic("pipelined", "the same, 16 lines in flight", "lines", 5, 10, depth=16),
        Traffic("churn", "connect, one line, close", "lines", 50, 200, depth=0),
        Traffic("tls", "TLS echo, 50 connections, 64 bytes", "tls-lines", 10, 30),
    )
}
"""Named as the workloads they resemble."""


class Callgrind:
    """Counts instructions of servers.

    :param folder: for its files, for as long as it is used.
    :raises MeasurementError: there is no valgrind, or no C compiler.
    """

    def __init__(self, folder: Path) -> None:
        library = compiled(LIBRARY, folder, library=True)
        if library is None or shutil.which("valgrind") is None:
            raise MeasurementError("it needs valgrind and a C compiler (Debian and Ubuntu: apt install valgrind gcc)")
        self._folder = folder
        self._library = library

    def instructions(self, peer: Peer, traffic: Traffic, core: int) -> Spent:
        """Instructions per operation, of a server that is warm."""
        file = self._folder / f"{peer}-{traffic.name}"
        tool = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={file}", "--dump-before=mark"]
        server = Server(
            peer, traffic.mode, core, [*SETTINGS, f"LD_PRELOAD={self._library}", *tool], "benchmarks.steady"
        )
        try:
            clients = traffic.connect(server)
            traffic.drive(server, clients, traffic.warm)
            _mark(server, Path(f"{file}.1"))
            traffic.drive(server, clients, traffic.rounds)
            _mark(server, Path(f"{file}.2"))
            for client in clients:
                client.close()
        finally:
            server.stop()
        with Path(f"{file}.2").open(encoding="utf-8", errors="replace") as lines:
            return {path: count / traffic.operations for path, count in by_object(lines).items()}


def _mark(server: Server, file: Path) -> None:
    """Have callgrind write what it has counted so far into ``file``, and begin anew."""
    os.kill(server.pid, signal.SIGUSR1)
    late = time.monotonic() + PATIENCE
    while not file.exists() or "totals:" not in file.read_text(encoding="utf-8", errors="replace")[-200:]:
        if time.monotonic() > late:
            raise MeasurementError("callgrind wrote no profile")
        time.sleep(0.05)


def by_object(profile: Iterable[str]) -> Spent:
    """The instructions in callgrind's file, by the object they belong to, without those of the functions it calls."""
    names: dict[str, str] = {}
    spent: Counter[str] = Counter()
    current, is_call = "", False
    for line in profile:
        if match := re.match(r"ob=(\(\d+\)) ?(.*)", line) or re.match(r"cob=(\(\d+\)) (.*)", line):
            number, name = match.groups()
            names.setdefault(number, name)
            if line.startswith("ob="):
                current = names[number]
        elif line.startswith("calls="):
            is_call = True
        elif line[:1] in "0123456789+-*":
            if not is_call:
                spent[current] += int(line.split()[-1])
            is_call = False
    if not spent:
        raise MeasurementError("callgrind counted nothing")
    return dict(spent)


def _exchange(client: socket.socket, data: bytes) -> None:
    _send([client], data)
    _receive([client], len(data))


def _send(clients: Sequence[socket.socket], data: bytes) -> None:
    for client in clients:
        client.sendall(data)


def _receive(clients: Sequence[socket.socket], size: int) -> None:
    """Wait until so many bytes are back on each connection."""
    for client in clients:
        rest = size
        while rest:
            received = len(client.recv(rest))
            if not received:
                raise MeasurementError("the server closed a connection")
            rest -= received
