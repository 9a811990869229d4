"""The access log: what a line has, and that no peer can forge one."""

import asyncio
import json
import math
import signal
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import IOStream, TCPServer
from iostreamsrv.certificates import CertificateAuthority
from iostreamsrv.errors import OptionError
from iostreamsrv.observe import AccessLog
from tests.support.listening import linux_only
from tests.support.programs import NotListening, Served
from tests.support.servers import Serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.gen_test


class Polite(TCPServer):
    """Answers one line."""

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        name = await stream.read_until(b"\n", max_bytes=100)
        stream.data["log"] = {"user": name.decode(errors="replace").strip()}
        for room in b"z", b"a":
            self.group(room.decode()).join(stream)
        await stream.write(b"hello " + name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def logging_to(path: Path) -> Iterator[Callable[..., AccessLog]]:
    logs: list[AccessLog] = []

    def make(server: TCPServer, *arguments: Any) -> AccessLog:
        logs.append(AccessLog(path, *arguments))
        logs[-1].attach(server)
        return logs[-1]

    yield make
    for each in logs:
        each.close()


async def lines_of(path: Path, count: int) -> list[str]:
    """The lines, once there are so many."""
    await eventually(lambda: path.read_text().count("\n") >= count)
    lines = path.read_text().splitlines()
    assert len(lines) == count
    return lines


# ---- what a line has


async def test_a_connection_is_a_json_object_at_its_end(
    serving: Serving, path: Path, logging_to: Callable[..., AccessLog]
) -> None:
    server = serving.started(Polite())
    logging_to(server, "json", 3)
    peer = serving.connect(server)
    await asyncio.sleep(0.02)
    assert path.read_text() == "", "it has not ended"
    await peer.send_all(b"Ada\n")
    (line,) = await lines_of(path, 1)
    record = json.loads(line)
    assert record.pop("time").endswith("+00:00")
    assert isinstance(record.pop("id"), int)
    assert 0.02 <= record.pop("seconds") < 15
    assert record.pop("local") == "{}:{}".format(*peer.socket.getpeername())
    assert record.pop("peer") == "{}:{}".format(*peer.socket.getsockname())
    assert record == {
        "worker": 3,
        "proxied_to": None,
        **dict.fromkeys(("tls", "cipher", "alpn", "subject")),
        "received": 4,
        "sent": 10,
        "reason": "local",
        "error": None,
        "groups": ["a", "z"],
        "log": {"user": "Ada"},
    }


async def test_text_has_the_fields_that_are_not_empty(
    serving: Serving, path: Path, logging_to: Callable[..., AccessLog]
) -> None:
    server = serving.started(Polite())
    logging_to(server)
    peer = serving.connect(server)
    await peer.send_all(b"Ada\n")
    (line,) = await lines_of(path, 1)
    time, *fields = line.split(" ")
    assert time[10] == "T"
    names = [each.partition("=")[0] for each in fields]
    assert names == ["id", "peer", "local", "received", "sent", "seconds", "reason", "groups", "log.user"]
    assert fields[-3:] == ["reason=local", "groups=a,z", "log.user=Ada"]


@pytest.mark.parametrize("format", ["text", "json"])
async def test_no_peer_can_forge_a_line_or_send_a_code_to_a_terminal(
    serving: Serving, path: Path, logging_to: Callable[..., AccessLog], format: str
) -> None:
    server = serving.started(Polite())
    logging_to(server, format)
    peer = serving.connect(server)
    await peer.send_all(b'x" reason=eof\r2026 id=7 \x1b[31m\xe2\x80\xa8\xff\n')
    (line,) = await lines_of(path, 1)
    assert line.isprintable()
    if format == "text":
        assert line.count(" reason=") == 2
        assert line.endswith(r'log.user="x\" reason=eof\r2026 id=7 \u001b[31m\u2028\ufffd"')
    else:
        assert json.loads(line)["log"]["user"] == 'x" reason=eof\r2026 id=7 \x1b[31m\u2028\ufffd'


async def test_what_a_handler_logs_may_be_no_json(
    serving: Serving, path: Path, logging_to: Callable[..., AccessLog]
) -> None:
    server = TCPServer()

    async def handle(stream: IOStream, address: Any) -> None:
        stream.data["log"] = {"set": {1}, 2: b"x", ("a",): 1}

    server.handle_stream = handle  # type: ignore[method-assign]
    serving.started(server)
    logging_to(server, "json")
    serving.connect(server)
    (line,) = await lines_of(path, 1)
    assert json.loads(line)["log"] == {"set": "{1}", "2": "b'x'"}


@pytest.mark.parametrize("format", ["text", "json"])
async def test_what_a_handler_logs_never_costs_the_line(
    serving: Serving, path: Path, logging_to: Callable[..., AccessLog], format: str
) -> None:
    class Mute:
        def __str__(self) -> str:
            raise TypeError("no text")

    circle: dict[str, Any] = {}
    circle["self"] = circle
    nested: Any = 1
    for _ in range(100_000):
        nested = [nested]
    bad = [Mute(), math.nan, circle, nested]
    server = TCPServer()

    async def handle(stream: IOStream, address: Any) -> None:
        stream.data["log"] = {"x": bad.pop()}

    server.handle_stream = handle  # type: ignore[method-assign]
    serving.started(server)
    logging_to(server, format)
    for number in range(1, 5):
        serving.connect(server)
        line = (await lines_of(path, number))[-1]
        assert "reason" in line
        if format == "json":
            record = json.loads(line, parse_constant=pytest.fail)
            assert list(record["log"]) == ["error"]
    assert "TypeError: no text" in line


async def test_a_client_with_a_certificate_is_named(
    serving: Serving, path: Path, logging_to: Callable[..., AccessLog], tmp_path: Path
) -> None:
    authority = CertificateAuthority()
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.certificate)
    options = {
        **authority.issue("localhost").write(tmp_path),
        "ca_certs": str(ca),
        "cert_reqs": ssl.CERT_REQUIRED,
        "alpn": ["chat"],
    }
    server = serving.started(Polite(ssl_options=options))
    logging_to(server, "json")
    port = server.addresses[0][1]
    client = authority.issue("device-7", client=True).write(tmp_path / "client")
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(client["certfile"], client["keyfile"])
    context.set_alpn_protocols(["chat"])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    writer.write(b"Ada\n")
    await reader.read()
    writer.close()
    record = json.loads((await lines_of(path, 1))[0])
    assert (record["tls"], record["alpn"]) == ("TLSv1.3", "chat")
    assert record["cipher"].startswith("TLS_")
    assert "CN=device-7" in record["subject"]


async def test_a_failed_handshake_has_a_line(
    serving: Serving, path: Path, logging_to: Callable[..., AccessLog], tmp_path: Path
) -> None:
    authority = CertificateAuthority()
    server = serving.started(Polite(ssl_options=authority.issue("localhost").write(tmp_path)))
    logging_to(server, "json")
    peer = serving.connect(server)
    await peer.send_all(b"GET / HTTP/1.1\r\n\r\n")
    record = json.loads((await lines_of(path, 1))[0])
    assert record["reason"] == "tls_error"
    assert record["error"]
    assert record["tls"] is None


async def test_a_client_behind_a_proxy_is_the_one_that_it_names(
    serving: Serving, path: Path, logging_to: Callable[..., AccessLog]
) -> None:
    server = serving.started(Polite(proxy_protocol=["127.0.0.1"]))
    logging_to(server, "json")
    peer = serving.connect(server)
    await peer.send_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 5000 443\r\nAda\n")
    record = json.loads((await lines_of(path, 1))[0])
    assert (record["peer"], record["proxied_to"]) == ("192.0.2.7:5000", "198.51.100.1:443")


async def test_after_a_detach_nothing_more_is_logged(
    serving: Serving, path: Path, logging_to: Callable[..., AccessLog]
) -> None:
    server = serving.started(Polite())
    log = logging_to(server)
    peer = serving.connect(server)
    await peer.send_all(b"one\n")
    await lines_of(path, 1)
    log.detach(server)
    second = serving.connect(server)
    await second.send_all(b"two\n")
    assert await second.receive_all() == b"hello two\n"
    log.close()
    assert "two" not in path.read_text()


def test_a_wrong_format_or_file_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="access_log_format='xml': must be 'text' or 'json'"):
        AccessLog(tmp_path / "x", "xml")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"access_log=.*missing.*cannot be opened: No such file or directory"):
        AccessLog(tmp_path / "missing" / "x")
    with pytest.raises(OptionError, match="cannot be opened: Is a directory"):
        AccessLog(tmp_path)


# ---- under iostreamsrv serve


@pytest.mark.second_tier
@linux_only
def test_two_workers_write_one_file_and_lose_no_line_when_it_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    options = ("--workers", "2", "--access-log", str(path), "--access-log-format", "json")
    total = 0
    with Served("tests.supervisor.served:Server", *options).listening() as service:

        def visit() -> None:
            nonlocal total
            with service.client() as client:
                client.ask(b"x\n")
            total += 1

        for rotation in range(3):
            for _ in range(50):
                visit()
            path.rename(tmp_path / f"access.log.{rotation}")
            service.send_signal(signal.SIGUSR1)
            while not path.exists():
                visit()
        assert service.end()[0] == 0
    records = [json.loads(line) for each in tmp_path.glob("access.log*") for line in each.read_text().splitlines()]
    assert len(records) == total
    assert {record["worker"] for record in records} == {1, 2}
    assert {record["reason"] for record in records} == {"eof"}


@pytest.mark.second_tier
@linux_only
def test_an_access_log_that_cannot_be_opened_prevents_the_start(tmp_path: Path) -> None:
    with pytest.raises(NotListening) as caught:
        Served("tests.supervisor.served:Server", "--access-log", str(tmp_path / "missing" / "x")).listening()
    code, _, said = caught.value.args[1:]
    assert code == 3
    assert "access_log=" in said
    assert "cannot be opened: No such file or directory" in said
