"""``examples/file_server.py``, spoken to by real clients."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import PATIENCE, PROJECT, Client, Program

EXAMPLE = PROJECT / "examples" / "file_server.py"
ENDED_WELL = (0, "", "")
MEGABYTE = 1 << 20
HUGE = 64 * MEGABYTE
"""Bytes: so many that the kernel's buffers do not take them all for a client that does not read."""

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the server serves; beside it there is ``secret``."""
    folder = tmp_path / "served"
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "one").write_bytes(b"the first\n")
    (folder / "two").write_bytes(b"2\n")
    (folder / "empty").touch()
    (folder / "deep" / "deeper" / "three").write_bytes(b"3\n")
    (folder / "name with spaces, and ü").write_bytes(b"4\n")
    (tmp_path / "secret").write_bytes(b"secret\n")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Program]:
    with Program(EXAMPLE, "--port", "0", "--directory", folder).listening() as program:
        yield program


@pytest.fixture
def client(server: Program) -> Iterator[Client]:
    with server.client() as client:
        yield client


def get(client: Client, name: str) -> bytes:
    """The file that is sent."""
    answer = client.ask(os.fsencode(name) + b"\n")
    assert answer.startswith(b"SIZE "), answer
    size = int(answer.split()[1])
    content = client._lines.read(size)
    assert len(content) == size
    return content


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("one", b"the first\n"),
        ("empty", b""),
        ("deep/deeper/three", b"3\n"),
        ("name with spaces, and ü", b"4\n"),
    ],
)
def test_a_file_is_sent_after_its_size(client: Client, name: str, content: bytes) -> None:
    assert get(client, name) == content


def test_a_line_may_end_as_on_windows(client: Client) -> None:
    assert client.ask(b"two\r\n") == b"SIZE 2\n"
    assert client.line() == b"2\n"


def test_names_sent_together_are_answered_in_order(client: Client, folder: Path) -> None:
    large = os.urandom(3 * MEGABYTE)
    (folder / "large").write_bytes(large)
    client.send(b"one\nmissing\nlarge\n../secret\nempty\ntwo\n")
    client.socket.shutdown(socket.SHUT_WR)
    assert client._lines.read() == (
        b"SIZE 10\nthe first\nERR No such file or directory\n"
        + b"SIZE %d\n" % len(large)
        + large
        + b"ERR Invalid argument\nSIZE 0\nSIZE 2\n2\n"
    )


def test_a_big_file_arrives_unchanged_for_several_clients_at_once(server: Program, folder: Path) -> None:
    content = os.urandom(20 * MEGABYTE)
    (folder / "big").write_bytes(content)
    with server.client() as first, server.client() as second:
        first.send(b"big\n")  # it is not read yet
        second_got = get(second, "big")
        assert first.line() == b"SIZE %d\n" % len(content)
        assert first._lines.read(len(content)) == second_got == content


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../secret",
        "deep/../../secret",
        "deep/..",
        "/",
        "/etc/passwd",
        "",
        ".",
        "./one",
        "deep//deeper/three",
        "deep/",
        "deep",
        "one/two",
        "missing",
        "deep/missing",
        "one\0",
        "x" * 1000,
    ],
)
def test_what_is_no_name_of_a_file_is_refused_and_the_next_one_is_served(client: Client, name: str) -> None:
    assert client.ask(name.encode() + b"\n").startswith(b"ERR ")
    assert get(client, "two") == b"2\n"


def test_an_absolute_name_is_refused_also_if_it_is_of_a_file_that_is_served(client: Client, folder: Path) -> None:
    assert client.ask(os.fsencode(folder / "one") + b"\n").startswith(b"ERR ")


@pytest.mark.parametrize("target", ["../secret", "one"])
def test_no_symbolic_link_is_followed(client: Client, folder: Path, target: str) -> None:
    (folder / "link").symlink_to(target)
    assert client.ask(b"link\n").startswith(b"ERR ")


def test_no_symbolic_link_is_followed_on_the_way(client: Client, folder: Path) -> None:
    (folder / "out").symlink_to("..")
    (folder / "in").symlink_to("deep")
    assert client.ask(b"out/secret\n").startswith(b"ERR ")
    assert client.ask(b"in/deeper/three\n").startswith(b"ERR ")


def test_a_directory_that_becomes_a_link_leads_nowhere(client: Client, folder: Path) -> None:
    (folder / "deep").rename(folder / "moved")
    (folder / "deep").symlink_to(folder.parent)
    assert client.ask(b"deep/secret\n").startswith(b"ERR ")


def test_only_regular_files_are_sent(client: Client, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        for name in (b"pipe\n", b"socket\n"):
            assert client.ask(name).startswith(b"ERR ")
    assert get(client, "two") == b"2\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(client: Client, folder: Path) -> None:
    (folder / "one").chmod(0)
    assert client.ask(b"one\n") == b"ERR Permission denied\n"


def test_a_line_that_is_too_long_ends_the_connection_and_no_other(server: Program, client: Client) -> None:
    with server.client() as other:
        client.send(b"x" * 5000)
        try:
            assert client.line() == b""
        except ConnectionResetError:
            pass
        assert get(other, "two") == b"2\n"


def test_a_file_that_shrinks_while_it_is_sent_ends_the_connection_with_a_reset(server: Program, folder: Path) -> None:
    with (folder / "huge").open("wb") as file:
        file.truncate(HUGE)
        with server.client() as client, server.client() as other:
            assert client.ask(b"huge\n") == b"SIZE %d\n" % HUGE
            file.truncate(MEGABYTE)
            got = 0
            with pytest.raises(ConnectionResetError):
                while chunk := client._lines.read1():
                    got += len(chunk)
            assert got < HUGE
            assert get(other, "two") == b"2\n"
    assert server.end() == ENDED_WELL


def test_of_a_file_that_grows_while_it_is_sent_as_much_is_sent_as_was_said(client: Client, folder: Path) -> None:
    with (folder / "huge").open("wb") as file:
        file.truncate(HUGE)
        assert client.ask(b"huge\n") == b"SIZE %d\n" % HUGE
        file.truncate(HUGE + MEGABYTE)
        assert len(client._lines.read(HUGE)) == HUGE
    assert get(client, "two") == b"2\n"


def test_a_client_that_goes_away_in_the_middle_troubles_nobody(server: Program, folder: Path) -> None:
    with (folder / "huge").open("wb") as file:
        file.truncate(HUGE)
    with server.client() as other:
        with server.client() as client:
            assert client.ask(b"huge\n") == b"SIZE %d\n" % HUGE
        assert get(other, "two") == b"2\n"
    assert server.end() == ENDED_WELL


@on_linux
def test_no_file_stays_open(server: Program, client: Client) -> None:
    def open_descriptors() -> int:
        return len(list(Path(f"/proc/{server._process.pid}/fd").iterdir()))

    assert get(client, "one")
    assert client.ask(b"missing\n")  # the file before is closed by the time of this answer
    before = open_descriptors()
    for name in ("one", "deep/deeper/three", "deep", "deep/missing", "../secret", "missing") * 20:
        client.ask(name.encode() + b"\n")
        if name in ("one", "deep/deeper/three"):
            client.line()
    assert open_descriptors() == before


def test_a_directory_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with Program(EXAMPLE, "--port", "0", "--directory", tmp_path / name) as program:
            code, said, complaint = program.outcome()
        assert (code, said) == (1, "")
        assert complaint.count("\n") == 1
        assert complaint.startswith("file_server: ")
        assert str(tmp_path / name) in complaint


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            "nc -N {} {}",
            marks=pytest.mark.skipif(not shutil.which("nc"), reason="no nc here: apt-get install netcat-openbsd"),
        ),
        pytest.param(
            "socat -t10 - TCP:{}:{}",
            marks=pytest.mark.skipif(not shutil.which("socat"), reason="no socat here: apt-get install socat"),
        ),
    ],
)
def test_a_plain_client_gets_a_big_file(command: str, server: Program, folder: Path) -> None:
    content = os.urandom(10 * MEGABYTE)
    (folder / "big").write_bytes(content)
    words = command.format(*server.addresses[0]).split()
    ended = subprocess.run(words, input=b"big\n", capture_output=True, timeout=PATIENCE)
    size, _, got = ended.stdout.partition(b"\n")
    assert size == b"SIZE %d" % len(content)
    assert hashlib.sha256(got).digest() == hashlib.sha256(content).digest()
    assert server.end() == ENDED_WELL
