"""`Bind`: what a text says, what it opens, and which two cannot both be."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import OptionError
from iostreamsrv.supervisor.binds import Bind, check_binds
from tests.support.listening import linux_only, output, refused, unprivileged, unused_port, with_ipv6


@pytest.mark.parametrize(
    "text, kind, where",
    [
        ("127.0.0.1:8888", "tcp", ("127.0.0.1", 8888)),
        ("localhost:0", "tcp", ("localhost", 0)),
        ("localhost:http", "tcp", ("localhost", "http")),
        (":8888", "tcp", (None, 8888)),
        ("*:8888", "tcp", (None, 8888)),
        ("[::]:8888", "tcp", ("::", 8888)),
        ("[::1]:8888", "tcp", ("::1", 8888)),
        ("[fe80::1%lo]:8888", "tcp", ("fe80::1%lo", 8888)),
        ("unix:/run/echo.sock", "unix", "/run/echo.sock"),
        ("unix:echo.sock", "unix", "echo.sock"),
        ("unix:@echo", "unix", "\0echo"),
        ("fd://3", "fd", 3),
        ("fd://0", "fd", 0),
        ("systemd:echo.socket", "systemd", "echo.socket"),
    ],
)
def test_every_form_is_read(text: str, kind: str, where: Any) -> None:
    for given, tls in (text, True), (f"{text}?tls=off", False):
        bind = Bind.parse(given)
        assert (bind.kind, bind.where, bind.mode, bind.tls) == (kind, where, 0o600, tls)
        assert (str(bind), Bind.parse(str(bind))) == (given, bind)


@pytest.mark.parametrize("text, mode", [("0660", 0o660), ("660", 0o660), ("0o666", 0o666), ("0", 0)])
def test_the_mode_of_a_unix_socket_is_octal(text: str, mode: int) -> None:
    assert Bind.parse(f"unix:/run/x?mode={text}").mode == mode
    both = Bind.parse(f"unix:/run/x?tls=off&mode={text}")
    assert (both.where, both.mode, both.tls) == ("/run/x", mode, False)


@pytest.mark.parametrize(
    "text, problem",
    [
        (8888, "must be "),
        (None, "must be "),
        ("", "the port is missing"),
        ("localhost", "the port is missing"),
        ("8888", 'for that port of all interfaces write ":8888"'),
        ("localhost:", "the port must be 0 to 65535"),
        (":65536", "the port must be 0 to 65535"),
        (":-1", "the port must be 0 to 65535"),
        ("::1:8888", 'an IPv6 address needs brackets: "[::1]:8888"'),
        ("[localhost]:8888", "'localhost' is neither an IP address nor the name of a host"),
        ("two words:8888", "'two words' is neither"),
        ("http://localhost:8888", 'must be "host:port", "[::]:port"'),
        ("unix:", 'needs a path, as in "unix:/run/echo.sock"'),
        ("unix:/run/\0", "needs a path"),
        ("unix:/" + "a" * 107, "a Unix socket's path has at most 107 bytes, this one has 108"),
        ("fd:3", 'needs the number of a descriptor, as in "fd://3"'),
        ("fd://-1", "needs the number of a descriptor"),
        ("fd://99999999", "needs the number of a descriptor"),
        ("systemd:", 'needs a name, as in "systemd:echo.socket"'),
        (":8888?", "there is no '' here"),
        (":8888?tsl=off", "there is no 'tsl' here: did you mean 'tls'?"),
        (":8888?mode=0660", "there is no 'mode' here: only a Unix socket has it"),
        (":8888?tls", "tls needs one value: tls=off"),
        (":8888?tls=off&tls=off", "tls needs one value"),
        (":8888?tls=on", "tls may only be off"),
        ("unix:/x?mode=0888", "mode must be permissions in octal"),
        ("unix:/x?mode=01000", "mode must be permissions in octal"),
        ("unix:/x?mode=", "mode must be permissions in octal"),
    ],
)
@linux_only
def test_what_is_no_place_is_named_with_what_to_write(text: Any, problem: str) -> None:
    with pytest.raises(OptionError) as caught:
        Bind.parse(text)
    assert (caught.value.option, caught.value.value) == ("bind", text)
    assert str(caught.value).startswith(f"bind={text!r}: ")
    assert problem in str(caught.value)


# ---- two that are alike


@pytest.mark.parametrize(
    "one, other",
    [
        (":80", ":80"),
        (":80", "*:80"),
        (":80", "127.0.0.1:80"),
        (":80", "[::1]:80"),
        (":80", "localhost:80"),
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("[::]:80", "[::1]:80?tls=off"),
        ("[::1]:80", "[0:0::1]:80"),
        ("localhost:80", "LocalHost:80"),
        ("unix:/run/x", "unix:/run/x?mode=0660"),
        ("unix:/run/x", "unix:/run/../run/x"),
        ("unix:@x", "unix:@x"),
        ("fd://3", "fd://3?tls=off"),
        ("systemd:x", "systemd:x"),
    ],
)
def test_two_at_one_place_are_refused(one: str, other: str) -> None:
    for first, second in (one, other), (other, one):
        same = "is there twice" if first == second else f"is at the same place as {first!r}"
        with pytest.raises(OptionError) as caught:
            check_binds(map(Bind.parse, ("unix:/else", first, second)))
        assert str(caught.value) == f"bind={second!r}: {same}"


@pytest.mark.parametrize(
    "one, other",
    [
        (":80", ":81"),
        (":0", ":0"),
        ("127.0.0.1:80", "127.0.0.2:80"),
        ("0.0.0.0:80", "[::]:80"),
        ("127.0.0.1:80", "[::1]:80"),
        ("unix:/run/x", "unix:@/run/x"),
        ("unix:/run/x", "unix:/run/X"),
        ("fd://3", "fd://4"),
        ("systemd:x", "fd://3"),
    ],
)
def test_two_places_are_two(one: str, other: str) -> None:
    binds = Bind.parse(one), Bind.parse(other)
    assert check_binds(binds) == binds


def test_there_must_be_one() -> None:
    with pytest.raises(OptionError, match=r"^bind=\[\]: needs one or more"):
        check_binds(())


# ---- open


def opened(text: str) -> list[socket.socket]:
    return Bind.parse(text).open()


def test_a_port_is_listened_on() -> None:
    (listener,) = opened("127.0.0.1:0")
    with listener:
        socket.create_connection(listener.getsockname()).close()
        assert not listener.getblocking()


@with_ipv6
def test_all_interfaces_are_both_families() -> None:
    listeners = opened(f":{unused_port()}")
    assert {listener.family for listener in listeners} == {socket.AF_INET, socket.AF_INET6}
    for listener in listeners:
        listener.close()


def test_a_unix_socket_has_its_mode(tmp_path: Path) -> None:
    (listener,) = opened(f"unix:{tmp_path}/x?mode=0660")
    with listener:
        assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o660
    assert not (tmp_path / "x").exists()


def test_a_descriptor_is_taken() -> None:
    before = socket.create_server(("127.0.0.1", 0))
    (listener,) = opened(f"fd://{before.detach()}")
    with listener:
        socket.create_connection(listener.getsockname()).close()


def test_a_busy_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        text = f"127.0.0.1:{other.getsockname()[1]}"
        with refused(f"{text}: Address already in use", errno.EADDRINUSE):
            opened(text)


@linux_only
def test_a_port_below_1024_says_what_it_needs() -> None:
    start = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if start < 2:
        pytest.skip("every port is free for all here")
    hint = "a port below 1024 needs root, the capability CAP_NET_BIND_SERVICE, or a socket of systemd"
    with unprivileged(), refused(f"127.0.0.1:1: Permission denied: {hint}", errno.EACCES):
        opened("127.0.0.1:1")


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with refused(f"{tmp_path}/x: there is a file that is not a socket"):
        opened(f"unix:{tmp_path}/x")
    assert (tmp_path / "x").read_text() == "mine"


@pytest.fixture
def pipe() -> Iterator[int]:
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def test_a_descriptor_that_does_not_listen_is_named(pipe: int) -> None:
    with refused(f"fd://{pipe}: is not a socket", errno.EBADF):
        opened(f"fd://{pipe}")
    with refused("fd://9999: is not open", errno.EBADF):
        opened("fd://9999")


def test_without_systemd_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    with refused("systemd:echo: systemd has passed no sockets to this process", errno.ENOENT):
        opened("systemd:echo")


def test_a_socket_of_systemd_is_found_by_its_name() -> None:
    source = """
        import json, os, socket
        from iostreamsrv.errors import ListenError
        from iostreamsrv.supervisor.binds import Bind

        os.closerange(3, 10)
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        for number, listener in enumerate(listeners, 20):
            os.dup2(listener.fileno(), number)
            listener.close()
        for number in (20, 21):
            os.dup2(number, number - 17)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="admin:echo.socket")
        print(json.dumps([listener.fileno() for listener in Bind.parse("systemd:echo.socket").open()]))
        try:
            Bind.parse("systemd:ecko").open()
        except ListenError as error:
            print(json.dumps(str(error)))
    """
    found, problem = output(source)
    assert found == [4]
    assert problem == "cannot listen on inherited socket 'ecko': there are 'admin', 'echo.socket'"
