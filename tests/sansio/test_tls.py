"""TLS in memory: two engines, and what goes from one to the other."""

import ssl
import sys
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv.certificates import Certificates, client_context, self_signed
from iostreamsrv.sansio import tls
from iostreamsrv.sansio.tls import BULK, HEADER, INPUT_PIECE, MOST_EMPTY, PIECE, RECORD, WORK, TLSEngine, Truncated
from tests.support.tls_records import Records

UNVERIFIED = {"cert_reqs": ssl.CERT_NONE}
HTTP = b"GET / HTTP/1.1\r\n\r\n"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return Certificates(self_signed().write(tmp_path_factory.mktemp("keys"))).context


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def pair(request: pytest.FixtureRequest, context: ssl.SSLContext) -> tuple[TLSEngine, TLSEngine]:
    """A server's engine and a client's, their handshake done."""
    client = client_context(UNVERIFIED)
    client.maximum_version = request.param
    server_engine, client_engine = TLSEngine(context, True), TLSEngine(client, False)
    shake_hands(server_engine, client_engine)
    return server_engine, client_engine


def shake_hands(server: TLSEngine, client: TLSEngine) -> None:
    done = False
    while not done:
        done = client.handshake()
        carry(client, server)
        done = server.handshake() and done
        carry(server, client)


def carry(source: TLSEngine, target: TLSEngine) -> int:
    """Take what one has for the other to it; how many bytes."""
    ciphertext = source.take_outgoing()
    target.feed(ciphertext)
    return len(ciphertext)


def broken_record(source: TLSEngine) -> bytes:
    """A record of data whose last bit was changed on its way."""
    source.write(b"hello")
    record = bytearray(source.take_outgoing())
    record[-1] ^= 1
    return bytes(record)


def test_what_is_written_is_read(pair: tuple[TLSEngine, TLSEngine]) -> None:
    for source, target in (pair, pair[::-1]):
        source.write(b"hello")
        assert source.outgoing.pending
        carry(source, target)
        assert not source.outgoing.pending
        assert target.has_input
        assert target.read(100) == b"hello"
        assert target.read(100) is None
        assert not target.has_input


def test_nothing_that_is_written_is_nothing_to_send(pair: tuple[TLSEngine, TLSEngine]) -> None:
    client = pair[1]
    client.take_outgoing()
    client.write(b"")
    assert not client.outgoing.pending


def test_many_records_are_read_at_once_and_no_more_than_is_wanted(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    data = bytes(range(256)) * 400
    client.write(bytearray(data))
    carry(client, server)
    assert server.read(70_000) == data[:70_000]
    assert server.read(10) == data[70_000:70_010]
    assert server.read(1 << 20) == data[70_010:]


def test_ciphertext_may_come_byte_by_byte(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    client.write(memoryview(b"hello"))
    *ciphertext, last = client.take_outgoing()
    for byte in ciphertext:
        server.feed(bytes([byte]))
        assert server.read(100) is None
    server.feed(bytes([last]))
    assert server.read(100) == b"hello"


def test_a_handshake_may_come_byte_by_byte(context: ssl.SSLContext) -> None:
    server, client = TLSEngine(context, True), TLSEngine(client_context(UNVERIFIED), False)
    done = False
    while not done:
        done = client.handshake()
        for byte in client.take_outgoing():
            server.feed(bytes([byte]))
            if server.handshake():
                done = True
        carry(server, client)
    assert client.handshake()


def test_an_end_behind_data_is_read_after_it_and_again(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    client.write(b"last words")
    client.close()
    carry(client, server)
    assert server.read(100) == b"last words"
    assert server.has_input
    assert server.read(100) == b""
    assert server.read(100) == b""


def test_a_cut_is_told_from_an_end_and_again(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    client.write(b"last words")
    carry(client, server)
    server.feed_end()
    assert server.read(100) == b"last words"
    for _ in range(2):
        with pytest.raises(Truncated):
            server.read(100)


def test_after_a_cut_this_side_still_sends(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    server.feed_end()
    with pytest.raises(Truncated):
        server.read(1)
    server.write(b"reply")
    server.close()
    carry(server, client)
    assert client.read(100) == b"reply"
    assert client.read(100) == b""


def test_a_record_that_is_cut_is_a_cut(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    client.write(b"last words")
    server.feed(client.take_outgoing()[:-1])
    server.feed_end()
    with pytest.raises(Truncated):
        server.read(100)


def test_a_broken_record_is_an_error_behind_what_came_before_and_again(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    client.write(b"fine")
    carry(client, server)
    server.feed(b"\x17\x03\x03\x00\x20" + b"z" * 32)
    assert server.read(100) == b"fine"
    for _ in range(2):
        with pytest.raises(ssl.SSLError, match=r"(?i)mac"):
            server.read(100)
    server.close()  # there is nothing that could be told


def test_a_close_leaves_what_the_peer_has_sent_and_sends(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    client.write(b"x" * 50_000)
    carry(client, server)
    server.close()
    carry(server, client)
    assert client.read(100) == b""
    client.write(b"later")
    carry(client, server)
    assert server.read(10) == b"x" * 10
    assert server.read(1 << 20) + (server.read(1 << 20) or b"") == b"x" * 49_990 + b"later"
    client.close()
    carry(client, server)
    assert server.read(100) == b""


def into(engine: TLSEngine, size: int) -> bytes | None:
    """What `TLSEngine.read_into` puts into a buffer of this size."""
    space = bytearray(size)
    with memoryview(space) as view:
        count = engine.read_into(view)
    return None if count is None else bytes(space[:count])


def test_a_read_into_a_buffer_gives_what_a_read_gives(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    assert into(server, 100) is None, "there is nothing yet"
    said = bytes(range(256)) * 200
    client.write(said)
    carry(client, server)
    heard = into(server, 10) or b""
    while server.has_input:
        heard += into(server, 30_000) or b""
    assert heard == said
    client.write(b"last words")
    client.close()
    carry(client, server)
    assert [into(server, 100), into(server, 100), into(server, 100)] == [b"last words", b"", b""]


def test_a_read_into_a_buffer_raises_what_a_read_raises(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    client.write(b"fine")
    carry(client, server)
    server.feed(b"\x17\x03\x03\x00\x20" + b"z" * 32)
    assert into(server, 100) == b"fine"
    for _ in range(2):
        with pytest.raises(ssl.SSLError, match=r"(?i)mac"):
            into(server, 100)
    client.feed_end()
    with pytest.raises(Truncated):
        into(client, 100)


def test_a_read_into_a_buffer_gives_what_a_close_has_kept(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    client.write(b"x" * 50_000)
    carry(client, server)
    assert into(server, 10) == b"x" * 10
    server.close()
    heard = b""
    while server.has_input or len(heard) < 49_990:
        heard += into(server, 20_000) or b""
    assert heard == b"x" * 49_990


def test_a_read_into_a_buffer_does_no_more_at_once_than_a_read(context: ssl.SSLContext) -> None:
    server, client = with_tickets(context, MOST_EMPTY)
    server.write(b"hello")
    carry(server, client)
    assert into(client, 100) is None  # that was enough for once
    heard = b""
    while client.has_input:
        heard += into(client, 100) or b""
    assert heard == b"hello"


def test_a_close_without_a_handshake_says_nothing(context: ssl.SSLContext) -> None:
    engine = TLSEngine(context, True)
    engine.close()
    assert engine.take_outgoing() == b""


def test_what_is_not_tls_fails_the_handshake(context: ssl.SSLContext) -> None:
    engine = TLSEngine(context, True)
    engine.feed(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(ssl.SSLError):
        engine.handshake()


def test_a_name_that_is_not_ascii_fails_the_handshake_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: Any = {"sni": {"example.org": self_signed("example.org").write(tmp_path / "org")}}
    context = Certificates({**self_signed().write(tmp_path / "own"), **names}).context
    server, client = TLSEngine(context, True), TLSEngine(client_context(UNVERIFIED), False, "example.org")
    client.handshake()
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    server.feed(client.take_outgoing().replace(b"example.org", b"ex\xe4mple.org"))
    with pytest.raises(ssl.SSLError):
        server.handshake()
    assert said == []


def test_other_trouble_in_a_callback_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    context.sni_callback = broken
    server, client = TLSEngine(context, True), TLSEngine(client_context(UNVERIFIED), False, "example.org")
    client.handshake()
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    carry(client, server)
    with pytest.raises(ssl.SSLError):
        server.handshake()
    assert [type(unraisable.exc_value) for unraisable in said] == [ZeroDivisionError]


# ---- how much is done at once


def test_a_read_works_off_a_bounded_number_of_records(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    for _ in range(2 * WORK + 1):
        client.write(b"x")
    carry(client, server)
    for count in (WORK, WORK, 1):
        assert server.has_input
        assert server.read(1 << 20) == b"x" * count
    assert server.read(1 << 20) is None
    assert not server.has_input


def test_what_comes_while_records_wait_comes_behind_them(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    client.write(b"first")
    client.write(b"second")
    carry(client, server)
    assert server.read(5) == b"first"
    client.write(b"third")
    carry(client, server)
    assert server.read(100) == b"secondthird"
    assert server.undecrypted == 0


def test_a_part_of_a_record_is_undecrypted_and_no_input(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    client.write(b"x" * 1000)
    ciphertext = client.take_outgoing()
    for came in (3, 5, 900):
        server.feed(ciphertext[server.undecrypted : came])
        assert server.read(100) is None
        assert not server.has_input
        assert server.undecrypted == came
    server.feed(ciphertext[900:])
    assert server.read(2000) == b"x" * 1000


def test_what_can_be_no_record_is_an_error_before_all_of_it_has_come(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server = pair[0]
    server.feed(HTTP)
    with pytest.raises(ssl.SSLError):
        server.read(100)


def test_many_renegotiations_in_one_record_are_an_error_before_any_is_answered(
    pair: tuple[TLSEngine, TLSEngine],
) -> None:
    server = pair[0]
    server.feed(b"\x16\x03\x03\x10\0")
    with pytest.raises(ssl.SSLError):
        server.read(100)


def test_a_handshake_works_off_a_bounded_number_of_records(context: ssl.SSLContext) -> None:
    server, client = TLSEngine(context, True), TLSEngine(client_context(UNVERIFIED), False)
    client.handshake()
    hello = client.take_outgoing()[5:]
    server.feed(b"".join(b"\x16\x03\x01\0\1" + hello[at : at + 1] for at in range(len(hello))))
    calls = 0
    while server.has_input:
        assert not server.outgoing.pending
        assert not server.handshake()
        calls += 1
    assert calls >= len(hello) // WORK
    carry(server, client)
    assert client.handshake()


# ---- one whole record, and nothing else


def test_one_record_is_decrypted_in_one_call(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    assert read_all(server) == b""
    for said in (b"hello", b"x" * 4000):
        client.write(said)
        assert server.decrypt(client.take_outgoing(), 5000) == said
        assert not server.has_input


def test_what_is_left_of_one_record_is_read_later(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    for size in (3, 5):
        client.write(b"hello")
        assert server.decrypt(client.take_outgoing(), size) == b"hello"[:size]
        assert server.has_input == (size < 5)
        assert read_all(server) == b"hello"[size:]


def test_anything_but_one_record_is_decrypted_as_well(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    client.write(b"hello")
    ciphertext = client.take_outgoing()
    assert server.decrypt(ciphertext[:20], 100) is None
    assert server.decrypt(ciphertext[20:], 100) == b"hello"
    client.write(b"one")
    client.write(b"two")
    assert server.decrypt(client.take_outgoing(), 100) == b"onetwo"
    client.write(b"x" * 20_000)
    assert (server.decrypt(client.take_outgoing(), 100) or b"") + read_all(server) == b"x" * 20_000


def test_one_record_may_be_an_end(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    client.close()
    assert server.decrypt(client.take_outgoing(), 100) == b""
    assert server.has_input
    assert server.read(100) == b""


def test_one_broken_record_is_an_error_and_again(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    with pytest.raises(ssl.SSLError, match=r"(?i)mac"):
        server.decrypt(broken_record(client), 100)
    with pytest.raises(ssl.SSLError, match=r"(?i)mac"):
        server.read(100)


def test_one_record_may_bring_nothing(context: ssl.SSLContext) -> None:
    server, client = with_tickets(context, 1)
    assert client.read(100) is None
    server.write(b"hello")
    ciphertext = server.take_outgoing()
    ticket = HEADER + lengths_of_records(ciphertext)[0]
    assert client.decrypt(ciphertext[:ticket], 100) is None
    assert client.decrypt(ciphertext[ticket:], 100) == b"hello"


# ---- long messages


def lengths_of_records(ciphertext: bytes) -> list[int]:
    lengths = []
    at = 0
    while at < len(ciphertext):
        lengths.append(int.from_bytes(ciphertext[at + 3 : at + HEADER]))
        at += HEADER + lengths[-1]
    return lengths


def test_records_are_small_until_much_has_been_moved(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    said = bytes(range(256)) * 256
    heard, lengths = b"", []
    for _ in range(2 * BULK // len(said)):
        client.write(said)
        ciphertext = client.take_outgoing()
        lengths.append(max(lengths_of_records(ciphertext)))
        server.feed(ciphertext)
        heard += read_all(server, len(said))
    assert heard == said * (2 * BULK // len(said))
    assert PIECE < lengths[0] < PIECE + 100
    assert lengths[BULK // len(said) - 1] == lengths[0]
    assert RECORD < lengths[BULK // len(said)] == lengths[-1]


def move_much(source: TLSEngine, target: TLSEngine, bulk: int = BULK) -> None:
    """Move so much that both take and give whole records from here on."""
    for _ in range(bulk // 65_536 + 1):
        source.write(bytes(65_536))
        carry(source, target)
        read_all(target)


@pytest.mark.parametrize("size", [10_000, RECORD, 50_000, 300_000])
@pytest.mark.parametrize("step", [5000, RECORD, 65_000, 1 << 20])
def test_long_records_are_read_into_a_buffer_however_they_arrive(
    pair: tuple[TLSEngine, TLSEngine], monkeypatch: pytest.MonkeyPatch, step: int, size: int
) -> None:
    server, client = pair
    monkeypatch.setattr(tls, "BULK", 65_536)  # to move 4 MiB takes a quarter of a second
    move_much(client, server, tls.BULK)
    said = bytes(range(256)) * 1000
    client.write(said[:200_000])
    client.write(said[200_000:])
    client.write(b"last words")
    client.close()
    ciphertext, heard = client.take_outgoing(), b""
    for at in range(0, len(ciphertext), step):
        server.feed(ciphertext[at : at + step])
        while server.has_input and len(heard) < len(said) + 10:
            heard += into(server, size) or b""
    assert heard == said + b"last words"
    assert into(server, size) == b""


def test_a_long_record_that_is_broken_is_noticed_behind_those_before_it(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    move_much(client, server)
    said = bytes(range(256)) * 100
    client.write(said)
    client.write(bytes(RECORD))
    ciphertext = bytearray(client.take_outgoing())
    ciphertext[-1] ^= 1
    server.feed(ciphertext)
    assert into(server, 100_000) == said
    for _ in range(2):
        with pytest.raises(ssl.SSLError, match=r"(?i)mac"):
            into(server, 100_000)


def test_long_records_without_data_are_as_much_work_as_they_are_long(context: ssl.SSLContext) -> None:
    server, client = TLSEngine(context, True), Records()
    ciphertext, done = client.shake_hands()
    while not done:
        server.feed(ciphertext)
        server.handshake()
        ciphertext, done = client.shake_hands(server.take_outgoing())
    server.feed(ciphertext)
    assert server.handshake()
    client.end_handshake()
    for _ in range(BULK // RECORD + 1):  # until it takes whole records
        server.feed(client.record(bytes(RECORD)))
        assert into(server, RECORD) == bytes(RECORD)
    padding = b"\x17" + bytes(10_000)
    server.feed(b"".join([client.record(b"x" * RECORD), *(client.record(padding, 0) for _ in range(MOST_EMPTY + 1))]))
    assert into(server, 100_000) == b"x" * RECORD
    nothing = 0
    with pytest.raises(ssl.SSLError, match=r"bring no data|(?i:too small)"):  # OpenSSL has the same limit
        while into(server, 100_000) is None and server.has_input:
            nothing += 1
    assert nothing >= MOST_EMPTY - 1, "one of them is enough for one call"


def test_what_was_fed_from_memory_that_is_used_again_is_kept(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    said = bytes(range(256)) * 200
    client.write(said)
    memory = bytearray(client.take_outgoing())
    with memoryview(memory) as view:
        server.feed(view)
        heard = into(server, 10) or b""
        server.copy_input()
    memory[:] = bytes(len(memory))
    while server.has_input:
        heard += into(server, 1000) or b""
    assert heard == said
    server.copy_input()
    assert not server.undecrypted


@pytest.mark.parametrize("step", [1000, INPUT_PIECE, 3000, 9000, 65_000])
def test_long_records_are_taken_piece_by_piece(pair: tuple[TLSEngine, TLSEngine], step: int) -> None:
    server, client = pair
    said = bytes(range(256)) * 256
    for at in range(0, len(said), RECORD):
        client.object.write(said[at : at + RECORD])
    ciphertext = client.take_outgoing()
    assert max(lengths_of_records(ciphertext)) > RECORD
    heard = b""
    for at in range(0, len(ciphertext), step):
        server.feed(ciphertext[at : at + step])
        heard += read_all(server)
        assert server._incoming.pending <= INPUT_PIECE
    assert heard == said
    assert server.undecrypted == 0


# ---- records that bring nothing


def with_tickets(context: ssl.SSLContext, count: int) -> tuple[TLSEngine, TLSEngine]:
    """A pair whose server sends so many tickets, each of which is a record."""
    before, context.num_tickets = context.num_tickets, count
    try:
        pair = TLSEngine(context, True), TLSEngine(client_context(UNVERIFIED), False)
        shake_hands(*pair)
    finally:
        context.num_tickets = before
    return pair


def read_all(engine: TLSEngine, most: int = 100) -> bytes:
    """What it has, ``most`` bytes at a time."""
    read = b""
    while engine.has_input:
        read += engine.read(most) or b""
    return read


def test_32_records_may_bring_nothing(context: ssl.SSLContext) -> None:
    server, client = with_tickets(context, MOST_EMPTY)
    server.write(b"hello")
    carry(server, client)
    assert client.read(100) is None  # that was enough for once
    assert read_all(client) == b"hello"


def test_more_records_that_bring_nothing_are_an_error_and_an_alert(context: ssl.SSLContext) -> None:
    server, client = with_tickets(context, MOST_EMPTY + 1)
    server.write(b"hello")
    carry(server, client)
    with pytest.raises(ssl.SSLError, match="more than 32 records in a row"):
        read_all(client)
    with pytest.raises(ssl.SSLError, match="more than 32 records in a row"):
        client.read(100)
    carry(client, server)
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        server.read(100)


def test_tickets_wait_for_what_else_there_is_to_send(context: ssl.SSLContext) -> None:
    server, client = with_tickets(context, 2)
    assert server.take_outgoing() == b""
    assert client.object.session is None or not client.object.session.has_ticket
    server.write(b"x" * 50_000)
    carry(server, client)
    assert read_all(client) == b"x" * 50_000
    assert client.object.session is not None
    assert client.object.session.has_ticket
    server.write(b"y")
    carry(server, client)
    assert client.read(1 << 20) == b"y"


def test_what_is_decrypted_when_this_side_ends_is_still_read(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    client.write(b"hello")
    client.close()
    carry(client, server)
    assert server.read(1) == b"h"
    server.close()
    assert server.read(2) == b"el"
    assert server.read(100) == b"lo"
    assert server.read(100) == b""


def test_an_end_after_both_sides_have_ended_is_an_end(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    server.close()
    client.write(b"last words")
    client.close()
    carry(client, server)
    assert server.read(100) == b"last words"
    assert server.read(100) == b""


def test_tickets_are_held_until_something_is_written(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, _ = pair
    assert server.holds_tickets is (server.object.version() == "TLSv1.3")
    server.write(b"hello")
    server.take_outgoing()
    assert not server.holds_tickets


def test_an_end_that_has_come_and_nobody_has_read_is_read_after_a_close(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    client.close()
    carry(client, server)
    server.close()
    assert server.read(100) == b""


def test_a_broken_record_that_nobody_has_read_is_an_error_after_a_close(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    server.feed(broken_record(client))
    server.close()
    with pytest.raises(ssl.SSLError):
        server.read(100)


class Heard(ssl.SSLObject):
    """A user's class, which keeps what it was given to encrypt."""

    written: list[bytes]

    def write(self, data: Any) -> int:
        self.written = [*getattr(self, "written", ()), bytes(data)]
        return super().write(data)


def test_the_methods_of_a_users_class_are_called(context: ssl.SSLContext) -> None:
    client = client_context(UNVERIFIED)
    client.sslobject_class = Heard
    server_engine, client_engine = TLSEngine(context, True), TLSEngine(client, False)
    shake_hands(server_engine, client_engine)
    client_engine.write(b"hello")
    carry(client_engine, server_engine)
    assert server_engine.read(100) == b"hello"
    assert client_engine.object.written == [b"hello"]


def test_only_a_record_without_data_may_have_an_answer(pair: tuple[TLSEngine, TLSEngine]) -> None:
    server, client = pair
    server.take_outgoing()
    client.write(b"hello")
    assert server.decrypt(client.take_outgoing(), 100) == b"hello"
    assert not server.may_answer
    assert not server.outgoing.pending
    with pytest.raises(ssl.SSLError):
        server.decrypt(broken_record(client), 100)
    assert server.may_answer
    assert server.outgoing.pending, "an alert"
