"""The examples, started and spoken to as the README says."""

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import PROJECT, Program, Served

EXAMPLES = PROJECT / "examples"
EVERY_EXAMPLE = sorted(path.name for path in EXAMPLES.glob("*.py"))
COMMAND = re.compile(r"^    iostreamsrv serve (examples\.\w+:\w+) (--bind .*)$", re.MULTILINE)
SERVED = {name: found for name in EVERY_EXAMPLE if (found := COMMAND.search((EXAMPLES / name).read_text()))}
"""Those that ``iostreamsrv serve`` serves, and the command that their first lines have."""

SERVERS = [name for name in EVERY_EXAMPLE if name not in ("client.py", "tls_echo.py", "unix_socket.py")]
"""Those that speak plainly."""

PROGRAMS = [name for name in SERVERS if name not in SERVED]
"""Those that take --host and --port."""

SOCKETS = {"gateway_blocking.py": 2, "multi_bind.py": 2}

OF_EACH_KIND = {"echo.py", "gateway_blocking.py", "multi_bind.py", "packets.py", "queue_echo.py", "tornado_app.py"}
"""Coroutines, threads, several sockets, callbacks, queues, a Tornado application: those that the first tier starts."""

QUESTIONS = dict.fromkeys(("http_hello.py", "tornado_app.py"), b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
QUESTIONS["smtp_sink.py"] = b"NOOP\r\n"
"""What those answer to whom a line with a bare newline is nothing, or half a request, which a shutdown waits for."""

ENDED_WELL = (0, "", "")


def start(name: str, *arguments: str, sockets: int | None = None) -> Program:
    if name in SERVED:
        return Served(SERVED[name][1], *arguments).listening()
    program = Program(EXAMPLES / name, "--port", "0", *arguments)
    return program.listening(sockets or SOCKETS.get(name, 1))


@pytest.fixture
def store() -> Iterator[Program]:
    with start("line_protocol.py") as program:
        yield program


def test_the_readme_tells_of_every_example() -> None:
    readme = (PROJECT / "README.md").read_text()
    assert sorted(set(re.findall(r"examples/(\w+\.py)", readme))) == EVERY_EXAMPLE


def test_the_examples_that_say_how_they_are_served_and_nothing_else() -> None:
    has_arguments = [name for name in EVERY_EXAMPLE if "argparse" in (EXAMPLES / name).read_text()]
    assert sorted([*has_arguments, *SERVED]) == EVERY_EXAMPLE
    for name, found in SERVED.items():
        assert found[1].startswith(f"examples.{Path(name).stem}:")


@pytest.mark.parametrize("name", SERVED)
def test_the_command_in_an_examples_first_lines_is_right(name: str) -> None:
    command = SERVED[name][0].split()
    with Program("-m", *command, "--check") as program:
        code, said, complaint = program.outcome()
    assert (code, complaint) == (0, "")
    assert f"{SERVED[name][1]} can be served on 127.0.0.1:" in said


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *((name, signal.SIGINT) for name in SERVERS),
        *((name, signal.SIGTERM) for name in SERVERS if name not in OF_EACH_KIND),
        *(pytest.param(name, signal.SIGTERM, marks=pytest.mark.first_tier) for name in sorted(OF_EACH_KIND)),
    ],
)
def test_a_signal_ends_an_example_with_exit_code_0_and_no_complaint(name: str, number: int) -> None:
    with start(name) as program:
        assert program.end(number) == ENDED_WELL


@pytest.mark.parametrize("name", [name for name in SERVERS if name != "proxy.py"])  # it has nobody to ask
def test_a_signal_ends_an_example_that_has_clients(name: str) -> None:
    with start(name) as program, program.client() as busy, program.client():
        assert busy.ask(QUESTIONS.get(name, b"COUNT\n"))
        assert program.end() == ENDED_WELL


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_port_in_use_is_one_clear_line(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Program(EXAMPLES / name, "--port", str(port)) as program:
            code, said, complaint = program.outcome()
    assert (code, said) == (1, "")
    assert complaint.count("\n") == 1
    assert complaint.startswith(Path(name).stem)
    assert f"127.0.0.1:{port}" in complaint


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_impossible_port_is_one_clear_line(name: str) -> None:
    with Program(EXAMPLES / name, "--port", "70000") as program:
        code, said, complaint = program.outcome()
    assert (code, said) == (1, "")
    assert complaint.count("\n") == 1
    assert "port=70000" in complaint


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_names_host_and_port(name: str) -> None:
    with Program(EXAMPLES / name, "--help") as program:
        code, said, complaint = program.outcome()
    assert (code, complaint) == (0, "")
    assert "--host" in said
    assert "--port" in said


# ---- echo.py


def test_echo_is_short() -> None:
    assert len((EXAMPLES / "echo.py").read_text().splitlines()) <= 30


def test_echo_sends_back_every_line_to_each_client() -> None:
    with start("echo.py") as program, program.client() as first, program.client() as second:
        assert first.ask(b"hello\n") == b"hello\n"
        assert second.ask(b"\n") == b"\n"
        assert first.ask(b"one\ntwo\n") == b"one\n"
        assert first.line() == b"two\n"
        assert program.end() == ENDED_WELL


def test_echo_answers_a_client_that_half_closes_after_its_lines() -> None:
    with start("echo.py") as program, program.client() as client:
        client.send(b"one\ntwo\n")
        client.socket.shutdown(socket.SHUT_WR)
        assert [client.line(), client.line(), client.line()] == [b"one\n", b"two\n", b""]
        assert program.end() == ENDED_WELL


def test_echo_says_nothing_about_clients_that_reset() -> None:
    with start("echo.py") as program, program.client() as other:
        with program.client() as client:
            assert client.ask(b"hello\n") == b"hello\n"
            client.send(b"half a li")
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closing resets
        assert other.ask(b"still there\n") == b"still there\n"
        assert program.end() == ENDED_WELL


@pytest.mark.skipif(shutil.which("nc") is None, reason="no nc here: apt-get install netcat-openbsd")
def test_echo_answers_a_plain_nc() -> None:
    with start("echo.py") as program:
        host, port = program.addresses[0]
        with subprocess.Popen(["nc", host, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as nc:
            assert nc.stdin is not None
            assert nc.stdout is not None
            try:
                nc.stdin.write(b"hello from nc\n")
                nc.stdin.flush()
                assert nc.stdout.readline() == b"hello from nc\n"
                assert program.end() == ENDED_WELL
            finally:
                nc.kill()


def test_echo_puts_an_ipv6_address_in_brackets() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with Program(EXAMPLES / "echo.py", "--port", "0", "--host", "::1").listening() as program:
        assert program.addresses[0][0] == "::1"
        with program.client() as client:
            assert client.ask(b"hello\n") == b"hello\n"


# ---- line_protocol.py


def test_the_store_keeps_values_for_all_clients(store: Program) -> None:
    with store.client() as one, store.client() as other:
        assert one.ask(b"SET colour deep blue\n") == b"OK\n"
        assert other.ask(b"get colour\r\n") == b"VALUE deep blue\n"
        assert other.ask(b"COUNT\n") == b"VALUE 1\n"
        assert one.ask(b"DEL colour\n") == b"OK\n"
        assert one.ask(b"DEL colour\n") == b"NONE\n"
        assert other.ask(b"GET colour\n") == b"NONE\n"
    assert store.end() == ENDED_WELL


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (b"\n", b"ERR unknown command\n"),
        (b"FROB\n", b"ERR unknown command\n"),
        (b"\xff\0\n", b"ERR unknown command\n"),
        (b"SET key\n", b"ERR wrong number of words, 2 expected\n"),
        (b"GET one two three\n", b"ERR wrong number of words, 1 expected\n"),
        (b"COUNT all\n", b"ERR wrong number of words, 0 expected\n"),
        (b"QUIT now\n", b"ERR unknown command\n"),
    ],
)
def test_a_wrong_command_is_answered_and_the_next_one_is_served(store: Program, command: bytes, answer: bytes) -> None:
    with store.client() as client:
        assert client.ask(command) == answer
        assert client.ask(b"COUNT\n") == b"VALUE 0\n"
    assert store.end() == ENDED_WELL


def test_commands_sent_together_are_answered_in_order(store: Program) -> None:
    with store.client() as client:
        client.send(b"SET a 1\nSET b 2\nGET a\nGET b\nQUIT\n")
        assert list(iter(client.line, b"")) == [b"OK\n", b"OK\n", b"VALUE 1\n", b"VALUE 2\n", b"BYE\n"]
    assert store.end() == ENDED_WELL


def test_a_line_of_the_greatest_length_is_served_and_a_longer_one_answered_and_closed(store: Program) -> None:
    with store.client() as client:
        assert client.ask(b"SET key ".ljust(999, b"v") + b"\n") == b"OK\n"
        assert client.ask(b"SET key ".ljust(1000, b"v") + b"\n") == b"ERR line too long, good bye\n"
        assert client.line() == b""
    assert store.end() == ENDED_WELL


def test_a_line_without_an_end_is_answered_while_more_of_it_is_on_its_way(store: Program) -> None:
    with store.client() as client:
        assert client.ask(b"x" * 300_000) == b"ERR line too long, good bye\n"
        assert client.line() == b""
    assert store.end() == ENDED_WELL


def test_a_silent_client_is_told_of_the_timeout_before_it_is_closed() -> None:
    with start("line_protocol.py", "--set", "read_timeout=0.05") as program, program.client() as client:
        assert client.ask(b"SET half a li") == b"ERR timeout, good bye\n"
        assert client.line() == b""
        assert program.end() == ENDED_WELL


# ---- multi_bind.py


def test_one_server_tells_its_clients_by_which_port_they_came() -> None:
    with start("multi_bind.py") as program:
        assert len(set(program.addresses)) == 2
        for number, (host, port) in enumerate(program.addresses):
            with program.client(number) as client:
                assert client.line() == f"you came in by {host}:{port}\n".encode()
                assert client.ask(b"hello\n") == b"hello\n"
        assert program.end() == ENDED_WELL


@pytest.mark.skipif(sys.platform != "linux", reason="other systems give the loopback interface one address")
def test_one_server_listens_on_several_addresses() -> None:
    with start("multi_bind.py", "--host", "127.0.0.1", "127.0.0.2", sockets=4) as program:
        assert [host for host, _ in program.addresses] == ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]
        for number, (host, port) in enumerate(program.addresses):
            with program.client(number) as client:
                assert client.line() == f"you came in by {host}:{port}\n".encode()
        assert program.end() == ENDED_WELL


# ---- gateway_blocking.py


@pytest.mark.skipif(sys.platform != "linux", reason="other systems give the loopback interface one address")
def test_a_gateway_passes_what_devices_report_to_those_who_watch_on_the_other_address() -> None:
    with start("gateway_blocking.py") as program:
        assert [host for host, _ in program.addresses] == ["127.0.0.1", "127.0.0.2"]
        with program.client(0) as device, program.client(0) as other:
            assert device.ask(b"nobody listens\n") == b"passed to 0\n"
            with program.client(1) as watcher:
                while device.ask(b"21 degrees\n") != b"passed to 1\n":
                    pass
                assert watcher.line() == b"21 degrees\n"
                watcher.send(b"is heard and ignored")
                assert other.ask(b"22 degrees\n") == b"passed to 1\n"
                assert watcher.line() == b"22 degrees\n"
            while device.ask(b"23 degrees\n") != b"passed to 0\n":
                pass
        assert program.end() == ENDED_WELL


def test_a_gateway_says_nothing_about_devices_that_reset() -> None:
    with start("gateway_blocking.py") as program, program.client() as other:
        with program.client() as device:
            assert device.ask(b"21 degrees\n")
            device.send(b"half a li")
            device.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closing resets
        assert other.ask(b"still there\n")
        assert program.end() == ENDED_WELL


# ---- queue_echo.py


def test_queue_echo_sends_back_what_each_client_sends() -> None:
    with start("queue_echo.py") as program, program.client() as first, program.client() as second:
        assert first.ask(b"hello\n") == b"hello\n"
        assert second.ask(b"one\ntwo\n") == b"one\n"
        assert second.line() == b"two\n"
        assert program.end() == ENDED_WELL


@pytest.mark.parametrize(("mode", "host"), [("localhost", "127.0.0.1"), ("public", "0.0.0.0")])
def test_queue_echo_takes_a_mode_for_a_host(mode: str, host: str) -> None:
    with Program(EXAMPLES / "queue_echo.py", "--port", "0", "--host", mode).listening() as program:
        assert program.addresses[0][0] == host
        with program.client() as client:
            assert client.ask(b"hello\n") == b"hello\n"


@pytest.mark.parametrize("name", ["gateway_blocking.py", "queue_echo.py"])
def test_an_example_of_another_style_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= 60
