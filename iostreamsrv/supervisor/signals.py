"""Signals for a process without an event loop."""

import contextlib
import selectors
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType

HANDLED = ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "TTIN", "TTOU", "CHLD")
"""The signals that a supervisor handles."""

NUMBERS = [getattr(signal, f"SIG{name}") for name in HANDLED]


class Signals:
    """Has ``on_signal`` called from the selector with the name of each signal ("TERM"), one after the other, in a
    ``with`` statement.

    What is ignored stays ignored, as for programs that nohup starts, but for SIGCHLD. What is blocked is unblocked: a
    program inherits that from the one that starts it, or from itself, through an upgrade.
    """

    def __init__(self, selector: selectors.BaseSelector, on_signal: Callable[[str], None]) -> None:
        self._selector = selector
        self._on_signal = on_signal
        self._waiting: deque[str] = deque()
        self._mine, self._pythons = socket.socketpair()

    def __enter__(self) -> "Signals":
        self._mine.setblocking(False)
        self._pythons.setblocking(False)
        self._before = signal.set_wakeup_fd(self._pythons.fileno(), warn_on_full_buffer=False)
        ignored = [number for number in NUMBERS if signal.getsignal(number) is signal.SIG_IGN]
        handled = [number for number in NUMBERS if number == signal.SIGCHLD or number not in ignored]
        self._handlers = {number: signal.signal(number, _nothing) for number in handled}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
        self._selector.register(self._mine, selectors.EVENT_READ, self._on_readable)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._selector.unregister(self._mine)
        signal.set_wakeup_fd(self._before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._mine.close()
        self._pythons.close()

    def _on_readable(self) -> None:
        self._receive()
        while self._waiting:
            self._on_signal(self._waiting.popleft())

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            names = [signal.Signals(number).name.removeprefix("SIG") for number in self._mine.recv(4096)]
            # Of signals that wait at the same time the kernel delivers the last one first. A stop that ends workers as
            # well, because it goes to all processes, must be known before their end.
            self._waiting += sorted(names, key="CHLD".__eq__)

    @contextlib.contextmanager
    def held_back(self) -> Iterator[list[str]]:
        """Block them; gives those that have come and were not acted on. If they are not passed on to another program
        by the end, they are acted on here."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
        try:
            self._receive()
            yield list(self._waiting)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _nothing(*_: object) -> None:
    """Have Python write the signal's number to the socket."""
