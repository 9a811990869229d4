"""A real haproxy before a server of ours: the server sees who the client is, and nothing is lost on the way."""

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from iostreamsrv.certificates import CertificateAuthority
from tests.support.programs import PROJECT, Client, Program, ReportingServer, eventually

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy here: apt-get install haproxy")

ALL = os.environ.get("IOSTREAMSRV_FULL") == "1"

TRUSTED: dict[str, Any] = {"proxy_protocol": ["127.0.0.1/32"]}
"""haproxy connects from there, clients from elsewhere."""

CLIENT = "127.0.0.7"

SEND_PROXY = ["send-proxy", "send-proxy-v2"]

CONFIGURATION = """
global
    log stdout format raw local0
    maxconn 100
    nbthread 1

defaults
    mode tcp
    log global
    option log-health-checks
    timeout connect 10s
    timeout client 60s
    timeout server 60s

listen front
    bind fd@{descriptor}
    {rules}
    server ours {host}:{port} {options}
"""


class Haproxy:
    """haproxy in the foreground, on a socket that it inherits, before the server at ``address``.

    :param options: of its ``server`` line.
    :param rules: more lines for the section.
    """

    def __init__(self, address: tuple[str, int], options: str, rules: str = "") -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.log = Path(self._folder.name, "log")
        configuration = Path(self._folder.name, "haproxy.cfg")
        with socket.create_server(("127.0.0.1", 0)) as listener, self.log.open("wb") as log:
            self.address: tuple[str, int] = listener.getsockname()
            host, port = address
            configuration.write_text(
                CONFIGURATION.format(
                    descriptor=listener.fileno(),
                    rules=rules,
                    host=host,
                    port=port,
                    options=options,
                )
            )
            self._process = subprocess.Popen(
                ["haproxy", "-db", "-f", configuration], pass_fds=[listener.fileno()], stdout=log, stderr=log
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def client(self, **options: Any) -> Client:
        """A client of it, who comes from `CLIENT`."""
        return Client(self.address, source=CLIENT, **options)

    def wait_for(self, text: str, times: int = 1) -> None:
        """Return once its log has the text so often."""
        eventually(lambda: self.log.read_text().count(text) >= times, self.log.read_text)


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority()


@pytest.fixture
def files(authority: CertificateAuthority, tmp_path: Path) -> dict[str, str]:
    """A certificate for localhost, as ssl_options."""
    written: dict[str, str] = authority.issue("localhost").write(tmp_path)
    return written


@pytest.fixture
def trusting(authority: CertificateAuthority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.certificate.decode())


@contextlib.contextmanager
def behind(options: str, rules: str = "", **server_options: Any) -> Iterator[tuple[ReportingServer, Haproxy]]:
    """A server of ours and the haproxy before it."""
    with (
        ReportingServer(patience=120, **TRUSTED, **server_options) as server,
        Haproxy(server.addresses[0], options, rules) as haproxy,
    ):
        yield server, haproxy
        code, _, complaints = server.end()
        assert (code, complaints) == (0, "")


def seen(client: Client) -> dict[str, Any]:
    """What the server has of the client."""
    about: dict[str, Any] = literal_eval(client.ask(b"?\n").decode())
    return about


# ---- who the client is


@pytest.mark.parametrize("header", SEND_PROXY)
def test_the_handler_and_the_stream_have_the_address_of_the_real_client(header: str) -> None:
    with behind(header) as (_, haproxy), haproxy.client() as client:
        about = seen(client)
        assert about["address"] == about["remote"] == about["proxy"] == client.socket.getsockname()
        assert client.ask(b"hello\n") == b"hello\n"


@pytest.mark.parametrize("header", SEND_PROXY)
def test_the_handler_has_the_address_of_the_real_client_of_tls_that_is_passed_through(
    header: str, files: dict[str, str], trusting: ssl.SSLContext
) -> None:
    with behind(header, ssl_options=files) as (_, haproxy), haproxy.client(tls=trusting) as client:
        about = seen(client)
        assert about["address"] == about["remote"] == about["proxy"] == client.socket.getsockname()
        assert about["version"] == "TLSv1.3"
        assert client.ask(b"hello\n") == b"hello\n"


def test_the_log_of_the_example_has_the_address_of_the_real_client(
    files: dict[str, str], trusting: ssl.SSLContext
) -> None:
    arguments = ("--port", "0", "--certfile", files["certfile"], "--keyfile", files["keyfile"])
    with (
        Program(
            PROJECT / "examples" / "tls_echo.py", *arguments, "--proxy-from", "127.0.0.1/32"
        ).listening() as example,
        Haproxy(example.addresses[0], "send-proxy-v2") as haproxy,
        haproxy.client(tls=trusting) as client,
    ):
        assert client.ask(b"hello\n") == b"hello\n"
        host, port = client.socket.getsockname()
        assert f"{host}:{port} is here, with TLSv1.3" in example.wait_for("is here")
        assert "127.0.0.1" not in example.said()


# ---- nothing is lost


WAITS_FOR = {
    "plain": "tcp-request content accept if { req.len gt 0 }",
    "tls": "tcp-request content accept if { req.ssl_hello_type 1 }",
}
"""What haproxy has of the client before it connects to the server: header and bytes arrive together then."""


@pytest.mark.parametrize("header", SEND_PROXY)
@pytest.mark.parametrize(("kind", "clients"), [("plain", 1000 if ALL else 200), ("tls", 1000 if ALL else 60)])
def test_nothing_is_lost_of_small_connections_whose_header_and_first_bytes_come_together(
    header: str, kind: str, clients: int, files: dict[str, str], trusting: ssl.SSLContext
) -> None:
    tls = kind == "tls"
    rules = f"tcp-request inspect-delay 10s\n    {WAITS_FOR[kind]}"
    with behind(header, rules, ssl_options=files if tls else None) as (server, haproxy):
        for number in range(clients):
            with haproxy.client(tls=trusting if tls else None) as client:
                client.send(b"?\n%d\n" % number)
                assert literal_eval(client.line().decode())["address"] == client.socket.getsockname()
                assert client.line() == b"%d\n" % number
        server.settled()


# ---- its health checks


@pytest.mark.parametrize("header", SEND_PROXY)
def test_a_health_check_finds_the_server_well_and_leaves_nothing_behind(header: str) -> None:
    with behind(f"{header} check inter 500ms rise 2 fall 1") as (_, haproxy):
        haproxy.wait_for("Health check for server front/ours succeeded")
        with haproxy.client() as client:
            assert client.ask(b"hello\n") == b"hello\n"
        assert "DOWN" not in haproxy.log.read_text()


@pytest.mark.parametrize("header", SEND_PROXY)
def test_a_health_check_over_tls_finds_the_server_well(
    header: str, files: dict[str, str], trusting: ssl.SSLContext, tmp_path: Path, authority: CertificateAuthority
) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    checks = (
        f"check check-ssl check-sni localhost verify required ca-file {tmp_path / 'ca.pem'} inter 500ms rise 2 fall 1"
    )
    with behind(f"{header} {checks}", ssl_options=files) as (_, haproxy):
        haproxy.wait_for("Health check for server front/ours succeeded")
        with haproxy.client(tls=trusting) as client:
            assert client.ask(b"hello\n") == b"hello\n"
        assert "DOWN" not in haproxy.log.read_text()


def test_a_health_check_sees_a_server_that_has_ended() -> None:
    with (
        ReportingServer(**TRUSTED) as server,
        Haproxy(server.addresses[0], "send-proxy-v2 check inter 500ms rise 1 fall 1") as haproxy,
    ):
        haproxy.wait_for("Health check for server front/ours succeeded")
        assert server.end()[0] == 0
        haproxy.wait_for("is DOWN")


# ---- what must not be


def test_a_haproxy_that_sends_no_header_is_refused() -> None:
    with (
        ReportingServer(**TRUSTED) as server,
        Haproxy(server.addresses[0], "") as haproxy,
        haproxy.client() as client,
    ):
        client.send(b"hello\n")
        assert ended(client)
        assert server.settled()["reasons"] == {}
        assert "Traceback" not in server.said()


def test_a_client_that_goes_round_haproxy_is_refused() -> None:
    with ReportingServer(**TRUSTED) as server, server.client(source=CLIENT) as client:
        client.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 2000\r\n?\n")
        assert ended(client)
        assert server.settled()["reasons"] == {}
        assert "Traceback" not in server.said()


def ended(client: Client) -> bool:
    """Wait for the end, which may be a reset."""
    with contextlib.suppress(ConnectionError):
        assert client.line() == b""
    return True
