"""TLS without a socket: ciphertext in, plaintext out, and back.

OpenSSL does the work, over two buffers in memory. In comparison with a socket of its own this has three merits: one
receive and one send carry many records; bytes that were received before TLS began can be given to it; and nothing that
it has not been given can be lost in it.
"""

import contextlib
import ssl
import sys
import threading
from collections.abc import Callable
from copy import copy

TAKE = 1 << 20
"""Bytes to decrypt at once where all is wanted."""


class Truncated(Exception):
    """The ciphertext ended without the peer's word that it was to end: somebody may have cut it."""


class TLSEngine:
    """One end of a TLS connection.

    :ivar object: the `ssl.SSLObject`, to ask for certificates, ciphers and versions.
    :ivar outgoing: what is to be sent; ``outgoing.pending`` says how many bytes.
    :ivar has_input: whether a read may give something, or an end or an error, without more ciphertext.
    """

    __slots__ = ("_by_name", "_end", "_fed_all", "_incoming", "_plaintext", "has_input", "object", "outgoing")

    def __init__(
        self,
        context: ssl.SSLContext,
        server_side: bool,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.object = context.wrap_bio(self._incoming, self.outgoing, server_side, server_hostname, session)
        self._by_name = context.sni_callback is not None
        self._plaintext: list[bytes] = []  # decrypted before somebody asked for it
        self._end: bytes | ssl.SSLError | Truncated | None = None  # what the reads end with: b"" where all is well
        self._fed_all = False
        self.has_input = False

    def feed(self, ciphertext: bytes | bytearray) -> None:
        """Take what arrived."""
        self._incoming.write(ciphertext)
        self.has_input = True

    def feed_end(self) -> None:
        """There is no more to come."""
        self._fed_all = True  # OpenSSL is not told: it would send an alert, and could send nothing after it
        self.has_input = True

    def take_outgoing(self) -> bytes:
        """What is to be sent: handshakes, answers to the peer, and what was written."""
        return self.outgoing.read()

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is done. Otherwise more is wanted.

        :raises ssl.SSLError: it has failed. What is to be sent then tells the peer.
        """
        try:
            with _NO_WORD_OF_BAD_NAMES if self._by_name else contextlib.nullcontext():
                self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def read(self, size: int) -> bytes | None:
        """Up to ``size`` bytes of plaintext; b"" where the peer has ended; None where more ciphertext is wanted.

        :raises Truncated: the ciphertext has ended, and the peer has not.
        :raises ssl.SSLError: the ciphertext is broken.
        """
        if self._plaintext:
            first = self._plaintext.pop(0)
            if len(first) > size:
                self._plaintext.insert(0, first[size:])
            return first[:size]
        record = self._read_record(size)
        if record and self.has_input:
            record += self._read_on(size - len(record))
        return record

    def _read_on(self, size: int) -> bytes:
        """What else there is, without the end or the error behind it: that is for the next read."""
        records = []
        with contextlib.suppress(ssl.SSLError, Truncated):
            while size and self.has_input and (record := self._read_record(size)):
                records.append(record)
                size -= len(record)
        return b"".join(records)

    def _read_record(self, size: int) -> bytes | None:
        if self._end is None:
            record = self._decrypt(size)
            if record is not None or self._end is None:
                return record
        # OpenSSL would not say it twice.
        if isinstance(self._end, bytes):
            return self._end
        raise copy(self._end)  # the one that is kept is without a traceback, whose frames it would keep as well

    def _decrypt(self, size: int) -> bytes | None:
        """The next bytes. None where there are none now, or no more, which is then noted as the end."""
        if self.has_input:  # saves an exception
            try:
                record = self.object.read(size)
                if record:
                    # Only a read that is full can have left a part of its record.
                    if not (self._incoming.pending or self._fed_all or (len(record) == size and self.object.pending())):
                        self.has_input = bool(self._plaintext)
                    return record
                self._end = b""
            except ssl.SSLWantReadError:
                self.has_input = bool(self._plaintext)
            except ssl.SSLZeroReturnError:
                self._end = b""
            except ssl.SSLError as error:
                self._end = copy(error)
        if self._end is None and self._fed_all:
            self._end = Truncated()
            self.has_input = True
        return None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt all of ``data``."""
        if len(data):
            self.object.write(data)  # there is always room in memory, so it takes all

    def close(self) -> None:
        """Tell the peer that this side ends. What it has sent, and sends, can still be read.

        Without a handshake, or after an error, there is nothing to tell.
        """
        # OpenSSL looks for the peer's answer in what has arrived, and gives up where it finds data: take that first.
        while plaintext := self._read_on(TAKE):
            self._plaintext.append(plaintext)
        self.has_input = bool(self._plaintext) or self._end is not None
        if not isinstance(self._end, ssl.SSLError):
            with contextlib.suppress(ssl.SSLError):  # as a rule SSLWantReadError: the peer has not answered yet
                self.object.unwrap()


class _NoWordOfBadNames:
    """CPython prints a traceback for a client's server name that is not ASCII, before any callback sees it.

    The handshake fails, as it should; the traceback would be for any client to print at will. The hook is the whole
    process's: it is there while any thread shakes hands, and leaves out what comes of those threads' handshakes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: set[int] = set()  # that shake hands
        self._hook: _Hook | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._threads.add(threading.get_ident())
            if self._hook is None:
                report = sys.unraisablehook
                while isinstance(report, _Hook):  # somebody has put it back meanwhile
                    report = report.report
                self._hook = sys.unraisablehook = _Hook(report, self._threads)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads.discard(threading.get_ident())
            if self._hook is not None and not self._threads:
                if sys.unraisablehook is self._hook:  # else somebody has put another one in its place
                    sys.unraisablehook = self._hook.report
                self._hook = None


class _Hook:
    """In the place of ``sys.unraisablehook``."""

    def __init__(self, report: Callable[["sys.UnraisableHookArgs"], object], threads: set[int]) -> None:
        self.report = report
        self._threads = threads

    def __call__(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if not isinstance(unraisable.exc_value, UnicodeDecodeError) or threading.get_ident() not in self._threads:
            self.report(unraisable)


_NO_WORD_OF_BAD_NAMES = _NoWordOfBadNames()
