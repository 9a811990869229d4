"""The processes of a session, as /proc shows them: whoever a service has started, and whoever it has left behind."""

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """One process.

    :ivar dead: whether only its parent's look at it is outstanding.
    """

    pid: int
    parent: int
    dead: bool


def of_session(session: int) -> list[Process]:
    """All processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            state, parent, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session:
                found.append(Process(int(entry.name), int(parent), state in "ZX"))
    return found


def alive(session: int) -> list[int]:
    """The processes of a session that run."""
    return [each.pid for each in of_session(session) if not each.dead]


def kill_all(session: int) -> None:
    """End a session, however much it starts meanwhile."""
    for _ in range(100):
        left = alive(session)
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def descriptors(pid: int) -> int:
    """How many a process has open; none if it has ended."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0


def can_bind(port: int) -> bool:
    """Whether nobody listens on a port. Connections that have ended there are no obstacle, as for any server."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True
