"""``examples/unix_socket.py``, started and spoken to from outside."""

import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.programs import PROJECT, Client, Program

EXAMPLE = PROJECT / "examples" / "unix_socket.py"
ENDED_WELL = (0, "", "")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "echo.sock"


def start(path: Path, *arguments: str) -> Program:
    return Program(EXAMPLE, "--path", path, *arguments).listening()


def test_every_client_is_greeted_and_gets_its_lines_back(path: Path) -> None:
    with start(path) as program, program.client() as one, program.client() as other:
        assert program.addresses == [str(path)]
        assert one.line() == other.line() == b"hello\n"
        assert other.ask(b"one\n") == b"one\n"
        assert one.ask(b"two\n") == b"two\n"
        one.send(b"three\nfour\n")
        assert [one.line(), one.line()] == [b"three\n", b"four\n"]
        assert program.end() == ENDED_WELL


COMMANDS = {
    "socat": (["socat", "-", "UNIX-CONNECT:{path}"], "socat"),
    "nc": (["nc", "-U", "{path}"], "netcat-openbsd"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_programs_that_know_nothing_of_python_are_answered(path: Path, name: str) -> None:
    command, package = COMMANDS[name]
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here: apt-get install {package}")
    with (
        start(path) as program,
        subprocess.Popen(
            [word.format(path=path) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as client,
    ):
        assert client.stdin is not None
        assert client.stdout is not None
        try:
            assert client.stdout.readline() == b"hello\n"
            client.stdin.write(b"from outside\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"from outside\n"
            assert program.end() == ENDED_WELL
            assert client.stdout.read() == b""
        finally:
            client.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_removes_the_file(path: Path, number: int) -> None:
    with start(path) as program:
        assert path.is_socket()
        assert program.end(number) == ENDED_WELL
    assert not path.exists()


def test_the_file_of_one_that_was_killed_is_replaced(path: Path) -> None:
    with start(path) as killed:
        assert killed.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert path.is_socket()
    with start(path) as program, program.client() as client:
        assert client.line() == b"hello\n"


def test_a_second_one_is_refused_in_one_line_and_the_first_goes_on(path: Path) -> None:
    with start(path) as first, Program(EXAMPLE, "--path", path) as second:
        complaint = f"unix_socket: cannot listen on {path}: a server is listening there\n"
        assert second.outcome() == (1, "", complaint)
        with first.client() as client:
            assert client.line() == b"hello\n"


def test_the_file_of_a_successor_stays(path: Path) -> None:
    with start(path) as first:
        path.unlink()
        with start(path) as second, second.client() as client:
            assert first.end() == ENDED_WELL
            assert client.line() == b"hello\n"
            with Client(str(path)) as late:
                assert late.line() == b"hello\n"


@pytest.mark.parametrize("mode", ["600", "660", "666"])
def test_the_mode_is_the_one_asked_for(path: Path, mode: str) -> None:
    with start(path, "--mode", mode):
        assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)


def test_the_file_is_this_users_alone_if_nothing_is_asked_for(path: Path) -> None:
    with start(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_not_a_socket_is_refused_in_one_line_and_kept(path: Path) -> None:
    path.write_text("precious")
    with Program(EXAMPLE, "--path", path) as program:
        complaint = f"unix_socket: cannot listen on {path}: there is a file that is not a socket\n"
        assert program.outcome() == (1, "", complaint)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--path", "missing/echo.sock"], "cannot listen on missing/echo.sock: there is no directory missing"),
        (["--path", "x" * 200], "has at most"),
        (["--path", ""], "path=''"),
        (["--path", "echo.sock", "--mode", "1000"], "mode=512"),
    ],
)
def test_what_cannot_be_bound_is_refused_in_one_line(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    with Program(EXAMPLE, *arguments, folder=tmp_path) as program:
        code, said, told = program.outcome()
    assert (code, said, told.count("\n")) == (1, "", 1)
    assert told.startswith("unix_socket: ")
    assert complaint in told
    assert list(tmp_path.iterdir()) == []


def test_a_mode_that_is_no_number_is_refused(path: Path) -> None:
    with Program(EXAMPLE, "--path", path, "--mode", "rwx") as program:
        code, said, told = program.outcome()
    assert (code, said) == (2, "")
    assert "--mode" in told
    assert not path.exists()
