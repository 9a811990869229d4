"""`SSLIOStream` and `start_tls`: what a stream under TLS has and a plain one has not.

That it is a stream like any other the streams' other tests say, which run under TLS as well.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import socket
import ssl
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import tornado.iostream

from iostreamsrv import CloseReason, IOLoop, IOStream, OptionError, StreamBufferFullError, StreamClosedError, TCPServer
from iostreamsrv.certificates import CertificateAuthority, self_signed
from iostreamsrv.iostream import SSLIOStream
from iostreamsrv.server.base import core_of
from iostreamsrv.streams import hub
from iostreamsrv.testing import MockClock
from tests.support.engines import on_every_loop
from tests.support.peers import Cut, MakePair, Peer, TLSEnd, TLSPeer, tcp_pair, tls_contexts, tls_pair
from tests.support.waiting import PATIENCE, eventually, fill, turns

pytestmark = on_every_loop

Sockets = tuple[socket.socket, socket.socket]
Connect = Callable[..., tuple[SSLIOStream, TLSEnd]]

LINE = b"0123456789abcde\n"


@pytest.fixture
def accept(io_loop: IOLoop) -> Iterator[Connect]:
    """Makes a server's stream and the client's end, which have not shaken hands."""
    made: list[tuple[SSLIOStream, TLSEnd]] = []

    def make(
        sockets: Sockets | None = None,
        server: ssl.SSLContext | None = None,
        client: ssl.SSLContext | None = None,
        **options: Any,
    ) -> tuple[SSLIOStream, TLSEnd]:
        ours, theirs = sockets or tcp_pair()
        wrapped = (server or tls_contexts()[0]).wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
        made.append((SSLIOStream(wrapped, **options), TLSEnd(theirs, client or tls_contexts()[1])))
        return made[-1]

    yield make
    _close(made)


@pytest.fixture
def reach(io_loop: IOLoop) -> Iterator[Connect]:
    """Makes a client's stream and the server's end, which have not shaken hands."""
    made: list[tuple[SSLIOStream, TLSEnd]] = []

    def make(
        sockets: Sockets | None = None,
        server: ssl.SSLContext | None = None,
        client: ssl.SSLContext | None = None,
        **options: Any,
    ) -> tuple[SSLIOStream, TLSEnd]:
        ours, theirs = sockets or tcp_pair()
        stream = SSLIOStream(ours, ssl_options=client or tls_contexts()[1], **options)
        made.append((stream, TLSEnd(theirs, server or tls_contexts()[0], server_side=True)))
        return made[-1]

    yield make
    _close(made)


def _close(made: list[tuple[SSLIOStream, TLSEnd]]) -> None:
    for stream, end in made:
        stream.abort()
        end.close()


@pytest.fixture(params=["server", "client"])
def meet(request: pytest.FixtureRequest, accept: Connect, reach: Connect) -> Connect:
    """``accept`` and ``reach``, one after the other: the stream is the server, and the client."""
    return accept if request.param == "server" else reach


@pytest.fixture
def secure(make_pair: MakePair, io_loop: IOLoop) -> Iterator[Callable[..., tuple[SSLIOStream, TLSPeer]]]:
    """Makes a stream and its peer after their handshake."""
    made: list[tuple[SSLIOStream, TLSPeer]] = []

    def make(sockets: Sockets | None = None, **options: Any) -> tuple[SSLIOStream, TLSPeer]:
        made.append(tls_pair(sockets or tcp_pair(), **options))
        return made[-1]

    yield make
    for stream, peer in made:
        stream.abort()
        peer.close()


Secure = Callable[..., tuple[SSLIOStream, TLSPeer]]


async def shake(end: TLSEnd) -> TLSPeer:
    """See the other end through its handshake."""
    async with asyncio.timeout(PATIENCE):
        while not end.handshake():
            await asyncio.sleep(0)
    return TLSPeer(end)


@functools.cache
def authority() -> CertificateAuthority:
    return CertificateAuthority()


def context(server_side: bool, certificate: bytes = b"", key: bytes = b"", trust: bytes = b"") -> ssl.SSLContext:
    """A context with a certificate, that trusts an authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    if certificate:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "both.pem")
            path.write_bytes(key + certificate)
            context.load_cert_chain(path)
    if trust:
        context.load_verify_locations(cadata=trust.decode())
    return context


# ---- the handshake


@pytest.mark.gen_test
async def test_wait_for_handshake_gives_the_stream_to_all_who_wait_and_again(meet: Connect) -> None:
    stream, end = meet()
    waiting = [asyncio.ensure_future(stream.wait_for_handshake()) for _ in range(3)]
    assert not any(each.done() for each in waiting)
    await shake(end)
    for each in waiting:
        assert await each is stream
    again = stream.wait_for_handshake()
    assert again.done()
    assert await again is stream


@pytest.mark.gen_test
async def test_who_stops_waiting_for_a_handshake_does_not_disturb_it(meet: Connect) -> None:
    stream, end = meet()
    one, other = stream.wait_for_handshake(), stream.wait_for_handshake()
    one.cancel()
    await shake(end)
    assert await other is stream


@pytest.mark.gen_test
async def test_a_handshake_may_come_byte_by_byte(accept: Connect) -> None:
    stream, end = accept()
    theirs = end.raw
    loop = asyncio.get_running_loop()
    hello = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls_contexts()[1].wrap_bio(*hello)
    done = False
    while not done:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
            done = True
        for byte in hello[1].read():
            await loop.sock_sendall(theirs, bytes([byte]))
            await turns(2)
        if not done:
            hello[0].write(await loop.sock_recv(theirs, 65536))
    await stream.wait_for_handshake()
    client.write(LINE)
    for byte in hello[1].read():
        await loop.sock_sendall(theirs, bytes([byte]))
    assert await stream.read_until(b"\n") == LINE


@pytest.mark.gen_test
async def test_what_is_written_and_read_before_and_during_the_handshake_waits_for_it(meet: Connect) -> None:
    stream, end = meet()
    reading, writing = stream.read_until(b"\n"), stream.write(b"early ")
    drained = stream.drain()
    large = stream.write(bytes(100_000))
    assert not writing.done()
    assert stream.writing()
    assert stream.bytes_written == 0
    peer = await shake(end)
    peer.send(LINE)
    assert await reading == LINE
    assert await peer.receive(6 + 100_000) == b"early " + bytes(100_000)
    await asyncio.gather(writing, drained, large)
    assert stream.bytes_written == 100_006


@pytest.mark.gen_test
async def test_data_right_behind_the_handshake_is_read(accept: Connect) -> None:
    stream, end = accept()
    while not end.handshake():
        stream._dispatch_now(hub.READABLE)
    end.send(LINE)  # in one piece with the client's last flight, or right behind it
    assert await stream.read_until(b"\n") == LINE


@pytest.mark.gen_test
async def test_a_file_and_an_end_wait_for_the_handshake_too(accept: Connect, tmp_path: Path) -> None:
    stream, end = accept()
    (tmp_path / "content").write_bytes(LINE * 1000)
    with (tmp_path / "content").open("rb") as file:
        sending = stream.sendfile(file)
    ending = stream.send_eof()
    peer = await shake(end)
    assert await peer.receive_all() == LINE * 1000
    assert await sending == 16_000
    await ending


@pytest.mark.gen_test
async def test_aclose_during_the_handshake_delivers_what_was_written(accept: Connect) -> None:
    stream, end = accept()
    stream.write(LINE)
    closing = asyncio.create_task(stream.aclose())
    await turns()
    peer = await shake(end)
    assert await peer.receive_all() == LINE
    peer.close()
    await closing


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.gen_test
async def test_an_end_of_ours_during_the_handshake_fails_what_waits(meet: Connect, how: str) -> None:
    stream, _ = meet()
    waiting = [stream.wait_for_handshake(), stream.read_bytes(1), stream.write(b"x"), stream.drain()]
    getattr(stream, how)()
    operations = []
    for future in waiting:
        with pytest.raises(StreamClosedError) as caught:
            await future
        operations.append(caught.value.operation)
        assert caught.value.reason == ("local" if how == "close" else "aborted")
    assert operations == ["handshake", "read", "write", "write"]
    with pytest.raises(StreamClosedError):
        await stream.wait_for_handshake()


@pytest.mark.parametrize(("how", "reason"), [("close", "eof"), ("reset", "reset")])
@pytest.mark.gen_test
async def test_a_peer_that_goes_during_the_handshake_is_a_closed_stream(accept: Connect, how: str, reason: str) -> None:
    stream, end = accept()
    end.handshake()
    getattr(Peer(end.raw), how)()
    with pytest.raises(StreamClosedError) as caught:
        await stream.wait_for_handshake()
    assert caught.value.operation == "handshake"
    assert caught.value.reason == stream.close_reason == reason


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", bytes(100)])
@pytest.mark.gen_test
async def test_what_is_no_tls_fails_the_handshake_with_one_line(
    accept: Connect, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    stream, end = accept()
    end.raw.send(data)
    with pytest.raises(ssl.SSLError) as caught:
        await stream.wait_for_handshake()
    assert stream.close_reason is CloseReason.TLS_ERROR
    assert stream.error is caught.value
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert not caplog.records[0].exc_info
    with pytest.raises(ssl.SSLError):
        await stream.wait_for_handshake()


@pytest.mark.gen_test
async def test_a_certificate_that_is_not_trusted_fails_the_handshake_and_the_server_hears_why(reach: Connect) -> None:
    distrustful = context(False, trust=self_signed().certificate)
    distrustful.check_hostname = False
    stream, end = reach(client=distrustful)
    with pytest.raises(ssl.SSLCertVerificationError):
        end_fails = asyncio.ensure_future(shake(end))
        await stream.wait_for_handshake()
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        await end_fails
    assert stream.close_reason is CloseReason.TLS_ERROR


@pytest.mark.gen_test
async def test_a_failed_handshake_fails_what_waits_to_be_read_and_written(accept: Connect) -> None:
    stream, end = accept()
    waiting = [stream.read_bytes(1), stream.write(b"x")]
    closed = asyncio.Event()
    stream.set_close_callback(closed.set)
    end.raw.send(b"no TLS at all")
    for future in waiting:
        with pytest.raises(StreamClosedError) as caught:
            await future
        assert caught.value.reason == "tls_error"
        assert isinstance(caught.value.real_error, ssl.SSLError)
    await closed.wait()


@pytest.mark.gen_test
async def test_a_last_flight_larger_than_the_kernels_buffer_arrives(reach: Connect) -> None:
    names = [f"host-{number}.example.org" for number in range(800)]
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    large = authority().issue(*names, client=True)
    trust = authority().certificate
    own = authority().issue("localhost")
    server = context(True, own.certificate, own.key, trust)
    server.verify_mode = ssl.CERT_REQUIRED
    client = context(False, large.certificate, large.key, trust)
    client.check_hostname = False
    stream, end = reach((ours, theirs), server, client)
    peer = await shake(end)
    peer.send(LINE)
    assert await stream.read_until(b"\n") == LINE
    assert len(cast(Any, peer.end.tls.getpeercert())["subjectAltName"]) == 800


# ---- connecting


@pytest.mark.gen_test
async def test_connect_does_the_handshake_and_checks_the_name() -> None:
    server_context, _ = tls_contexts()
    server = TCPServer(server_context)
    server.handle_stream = echo  # type: ignore[method-assign, assignment]
    server.listen(0, "127.0.0.1")
    stream = SSLIOStream(socket.socket(), ssl_options=tls_contexts()[1])
    assert await stream.connect(server.addresses[0], server_hostname="localhost") is stream
    assert stream.wait_for_handshake().done()
    await stream.write(LINE)
    assert await stream.read_until(b"\n") == LINE
    assert stream.peer_certificate is not None
    stream.close()
    server.stop()
    await eventually(lambda: not len(server.streams))


async def echo(stream: IOStream, address: Any) -> None:
    while True:
        await stream.write(await stream.read_until(b"\n"))


@pytest.mark.gen_test
async def test_what_is_written_while_connecting_leaves_after_the_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = SSLIOStream(socket.socket(), ssl_options=tls_contexts()[1])
        connecting = stream.connect(listener.getsockname())
        writing = stream.write(LINE)
        connection, _ = listener.accept()
    peer = await shake(TLSEnd(connection, tls_contexts()[0], server_side=True))
    assert await connecting is stream
    await writing
    assert await peer.receive(len(LINE)) == LINE
    stream.close()
    peer.close()


@pytest.mark.gen_test
async def test_a_refused_connection_is_no_handshake() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        stream = SSLIOStream(socket.socket(), ssl_options=tls_contexts()[1])
        waiting = stream.wait_for_handshake()
        with pytest.raises(StreamClosedError) as caught:
            await stream.connect(unused.getsockname())
        assert caught.value.operation == "connect"
        with pytest.raises(StreamClosedError):
            await waiting


# ---- an SSLSocket that is taken over


@pytest.mark.parametrize("server_side", [True, False])
@pytest.mark.gen_test
async def test_an_ssl_socket_before_its_handshake_is_taken_over(server_side: bool) -> None:
    ours, theirs = tcp_pair()
    server, client = tls_contexts()
    mine, other = (server, client) if server_side else (client, server)
    wrapped = mine.wrap_socket(ours, server_side=server_side, do_handshake_on_connect=False)
    stream, end = SSLIOStream(wrapped), TLSEnd(theirs, other, not server_side)
    assert wrapped.fileno() == -1
    peer = await shake(end)
    await stream.wait_for_handshake()
    await stream.write(LINE)
    assert await peer.receive(len(LINE)) == LINE
    stream.close()
    peer.close()


@pytest.mark.gen_test
async def test_an_ssl_socket_after_its_handshake_is_refused_and_unharmed() -> None:
    ours, theirs = tcp_pair()
    server, client = tls_contexts()

    def shake_in_a_thread() -> ssl.SSLSocket:
        return client.wrap_socket(theirs)

    shaking = asyncio.create_task(asyncio.to_thread(shake_in_a_thread))
    wrapped = await asyncio.to_thread(lambda: server.wrap_socket(ours, server_side=True))
    with await shaking as other, wrapped:
        with pytest.raises(OptionError, match=r"^socket=.*handshake"):
            SSLIOStream(wrapped)
        other.sendall(LINE)
        assert wrapped.recv(100) == LINE
    await asyncio.get_running_loop().shutdown_default_executor()


# ---- what the stream says of its connection


@pytest.mark.gen_test
async def test_the_socket_answers_what_an_ssl_socket_does(accept: Connect) -> None:
    pair = self_signed()
    server = context(True, pair.certificate, pair.key)
    server.set_alpn_protocols(["echo/2", "echo/1"])
    client = context(False, trust=pair.certificate)
    client.check_hostname = False
    client.set_alpn_protocols(["echo/1", "echo/2"])
    stream, end = accept(server=server, client=client)
    assert stream.alpn is None
    assert stream.peer_certificate is None
    raw = stream.fileno()
    await shake(end)
    await stream.wait_for_handshake()
    sock = cast(Any, stream.socket)
    assert sock.version() == end.tls.version() == "TLSv1.3"
    assert sock.cipher() == end.tls.cipher()
    assert sock.getpeercert() is None
    assert sock.selected_alpn_protocol() == stream.alpn == "echo/2"
    assert sock.context is server
    assert sock.server_side is True
    assert sock.fileno() == stream.fileno() == raw
    assert sock.getpeername() == stream.remote_address == end.raw.getsockname()
    with pytest.raises(AttributeError):
        sock.no_such_thing  # noqa: B018
    assert isinstance(stream, tornado.iostream.SSLIOStream)
    assert isinstance(stream, IOStream)


@pytest.mark.parametrize("certified", [True, False])
@pytest.mark.gen_test
async def test_the_clients_certificate_is_there_if_it_was_verified(accept: Connect, certified: bool) -> None:
    own, theirs = authority().issue("localhost"), authority().issue("sensor-7", client=True)
    server = context(True, own.certificate, own.key, authority().certificate)
    server.verify_mode = ssl.CERT_OPTIONAL
    client = context(False, *((theirs.certificate, theirs.key) if certified else ()), trust=authority().certificate)
    client.check_hostname = False
    stream, end = accept(server=server, client=client)
    await shake(end)
    await stream.wait_for_handshake()
    certificate = stream.peer_certificate
    assert (certificate is not None) is certified
    if certificate is not None:
        assert ("commonName", "sensor-7") in [item for part in certificate["subject"] for item in part]
    stream.close()
    assert stream.peer_certificate == certificate


@pytest.mark.gen_test
async def test_a_server_that_wants_a_certificate_and_gets_none_fails(accept: Connect) -> None:
    own = authority().issue("localhost")
    server = context(True, own.certificate, own.key, authority().certificate)
    server.verify_mode = ssl.CERT_REQUIRED
    client = context(False, trust=authority().certificate)
    client.check_hostname = False
    stream, end = accept(server=server, client=client)
    peer = await shake(end)  # in TLS 1.3 the client is done before it is refused
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate"):
        await stream.wait_for_handshake()
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate required"):
        await peer.receive_all()


# ---- reading


@pytest.mark.gen_test
async def test_bytes_that_come_while_others_wait_to_be_decrypted_are_read(secure: Secure) -> None:
    stream, peer = secure(read_chunk_size=100)
    peer.send(bytes(150))
    assert await stream.read_bytes(100) == bytes(100)
    peer.send(LINE)  # an edge, while there is more without one
    await turns()
    assert await stream.read_bytes(50) == bytes(50)
    async with asyncio.timeout(PATIENCE):
        assert await stream.read_until(b"\n") == LINE


@pytest.mark.gen_test
async def test_one_record_serves_many_small_reads_and_many_records_one_large(secure: Secure) -> None:
    stream, peer = secure(read_chunk_size=10)
    peer.send(bytes(range(100)))
    assert b"".join([await stream.read_bytes(1) for _ in range(100)]) == bytes(range(100))
    for number in range(100):
        peer.send(bytes([number]))
    assert await stream.read_bytes(100) == bytes(range(100))


@pytest.mark.gen_test
async def test_max_buffer_size_counts_plaintext(secure: Secure) -> None:
    stream, peer = secure(max_buffer_size=1000)
    for _ in range(100):
        peer.send(bytes(9) + b"\n")
    for _ in range(100):
        assert await stream.read_until(b"\n") == bytes(9) + b"\n"
    assert stream.bytes_read == 1000
    peer.send(bytes(1500))
    with pytest.raises(StreamClosedError) as caught:
        await stream.read_until(b"\n")
    assert isinstance(caught.value.real_error, StreamBufferFullError)
    assert stream.close_reason == "buffer_full"


@pytest.mark.gen_test
async def test_what_came_before_our_end_keeps_to_the_buffers_limit(secure: Secure) -> None:
    stream, peer = secure(max_buffer_size=1000, read_chunk_size=100)
    peer.send(bytes(20_000))
    await turns()
    assert await stream.read_bytes(10) == bytes(10)
    await stream.send_eof()
    for _ in range(100):
        assert await stream.read_bytes(100) == bytes(100)
        assert stream.buffered <= 1000


@pytest.mark.gen_test
async def test_a_broken_record_ends_the_stream_and_what_came_before_is_read(secure: Secure) -> None:
    stream, peer = secure()
    peer.send(LINE)
    peer.end.raw.send(b"this is no record")
    assert await stream.read_until(b"\n") == LINE
    with pytest.raises(StreamClosedError) as caught:
        await stream.read_until(b"\n")
    assert caught.value.reason == stream.close_reason == "tls_error"
    assert isinstance(caught.value.real_error, ssl.SSLError)
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        await peer.receive_all()


@pytest.mark.gen_test
async def test_a_pending_read_fails_for_a_broken_record(secure: Secure) -> None:
    stream, peer = secure()
    reading = stream.read_until(b"\n")
    await turns()
    peer.end.raw.send(b"this is no record")
    with pytest.raises(StreamClosedError) as caught:
        await reading
    assert caught.value.reason == "tls_error"


# ---- writing


@pytest.mark.gen_test
async def test_replies_to_pipelined_requests_leave_as_one_record(secure: Secure) -> None:
    stream, peer = secure()
    await have_the_tickets_sent(stream, peer)
    # Few, as a turn of the loop that takes some milliseconds ends the cork.
    answering = asyncio.create_task(answer(stream, 10))
    await turns()
    peer.send(LINE * 10)
    await answering
    await eventually(lambda: len(peer.end.raw.recv(5, socket.MSG_PEEK)) == 5)
    header = peer.end.raw.recv(5, socket.MSG_PEEK)
    ciphertext = peer.end.raw.recv(1 << 20, socket.MSG_PEEK)
    assert len(ciphertext) == 5 + int.from_bytes(header[3:], "big"), "more than one record"
    assert await peer.receive(10 * len(LINE)) == LINE * 10


async def have_the_tickets_sent(stream: IOStream, peer: Peer) -> None:
    """They go with the first write."""
    await stream.write(LINE)
    assert await peer.receive(len(LINE)) == LINE


async def answer(stream: IOStream, count: int) -> None:
    for _ in range(count):
        await stream.write(await stream.read_until(b"\n"))


@pytest.mark.gen_test
async def test_a_write_is_done_when_the_kernel_has_its_last_byte(secure: Secure) -> None:
    stream, peer = secure(socket.socketpair())
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    futures = [stream.write(bytes([number]) * 50_000) for number in range(10)]
    received = b""
    while len(received) < 500_000:
        received += await peer.receive_some(7000)
        await turns(2)
        done = sum(future.done() for future in futures)
        assert stream.bytes_written >= 50_000 * done
        in_flight = 50_000  # what a small kernel buffer and the peer's records have
        assert len(received) + in_flight >= 50_000 * done
    assert received == b"".join(bytes([number]) * 50_000 for number in range(10))
    await asyncio.gather(*futures)
    assert stream.bytes_written == 500_000
    assert not stream.writing()


@pytest.mark.gen_test
async def test_a_large_write_to_a_slow_reader_arrives_whole(secure: Secure) -> None:
    stream, peer = secure(socket.socketpair())
    data = bytes(range(251)) * 20_000
    writing = stream.write(data)
    small = stream.write(LINE)
    received = b""
    while len(received) < len(data) + len(LINE):
        assert not small.done() or len(received) > len(data) // 2
        received += await peer.receive_some(50_000)
    assert received == data + LINE
    await writing
    await small


@pytest.mark.gen_test
async def test_close_with_half_a_record_sent_sends_the_rest_and_says_goodbye(secure: Secure) -> None:
    stream, peer = secure(socket.socketpair())
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    writing = stream.write(bytes(1_000_000))
    assert not writing.done()
    stream.close()
    with pytest.raises(StreamClosedError):
        await writing
    received = await peer.receive_all()  # a half record, or no goodbye, would raise
    assert set(received) == {0}
    assert len(received) < 1_000_000
    await eventually(lambda: stream.fileno() == -1)


@pytest.mark.parametrize("how", ["close", "aclose", "send_eof"])
@pytest.mark.gen_test
async def test_the_goodbye_waits_for_room_in_the_kernel(secure: Secure, how: str) -> None:
    stream, peer = secure(socket.socketpair())
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    await have_the_tickets_sent(stream, peer)
    count = fill_to_the_last_byte(stream)
    ending = asyncio.ensure_future(_end(stream, how))
    await turns()
    received = await peer.receive_all()  # no goodbye would raise
    assert len(received) == count
    peer.close()
    await ending
    stream.close()
    await eventually(lambda: stream.fileno() == -1)


async def _end(stream: IOStream, how: str) -> None:
    result = getattr(stream, how)()
    if result is not None:
        await result


RECORD = 100
"""Bytes of plaintext in each of the writes that fill the kernel's buffer."""


def fill_to_the_last_byte(stream: SSLIOStream) -> int:
    """Write until the kernel has taken all and has no room for one more; how many bytes.

    The stream would queue the first record that does not fit, so another socket tells how many do.
    """
    one, other = socket.socketpair()
    with one, other:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        one.setblocking(False)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while one.send(bytes(RECORD + 22)):  # 22 is what TLS 1.3 adds
                count += 1
    for _ in range(count):
        stream.write(bytes(RECORD))
    assert not stream.writing(), "something is queued"
    return count * RECORD


@pytest.mark.gen_test
async def test_a_file_that_becomes_shorter_while_it_is_sent_spoils_nothing_behind_it(
    secure: Secure, tmp_path: Path
) -> None:
    stream, peer = secure(socket.socketpair())
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    path = tmp_path / "content"
    path.write_bytes(bytes(1_000_000))
    with path.open("rb") as file:
        sending = stream.sendfile(file)
    assert not sending.done()
    path.write_bytes(b"")
    behind = stream.write(b"behind\n")
    receiving = asyncio.create_task(peer.receive_all())
    sent = await sending
    await behind
    closing = asyncio.create_task(stream.aclose())
    assert await receiving == bytes(sent) + b"behind\n"
    peer.close()
    await closing


# ---- the ends


@pytest.mark.gen_test
async def test_a_goodbye_is_an_end_and_a_bare_end_a_truncation(secure: Secure) -> None:
    for how, reason in (("close", "eof"), ("half_close", "eof"), ("drop", "truncated"), ("shutdown", "truncated")):
        stream, peer = secure()
        peer.send(LINE)
        if how == "drop":
            peer.end.drop()
        elif how == "shutdown":
            peer.end.raw.shutdown(socket.SHUT_WR)
        else:
            getattr(peer, how)()
        assert await stream.read_until(b"\n") == LINE
        with pytest.raises(StreamClosedError) as caught:
            await stream.read_until(b"\n")
        assert caught.value.reason == stream.close_reason == reason
        assert CloseReason(reason).by_peer
        assert stream.error is None


@pytest.mark.gen_test
async def test_half_a_record_and_an_end_is_a_truncation(secure: Secure) -> None:
    stream, peer = secure()
    peer.end.tls.write(LINE)
    ciphertext = peer.end._outgoing.read()
    peer.end.raw.send(ciphertext[:-1])
    peer.end.raw.shutdown(socket.SHUT_WR)
    with pytest.raises(StreamClosedError) as caught:
        await stream.read_until(b"\n")
    assert caught.value.reason == "truncated"
    assert stream.buffered == 0


@pytest.mark.parametrize("before", [b"", LINE], ids=["alone", "behind data"])
@pytest.mark.parametrize("pending", [True, False])
@pytest.mark.gen_test
async def test_a_peer_that_says_goodbye_and_waits_for_ours_is_answered(
    secure: Secure, before: bytes, pending: bool
) -> None:
    stream, peer = secure()
    reading = asyncio.ensure_future(stream.read_until_close()) if pending else None
    await turns()
    if before:
        peer.end.tls.write(before)
    peer.end.say_goodbye()
    peer.end.flush()  # and no FIN
    async with asyncio.timeout(PATIENCE):
        assert await (reading or stream.read_until_close()) == before
        assert await peer.receive_all() == b""
    assert stream.close_reason == "eof"


@pytest.mark.gen_test
async def test_a_close_callback_notices_a_goodbye_behind_data(secure: Secure) -> None:
    stream, peer = secure()
    closed = asyncio.Event()
    stream.set_close_callback(closed.set)
    peer.end.tls.write(LINE)
    peer.end.say_goodbye()
    peer.end.flush()
    assert await stream.read_until(b"\n") == LINE
    async with asyncio.timeout(PATIENCE):
        await closed.wait()
    assert stream.close_reason == "eof"


@pytest.mark.gen_test
async def test_a_stream_that_is_half_open_answers_after_the_peers_goodbye(secure: Secure) -> None:
    stream, peer = secure(allow_half_open=True)
    peer.send(LINE)
    peer.half_close()
    assert await stream.read_until_close() == LINE
    assert not stream.closed()
    await stream.write(LINE)
    await stream.send_eof()
    assert await peer.receive_all() == LINE
    assert stream.close_reason == "eof"


@pytest.mark.gen_test
async def test_after_our_goodbye_the_peer_can_go_on(secure: Secure) -> None:
    stream, peer = secure()
    peer.send(LINE)
    await stream.send_eof()
    assert await peer.receive_all() == b""
    peer.send(LINE)
    assert await stream.read_bytes(2 * len(LINE)) == LINE * 2
    peer.close()
    assert await stream.read_until_close() == b""
    assert stream.close_reason == "eof"


@pytest.mark.parametrize("size", [1000, 100_000, 256_000])
@pytest.mark.gen_test
async def test_the_last_reply_survives_unread_input(secure: Secure, size: int) -> None:
    stream, peer = secure()
    await peer.send_all(b"request\n" + bytes(size))
    await stream.read_until(b"\n")
    stream.write(b"x" * 100_000)
    closing = asyncio.create_task(stream.aclose())
    assert await peer.receive_all() == b"x" * 100_000
    peer.close()
    await closing


@pytest.mark.gen_test
async def test_a_client_that_only_writes_and_closes_resets_nothing(reach: Connect) -> None:
    stream, end = reach()
    peer = await shake(end)
    await stream.wait_for_handshake()
    await stream.write(bytes(50_000))
    stream.close()  # with the server's tickets unread
    assert await peer.receive_all() == bytes(50_000)


@pytest.mark.parametrize("error", [RuntimeError("why"), FileNotFoundError(2, "why"), StreamClosedError()])
@pytest.mark.gen_test
async def test_close_with_an_error_of_the_users_own_says_goodbye(secure: Secure, error: Exception) -> None:
    stream, peer = secure()
    await stream.write(LINE)
    stream.close(error)
    assert stream.error is error
    assert await peer.receive_all() == LINE


@pytest.mark.gen_test
async def test_a_read_limit_ends_with_a_goodbye(secure: Secure) -> None:
    stream, peer = secure()
    peer.send(LINE)
    with pytest.raises(StreamClosedError):
        await stream.read_until(b"!", 5)
    assert await peer.receive_all() == b""


@pytest.mark.gen_test
async def test_abort_says_no_goodbye(secure: Secure) -> None:
    stream, peer = secure(socket.socketpair())
    await stream.write(LINE)
    stream.abort()
    with pytest.raises(Cut):
        await peer.receive_all()


@pytest.mark.gen_test
async def test_closing_after_the_loop_was_closed_is_harmless_in_the_middle_of_a_handshake(engine: str) -> None:
    def on_a_loop_of_its_own() -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        ours, theirs = socket.socketpair()
        io_loop = IOLoop.current()

        async def pending() -> SSLIOStream:
            plain = IOStream(ours)
            starting = plain.start_tls(False, tls_contexts()[1])
            starting.add_done_callback(lambda _: None)
            await asyncio.sleep(0)
            (stream,) = [each for each in gc.get_objects() if isinstance(each, SSLIOStream) and not each.closed()]
            return stream

        stream = io_loop.run_sync(pending)
        io_loop.close()
        stream.close()
        theirs.close()
        asyncio.set_event_loop(None)

    await asyncio.to_thread(on_a_loop_of_its_own)
    await asyncio.get_running_loop().shutdown_default_executor()


@pytest.mark.gen_test
async def test_a_stream_is_freed_without_the_garbage_collector_however_it_ended(
    secure: Secure, accept: Connect
) -> None:
    gone = []
    gc.collect()
    gc.disable()
    try:
        for how in ("close", "eof", "truncated", "broken"):
            ours, theirs = tcp_pair()
            stream, peer = tls_pair((ours, theirs))
            gone.append(weakref.ref(stream))
            if how == "close":
                stream.close()
            else:
                peer.send(LINE)
                if how == "eof":
                    peer.close()
                elif how == "truncated":
                    peer.end.drop()
                else:
                    peer.end.raw.send(b"this is no record")
                with contextlib.suppress(StreamClosedError):
                    await stream.read_bytes(100)
            assert stream.closed()
            peer.close()
            del stream, peer, ours, theirs
        await turns()
        assert [reference() for reference in gone] == [None] * 4
    finally:
        gc.enable()


# ---- start_tls


@contextlib.asynccontextmanager
async def plain_pair(**options: Any) -> AsyncIterator[tuple[IOStream, Peer]]:
    ours, theirs = tcp_pair()
    stream, peer = IOStream(ours, **options), Peer(theirs)
    try:
        yield stream, peer
    finally:
        stream.abort()
        peer.close()


@pytest.mark.gen_test
async def test_both_sides_change_to_tls_in_the_middle() -> None:
    ours, theirs = tcp_pair()
    server, client = IOStream(ours), IOStream(theirs)
    await server.write(b"220 ready\r\n")
    assert await client.read_until(b"\r\n") == b"220 ready\r\n"
    await client.write(b"STARTTLS\r\n")
    assert await server.read_until(b"\r\n") == b"STARTTLS\r\n"
    await server.write(b"220 go ahead\r\n")
    assert await client.read_until(b"\r\n") == b"220 go ahead\r\n"
    server_context, client_context = tls_contexts()
    one, other = await asyncio.gather(
        server.start_tls(True, server_context), client.start_tls(False, client_context, "localhost")
    )
    assert isinstance(one, SSLIOStream)
    assert server.closed()
    assert client.closed()
    await asyncio.gather(one.write(bytes(1_000_000)), other.read_bytes(1_000_000))
    await other.write(LINE)
    assert await one.read_until(b"\n") == LINE
    await asyncio.gather(one.aclose(), other.aclose())
    assert {one.close_reason, other.close_reason} <= {"local", "eof"}


@pytest.mark.gen_test
async def test_whatever_is_done_to_the_old_stream_does_not_reach_the_new_one() -> None:
    async with plain_pair() as (old, peer):
        starting = old.start_tls(True, tls_contexts()[0])
        end = TLSEnd(peer.socket, tls_contexts()[1])
        await shake(end)
        new = await starting
        old.abort()
        old.set_nodelay(True)
        await old.aclose()
        with pytest.raises(StreamClosedError):
            old.write(b"plain")
        assert old.get_fd_error() is None
        assert new.socket.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)
        assert not new.closed()
        new.abort()


@pytest.mark.gen_test
async def test_the_new_stream_has_what_the_old_one_had() -> None:
    async with plain_pair(
        max_buffer_size=12345, read_chunk_size=1000, max_write_buffer_size=5555, cork=False, allow_half_open=True
    ) as (stream, peer):
        stream.linger = 0.5
        stream.data["user"] = "me"
        number, address, data = stream.id, stream.remote_address, stream.data
        stream.proxy = proxy = object()
        starting = stream.start_tls(True, tls_contexts()[0])
        end = TLSEnd(peer.socket, tls_contexts()[1])
        await shake(end)
        new = await starting
        assert (new.id, new.remote_address, new.data, new.proxy) == (number, address, data, proxy)
        assert new.data is data
        assert (new.max_buffer_size, new.read_chunk_size, new.max_write_buffer_size) == (12345, 1000, 5555)
        assert (new.cork, new.allow_half_open, new.linger) == (False, True, 0.5)
        assert stream.fileno() == -1
        with pytest.raises(StreamClosedError):
            stream.write(b"x")
        with pytest.raises(StreamClosedError):
            stream.read_bytes(1)
        with pytest.raises(StreamClosedError):
            stream.start_tls(True, tls_contexts()[0])
        stream.close()
        stream.abort()
        assert not new.closed()
        new.close()


@pytest.mark.gen_test
async def test_the_close_callback_goes_with_the_connection() -> None:
    async with plain_pair() as (stream, peer):
        called: list[Any] = []
        stream.set_close_callback(lambda: called.append(new.close_reason))
        starting = stream.start_tls(True, tls_contexts()[0])
        end = TLSEnd(peer.socket, tls_contexts()[1])
        await shake(end)
        new = await starting
        await turns()
        assert called == []
        end.close()
        await eventually(lambda: called)
        assert called == ["eof"]


@pytest.mark.parametrize("arrives", ["before the call", "unread in the kernel", "in one piece with the hello"])
@pytest.mark.gen_test
async def test_plaintext_before_the_handshake_is_never_data(arrives: str) -> None:
    async with plain_pair() as (stream, peer):
        injected = b"RCPT TO: evil\r\n"
        if arrives == "before the call":
            peer.send(b"STARTTLS\r\n" + injected)
            assert await stream.read_until(b"\r\n") == b"STARTTLS\r\n"
            assert stream.buffered == len(injected)
        else:
            peer.send(b"STARTTLS\r\n")
            assert await stream.read_until(b"\r\n") == b"STARTTLS\r\n"
            peer.send(injected)
        end = TLSEnd(peer.socket, tls_contexts()[1])
        if arrives == "in one piece with the hello":
            end.handshake()
        starting = stream.start_tls(True, tls_contexts()[0])
        with contextlib.suppress(ConnectionError):
            end.handshake()
        with pytest.raises(ssl.SSLError):
            await starting


@pytest.mark.parametrize("split", [1, 5, 100, 10_000])
@pytest.mark.gen_test
async def test_a_hello_that_was_received_before_the_call_is_its_beginning(split: int) -> None:
    async with plain_pair() as (stream, peer):
        end = TLSEnd(peer.socket, tls_contexts()[1])
        with pytest.raises(ssl.SSLWantReadError):
            end.tls.do_handshake()
        hello = end._outgoing.read()
        peer.send(b"STARTTLS\r\n" + hello[:split])
        assert await stream.read_until(b"\r\n") == b"STARTTLS\r\n"
        starting = stream.start_tls(True, tls_contexts()[0])
        peer.socket.send(hello[split:])
        await shake(end)
        new = await starting
        end.send(LINE)
        assert await new.read_until(b"\n") == LINE
        new.close()


@pytest.mark.gen_test
async def test_a_stream_that_is_not_idle_is_refused_and_unharmed() -> None:
    async with plain_pair() as (stream, peer):
        reading = stream.read_until(b"\n")
        with pytest.raises(ValueError, match="not idle"):
            stream.start_tls(True, tls_contexts()[0])
        peer.send(LINE)
        assert await reading == LINE
        count = fill(stream)
        with pytest.raises(ValueError, match="not idle"):
            stream.start_tls(True, tls_contexts()[0])
        await peer.receive(count)
        await stream.drain()
        connecting = IOStream(socket.socket())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            future = connecting.connect(listener.getsockname())
            with pytest.raises(ValueError, match="not idle"):
                connecting.start_tls(False, tls_contexts()[1])
            await future
            connecting.close()
        assert not stream.closed()


@pytest.mark.gen_test
async def test_options_that_cannot_be_leave_the_stream_as_it_was() -> None:
    async with plain_pair() as (stream, peer):
        for options in (None, {"certfile": "/nowhere"}, {"unknown": 1}):
            with pytest.raises(OptionError):
                stream.start_tls(True, options)
        await stream.write(LINE)
        assert await peer.receive(len(LINE)) == LINE


@pytest.mark.gen_test
async def test_tls_in_tls_is_refused(secure: Secure) -> None:
    stream, peer = secure()
    with pytest.raises(ValueError, match=r"(?i)TLS"):
        stream.start_tls(True, tls_contexts()[0])
    await stream.write(LINE)
    assert await peer.receive(len(LINE)) == LINE


@pytest.mark.parametrize("how", ["cancel", "wait_for", "task"])
@pytest.mark.gen_test
async def test_a_cancelled_start_tls_closes_the_connection(how: str) -> None:
    async with plain_pair() as (stream, peer):
        if how == "cancel":
            starting = stream.start_tls(True, tls_contexts()[0])
            starting.cancel()
        elif how == "wait_for":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.start_tls(True, tls_contexts()[0]), 0.01)
        else:

            async def start() -> None:
                await stream.start_tls(True, tls_contexts()[0])

            task = asyncio.create_task(start())
            await turns()
            task.cancel()
            await asyncio.wait([task])
        assert await peer.receive_all() == b""


@pytest.mark.gen_test
async def test_what_was_corked_leaves_before_the_handshake() -> None:
    async with plain_pair() as (stream, peer):
        started: list[asyncio.Future[SSLIOStream]] = []

        async def handle() -> None:
            for _ in range(3):
                await stream.read_until(b"\n")
                stream.write(b"250 ok\r\n")
            await stream.read_until(b"\n")
            stream.write(b"220 go ahead\r\n")
            started.append(stream.start_tls(True, tls_contexts()[0]))

        handling = asyncio.create_task(handle())
        await turns()
        peer.send(b"one\ntwo\nthree\nSTARTTLS\n")
        await handling
        assert await peer.receive(38) == b"250 ok\r\n" * 3 + b"220 go ahead\r\n"
        await shake(TLSEnd(peer.socket, tls_contexts()[1]))
        (await started[0]).close()


# ---- servers


class Upgrading(TCPServer):
    """Says yes to STARTTLS, and then echoes until ``quit``."""

    streams_seen: list[IOStream]

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        self.streams_seen = [stream]
        await stream.read_until(b"\n")
        await stream.write(b"go ahead\n")
        stream = await stream.start_tls(True, tls_contexts()[0])
        self.streams_seen.append(stream)
        while (line := await stream.read_until(b"\n")) != b"quit\n":
            await stream.write(line)
        await stream.write(b"bye\n")


@pytest.fixture
def upgrading(io_loop: IOLoop) -> Iterator[Upgrading]:
    server = Upgrading()
    server.listen(0, "127.0.0.1")
    yield server
    server.stop()


@pytest.mark.gen_test
async def test_a_servers_stream_is_followed_through_start_tls_and_closed_when_its_handler_returns(
    upgrading: Upgrading,
) -> None:
    client = Peer(socket.create_connection(upgrading.addresses[0]))
    client.send(b"STARTTLS\n")
    assert await client.receive(9) == b"go ahead\n"
    end = TLSEnd(client.socket, tls_contexts()[1])
    peer = await shake(end)
    peer.send(LINE)
    assert await peer.receive(len(LINE)) == LINE
    plain, secured = upgrading.streams_seen
    assert list(upgrading.streams) == [secured]
    assert secured in upgrading.streams
    assert plain not in upgrading.streams
    assert upgrading.streams.get(plain.id) is secured
    peer.send(b"quit\n")
    assert await peer.receive_all() == b"bye\n"
    peer.close()
    await eventually(lambda: not len(upgrading.streams))
    assert secured.close_reason == "local"


@pytest.mark.gen_test
async def test_a_client_that_fails_start_tls_costs_no_traceback(
    upgrading: Upgrading, caplog: pytest.LogCaptureFixture
) -> None:
    client = Peer(socket.create_connection(upgrading.addresses[0]))
    client.send(b"STARTTLS\nplaintext\n")
    assert await client.receive(9) == b"go ahead\n"
    await eventually(lambda: not len(upgrading.streams))
    client.close()
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.gen_test
async def test_close_all_connections_ends_what_shakes_hands_and_no_handler_begins(upgrading: Upgrading) -> None:
    handled: list[IOStream] = []

    async def handle(stream: IOStream, address: Any) -> None:
        handled.append(stream)
        await asyncio.sleep(100)

    server = TCPServer(tls_contexts()[0])
    server.handle_stream = handle  # type: ignore[method-assign, assignment]
    server.listen(0, "127.0.0.1")
    silent = Peer(socket.create_connection(server.addresses[0]))
    end = TLSEnd(socket.create_connection(server.addresses[0]), tls_contexts()[1])
    await eventually(lambda: len(server.streams) == 2)
    end.handshake()
    while not end.handshake():
        await asyncio.sleep(0)
    stream = next(each for each in server.streams if each.remote_address == end.raw.getsockname())
    if not handled:
        stream._dispatch_now(hub.READABLE)  # the handshake is done, and its handler about to begin
    await server.close_all_connections()
    await turns()
    assert all(each.closed() for each in handled)
    assert not core_of(server).connections.handling
    assert len(server.streams) == 0
    silent.close()
    end.drop()
    server.stop()


@pytest.mark.gen_test
async def test_a_silent_and_a_dripping_handshake_are_closed_after_their_time(clock: MockClock | None) -> None:
    served: list[IOStream] = []
    server = TCPServer(tls_contexts()[0], handshake_timeout=1.0 if clock is None else 30.0)
    server.handle_stream = lambda stream, address: served.append(stream)  # type: ignore[method-assign, assignment]
    server.listen(0, "127.0.0.1")
    silent, dripping = (Peer(socket.create_connection(server.addresses[0])) for _ in range(2))
    dripping.send(b"\x16\x03\x01\x02\x00\x01")
    await eventually(lambda: len(server.streams) == 2)
    streams = list(server.streams)
    assert await silent.receive_all() == b""
    assert await dripping.receive_all() == b""
    assert [stream.close_reason for stream in streams] == ["handshake_timeout"] * 2
    await eventually(lambda: not len(server.streams))
    assert served == []
    silent.close()
    dripping.close()
    server.stop()


@pytest.mark.parametrize("seconds", [0.05, 30.0])
@pytest.mark.gen_test
async def test_start_tls_in_a_handler_has_the_handshake_timeout_of_the_server(
    clock: MockClock | None, seconds: float
) -> None:
    if clock is None and seconds > 1:
        pytest.skip("here time is real")
    ended: asyncio.Future[tuple[float, Any]] = asyncio.get_running_loop().create_future()

    async def handle(stream: IOStream, address: Any) -> None:
        time = asyncio.get_running_loop().time
        began = time()
        try:
            await stream.start_tls(True, tls_contexts()[0])
        except StreamClosedError as error:
            ended.set_result((time() - began, error.reason))

    server = TCPServer(handshake_timeout=seconds)
    server.handle_stream = handle  # type: ignore[method-assign, assignment]
    server.listen(0, "127.0.0.1")
    silent = Peer(socket.create_connection(server.addresses[0]))
    took, reason = await ended
    assert seconds * 0.9 < took < seconds + 1  # uvloop counts in milliseconds
    assert reason == "handshake_timeout"
    silent.close()
    server.stop()


@pytest.mark.gen_test
async def test_start_tls_without_a_server_has_ten_seconds_or_its_own_timeout(clock: MockClock | None) -> None:
    if clock is None:
        pytest.skip("here time is real")
    ours, theirs = tcp_pair()
    handshake = IOStream(ours).start_tls(True, tls_contexts()[0])
    others = [tcp_pair() for _ in range(2)]
    longer, unlimited = (
        IOStream(pair[0]).start_tls(True, tls_contexts()[0], timeout=timeout)
        for pair, timeout in zip(others, (20.0, None), strict=True)
    )
    await clock.jump(9.9)
    assert not handshake.done()
    await clock.jump(0.2)
    assert cast(StreamClosedError, handshake.exception()).reason == "handshake_timeout"
    assert not longer.done()
    await clock.jump(10)
    assert cast(StreamClosedError, longer.exception()).reason == "handshake_timeout"
    await clock.jump(100_000)
    assert not unlimited.done()
    unlimited.cancel()
    for sock in (theirs, *(pair[1] for pair in others)):
        sock.close()


@pytest.mark.gen_test
async def test_a_handler_begins_after_the_handshake_and_outlives_its_timeout(clock: MockClock | None) -> None:
    seconds = 2.0 if clock is None else 30.0  # the handshake takes real time
    shaken: list[bool] = []

    async def handle(stream: SSLIOStream, address: Any) -> None:
        shaken.append(stream.wait_for_handshake().done())
        await echo(stream, address)

    server = TCPServer(tls_contexts()[0], handshake_timeout=seconds)
    server.handle_stream = handle  # type: ignore[method-assign, assignment]
    server.listen(0, "127.0.0.1")
    end = TLSEnd(socket.create_connection(server.addresses[0]), tls_contexts()[1])
    peer = await shake(end)
    peer.send(LINE)
    assert await peer.receive(len(LINE)) == LINE
    await asyncio.sleep(1.5 * seconds)
    peer.send(LINE)
    assert await peer.receive(len(LINE)) == LINE
    assert shaken == [True]
    peer.close()
    await eventually(lambda: not len(server.streams))
    server.stop()


@pytest.mark.parametrize("size", [100, 1_000, 30_000, 100_000])
@pytest.mark.gen_test
async def test_what_is_queued_behind_a_record_that_waits_is_sent_once_and_in_order(secure: Secure, size: int) -> None:
    sockets = socket.socketpair()
    sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    stream, peer = secure(sockets)
    pieces = [bytes([number % 251]) * size for number in range(800_000 // size)]
    receiving = asyncio.create_task(peer.receive(len(pieces) * size))
    for number, piece in enumerate(pieces):
        stream.write(piece)
        if number % 7 == 0:
            await turns(1)
    assert await receiving == b"".join(pieces)


class Counting(socket.socket):
    """Counts the receives, and those that find nothing."""

    receives = empty = 0

    def recv(self, *args: Any) -> bytes:
        self.receives += 1
        try:
            return super().recv(*args)
        except BlockingIOError:
            self.empty += 1
            raise


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.gen_test
async def test_a_handshake_receives_once_for_each_flight(version: ssl.TLSVersion) -> None:
    ours, theirs = tcp_pair()
    counting = Counting(fileno=ours.detach())
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode, client.maximum_version = False, ssl.CERT_NONE, version
    end = TLSEnd(theirs, client)
    end.handshake()
    future = IOStream(counting).start_tls(True, tls_contexts()[0])
    await eventually(lambda: end.handshake() and future.done())
    stream = await future
    assert (counting.receives, counting.empty) == (2, 0)
    reading = stream.read_until(b"\n")
    # With 1.3 the client has the last flight, and its first message may follow at once. Without epoll each read tries.
    assert counting.empty == (version is ssl.TLSVersion.TLSv1_3 or not stream._reads_watched)
    end.send(LINE)
    assert await reading == LINE
    await stream.write(LINE)
    assert end.recv(100) == LINE
    reading = stream.read_until(b"\n")
    receives = counting.receives
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(StreamClosedError):
        await reading
    assert counting.receives == receives + 1, "behind EOF there are no bytes that a close must discard"
    theirs.close()


@pytest.mark.gen_test
async def test_a_server_that_greets_before_the_handshake_is_noticed_at_once() -> None:
    """Its greeting and the end of the connect may be one event."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = SSLIOStream(socket.socket(), ssl_options=tls_contexts()[1])
        future = stream.connect(listener.getsockname())
        server, _ = listener.accept()
        server.send(b"220 mail.example.org ESMTP\r\n")
        with pytest.raises(ssl.SSLError):
            await asyncio.wait_for(future, PATIENCE)
        server.close()
