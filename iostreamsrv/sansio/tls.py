"""TLS without a socket: ciphertext in, plaintext out, and back.

OpenSSL does the work, over two buffers in memory. In comparison with a socket of its own this has three merits: one
receive and one send carry many records; bytes that were received before TLS began can be given to it; and nothing that
it has not been given can be lost in it.
"""

import ssl

TAKE = 1 << 20
"""Bytes to decrypt at once where all is wanted."""


class Truncated(Exception):
    """The ciphertext ended without the peer's word that it was to end: somebody may have cut it."""


class TLSEngine:
    """One end of a TLS connection.

    :ivar object: the `ssl.SSLObject`, to ask for certificates, ciphers and versions.
    """

    __slots__ = ("_ended", "_failure", "_incoming", "_outgoing", "_plaintext", "object")

    def __init__(
        self,
        context: ssl.SSLContext,
        server_side: bool,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.object = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname, session)
        self._plaintext: list[bytes] = []  # decrypted before somebody asked for it
        self._failure: ssl.SSLError | Truncated | None = None
        self._ended = False

    def feed(self, ciphertext: bytes | bytearray) -> None:
        """Take what arrived."""
        self._incoming.write(ciphertext)

    def feed_end(self) -> None:
        """There is no more to come."""
        self._ended = True
        self._incoming.write_eof()

    def take_outgoing(self) -> bytes:
        """What is to be sent: handshakes, answers to the peer, and what was written."""
        return self._outgoing.read()

    def has_output(self) -> bool:
        """Whether something is to be sent."""
        return self._outgoing.pending > 0

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is done. Otherwise more is wanted.

        :raises ssl.SSLError: it has failed. What is to be sent then tells the peer.
        """
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def has_input(self) -> bool:
        """Whether a read may give something without more ciphertext."""
        return bool(self._plaintext or self._incoming.pending or self.object.pending())

    def read(self, size: int) -> bytes | None:
        """Up to ``size`` bytes of plaintext; b"" where the peer has ended; None where more ciphertext is wanted.

        :raises Truncated: the ciphertext has ended, and the peer has not.
        :raises ssl.SSLError: the ciphertext is broken.
        """
        if self._plaintext:
            return self._plaintext.pop(0)
        if self._failure is not None:
            raise self._failure
        first = self._read_record(size)
        if not first or not self.has_input():
            return first
        return first + self._read_on(size - len(first))

    def _read_on(self, size: int) -> bytes:
        """What else there is. An error is kept for the next read."""
        records = []
        try:
            while size and self.has_input() and (record := self._read_record(size)):
                records.append(record)
                size -= len(record)
        except (ssl.SSLError, Truncated) as error:
            self._failure = error  # OpenSSL would not say it again
        return b"".join(records)

    def _read_record(self, size: int) -> bytes | None:
        if not (self._ended or self._incoming.pending or self.object.pending()):
            return None  # saves an exception
        try:
            return self.object.read(size)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLEOFError as error:
            raise Truncated from error

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt all of ``data``."""
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += self.object.write(view[done:])

    def close(self) -> None:
        """Tell the peer that this side ends. What it has sent, and sends, can still be read.

        Without a handshake, or after an error, there is nothing to tell.
        """
        # OpenSSL looks for the peer's answer in what has arrived, and gives up where it finds data: take that first.
        while plaintext := self._read_on(TAKE):
            self._plaintext.append(plaintext)
        try:
            if self._failure is None:
                self.object.unwrap()
        except ssl.SSLError:  # as a rule SSLWantReadError: the peer has not answered yet
            pass
