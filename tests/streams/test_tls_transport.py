"""`iostreamsrv.streams.transports.tls`: TLS on a socket, without a loop and without a stream."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv.certificates import Certificates, client_context, self_signed
from iostreamsrv.errors import CloseReason
from iostreamsrv.sansio.tls import BULK, RECORD
from iostreamsrv.streams.file_region import FileRegion
from iostreamsrv.streams.transports.socket import SocketTransport
from iostreamsrv.streams.transports.tls import CIPHERTEXT, PLAINTEXT, TLSTransport

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
Pair = tuple[TLSTransport, TLSTransport]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return Certificates(self_signed().write(tmp_path_factory.mktemp("keys"))).context


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two that are connected, with little room between them."""
    pair = socket.socketpair()
    for end in pair:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    yield pair
    for end in pair:
        end.close()


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def fresh(
    request: pytest.FixtureRequest, context: ssl.SSLContext, sockets: tuple[socket.socket, socket.socket]
) -> Pair:
    """A server's end and a client's, their handshake still to be done."""
    trusting = client_context({"cert_reqs": ssl.CERT_NONE})
    trusting.maximum_version = request.param
    ours, theirs = map(SocketTransport, sockets)
    return TLSTransport(ours, context, True), TLSTransport(theirs, trusting, False)


@pytest.fixture
def pair(fresh: Pair) -> Pair:
    """A server's end and a client's, their handshake done."""
    shake_hands(*fresh)
    return fresh


def shake_hands(*ends: TLSTransport) -> None:
    while not all(end.handshaken for end in ends):
        for end in ends:
            if not end.handshake():
                try:
                    end.receive_handshake()
                except BlockingIOError:
                    pass


def receive(end: TLSTransport, count: int) -> bytes:
    received = b""
    while len(received) < count:
        try:
            received += end.recv(count - len(received))
        except BlockingIOError:
            assert end.incomplete, "there is nothing more to come"
    return received


def test_what_one_end_sends_the_other_receives(pair: Pair) -> None:
    for source, target in (pair, pair[::-1]):
        assert source.send(b"hello") == 5
        assert receive(target, 5) == b"hello"


def test_with_nothing_there_a_receive_would_block_and_says_that_nothing_came(pair: Pair) -> None:
    server, _ = pair
    with pytest.raises(BlockingIOError):
        server.recv(1)
    assert not server.incomplete
    assert not server.pending()


def test_a_part_of_a_record_is_incomplete_and_counts_as_partial(
    pair: Pair, sockets: tuple[socket.socket, socket.socket]
) -> None:
    server, client = pair
    client.engine.write(b"hello")
    record = client.engine.take_outgoing()
    sockets[1].send(record[:-1])
    with pytest.raises(BlockingIOError):
        server.recv(100)
    assert server.incomplete
    assert server.partial() == len(record) - 1
    sockets[1].send(record[-1:])
    assert server.recv(100) == b"hello"
    assert server.partial() == 0


def test_a_record_larger_than_the_receive_is_pending(pair: Pair) -> None:
    server, client = pair
    client.send(b"hello")
    assert server.recv(2) == b"he"
    assert server.pending()
    assert server.has_input()
    assert server.recv(100) == b"llo"
    assert server.pending(), "the socket was not asked"
    with pytest.raises(BlockingIOError):
        server.recv(100)
    assert not server.pending()


class Counting(socket.socket):
    """Counts the receives into a buffer."""

    receives = 0

    def recv_into(self, *args: Any) -> int:
        self.receives += 1
        return super().recv_into(*args)


def counted(sock: socket.socket) -> Counting:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return Counting(fileno=sock.detach())


def test_a_receive_into_a_large_buffer_takes_many_records_at_once(
    context: ssl.SSLContext, sockets: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = map(counted, sockets)
    server = TLSTransport(SocketTransport(ours), context, True)
    client = TLSTransport(SocketTransport(theirs), client_context({"cert_reqs": ssl.CERT_NONE}), False)
    shake_hands(server, client)
    said = bytes(range(256)) * 2048
    for _ in range(BULK // len(said) + 2):
        ours.receives = sent = filled = 0
        space = memoryview(bytearray(len(said)))
        while filled < len(said):
            sent += client.send(said[sent:]) if sent < len(said) else 0
            with contextlib.suppress(BlockingIOError):
                filled += server.recv_into(space[filled:])
        assert space == said
    assert ours.receives <= len(said) // CIPHERTEXT - 2
    ours.close()
    theirs.close()


def test_connections_that_receive_into_the_same_memory_do_not_mix(context: ssl.SSLContext) -> None:
    all_sockets = [socket.socketpair() for _ in range(2)]
    ends = []
    for pair_ in all_sockets:
        for end in pair_:
            end.setblocking(False)
        ours, theirs = map(SocketTransport, pair_)
        trusting = client_context({"cert_reqs": ssl.CERT_NONE})
        ends.append((TLSTransport(ours, context, True), TLSTransport(theirs, trusting, False)))
        shake_hands(*ends[-1])
    heard = [b"", b""]
    for number, (_, client) in enumerate(ends):
        client.send(bytes([number]) * 40_000)
    while min(map(len, heard)) < 40_000:
        for number, (server, _) in enumerate(ends):
            space = bytearray(1000)
            with contextlib.suppress(BlockingIOError):
                heard[number] += space[: server.recv_into(space)]
    assert heard == [bytes(40_000), b"\1" * 40_000]
    for pair_ in all_sockets:
        for end in pair_:
            end.close()


def test_what_was_received_before_tls_began_is_the_start_of_the_handshake(
    context: ssl.SSLContext, sockets: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = map(SocketTransport, sockets)
    client = TLSTransport(theirs, client_context({"cert_reqs": ssl.CERT_NONE}), False)
    assert not client.handshake()
    server = TLSTransport(ours, context, True, None, ours.recv(65536))
    shake_hands(server, client)
    client.send(b"hello")
    assert receive(server, 5) == b"hello"


def test_a_failed_handshake_tells_the_peer_why(
    context: ssl.SSLContext, sockets: tuple[socket.socket, socket.socket]
) -> None:
    server = TLSTransport(SocketTransport(sockets[0]), context, True)
    sockets[1].send(b"GET / HTTP/1.1\r\n\r\n")
    server.receive_handshake()
    with pytest.raises(ssl.SSLError, match="HTTP_REQUEST"):
        server.handshake()
    assert not server.handshaken


def test_a_handshake_ends_with_the_connection(fresh: Pair, sockets: tuple[socket.socket, socket.socket]) -> None:
    sockets[1].close()
    with pytest.raises(EOFError):
        fresh[0].receive_handshake()


def test_without_room_a_send_counts_nothing_and_commits_to_what_it_has_encrypted(pair: Pair) -> None:
    server, client = pair
    data = bytes(range(256)) * 4096
    sent = server.send(data)
    assert sent < len(data)
    assert 0 < server.committed() <= PLAINTEXT
    assert server.own_output() == 0, "it is what was written"
    assert server.send(data[sent:]) == 0
    received = b""
    while len(received) < len(data):
        try:
            received += client.recv(RECORD)
        except BlockingIOError:
            sent += server.send(data[sent:])
    assert received == data
    assert sent == len(data)
    assert server.committed() == 0
    assert server.untaken() == server.below.untaken()


def test_what_was_encrypted_of_a_file_leaves_even_if_the_file_becomes_shorter(pair: Pair, tmp_path: Path) -> None:
    server, client = pair
    path = tmp_path / "file"
    path.write_bytes(b"x" * (1 << 20))
    with path.open("r+b") as file:
        region = FileRegion(file)
        while sent := server.sendfile(region, 65536):
            region.advance(sent)
        committed = server.committed()
        assert committed
        file.truncate(0)
        received = b""
        while server.committed():
            try:
                received += client.recv(RECORD)
            except BlockingIOError:
                region.advance(server.sendfile(region, 65536) or 0)
        assert server.sendfile(region, 65536) is None, "of the rest there is nothing any more"
    assert received == b"x" * len(received)


def test_a_close_notify_is_an_orderly_end(pair: Pair) -> None:
    server, client = pair
    client.send(b"last")
    assert client.shutdown_write()
    assert receive(server, 4) == b"last"
    assert server.recv(1) == b""
    assert server.eof_reason() is CloseReason.EOF


def test_an_end_without_close_notify_is_truncated(pair: Pair) -> None:
    server, client = pair
    client.send(b"last")
    client.below.close()
    assert receive(server, 4) == b"last"
    assert server.recv(1) == b""
    assert server.eof_reason() is CloseReason.TRUNCATED


@pytest.mark.parametrize("how", ["reset", "leave_silently"])
def test_after_a_silent_end_there_is_no_close_notify(pair: Pair, how: str) -> None:
    server, client = pair
    getattr(client, how)()
    assert client.send_close_notify(), "there is nothing to be sent"
    client.close()
    assert server.recv(1) == b""
    assert server.eof_reason() is CloseReason.TRUNCATED


def test_before_the_handshake_there_is_nothing_to_notify(
    fresh: Pair, sockets: tuple[socket.socket, socket.socket]
) -> None:
    assert fresh[0].send_close_notify()
    with pytest.raises(BlockingIOError):
        sockets[1].recv(1)


def test_answers_without_room_are_the_transports_own_output(
    pair: Pair, sockets: tuple[socket.socket, socket.socket]
) -> None:
    server, client = pair
    server.send(b"hello")  # with the session tickets, which wait for the first output
    assert receive(client, 5) == b"hello"
    while True:  # until there is no room at all
        try:
            sockets[0].send(bytes(100))
        except BlockingIOError:
            break
    answer = b"as OpenSSL would answer to a new key"
    server.engine.outgoing.write(answer)
    server.engine.may_answer = True
    with pytest.raises(BlockingIOError):
        server.recv(1)
    assert server.stuck
    assert server.own_output() == len(answer)
    assert server.committed() == 0
    assert not server.flush()
    sockets[1].recv(1 << 20)
    assert server.flush()
    assert server.own_output() == 0
