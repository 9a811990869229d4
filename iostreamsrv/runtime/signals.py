"""Signals while a loop runs in the main thread."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""The signals handled here. Windows has no SIGHUP."""


@contextlib.contextmanager
def signals_restored() -> Iterator[None]:
    """Restore the signal handlers at the end, which a loop would leave at their defaults. For the main thread only."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:  # None: set outside Python
                signal.signal(number, handler)
        with contextlib.suppress(ValueError, OSError):  # that of a loop that is closed now
            signal.set_wakeup_fd(wakeup)


def handle_signal(loop: asyncio.AbstractEventLoop, number: signal.Signals, callback: Callable[[], Any]) -> bool:
    """Have ``callback`` called in the loop when the signal comes.

    :returns: whether it will be: not for a signal that is ignored, and never on Windows, whose loops cannot do it.
    """
    if signal.getsignal(number) is signal.SIG_IGN:
        return False
    try:
        loop.add_signal_handler(number, callback)
    except NotImplementedError:
        return False
    return True


def remove_signal_handlers(loop: asyncio.AbstractEventLoop, numbers: list[signal.Signals]) -> None:
    """Give these signals their default effect again."""
    for number in numbers:
        loop.remove_signal_handler(number)
