"""What a probe is: a fault, the figures it takes, and what ours must reach."""

import contextlib
import operator
import ssl
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, NamedTuple

from iostreamsrv.certificates import CertificateAuthority
from tests.support.rotation import Files

from .servers import KINDS, OURS, Server

TRIES = 3
"""Of these the median counts, for what is a matter of time."""

Figures = dict[str, float]
"""By name; infinite for what did not happen."""

Sense = Literal["≤", "≥", "="]

HOLDS: dict[Sense, Callable[[float, float], bool]] = {"≤": operator.le, "≥": operator.ge, "=": operator.eq}

BEYOND: dict[Sense, Callable[[float, float], float]] = {
    "≤": lambda value, limit: value - limit,
    "≥": lambda value, limit: limit - value,
    "=": lambda value, limit: abs(value - limit),
}
"""How bad a figure is."""


class Threshold(NamedTuple):
    """What ours must reach.

    :ivar figure: which figure, its unit included.
    :ivar timed: whether it is a matter of time, so that others who use the machine may spoil it: then the median of the
        tries counts, and otherwise the worst.
    :ivar quiet: whether the others spoil it by little already, so that nothing may run beside the probe.
    :ivar full_only: whether the small form is too short to say, and has no such figure.
    """

    figure: str
    sense: Sense
    limit: float
    timed: bool = False
    quiet: bool = False
    full_only: bool = False

    def of(self, tries: list[Figures]) -> float:
        """The figure that counts."""
        found = [figures[self.figure] for figures in tries]
        if self.timed:
            return median(found)
        return max(found, key=lambda value: BEYOND[self.sense](value, self.limit))

    def met(self, tries: list[Figures]) -> bool:
        return HOLDS[self.sense](self.of(tries), self.limit)


class Guard(NamedTuple):
    """What protects ours from a fault, so that it can be switched off.

    :ivar breaks: the figure that then misses its threshold.
    :ivar options: what switches it off, of `TCPServer`'s.
    :ivar switch: or a name in `tests.faults.guards`.
    """

    name: str
    breaks: str
    options: dict[str, Any] = {}  # noqa: RUF012
    switch: str | None = None


class Credentials(NamedTuple):
    """What TLS needs, in a directory of its own."""

    authority: CertificateAuthority
    files: Files
    trusting: ssl.SSLContext


class Trial:
    """One run of a probe.

    :ivar kind: whose server.
    :ivar full: whether it is the full form, not the small one.
    """

    def __init__(self, kind: str = OURS, full: bool = False, guard: Guard | None = None) -> None:
        self.kind = kind
        self.full = full
        self._guard = guard

    def size(self, small: int, full: int) -> int:
        return full if self.full else small

    def server(self, behaviour: str, **settings: Any) -> Server:
        """The server to be probed; for ``settings`` see `Server`."""
        if self._guard is not None:
            settings |= {"without": self._guard.switch, **self._guard.options}
        return Server(self.kind, behaviour, **settings)

    @contextlib.contextmanager
    def credentials(self) -> Iterator[Credentials]:
        authority = CertificateAuthority()
        with tempfile.TemporaryDirectory() as folder:
            files: Files = authority.issue("localhost", "127.0.0.1").write(folder)
            yield Credentials(authority, files, ssl.create_default_context(cadata=authority.certificate.decode()))


@dataclass(frozen=True)
class Probe:
    """A fault.

    :ivar about: what is done, in a sentence for the docs.
    :ivar measure: does it.
    :ivar guards: what makes ours reach the thresholds.
    :ivar kinds: whom it can be done to.
    """

    name: str
    about: str
    measure: Callable[[Trial], Figures]
    thresholds: tuple[Threshold, ...]
    guards: tuple[Guard, ...] = field(kw_only=True)
    kinds: tuple[str, ...] = field(default=KINDS, kw_only=True)

    def tried(self, kind: str = OURS, full: bool = False) -> list[Figures]:
        """The figures of each try. A single one will do where time is no matter, and also, in the small form, where it
        meets everything."""
        tries = [self.measure(Trial(kind, full))]
        if any(each.timed for each in self.thresholds) and (full or self.missed(tries)):
            tries += [self.measure(Trial(kind, full)) for _ in range(TRIES - 1)]
        return tries

    def missed(self, tries: list[Figures]) -> dict[str, str]:
        """Which thresholds are not met: what was found, by figure."""
        return {
            each.figure: f"{each.of(tries):g}, and must be {each.sense} {each.limit:g}"
            for each in self.thresholds
            if not ((each.full_only and each.figure not in tries[0]) or each.met(tries))
        }
