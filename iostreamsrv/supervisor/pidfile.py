"""The file with the number of the service's first process."""

import contextlib
import os
import secrets
from pathlib import Path

from ..errors import OptionError


class PidFile:
    """Writes the number of this process, and removes the file in the end.

    :param path: None for no file.
    :raises OptionError: the file names another service that is running, or can't be written.
    """

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)

    def __enter__(self) -> "PidFile":
        if self._path is None:
            return self
        try:
            self._path = self._path.absolute()
            if (pid := _service_in(self._path)) != os.getpid():  # as it is after an upgrade
                if pid is not None:
                    raise OptionError("pid_file", str(self._path), f"names process {pid}, which is running")
                _write(self._path, f"{os.getpid()}\n")
        except OSError as error:
            raise OptionError("pid_file", str(self._path), f"cannot be written: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the file, if it is there, names this process and may be removed."""
        if self._path is not None:
            with contextlib.suppress(OSError, ValueError):
                if int(self._path.read_text()) == os.getpid():
                    self._path.unlink()


def _service_in(path: Path) -> int | None:
    """The process that the file names, if it runs a service. Another one has got the number of one that has ended."""
    try:
        pid = int(path.read_text())
    except (OSError, ValueError):
        return None
    if pid < 1:
        return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:  # it is another user's
        pass
    return pid if pid == os.getpid() or _may_be_service(pid) else None


def _may_be_service(pid: int) -> bool:
    """Whether a process may be the first one of a service. Without ``/proc`` each may."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return True
    # In the moment of an exec, as in an upgrade, it has no words.
    return words == [b""] or (b"serve" in words and any(b"iostreamsrv" in word for word in words))


def _write(path: Path, text: str) -> None:
    """Write the file at once, so that no program reads half of it; all users may read it."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    number = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o644)
    try:
        with open(number, "w") as file:  # noqa: PTH123 (a descriptor)
            os.fchmod(number, 0o644)  # whatever the umask
            file.write(text)
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
