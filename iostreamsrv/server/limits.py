"""The limits of a server: how many connections there may be, how many from one address, and which one is evicted.

Each open stream holds a permit. If a full server lets new clients wait (``when_full="wait"``), the permit is acquired
before the accept, so that the kernel's backlog is the queue.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address
from operator import itemgetter
from typing import Any

from ..errors import CloseReason
from ..events import Event, Events
from ..iostream import IOStream
from ..options import ServerOptions
from ..runtime.rlimit import default_connections

CANDIDATES = 64
"""Streams to choose at once for eviction, so that in a rush not every new client sorts all streams."""


class ConnectionLimits:
    """Which connections may be accepted.

    :param streams: the streams that hold a permit, by id.
    :param on_capacity: called when there is room again for a waiting client.
    :param max_rejecting: gives how many rejected clients may be open at a time; each needs a descriptor.
    :ivar capacity: how many connections there may be.
    :ivar listeners: the number of listeners, which need descriptors, too.
    """

    def __init__(
        self,
        streams: Mapping[int, IOStream],
        options: ServerOptions,
        events: Events,
        on_capacity: Callable[[], None],
        max_rejecting: Callable[[], int],
    ) -> None:
        self.capacity = int(options.max_connections or 1)
        self.listeners = 0
        self._streams = streams
        self._options = options
        self._events = events
        self._on_capacity = on_capacity
        self._max_rejecting = max_rejecting
        self._waiting = False
        self._of_host: Counter[str] = Counter()
        self._hosts: dict[int, str] = {}  # the host for which a stream is counted
        self._candidates: list[tuple[IOStream, float]] = []

    def set_options(self, options: ServerOptions) -> None:
        """Apply new options."""
        self._options = options
        self.refresh_capacity()
        self._of_host.clear()
        self._hosts.clear()
        if options.max_connections_per_ip is not None:
            for stream in self._streams.values():
                if options.proxy_protocol is None or stream.proxy is not None:  # otherwise its header is still to come
                    self.count(stream, host_of(stream.remote_address))

    # ---- all

    def refresh_capacity(self) -> None:
        """Compute the capacity again: the limit of descriptors, from which it may follow, can have changed."""
        self.capacity = int(self._options.max_connections or self._default_capacity())
        self.wake_waiting()

    def _default_capacity(self) -> int:
        rejects = self._options.when_full != "wait" or self._options.max_connections_per_ip is not None
        return default_connections(self.listeners, self._max_rejecting() if rejects else 0)

    def has_capacity(self) -> bool:
        """Whether there is room for one more connection."""
        return len(self._streams) < self.capacity

    def may_accept(self) -> bool:
        """Whether to accept one more: there is room, or a full server rejects or evicts."""
        return len(self._streams) < self.capacity or self._options.when_full != "wait"

    def has_descriptor_for(self, queued: int) -> bool:
        """Whether there is a descriptor for one more, besides those of ``queued`` connections without a permit."""
        return len(self._streams) + queued < max(self.capacity, self._default_capacity())

    def mark_waiting(self) -> None:
        """Record that a client waits: call ``on_capacity`` when there is room."""
        if not self._waiting:
            self._waiting = True
            text = f"there are {len(self._streams)} connections (max_connections): new ones wait"
            self._events.emit(Event("limit", text, logging.WARNING))

    def wake_waiting(self) -> None:
        """Call ``on_capacity`` if there is room for a client that waits."""
        if self._waiting and self.may_accept():
            self._waiting = False
            self._on_capacity()

    # ---- by address

    def ip_limit_reached(self, host: str | None) -> bool:
        """Whether ``host`` has as many connections as ``max_connections_per_ip``."""
        limit = self._options.max_connections_per_ip
        return limit is not None and host is not None and self._of_host[host] >= limit

    def count(self, stream: IOStream, host: str | None) -> None:
        """Count ``stream`` for its host."""
        if host is not None:
            self._of_host[host] += 1
            self._hosts[stream.id] = host

    def discount(self, stream: IOStream) -> None:
        """Remove ``stream`` from the count."""
        host = self._hosts.pop(stream.id, None)
        if host is not None:
            self._of_host[host] -= 1
            if not self._of_host[host]:
                del self._of_host[host]

    # ---- eviction

    def evict(self, is_evictable: Callable[[IOStream], bool]) -> bool:
        """Close the evictable stream that has received nothing for the longest time; return whether there was one."""
        for _ in range(2):
            while self._candidates:
                stream, since = self._candidates.pop()
                if not stream.closed() and stream.activity().received_at == since and is_evictable(stream):
                    stream.terminate(CloseReason.EVICTED)
                    stream.discard_output()
                    return True
            waiting = [(each, each.activity().received_at) for each in self._streams.values() if is_evictable(each)]
            self._candidates = sorted(waiting, key=itemgetter(1))[:CANDIDATES][::-1]
        return False


def host_of(address: Any) -> str | None:
    """The host of an address, for limits: an IPv4 address, or a /64 of IPv6; None for Unix sockets."""
    if not isinstance(address, tuple):
        return None
    host = str(address[0])
    if ":" not in host:
        return host
    ip = IPv6Address(host.partition("%")[0])
    return str(ip.ipv4_mapped or IPv6Address(int(ip) >> 64 << 64))
