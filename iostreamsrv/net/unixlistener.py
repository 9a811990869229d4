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
from ..runtime.kernel import ListeningSocket, current_kernel

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has none, and no Unix sockets either
    fcntl = None

LONGEST_PATH = 107 if sys.platform == "linux" else 103
"""Most bytes of a path: the size of the kernel's ``sun_path`` without the final zero."""

LOCK_WAIT = 1.0
LOCK_POLL = 0.01
"""Seconds to wait for a directory's lock, and between attempts. A server that starts holds it for less than that.
A longer holder is another program (some lock directories against cleaners), which must not keep a server from starting.
"""


class UnixListener(ListeningSocket):
    """A Unix socket that removes its file when the process that bound it closes it."""

    _file: Path | None = None
    _identity: tuple[int, int] | None = None
    _process = 0

    def own(self, file: Path) -> None:
        """Remember the socket's file, to remove it later."""
        self._identity = _identity(file)
        self._process = os.getpid()
        self._file = file.absolute()  # the process may change its directory

    def close(self) -> None:
        """Close the socket, and remove its file if this process made it and it is still there."""
        # The file first: a server that starts meanwhile finds either a listening server or no file, so it does not
        # replace the file between the check and the removal.
        if self._file is not None and self.fileno() >= 0 and self._process == os.getpid():
            with contextlib.suppress(OSError):
                if _identity(self._file) == self._identity:
                    self._file.unlink()
        super().close()


def _identity(file: Path) -> tuple[int, int]:
    found = file.lstat()
    return found.st_dev, found.st_ino


def file_of(listener: socket.socket) -> Path | None:
    """The file of a bound socket; None if it has none: an abstract name, or TCP."""
    address = listener.getsockname()
    if not isinstance(address, str) or not address:
        return None
    return Path(address)


def bind(path: str, mode: int, backlog: int) -> socket.socket:
    """A listening socket. It replaces one that a dead server left.

    :raises OSError: the bind fails; nothing is left bound, and an existing file is untouched.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, "this platform has no Unix sockets")
    _check_length(path)
    with contextlib.ExitStack() as unfinished:
        if path.startswith("\0") or not current_kernel().has_files:
            listener = unfinished.enter_context(current_kernel().listening_socket(socket.AF_UNIX))
            listener.setblocking(False)
            listener.bind(path)
            listener.listen(backlog)
        else:
            listener = unfinished.enter_context(UnixListener(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.setblocking(False)
            _bind_file(listener, path, mode, backlog)
        unfinished.pop_all()
        return listener


def _check_length(path: str) -> None:
    length = len(os.fsencode(path))
    if length > LONGEST_PATH + path.startswith("\0"):  # an abstract name has no final zero
        raise OSError(
            errno.ENAMETOOLONG, f"a Unix socket's path has at most {LONGEST_PATH} bytes, this one has {length}"
        )


def _bind_file(listener: UnixListener, path: str, mode: int, backlog: int) -> None:
    file = Path(path)
    with _locked(file.parent):
        _remove_stale(file)
        listener.bind(str(file))  # not path, which may end with "/"
        listener.own(file)
        file.chmod(mode)  # before it listens: until then clients are refused
        listener.listen(backlog)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock ``directory``, so that another server does not take a socket that does not listen yet for a stale one."""
    try:
        number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # it may be writable and searchable nevertheless
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
            return  # some network file systems cannot lock directories


def _remove_stale(file: Path) -> None:
    """Remove the socket that a dead server left.

    :raises OSError: a server is listening there, or the file is no socket.
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
            pass  # its queue is full
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:  # EPROTOTYPE: it is a datagram socket, which is in use
                raise
    return True
