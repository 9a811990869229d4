"""``examples/packets.py`` and ``examples/turbo_style.py``; the chat is tested as a scenario of Control4's."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from iostreamsrv.certificates import self_signed
from tests.support.programs import PROJECT, Client, Program, Served

EXAMPLES = PROJECT / "examples"
ENDED_WELL = (0, "", "")


@pytest.mark.parametrize("name, most", [("chat.py", 100), ("packets.py", 45), ("turbo_style.py", 60)])
def test_an_example_is_short(name: str, most: int) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= most


# ---- packets.py


@pytest.fixture
def packets() -> Iterator[Program]:
    with Served("examples.packets:server").listening() as program:
        yield program


def test_packets_are_answered_however_they_are_cut(packets: Program) -> None:
    with packets.client() as client:
        assert client.ask(b"<pkt>a</pkt>") == b"got a\n"
        assert client.ask(b"<pkt>b</pkt><pkt></pkt><pkt>c</pk") == b"got b\n"
        assert client.line() == b"got \n"
        assert client.ask(b"t>") == b"got c\n"
        for byte in b"<pkt>by the byte</pkt>":
            client.send(bytes([byte]))
        assert client.line() == b"got by the byte\n"
    assert packets.end() == ENDED_WELL


def test_what_is_no_packet_is_skipped(packets: Program) -> None:
    with packets.client() as client:
        assert client.ask(b"what? <pk") == b"skipped 6 bytes\n"
        assert client.ask(b"t>a</pkt><p>") == b"got a\n"
        assert client.line() == b"skipped 3 bytes\n"
        assert client.ask(b"<<pkt>b</pkt>") == b"skipped 1 bytes\n"
        assert client.line() == b"got b\n"
    assert packets.end() == ENDED_WELL


def test_a_packet_that_is_too_long_ends_its_client_with_a_line(packets: Program) -> None:
    with packets.client() as flooding, packets.client() as other:
        flooding.send(b"<pkt>" + bytes(70_000))
        try:
            assert flooding.line() == b""
        except ConnectionResetError:
            pass
        packets.wait_for("has sent a packet that is too long")
        assert other.ask(b"<pkt>a</pkt>") == b"got a\n"
    assert packets.end()[:2] == (0, "")


def test_a_last_packet_before_a_half_close_is_answered(packets: Program) -> None:
    with packets.client() as client:
        client.send(b"<pkt>last</pkt><pkt>half")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.line() == b"got last\n"
        assert client.line() == b""


# ---- turbo_style.py


def test_turbo_style_sends_back_lines_and_ends_on_quit() -> None:
    with Program(EXAMPLES / "turbo_style.py", "--port", "0").listening() as program:
        with program.client() as client:
            assert client.ask(b"hello\n") == b"hello\n"
            assert client.ask(b"quit\n") == b"good bye\n"
            assert client.line() == b""
        assert program.end() == ENDED_WELL


def test_turbo_style_speaks_tls_with_turbos_names_for_the_files(tmp_path: Path) -> None:
    files = self_signed("localhost").write(tmp_path)
    arguments = ("--port", "0", "--cert-file", files["certfile"], "--key-file", files["keyfile"])
    with Program(EXAMPLES / "turbo_style.py", *arguments).listening() as program:
        with Client(program.addresses[0], tls=ssl.create_default_context(cafile=files["certfile"])) as client:
            assert client.ask(b"hello\n") == b"hello\n"
        assert program.end() == ENDED_WELL


def test_turbo_style_names_a_certificate_that_is_missing() -> None:
    with Program(EXAMPLES / "turbo_style.py", "--port", "0", "--cert-file", "/no/such.pem") as program:
        code, said, complaint = program.outcome()
    assert (code, said) == (1, "")
    assert "/no/such.pem" in complaint
    assert complaint.count("\n") == 1
