"""What a row of the table is: something that an operator does, or that happens to a service, and what must hold."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.probes import TRIES, Figures, Threshold
from tests.support import PROJECT

from .services import KINDS, OURS, OURS_HTTP, Service

LOSSES = (Threshold("lost", "=", 0), Threshold("late", "=", 0, timed=True))
"""Of all rows with a load: nobody is refused, reset, cut or without an answer, and none comes after a second."""


class Mutation(NamedTuple):
    """A few lines of ours, changed such that a row must notice.

    :ivar breaks: the figure that then misses its threshold.
    :ivar file: below ``iostreamsrv``.
    :ivar before: what it has once, and
    :ivar after: has instead.
    """

    breaks: str
    file: str
    before: str
    after: str

    def is_possible(self) -> bool:
        """Whether the file has the lines, once."""
        return (PROJECT / "iostreamsrv" / self.file).read_text().count(self.before) == 1

    @contextmanager
    def package(self) -> Iterator[Path]:
        """A folder with the package, mutated."""
        with tempfile.TemporaryDirectory(prefix="operations-") as folder:
            Path(folder).chmod(0o755)
            copy = Path(folder, "iostreamsrv")
            shutil.copytree(PROJECT / "iostreamsrv", copy, ignore=shutil.ignore_patterns("__pycache__"))
            text = (copy / self.file).read_text()
            (copy / self.file).write_text(text.replace(self.before, self.after))
            yield Path(folder)


class Trial:
    """One run of a row.

    :ivar kind: whose service.
    :ivar full: whether it is the full form, not the small one.
    :ivar package: the folder that ours is in.
    """

    def __init__(self, kind: str = OURS, full: bool = False, package: Path = PROJECT) -> None:
        self.kind = kind
        self.full = full
        self.package = package

    @property
    def is_ours(self) -> bool:
        return self.kind in (OURS, OURS_HTTP)

    def size(self, small: int, full: int) -> int:
        return full if self.full else small

    def service(self, target: str | None = None, *options: str, **surroundings: Any) -> Service:
        """A service of that kind; see `Service`."""
        return Service(self.kind, target, *options, package=self.package, **surroundings)


@dataclass(frozen=True)
class Row:
    """One row.

    :ivar about: what is done, in a sentence for the docs.
    :ivar measure: does it.
    :ivar mutations: each makes ours miss a threshold.
    :ivar kinds: which services it can be done to.
    :ivar options: of the measurement.
    """

    name: str
    about: str
    measure: Callable[..., Figures]
    thresholds: tuple[Threshold, ...]
    mutations: tuple[Mutation, ...] = field(kw_only=True)
    kinds: tuple[str, ...] = field(default=KINDS, kw_only=True)
    options: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def tried(self, kind: str = OURS, full: bool = False) -> list[Figures]:
        """The figures of each try: a single one, or three where one was too late; then the median counts."""
        tries = [self._measured(Trial(kind, full))]
        timed = {each.figure for each in self.thresholds if each.timed}
        if timed & self.missed(tries).keys() and kind == OURS:
            tries += [self._measured(Trial(kind, full)) for _ in range(TRIES - 1)]
        return tries

    def mutated(self, mutation: Mutation) -> list[Figures]:
        """The figures of ours, in the small form, with a mutation."""
        with mutation.package() as package:
            return [self._measured(Trial(package=package))]

    def _measured(self, trial: Trial) -> Figures:
        """The figures, without those that the small form is too short for."""
        figures = self.measure(trial, **self.options)
        left_out = set() if trial.full else {each.figure for each in self.thresholds if each.full_only}
        return {name: value for name, value in figures.items() if name not in left_out}

    def missed(self, tries: list[Figures]) -> dict[str, str]:
        """Which thresholds are not met: what was found, by figure."""
        return {
            each.figure: f"{each.of(tries):g}, and must be {each.sense} {each.limit:g}"
            for each in self.thresholds
            if each.figure in tries[0] and not each.met(tries)
        }
