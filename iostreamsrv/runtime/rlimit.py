"""The limit of open descriptors (RLIMIT_NOFILE), and the number of connections that follows from it."""

import contextlib
from types import ModuleType

from .kernel import current_kernel

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None

RESERVED_FDS = 64
"""Descriptors kept free for everything else that a server opens: its log, its epoll, its database."""

PER_LISTENER = 2
"""Descriptors of a listener: the socket, and one in reserve for when none is left."""

DEFAULT_MAX_CONNECTIONS = 10_000
"""The default limit of connections, however many descriptors are available: about 20 MB, about 200 MB with TLS."""


def default_connections(listeners: int = 0, doubles: int = 0) -> int:
    """The default of ``max_connections``: as many as the descriptors allow, so that accept() never runs out of them.
    (HAProxy does the same.)

    :param listeners: number of listeners.
    :param doubles: number of further descriptors that connections may need at a time: a second one for a client, or
        that of a client that is being rejected.
    """
    soft = current_kernel().descriptor_limit()
    if soft is None:
        return DEFAULT_MAX_CONNECTIONS
    free = soft - PER_LISTENER * listeners
    free = max(free - RESERVED_FDS, free // 2)
    return max(1, min(DEFAULT_MAX_CONNECTIONS, max(free - doubles, free // 2)))


def raise_limit(connections: float | None, doubles: int = 0) -> None:
    """Raise the soft limit of descriptors for this many connections, as far as the hard limit allows.

    :param connections: None for :data:`DEFAULT_MAX_CONNECTIONS`.
    :param doubles: as for :func:`default_connections`.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = int(min(connections or DEFAULT_MAX_CONNECTIONS, 1 << 20)) + doubles + RESERVED_FDS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # some systems have another limit, below the hard one
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
