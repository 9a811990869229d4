"""The places of a server: how many clients may be in, how many of one address, and who goes when there are too many.

A permit is held by each open stream. Where a full server lets newcomers wait, it is there before the accept, so that
the kernel's backlog is the queue.
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
"""Streams that are found at once when one must go, so that a rush does not look at all of them for each newcomer."""


class Permits:
    """Who may come in.

    :param streams: those that hold a permit, by their id.
    :param on_place: is called when there is a place again for one that waits.
    :param goodbyes: how many of those who are rejected may be told so at a time, each with a descriptor.
    :ivar most: how many there may be.
    :ivar listeners: how many of these take descriptors, too.
    """

    def __init__(
        self,
        streams: Mapping[int, IOStream],
        options: ServerOptions,
        events: Events,
        on_place: Callable[[], None],
        goodbyes: Callable[[], int],
    ) -> None:
        self.most = int(options.max_connections or 1)
        self.listeners = 0
        self._streams = streams
        self._options = options
        self._events = events
        self._on_place = on_place
        self._goodbyes = goodbyes
        self._one_waits = False
        self._of_host: Counter[str] = Counter()
        self._hosts: dict[int, str] = {}  # for which of these a stream counts
        self._candidates: list[tuple[IOStream, float]] = []

    def set_options(self, options: ServerOptions) -> None:
        """From now on."""
        self._options = options
        self.count_places()
        self._of_host.clear()
        self._hosts.clear()
        if options.max_connections_per_ip is not None:
            for stream in self._streams.values():
                if options.proxy_protocol is None or stream.proxy is not None:  # else it is counted by its header
                    self.count(stream, host_of(stream.remote_address))

    # ---- all

    def count_places(self) -> None:
        """How many there are may depend on the limit of descriptors, which may have changed."""
        self.most = int(self._options.max_connections or self._most_by_default())
        self.offer()

    def _most_by_default(self) -> int:
        rejects = self._options.when_full != "wait" or self._options.max_connections_per_ip is not None
        return default_connections(self.listeners, self._goodbyes() if rejects else 0)

    def is_free(self) -> bool:
        """Whether there is a place."""
        return len(self._streams) < self.most

    def may_accept(self) -> bool:
        """Whether one more may be accepted: there is a place, or something else is to become of those who come."""
        return len(self._streams) < self.most or self._options.when_full != "wait"

    def has_descriptor_for(self, queued: int) -> bool:
        """Whether there is a descriptor for one more, beside so many that are to wait for a place."""
        return len(self._streams) + queued < max(self.most, self._most_by_default())

    def one_waits(self) -> None:
        """There is one more, and no place: ``on_place`` is called when there is."""
        if not self._one_waits:
            self._one_waits = True
            text = f"there are {len(self._streams)} connections (max_connections): new ones wait"
            self._events.emit(Event("limit", text, logging.WARNING))

    def offer(self) -> None:
        """There may be a place for who waits."""
        if self._one_waits and self.may_accept():
            self._one_waits = False
            self._on_place()

    # ---- those of one address

    def has_its_share(self, host: str | None) -> bool:
        """Whether as many have come from there as may."""
        limit = self._options.max_connections_per_ip
        return limit is not None and host is not None and self._of_host[host] >= limit

    def count(self, stream: IOStream, host: str | None) -> None:
        """``stream`` is one of that host's."""
        if host is not None:
            self._of_host[host] += 1
            self._hosts[stream.id] = host

    def discount(self, stream: IOStream) -> None:
        """``stream`` has ended."""
        host = self._hosts.pop(stream.id, None)
        if host is not None:
            self._of_host[host] -= 1
            if not self._of_host[host]:
                del self._of_host[host]

    # ---- who goes

    def evict(self, keeps_waiting: Callable[[IOStream], bool]) -> bool:
        """Close, of those who keep the server waiting, the one who has done so for the longest time."""
        for _ in range(2):
            while self._candidates:
                stream, since = self._candidates.pop()
                if not stream.closed() and stream.activity().received_at == since and keeps_waiting(stream):
                    stream.terminate(CloseReason.EVICTED)
                    stream.discard_output()
                    return True
            waiting = [(each, each.activity().received_at) for each in self._streams.values() if keeps_waiting(each)]
            self._candidates = sorted(waiting, key=itemgetter(1))[:CANDIDATES][::-1]
        return False


def host_of(address: Any) -> str | None:
    """Whom an address belongs to: an IPv4 address, or a /64 of IPv6; None for Unix sockets."""
    if not isinstance(address, tuple):
        return None
    host = str(address[0])
    if ":" not in host:
        return host
    ip = IPv6Address(host.partition("%")[0])
    return str(ip.ipv4_mapped or IPv6Address(int(ip) >> 64 << 64))
