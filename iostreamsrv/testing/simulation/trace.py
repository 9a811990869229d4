"""What happened in a simulation."""

import hashlib
import struct
from collections import deque
from collections.abc import Iterable

from .timeline import svg

Entry = tuple[float, str, str | int]
"""The time, who, what: the bytes of a segment that arrives, or words."""

CHUNK = 4096
"""Entries that are hashed at once."""

KEPT = 100_000
"""Entries that are kept to be read. All of them are in the digest."""


class Trace:
    """The events of a simulation, in their order.

    :ivar begun: the time at the beginning; `str` and :meth:`svg` count from there.
    :ivar recent: what was noted last.
    :ivar faults: the entries of faults that struck, the first 100,000.
    :ivar add: notes an entry.
    """

    def __init__(self, begun: float = 0.0) -> None:
        self.begun = begun
        self._hash = hashlib.sha256()
        self._kept: deque[Entry] = deque(maxlen=KEPT)
        self.recent: list[Entry] = []
        self.faults: list[Entry] = []
        self._folded = 0
        self.add = self.recent.append

    def add_fault(self, entry: Entry) -> None:
        """Note that a fault strikes."""
        self.add(entry)
        if len(self.faults) < KEPT:
            self.faults.append(entry)

    def fold(self) -> None:
        """Hash what was noted last. Called when it is much, so that to note something costs next to nothing."""
        self._hash.update(_packed(self.recent[:CHUNK]))
        self._kept.extend(self.recent[:CHUNK])
        self._folded += CHUNK
        del self.recent[:CHUNK]

    @property
    def count(self) -> int:
        """How many entries there were."""
        return self._folded + len(self.recent)

    @property
    def entries(self) -> list[Entry]:
        """The last 100,000 entries."""
        return [*self._kept, *self.recent][-KEPT:]

    def digest(self) -> str:
        """A hash of all entries: 64 hexadecimal digits."""
        whole = self._hash.copy()
        whole.update(_packed(self.recent))
        whole.update(b"%d" % self.count)
        return whole.hexdigest()

    def lines(self, entries: Iterable[Entry]) -> list[str]:
        """A line for each of these entries: seconds since the beginning, who, what."""
        return [f"{time - self.begun:14.6f}  {who:<46} {_words(what)}" for time, who, what in entries]

    def __str__(self) -> str:
        """A line for each entry."""
        return "\n".join(self.lines(self.entries))

    def svg(self) -> str:
        """A picture of the last entries: a lane for each connection, host or name, and time from left to right."""
        return svg([(time - self.begun, who, what) for time, who, what in self.entries])


def _packed(entries: list[Entry]) -> bytes:
    """Bytes that differ if the entries do. To print the digits of the times would take ten times as long."""
    times, *words = zip(*entries, strict=True) if entries else ((),)
    return struct.pack(f"<{len(times)}d", *times) + repr(words).encode()


def _words(what: str | int) -> str:
    if isinstance(what, str):
        return what
    return f"{what} bytes arrive" if what > 1 else "1 byte arrives"
