"""Listening sockets that another process has opened."""

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import OptionError
from iostreamsrv.netutil import (
    inherited_sockets,
    socket_from_fd,
)
from tests.support import PROJECT
from tests.support.listening import output, refused
from tests.support.waiting import PATIENCE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


# ---- socket_from_fd


@pytest.fixture
def pipe() -> Iterator[int]:
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def test_a_socket_by_its_number_listens_and_is_this_process_own() -> None:
    number = socket.create_server(("127.0.0.1", 0)).detach()
    os.set_inheritable(number, True)
    with socket_from_fd(number) as listener:
        assert listener.fileno() == number
        assert not listener.getblocking()
        assert not listener.get_inheritable()
        socket.create_connection(listener.getsockname()).close()
        listener.accept()[0].close()
    with pytest.raises(OSError):
        os.fstat(number)


@pytest.mark.parametrize("wrong", [True, -1, 3.0, "3", None, 1 << 31, 1 << 100])
def test_what_is_no_number_of_a_socket_is_named(wrong: Any) -> None:
    with pytest.raises(OptionError, match=rf"^fd={re.escape(repr(wrong))}: must be"):
        socket_from_fd(wrong)


def test_a_number_that_is_not_open_is_named() -> None:
    number = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1
    with pytest.raises(OptionError, match=rf"^fd={number}: is not open$"):
        socket_from_fd(number)


def test_a_number_that_is_no_socket_is_named(pipe: int) -> None:
    with pytest.raises(OptionError, match=rf"^fd={pipe}: is not a socket$"):
        socket_from_fd(pipe)
    os.fstat(pipe)


@pytest.mark.parametrize(
    "kind, problem", [(socket.SOCK_DGRAM, "is not a stream socket"), (socket.SOCK_STREAM, "is not listening")]
)
def test_a_number_of_another_socket_is_named_and_left_as_it_is(kind: socket.SocketKind, problem: str) -> None:
    with socket.socket(type=kind) as other:
        os.set_inheritable(other.fileno(), True)
        with pytest.raises(OptionError, match=rf"^fd={other.fileno()}: {problem}$"):
            socket_from_fd(other.fileno())
        assert other.get_inheritable()
        assert other.getblocking()
        other.bind(("127.0.0.1", 0))


# ---- inherited_sockets


INHERITS = """
    import json, os, sys
    from iostreamsrv import ListenError
    from iostreamsrv.netutil import inherited_sockets

    def shown(sockets):
        return [[s.fileno(), s.getsockname(), s.getblocking(), s.get_inheritable()] for s in sockets]

    for name in json.loads(sys.argv[1]):
        try:
            print(json.dumps(shown(inherited_sockets(name))))
        except ListenError as error:
            print(json.dumps(str(error)))
"""


def inherit(
    sockets: list[socket.socket], asked: list[str | None], *, names: str | None = None, **variables: str
) -> list[Any]:
    """What a process gets that inherits these from number 3 on, and asks for sockets of these names."""
    # As systemd does it: a process that has its number already sets the variables, then becomes the program.
    source = f"""
        import os, sys
        numbers = {[sock.fileno() for sock in sockets]}
        moved = [os.dup2(number, 100 + index) for index, number in enumerate(numbers)]
        for index, number in enumerate(moved):
            os.dup2(number, 3 + index)
            os.close(number)
        os.environ.setdefault("LISTEN_PID", str(os.getpid()))
        os.environ.setdefault("LISTEN_FDS", str(len(numbers)))
        os.execv(sys.executable, [sys.executable, "-c", {textwrap.dedent(INHERITS)!r}, {json.dumps(asked)!r}])
    """
    environment = {**variables, **({} if names is None else {"LISTEN_FDNAMES": names})}
    return output(source, environment=environment, pass_fds=[sock.fileno() for sock in sockets])


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    yield listeners
    for listener in listeners:
        listener.close()


def expected(listeners: list[socket.socket], *numbers: int) -> list[Any]:
    return [[number, list(listeners[number - 3].getsockname()), False, False] for number in numbers]


def test_all_inherited_sockets_come_in_order(listeners: list[socket.socket]) -> None:
    assert inherit(listeners, [None]) == [expected(listeners, 3, 4, 5)]


def test_inherited_sockets_come_by_name(listeners: list[socket.socket]) -> None:
    assert inherit(listeners, ["web", "admin"], names="web:admin:web") == [
        expected(listeners, 3, 5),
        expected(listeners, 4),
    ]


def test_sockets_without_names_have_systemds_name_for_that(listeners: list[socket.socket]) -> None:
    assert inherit(listeners, ["unknown"]) == [expected(listeners, 3, 4, 5)]


def test_a_name_there_is_not_comes_with_those_there_are(listeners: list[socket.socket]) -> None:
    assert inherit(listeners, ["ftp"], names="web:admin:web") == [
        "cannot listen on inherited socket 'ftp': there are 'web', 'admin'"
    ]


def test_a_process_that_was_not_started_for_sockets_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        monkeypatch.delenv(variable, raising=False)
    assert inherited_sockets() == inherited_sockets("web") == []
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert inherited_sockets() == []
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    assert inherited_sockets("web") == [], "they are another process'"
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "0")
    assert inherited_sockets() == []


@pytest.mark.parametrize("kind, problem", [("datagrams", "is not a stream socket"), ("deaf", "is not listening")])
def test_an_inherited_socket_that_cannot_listen_is_named_and_the_others_are_left(
    listeners: list[socket.socket], kind: str, problem: str
) -> None:
    with socket.socket(type=socket.SOCK_DGRAM if kind == "datagrams" else socket.SOCK_STREAM) as wrong:
        results = inherit([listeners[0], wrong, listeners[2]], [None, "web"], names=f"web:{kind}:web")
    assert results == [
        f"cannot listen on inherited socket 4 ('{kind}'): {problem}",
        expected(listeners, 3, 5),
    ]


def test_an_inherited_number_that_is_closed_is_named(listeners: list[socket.socket]) -> None:
    assert inherit(listeners[:1], [None], LISTEN_FDS="2") == [
        "cannot listen on inherited socket 4 ('unknown'): is not open"
    ]


@pytest.mark.parametrize(
    "variable, value",
    [
        ("LISTEN_FDS", "three"),
        ("LISTEN_FDS", "-1"),
        ("LISTEN_FDS", ""),
        ("LISTEN_FDS", "1.5"),
        ("LISTEN_FDS", "²"),
        ("LISTEN_FDS", "9" * 30),
        ("LISTEN_PID", "me"),
        ("LISTEN_PID", ""),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv(variable, value)
    with refused(f"inherited sockets: {variable}={value!r} is not a number"):
        inherited_sockets()


def test_names_that_do_not_match_the_sockets_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "web:admin")
    with refused("inherited sockets: LISTEN_FDS=1 and LISTEN_FDNAMES='web:admin'"):
        inherited_sockets("web")


@pytest.mark.parametrize("wrong", [3, b"web", True])
def test_a_name_that_cannot_be_is_named(wrong: Any) -> None:
    with pytest.raises(OptionError, match=f"^name={wrong!r}: "):
        inherited_sockets(wrong)


ACTIVATED = """
import iostreamsrv
from iostreamsrv.netutil import inherited_sockets

class Echo(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        await stream.write(await stream.read_until(b"\\n"))
        self.stop()

server = Echo()
server.add_sockets(inherited_sockets("echo"))
iostreamsrv.run(server)
"""


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="no systemd-socket-activate here: apt-get install systemd"
)
def test_systemd_passes_sockets_on(path: Path) -> None:
    command = ["systemd-socket-activate", f"--listen={path}", "--fdname=echo", sys.executable, "-c", ACTIVATED]
    # It listens when it likes, so the first to connect has to try.
    with subprocess.Popen(
        ["env", f"PYTHONPATH={PROJECT}", *command], stderr=subprocess.PIPE, text=True, cwd=PROJECT
    ) as process:
        watchdog = threading.Timer(4 * PATIENCE, process.kill)
        watchdog.start()
        try:
            assert process.stderr is not None
            assert "Listening on" in process.stderr.readline()
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(4 * PATIENCE)
                client.connect(str(path))
                client.sendall(b"hello\n")
                assert client.recv(6) == b"hello\n"
            assert process.wait(4 * PATIENCE) == 0
        finally:
            watchdog.cancel()
            process.kill()
