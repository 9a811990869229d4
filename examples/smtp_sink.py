"""A mail server that takes every message, prints who sent it to whom, and keeps nothing. It offers STARTTLS.

For trying programs that send mail. Its certificate is made for the occasion.
"""

import argparse
import re
import sys
import tempfile

import iostreamsrv
from iostreamsrv.certificates import Certificates, self_signed

MAX_LINE = 1000
MAX_MESSAGE = 1 << 20
MAX_RECIPIENTS = 100
MAX_ERRORS = 10
"""Bytes of a line and of a message, recipients of one, and what one client may do wrong."""


class Session:
    """One client: what it has said so far."""

    def __init__(self, certificates):
        self.certificates = certificates
        self.secure = False
        self.errors = 0
        self.forget()

    def forget(self):
        self.sender = None
        self.recipients = []

    async def converse(self, stream):
        await stream.write(b"220 smtp_sink\r\n")
        while self.errors < MAX_ERRORS:
            line = (await stream.read_until(b"\n", MAX_LINE)).strip()
            verb, _, rest = line.partition(b" ")
            verb = verb.upper()
            if verb == b"QUIT":
                await stream.write(b"221 good bye\r\n")
                return
            if verb == b"STARTTLS" and not self.secure:
                await stream.write(b"220 go ahead\r\n")
                stream = await stream.start_tls(True, self.certificates)
                self.secure = True
                self.forget()  # what was said in the clear does not count
            elif verb == b"DATA" and self.recipients:
                await stream.write(b"354 end with a dot\r\n")
                await self.take_message(stream)
            else:
                await stream.write(self.answer(verb, rest))
        await stream.write(b"421 too many errors\r\n")

    def answer(self, verb, rest):
        if verb in (b"HELO", b"EHLO"):
            self.forget()
            offer = [b"smtp_sink"] if verb == b"HELO" or self.secure else [b"smtp_sink", b"STARTTLS"]
            return b"".join(b"250%c%s\r\n" % (b" -"[word is not offer[-1]], word) for word in offer)
        if verb == b"MAIL" and (address := address_in(b"FROM", rest)) is not None and self.sender is None:
            self.sender = address
        elif verb == b"RCPT" and (address := address_in(b"TO", rest)) and self.sender is not None:
            if len(self.recipients) >= MAX_RECIPIENTS:
                return b"452 too many recipients\r\n"
            self.recipients.append(address)
        elif verb == b"RSET":
            self.forget()
        elif verb != b"NOOP":
            self.errors += 1
            known = verb in (b"MAIL", b"RCPT", b"DATA", b"STARTTLS")
            return b"503 not now, or not so\r\n" if known else b"500 unknown command\r\n"
        return b"250 ok\r\n"

    async def take_message(self, stream):
        size = 0
        while (line := await stream.read_until(b"\r\n", MAX_LINE)) != b".\r\n":
            size += len(line)
        if size > MAX_MESSAGE:
            await stream.write(b"552 too large\r\n")
        else:
            how = "over TLS" if self.secure else "in the clear"
            print(f"{size} bytes {how}, from {self.sender} to {', '.join(self.recipients)}", flush=True)
            await stream.write(b"250 taken\r\n")
        self.forget()


def address_in(keyword, rest):
    """The address in ``FROM:<somebody@example.org>``; None if there is none."""
    match = re.fullmatch(keyword + rb": ?<([!-=?-~]*)>( .*)?", rest, re.IGNORECASE)
    return None if match is None else match[1].decode()


class SMTPServer(iostreamsrv.TCPServer):
    read_timeout = 300
    max_connections_per_ip = 100

    def __init__(self, certificates):
        super().__init__()
        self.own_certificates = certificates

    async def handle_stream(self, stream, address):
        await Session(self.own_certificates).converse(stream)


async def main(arguments):
    with tempfile.TemporaryDirectory() as folder:
        server = SMTPServer(Certificates(self_signed("localhost", "127.0.0.1", "::1").write(folder)))
        server.listen(arguments.port, arguments.host)
        for host, port, *_ in server.addresses:
            print("listening on", f"[{host}]:{port}" if ":" in host else f"{host}:{port}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8888, help="0: any free one; default: %(default)s")
    try:
        iostreamsrv.run(main(parser.parse_args()))
    except (iostreamsrv.ListenError, iostreamsrv.OptionError) as error:
        sys.exit(f"smtp_sink: {error}")
