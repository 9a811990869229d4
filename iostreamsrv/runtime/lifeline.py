"""End this process when the one that watches over it is gone.

The other process holds one end of a pipe, or of a pair of sockets, and never needs to do anything: however it ends, the
kernel closes that end.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable

CHUNK = 4096


def watch(fd: int, patience: Callable[[], float], on_byte: Callable[[], object] | None = None) -> None:
    """Wait in a thread until ``fd`` is at its end, then have this process end: by SIGTERM, as a user would, and after
    ``patience()`` seconds by SIGKILL. So a process ends whose loop is blocked by a handler, unless that is in code in C
    that keeps the interpreter's lock: then it ends when that returns.

    Call it in the process that it is for, not before a fork: a child has no thread of its parent.

    :param fd: a descriptor that can be read from, not used by anything else. It is closed at its end.
    :param patience: gives these seconds, in that thread; `math.inf` to send no SIGKILL.
    :param on_byte: called in that thread for each byte that comes.
    """
    os.set_blocking(fd, True)
    threading.Thread(target=_watch, args=(fd, patience, on_byte), name="iostreamsrv lifeline", daemon=True).start()


def _watch(fd: int, patience: Callable[[], float], on_byte: Callable[[], object] | None) -> None:
    with contextlib.suppress(OSError):  # ECONNRESET of a socket, for example
        while came := os.read(fd, CHUNK):
            if on_byte is not None:
                for _ in came:
                    on_byte()
    with contextlib.suppress(OSError):
        os.close(fd)
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(min(patience(), threading.TIMEOUT_MAX))
    os.kill(os.getpid(), signal.SIGKILL)
