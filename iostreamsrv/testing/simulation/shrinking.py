"""Run a failing test again with fewer faults.

The faults of a seed come in a fixed order, and ``Faults.most`` lets only the first of them strike. So a test that fails
after forty faults is run with twenty of them, with ten or thirty, and so on, until there is a number with which it
fails and with one less passes. That takes as many runs as the number has binary digits, and one more with no faults at
all: if that fails too, faults have nothing to do with it.

What happens after the last fault differs from run to run, as the test goes another way from there. So this is no proof
that no shorter prefix fails, only that the fault before the last is not enough.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from .simulation import Simulation

SHOWN = 20
"""Lines of the trace in a report: the last ones."""


class Shrunk(NamedTuple):
    """What was found out about a failure.

    :ivar error: what the test has raised in its last run, of which the simulation has the trace.
    :ivar struck: how many faults struck at first.
    :ivar needed: how many of them, the first ones, are enough; None if the same seed did not do the same again.
    """

    error: BaseException
    struck: int
    needed: int | None

    def report(self, simulation: Simulation, again: str) -> str:
        """A few lines for people.

        :param again: the command that runs the test with this seed.
        """
        return "\n".join(
            [
                f"seed {simulation.seed}: {self._summary()}",
                *simulation.trace.lines(simulation.trace.faults[: self.needed]),
                f"the end of its trace, of {simulation.trace.count} entries:",
                *simulation.trace.lines(simulation.trace.entries[-SHOWN:]),
                f"to run it again: {again}",
            ]
        )

    def _summary(self) -> str:
        if self.needed is None:
            return "a second run did not do the same, so something in it does not come from the seed; in the first run:"
        if not self.struck:
            return "it fails; no fault has struck"
        if not self.needed:
            return f"it fails without faults as well ({self.struck} had struck)"
        enough = "the first is" if self.needed == 1 else f"the first {self.needed} are"
        return f"it fails after {self.struck} faults, and {enough} enough:"


def shrink(simulation: Simulation, test: Callable[[], Any], error: BaseException) -> Shrunk:
    """Find the shortest prefix of faults with which a test fails in the same way.

    :param test: has been run once, on this simulation, and has failed.
    :param error: what it has raised. A run fails in the same way if it raises an exception of the same class.
    """
    faults, struck, trace = simulation.faults, simulation.struck, simulation.trace

    def outcome(most: int | None) -> BaseException | None:
        simulation.faults = dataclasses.replace(faults, most=most)
        try:
            test()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as again:  # those of pytest are no `Exception`
            return again if isinstance(again, type(error)) else None
        return None

    try:
        if outcome(faults.most) is None or simulation.trace.digest() != trace.digest():
            simulation.trace = trace
            return Shrunk(error, struck, None)
        needed = _least(lambda most: outcome(most) is not None, struck)
        last = outcome(needed)
        return Shrunk(error if last is None else last, struck, needed)
    finally:
        simulation.faults = faults


def _least(fails: Callable[[int], bool], struck: int) -> int:
    """A number with which it fails and with one less does not; it is known to fail with ``struck``."""
    if not struck or fails(0):
        return 0
    passing, failing = 0, struck
    while failing - passing > 1:
        middle = (passing + failing) // 2
        if fails(middle):
            failing = middle
        else:
            passing = middle
    return failing
