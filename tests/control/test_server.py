"""The server of the control socket, and clients that do as they please."""

import contextlib
import json
import logging
import os
import selectors
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv.control.protocol import INTERNAL, INVALID, LONGEST_ANSWER, LONGEST_LINE, REFUSED, ControlError, Request
from iostreamsrv.control.server import MOST_CLIENTS, Answer, ControlServer

TURNS = 2000
"""More than any of these tests needs."""


class Served:
    """A server, and its selector, which turns when a test says so.

    :ivar later: answers that are still to be given.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.selector = selectors.DefaultSelector()
        self.later: list[Answer] = []
        self.server = ControlServer(self.selector, str(path), self.act)
        self.server.listen()

    def act(self, request: Request, answer: Answer) -> None:
        match request.verb:
            case "later":
                self.later.append(answer)
            case "refuse":
                raise ControlError(REFUSED, "no")
            case "fault":
                raise RuntimeError("a fault")
            case "long":
                answer("x" * request.arguments["size"])
            case verb:
                answer(verb)

    def turn(self, until: Callable[[], bool] | None = None) -> None:
        """Turn until nothing is left to do, or ``until`` that."""
        for _ in range(TURNS):
            ready = self.selector.select(0) if self.selector.get_map() else []
            if until() if until is not None else not ready:
                return
            for key, _ in ready:
                key.data()
        raise AssertionError("it does not come to rest")

    def client(self) -> socket.socket:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.setblocking(False)
        end.connect(str(self.path))
        self.turn()
        return end

    def answers(self, client: socket.socket) -> list[Any]:
        """What has come: results, and the codes of errors."""
        self.turn()
        received = b""
        with contextlib.suppress(BlockingIOError):
            while data := client.recv(1 << 20):
                received += data
                self.turn()
        found = [json.loads(line) for line in received.splitlines()]
        return [each["result"] if "result" in each else each["error"]["code"] for each in found]

    def ask(self, client: socket.socket, *verbs: str) -> list[Any]:
        client.sendall(b"".join(Request(verb).to_line() for verb in verbs))
        return self.answers(client)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "control.sock")
    yield served
    served.server.close()
    assert not served.selector.get_map()
    served.selector.close()


def test_requests_are_answered_in_their_order(served: Served) -> None:
    with served.client() as client:
        assert served.ask(client, "a", "refuse", "b") == ["a", REFUSED, "b"]


def test_the_file_is_for_its_user_only_and_goes_with_the_server(served: Served) -> None:
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o600
    served.server.close()
    assert not served.path.exists()


def test_the_file_is_for_its_user_only_from_the_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "chmod", lambda *_: None)
    before = os.umask(0)
    try:
        server = Served(tmp_path / "c").server
        assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o600
        assert os.umask(0) == 0
        server.close()
    finally:
        os.umask(before)


def test_a_socket_that_nobody_serves_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    served = Served(path)
    with served.client() as client:
        assert served.ask(client, "a") == ["a"]
    served.server.close()


def test_a_socket_that_is_served_is_left_alone_and_the_log_says_so(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    second = Served(served.path)
    assert not second.server.is_listening
    assert [record.getMessage() for record in caplog.records] == [
        f"no control socket: {served.path}: a server is listening there"
    ]
    second.server.resume()
    second.server.close()
    with served.client() as client:
        assert served.ask(client, "a") == ["a"]


@pytest.mark.parametrize("name", ["missing/c", "x" * 200, "file"])
def test_where_it_cannot_be_made_the_log_has_one_line(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("mine")
    served = Served(tmp_path / name)
    assert not served.server.is_listening
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert (tmp_path / "file").read_text() == "mine"
    served.server.close()


def test_garbage_gets_an_error_and_the_next_request_its_answer(served: Served) -> None:
    with served.client() as client:
        client.sendall(b"\xff\xfe garbage\n")
        assert served.ask(client, "a") == [INVALID, "a"]


def test_half_a_line_harms_nobody(served: Served) -> None:
    with served.client() as half, served.client() as other:
        half.sendall(b'{"verb": "a"')
        assert served.ask(other, "b") == ["b"]
        half.sendall(b"}\n")
        assert served.answers(half) == ["a"]


def test_ten_megabytes_without_an_end_are_not_kept(served: Served) -> None:
    with served.client() as client, served.client() as other:
        left = 10 << 20
        while left:
            with contextlib.suppress(BlockingIOError):
                left -= client.send(b"x" * min(left, 1 << 16))
            served.turn()
        assert served.ask(other, "b") == ["b"]
        client.sendall(b"\n")
        assert served.ask(client, "a") == [INVALID, "a"]


def test_a_client_that_does_not_read_has_its_requests_left_in_its_own_socket(served: Served) -> None:
    line = Request("long", {"size": 100_000}).to_line()
    with served.client() as client, served.client() as other:
        sent = 0
        while True:
            served.turn()
            try:
                sent += client.send(line)
            except BlockingIOError:
                served.turn()
                break
            assert sent < 64 << 20, "it takes whatever comes"
        assert served.ask(other, "b") == ["b"]
        with contextlib.suppress(BlockingIOError):  # it is served once it reads
            assert client.recv(1 << 16)


def test_one_turn_answers_one_request_of_each_client(served: Served) -> None:
    with served.client() as busy, served.client() as other:
        busy.sendall(Request("a").to_line() * 500)
        other.sendall(Request("b").to_line())
        for key, _ in served.selector.select(0):
            key.data()
        assert other.recv(4096).count(b"\n") == 1
        assert busy.recv(4096).count(b"\n") == 1
        assert served.answers(busy) == ["a"] * 499


def test_an_answer_that_is_too_long_is_an_error(served: Served) -> None:
    with served.client() as client:
        client.sendall(Request("long", {"size": LONGEST_ANSWER}).to_line())
        assert served.answers(client) == [REFUSED]
        client.sendall(Request("long", {"size": LONGEST_ANSWER - 100}).to_line())
        assert [len(each) for each in served.answers(client)] == [LONGEST_ANSWER - 100]


def test_a_fault_of_ours_is_logged_and_the_server_goes_on(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with served.client() as client:
        assert served.ask(client, "fault", "a") == [INTERNAL, "a"]
    assert "a fault" in caplog.text


def test_an_answer_may_come_later_and_only_once(served: Served) -> None:
    with served.client() as client:
        assert served.ask(client, "later", "a") == []
        (answer,) = served.later
        answer("done")
        answer("again")
        assert served.answers(client) == ["done", "a"]
        answer("again")
        assert served.answers(client) == []


def test_an_answer_for_a_client_that_has_left_is_dropped(served: Served) -> None:
    with served.client() as client:
        served.ask(client, "later")
    served.turn()
    served.later[0]("done")
    served.turn()
    with served.client() as other:
        assert served.ask(other, "a") == ["a"]


def test_one_that_sends_no_more_still_gets_its_answers(served: Served) -> None:
    with served.client() as client:
        client.sendall(Request("a").to_line() + Request("b").to_line())
        client.shutdown(socket.SHUT_WR)
        assert served.answers(client) == ["a", "b"]
        assert client.recv(1) == b""


def test_one_client_too_many_takes_the_place_of_the_one_that_was_idle_longest(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.client()) for _ in range(MOST_CLIENTS)]
        served.ask(clients[0], "a")  # so the second one is idle longest, of those that wait for nothing
        served.ask(clients[1], "later")
        newest = stack.enter_context(served.client())
        assert served.ask(newest, "b") == ["b"]
        assert clients[2].recv(1) == b""
        assert served.ask(clients[0], "c") == ["c"]
        served.later[0]("done")
        assert served.answers(clients[1]) == ["done"]


def test_one_is_refused_if_all_others_wait_for_their_answers(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MOST_CLIENTS):
            served.ask(stack.enter_context(served.client()), "later")
        newest = stack.enter_context(served.client())
        assert served.answers(newest) == [REFUSED]
        assert newest.recv(1) == b""


def test_the_clients_stay_when_the_listener_is_closed(served: Served) -> None:
    with served.client() as client:
        served.ask(client, "later")
        served.server.close_listener()
        assert not served.path.exists()
        served.server.listen()
        served.later[0]("done")
        assert served.answers(client) == ["done"]
        with served.client() as other:
            assert served.ask(other, "a") == ["a"]


def test_without_a_descriptor_to_spare_it_accepts_later(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "accept", none_left)
        client = served.client()  # comes to rest, although one waits
    with client:
        client.sendall(Request("a").to_line())
        assert served.answers(client) == []
        served.server.resume()
        assert served.answers(client) == ["a"]


def test_random_bytes_end_nothing(served: Served) -> None:
    with served.client() as client:
        for _ in range(20):
            client.sendall(os.urandom(LONGEST_LINE // 8))
            served.turn()
        client.sendall(b"\n")
        assert served.ask(client, "a")[-1] == "a"
