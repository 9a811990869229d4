"""The file with the number of the service's first process."""

import contextlib
import os
from pathlib import Path
from types import TracebackType

from ..errors import OptionError


class PidFile:
    """Writes the number of this process, and removes the file in the end.

    :param path: None for no file.
    :raises OptionError: the file names another process that is running, or can't be written.
    """

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path).absolute()

    def __enter__(self) -> "PidFile":
        if self._path is None or (pid := _process_in(self._path)) == os.getpid():  # since before an upgrade
            return self
        if pid is not None:
            raise OptionError("pid_file", str(self._path), f"names process {pid}, which is running")
        try:
            _write(self._path, f"{os.getpid()}\n")
        except OSError as error:
            raise OptionError("pid_file", str(self._path), f"cannot be written: {error.strerror}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError, ValueError):
                if int(self._path.read_text()) == os.getpid():
                    self._path.unlink()


def _process_in(path: Path) -> int | None:
    """The process that the file names, if it is running."""
    try:
        pid = int(path.read_text())
    except (OSError, ValueError):
        return None
    if pid < 1:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # it is another user's
        pass
    return pid


def _write(path: Path, text: str) -> None:
    """Write the file such that nobody reads half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text)
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
