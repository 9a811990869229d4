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

HEADER = 5
"""Bytes that a record begins with: its type, its version, and the length of the rest."""

RECORD = 16384
"""Most bytes of plaintext in a record."""

EXPANSION = 2048
"""Most bytes by which a record may be longer than its plaintext."""

PIECE = 4104
"""Most bytes of a record that are given to OpenSSL at once, and most of plaintext that it makes a record of, until a
connection has moved :data:`BULK`. Its buffers in memory never shrink. Whole records would leave 27 KB each way to every
idle connection that has once had a long message; a quarter of one leaves 7."""

BULK = 1 << 21
"""Bytes in long messages after which a connection is worth whole records: pieces take a third more of the engine's
time."""

WORK = 32
"""Records that are worked off at once: a chunk that was received may hold thousands of them. Most are of one byte then,
and no peer who means well sends those."""

EMPTY_COSTS = 4
BYTES_PER_MESSAGE = 32
"""How many records one without a byte for the application counts for: four, as new keys, or an answer, may be made for
it, and one more for each 32 bytes, as it may hold many messages."""

DATA = 23
HANDSHAKE = 22
LONGEST_HELLO = 2048
"""Most bytes of a handshake record behind the handshake, before TLS 1.3. A renegotiation is refused, and a longer
record would be many at once: 16 KiB hold 4,000, and OpenSSL answers each."""

MOST_EMPTY = 32
"""Records in a row that may have no byte for the application. Each costs this side far more than the peer, so there are
only as many as BoringSSL allows (kMaxEmptyRecords, kMaxKeyUpdates)."""

NO_RECORD = b"\0\x03\x03\0\x40" + bytes(64)
"""A record of a type that there is not."""


class Truncated(Exception):
    """The ciphertext ended without the peer's word that it was to end: somebody may have cut it."""


class TLSEngine:
    """One end of a TLS connection.

    Records are given to OpenSSL one by one, each when all of it has come. So the work of a call is bounded, whatever
    the peer sends; records that OpenSSL keeps to itself can be counted; and OpenSSL's buffers, which never shrink,
    stay as small as a record, or as a piece of one.

    :ivar object: the `ssl.SSLObject`, to ask for certificates, ciphers and versions.
    :ivar by_name: whether a callback of the user's chooses certificates by the name that a client asks for.
    :ivar outgoing: what is to be sent; ``outgoing.pending`` says how many bytes.
    :ivar has_input: whether a read may give something, or an end or an error, without more ciphertext. If it is still
        True after a read that gave None, that read had enough to do: others may have their turn before the next.
    """

    __slots__ = (
        "_at",
        "_chunk",
        "_empty",
        "_encrypted",
        "_end",
        "_fed_all",
        "_handshaken",
        "_incoming",
        "_inside",
        "_kept",
        "_missing",
        "_moved",
        "_server_side",
        "_size",
        "_speaks_first",
        "_tickets",
        "_tired",
        "by_name",
        "has_input",
        "object",
        "outgoing",
    )

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
        self.by_name = context.sni_callback is not None
        self._server_side = server_side
        self._speaks_first = not server_side  # the handshake begins without input
        self._chunk: bytes | bytearray = b""  # what has come, and OpenSSL has not got from _at on
        self._at = 0
        self._missing = 0  # bytes of the record that OpenSSL has got a part of
        self._size = 0  # of that record
        self._handshaken = False
        self._inside = False  # OpenSSL holds plaintext, or a record that it has not looked at
        self._moved = 0  # bytes in long messages, both ways
        self._empty = 0  # records in a row without a byte for the application
        self._tired = False  # records without a byte have been enough work for a while
        self._kept = b""  # decrypted before somebody asked for it
        self._end: bytes | ssl.SSLError | Truncated | None = None  # what the reads end with: b"" where all is well
        self._fed_all = False
        self._encrypted: list[bytes] = []  # goes out before what is in outgoing
        self._tickets = b""  # goes out before all that, and never alone
        self.has_input = False

    def feed(self, ciphertext: bytes | bytearray) -> None:
        """Take what arrived."""
        self._chunk = self._chunk[self._at :] + ciphertext if self._chunk else ciphertext
        self._at = 0
        self.has_input = True

    def feed_end(self) -> None:
        """There is no more to come."""
        self._fed_all = True  # OpenSSL is not told: it would send an alert, and could send nothing after it
        self.has_input = True

    @property
    def undecrypted(self) -> int:
        """Bytes of ciphertext that have come, and of which nothing has come yet."""
        given = self._size - self._missing if self._missing else self._incoming.pending
        return given + len(self._chunk) - self._at

    def _feed_record(self) -> bool:
        """Give OpenSSL what there is of the next record; whether it can do something with it."""
        chunk, at, missing = self._chunk, self._at, self._missing
        left = len(chunk) - at
        begins = not missing
        if begins:
            if left < HEADER:
                self._chunk, self._at = chunk[at:], 0
                return False
            missing = self._size = HEADER + (chunk[at + 3] << 8 | chunk[at + 4])
            if missing > LONGEST_HELLO and chunk[at] == HANDSHAKE and self._handshaken:
                self._incoming.write(NO_RECORD)
                return True
        if missing < left:
            self._give(chunk[at : at + missing])
            self._at = at + missing
            self._missing = 0
            return True
        self._give(chunk[at:] if at else chunk)
        self._chunk, self._at = b"", 0
        if begins and missing > left and not _may_be_a_record(chunk[at : at + HEADER]):
            return True  # OpenSSL says what is wrong: the rest may never come
        self._missing = missing - left
        return not self._missing

    def _give(self, part: bytes | bytearray) -> None:
        """Give OpenSSL a part of a record. It takes each piece out of the buffer in memory before the next comes."""
        room = PIECE - self._incoming.pending
        if len(part) > room and self._moved < BULK and self._handshaken:
            self._moved += len(part)
            while len(part) > room:
                self._incoming.write(part[:room])
                part = part[room:]
                room = PIECE
                try:
                    self.object.read(1)  # takes the piece: the record is not whole, so there is nothing to read yet
                except ssl.SSLWantReadError:
                    pass
        self._incoming.write(part)

    @property
    def holds_tickets(self) -> bool:
        """Whether session tickets wait for the next output."""
        return bool(self._tickets)

    def take_outgoing(self) -> bytes:
        """What is to be sent: handshakes, answers to the peer, and what was written.

        A server's session tickets wait for company. A client that only writes, and closes, would leave them unread,
        which makes its kernel send a reset, and this may destroy what it has written.
        """
        ciphertext = self.outgoing.read()
        if self._encrypted:
            ciphertext = b"".join([*self._encrypted, ciphertext])
            self._encrypted.clear()
        if self._tickets and ciphertext:
            ciphertext = self._tickets + ciphertext
            self._tickets = b""
        return ciphertext

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is done. Otherwise more is wanted, unless there still is input.

        :raises ssl.SSLError: it has failed. What is to be sent then tells the peer.
        """
        if self._handshaken:
            return True
        for _ in range(WORK):
            if not (self._feed_record() or self._speaks_first):
                self.has_input = False
                return False
            self._speaks_first = False
            if self._shake_hands():
                self._handshaken = True
                self.has_input = bool(self._chunk)
                # From 1.3 on a server has had its last word by then; what is there are tickets.
                if self._server_side and self.object.version() == "TLSv1.3":
                    self._tickets = self.outgoing.read()
                return True
        self.has_input = bool(self._chunk)
        return False

    def _shake_hands(self) -> bool:
        try:
            if self.by_name:
                with _MUTE_SNI_DECODE_ERRORS:
                    self.object.do_handshake()
            else:
                self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def decrypt(self, ciphertext: bytes, size: int) -> bytes | None:
        """:meth:`feed` and :meth:`read` in one, where :attr:`has_input` is False.

        Most requests are one whole record, with nothing before and behind it. That way is short.
        """
        length = len(ciphertext)
        if (
            self._chunk
            or self._missing
            or not HEADER < length <= PIECE
            or ciphertext[0] != DATA
            or length != HEADER + (ciphertext[3] << 8 | ciphertext[4])
        ):
            self.feed(ciphertext)
            return self.read(size)
        self._incoming.write(ciphertext)
        self._size = length
        try:
            record = self.object.read(size if size < length else length)
        except ssl.SSLError as error:
            self._brought_nothing(error, WORK)
        else:
            if record:
                self._empty = 0
                if len(record) == size:
                    self._inside = self.has_input = self.object.pending() > 0
                return record
            self._end = b""
        self.has_input = self._tired or self._end is not None
        return None if self._end is None else self._read_end(self._end)

    def read(self, size: int) -> bytes | None:
        """Up to ``size`` bytes of plaintext; b"" where the peer has ended; None where more ciphertext is wanted, or, if
        ``has_input`` says so, another call.

        :raises Truncated: the ciphertext has ended, and the peer has not.
        :raises ssl.SSLError: the ciphertext is broken, or too much of it brings nothing.
        """
        if self._kept:
            kept, self._kept = self._kept[:size], self._kept[size:]
            return kept
        if self._end is not None:
            return self._read_end(self._end)
        if self._tired:
            self._tired = False
            return None
        records = []
        work = WORK
        while size and work > 0:
            try:
                if not (self._inside or (self._chunk and self._feed_record())):
                    break
                record = self.object.read(size if size < RECORD else RECORD)  # it reserves as much each time
            except ssl.SSLError as error:
                self._inside = False
                work = self._brought_nothing(error, work)
                if self._end is not None:
                    break
                continue
            if not record:
                self._end = b""
                break
            records.append(record)
            work -= 1
            self._empty = 0
            size -= len(record)
            self._inside = not size and self.object.pending() > 0  # only a read that is full can leave something
        more = self._inside or self._tired or (bool(self._chunk) and (not size or work <= 0))
        if self._fed_all and not more and self._end is None:
            self._end = Truncated()
        self.has_input = more or self._end is not None
        if records:
            return records[0] if len(records) == 1 else b"".join(records)
        return None if self._end is None else self._read_end(self._end)

    def _brought_nothing(self, error: ssl.SSLError, work: int) -> int:
        """A record has: how many more may be worked off now."""
        self._read_nothing(error)
        work -= EMPTY_COSTS + self._size // BYTES_PER_MESSAGE
        self._tired = work <= 0
        return work

    def _read_nothing(self, error: ssl.SSLError) -> None:
        if isinstance(error, ssl.SSLWantReadError):  # a record that OpenSSL keeps to itself
            self._empty += 1
            if self._empty > MOST_EMPTY:
                self._refuse()
        elif isinstance(error, ssl.SSLZeroReturnError):
            self._end = b""
        else:
            self._end = copy(error)

    def _refuse(self) -> None:
        """End with an error, and tell the peer: OpenSSL is made to send a fatal alert."""
        self._incoming.write(NO_RECORD)
        with contextlib.suppress(ssl.SSLError):
            self.object.read(1)
        self._end = ssl.SSLError(ssl.SSL_ERROR_SSL, f"more than {MOST_EMPTY} records in a row bring no data")

    def _read_end(self, end: bytes | ssl.SSLError | Truncated) -> bytes:
        # OpenSSL would not say it twice.
        if isinstance(end, bytes):
            return end
        raise copy(end)  # the one that is kept is without a traceback, whose frames it would keep as well

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt all of ``data``."""
        size = len(data)
        most = PIECE
        if size > PIECE:
            if self._moved < BULK:
                self._moved += size
            else:
                most = RECORD
        if size <= most:
            if size:
                self.object.write(data)  # there is always room in memory, so it takes all
            return
        with memoryview(data) as view:
            for at in range(0, size, most):
                self.object.write(view[at : at + most])
                self._encrypted.append(self.outgoing.read())

    def close(self) -> None:
        """Tell the peer that this side ends. What it has sent, and sends, can still be read.

        Without a handshake, or after an error, there is nothing to tell.
        """
        # OpenSSL looks for the peer's answer, and gives up where it finds data: take that first.
        if self._inside:
            self._inside = False
            self._kept = self.object.read(RECORD)
        if not isinstance(self._end, ssl.SSLError):
            with contextlib.suppress(ssl.SSLError):  # as a rule SSLWantReadError: the peer has not answered yet
                self.object.unwrap()


def _may_be_a_record(header: bytes | bytearray) -> bool:
    """Whether these are the first bytes of a record, as far as one can see."""
    return 20 <= header[0] <= 24 and header[1] == 3 and (header[3] << 8 | header[4]) <= RECORD + EXPANSION


class _MuteSniDecodeErrors:
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


_MUTE_SNI_DECODE_ERRORS = _MuteSniDecodeErrors()
