"""For development: reload when a source file changes."""

import os
import signal
import threading

from ..errors import OptionError


class SourceWatch:
    """Sends this process SIGHUP when a Python file below the current folder changes.

    :raises OptionError: watchfiles is not installed.
    """

    def __init__(self) -> None:
        try:
            import watchfiles
        except ImportError:
            raise OptionError("reload", True, 'needs watchfiles: pip install "iostreamsrv[reload]"') from None
        self._changes = watchfiles.watch
        self._filter = watchfiles.PythonFilter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="iostreamsrv sources", daemon=True)

    def __enter__(self) -> "SourceWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for _ in self._changes(".", watch_filter=self._filter, stop_event=self._stop, raise_interrupt=False):
            os.kill(os.getpid(), signal.SIGHUP)
