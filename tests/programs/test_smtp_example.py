"""``examples/smtp_sink.py`` spoken to by smtplib, and by clients that do what smtplib does not."""

import contextlib
import signal
import smtplib
import socket
import ssl
import struct
from collections.abc import Iterator
from email.message import EmailMessage

import pytest

from tests.support.programs import PATIENCE, Client, Program, Served

EXAMPLE = "examples.smtp_sink:SMTPServer"
ENDED_WELL = (0, "", "")

MAX_LINE = 998
MAX_MESSAGE = 1 << 20
MAX_RECIPIENTS = 100
MAX_ERRORS = 10


LONG = 300.0
"""Seconds after which a server of many tests is killed."""


@contextlib.contextmanager
def serving(patience: float = PATIENCE) -> Iterator[Program]:
    """The example. In the end it serves still, all it has said was read, and its log has failed handshakes at most."""
    with Served(EXAMPLE, patience=patience).listening() as program:
        yield program
        with program.client() as client:
            assert client.line() == b"220 smtp_sink ESMTP\r\n"
        code, said, log = program.end()
        assert (code, said) == (0, "")
        assert [line for line in log.splitlines() if not line.startswith("SSL Error: ")] == []


@pytest.fixture
def server() -> Iterator[Program]:
    """One that takes mail."""
    with serving() as program:
        yield program


@pytest.fixture(scope="module")
def unused() -> Iterator[Program]:
    """One that is given no message, and so shared."""
    with serving(LONG) as program:
        yield program


@contextlib.contextmanager
def greeted_by(server: Program) -> Iterator[Client]:
    """A client that has said hello."""
    with server.client() as client:
        assert client.line() == b"220 smtp_sink ESMTP\r\n"
        assert client.ask(b"HELO there\r\n") == b"250 smtp_sink\r\n"
        yield client


@pytest.fixture
def client(unused: Program) -> Iterator[Client]:
    with greeted_by(unused) as client:
        yield client


def trusting_anybody() -> ssl.SSLContext:
    """A client's context; the certificate is made anew each time, and nobody is told of it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextlib.contextmanager
def smtp(server: Program) -> Iterator[smtplib.SMTP]:
    with smtplib.SMTP(*server.addresses[0], timeout=PATIENCE) as client:
        yield client


def message(text: str) -> EmailMessage:
    made = EmailMessage()
    made["From"] = "Ada <ada@example.org>"
    made["To"] = "bob@example.org, Eve <eve@example.org>"
    made["Subject"] = "Greetings"
    made.set_content(text)
    return made


# ---- smtplib


def test_smtplib_sends_mail_in_the_clear(server: Program) -> None:
    with smtp(server) as client:
        assert client.send_message(message("hello\n")) == {}
        assert server.line().endswith(
            " bytes in the clear, from <ada@example.org> to bob@example.org, eve@example.org\n"
        )
        assert client.sendmail("", ["bob@example.org"], b"12345678\r\n") == {}
        assert server.line() == "10 bytes in the clear, from <> to bob@example.org\n"


def test_smtplib_sends_mail_under_tls(server: Program) -> None:
    with smtp(server) as client:
        client.ehlo()
        assert client.has_extn("STARTTLS")
        client.starttls(context=trusting_anybody())
        assert isinstance(client.sock, ssl.SSLSocket)
        client.ehlo()
        assert not client.has_extn("STARTTLS")
        assert client.send_message(message("hello\n")) == {}
        assert " bytes over TLS, from <ada@example.org> to bob" in server.line()


def test_dots_at_the_beginning_of_lines_are_part_of_the_message(server: Program) -> None:
    with smtp(server) as client:
        assert client.sendmail("ada@example.org", "bob@example.org", b".\r\n..\r\n.dot\r\nno.dot\r\n") == {}
        assert server.line().startswith("21 bytes in the clear")


def test_smtplib_is_told_of_a_message_that_is_too_large_before_it_sends_it(server: Program) -> None:
    with smtp(server) as client:
        with pytest.raises(smtplib.SMTPSenderRefused) as refused:
            client.sendmail("ada@example.org", "bob@example.org", b"x\r\n" * MAX_MESSAGE)
        assert (refused.value.smtp_code, refused.value.smtp_error) == (552, b"too large")
        assert client.noop() == (250, b"ok")


def test_a_message_of_the_greatest_size_is_taken_and_a_larger_one_refused_at_its_end(server: Program) -> None:
    largest = b"x" * 62 + b"\r\n"
    largest *= MAX_MESSAGE // len(largest)
    with smtp(server) as client:
        client.helo()  # without EHLO no sizes are announced
        assert client.sendmail("ada@example.org", "bob@example.org", largest) == {}
        assert server.line().startswith(f"{MAX_MESSAGE} bytes")
        with pytest.raises(smtplib.SMTPDataError) as refused:
            client.sendmail("ada@example.org", "bob@example.org", largest + b"\r\n")
        assert refused.value.smtp_code == 552
        assert client.noop() == (250, b"ok")


def test_smtplib_is_told_of_each_recipient_that_is_refused(server: Program) -> None:
    wrong = "no address at all>"
    with smtp(server) as client:
        client.ehlo()
        refused = client.sendmail("ada@example.org", ["bob@example.org", f"<{wrong}"], b"hello\r\n")
        assert [code for code, _ in refused.values()] == [501]
        assert server.line() == "7 bytes in the clear, from <ada@example.org> to bob@example.org\n"


# ---- STARTTLS


def test_commands_sent_behind_starttls_are_not_taken(client: Client) -> None:
    client.send(b"STARTTLS\r\nMAIL FROM:<eve@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\nevil\r\n.\r\n")
    assert client.line() == b"220 go ahead\r\n"
    with contextlib.suppress(ConnectionError):
        assert not client._lines.read().startswith(b"2")  # a TLS alert, at most


def test_what_was_said_before_starttls_does_not_count(server: Program) -> None:
    with smtp(server) as client:
        client.ehlo()
        assert client.mail("eve@example.org") == (250, b"ok")
        assert client.rcpt("eve@example.org") == (250, b"ok")
        client.starttls(context=trusting_anybody())
        assert client.docmd("DATA")[0] == 503
        assert client.docmd("MAIL FROM:<ada@example.org>")[0] == 503  # there was no EHLO yet
        client.ehlo()
        assert client.docmd("RCPT TO:<bob@example.org>")[0] == 503
        assert client.sendmail("ada@example.org", "bob@example.org", b"hello\r\n") == {}
        assert server.line() == "7 bytes over TLS, from <ada@example.org> to bob@example.org\n"


def test_starttls_works_once(server: Program) -> None:
    with smtp(server) as client:
        client.starttls(context=trusting_anybody())
        assert client.docmd("STARTTLS") == (503, b"not now")
        assert client.noop() == (250, b"ok")


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"plain text\r\n"])
def test_a_client_that_ends_in_the_handshake_harms_nobody(client: Client, sent: bytes) -> None:
    assert client.ask(b"STARTTLS\r\n") == b"220 go ahead\r\n"
    client.send(sent)
    client.socket.close()


# ---- commands


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (b"", b"500 unknown command"),
        (b"FROB", b"500 unknown command"),
        (b"\xff\0", b"500 unknown command"),
        (b"NOOP\nNOOP", b"500 unknown command"),  # a bare newline ends no line
        (b"RCPT TO:<bob@example.org>", b"503 not now"),
        (b"DATA", b"503 not now"),
        (b"STARTTLS now", b"503 not now"),
        (b"MAIL", b"501 no sender"),
        (b"MAIL FROM:", b"501 no sender"),
        (b"MAIL FROM:ada@example.org", b"501 no sender"),
        (b"MAIL FROM:<ada@example.org", b"501 no sender"),
        (b"MAIL FROM:<ada@\xff.org>", b"501 no sender"),
        (b"MAIL FROM:<ada>\r<eve>", b"501 no sender"),
        (b"MAIL FROM:<ada example>", b"501 no sender"),
        (b"MAIL TO:<ada@example.org>", b"501 no sender"),
        (b"mail from:<ada@example.org> size=99999999999999999999", b"552 too large"),
    ],
)
def test_a_wrong_command_is_answered_and_the_next_one_is_served(client: Client, command: bytes, answer: bytes) -> None:
    assert client.ask(command + b"\r\n") == answer + b"\r\n"
    assert client.ask(b"noop\r\n") == b"250 ok\r\n"


def test_a_client_that_has_not_said_hello_sends_no_mail(unused: Program) -> None:
    with unused.client() as client:
        client.line()
        assert client.ask(b"MAIL FROM:<ada@example.org>\r\n") == b"503 not now\r\n"


def test_commands_sent_together_are_answered_in_order(server: Program) -> None:
    with greeted_by(server) as client:
        client.send(
            b"MAIL FROM:<ada@example.org> BODY=8BITMIME\r\nRCPT TO:<>\r\nRCPT TO:<bob@example.org>\r\n"
            b"MAIL FROM:<eve>\r\nDATA\r\none\ntwo\n.\nthree\r\n.\r\nRSET\r\nQUIT\r\nNOOP\r\n"
        )
        answers = [line[:3] for line in iter(client.line, b"")]
        assert answers == [b"250", b"501", b"250", b"503", b"354", b"250", b"250", b"221"]
        assert server.line() == "17 bytes in the clear, from <ada@example.org> to bob@example.org\n"


@pytest.mark.parametrize("forgetting", [b"RSET", b"HELO again", b"EHLO again"])
def test_what_was_begun_can_be_forgotten(client: Client, forgetting: bytes) -> None:
    client.send(b"MAIL FROM:<ada@example.org>\r\nRCPT TO:<bob@example.org>\r\n" + forgetting + b"\r\nDATA\r\n")
    answers = []
    while not answers or not answers[-1].startswith((b"354", b"503")):
        answers.append(client.line())
    assert answers[-1] == b"503 not now\r\n"


def test_there_may_be_so_many_recipients_and_no_more(server: Program) -> None:
    with greeted_by(server) as client:
        assert client.ask(b"MAIL FROM:<ada@example.org>\r\n") == b"250 ok\r\n"
        for _ in range(MAX_RECIPIENTS):
            assert client.ask(b"RCPT TO:<bob@example.org>\r\n") == b"250 ok\r\n"
        assert client.ask(b"RCPT TO:<bob@example.org>\r\n") == b"452 too many recipients\r\n"
        client.send(b"DATA\r\n.\r\n")
        assert client.line() == b"354 end with a dot\r\n"
        assert client.line() == b"250 taken\r\n"
        assert server.line().count("bob@example.org") == MAX_RECIPIENTS


def test_a_client_that_does_too_much_wrong_is_told_so_and_closed(client: Client) -> None:
    client.send(b"FROB\r\n" * (MAX_ERRORS + 1))
    assert [client.line() for _ in range(MAX_ERRORS)] == [b"500 unknown command\r\n"] * MAX_ERRORS
    assert client.line() == b"421 too many errors\r\n"
    assert client.line() == b""


def test_a_line_of_the_greatest_length_is_taken_and_a_longer_one_answered_and_closed(client: Client) -> None:
    assert client.ask(b"NOOP ".ljust(MAX_LINE, b"x") + b"\r\n") == b"250 ok\r\n"
    assert client.ask(b"NOOP ".ljust(MAX_LINE + 1, b"x") + b"\r\n") == b"500 line too long, good bye\r\n"
    assert client.line() == b""


def test_a_line_without_an_end_is_answered_while_more_of_it_is_on_its_way(client: Client) -> None:
    assert client.ask(b"x" * 300_000) == b"500 line too long, good bye\r\n"
    assert client.line() == b""


def begin_message(client: Client) -> None:
    client.send(b"MAIL FROM:<ada@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n")
    assert [client.line()[:3] for _ in range(3)] == [b"250", b"250", b"354"]


def test_a_line_of_a_message_that_is_too_long_is_answered_and_closed(client: Client) -> None:
    begin_message(client)
    assert client.ask(b"x" * (MAX_LINE + 1) + b"\r\n.\r\n") == b"500 line too long, good bye\r\n"
    assert client.line() == b""


def test_a_message_without_an_end_is_answered_and_closed(client: Client) -> None:
    begin_message(client)
    with contextlib.suppress(ConnectionError):  # if it is still sending then
        for _ in range(16 * MAX_MESSAGE // 1000):
            client.send(b"x" * MAX_LINE + b"\r\n")
    assert client.line() == b"552 too large, good bye\r\n"


@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize("sent", [b"MAI", b"MAIL FROM:<ada@example.org>\r\n", b"DATA\r\nhalf a mess"])
def test_a_client_that_goes_away_in_the_middle_harms_nobody(unused: Program, sent: bytes, how: str) -> None:
    with unused.client() as other, unused.client() as client:
        assert other.line() == client.line() == b"220 smtp_sink ESMTP\r\n"
        client.send(b"HELO there\r\nMAIL FROM:<ada@example.org>\r\nRCPT TO:<bob@example.org>\r\n" + sent)
        assert [client.line()[:3] for _ in range(3)] == [b"250"] * 3
        if how == "reset":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()
        assert other.ask(b"NOOP\r\n") == b"250 ok\r\n"


# ---- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_while_clients_are_there_in_the_clear_and_under_tls(number: int) -> None:
    with Served(EXAMPLE).listening() as program, smtp(program) as plain, smtp(program) as secure:
        secure.starttls(context=trusting_anybody())
        assert plain.noop() == secure.noop() == (250, b"ok")
        assert program.end(number) == ENDED_WELL
        for client in (plain, secure):
            client.close()


def test_a_message_that_a_signal_cuts_off_is_not_reported_taken() -> None:
    with Served(EXAMPLE).listening() as program, greeted_by(program) as client:
        begin_message(client)
        client.send(b"half a message\r\n")
        assert program.end() == ENDED_WELL
        assert client.line() == b""
