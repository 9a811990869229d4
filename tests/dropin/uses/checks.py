"""What the programs beside this one print, a line per check: ``passed NAME``, or ``failed NAME``, a tab, and why."""

import asyncio
import contextlib
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

PATIENCE = 60.0
"""Seconds that one check may take, where it does not say."""


class Slow(BaseException):
    """A check has taken longer than it may. Not an Exception: what is checked would catch it."""


@contextlib.contextmanager
def check(name: str, patience: float | None = None) -> Iterator[None]:
    """One check, in the main thread of a program without a loop of its own there: what is raised fails it."""

    def give_up(*_: object) -> None:
        raise Slow(f"not done in {patience:.0f} s")

    patience = patience or PATIENCE
    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, patience)
    try:
        yield
    except (Exception, Slow) as error:
        _failed(name, error)
    else:
        _passed(name)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.asynccontextmanager
async def acheck(name: str, patience: float | None = None) -> AsyncIterator[None]:
    """One check, in a coroutine."""
    try:
        async with asyncio.timeout(patience or PATIENCE):
            yield
    except Exception as error:
        _failed(name, error)
    else:
        _passed(name)


@contextlib.contextmanager
def raises(*kinds: type[BaseException]) -> Iterator[None]:
    """Fails unless one of these errors is raised in it."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"none of {', '.join(kind.__name__ for kind in kinds)} was raised")


def until(what: Callable[[], Any], patience: float = 30.0) -> Any:
    """Ask again and again until the answer is true; an OSError is no answer."""
    import time

    deadline = time.monotonic() + patience
    while True:
        try:
            answer = what()
        except OSError:
            answer = None
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not come true in {patience:.0f} s")
        time.sleep(0.05)


def _passed(name: str) -> None:
    print(f"passed {name}", flush=True)


def _failed(name: str, error: BaseException) -> None:
    traceback.print_exception(error)
    sys.stderr.flush()
    said = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"failed {name}\t{said[:500]}", flush=True)
