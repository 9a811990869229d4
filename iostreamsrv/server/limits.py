"""The limits of a server: how many connections there may be, how many from one address, and which one is evicted.

Each open stream holds a permit. If a full server lets new clients wait (``when_full="wait"``), the permit is acquired
before the accept, so that the kernel's backlog is the queue.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import Context
from ipaddress import IPv6Address
from operator import itemgetter
from typing import Any

from ..errors import CloseReason
from ..events import Event, Events
from ..iostream import IOStream, SSLIOStream
from ..options import ServerOptions
from ..runtime.clock import current_wall_time
from ..runtime.rlimit import default_connections
from .siblings import ROOM_CHECK, Siblings, Turn

CANDIDATES = 64
"""Streams to choose at once for eviction, so that in a rush not every new client sorts all streams."""


class ConnectionLimits:
    """Which connections may be accepted.

    :param streams: the streams that hold a permit, by id.
    :param on_capacity: called when there is room again for a waiting client.
    :param max_rejecting: gives how many rejected clients may be open at a time; each needs a descriptor.
    :ivar capacity: how many connections there may be.
    :ivar listeners: the number of listeners, which need descriptors, too.
    :ivar siblings: the other processes that serve the same clients; None for a server that is alone.
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
        self.siblings: Siblings | None = None
        self._streams = streams
        self._options = options
        self._events = events
        self._on_capacity = on_capacity
        self._max_rejecting = max_rejecting
        self._waiting = False
        self._turn: Turn | None = None
        self._looks: set[Callable[[], None]] = set()  # that are to come
        self._brought: dict[int, tuple[int, int]] = {}  # bytes that a stream had when another process handed it over
        self._handed_over: set[int] = set()  # streams that go on in another process, about to be closed here
        self._of_host: Counter[str] = Counter()
        self._hosts: dict[int, str] = {}  # the host for which a stream is counted
        self._candidates: list[tuple[IOStream, float]] = []

    def set_options(self, options: ServerOptions) -> None:
        """Apply new options."""
        self._options = options
        self.refresh_capacity()
        if self.siblings is not None:
            for host in self._hosts.values():
                self.siblings.count_host(host, -1)
        self._of_host.clear()
        self._hosts.clear()
        if options.max_connections_per_ip is not None:
            for stream in self._streams.values():
                if options.proxy_protocol is None or stream.proxy is not None:  # otherwise its header is still to come
                    self.count(stream, host_of(stream.remote_address))

    def join(self, siblings: Siblings) -> None:
        """Share ``max_connections``, where it is set, and ``max_connections_per_ip`` with other processes, and take as
        many clients as they do."""
        self.siblings = siblings
        self._events.subscribe(self._count_event, "reject", "error")
        self._turn = Turn(siblings, lambda: siblings.may_accept(len(self._streams)), self._on_capacity)
        for host in self._hosts.values():
            siblings.count_host(host, 1)
        for open, stream in enumerate(self._streams.values(), 1):  # those that it has already; all counts begin now
            self._brought[stream.id] = (stream.bytes_read, stream.bytes_written)
            siblings.resumed(open)

    def _count_event(self, event: Event) -> None:
        assert self.siblings is not None
        if event.kind == "reject":
            self.siblings.rejected(len(self._streams))
        elif event.reason is CloseReason.HANDLER_ERROR:
            self.siblings.failed()

    def bytes_of_open(self) -> tuple[int, int]:
        """The bytes that were received from the open connections, and sent to them."""
        streams = self._streams.values()
        brought = list(self._brought.values())
        received = sum(stream.bytes_read for stream in streams) - sum(read for read, _ in brought)
        return received, sum(stream.bytes_written for stream in streams) - sum(written for _, written in brought)

    # ---- all

    def refresh_capacity(self) -> None:
        """Compute the capacity again: the limit of descriptors, from which it may follow, can have changed."""
        self.capacity = int(self._options.max_connections or self._default_capacity())
        self.wake_waiting()

    def _default_capacity(self) -> int:
        rejects = self._options.when_full != "wait" or self._options.max_connections_per_ip is not None
        return default_connections(self.listeners, self._max_rejecting() if rejects else 0)

    def has_capacity(self) -> bool:
        """Whether there is room for one more connection, here and, if the limit is for all processes, there."""
        if self.siblings is None or not self._options.max_connections:
            return len(self._streams) < self.capacity
        return len(self._streams) + self.siblings.others() < self.capacity

    def has_place(self) -> bool:
        """Whether one more can be taken: there is room, or a full server rejects or evicts."""
        return self._options.when_full != "wait" or self.has_capacity()

    def may_accept(self) -> bool:
        """Whether to accept one more: it has a place, and it is this process's turn."""
        if self.siblings is None:
            return len(self._streams) < self.capacity or self._options.when_full != "wait"
        return self.has_place() and self.siblings.may_accept(len(self._streams))

    def has_descriptor_for(self, queued: int) -> bool:
        """Whether there is a descriptor for one more, besides those of ``queued`` connections without a permit."""
        return len(self._streams) + queued < max(self.capacity, self._default_capacity())

    def mark_waiting(self) -> None:
        """Record that a client waits: call ``on_capacity`` when there is room, or when it is our turn."""
        if self._turn is not None and self.has_place():
            self._turn.wait()
        elif not self._waiting:
            self._waiting = True
            others = 0 if self.siblings is None else self.siblings.others()
            text = f"there are {len(self._streams) + others} connections (max_connections): new ones wait"
            self._events.emit(Event("limit", text, logging.WARNING))
            self.look_again(self._look_for_room)

    def look_again(self, look: Callable[[], None]) -> None:
        """Call ``look`` in a moment if other processes may make room until then: their closes do not wake this one."""
        if self.siblings is not None and look not in self._looks:
            self._looks.add(look)
            asyncio.get_running_loop().call_later(ROOM_CHECK, self._look, look, context=Context())

    def _look(self, look: Callable[[], None]) -> None:
        self._looks.discard(look)
        look()

    def _look_for_room(self) -> None:
        self.wake_waiting()
        if self._waiting:
            self.look_again(self._look_for_room)

    def wake_waiting(self) -> None:
        """Call ``on_capacity`` if there is room for a client that waits."""
        if self._waiting and self.has_place():
            self._waiting = False
            self._on_capacity()

    # ---- by address

    def ip_limit_reached(self, host: str | None) -> bool:
        """Whether ``host`` has as many connections as ``max_connections_per_ip``."""
        limit = self._options.max_connections_per_ip
        if limit is None or host is None:
            return False
        count = self._of_host[host]
        return count >= limit or (self.siblings is not None and count + self.siblings.of_host(host) >= limit)

    def count(self, stream: IOStream, host: str | None) -> None:
        """Count ``stream`` for its host."""
        if host is not None:
            self._of_host[host] += 1
            self._hosts[stream.id] = host
            if self.siblings is not None:
                self.siblings.count_host(host, 1)

    def discount(self, stream: IOStream) -> None:
        """Remove ``stream``, which is closed, from the count."""
        if self.siblings is not None:
            self._tell_closed(stream, self.siblings)
        host = self._hosts.pop(stream.id, None)
        if host is not None:
            self._of_host[host] -= 1
            if not self._of_host[host]:
                del self._of_host[host]
            if self.siblings is not None:
                self.siblings.count_host(host, -1)

    def _tell_closed(self, stream: IOStream, siblings: Siblings) -> None:
        read, written = self._brought.pop(stream.id, (0, 0))
        received, sent = stream.bytes_read - read, stream.bytes_written - written
        if stream.id in self._handed_over:
            self._handed_over.discard(stream.id)
            siblings.handed_over(len(self._streams), received, sent)
        else:
            reason, seconds = stream.close_reason or CloseReason.LOCAL, current_wall_time() - stream.opened_at
            siblings.closed(len(self._streams), reason, seconds, received, sent)

    def handshaken(self, stream: SSLIOStream) -> None:
        """Count a TLS handshake that has succeeded."""
        if self.siblings is not None:
            self.siblings.handshaken(stream.socket.version())

    def blocked(self) -> None:
        """Count a handler that has blocked the loop."""
        if self.siblings is not None:
            self.siblings.blocked()

    # ---- between processes

    def resumed(self, stream: IOStream) -> None:
        """Count a stream that another process has handed over, which has accepted and counted it so far. No limit is
        asked: it has had its place."""
        if self.siblings is not None:
            self._brought[stream.id] = (stream.bytes_read, stream.bytes_written)
            self.siblings.resumed(len(self._streams))
        if self._options.max_connections_per_ip is not None:
            self.count(stream, host_of(stream.remote_address))

    def hand_over(self, stream: IOStream) -> None:
        """The next close of the stream is none: another process has the connection."""
        if self.siblings is not None:
            self._handed_over.add(stream.id)

    def keep(self, stream: IOStream) -> None:
        """It is not handed over after all."""
        self._handed_over.discard(stream.id)

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
