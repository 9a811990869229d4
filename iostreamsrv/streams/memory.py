"""Streams in memory, without descriptors: both ends are in this process.

:class:`MemoryHub` replaces epoll, a ``MemorySocket`` replaces a socket. Everything above is the code that serves real
clients.
"""

from typing import Any, cast

from tornado.ioloop import IOLoop

from ..iostream import IOStream
from .hub import Hub
from .readiness import Dispatched
from .transports.base import Transport
from .transports.memory import MemorySocket, MemoryTransport, ignore_events

_HUB = "_iostreamsrv_memory_hub"
"""The attribute of an `IOLoop` that holds the hub of its memory streams."""


class MemoryHub(Hub):
    """The hub of a loop's memory streams. Like epoll, it reports changes, and each stream once in a batch."""

    def watch_reads(self, stream: Dispatched) -> bool:
        return self._watch(cast(MemoryStream, stream))

    def watch_writes(self, stream: Dispatched) -> bool:
        return self._watch(cast(MemoryStream, stream))

    def _watch(self, stream: "MemoryStream") -> bool:
        end: MemorySocket = cast(Any, stream.socket)

        def notify(events: int) -> None:
            self._enqueue(stream, events)
            if not self.loop.is_closed():
                self._schedule()

        end.notify = notify
        if end.events():
            notify(end.events())
        return True

    def unwatch(self, stream: Dispatched) -> None:
        cast(Any, stream).socket.notify = ignore_events


class MemoryStream(IOStream):
    """A stream on one end of a connection in memory. It is connected from the start."""

    __slots__ = ()

    @staticmethod
    def _hub_of(io_loop: IOLoop) -> Hub:
        hub: Hub | None = getattr(io_loop, _HUB, None)
        if hub is None:
            hub = MemoryHub(io_loop)
            setattr(io_loop, _HUB, hub)
        return hub

    def _new_transport(self) -> Transport:
        return MemoryTransport(self.socket)
