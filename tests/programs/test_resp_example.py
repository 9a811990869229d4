"""``examples/resp_server.py`` spoken to by redis-cli, redis-benchmark and plain sockets."""

import contextlib
import importlib
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.programs import PATIENCE, Client, Program, Served

ENDED_WELL = (0, "", "")

MAX_LINE = 1000
MAX_WORDS = 100
MAX_VALUE = 512 << 10

with_redis = pytest.mark.skipif(
    shutil.which("redis-cli") is None or shutil.which("redis-benchmark") is None,
    reason="no redis-cli and redis-benchmark here: apt-get install redis-tools",
)


LONG = 300.0
"""Seconds after which a server of many tests is killed."""


@contextlib.contextmanager
def serving(patience: float = PATIENCE) -> Iterator[Program]:
    """The example; in the end it serves still, and has said nothing."""
    with Served("examples.resp_server:RespServer", patience=patience).listening() as program:
        yield program
        with program.client() as client:
            assert client.ask(encoded(b"PING")) == b"+PONG\r\n"
        assert program.end() == ENDED_WELL


@pytest.fixture
def empty() -> Iterator[Program]:
    """One that has no values yet."""
    with serving() as program:
        yield program


@pytest.fixture(scope="module")
def server() -> Iterator[Program]:
    """One that all tests share."""
    with serving(LONG) as program:
        yield program


@pytest.fixture
def client(server: Program) -> Iterator[Client]:
    with server.client() as client:
        yield client


def encoded(*words: bytes) -> bytes:
    """A command as clients send it."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def value(client: Client) -> bytes:
    """The value that is answered next."""
    size = re.fullmatch(rb"\$(\d+)\r\n", client.line())
    assert size
    text: bytes = client._lines.read(int(size[1]) + 2)
    assert text.endswith(b"\r\n")
    return text[:-2]


# ---- the tools of Redis


def cli(server: Program, *words: str, stdin: bytes = b"") -> str:
    """What redis-cli prints."""
    host, port = server.addresses[0]
    command = ["redis-cli", "--no-raw", "-h", host, "-p", str(port), *words]
    ran = subprocess.run(command, input=stdin, capture_output=True, timeout=PATIENCE, check=True)
    assert ran.stderr == b""
    return ran.stdout.decode().rstrip("\n")  # some versions say more of them than others


@with_redis
def test_redis_cli_gets_what_it_asks_for(empty: Program) -> None:
    assert cli(empty, "PING") == "PONG"
    assert cli(empty, "ping", "hello") == '"hello"'
    assert cli(empty, "ECHO", "hello") == '"hello"'
    assert cli(empty, "GET", "colour") == "(nil)"
    assert cli(empty, "SET", "colour", "deep blue") == "OK"
    assert cli(empty, "GET", "colour") == '"deep blue"'
    assert cli(empty, "SET", "", "") == "OK"
    assert cli(empty, "GET", "") == '""'
    assert cli(empty, "EXISTS", "colour", "colour", "size", "") == "(integer) 3"
    assert cli(empty, "DBSIZE") == "(integer) 2"
    assert cli(empty, "DEL", "colour", "size") == "(integer) 1"
    assert cli(empty, "GET", "colour") == "(nil)"
    assert cli(empty, "INCR", "count") == "(integer) 1"
    assert cli(empty, "INCR", "count") == "(integer) 2"
    assert cli(empty, "GET", "count") == '"2"'


@with_redis
def test_redis_cli_is_told_what_cannot_be_done(empty: Program) -> None:
    assert cli(empty, "FROB") == "(error) ERR unknown command"
    assert cli(empty, "GET") == "(error) ERR wrong number of arguments"
    assert cli(empty, "SET", "key", "value", "EX", "10") == "(error) ERR wrong number of arguments"
    assert cli(empty, "SET", "word", "hello") == "OK"
    assert cli(empty, "INCR", "word") == "(error) ERR value is not an integer or out of range"


@with_redis
def test_redis_cli_loads_many_commands_in_one_stream(empty: Program) -> None:
    commands = b"".join(encoded(b"SET", b"key %d" % number, b"x" * number) for number in range(1000))
    assert "errors: 0, replies: 1000" in cli(empty, "--pipe", stdin=commands)
    assert cli(empty, "DBSIZE") == "(integer) 1000"
    assert cli(empty, "GET", "key 3") == '"xxx"'


@with_redis
@pytest.mark.parametrize("depth", [1, 16])
def test_redis_benchmark_is_answered_all_it_asks(empty: Program, depth: int) -> None:
    host, port = empty.addresses[0]
    command = f"redis-benchmark -h {host} -p {port} -c 20 -n 2000 -P {depth} -r 100 -d 100 --csv -t ping,set,get,incr"
    ran = subprocess.run(command.split(), capture_output=True, text=True, timeout=PATIENCE, check=True)
    rates = re.findall(r'^"(\w+)","[1-9]', ran.stdout, re.MULTILINE)
    assert rates == ["PING_INLINE", "PING_MBULK", "SET", "GET", "INCR"]
    with empty.client() as client:
        assert client.ask(encoded(b"DBSIZE")) == b":200\r\n"  # 100 keys for SET, and 100 for INCR


# ---- commands


def test_keys_and_values_may_have_any_bytes(client: Client) -> None:
    key, text = bytes(range(256)), b"$3\r\n\0\xff" * 100
    assert client.ask(encoded(b"SET", key, text)) == b"+OK\r\n"
    client.send(encoded(b"GET", key))
    assert value(client) == text


def test_commands_sent_together_are_answered_in_order_also_behind_one_that_fails(client: Client) -> None:
    client.send(
        encoded(b"SET", b"a", b"1")
        + encoded(b"FROB")
        + b"\r\n"
        + encoded(b"INCR", b"a")
        + b"*0\r\n"
        + b"get a\r\n"
        + encoded(b"GET", b"b")
    )
    answers = [client.line() for _ in range(6)]
    assert answers == [b"+OK\r\n", b"-ERR unknown command\r\n", b":2\r\n", b"$1\r\n", b"2\r\n", b"$-1\r\n"]


def test_a_command_may_come_byte_by_byte(client: Client) -> None:
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in encoded(b"SET", b"key", b"one\r\ntwo") + encoded(b"GET", b"key"):
        client.send(bytes([byte]))
    assert client.line() == b"+OK\r\n"
    assert value(client) == b"one\r\ntwo"


def test_commands_can_be_typed(client: Client) -> None:
    assert client.ask(b"\r\n\n   \r\nSET colour  blue\n") == b"+OK\r\n"
    assert client.ask(b"get colour\r\n") == b"$4\r\n"
    assert client.line() == b"blue\r\n"
    assert client.ask(b"GET two words\r\n") == b"-ERR wrong number of arguments\r\n"


@pytest.mark.parametrize("goodbye", [b"*1\r\n$4\r\nQUIT\r\n", b"*1\r\n$4\r\nquit\r\n", b"Quit\n"])
def test_quit_is_answered_and_ends_the_connection(client: Client, goodbye: bytes) -> None:
    assert client.ask(goodbye + encoded(b"PING")) == b"+OK\r\n"
    assert client.line() == b""


def test_quit_with_more_words_is_another_command(client: Client) -> None:
    assert client.ask(encoded(b"QUIT", b"now")) == b"-ERR wrong number of arguments\r\n"
    assert client.ask(encoded(b"PING")) == b"+PONG\r\n"


@pytest.mark.parametrize(
    ("old", "answer"),
    [
        (b"-1", b":0\r\n"),
        (b"9223372036854775806", b":9223372036854775807\r\n"),
        (b"9223372036854775807", b"-ERR value is not an integer or out of range\r\n"),
        (b"9" * 5000, b"-ERR value is not an integer or out of range\r\n"),
        (b"", b"-ERR value is not an integer or out of range\r\n"),
        (b" 1", b"-ERR value is not an integer or out of range\r\n"),
        (b"1_0", b"-ERR value is not an integer or out of range\r\n"),
        (b"1\n", b"-ERR value is not an integer or out of range\r\n"),
    ],
)
def test_incr_counts_in_64_bits_and_takes_nothing_but_digits(client: Client, old: bytes, answer: bytes) -> None:
    assert client.ask(encoded(b"SET", b"count", old)) == b"+OK\r\n"
    assert client.ask(encoded(b"INCR", b"count")) == answer
    client.send(encoded(b"GET", b"count"))
    assert value(client) == (old if answer.startswith(b"-") else answer[1:-2])


# ---- limits


def test_a_value_of_the_greatest_size_is_kept_and_a_larger_one_refused_before_it_comes(client: Client) -> None:
    client.send(encoded(b"SET", b"key", b"x" * MAX_VALUE) + encoded(b"GET", b"key"))
    assert client.line() == b"+OK\r\n"
    assert value(client) == b"x" * MAX_VALUE
    assert (
        client.ask(b"*2\r\n$3\r\nGET\r\n$%d\r\n" % (MAX_VALUE + 1)) == b"-ERR Protocol error: invalid bulk length\r\n"
    )
    assert client.line() == b""


def test_a_command_of_too_many_bytes_is_refused_before_they_come(client: Client) -> None:
    client.send(b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n" % (MAX_VALUE, b"x" * MAX_VALUE))
    assert client.ask(b"$%d\r\n" % MAX_VALUE) == b"-ERR Protocol error: too big a command\r\n"
    assert client.line() == b""


def test_a_command_may_have_so_many_words_and_no_more(client: Client) -> None:
    keys = [b"key"] * (MAX_WORDS - 1)
    client.send(encoded(b"SET", b"key", b"value"))
    assert client.line() == b"+OK\r\n"
    assert client.ask(encoded(b"EXISTS", *keys)) == b":%d\r\n" % len(keys)
    assert client.ask(encoded(b"EXISTS", *keys, b"key")) == b"-ERR Protocol error: invalid multibulk length\r\n"
    assert client.line() == b""


@pytest.fixture
def example() -> Any:
    return importlib.import_module("examples.resp_server")


def test_a_full_store_refuses_what_would_make_it_grow(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "MAX_STORE", 3 * example.PER_VALUE + 30)
    store = example.Store()
    full = b"-ERR the store is full\r\n"
    for key in (b"one", b"two", b"six"):
        assert store.answer(b"SET", key, b"1234567") == b"+OK\r\n"
    assert store.answer(b"SET", b"one", b"12345678") == full
    assert store.answer(b"SET", b"few", b"") == full
    assert store.answer(b"INCR", b"n") == full
    assert store.answer(b"SET", b"one", b"") == b"+OK\r\n"
    assert store.answer(b"SET", b"two", b"12345678901234") == b"+OK\r\n"
    assert store.answer(b"GET", b"one") == b"$0\r\n\r\n"
    assert store.answer(b"DEL", b"one", b"two", b"six", b"six") == b":3\r\n"
    assert store.size == 0


# ---- what is no RESP


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (b"*\r\n", b"invalid multibulk length"),
        (b"*-1\r\n", b"invalid multibulk length"),
        (b"*+1\r\n", b"invalid multibulk length"),
        (b"* 1\r\n", b"invalid multibulk length"),
        (b"*1 \r\n", b"invalid multibulk length"),
        (b"*1_0\r\n", b"invalid multibulk length"),
        (b"*\xb2\r\n", b"invalid multibulk length"),
        (b"*1000000000\r\n", b"invalid multibulk length"),
        (b"*0000000001\r\n", b"invalid multibulk length"),
        (b"*" + b"9" * 900 + b"\r\n", b"invalid multibulk length"),
        (b"*1\r\nPING\r\n", b"expected '$', got 'P'"),
        (b"*1\r\n\xff\r\n", b"expected '$', got '\xef\xbf\xbd'"),
        (b"*1\r\n\r\n", b"expected '$', got '\\r'"),
        (b"*2\r\n$4\r\nPING\r\n*1\r\n", b"expected '$', got '*'"),
        (b"*1\r\n$-1\r\n", b"invalid bulk length"),
        (b"*1\r\n$4\r\r\n", b"invalid bulk length"),
        (b"*1\r\n$0x4\r\n", b"invalid bulk length"),
        (b"*1\r\n$3\r\nPING\r\n", b"a value does not end where it should"),
        (b"*1\r\n$5\r\nPING\r\n\n", b"a value does not end where it should"),
        (b"*1\r\n$" + b"0" * MAX_LINE, b"invalid bulk length"),
        (b"x" * MAX_LINE, b"too big inline request"),
        (b"x" * 300_000, b"too big inline request"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_what_is_no_resp_is_answered_behind_what_was_right_and_ends_the_connection(
    client: Client, sent: bytes, problem: bytes
) -> None:
    client.send(encoded(b"SET", b"key", b"value") + sent)
    assert client.line() == b"+OK\r\n"
    assert client.line() == b"-ERR Protocol error: %b\r\n" % problem
    assert client.line() == b""


def test_a_line_of_the_greatest_length_is_taken(client: Client) -> None:
    assert client.ask(b"ECHO ".ljust(MAX_LINE - 1, b"x") + b"\n") == b"$%d\r\n" % (MAX_LINE - 6)


@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize("sent", [b"*", b"*2\r\n", b"*2\r\n$3\r\nGE", b"*2\r\n$3\r\nGET\r\n$1000\r\nhalf a k", b"PIN"])
def test_a_client_that_goes_away_in_the_middle_harms_nobody(server: Program, sent: bytes, how: str) -> None:
    with server.client() as other:
        with server.client() as client:
            assert client.ask(encoded(b"SET", b"key", b"value")) == b"+OK\r\n"
            client.send(sent)
            if how == "reset":
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        other.send(encoded(b"GET", b"key"))
        assert value(other) == b"value"


def test_a_client_that_reads_nothing_has_no_answers_pile_up(client: Client) -> None:
    client.send(encoded(b"SET", b"key", b"x" * MAX_VALUE))
    assert client.line() == b"+OK\r\n"
    client.send(encoded(b"GET", b"key") * 100)  # 50 MB
    client.send(encoded(b"QUIT"))
    for _ in range(100):
        assert value(client) == b"x" * MAX_VALUE
    assert client.line() == b"+OK\r\n"
