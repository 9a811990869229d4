"""Server names that clients ask for (SNI) and that are not ASCII."""

import sys
import threading
from collections.abc import Callable


class MuteDecodeErrors:
    """Suppresses the traceback that CPython prints, before any callback runs, for a server name that is not ASCII.

    The handshake fails, as it should; but any client could fill the log with tracebacks. ``sys.unraisablehook`` is the
    whole process's: it is replaced while any thread is in a handshake, and ignores only errors of those threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: set[int] = set()  # those in a handshake
        self._hook: _Hook | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._threads.add(threading.get_ident())
            if self._hook is None:
                report = sys.unraisablehook
                while isinstance(report, _Hook):  # other code has saved it, and set it again
                    report = report.report
                self._hook = sys.unraisablehook = _Hook(report, self._threads)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads.discard(threading.get_ident())
            if self._hook is not None and not self._threads:
                if sys.unraisablehook is self._hook:  # otherwise other code has replaced it
                    sys.unraisablehook = self._hook.report
                self._hook = None


class _Hook:
    """Replaces ``sys.unraisablehook`` during handshakes."""

    def __init__(self, report: Callable[["sys.UnraisableHookArgs"], object], threads: set[int]) -> None:
        self.report = report
        self._threads = threads

    def __call__(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if not isinstance(unraisable.exc_value, UnicodeDecodeError) or threading.get_ident() not in self._threads:
            self.report(unraisable)


MUTE_DECODE_ERRORS = MuteDecodeErrors()
