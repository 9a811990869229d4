"""How many descriptors this process may have, and so how many connections."""

import contextlib
from types import ModuleType

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None

OTHERS = 64
"""Descriptors that are left for whatever else a server has open: its log, its epoll, its database."""

PER_LISTENER = 2
"""Descriptors of a listener: its own, and one in reserve for when there are none left."""

MOST = 10_000
"""Connections that are taken by default, however many descriptors there are: some 20 MB, some 200 MB under TLS."""


def default_connections(listeners: int = 0, doubles: int = 0) -> int:
    """How many connections a server may have that was not told: so many that accept() never finds the descriptors used
    up, as HAProxy does it.

    :param listeners: how many there are.
    :param doubles: how many more descriptors connections may take at a time: a second one, or that of a client who is
        told that there is no place.
    """
    if resource is None:
        return MOST
    soft: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return MOST
    free = soft - PER_LISTENER * listeners
    free = max(free - OTHERS, free // 2)
    return max(1, min(MOST, max(free - doubles, free // 2)))


def raise_limit(connections: float | None, doubles: int = 0) -> None:
    """Raise the soft limit of descriptors, as far as the hard one allows, so that there are enough for so many.

    :param connections: None: for :data:`MOST`.
    :param doubles: as for :func:`default_connections`.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = int(min(connections or MOST, 1 << 20)) + doubles + OTHERS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # some systems have a limit of their own below the hard one
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
