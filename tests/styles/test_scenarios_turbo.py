"""What a program for Turbo's TCPServer relies on, and what Turbo does wrong; the numbers are those of its scenarios."""

import asyncio
import contextlib
import logging
import os
import resource
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import CertificateError, IOLoop, IOStream, TCPServer, bind_sockets
from iostreamsrv.certificates import self_signed
from tests.support.peers import Peer
from tests.support.programs import Client, ReportingServer
from tests.support.programs import eventually as eventually_in_program
from tests.support.servers import Echo, Serving, answers
from tests.support.waiting import eventually, turns

pytestmark = pytest.mark.usefixtures("io_loop")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """``certfile`` and ``keyfile`` that fit together."""
    return self_signed("localhost").write(tmp_path_factory.mktemp("certificate"))


def trusting(files: dict[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=files["certfile"])


async def end_of(peer: Peer) -> bytes:
    """What comes until the end, or a reset, which is an end as well where unread input is left."""
    received = b""
    try:
        async for chunk in peer.chunks():
            received += chunk
    except ConnectionResetError:
        pass
    return received


# ---- 1: the constructor


def test_turbo_1_a_file_that_is_missing_or_garbage_is_named(files: dict[str, str], tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    for bad in (str(tmp_path / "missing.pem"), str(garbage)):
        for name in ("certfile", "keyfile"):
            with pytest.raises(CertificateError, match=bad):
                TCPServer(ssl_options={**files, name: bad})


def test_turbo_1_a_key_that_does_not_fit_or_is_alone_is_named(files: dict[str, str], tmp_path: Path) -> None:
    other = self_signed("localhost").write(tmp_path)
    with pytest.raises(CertificateError, match=other["keyfile"]):
        TCPServer(ssl_options={**files, "keyfile": other["keyfile"]})
    with pytest.raises(CertificateError, match=files["keyfile"]):
        TCPServer(ssl_options={"keyfile": files["keyfile"]})
    with pytest.raises(CertificateError, match=files["certfile"]):
        TCPServer(ssl_options={"certfile": files["certfile"]})


@pytest.mark.parametrize("form", ["names of Python", "names of Turbo", "context"])
@pytest.mark.gen_test
async def test_turbo_1_ssl_options_have_three_forms(serving: Serving, files: dict[str, str], form: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(**files)
    forms: dict[str, Any] = {
        "names of Python": files,
        "names of Turbo": {"cert_file": files["certfile"], "key_file": files["keyfile"]},
        "context": context,
    }
    (address,) = serving.started(Echo(ssl_options=forms[form])).addresses
    reader, writer = await asyncio.open_connection(*address, ssl=trusting(files), server_hostname="localhost")
    writer.write(b"abc\n")
    assert await reader.readline() == b"abc\n"
    writer.close()
    await writer.wait_closed()


def test_turbo_1_a_server_is_bound_to_the_loop_it_was_given(serving: Serving, io_loop: IOLoop) -> None:
    async def make() -> TCPServer:
        return serving.started(Echo(io_loop=io_loop))

    server = asyncio.new_event_loop()
    try:
        made = server.run_until_complete(make())
    finally:
        server.close()
    assert io_loop.run_sync(lambda: answers(serving.connect(made)))


# ---- 2: listen, bind, start


@pytest.mark.gen_test
async def test_turbo_2_listen_twice_reaches_one_handler(serving: Serving) -> None:
    server = serving.started(Echo())
    server.listen(0, "127.0.0.1")
    one, other = server.addresses
    assert one != other
    assert await answers(serving.connect(one))
    assert await answers(serving.connect(other))
    assert len(server.streams) == 2


@pytest.mark.gen_test
async def test_turbo_2_nobody_is_handled_between_bind_and_start(serving: Serving) -> None:
    server = Echo()
    serving.servers.append(server)
    server.bind(0, "127.0.0.1")
    peer = serving.connect(server)
    peer.send(b"queued\n")
    await turns(20)
    assert not peer.has_input()
    server.start()
    assert await peer.receive(7) == b"queued\n"
    server.bind(0, "127.0.0.1")
    assert await answers(serving.connect(server.addresses[1]))
    with pytest.raises(RuntimeError, match="started already"):
        server.start()


# ---- 3 and 4: stop, and sockets that exist


@pytest.mark.gen_test
async def test_turbo_3_stop_refuses_new_clients_and_the_server_can_start_again(serving: Serving) -> None:
    server = serving.started(Echo())
    (address,) = server.addresses
    peer = serving.connect(server)
    assert await answers(peer)
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    assert await answers(peer)
    server.bind(address[1], address[0])
    server.start()
    assert await answers(serving.connect(address))
    server.stop()
    server.listen(address[1], address[0])
    assert await answers(serving.connect(address))


@pytest.mark.gen_test
async def test_turbo_3_stop_before_start_frees_the_port(serving: Serving) -> None:
    server = Echo()
    server.bind(0, "127.0.0.1")
    (address,) = server.addresses
    server.stop()
    other = Echo()
    serving.servers.append(other)
    other.listen(address[1], address[0])
    assert await answers(serving.connect(address))


@pytest.mark.gen_test
async def test_turbo_4_sockets_that_are_bound_can_be_added(serving: Serving) -> None:
    server = Echo()
    serving.servers.append(server)
    server.add_sockets(bind_sockets(0, "127.0.0.1"))
    server.add_socket(socket.create_server(("127.0.0.1", 0)))
    for address in server.addresses:
        assert await answers(serving.connect(address))


# ---- 5: max_buffer_size


@pytest.mark.parametrize("tls", [False, True])
def test_turbo_5_a_full_buffer_closes_one_client_and_costs_nothing(files: dict[str, str], tls: bool) -> None:
    with ReportingServer(max_buffer_size=20_000, ssl_options=files if tls else None) as server:
        context = trusting(files) if tls else None
        with server.client(tls=context) as other, server.client(tls=context) as flooding:
            begun = time.monotonic()
            try:
                flooding.send(bytes(60_000))
                assert flooding.line() == b""
            except OSError:  # of a reset, which TLS may call an end against its rules
                pass
            assert time.monotonic() - begun < 5
            assert other.ask(b"still there\n") == b"still there\n"
            eventually_in_program(lambda: server.report()["reasons"] == {"buffer_full": 1}, server.report)
            assert idles(server)
            assert other.ask(b"still there\n") == b"still there\n"


def idles(server: ReportingServer) -> bool:
    """Whether the server's process uses next to no CPU for a while, in which it has nothing to do."""
    before = cpu_seconds(server)
    time.sleep(0.5)
    return cpu_seconds(server) - before < 0.2


def cpu_seconds(server: ReportingServer) -> float:
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.gen_test
async def test_turbo_5_the_stream_has_the_error(serving: Serving) -> None:
    ends: list[tuple[Any, Any]] = []
    server = Echo(max_buffer_size=20_000)

    def handle_close(stream: IOStream, reason: Any) -> None:
        ends.append((reason, stream.error))

    server.handle_close = handle_close  # type: ignore[method-assign]
    peer = serving.connect(serving.started(server))
    await peer.send_all(bytes(60_000))
    await eventually(lambda: ends)
    assert ends[0][0] == "buffer_full"
    assert "buffer" in str(ends[0][1])


@pytest.mark.gen_test
async def test_turbo_5_a_read_of_exactly_the_limit_succeeds(serving: Serving) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        await stream.write(b"%d" % len(await stream.read_bytes(20_000)))

    peer = serving.connect(serving.with_handler(handler, max_buffer_size=20_000))
    peer.send(bytes(20_000))
    assert await peer.receive_all() == b"20000"


# ---- 6: handlers that raise, or are missing


class Fault(Exception):
    """What a handler raises."""


async def raises_later(stream: IOStream, address: Any) -> None:
    await stream.read_until(b"\n")
    raise Fault


def raises(stream: IOStream, address: Any) -> None:
    raise Fault


@pytest.mark.parametrize("handler", [raises, raises_later])
@pytest.mark.gen_test
async def test_turbo_6_a_handler_that_raises_ends_its_client_alone(
    serving: Serving, caplog: pytest.LogCaptureFixture, handler: Any
) -> None:
    server = serving.with_handler(handler)
    for number in (1, 2):
        peer = serving.connect(server)
        peer.send(b"line\n")
        assert await end_of(peer) == b""
        errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert [record.exc_info and record.exc_info[0] for record in errors] == [Fault] * number


def test_turbo_6_a_server_without_a_handler_does_not_listen() -> None:
    with pytest.raises(NotImplementedError, match="handle_stream"):
        TCPServer().listen(0, "127.0.0.1")


# ---- 7: what arrives


@pytest.mark.gen_test
async def test_turbo_7_a_delimiter_split_across_packets_is_found_at_once(serving: Serving) -> None:
    lines: list[bytes] = []

    async def handler(stream: IOStream, address: Any) -> None:
        lines.append(await stream.read_until(b"\r\n\r\n"))

    server = serving.with_handler(handler)
    peer = serving.connect(server)
    await eventually(lambda: len(server.streams))
    (stream,) = server.streams
    for number, piece in enumerate((b"a\r", b"\n\r", b"\n"), 1):
        peer.send(piece)
        await eventually(lambda number=number: stream.bytes_read == (2, 4, 5)[number - 1])
    await eventually(lambda: lines)
    assert lines == [b"a\r\n\r\n"]


@pytest.mark.gen_test
async def test_turbo_7_all_that_was_written_before_aclose_arrives(serving: Serving) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        stream.write(b"x" * (4 << 20))
        await stream.aclose()

    peer = serving.connect(serving.with_handler(handler))
    assert len(await peer.receive_all()) == 4 << 20


@pytest.mark.gen_test
async def test_turbo_7_who_half_closes_after_the_request_gets_the_full_reply(serving: Serving) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        await stream.write(b"x" * (4 << 20))

    peer = serving.connect(serving.with_handler(handler))
    peer.send(b"request\n")
    peer.half_close()
    assert len(await peer.receive_all()) == 4 << 20


# ---- 8 and 9: handshakes, descriptors


def test_turbo_8_garbage_and_silence_at_the_handshake_block_nobody(files: dict[str, str]) -> None:
    with ReportingServer(ssl_options=files, handshake_timeout=0.5) as server:
        with server.client() as silent, server.client() as garbage:
            garbage.send(b"GET / HTTP/1.0\r\n\r\n")
            with server.client(tls=trusting(files)) as client:
                assert client.ask(b"hello\n") == b"hello\n"
            assert silent.line() == b""
            assert read_to_the_end(garbage)
        server.settled()
        assert idles(server)


def read_to_the_end(client: Client) -> bool:
    try:
        while client.line():
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process can be set on Linux only")
def test_turbo_9_without_descriptors_accepting_waits_and_does_not_spin() -> None:
    with ReportingServer(max_connections=1000) as server, contextlib.ExitStack() as stack:
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (40, 40))
        clients = [stack.enter_context(server.client()) for _ in range(60)]
        assert clients[0].ask(b"served\n") == b"served\n"
        server.wait_for("Too many open files")
        assert idles(server)
        for client in clients[:40]:
            client.__exit__()
        with server.client() as client:
            assert client.ask(b"served\n") == b"served\n"


# ---- what Turbo does wrong


@pytest.mark.gen_test
async def test_turbo_faults_a_handler_that_raises_does_not_make_the_listener_deaf(serving: Serving) -> None:
    first = True

    async def handler(stream: IOStream, address: Any) -> None:
        nonlocal first
        if first:
            first = False
            raise Fault
        await stream.write(await stream.read_until(b"\n"))

    server = serving.with_handler(handler)
    assert await end_of(serving.connect(server)) == b""
    assert await answers(serving.connect(server))


@pytest.mark.gen_test
async def test_turbo_faults_a_full_buffer_closes_instead_of_spinning(serving: Serving) -> None:
    server = serving.started(Echo(max_buffer_size=1000))
    peer = serving.connect(server)
    await peer.send_all(bytes(5000))
    await end_of(peer)
    await eventually(lambda: len(server.streams) == 0)


@pytest.mark.gen_test
async def test_turbo_faults_write_and_return_loses_nothing(serving: Serving) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        stream.write(b"x" * (4 << 20))

    assert len(await serving.connect(serving.with_handler(handler)).receive_all()) == 4 << 20


@pytest.mark.gen_test
async def test_turbo_faults_a_half_close_does_not_lose_the_reply(serving: Serving) -> None:
    peer = serving.connect(serving.started(Echo()))
    peer.send(b"request\n")
    peer.half_close()
    assert await peer.receive_all() == b"request\n"


@pytest.mark.gen_test
async def test_turbo_faults_start_after_stop_works(serving: Serving) -> None:
    server = Echo()
    serving.servers.append(server)
    for _ in range(3):
        server.bind(0, "127.0.0.1")
        server.start()
        assert await answers(serving.connect(server))
        server.stop()
