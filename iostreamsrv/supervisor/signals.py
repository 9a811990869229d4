"""Signals for a process without an event loop."""

import contextlib
import selectors
import signal
import socket
from collections.abc import Callable, Iterator

HANDLED = ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "TTIN", "TTOU", "CHLD")
"""The signals that a supervisor handles."""

NUMBERS = [getattr(signal, f"SIG{name}") for name in HANDLED]


@contextlib.contextmanager
def signals_on(selector: selectors.BaseSelector, on_signal: Callable[[str], None]) -> Iterator[None]:
    """Have ``on_signal`` called from the selector with the name of each signal, one after the other ("TERM").

    What is ignored stays ignored, as for programs that nohup starts. What is blocked is unblocked: a program inherits
    that from the one that starts it.
    """
    mine, pythons = socket.socketpair()
    with mine, pythons:
        mine.setblocking(False)
        pythons.setblocking(False)

        def on_bytes() -> None:
            for number in mine.recv(4096):
                on_signal(signal.Signals(number).name.removeprefix("SIG"))

        before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        handled = [number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]
        handlers = {number: signal.signal(number, _nothing) for number in handled}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
        selector.register(mine, selectors.EVENT_READ, on_bytes)
        try:
            yield
        finally:
            selector.unregister(mine)
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _nothing(*_: object) -> None:
    """Have Python write the signal's number to the socket."""
