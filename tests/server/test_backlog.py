"""`iostreamsrv.net.backlog`: an accepted connection is as ``accept()`` of the listener gives it, but non-blocking."""

import os
import socket
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from iostreamsrv.net.backlog import Backlog
from iostreamsrv.runtime.kernel import ListeningSocket


class Listening:
    """A listener, and what comes to it."""

    def __init__(self, family: int, kind: type[socket.socket]) -> None:
        self.listener = kind(family, socket.SOCK_STREAM)
        self.listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self.listener.listen()
        self.listener.setblocking(False)
        self.sockets: list[socket.socket] = [self.listener]

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.listener.getsockname()[:2])
        self.sockets.append(client)
        return client

    def accept(self, backlog: Any) -> tuple[socket.socket, Any]:
        connection, address = backlog.accept()
        self.sockets.append(connection)
        return connection, address

    def close(self) -> None:
        for each in self.sockets:
            each.close()


class Own(socket.socket):
    """A listener with an ``accept`` of its own."""

    def accept(self) -> Any:
        connection, _ = super().accept()
        return connection, "somewhere"


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def listening(request: pytest.FixtureRequest) -> Iterator[Listening]:
    listening = Listening(request.param, ListeningSocket)
    yield listening
    listening.close()


def traits(connection: socket.socket) -> tuple[Any, ...]:
    kinds = connection.family, connection.type, connection.proto, type(connection)
    return *kinds, connection.getsockname(), connection.getpeername(), connection.get_inheritable()


def test_it_is_what_the_listener_accepts_but_does_not_block(listening: Listening) -> None:
    theirs = listening.connect()
    ours, address = listening.accept(Backlog(listening.listener, False))
    other = listening.connect()
    expected, its_address = listening.listener.accept()
    listening.sockets.append(expected)
    assert address == theirs.getsockname() == ours.getpeername()
    assert (type(address), len(address)) == (type(its_address), len(its_address))
    assert [*traits(ours)[:5], traits(ours)[-1]] == [*traits(expected)[:5], traits(expected)[-1]]
    assert other.getsockname() == its_address
    assert (ours.gettimeout(), ours.getblocking(), os.get_blocking(ours.fileno())) == (0.0, False, False)


def test_its_calls_work_and_raise_as_those_of_any_socket(listening: Listening) -> None:
    theirs = listening.connect()
    ours, _ = listening.accept(Backlog(listening.listener, False))
    with pytest.raises(BlockingIOError):
        ours.recv(1)
    theirs.sendall(b"line\n")
    ours.setblocking(True)
    with ours.makefile("rb") as file:
        ours.close()
        assert file.readline() == b"line\n"
        assert ours.fileno() >= 0  # the file holds it
    assert ours.fileno() == -1
    assert theirs.recv(1) == b""


def test_one_that_is_not_closed_is_complained_of(listening: Listening) -> None:
    listening.connect()
    backlog = Backlog(listening.listener, False)
    with pytest.warns(ResourceWarning, match="unclosed"):
        backlog.accept()
    assert backlog.accept() is None
    listening.listener.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        backlog.accept()


def test_clients_of_one_host_and_of_others_have_their_own_addresses() -> None:
    listening = Listening(socket.AF_INET, socket.socket)
    backlog = Backlog(listening.listener, False)
    for host in ("127.0.0.1", "127.0.0.1", "127.12.255.10", "127.0.0.1"):
        client = socket.create_connection(listening.listener.getsockname(), source_address=(host, 0))
        listening.sockets.append(client)
        assert listening.accept(backlog)[1] == client.getsockname()
    listening.close()


@pytest.mark.parametrize("blocking", [True, False])
def test_a_listener_with_an_accept_of_its_own_is_asked(blocking: bool) -> None:
    listening = Listening(socket.AF_INET, Own)
    listening.connect()
    connection, address = listening.accept(Backlog(listening.listener, blocking))
    assert (address, connection.getblocking()) == ("somewhere", blocking)
    assert Backlog(listening.listener, blocking).accept() is None
    listening.close()


def test_an_accept_that_was_assigned_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    listening = Listening(socket.AF_INET, ListeningSocket)
    backlog = Backlog(listening.listener, False)
    calls: list[Any] = []

    def refuse(*arguments: Any) -> Any:
        calls.append(arguments)
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patching:
        patching.setattr(socket.socket, "accept", refuse)
        with pytest.raises(OSError, match="Too many"):
            backlog.accept()
    vars(listening.listener)["accept"] = refuse
    with pytest.raises(OSError, match="Too many"):
        backlog.accept()
    assert [len(each) for each in calls] == [1, 0]
    listening.close()


def test_a_default_timeout_does_not_make_it_block() -> None:
    listening = Listening(socket.AF_INET, ListeningSocket)
    socket.setdefaulttimeout(5)
    try:
        listening.connect()
        connection, _ = listening.accept(Backlog(listening.listener, False))
    finally:
        socket.setdefaulttimeout(None)
    assert connection.gettimeout() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listening.close()
