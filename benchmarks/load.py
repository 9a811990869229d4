"""The load generator: ``load.c``, compiled on demand. One in Python would be slower than the servers."""

import socket
import subprocess
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from .programs import compiled
from .servers import MeasurementError

Kind = Literal["lines", "churn", "bulk", "flow", "file", "broadcast"]

SOURCE = Path(__file__).with_name("load.c")
WARM = 0.25  # seconds; by then the interpreter has specialised its code, and malloc its thresholds
PATIENCE = 30.0


class Counted(NamedTuple):
    """One measurement: what was echoed, the start and end on the monotonic clock, and the CPU seconds of both sides."""

    bytes: int
    start: float
    end: float
    server_cpu: float
    load_cpu: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Target(Protocol):
    """The target of the load: a process that serves a port."""

    @property
    def port(self) -> int: ...

    @property
    def pid(self) -> int: ...

    @property
    def upstream(self) -> socket.socket | None:
        """For a forwarder: the listener it forwards to. The load generator accepts these connections and echoes."""


class Load:
    """A compiled load generator.

    :ivar program: where it is.
    :ivar ciphers: those that servers have agreed on with it.
    """

    def __init__(self, program: Path) -> None:
        self.program = program
        self.ciphers: set[str] = set()

    @classmethod
    def compiled(cls, folder: Path, *, tls: bool = False) -> "Load | None":
        """Compile it into ``folder``; None if there is no C compiler, or if it fails, which is printed.

        :param tls: whether it speaks TLS, which takes OpenSSL to compile.
        """
        program = compiled(SOURCE, folder, tls=tls)
        return None if program is None else cls(program)

    def run(self, server: Target, kind: Kind, connections: int, size: int, depth: int, seconds: float) -> Counted:
        listeners = [server.upstream.fileno()] if server.upstream else []
        words = (server.port, server.pid, kind, connections, size, depth, WARM, seconds, *listeners)
        command = [str(self.program), *map(str, words)]
        patience = WARM + seconds + PATIENCE
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=patience, pass_fds=listeners)
        except subprocess.TimeoutExpired:
            raise MeasurementError("the load generator hung") from None
        if ended.returncode:
            raise MeasurementError(ended.stderr.strip() or f"the load generator ended with {ended.returncode}")
        count, start, end, server_cpu, load_cpu, *cipher = ended.stdout.split()
        if not int(count):
            raise MeasurementError("nothing came back")
        self._note(*cipher)
        return Counted(int(count), float(start), float(end), float(server_cpu), float(load_cpu))

    def _note(self, cipher: str = "") -> None:
        """Check the cipher: figures of servers with different ciphers are not comparable."""
        if cipher:
            self.ciphers.add(cipher)
        if len(self.ciphers) > 1:
            raise MeasurementError(f"the servers do not agree on a cipher: {', '.join(sorted(self.ciphers))}")
