"""Clients that are slow, broken or hostile at the TLS handshake and at the PROXY header harm nobody but themselves.

The server runs in a process of its own. Each fault has a small form here; ``IOSTREAMSRV_FULL=1`` makes it the full one.
"""

import contextlib
import os
import random
import resource
import socket
import ssl
import time
from ast import literal_eval
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iostreamsrv.certificates import CertificateAuthority
from tests.support.hostile import (
    HTTP,
    Crowd,
    HandMadeClient,
    everything,
    header,
    mutated,
    no_hellos,
    reset_somewhere,
    say_only,
)
from tests.support.programs import PATIENCE, ReportingServer, eventually
from tests.support.rotation import Files
from tests.support.tiers import EVERY_CASE, crossed

ALL = os.environ.get("IOSTREAMSRV_FULL") == "1"

SOME = 500 if EVERY_CASE else 100
"""Mutations of what is sent, in the small form."""

LONG = 300.0
"""Seconds after which the server of a test's full form is killed."""


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority()


@pytest.fixture(scope="module")
def files(authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> Files:
    written: Files = authority.issue("localhost").write(tmp_path_factory.mktemp("certificate"))
    return written


@pytest.fixture(scope="module")
def trusting(authority: CertificateAuthority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.certificate.decode())


@pytest.fixture(scope="module", autouse=True)
def enough_descriptors() -> Iterator[None]:
    """For a thousand clients here, and in the server as many, which inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def serving(files: Files | None, lines: int = 50, **options: Any) -> Iterator[ReportingServer]:
    """A server that holds nothing in the end, has logged no traceback, and at most so many lines.

    :param files: for TLS; None for a plain one.
    """
    with ReportingServer(patience=LONG, ssl_options=files, **options) as server:
        yield server
        server.settled()
        code, _, said = server.end()
    assert code == 0
    assert "Traceback" not in said
    assert said.count("\n") <= lines, said


def still_serves(server: ReportingServer, trusting: ssl.SSLContext) -> None:
    with server.client(tls=trusting) as client:
        assert client.ask(b"hello\n") == b"hello\n"


# ---- clients that are silent, or as good as silent


TIMEOUT = 1.0
"""Seconds that handshake and header may take here."""

GRACE = 1.0
"""Seconds after it by which those who have not made it must be closed."""

EARLY = 0.1
"""Seconds that a deadline may come early: the server looks at a clock that is coarse."""


def check_deadline(lasted: list[float]) -> None:
    assert max(lasted) <= TIMEOUT + GRACE
    assert min(lasted) >= TIMEOUT - EARLY


def test_silent_clients_are_closed_when_the_handshake_is_due(files: Files, trusting: ssl.SSLContext) -> None:
    size = 1000 if ALL else 50
    with serving(files, handshake_timeout=TIMEOUT) as server:
        still_serves(server, trusting)
        before = server.report()["resident"]
        with Crowd(server.addresses[0], size) as crowd:
            eventually(lambda: server.report()["descriptors"] >= server.at_first["descriptors"] + size, server.report)
            taken = server.report()["resident"] - before
            still_serves(server, trusting)
            check_deadline(crowd.ends())
        assert taken <= size * 60_000 + MARGIN
        assert server.settled()["reasons"] == {"truncated": 2}


MARGIN = 1 << 20
"""Resident bytes that a process may gain by the way, with few clients."""


def test_clients_that_drip_their_hello_are_closed_when_the_handshake_is_due(
    files: Files, trusting: ssl.SSLContext
) -> None:
    hello = HandMadeClient(trusting).hello()
    with serving(files, handshake_timeout=TIMEOUT) as server, Crowd(server.addresses[0], 200 if ALL else 10) as crowd:
        check_deadline(crowd.ends(drip=hello, every=0.05))
        assert server.settled()["reasons"] == {}


def test_clients_that_say_nothing_after_their_hello_are_closed_when_the_handshake_is_due(
    files: Files, trusting: ssl.SSLContext
) -> None:
    with serving(files, handshake_timeout=TIMEOUT) as server, Crowd(server.addresses[0], 200 if ALL else 10) as crowd:
        crowd.send(HandMadeClient(trusting).hello())
        check_deadline(crowd.ends())
        assert server.settled()["reasons"] == {}


def test_a_client_that_is_slow_and_in_time_is_served(files: Files, trusting: ssl.SSLContext) -> None:
    with (
        serving(files, handshake_timeout=TIMEOUT) as server,
        socket.create_connection(server.addresses[0], PATIENCE) as sock,
    ):
        client = HandMadeClient(trusting)
        hello = client.hello()
        sock.sendall(hello[:100])
        time.sleep(TIMEOUT / 2)
        sock.sendall(hello[100:])
        client.finish(sock, b"first\n", sock.sendall)
        assert client.line(sock) == b"first\n"
        time.sleep(TIMEOUT)  # the deadline was the handshake's, not the connection's
        client.finish(sock, b"second\n", sock.sendall)
        assert client.line(sock) == b"second\n"


# ---- resets


def test_resets_at_random_points_leave_nothing_behind(files: Files, trusting: ssl.SSLContext) -> None:
    chance = random.Random(1)
    clients = 2000 if ALL else 100 if EVERY_CASE else 50
    with serving(files) as server:
        for _ in range(clients):
            reset_somewhere(server.addresses[0], trusting, chance)
        over = time.monotonic()
        server.settled()
        assert time.monotonic() - over <= 3
        still_serves(server, trusting)


# ---- what is no handshake


def test_what_is_no_hello_is_refused_with_few_words(files: Files, trusting: ssl.SSLContext) -> None:
    with serving(files) as server:
        for data in no_hellos(trusting, 10_000 if ALL else SOME, random.Random(2)):
            say_only(server.addresses[0], data)
        assert server.settled()["reasons"] == {}
        still_serves(server, trusting)


PLAIN_TEXT = {
    "http": HTTP,
    "lines": b"hello\n" * 20,
    "zeros": bytes(100),
    "a record that is too long": b"\x16\x03\x01\xff\xff" + bytes(100),
}


def test_plain_text_before_the_handshake_is_refused_at_once_and_never_handled(
    files: Files, trusting: ssl.SSLContext
) -> None:
    with serving(files, lines=len(PLAIN_TEXT)) as server:
        for number, (name, said) in enumerate(PLAIN_TEXT.items(), 1):
            with socket.create_connection(server.addresses[0], PATIENCE) as sock:
                sock.sendall(said + HandMadeClient(trusting).hello())
                began = time.monotonic()
                assert b"hello" not in everything(sock), name
                assert time.monotonic() - began < 5, name  # handshake_timeout is 10
            assert server.settled()["reasons"] == {}, name
            assert server.said().count("\n") <= number, name


def test_plain_text_in_the_middle_of_the_handshake_is_refused_and_never_handled(
    files: Files, trusting: ssl.SSLContext
) -> None:
    with serving(files, lines=1) as server, socket.create_connection(server.addresses[0], PATIENCE) as sock:
        client = HandMadeClient(trusting)
        sock.sendall(client.hello() + b"hello\n" * 20)
        everything(sock)
        assert server.settled()["reasons"] == {}


def test_plain_text_after_the_handshake_ends_the_stream_that_was_good_until_then(
    files: Files, trusting: ssl.SSLContext
) -> None:
    with serving(files, lines=1) as server, socket.create_connection(server.addresses[0], PATIENCE) as sock:
        client = HandMadeClient(trusting)
        sock.sendall(client.hello())
        client.finish(sock, b"first\n", sock.sendall)
        assert client.line(sock) == b"first\n"
        sock.sendall(b"second\n" * 20)
        everything(sock)
        assert server.settled()["reasons"] == {"tls_error": 1}, server.said()


# ---- ends


def test_an_end_without_close_notify_is_told_from_one_with_it(files: Files, trusting: ssl.SSLContext) -> None:
    chance = random.Random(3)
    reasons = ["eof", "truncated"] * (100 if EVERY_CASE else 20)
    chance.shuffle(reasons)
    with serving(files, lines=0) as server:
        for number, reason in enumerate(reasons, 1):
            with server.client(tls=trusting) as client:
                assert client.ask(b"hello\n") == b"hello\n"
                if reason == "eof":
                    assert isinstance(client.socket, ssl.SSLSocket)
                    client.socket.unwrap()
                else:
                    socket.socket.shutdown(client.socket, socket.SHUT_WR)  # a bare FIN; TLS goes on receiving
                    assert client.line() == b""  # the server's own close_notify comes all the same
            if number % 20 == 0:
                server.settled()
                assert server.report()["reasons"] == {each: reasons[:number].count(each) for each in set(reasons)}


# ---- the PROXY header


TRUSTED, STRANGER = "127.0.0.2", "127.0.0.3"
PROXIES: dict[str, Any] = {"proxy_protocol": [f"{TRUSTED}/32"]}

SOURCES = [("192.0.2.1", 1000), ("2001:db8::1", 65535)]


def by_the_byte(sock: socket.socket) -> Callable[[bytes], None]:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(data: bytes) -> None:
        for position in range(len(data)):
            sock.sendall(data[position : position + 1])

    return send


def whole(sock: socket.socket) -> Callable[[bytes], None]:
    return sock.sendall


class Plain:
    """What a `HandMadeClient` is, without TLS."""

    def hello(self) -> bytes:
        return b""

    def finish(self, _sock: socket.socket, first: bytes, send: Callable[[bytes], object]) -> None:
        send(first)

    def line(self, sock: socket.socket) -> bytes:
        with sock.makefile("rb") as lines:
            return lines.readline()


@pytest.mark.parametrize(("kind", "pieces"), crossed(["plain", "tls"], [whole, by_the_byte]))
def test_a_header_and_what_follows_it_may_come_together_or_byte_by_byte(
    kind: str, pieces: Callable[[socket.socket], Callable[[bytes], None]], files: Files, trusting: ssl.SSLContext
) -> None:
    with serving(files if kind == "tls" else None, lines=0, **PROXIES) as server:
        for number in range(1000 if ALL else 50 if EVERY_CASE else 20):
            host, port = SOURCES[number % 2]
            client = HandMadeClient(trusting) if kind == "tls" else Plain()
            first = b"?\n"
            with socket.create_connection(server.addresses[0], PATIENCE, (TRUSTED, 0)) as sock:
                send = pieces(sock)
                begin = header(1 + number // 2 % 2, host, port) + client.hello()
                if kind == "tls":
                    send(begin)
                    client.finish(sock, first, send)
                else:
                    send(begin + first)
                about = literal_eval(client.line(sock).decode())
                assert about["address"][:2] == about["remote"][:2] == about["proxy"][:2] == (host, port)


@pytest.mark.parametrize(("version", "kind"), crossed([1, 2], ["plain", "tls"]))
def test_a_header_of_somebody_who_is_not_trusted_is_refused(
    version: int, kind: str, files: Files, trusting: ssl.SSLContext
) -> None:
    with serving(files if kind == "tls" else None, **PROXIES) as server:
        for _ in range(20):
            with socket.create_connection(server.addresses[0], PATIENCE, (STRANGER, 0)) as sock:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(header(version, "192.0.2.1", 1000) + b"?\n")
                assert b"192.0.2.1" not in everything(sock)
        assert server.settled()["reasons"] == {}


WRONG = {
    "none": b"hello\n",
    "http": HTTP,
    "a port is missing": b"PROXY TCP4 192.0.2.1 192.0.2.2 1000\r\n?\n",
    "no address": b"PROXY TCP4 192.0.2.256 192.0.2.2 1000 443\r\n?\n",
    "no end": b"PROXY " * 100,
    "another family": header(2, *SOURCES[0])[:13] + b"\x31" + header(2, *SOURCES[0])[14:] + b"?\n",
    "too long": header(2, *SOURCES[0])[:14] + b"\xff\xff" + bytes(100),
}


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_a_wrong_header_or_none_is_refused_at_once_and_never_handled(kind: str, files: Files) -> None:
    with serving(files if kind == "tls" else None, lines=len(WRONG), **PROXIES) as server:
        for number, (name, said) in enumerate(WRONG.items(), 1):
            with socket.create_connection(server.addresses[0], PATIENCE, (TRUSTED, 0)) as sock:
                began = time.monotonic()
                sock.sendall(said)
                assert b"192.0.2.1" not in everything(sock), name
                assert time.monotonic() - began < 3, name  # proxy_header_timeout is 5
            assert server.settled()["reasons"] == {}, name
            assert server.said().count("\n") <= number, name


def test_mutated_headers_are_refused_with_few_words_or_taken_for_what_they_say(files: Files) -> None:
    chance = random.Random(4)
    with serving(files, **PROXIES) as server:
        for number in range(10_000 if ALL else SOME):
            data = mutated(header(1 + number % 2, *SOURCES[number // 2 % 2]) + bytes(30), chance)
            say_only(server.addresses[0], data, TRUSTED)
        assert server.settled()["reasons"] == {}


@pytest.mark.parametrize(
    ("kind", "drip"),
    [("plain", b""), ("tls", b""), ("plain", header(1, *SOURCES[1])), ("tls", header(2, *SOURCES[1]))],
    ids=["plain, silent", "tls, silent", "plain, v1", "tls, v2"],
)
def test_peers_without_a_header_are_closed_when_it_is_due(kind: str, drip: bytes, files: Files) -> None:
    size = 1000 if ALL and not drip else 20
    with (
        serving(files if kind == "tls" else None, proxy_header_timeout=TIMEOUT, **PROXIES) as server,
        Crowd(server.addresses[0], size, TRUSTED) as crowd,
    ):
        check_deadline(crowd.ends(drip, every=0.1))
        assert server.settled()["reasons"] == {}


def test_the_handshake_has_its_deadline_after_the_header(files: Files) -> None:
    with (
        serving(files, handshake_timeout=TIMEOUT, **PROXIES) as server,
        Crowd(server.addresses[0], 20, TRUSTED) as crowd,
    ):
        crowd.send(header(2, *SOURCES[0]))
        check_deadline(crowd.ends())
        assert server.settled()["reasons"] == {}
