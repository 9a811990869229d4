"""What goes wrong in a simulation, and when."""

import dataclasses
import errno
import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ...errors import OptionError
from ...runtime.checks import is_int, is_number
from ...runtime.exports import set_module

T = TypeVar("T")

Span = float | tuple[float, float]
"""Seconds: always the same, or drawn between two."""

ACCEPT_ERRORS = (
    errno.ECONNABORTED,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EPERM,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.EHOSTUNREACH,
)
SETSOCKOPT_ERRORS = (errno.EINVAL, errno.ENOBUFS, errno.ENOMEM, errno.ENOPROTOOPT)
BROKEN_ERRORS = (errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
"""Errors of ``recv`` and ``send`` after which there is no connection any more."""
PASSING_ERRORS = (errno.ENOBUFS, errno.ENOMEM)
"""Errors of theirs that leave the connection as it was."""

SYSTEM_CALLS: dict[str, tuple[int, ...]] = {
    "accept": ACCEPT_ERRORS,
    "recv": BROKEN_ERRORS + PASSING_ERRORS,
    "send": BROKEN_ERRORS + PASSING_ERRORS,
    "setsockopt": SETSOCKOPT_ERRORS,
}
"""The errors that each call fails with. Not EAGAIN: the kernel never says so of what it has reported as ready."""

DISTURBANCES = ("block", "jump", "cancel", "kick", "shutdown", "reload", "replace")
"""What strikes at instants, besides a stop: see :mod:`.disturbances`."""


@set_module("iostreamsrv.testing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """What the network is like, and how often something goes wrong. Probabilities are from 0 to 1. ::

        Faults(delay=(0, 0.2), rst=0.01, partition=0.001)

    :param delay: seconds that a segment takes from one end to the other, or (least, most) to draw between; 0.0005.
    :param cut: the probability that a segment is cut in two; 0.1.
    :param rst: the probability that in place of a segment both ends get a reset; 0.
    :param partition: the probability that with a segment the network between both hosts fails; 0.
    :param partition_time: seconds until it works again; between 1 and 30.
    :param stop: the probability that the process is stopped at an instant at which something happens; 0.
    :param block: the probability that a callback blocks the loop at such an instant, amid others of its turn; 0.
    :param stop_time: seconds for which it is stopped or blocked; between 0.1 and 5.
    :param jump: the probability that the date jumps there, forward or back; 0. (Timers do not depend on the date.)
    :param jump_time: seconds by which it jumps; up to a day.
    :param cancel: the probability that there the task of a client's ``handle_stream`` is cancelled; 0.
    :param kick: the probability that there a client is kicked, see `IOStream.kick`; 0.
    :param shutdown: the probability that there a server begins its `TCPServer.shutdown`, as on SIGTERM; 0.
    :param reload: the probability that there a server reloads its certificates, as on SIGHUP; 0.
    :param replace: the probability that there a server replaces options, see `TCPServer.replace_options`; 0.
    :param replacements: the changes of which one is drawn then, such as ``[{"idle_timeout": 5}]``; by default one that
        changes nothing.
    :param accept: the probability that the system call fails, with one of its errors; 0.
    :param recv: likewise.
    :param send: likewise.
    :param setsockopt: likewise.
    :param descriptors: how many descriptors there are for servers and clients; 65536.
    :param most: how many faults strike in all; then the network and the system work. None, the default: no limit.
    :raises OptionError: a value is invalid.
    """

    delay: Span = 0.0005
    cut: float = 0.1
    rst: float = 0.0
    partition: float = 0.0
    partition_time: Span = (1.0, 30.0)
    stop: float = 0.0
    block: float = 0.0
    stop_time: Span = (0.1, 5.0)
    jump: float = 0.0
    jump_time: Span = (0.0, 86400.0)
    cancel: float = 0.0
    kick: float = 0.0
    shutdown: float = 0.0
    reload: float = 0.0
    replace: float = 0.0
    replacements: Sequence[Mapping[str, Any]] = ({},)
    accept: float = 0.0
    recv: float = 0.0
    send: float = 0.0
    setsockopt: float = 0.0
    descriptors: int = 65536
    most: int | None = None

    def __post_init__(self) -> None:
        for name in ("cut", "rst", "partition", "stop", *DISTURBANCES, *SYSTEM_CALLS):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise OptionError(name, value, "must be a probability, from 0 to 1")
        for name in ("delay", "partition_time", "stop_time", "jump_time"):
            object.__setattr__(self, name, _span(name, getattr(self, name)))
        if not is_int(self.descriptors, 8):
            raise OptionError("descriptors", self.descriptors, "must be an integer, 8 or more")
        if self.most is not None and not is_int(self.most, 0):
            raise OptionError("most", self.most, "must be an integer, 0 or more, or None")


def _span(name: str, value: object) -> tuple[float, float]:
    least, most = value if isinstance(value, tuple) and len(value) == 2 else (value, value)
    if is_number(least) and is_number(most) and 0 <= least <= most < float("inf"):
        return float(least), float(most)
    raise OptionError(name, value, "must be a number of seconds, or (least, most)")


def span(seconds: Span) -> tuple[float, float]:
    """The least and the most."""
    return seconds if isinstance(seconds, tuple) else (seconds, seconds)


class Injector:
    """Decides where faults strike.

    :param note: called for what a fault does: who, what.
    :param note_fault: likewise, for each fault that strikes.
    :ivar struck: how many there were.
    """

    def __init__(
        self,
        faults: Faults,
        seed: object,
        note: Callable[[str, str], None],
        note_fault: Callable[[str, str], None],
    ) -> None:
        self._faults = faults
        self._random = random.Random(f"{seed}:faults").random
        self._note = note
        self._note_fault = note_fault
        self.struck = 0

    def strikes(self, name: str, who: str) -> bool:
        """Whether the fault of this name strikes now."""
        probability: float = getattr(self._faults, name)
        if not probability or self._random() >= probability:
            return False
        if self._faults.most is not None and self.struck >= self._faults.most:
            return False
        self.struck += 1
        self._note_fault(who, f"fault {self.struck}: {name}")
        return True

    def draw(self, seconds: Span) -> float:
        """A number of seconds."""
        least, most = span(seconds)
        return least + (most - least) * self._random()

    def pick(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[int(self._random() * len(choices))]

    def error(self, call: str, who: str) -> OSError | None:
        """The error that a system call fails with here; None if it works."""
        if not self.strikes(call, who):
            return None
        number = self.pick(SYSTEM_CALLS[call])
        self._note(who, f"{call} fails: {errno.errorcode[number]}")
        return OSError(number, os.strerror(number))
