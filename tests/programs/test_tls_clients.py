"""TLS with the tools people have, openssl, curl and sslscan; and certificates that change under load."""

import asyncio
import contextlib
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time
from ast import literal_eval
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree

import pytest

from iostreamsrv import IOStream, StreamClosedError, TCPClient
from iostreamsrv.certificates import CertificateAuthority
from tests.support.programs import PATIENCE, PROJECT, Program, ReportingServer, eventually
from tests.support.rotation import Files, Load, Rotation, serial_number

with_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here: apt-get install openssl")
with_sslscan = pytest.mark.skipif(shutil.which("sslscan") is None, reason="no sslscan here: apt-get install sslscan")
with_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here: apt-get install curl")

EXAMPLE = PROJECT / "examples" / "tls_echo.py"


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority()


@pytest.fixture
def ca(authority: CertificateAuthority, tmp_path: Path) -> str:
    """The file of the authority's certificate."""
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.certificate)
    return str(path)


@pytest.fixture
def issue(authority: CertificateAuthority, tmp_path: Path) -> Callable[..., Files]:
    """Issues a certificate for names, in a directory of the first one's name."""

    def issue(*names: str, **options: Any) -> Files:
        folder = tmp_path / names[0].replace("*", "any")
        folder.mkdir(exist_ok=True)
        written: Files = authority.issue(*names, **options).write(folder)
        return written

    return issue


@pytest.fixture
def files(issue: Callable[..., Files]) -> Files:
    return issue("localhost", "127.0.0.1")


@pytest.fixture
def server(files: Files) -> Iterator[ReportingServer]:
    with ReportingServer(ssl_options=files) as server:
        yield server


def trusting(authority: CertificateAuthority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.certificate.decode())


# ---- openssl s_client


class SClient:
    """``openssl s_client``, connected to a server, whose certificate it verifies."""

    def __init__(self, address: tuple[str, int], ca: str, *options: str) -> None:
        host, port = address
        self._process = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"{host}:{port}", "-CAfile", ca, "-verify_return_error", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._watchdog = threading.Timer(PATIENCE, self._process.kill)
        self._watchdog.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self.kill()

    def ask(self, line: bytes) -> bytes:
        """Send a line and read one. Only with ``-quiet`` or ``-brief`` are there no other lines."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.write(line)
            self._process.stdin.flush()
        return self._process.stdout.readline()

    def about(self) -> dict[str, Any]:
        """What the server says of it."""
        found: dict[str, Any] = literal_eval(self.ask(b"?\n").decode())
        return found

    def outcome(self) -> tuple[int, str]:
        """End its input, which it answers with a close_notify: its exit code and all it still said."""
        said, complaints = self._process.communicate()
        return self._process.returncode, (said + complaints).decode(errors="replace")

    def kill(self) -> None:
        """End it without any close_notify."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.communicate()


@with_openssl
@pytest.mark.parametrize(("option", "version"), [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
def test_s_client_verifies_the_certificate_and_is_echoed(
    option: str, version: str, server: ReportingServer, ca: str
) -> None:
    with SClient(server.addresses[0], ca, option, "-brief", "-verify_hostname", "localhost") as client:
        assert client.ask(b"hello\n") == b"hello\n"
        assert client.about()["version"] == version
        code, said = client.outcome()
    assert code == 0
    assert f"Protocol version: {version}" in said
    assert "Verification: OK" in said
    assert server.end() == (0, "", "")


@with_openssl
@pytest.mark.parametrize("option", ["-tls1", "-tls1_1"])
def test_s_client_of_an_older_tls_is_refused_without_a_word_in_the_log(
    option: str, server: ReportingServer, ca: str
) -> None:
    with SClient(server.addresses[0], ca, option, "-brief", "-cipher", "ALL:@SECLEVEL=0") as client:
        code, said = client.outcome()
    assert code == 1
    assert "alert" in said
    assert server.settled()["reasons"] == {}
    assert "Traceback" not in server.end()[2]


@with_openssl
def test_s_client_gets_the_certificate_of_the_name_it_asks_for(
    files: Files, issue: Callable[..., Files], ca: str
) -> None:
    sni = {"a.test": issue("a.test"), "*.b.test": issue("*.b.test")}
    wanted = {"a.test": "a.test", "x.b.test": "*.b.test", "b.test": "localhost", "elsewhere.test": "localhost"}
    with ReportingServer(ssl_options={**files, "sni": sni}) as server:
        for asked, name in wanted.items():
            with SClient(server.addresses[0], ca, "-servername", asked, "-verify_hostname", name, "-brief") as client:
                assert client.ask(b"hello\n") == b"hello\n"
                code, said = client.outcome()
            assert code == 0, said
            assert "Verification: OK" in said
        assert server.end() == (0, "", "")


@with_openssl
@pytest.mark.parametrize(("offered", "chosen"), [("echo,other", "echo"), ("lines", "lines")])
def test_s_client_and_server_agree_on_a_protocol(offered: str, chosen: str, files: Files, ca: str) -> None:
    with ReportingServer(ssl_options={**files, "alpn": ["lines", "echo"]}) as server:
        with SClient(server.addresses[0], ca, "-alpn", offered, "-quiet", "-no_ign_eof") as client:
            assert client.about()["alpn"] == chosen
        with SClient(server.addresses[0], ca, "-quiet", "-no_ign_eof") as client:
            assert client.about()["alpn"] is None
        assert server.end()[0] == 0


@with_openssl
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_server_that_requires_a_certificate_knows_who_the_client_is_and_refuses_those_without(
    version: str, files: Files, issue: Callable[..., Files], ca: str
) -> None:
    required = {**files, "ca_certs": ca, "cert_reqs": int(ssl.CERT_REQUIRED)}
    with ReportingServer(ssl_options=required) as server:
        mine = issue("client.test", client=True)
        identity = ("-cert", mine["certfile"], "-key", mine["keyfile"])
        with SClient(server.addresses[0], ca, version, *identity, "-quiet", "-no_ign_eof") as client:
            assert ("DNS", "client.test") in client.about()["peer"]["subjectAltName"]
            assert client.outcome()[0] == 0
        with SClient(server.addresses[0], ca, version, "-quiet") as client:
            assert client.ask(b"hello\n") == b""
            code, said = client.outcome()
            assert code == 1
            assert "alert" in said
        assert server.settled()["reasons"] == {"eof": 1}
        assert "Traceback" not in server.end()[2]


@with_openssl
def test_a_server_to_which_a_certificate_is_optional_serves_those_without_and_refuses_those_of_others(
    files: Files, ca: str, tmp_path: Path
) -> None:
    optional = {**files, "ca_certs": ca, "cert_reqs": int(ssl.CERT_OPTIONAL)}
    (tmp_path / "stranger").mkdir()
    stranger = CertificateAuthority().issue("client.test", client=True).write(tmp_path / "stranger")
    with ReportingServer(ssl_options=optional) as server:
        with SClient(server.addresses[0], ca, "-quiet", "-no_ign_eof") as client:
            assert not client.about()["peer"]
        identity = ("-cert", stranger["certfile"], "-key", stranger["keyfile"])
        with SClient(server.addresses[0], ca, *identity, "-quiet") as client:
            assert client.ask(b"hello\n") == b""
            assert "unknown ca" in client.outcome()[1]
        assert "Traceback" not in server.end()[2]


@with_openssl
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_resumes_its_session(version: str, server: ReportingServer, ca: str, tmp_path: Path) -> None:
    session = str(tmp_path / "session.pem")
    with SClient(server.addresses[0], ca, version, "-quiet", "-no_ign_eof", "-sess_out", session) as client:
        assert client.ask(b"hello\n") == b"hello\n"
        assert client.outcome()[0] == 0
    with SClient(server.addresses[0], ca, version, "-sess_in", session) as client:
        code, said = client.outcome()
    assert code == 0
    assert "Reused, TLSv1." in said
    assert "Compression: NONE" in said
    assert server.end() == (0, "", "")


@with_openssl
def test_s_client_that_wants_to_renegotiate_is_refused(server: ReportingServer, ca: str) -> None:
    with SClient(server.addresses[0], ca, "-tls1_2") as client:
        client.ask(b"R\n")
        code, said = client.outcome()
    assert code == 1
    assert "RENEGOTIATING" in said
    assert "no renegotiation" in said
    server.settled()
    assert "Traceback" not in server.end()[2]


STARTTLS = """
import sys

import iostreamsrv


class Mail(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        await stream.write(b"220 mail.test\\r\\n")
        while (line := await stream.read_until(b"\\r\\n")) != b"STARTTLS\\r\\n":
            await stream.write(b"250-mail.test\\r\\n250 STARTTLS\\r\\n" if line.startswith(b"EHLO") else b"500\\r\\n")
        await stream.write(b"220 go on\\r\\n")
        stream = await stream.start_tls(True, {"certfile": sys.argv[1], "keyfile": sys.argv[2]})
        while True:
            await stream.write(await stream.read_until(b"\\n"))


server = Mail()
server.listen(0, "127.0.0.1")
print("listening on %s:%d" % server.addresses[0])
iostreamsrv.run(server)
"""


@with_openssl
def test_s_client_goes_over_to_tls_in_the_middle(files: Files, ca: str) -> None:
    with Program("-c", STARTTLS, files["certfile"], files["keyfile"]).listening() as server:
        with SClient(server.addresses[0], ca, "-starttls", "smtp", "-quiet", "-no_ign_eof") as client:
            assert client.ask(b"hello\n") == b"hello\n"
            assert client.outcome()[0] == 0
        assert server.end() == (0, "", "")


# ---- ends, told apart


@with_openssl
def test_a_client_that_closes_and_one_that_is_cut_off_are_told_apart(server: ReportingServer, ca: str) -> None:
    for times in range(1, 4):
        for reason, end in (("eof", SClient.outcome), ("truncated", SClient.kill)):
            with SClient(server.addresses[0], ca, "-quiet", "-no_ign_eof") as client:
                assert client.ask(b"hello\n") == b"hello\n"
                end(client)
                assert server.settled()["reasons"][reason] == times
    assert server.end() == (0, "", "")


ONE_LINE = """
import sys

import iostreamsrv


class OneLine(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        await stream.write(await stream.read_until(b"\\n"))
        if sys.argv[3] == "close":
            stream.close()


server = OneLine(ssl_options={"certfile": sys.argv[1], "keyfile": sys.argv[2]})
server.listen(0, "127.0.0.1")
print("listening on %s:%d" % server.addresses[0])
iostreamsrv.run(server)
"""


@with_openssl
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("way", ["return", "close"])
def test_s_client_sees_a_clean_end_of_ours(way: str, version: str, files: Files, ca: str) -> None:
    with Program("-c", ONE_LINE, files["certfile"], files["keyfile"], way).listening() as server:
        with SClient(server.addresses[0], ca, version, "-quiet", "-msg") as client:
            assert client.ask(b"hello\n")
            code, said = client.outcome()
        assert code == 0
        assert "hello\n" in said
        received = [line for line in said.splitlines() if line.startswith("<<<")]
        assert "warning close_notify" in said.partition(received[-1])[2] or "close_notify" in received[-1], said
        assert "unexpected eof" not in said
        assert server.end() == (0, "", "")


# ---- curl


HTTP = """
import sys

import iostreamsrv


class Http(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        await stream.read_until(b"\\r\\n\\r\\n")
        await stream.write(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n" + bytes(10_000_000))


server = Http(ssl_options={"certfile": sys.argv[1], "keyfile": sys.argv[2]})
server.listen(0, "127.0.0.1")
print("listening on %s:%d" % server.addresses[0])
iostreamsrv.run(server)
"""


@with_curl
def test_curl_gets_an_answer_that_only_the_end_delimits(files: Files, ca: str, tmp_path: Path) -> None:
    with Program("-c", HTTP, files["certfile"], files["keyfile"]).listening() as server:
        url = f"https://localhost:{server.addresses[0][1]}/"
        command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--cacert", ca, "--ipv4", url]
        ended = subprocess.run(command, capture_output=True, timeout=PATIENCE)
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert ended.stdout == bytes(10_000_000)
        assert server.end() == (0, "", "")


# ---- sslscan


@with_sslscan
def test_sslscan_finds_nothing_old_and_nothing_weak(server: ReportingServer, tmp_path: Path) -> None:
    host, port = server.addresses[0]
    result = tmp_path / "scan.xml"
    command = ["sslscan", f"--xml={result}", "--no-colour", "--sni-name=localhost", f"{host}:{port}"]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    scan = ElementTree.parse(result).getroot()
    versions = {f"{found.get('type')} {found.get('version')}": found.get("enabled") for found in scan.iter("protocol")}
    assert {version for version, enabled in versions.items() if enabled == "1"} == {"tls 1.2", "tls 1.3"}, versions
    ciphers = {found.get("cipher", ""): found for found in scan.iter("cipher")}
    assert {found.get("sslversion") for found in ciphers.values()} == {"TLSv1.2", "TLSv1.3"}
    for name, found in ciphers.items():
        assert found.get("sslversion") == "TLSv1.3" or name.startswith("ECDHE-"), name
        assert re.search("GCM|CHACHA20", name), name
    assert {found.get("supported") for found in scan.iter("compression")} <= {"0"}  # not tried without zlib
    assert [found.get("supported") for found in scan.iter("renegotiation")] == ["0"]
    assert {found.get("vulnerable") for found in scan.iter("heartbleed")} <= {"0"}
    server.settled()
    assert "Traceback" not in server.end()[2]


# ---- our client, and openssl s_server


@pytest.fixture
def s_server(files: Files) -> Callable[..., contextlib.AbstractAsyncContextManager[Any]]:
    """Starts ``openssl s_server``, which sends back every line reversed: its port and its process."""

    @contextlib.asynccontextmanager
    async def start(*options: str) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
        certificate = ("-cert", files["certfile"], "-key", files["keyfile"])
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_server", "-accept", "127.0.0.1:0", "-rev", *certificate, *options),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                if line.startswith(b"ACCEPT"):
                    yield int(line.rpartition(b":")[2]), process
                    break
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    return start


def verifying(ca: str, **more: Any) -> dict[str, Any]:
    return {"ca_certs": ca, **more}


async def connected(port: int, options: Any, name: str = "localhost") -> IOStream:
    return await TCPClient().connect(name, port, ssl_options=options, timeout=PATIENCE)


@with_openssl
@pytest.mark.gen_test
@pytest.mark.parametrize(("option", "version"), [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
async def test_our_client_speaks_with_s_server(s_server: Any, ca: str, option: str, version: str) -> None:
    async with s_server(option) as (port, _):
        stream: Any = await connected(port, verifying(ca))
        assert stream.socket.version() == version
        assert ("DNS", "localhost") in stream.peer_certificate["subjectAltName"]
        await stream.write(b"hello\n")
        assert await stream.read_until(b"\n") == b"olleh\n"
        await stream.aclose()


@with_openssl
@pytest.mark.gen_test
async def test_our_client_and_s_server_agree_on_a_protocol(s_server: Any, ca: str) -> None:
    async with s_server("-alpn", "lines") as (port, _):
        stream: Any = await connected(port, verifying(ca, alpn=["echo", "lines"]))
        assert stream.alpn == "lines"
        await stream.aclose()


@with_openssl
@pytest.mark.gen_test
async def test_our_client_asks_s_server_for_the_name_it_connects_to(
    s_server: Any, ca: str, issue: Callable[..., Files]
) -> None:
    other = issue("other.test", "elsewhere.test")
    sni = ("-servername", "localhost", "-cert2", other["certfile"], "-key2", other["keyfile"])
    async with s_server(*sni) as (port, _):
        with pytest.raises(ssl.SSLCertVerificationError, match="localhost"):  # who asks for that gets the other one
            await connected(port, verifying(ca))


@with_openssl
@pytest.mark.gen_test
@pytest.mark.parametrize("option", ["-tls1_2", "-tls1_3"])
async def test_our_client_refuses_a_server_it_cannot_trust(s_server: Any, option: str) -> None:
    async with s_server(option) as (port, _):
        with pytest.raises(ssl.SSLCertVerificationError):
            await connected(port, {})
        stream = await connected(port, {"cert_reqs": ssl.CERT_NONE})
        await stream.write(b"hello\n")
        assert await stream.read_until(b"\n") == b"olleh\n"
        stream.close()


@with_openssl
@pytest.mark.gen_test
async def test_our_client_shows_its_certificate_to_s_server(
    s_server: Any, ca: str, issue: Callable[..., Files]
) -> None:
    async with s_server("-Verify", "1", "-verify_return_error", "-CAfile", ca) as (port, _):
        stream = await connected(port, verifying(ca, **issue("client.test", client=True)))
        await stream.write(b"hello\n")
        assert await stream.read_until(b"\n") == b"olleh\n"
        await stream.aclose()
        with pytest.raises((StreamClosedError, ssl.SSLError)):  # TLS 1.3 refuses a client after its handshake
            stream = await connected(port, verifying(ca))
            await stream.write(b"hello\n")
            await stream.read_until(b"\n")


@with_openssl
@pytest.mark.gen_test
@pytest.mark.parametrize("option", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("reason", ["eof", "truncated"])
async def test_our_client_tells_a_close_of_s_server_from_its_death(
    s_server: Any, ca: str, reason: str, option: str
) -> None:
    async with s_server(option) as (port, process):
        stream = await connected(port, verifying(ca))
        await stream.write(b"hello\n")
        assert await stream.read_until(b"\n") == b"olleh\n"
        if reason == "eof":
            await stream.write(b"CLOSE\n")  # -rev ends the connection then
        else:
            process.kill()
        with pytest.raises(StreamClosedError) as caught:
            await stream.read_until(b"\n")
        assert caught.value.reason == reason
        assert stream.close_reason == reason


# ---- the example


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 70


@with_openssl
def test_the_example_makes_a_certificate_says_so_and_serves_s_client() -> None:
    with Program(EXAMPLE, "--port", "0").listening() as example:
        (made,) = re.findall(r"^INFO made a certificate for localhost: (.*)$", example.said(), re.MULTILINE)
        with SClient(example.addresses[0], made, "-verify_hostname", "localhost", "-quiet", "-no_ign_eof") as client:
            assert client.ask(b"hello\n") == b"hello\n"
            assert client.outcome()[0] == 0
        assert re.search(r"^INFO 127\.0\.0\.1:\d+ is here, with TLSv1\.3$", example.said(), re.MULTILINE)
        example.wait_for("is gone: eof")
        assert example.end()[:2] == (0, "")
        assert not Path(made).exists()


def test_the_example_says_in_one_line_what_is_wrong_with_a_certificate(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    with Program(EXAMPLE, "--port", "0", "--certfile", missing) as example:
        code, said, complaint = example.outcome()
    assert (code, said) == (1, "")
    assert complaint.count("\n") == 1
    assert complaint.startswith("tls_echo: ")
    assert str(missing) in complaint


SHUTTING_DOWN = "INFO shutting down: 0 clients may finish, up to 15 s; again to end at once\n"


def test_a_signal_ends_the_example_with_exit_code_0_and_no_complaint(files: Files) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        with Program(EXAMPLE, "--port", "0", *arguments(files)).listening() as example:
            assert example.end(number) == (0, "", SHUTTING_DOWN)


def arguments(files: Files) -> tuple[str, ...]:
    return "--certfile", files["certfile"], "--keyfile", files["keyfile"]


# ---- certificates that change


ROTATIONS = 20

SOON = 1.0
"""Seconds after a reload within which a new client must get the new certificate."""


def complaints(said: str) -> list[str]:
    return [line for line in said.splitlines() if not line.startswith("INFO")]


def test_certificates_change_under_load_and_no_handshake_fails(files: Files, authority: CertificateAuthority) -> None:
    context = trusting(authority)
    rotation = Rotation(files, authority)
    steps = [rotation.good, rotation.half_written, rotation.mismatched, rotation.unreadable] * (ROTATIONS // 4)
    with (
        Program(EXAMPLE, "--port", "0", *arguments(files), patience=120).listening() as example,
        example.client(tls=context) as old_client,
        Load(example.addresses[0], context) as load,
    ):
        number = serial_number(example, context)
        bad = 0
        for step in steps:
            served = load.served
            step()
            example.send_signal(signal.SIGHUP)
            if step == rotation.good:
                number = changed(example, context, number)
            else:
                bad += 1
                eventually(lambda: len(complaints(example.said())) >= bad, example.said)  # noqa: B023
                assert serial_number(example, context) == number
            eventually(lambda: load.served > served + 1, lambda: load.failures)  # noqa: B023
        assert old_client.ask(b"still here\n") == b"still here\n"
        load.__exit__()
        assert not load.failures
        assert load.served > ROTATIONS
        code, _, said = example.end()
    assert code == 0
    assert len(complaints(said)) == bad, complaints(said)
    assert all(line.startswith("ERROR") for line in complaints(said))


def changed(example: Program, context: ssl.SSLContext, number: str) -> str:
    """The certificate that comes after the one with this number, once it is seen."""
    late = time.monotonic() + SOON
    while (found := serial_number(example, context)) == number:
        assert time.monotonic() < late
    return found


def test_a_reload_leaves_no_descriptor_behind(files: Files, authority: CertificateAuthority) -> None:
    rotation = Rotation(files, authority)
    context = trusting(authority)
    with ReportingServer(ssl_options=files) as server:
        for step in [rotation.good, rotation.mismatched] * 5:
            step()
            server.send_signal(signal.SIGHUP)
            with server.client(tls=context) as client:
                assert client.ask(b"hello\n") == b"hello\n"
        assert server.settled()["reasons"]["truncated"] == 10
        assert server.end()[0] == 0
