"""A mail server that accepts every message, prints its sender and recipients, and discards it. It supports STARTTLS.

For tests of programs that send mail. It creates a self-signed certificate at its start.

Start it in the project's folder:

    iostreamsrv serve examples.smtp_sink:SMTPServer --bind 127.0.0.1:8025
"""

import re
import tempfile

import iostreamsrv
from iostreamsrv.certificates import Certificates, self_signed
from iostreamsrv.framing import Delimited

MAX_LINE = 998
MAX_MESSAGE = 1 << 20
MAX_RECIPIENTS = 100
MAX_ERRORS = 10
"""Limits: bytes of a line, bytes of a message, recipients of a message, errors of a client."""

ENDLESS = 4 * MAX_MESSAGE
"""Bytes after which the server closes the connection instead of waiting for the end of the message."""


class Farewell(Exception):
    """Send this reply to the client, then end the connection."""


class Session:
    """The state of one client."""

    def __init__(self, stream, certificates):
        self.certificates = certificates
        self.secure = False
        self.errors = 0
        self.begin(stream)

    def begin(self, stream):
        """Start from the beginning, as for a new client."""
        # A bare \n does not end a line: if servers disagree about that, a client can smuggle messages.
        self.lines = Delimited(stream, b"\r\n", MAX_LINE)
        self.greeted = False
        self.forget()

    def forget(self):
        self.sender = None
        self.recipients = []

    async def converse(self):
        await self.lines.write(b"220 smtp_sink ESMTP")
        try:
            while await self.obey(await self.lines.read()):
                if self.errors == MAX_ERRORS:
                    raise Farewell("421 too many errors")
        except Farewell as farewell:
            await self.lines.write(str(farewell).encode())
        except iostreamsrv.FramingError:
            await self.lines.write(b"500 line too long, good bye")

    async def obey(self, line):
        """Execute a command; return whether the connection continues."""
        verb, _, rest = line.rstrip().partition(b" ")
        verb = verb.upper()
        if verb == b"STARTTLS" and not rest and not self.secure:
            await self.start_tls()
        elif verb == b"DATA" and not rest and self.recipients:
            await self.take_message()
        else:
            for answer in self.answers(verb, rest):
                await self.lines.write(answer)
        return verb != b"QUIT"

    async def start_tls(self):
        await self.lines.write(b"220 go ahead")
        # Data that the client has sent right after the command is taken for TLS, so it ends the connection.
        stream = await self.lines.stream.start_tls(True, self.certificates)
        self.secure = True
        self.begin(stream)  # what was sent before TLS may be forged, so it is forgotten

    def answers(self, verb, rest):
        if verb == b"HELO" or verb == b"EHLO":
            self.forget()
            self.greeted = True
            if verb == b"HELO":
                return [b"250 smtp_sink"]
            offers = [b"250-smtp_sink", b"250-8BITMIME", b"250 SIZE %d" % MAX_MESSAGE]
            return offers if self.secure else [*offers[:1], b"250-STARTTLS", *offers[1:]]
        if verb == b"QUIT":
            return [b"221 good bye"]
        if verb == b"NOOP":
            return [b"250 ok"]
        if verb == b"RSET":
            self.forget()
            return [b"250 ok"]
        if verb == b"MAIL" and self.greeted and self.sender is None:
            return [self.take_sender(rest)]
        if verb == b"RCPT" and self.sender is not None:
            return [self.take_recipient(rest)]
        known = verb in (b"MAIL", b"RCPT", b"DATA", b"STARTTLS")
        return [self.wrong(b"503 not now" if known else b"500 unknown command")]

    def wrong(self, answer):
        self.errors += 1
        return answer

    def take_sender(self, rest):
        address, parameters = address_in(b"FROM", rest)
        if address is None:
            return self.wrong(b"501 no sender")
        size = re.search(rb" SIZE=([0-9]{1,20})\b", parameters, re.IGNORECASE)
        if size and int(size[1]) > MAX_MESSAGE:
            return b"552 too large"
        self.sender = address
        return b"250 ok"

    def take_recipient(self, rest):
        address, _ = address_in(b"TO", rest)
        if not address:
            return self.wrong(b"501 no recipient")
        if len(self.recipients) == MAX_RECIPIENTS:
            return b"452 too many recipients"
        self.recipients.append(address)
        return b"250 ok"

    async def take_message(self):
        await self.lines.write(b"354 end with a dot")
        size = 0
        while (line := await self.lines.read()) != b".":
            size += len(line.removeprefix(b".")) + 2  # undo the dot-stuffing
            if size > ENDLESS:
                raise Farewell("552 too large, good bye")
        if size > MAX_MESSAGE:
            await self.lines.write(b"552 too large")
        else:
            how = "over TLS" if self.secure else "in the clear"
            print(f"{size} bytes {how}, from <{self.sender}> to {', '.join(self.recipients)}", flush=True)
            await self.lines.write(b"250 taken")
        self.forget()


def address_in(keyword, rest):
    """The address and the parameters in ``FROM:<alice@example.org> SIZE=100``; (None, b"") if it is invalid."""
    match = re.fullmatch(keyword + rb": ?<([!-;=?-~]*)>((?: [!-~]+)*)", rest, re.IGNORECASE)
    return (match[1].decode(), match[2]) if match else (None, b"")


class SMTPServer(iostreamsrv.TCPServer):
    read_timeout = 300
    max_connections_per_ip = 100

    def __init__(self, **options):
        super().__init__(**options)
        with tempfile.TemporaryDirectory() as folder:
            self.own_certificates = Certificates(self_signed("localhost", "127.0.0.1", "::1").write(folder))

    async def handle_stream(self, stream, address):
        await Session(stream, self.own_certificates).converse()
