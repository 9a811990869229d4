"""The example of a client, spoken to by a server of ours, by plain sockets, and by servers from outside."""

import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import PATIENCE, PROJECT, Program

CLIENT = PROJECT / "examples" / "client.py"


@contextlib.contextmanager
def running(*command: object, **pipes: object) -> Iterator["subprocess.Popen[bytes]"]:
    """A program with pipes for all three; killed if it has neither spoken nor ended for too long, and in the end."""
    every = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen([*map(str, command)], env=environment, **every) as process:  # type: ignore[call-overload]
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


@contextlib.contextmanager
def client(address: tuple[str, int], *arguments: object, **pipes: object) -> Iterator["subprocess.Popen[bytes]"]:
    """The example, told to connect to ``address``."""
    host, port = address
    with running(sys.executable, CLIENT, "--host", host, "--port", port, *arguments, **pipes) as process:
        yield process


@contextlib.contextmanager
def accepted(**pipes: object) -> Iterator[tuple["subprocess.Popen[bytes]", socket.socket]]:
    """The example and its connection, at a plain socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        with client(listener.getsockname(), **pipes) as process:
            connection, _ = listener.accept()
            connection.settimeout(PATIENCE)
            with connection:
                yield process, connection


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    with Program(PROJECT / "examples" / "echo.py", "--port", "0") as program:
        yield program.listening().addresses[0]


def ask(process: "subprocess.Popen[bytes]", line: bytes) -> bytes:
    """Type a line, and read what is printed next."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    return process.stdout.readline()


def outcome(process: "subprocess.Popen[bytes]", rest: bytes | None = None) -> tuple[int, bytes, bytes]:
    """When it has been given the rest of stdin, and has ended: its exit code, and what it printed."""
    said, complaint = process.communicate(rest, timeout=PATIENCE)
    return process.returncode, said, complaint


@pytest.mark.first_tier
def test_each_line_is_answered_before_the_next_is_typed(echo: tuple[str, int]) -> None:
    with client(echo) as process:
        assert ask(process, b"hello\n") == b"hello\n"
        assert ask(process, b"\n") == b"\n"
        assert ask(process, b"good bye\n") == b"good bye\n"
        assert outcome(process) == (0, b"", b"")


def test_all_answers_are_printed_after_stdin_has_ended(echo: tuple[str, int]) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(10_000))
    with client(echo) as process:
        assert outcome(process, lines) == (0, lines, b"")


def test_stdin_may_be_a_file(echo: tuple[str, int], tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\n")
    with path.open("rb") as file, client(echo, stdin=file) as process:
        assert outcome(process) == (0, b"one\ntwo\n", b"")


def test_the_end_of_stdin_is_passed_on_and_the_answer_awaited() -> None:
    with accepted() as (process, connection), connection.makefile("rb") as received:
        assert process.stdin is not None
        process.stdin.write(b"question\n")
        process.stdin.close()
        process.stdin = None
        assert received.read() == b"question\n"
        connection.sendall(b"answer\n")
        connection.shutdown(socket.SHUT_WR)
        assert outcome(process) == (0, b"answer\n", b"")


def test_a_server_that_ends_the_connection_ends_the_program_while_stdin_is_open() -> None:
    with accepted() as (process, connection):
        connection.sendall(b"no prompt, no line")
        connection.close()
        assert process.wait(PATIENCE) == 0
        assert outcome(process) == (0, b"no prompt, no line", b"")


def test_lines_for_a_server_that_is_gone_are_no_traceback() -> None:
    with accepted() as (process, connection):
        connection.close()
        _, said, complaint = outcome(process, b"anybody there?\n" * 10_000)
    assert said == b""
    assert re.fullmatch(rb"(client: .*\n)?", complaint)  # whether the end came before the first line or after it


def test_a_signal_ends_it_with_exit_code_0_while_stdin_is_open() -> None:
    with accepted() as (process, connection):
        connection.sendall(b"ready\n")
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert connection.recv(1) == b""
        assert outcome(process) == (0, b"", b"")


def test_a_signal_ends_it_while_the_server_does_not_read() -> None:
    with accepted() as (process, connection):
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        connection.sendall(b"ready\n")
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for _ in range(200):  # more than the kernel holds for both
            with contextlib.suppress(BlockingIOError):
                os.write(process.stdin.fileno(), bytes(65536))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert outcome(process) == (0, b"", b"")


def test_a_reset_is_one_clear_line() -> None:
    with accepted() as (process, connection):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        code, said, complaint = outcome(process)
    assert (code, said) == (1, b"")
    assert re.fullmatch(rb"client: .*Connection reset by peer\n", complaint)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--port", "1"), rb"client: cannot connect to 127\.0\.0\.1:1: Connection refused\n"),
        (("--port", "70000"), rb"client: port=70000: .*\n"),
        (("--host", ""), rb"client: host='': .*\n"),
        (("--host", "a..b"), rb"client: cannot resolve a\.\.b:8888: .*\n"),
        (("--timeout", "-1"), rb"client: Timeout .*\n"),
    ],
)
def test_what_cannot_be_is_one_clear_line(arguments: tuple[str, ...], said: bytes) -> None:
    with running(sys.executable, CLIENT, *arguments) as process:
        code, printed, complaint = outcome(process)
    assert (code, printed) == (1, b"")
    assert re.fullmatch(said, complaint)


def test_help_names_host_port_and_timeout() -> None:
    with running(sys.executable, CLIENT, "--help") as process:
        code, said, complaint = outcome(process)
    assert (code, complaint) == (0, b"")
    assert all(option in said for option in (b"--host", b"--port", b"--timeout"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take connections beyond a listener's backlog")
def test_a_server_that_does_not_answer_is_one_clear_line_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        host, port = listener.getsockname()
        with socket.create_connection((host, port)), client((host, port), "--timeout", 0.1) as process:
            assert outcome(process) == (1, b"", b"client: Timeout while connecting to %s:%d\n" % (host.encode(), port))


@pytest.mark.skipif(shutil.which("socat") is None, reason="no socat here: apt-get install socat")
def test_a_server_from_outside_that_answers_at_the_end_only() -> None:
    # sort prints when its input has ended. -t: how long socat waits for it afterwards.
    with running("socat", "-dd", "-t", PATIENCE, "TCP-LISTEN:0,bind=127.0.0.1", "EXEC:sort") as socat:
        assert socat.stderr is not None
        port = next(
            int(found[1]) for line in socat.stderr if (found := re.search(rb"listening on .*127\.0\.0\.1:(\d+)", line))
        )
        with client(("127.0.0.1", port)) as process:
            assert outcome(process, b"pear\napple\nplum\n") == (0, b"apple\npear\nplum\n", b"")
