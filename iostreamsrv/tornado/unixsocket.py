"""A Unix socket that takes the place of another one, as in Tornado."""

import contextlib
import os
import socket
import stat
from pathlib import Path

from ..net.bind import BACKLOG
from ..net.bind import bind_unix_socket as bind_free_socket


def bind_unix_socket(file: str, mode: int = 0o600, backlog: int = BACKLOG) -> socket.socket:
    """`iostreamsrv.netutil.bind_unix_socket`, but it replaces also the file of a server that still listens there.

    Tornado's does so, and a program may rely on it to be restarted without a pause.
    """
    with contextlib.suppress(OSError, ValueError):  # a name that is abstract or invalid
        if stat.S_ISSOCK(Path(os.fsdecode(file)).stat().st_mode):
            Path(os.fsdecode(file)).unlink()
    return bind_free_socket(file, mode, backlog)
