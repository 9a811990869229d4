"""Unix sockets: where they are bound, what is in the way, what they leave."""

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import OptionError
from iostreamsrv.net import unixlistener
from iostreamsrv.netutil import (
    bind_unix_socket,
)
from tests.support import PROJECT
from tests.support.listening import linux_only, output, refused, unprivileged
from tests.support.programs import printed
from tests.support.waiting import PATIENCE

# ---- bind_unix_socket


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory in which everybody may do everything."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        yield Path(directory)


def leave_stale(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
    """What a server leaves that was killed."""
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(str(path))


def is_served(path: Path | str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("kind", [os.fspath, os.fsencode, Path], ids=["str", "bytes", "Path"])
def test_a_unix_socket_listens_with_a_file_for_this_user_alone(path: Path, kind: Callable[[Path], Any]) -> None:
    with bind_unix_socket(kind(path)) as listener:
        assert listener.getsockname() == str(path)
        assert not listener.getblocking()
        assert mode_of(path) == 0o600
        assert is_served(path)
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o000])
def test_a_mode_is_what_was_asked_for_whatever_the_umask(path: Path, mode: int) -> None:
    before = os.umask(0o027)
    try:
        with bind_unix_socket(path, mode):
            assert mode_of(path) == mode
    finally:
        os.umask(before)


def test_nobody_connects_before_the_mode_is_in_force(path: Path) -> None:
    watched = """
        import os, socket, sys
        from iostreamsrv.netutil import bind_unix_socket

        PATH = os.environ["SOCKET"]

        def on_event(event, arguments):
            if event == "os.chmod":  # which is about to be done
                with socket.socket(socket.AF_UNIX) as client:
                    print(client.connect_ex(PATH))

        sys.addaudithook(on_event)
        with bind_unix_socket(PATH), socket.socket(socket.AF_UNIX) as client:
            print(client.connect_ex(PATH))
    """
    assert output(watched, environment={"SOCKET": str(path)}) == [errno.ECONNREFUSED, 0]


@linux_only
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_the_file_of_a_dead_server_is_replaced(path: Path, kind: socket.SocketKind) -> None:
    leave_stale(path, kind)
    with bind_unix_socket(path, 0o640):
        assert is_served(path)
        assert mode_of(path) == 0o640
    assert not path.exists()


def test_a_live_server_is_left_alone(path: Path) -> None:
    with bind_unix_socket(path):
        with refused(f"{path}: a server is listening there", errno.EADDRINUSE):
            bind_unix_socket(path)
        assert is_served(path)


def test_a_live_server_whose_backlog_is_full_is_left_alone(path: Path) -> None:
    with bind_unix_socket(path, backlog=1), contextlib.ExitStack() as clients:

        def one_more() -> int:
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            return client.connect_ex(str(path))

        assert any(one_more() == errno.EAGAIN for _ in range(10))
        with refused(f"{path}: a server is listening there", errno.EADDRINUSE):
            bind_unix_socket(path)


@linux_only
def test_a_live_socket_of_another_kind_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as live:
        live.bind(str(path))
        with refused(f"{path}: a server is listening there", errno.EADDRINUSE):
            bind_unix_socket(path)
    assert path.exists()


OBSTACLES: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_text("precious"),
    "empty file": lambda path: path.touch(),
    "directory": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to a dead socket": lambda path: (leave_stale(path.with_name("other")), path.symlink_to("other")),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_is_no_socket_is_refused_and_left_untouched(path: Path, obstacle: str) -> None:
    OBSTACLES[obstacle](path)
    before = path.lstat()
    with refused(f"{path}: there is a file that is not a socket", errno.EEXIST):
        bind_unix_socket(path)
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with refused(f"{missing}/socket: there is no directory {missing}", errno.ENOENT):
        bind_unix_socket(missing / "socket")


@pytest.mark.parametrize("obstacle", ["file", "pipe"])
def test_a_directory_that_is_none_is_named(tmp_path: Path, obstacle: str) -> None:
    other = tmp_path / "other"
    OBSTACLES[obstacle](other)
    with refused(f"{other}/socket: Not a directory", errno.ENOTDIR):
        bind_unix_socket(other / "socket")


def test_a_directory_without_permission_is_named(public: Path) -> None:
    public.chmod(0o555)
    with refused(f"{public}/socket: Permission denied", errno.EACCES), unprivileged():
        bind_unix_socket(public / "socket")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_server_of_another_user_is_left_alone(public: Path) -> None:
    path = public / "socket"
    with bind_unix_socket(path):
        with refused(f"{path}: Permission denied", errno.EACCES), unprivileged():
            bind_unix_socket(path)
        assert is_served(path)


def test_a_directory_that_cannot_be_listed_is_good_enough(public: Path) -> None:
    public.chmod(0o333)
    with unprivileged(), bind_unix_socket(public / "socket"):
        assert is_served(public / "socket")
    public.chmod(0o777)
    assert list(public.iterdir()) == []


@linux_only
def test_a_path_has_at_most_107_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with bind_unix_socket("x" * 107):
        assert is_served("x" * 107)
    too_long = "é" * 54
    with refused(f"{too_long}: a Unix socket's path has at most 107 bytes, this one has 108", errno.ENAMETOOLONG):
        bind_unix_socket(too_long)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [True, -1, 0o1000, 0o100600, 6.0, "0o600", None])
def test_a_bad_mode_is_named_and_nothing_bound(path: Path, mode: Any) -> None:
    with pytest.raises(OptionError, match=rf"^mode={re.escape(repr(mode))}: "):
        bind_unix_socket(path, mode)
    assert not path.exists()


@pytest.mark.parametrize("wrong", ["", b"", 7, None, "a\0b", "\0a\0b", "\ud800", ["socket"]])
def test_a_bad_path_is_named(wrong: Any) -> None:
    with pytest.raises(OptionError, match=rf"^path={re.escape(repr(wrong))}: "):
        bind_unix_socket(wrong)


@pytest.mark.parametrize("backlog", [0, True, 1.5])
def test_a_bad_backlog_is_named_and_nothing_bound(path: Path, backlog: Any) -> None:
    with pytest.raises(OptionError, match=rf"^backlog={backlog}: "):
        bind_unix_socket(path, backlog=backlog)
    assert not path.exists()


def test_where_there_are_no_unix_sockets_one_error_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with refused(f"{path}: this platform has no Unix sockets", errno.EAFNOSUPPORT):
        bind_unix_socket(path)


@linux_only
def test_an_abstract_name_has_no_file_and_ends_with_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"\0iostreamsrv-test-{os.getpid()}"
    with bind_unix_socket(name):
        assert is_served(name)
        assert list(tmp_path.iterdir()) == []
        with refused(f"@{name[1:]}: Address already in use", errno.EADDRINUSE):
            bind_unix_socket(name)
    assert not is_served(name)


@linux_only
def test_an_abstract_name_has_at_most_107_bytes_after_its_zero() -> None:
    name = f"\0iostreamsrv-test-{os.getpid()}-".ljust(108, "x")
    bind_unix_socket(name).close()
    with refused(f"@{name[1:]}x: a Unix socket's path has at most 107 bytes", errno.ENAMETOOLONG):
        bind_unix_socket(name + "x")


# ---- the end of a Unix socket


def test_the_file_goes_with_its_socket_from_wherever_the_process_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    listener = bind_unix_socket("socket")
    monkeypatch.chdir(elsewhere)
    Path("socket").touch()
    listener.close()
    assert list(tmp_path.rglob("socket")) == [elsewhere / "socket"]
    listener.close()


@pytest.mark.parametrize("successor", ["another server", "file", "nothing"])
def test_a_file_that_is_not_ours_stays(path: Path, successor: str) -> None:
    listener = bind_unix_socket(path)
    path.unlink()
    if successor == "another server":
        other = bind_unix_socket(path)
        listener.close()
        assert is_served(path)
        other.close()
    elif successor == "file":
        path.write_text("precious")
        listener.close()
        assert path.read_text() == "precious"
    else:
        listener.close()
    assert listener.fileno() == -1


def test_a_socket_that_was_given_away_keeps_its_file(path: Path) -> None:
    listener = bind_unix_socket(path)
    taken_over = socket.socket(fileno=listener.detach())
    listener.close()
    assert is_served(path)
    taken_over.close()


def test_the_end_of_a_duplicate_is_not_that_of_the_socket(path: Path) -> None:
    with bind_unix_socket(path) as listener:
        listener.dup().close()
        assert is_served(path)


def test_a_forked_process_that_closes_the_socket_leaves_the_file(path: Path) -> None:
    forks = """
        import os
        from iostreamsrv.netutil import bind_unix_socket

        with bind_unix_socket(os.environ["SOCKET"]) as listener:
            child = os.fork()
            if not child:
                listener.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            print(int(os.path.exists(os.environ["SOCKET"])))
        print(int(os.path.exists(os.environ["SOCKET"])))
    """
    assert output(forks, environment={"SOCKET": str(path)}) == [1, 0]


# ---- several servers that start at once


RACER = """
    import os, sys
    from iostreamsrv import ListenError
    from iostreamsrv.netutil import bind_unix_socket

    for path in sys.stdin:
        try:
            listener = bind_unix_socket(path.strip())
        except ListenError as error:
            print(repr(str(error)))
            sys.stdin.readline()
        else:
            print(repr("won"))
            sys.stdin.readline()
            os.close(listener.detach())  # its file stays, as one of a server that was killed
        print(repr("over"))
"""


@contextlib.contextmanager
def racers(count: int) -> Iterator[list[Any]]:
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-u", "-c", textwrap.dedent(RACER)]
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        processes = [
            stack.enter_context(subprocess.Popen(command, cwd=PROJECT, text=True, **pipes)) for _ in range(count)
        ]
        for process in processes:
            watchdog = threading.Timer(4 * PATIENCE, process.kill)
            watchdog.start()
            stack.callback(process.kill)
            stack.callback(watchdog.cancel)
        yield processes


def test_of_servers_that_start_at_once_on_a_stale_file_one_wins(path: Path) -> None:
    leave_stale(path)
    with racers(4) as processes:

        def all_of_them(line: str) -> list[str]:
            for process in processes:
                process.stdin.write(f"{line}\n")
                process.stdin.flush()
            return sorted(printed(process) for process in processes)

        for _ in range(25):
            assert all_of_them(f"{path}") == [f"cannot listen on {path}: a server is listening there"] * 3 + ["won"]
            assert all_of_them("") == ["over"] * 4


def test_a_server_that_waits_for_another_starts_when_that_has_ended_its_start(path: Path) -> None:
    """The directory is locked for as long as it takes, and not longer."""
    lock = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    started = threading.Event()

    def start() -> None:
        with bind_unix_socket(path):
            started.set()

    with ThreadPoolExecutor(1) as executor:
        starting = executor.submit(start)
        assert not started.wait(10 * unixlistener.LOCK_POLL)
        os.close(lock)
        starting.result(unixlistener.LOCK_WAIT)


@pytest.mark.parametrize("kind", [fcntl.LOCK_EX, fcntl.LOCK_SH])
def test_a_lock_that_is_not_ours_does_not_keep_a_server_from_starting(
    path: Path, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unixlistener, "LOCK_WAIT", 0.05)
    lock = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(lock, kind)
    leave_stale(path)
    with bind_unix_socket(path):
        assert is_served(path)
    os.close(lock)


def test_a_stale_socket_is_replaced_also_under_a_path_with_a_slash_at_its_end(path: Path) -> None:
    leave_stale(path)
    with bind_unix_socket(f"{path}/"):
        assert is_served(path)
