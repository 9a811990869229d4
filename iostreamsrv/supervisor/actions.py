"""What a `Plan` may ask for."""

from typing import Literal, NamedTuple


class Spawn(NamedTuple):
    """Start a worker, in a fresh interpreter."""

    number: int
    generation: int


class Tell(NamedTuple):
    """Send a worker a word: "retire" (serve its clients, but accept no more), "hurry" (a retired one: begin to close
    them, paced), "drain" (shut down), "end" (close everything at once).

    :ivar successor: the worker that takes the place of one that retires.
    """

    number: int
    word: Literal["retire", "hurry", "drain", "end"]
    successor: int | None = None


class Kill(NamedTuple):
    """End a worker with SIGKILL."""

    number: int


class Check(NamedTuple):
    """Have a new interpreter check that the service would start; `Plan.on_checked` takes the outcome."""


class Replace(NamedTuple):
    """Replace the supervisor itself by a new interpreter, which keeps the process, its sockets and its children."""


class Announce(NamedTuple):
    """Tell the service manager, and who waits for a reload.

    :ivar problem: with "ready": why the reload that ends has failed; empty if it has not.
    """

    state: Literal["ready", "reloading", "stopping"]
    problem: str = ""


class Say(NamedTuple):
    """Write a line to the log."""

    level: int
    text: str


class Exit(NamedTuple):
    """End: no worker is left."""

    code: int


Action = Spawn | Tell | Kill | Check | Replace | Announce | Say | Exit
