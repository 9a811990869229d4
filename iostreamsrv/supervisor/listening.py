"""The listening sockets of a service: bound by its first process, shared by its workers."""

import contextlib
import socket
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from ..errors import ListenError, OptionError
from ..net.inherited import socket_from_fd
from ..net.unixlistener import UnixListener, file_of
from ..runtime.logs import general
from .binds import Bind


class ServiceListeners:
    """The sockets of all binds.

    :param binds: where to listen.
    :param metrics: where to listen for requests for metrics; None: nowhere.
    :param kept: for an upgrade: the open descriptors, by the texts of their binds. What is still to be bound is taken
        from there, by its place. The rest is closed, unless a new bind fails: that is logged then, and all that was
        listened at goes on.
    :raises OptionError: a descriptor is no listening socket.
    :raises ListenError: a bind fails. Then none is left bound.
    """

    def __init__(
        self, binds: Iterable[Bind], kept: Mapping[str, list[int]] | None = None, metrics: Bind | None = None
    ) -> None:
        self._metrics = metrics
        self._sockets: dict[Bind, list[socket.socket]] = {}
        left = {Bind.parse(text): [_adopted(fd) for fd in fds] for text, fds in (kept or {}).items()}
        with contextlib.ExitStack() as unfinished:
            unfinished.callback(self.close)
            wanted = [*binds] if metrics is None else [*binds, metrics]
            failed = [bind for bind in wanted if not self._open(bind, left, upgraded=kept is not None)]
            unfinished.pop_all()
        for bind, sockets in left.items():
            if failed:  # the new one may need its place; better the old one than none
                self._sockets[bind] = sockets
            else:
                for each in sockets:
                    each.close()

    def _open(self, bind: Bind, left: dict[Bind, list[socket.socket]], upgraded: bool) -> bool:
        """Listen there; return whether it does. A place that was listened at stays, whatever else has changed."""
        same = next((each for each in left if (each.kind, each.where) == (bind.kind, bind.where)), None)
        try:
            self._sockets[bind] = bind.open() if same is None else left.pop(same)
        except (ListenError, OptionError) as error:
            if not upgraded:
                raise
            general.error("%s", error)
            return False
        return True

    def __enter__(self) -> "ServiceListeners":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all. What is in their queues is lost, unless a worker accepts it."""
        for sockets in self._sockets.values():
            for each in sockets:
                each.close()
        self._sockets = {}

    @property
    def addresses(self) -> list[Any]:
        """Where it listens for clients."""
        found = [sockets for bind, sockets in self._sockets.items() if bind != self._metrics]
        return [each.getsockname() for sockets in found for each in sockets]

    @property
    def metrics_addresses(self) -> list[Any]:
        """Where it listens for requests for metrics."""
        sockets = [] if self._metrics is None else self._sockets.get(self._metrics, [])
        return [each.getsockname() for each in sockets]

    @property
    def descriptors(self) -> list[int]:
        """Of all sockets."""
        return [each.fileno() for sockets in self._sockets.values() for each in sockets]

    def for_worker(self) -> list[dict[str, Any]]:
        """The sockets as a worker's job has them."""
        return [
            {"fd": each.fileno(), "tls": bind.tls, "metrics": bind == self._metrics}
            for bind, sockets in self._sockets.items()
            for each in sockets
        ]

    def to_json(self) -> dict[str, list[int]]:
        """What the next supervisor in this process needs, as ``kept``."""
        return {bind.text: [each.fileno() for each in sockets] for bind, sockets in self._sockets.items()}


def _adopted(fd: int) -> socket.socket:
    """A listener of the supervisor before this one. The file of a Unix socket is removed in the end, as by the one that
    made it."""
    listener = socket_from_fd(fd)
    file = file_of(listener)
    if file is None:
        return listener
    owner = UnixListener(fileno=listener.detach())
    owner.setblocking(False)
    owner.own(file)
    return owner
