"""Notice that the files of certificates have changed, without a signal."""

import os
from collections.abc import Callable, Hashable, Iterable


class FileWatch:
    """Compares files with what they were. It looks only when it is asked.

    A change counts when a second look finds the same: a certificate and its key are written one after the other.

    :param files: gives the paths.
    """

    def __init__(self, files: Callable[[], Iterable[str]]) -> None:
        self._files = files
        self._known = self._last = self._look()

    def has_changed(self) -> bool:
        """Whether the files are others than at the last change, or at the beginning, and no longer change."""
        before, self._last = self._last, self._look()
        if self._last == self._known or self._last != before:
            return False
        self._known = self._last
        return True

    def _look(self) -> dict[str, Hashable]:
        return {path: file_state(path) for path in self._files()}


def file_state(path: str) -> Hashable:
    """A value that changes when a file is written to or replaced, also where a link then leads to another file."""
    try:
        now = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
