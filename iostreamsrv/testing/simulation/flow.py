"""One direction of a simulated connection.

**A byte's way.** ``send`` copies it to the send buffer. From there it goes onto the wire, in a segment, as far as the
receiver's window allows: the room in its receive buffer, less what is on the wire already. It arrives after the delay
of its segment, never before an earlier one, and lies in the receive buffer until ``recv`` takes it. Its place in the
send buffer is free when the acknowledgement is back.

**Few events.** An hour of fifty clients is some hundred thousand segments, so each costs one entry in the agenda, its
arrival. Acknowledgements are a queue of times that is looked at only when there may be too little room. There is an
entry in the agenda for one only if somebody waits for that room.

**Lost segments** are not simulated as such. While both hosts are apart, an arrival is tried again after 0.2, 0.4, 0.8
seconds and so on, as TCP would; after 15 minutes the sender gives up.

**Unix sockets** have no wire: what is sent is in the receiver's buffer at once, and takes the sender's room until it is
received.
"""

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappush
from typing import Any, Final, Protocol

from .polling import PEER_ENDED, READ, File
from .trace import Trace

SEND_BUFFER = 1 << 17
RECEIVE_BUFFER = 1 << 17
"""Bytes. (Linux begins with less, and lets both grow to megabytes.)"""

LARGEST_SEGMENT = 1 << 16
SEGMENT = 1460
"""Bytes of a segment: what leaves a network card at once, and what arrives one by one where bandwidth is limited."""

FIRST_RETRY, LONGEST_RETRY = 0.2, 120.0
GIVE_UP = 924.6
"""Seconds to the first retransmission, between any two, and until the connection has timed out: Linux' defaults."""

FIN: Final = "FIN"
RST: Final = "RST"

MOST_ACKS = 50
"""Acknowledgements after which those that are back are taken from their queue, although no sender waits for room."""

SHORTEST_GAP, LONGEST_GAP = 1e-6, 1e-3
"""Seconds between both parts of a segment that is cut. So the second is never there when the first is received."""

Draw = Callable[[], float]
"""Draws a number from 0 to 1."""

Segment = Any
"""The bytes of a segment, or FIN, or RST."""

NEW, LISTENING, CONNECTING, CONNECTED, DEAD = range(5)
"""States of a socket."""


class End(File):
    """What a flow needs of the sockets that send and receive.

    :ivar state: as above.
    """

    host: str
    state: int

    def can_send(self) -> None:
        """There is room, after there was none."""
        raise NotImplementedError

    def timed_out(self) -> None:
        """The receiver could not be reached for too long."""
        raise NotImplementedError

    def refuses(self) -> bool:
        """Whether data that arrives is answered with a reset: the socket is closed."""
        raise NotImplementedError

    def was_reset(self) -> None:
        """A reset has arrived."""
        raise NotImplementedError


class Wire(Protocol):
    """What a flow needs of the network.

    :ivar now: the time.
    :ivar agenda: see `Network`; likewise ``sequence``.
    :ivar trace: what has happened.
    :ivar striking: whether segments may be lost for good.
    :ivar parted: whether some hosts may be apart.
    :ivar cuts: the probability that a segment is cut.
    :ivar jitter: whether the delay varies; else it is ``least_delay``.
    """

    now: float
    agenda: list[tuple[float, int, Any]]
    sequence: Iterator[int]
    cuts: float
    jitter: float
    least_delay: float
    trace: Trace
    striking: bool
    parted: bool

    def at(self, time: float, call: Callable[[], object]) -> None:
        """Call something later."""

    def delay(self, draw: Draw) -> float:
        """How long the next segment takes."""

    def apart(self, one: str, other: str) -> bool:
        """Whether nothing arrives from one of these hosts at the other."""

    def strikes(self, flow: "Flow") -> bool:
        """Whether a reset comes in place of a segment."""

    def note(self, who: str, what: str) -> None:
        """Note what happens."""


class Flow:
    """One direction of a connection.

    :ivar inbox: what has arrived, and was not received.
    :ivar size: bytes in it.
    :ivar ended: the sender's FIN has arrived.
    :ivar pending: what is in the send buffer, and not on the wire yet.
    :ivar name: for the trace.
    """

    __slots__ = (
        "_acks",
        "_agreed",
        "_draw",
        "_fin",
        "_free_at",
        "_held",
        "_last",
        "_nospace",
        "_note",
        "_retry",
        "_retrying_since",
        "_wire",
        "_wire_size",
        "bandwidth",
        "direct",
        "ended",
        "inbox",
        "name",
        "network",
        "pending",
        "receive_buffer",
        "send_buffer",
        "size",
        "source",
        "target",
    )

    def __init__(self, network: Wire, source: End, target: End, name: str, draw: Draw, direct: bool) -> None:
        self.network = network
        self.source = source
        self.target = target
        self.name = name
        self.direct = direct  # a Unix socket's
        self.send_buffer = SEND_BUFFER
        self.receive_buffer = RECEIVE_BUFFER
        self.bandwidth: float | None = None
        self.inbox: deque[bytes] = deque()
        self.size = 0
        self.ended = False
        self.pending = bytearray()
        self._held = 0  # bytes that take room in the send buffer
        self._acks: deque[tuple[float, int]] = deque()
        self._wire: deque[tuple[float, Segment, int]] = deque()
        self._wire_size = 0
        self._free_at = 0.0  # when the link can take the next segment
        self._last = 0.0  # when the last segment arrives
        self._nospace = False  # the sender waits for room
        self._fin = False  # there is to be a FIN behind what is pending
        self._agreed = False  # the news of a larger window is on its way
        self._retry = 0.0
        self._retrying_since = 0.0
        self._note = network.trace.add
        self._draw = draw

    # ---- for the sender

    def send(self, data: bytes | memoryview) -> int:
        """Take what there is room for: how many bytes."""
        size = len(data)
        if size > self.send_buffer - self._held and size > (room := self.room()):
            self._want_room()
            size = max(room, 0)
            data = data[:size]
        if not size:
            return 0
        chunk = data if type(data) is bytes else bytes(data)
        self._held += size
        if self.direct:
            self._arrive(chunk, size)
        elif self.pending or size > SEGMENT or size > self.receive_buffer - self.size - self._wire_size:
            self.pending += chunk
            self._transmit()
        else:
            self._put(chunk, size)
        return size

    def room(self) -> int:
        """Bytes that the send buffer has room for."""
        acks, now = self._acks, self.network.now
        while acks and acks[0][0] <= now:
            self._held -= acks.popleft()[1]
        return self.send_buffer - self._held

    def is_writable(self) -> bool:
        """Whether a third of the send buffer is free; if not, the sender hears when it is."""
        if (self.send_buffer - self._held) * 3 >= self.send_buffer or self.room() * 3 >= self.send_buffer:
            return True
        self._want_room()
        return False

    def _want_room(self) -> None:
        """Only after `room`: what is in the queue is then not back yet."""
        if not self._nospace:
            self._nospace = True
            if self._acks:
                self.network.at(self._acks[0][0], self.acknowledged)

    def unsent(self) -> int:
        """Bytes that were sent and not acknowledged."""
        return self.send_buffer - self.room()

    def end(self) -> None:
        """Send FIN behind all that was sent."""
        if not self.pending:
            self._put_last(FIN)
        self._fin = True

    def reset(self) -> None:
        """Send RST, and nothing that was pending."""
        self.pending.clear()
        self._fin = False
        self._put_last(RST)

    def discard(self) -> None:
        """Send nothing more: the connection is broken."""
        self.pending.clear()
        self._fin = False

    # ---- the wire

    def _transmit(self) -> None:
        """Put on the wire what the window allows."""
        pending = self.pending
        largest = SEGMENT if self.bandwidth is not None else LARGEST_SEGMENT
        while pending:
            count = min(len(pending), self.receive_buffer - self.size - self._wire_size, largest)
            if count <= 0:
                return
            chunk = bytes(pending[:count])
            del pending[:count]
            self._put(chunk, count)
        if self._fin:
            self._put_last(FIN)

    def _put_last(self, segment: str) -> None:
        if self.direct:
            self._arrive_last(segment)
        else:
            self._put(segment, 0)

    def _put(self, segment: Segment, size: int, whole: bool = True) -> None:
        """Put a segment on the wire.

        :param whole: it is not a part of one that was cut.
        """
        network = self.network
        if whole and size > 1 and network.cuts and self._draw() < network.cuts:
            return self._put_parts(segment, size)
        leaves = network.now
        if self.bandwidth is not None:
            self._free_at = leaves = max(leaves, self._free_at) + size / self.bandwidth
        arrives = leaves + (network.delay(self._draw) if network.jitter else network.least_delay)
        if arrives < self._last:
            arrives = self._last
        self._last = arrives
        wire = self._wire
        if not wire:
            heappush(network.agenda, (arrives, next(network.sequence), self.arrive))  # as at(), which is called less
        wire.append((arrives, segment, size))
        self._wire_size += size
        return None

    def _put_parts(self, segment: Segment, size: int) -> None:
        where = 1 + int(self._draw() * (size - 1))
        self._put(segment[:where], where, False)
        self._last += SHORTEST_GAP + (LONGEST_GAP - SHORTEST_GAP) * self._draw()
        self._put(segment[where:], size - where, False)

    def arrive(self) -> None:
        """What is due arrives."""
        wire, network = self._wire, self.network
        if network.parted:
            if network.apart(self.source.host, self.target.host):
                return self._try_again()
            self._retry = 0.0
        now = network.now
        while wire and wire[0][0] <= now:
            _, segment, size = wire.popleft()
            if size:
                self._wire_size -= size
                self._arrive(segment, size)
            else:
                self._arrive_last(segment)
        if wire:
            network.at(wire[0][0], self.arrive)
        return None

    def _try_again(self) -> None:
        now = self.network.now
        if not self._retry:
            self._retry, self._retrying_since = FIRST_RETRY, now
        else:
            self._retry = min(self._retry * 2, LONGEST_RETRY)
        if now - self._retrying_since > GIVE_UP:
            self._wire.clear()
            self.discard()
            return self.source.timed_out()
        self.network.at(now + self._retry, self.arrive)

    def _arrive(self, segment: bytes, size: int) -> None:
        target, network = self.target, self.network
        now = network.now
        self._note((now, self.name, size))
        if (network.striking and not self.direct and network.strikes(self)) or (
            target.state == DEAD and target.refuses()
        ):
            return
        self.inbox.append(segment)
        self.size += size
        if not self.direct:
            back = now + (network.delay(self._draw) if network.jitter else network.least_delay)
            acks = self._acks
            acks.append((back, size))
            if self._nospace:
                if len(acks) == 1:
                    network.at(back, self.acknowledged)
            elif len(acks) > MOST_ACKS:
                self.room()
        for watcher in target.watchers:
            watcher.woken(target, READ)

    def _arrive_last(self, segment: str) -> None:
        self.network.note(self.name, f"{segment} arrives")
        if segment == RST:
            self.target.was_reset()
        else:
            self.ended = True
            self.target.wake(READ | PEER_ENDED)

    def acknowledged(self) -> None:
        """An acknowledgement is back that the sender waits for."""
        if not self._nospace:
            return
        if self.network.apart(self.target.host, self.source.host):
            self.network.at(self.network.now + FIRST_RETRY, self.acknowledged)
        elif self.room() * 3 >= self.send_buffer:
            self._nospace = False
            self.source.can_send()
        elif self._acks:
            self.network.at(self._acks[0][0], self.acknowledged)

    # ---- for the receiver

    def receive(self, size: int, peek: int) -> bytes:
        """Up to ``size`` bytes that have arrived; b"" if there are none."""
        inbox = self.inbox
        if not inbox or not size:
            return b""
        chunk = inbox[0]
        if len(inbox) > 1 or len(chunk) > size:
            whole = b"".join(inbox)
            inbox.clear()
            chunk = whole[:size]
            inbox.append(chunk)
            if len(chunk) < len(whole):
                inbox.append(whole[size:])
        if not peek:
            inbox.popleft()
            self.size -= len(chunk)
            if self.direct:
                self._taken(len(chunk))
            elif self.pending and not self._agreed:
                self._agreed = True
                self.network.at(self.network.now + self.network.delay(self._draw), self.window_opened)
        return chunk

    def _taken(self, size: int) -> None:
        self._held -= size
        if self.room() * 3 >= self.send_buffer:  # Linux reports it each time
            self._nospace = False
            self.source.can_send()

    def window_opened(self) -> None:
        """The sender hears that there is room at the receiver."""
        if self.network.apart(self.target.host, self.source.host):
            return self.network.at(self.network.now + FIRST_RETRY, self.window_opened)
        self._agreed = False
        self._transmit()
