"""A listening Unix socket and the file it owns."""

import contextlib
import errno
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from types import ModuleType

from ..runtime.clock import real_time

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has none, and no Unix sockets either
    fcntl = None

LONGEST_PATH = 107 if sys.platform == "linux" else 103
"""Bytes of a path: what the kernel's ``sun_path`` has room for, without the zero at its end."""

LOCK_WAIT = 1.0
LOCK_POLL = 0.01
"""Seconds to wait for a directory's lock, and between tries. A server that starts holds it for less than one try; who
holds it longer is none (programs lock directories to keep cleaners away), and must not keep a server from starting.
"""


class UnixListener(socket.socket):
    """A Unix socket that takes its file with it when it is closed by the process that bound it."""

    _file: Path | None = None
    _identity: tuple[int, int] | None = None
    _process = 0

    def own(self, file: Path) -> None:
        """This is the socket's file."""
        self._identity = _identity(file)
        self._process = os.getpid()
        self._file = file.absolute()  # the process may go to another directory

    def close(self) -> None:
        """Close it, and remove the file if it is still there and this process has made it."""
        # The file first: whoever starts meanwhile finds a server at work or no file, so nobody puts another one in its
        # place between the look and the removal.
        if self._file is not None and self.fileno() >= 0 and self._process == os.getpid():
            with contextlib.suppress(OSError):
                if _identity(self._file) == self._identity:
                    self._file.unlink()
        super().close()


def _identity(file: Path) -> tuple[int, int]:
    found = file.lstat()
    return found.st_dev, found.st_ino


def bind(path: str, mode: int, backlog: int) -> socket.socket:
    """A listening socket, in the place of one that a dead server left.

    :raises OSError: it cannot be bound; nothing is left, and what was there is untouched.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, "this platform has no Unix sockets")
    _check_length(path)
    with contextlib.ExitStack() as unfinished:
        listener = unfinished.enter_context(UnixListener(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.setblocking(False)
        if path.startswith("\0"):
            listener.bind(path)
            listener.listen(backlog)
        else:
            _bind_file(listener, path, mode, backlog)
        unfinished.pop_all()
        return listener


def _check_length(path: str) -> None:
    length = len(os.fsencode(path))
    if length > LONGEST_PATH + path.startswith("\0"):  # an abstract name has no zero at its end
        raise OSError(
            errno.ENAMETOOLONG, f"a Unix socket's path has at most {LONGEST_PATH} bytes, this one has {length}"
        )


def _bind_file(listener: UnixListener, path: str, mode: int, backlog: int) -> None:
    file = Path(path)
    with _locked(file.parent):
        _remove_stale(file)
        listener.bind(str(file))  # not path, which may say the same with a "/" at its end
        listener.own(file)
        file.chmod(mode)  # before it listens: until then all are refused
        listener.listen(backlog)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep others who bind in ``directory`` from taking a socket that doesn't listen yet for a stale one."""
    try:
        number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # it may be written to and searched all the same
        yield
        return
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, f"there is no directory {directory}") from None
    try:
        _lock(number)
        yield
    finally:
        os.close(number)  # which unlocks


def _lock(number: int) -> None:
    end = real_time() + LOCK_WAIT
    while fcntl is not None and real_time() < end:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            sleep(LOCK_POLL)
        except OSError:
            return  # some network file systems have no locks for directories


def _remove_stale(file: Path) -> None:
    """Remove the socket that a dead server left.

    :raises OSError: what is there is something else.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(file.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is not a socket")
        if _is_served(file):
            raise OSError(errno.EADDRINUSE, "a server is listening there")
        file.unlink()


def _is_served(file: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(str(file))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            pass  # more clients wait than it accepts at the moment
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:  # which says that there is one, of datagrams
                raise
    return True
