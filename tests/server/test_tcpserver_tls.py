"""A server's TLS and PROXY options: per listener, on signals, and what a handler does to its stream."""

import asyncio
import signal
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import CertificateError, IOStream, OptionError, StreamClosedError, TCPClient, TCPServer
from iostreamsrv.certificates import Certificates, self_signed
from iostreamsrv.iostream import SSLIOStream
from tests.support.programs import printed, program
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("io_loop")

UNVERIFIED = {"cert_reqs": ssl.CERT_NONE}


class Echo(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        while True:
            await stream.write(await stream.read_until(b"\n"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return self_signed().write(tmp_path)


async def ask(address: Any, ssl_options: Any, line: bytes = b"hello\n") -> bytes:
    stream = await TCPClient().connect(*address, ssl_options=ssl_options, timeout=PATIENCE)
    try:
        await stream.write(line)
        return await stream.read_until(b"\n")
    finally:
        await stream.aclose()


@pytest.mark.gen_test
async def test_one_server_speaks_plainly_and_tls(files: dict[str, str]) -> None:
    server = Echo()
    server.listen(0, "127.0.0.1")
    server.listen(0, "127.0.0.1", ssl_options=files)
    plain, tls = server.addresses
    assert await ask(plain, None) == b"hello\n"
    assert await ask(tls, {"ca_certs": files["certfile"]}) == b"hello\n"
    with pytest.raises(StreamClosedError):
        await ask(tls, None)
    server.stop()
    await server.close_all_connections()


@pytest.mark.gen_test
async def test_a_listener_of_a_tls_server_may_be_plain(files: dict[str, str]) -> None:
    server = Echo(ssl_options=files)
    server.bind(0, "127.0.0.1")
    server.bind(0, "127.0.0.1", ssl_options=False)
    server.start()
    tls, plain = server.addresses
    assert await ask(tls, UNVERIFIED) == b"hello\n"
    assert await ask(plain, None) == b"hello\n"
    server.stop()
    await server.close_all_connections()


@pytest.mark.gen_test
async def test_servers_may_share_certificates_and_each_reload_reaches_all(
    files: dict[str, str], tmp_path: Path
) -> None:
    certificates = Certificates(files)
    one, other = Echo(ssl_options=certificates), Echo(ssl_options=certificates)
    assert one.certificates == other.certificates == [certificates]
    before = certificates.context
    self_signed("example.org").write(tmp_path)
    assert one.reload_certificates()
    assert certificates.context is not before


@pytest.mark.gen_test
async def test_a_bad_file_leaves_what_is_served(files: dict[str, str]) -> None:
    server = Echo(ssl_options=files)
    server.listen(0, "127.0.0.1")
    Path(files["certfile"]).write_text("half a cert")
    assert not server.reload_certificates()
    assert await ask(server.addresses[0], UNVERIFIED) == b"hello\n"
    server.stop()
    await server.close_all_connections()


@pytest.mark.parametrize("options", [{}, {"certfile": "missing.pem"}, {"certfil": "typo.pem"}])
def test_options_that_cannot_be_raise_before_anything_is_bound(options: dict[str, str]) -> None:
    with pytest.raises(CertificateError):
        Echo(ssl_options=options)
    server = Echo()
    with pytest.raises(CertificateError):
        server.listen(0, "127.0.0.1", ssl_options=options)
    assert server.addresses == []


@pytest.mark.parametrize("networks", [[], ["0.0.0.0/0"], ["10.0.0.1/8"], "10.0.0.0/8", [10]])
def test_trust_that_cannot_be_raises(networks: Any) -> None:
    with pytest.raises(OptionError, match="proxy_protocol="):
        Echo(proxy_protocol=networks)


@pytest.mark.gen_test
async def test_a_handler_may_start_tls_and_its_stream_is_the_servers(files: dict[str, str]) -> None:
    seen: list[Any] = []

    class Upgrading(TCPServer):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            stream.data["name"] = "Ada"
            await stream.read_until(b"\n")
            await stream.write(b"go ahead\n")
            secure = await stream.start_tls(True, files)
            seen.append((stream.id == secure.id, secure.data, list(self.streams) == [secure]))
            await secure.write(await secure.read_until(b"\n"))  # and returns, which closes it

    server = Upgrading()
    server.listen(0, "127.0.0.1")
    plain = await TCPClient().connect(*server.addresses[0])
    await plain.write(b"STARTTLS\n")
    await plain.read_until(b"\n")
    stream = await plain.start_tls(False, UNVERIFIED)
    assert isinstance(stream, SSLIOStream)
    await stream.write(b"hello\n")
    assert await stream.read_until_close() == b"hello\n"
    assert stream.close_reason == "eof"
    assert seen == [(True, {"name": "Ada"}, True)]
    await eventually(lambda: not len(server.streams))
    server.stop()


@pytest.mark.gen_test
async def test_what_is_written_before_the_handshake_goes_out_encrypted(files: dict[str, str]) -> None:
    server = Echo(ssl_options=files)
    server.listen(0, "127.0.0.1")
    connecting = asyncio.ensure_future(
        TCPClient().connect(*server.addresses[0], ssl_options=UNVERIFIED, timeout=PATIENCE)
    )
    while not server.streams:
        await asyncio.sleep(0)
    for stream in server.streams:
        stream.write(b"welcome\n")  # in the very turn in which it was accepted
    client = await connecting
    assert await client.read_until(b"\n", timeout=PATIENCE) == b"welcome\n"
    client.close()
    server.stop()
    await server.close_all_connections()


@pytest.mark.gen_test
async def test_a_silent_client_is_closed_when_the_handshake_is_due(files: dict[str, str]) -> None:
    server = Echo(ssl_options=files, handshake_timeout=0.05)
    server.listen(0, "127.0.0.1")
    stream = await TCPClient().connect(*server.addresses[0])
    began = time.monotonic()
    assert await stream.read_until_close() == b""
    assert time.monotonic() - began < PATIENCE
    server.stop()


@pytest.mark.gen_test
async def test_a_connection_that_no_trusted_proxy_has_made_is_closed(files: dict[str, str]) -> None:
    server = Echo(proxy_protocol=["192.0.2.0/24"])
    server.listen(0, "127.0.0.1")
    stream = await TCPClient().connect(*server.addresses[0])
    await stream.write(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nhello\n")
    assert await stream.read_until_close() == b""
    await asyncio.sleep(0)
    assert not len(server.streams)
    server.stop()


RELOADING = """
    import os, sys, iostreamsrv
    from iostreamsrv.certificates import self_signed

    class Reloading(iostreamsrv.TCPServer):
        def handle_stream(self, stream, address):
            pass

        def reload_certificates(self):
            print(repr(super().reload_certificates()), flush=True)

        async def serve_forever(self):
            print("'ready'", flush=True)
            await super().serve_forever()

    server = Reloading(ssl_options=self_signed().write(sys.argv[1]))
    server.listen(0, "127.0.0.1")
    iostreamsrv.run(server)
    print("'ended'", flush=True)
    """


def test_sighup_has_a_server_that_runs_read_its_certificates_anew(tmp_path: Path) -> None:
    with program(RELOADING, str(tmp_path)) as process:
        assert printed(process) == "ready"
        process.send_signal(signal.SIGHUP)
        assert printed(process) is True
        (tmp_path / "cert.pem").write_text("half a cert")
        process.send_signal(signal.SIGHUP)
        assert printed(process) is False
        process.send_signal(signal.SIGTERM)
        assert printed(process) == "ended"
