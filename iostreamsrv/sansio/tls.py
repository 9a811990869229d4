"""TLS without a socket: ciphertext in, plaintext out, and back.

OpenSSL does the work, over two buffers in memory. Compared with an `ssl.SSLSocket` this has three merits: one receive
and one send carry many records; bytes that were received before TLS started can be fed to it; and it never takes bytes
from the socket that were not fed to it.
"""

import contextlib
import ssl
import struct
from copy import copy
from typing import Any

from .servernames import MUTE_DECODE_ERRORS

HEADER = 5
"""Bytes of a record's header: its type, its version, and the length of the rest."""

RECORD = 16384
"""Most bytes of plaintext in a record."""

EXPANSION = 2048
"""Most bytes by which a record may be longer than its plaintext."""

PIECE = 4104
"""Most plaintext to encrypt at once, until a connection has moved :data:`BULK`. OpenSSL's buffers never shrink, and are
a third larger than what they held: an idle connection that once sent 64 KiB at once keeps 87 kB, and one that received
a whole record 22 kB. With quarters of a record it keeps 5.5 kB."""

INPUT_PIECE = 2736
"""Most bytes of a record that are given to OpenSSL at once, until then: a sixth of a whole record, which leaves 3.6 kB.
Smaller ones would take more time than their memory is worth."""

BULK = 1 << 22
"""Bytes in long messages after which a connection does without pieces: they take a third more of the engine's time."""

WORK = 32
"""Most records to process at once. A received chunk may hold thousands, if most have one byte; only an attacker sends
such records."""

EMPTY_COSTS = 4
BYTES_PER_MESSAGE = 32
"""How many records one without application data counts for: four, because it may make OpenSSL compute keys or send an
answer; and one more for each 32 bytes, because it may hold many messages."""

DATA = 23
HANDSHAKE = 22
LONGEST_HELLO = 2048
"""Most bytes of a handshake record after the handshake, before TLS 1.3. Each message in it asks for a renegotiation,
which OpenSSL refuses with an answer; 16 KiB would hold 4,000 of them."""

MOST_EMPTY = 32
"""Most records in a row without application data. Each costs this side far more than the peer. BoringSSL has the same
limit (kMaxEmptyRecords, kMaxKeyUpdates)."""

NO_RECORD = b"\0\x03\x03\0\x40" + bytes(64)
"""A record of a type that does not exist."""

_HEADER, _DATA, _PIECE = HEADER, DATA, PIECE  # in the compiled core these are numbers of C

_UNPACK_HEADER = struct.Struct("!BxxH").unpack_from
"""Gives the type of a record, and the length of what follows its header."""


class Truncated(Exception):
    """The ciphertext ended without a close_notify: it may have been cut off on its way."""


class RecordFeed:
    """Gives OpenSSL one record after the other, each when all of it has arrived.

    So the work of a call is bounded, whatever the peer sends; records without application data can be counted; and
    OpenSSL's buffers, which never shrink, stay as small as a record, or as a piece of one.
    """

    __slots__ = (
        "_at",
        "_chunk",
        "_direct",
        "_handshaken",
        "_incoming",
        "_missing",
        "_moved",
        "_size",
        "has_input",
        "object",
    )

    def __init__(self, incoming: ssl.MemoryBIO, tls: ssl.SSLObject) -> None:
        self._incoming = incoming
        self.object = tls
        self._direct = _direct(tls)
        self._chunk: bytes | bytearray | memoryview = b""  # received; OpenSSL has what is before _at
        self._at = 0
        self._missing = 0  # if OpenSSL has the beginning of a record: how many bytes the record still lacks
        self._size = 0  # of that record
        self._handshaken = False
        self._moved = 0  # bytes in long messages, in both directions
        self.has_input = False

    def feed(self, ciphertext: bytes | bytearray | memoryview) -> None:
        """Add received bytes. Before a view is released, call :meth:`copy_input`."""
        self._chunk = b"".join((self._chunk[self._at :], ciphertext)) if self._chunk else ciphertext
        self._at = 0
        self.has_input = True

    def copy_input(self) -> None:
        """Keep what was fed and not decrypted yet as bytes."""
        if self._chunk:
            self._chunk, self._at = bytes(self._chunk[self._at :]), 0

    @property
    def undecrypted(self) -> int:
        """Bytes of ciphertext that were fed and not decrypted yet."""
        given = self._size - self._missing if self._missing else self._incoming.pending
        return given + len(self._chunk) - self._at

    def _feed_record(self) -> bool:
        """Give OpenSSL what there is of the next record; return whether it can process it."""
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
            end = at + missing
            # To copy a short part takes less time than to make two views.
            self._give(chunk[at:end] if missing <= _PIECE else memoryview(chunk)[at:end])
            self._at = end
            self._missing = 0
            return True
        self._give(memoryview(chunk)[at:] if at else chunk)
        self._chunk, self._at = b"", 0
        if begins and missing > left and not _may_be_a_record(chunk[at : at + HEADER]):
            return True  # OpenSSL raises the error at once: the rest may never come
        self._missing = missing - left
        return not self._missing

    def _give(self, part: bytes | bytearray | memoryview) -> None:
        """Give OpenSSL a part of a record, in pieces: it takes each from the buffer before the next is written."""
        if self._size > INPUT_PIECE and self._moved < BULK and self._handshaken:
            room = INPUT_PIECE - self._incoming.pending
            if len(part) > room:
                self._moved += len(part)
            while len(part) > room:
                self._incoming.write(part[:room])
                part = part[room:]
                room = INPUT_PIECE
                try:
                    self._direct.read(1)  # takes the piece; the record is not complete, so it gives nothing yet
                except ssl.SSLWantReadError:
                    pass
        self._incoming.write(part)

    def _read_long_records(self, space: memoryview) -> tuple[int, ssl.SSLError | None]:
        """Decrypt long records of data into ``space``, as far as they are whole and fit; return how many bytes, and the
        error of the last record, if it had no data.

        One record after the other would give the same, but what is around a record takes as much time as OpenSSL needs
        for the record.
        """
        chunk, at, filled, count = self._chunk, self._at, 0, 1
        last, fits = len(chunk) - PIECE, len(space) - RECORD
        header, give, read = _UNPACK_HEADER, self._incoming.write, self._direct.read
        failed: ssl.SSLError = ssl.SSLZeroReturnError()  # a close_notify, for which OpenSSL reads 0 bytes
        with memoryview(chunk) as view:
            while count and filled <= fits and at < last:
                kind, length = header(chunk, at)
                end = at + HEADER + length
                if kind != DATA or length < PIECE or end > len(chunk):
                    break
                give(view[at:end])
                self._size, at = end - at, end
                try:
                    count = read(RECORD, space[filled:])
                except ssl.SSLError as error:
                    failed, count = error, 0
                filled += count
        self._chunk, self._at = (chunk, at) if at < len(chunk) else (b"", 0)
        return filled, None if count else failed


class TLSEngine(RecordFeed):
    """One end of a TLS connection.

    :ivar object: the `ssl.SSLObject`: it knows certificates, ciphers and versions.
    :ivar by_name: whether a callback of the user chooses certificates by the name that a client asks for.
    :ivar outgoing: bytes to send; ``outgoing.pending`` is their number.
    :ivar may_answer: a read has processed a record without data, to which OpenSSL may have an answer to send. The
        caller sets it to False when it has looked at the output. (Records of data have no answer.)
    :ivar has_input: whether another read may give data, EOF or an error without more ciphertext. If it is True after a
        read that returned None, that read has done enough work: let other connections have their turn first.
    """

    __slots__ = (
        "_empty",
        "_encrypted",
        "_end",
        "_fed_all",
        "_inside",
        "_kept",
        "_server_side",
        "_speaks_first",
        "_tickets",
        "_tired",
        "by_name",
        "may_answer",
        "outgoing",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        server_side: bool,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        super().__init__(incoming, context.wrap_bio(incoming, self.outgoing, server_side, server_hostname, session))
        self.by_name = context.sni_callback is not None
        self._server_side = server_side
        self._speaks_first = self.has_input = not server_side  # a client begins the handshake without input
        self.may_answer = False
        self._inside = False  # OpenSSL holds plaintext, or a record that it has not decrypted yet
        self._empty = 0  # records in a row without application data
        self._tired = False  # records without application data have taken enough time for one call
        self._kept = b""  # decrypted before a read asked for it
        self._end: bytes | ssl.SSLError | Truncated | None = None  # how the input ended: b"" is a close_notify
        self._fed_all = False
        self._encrypted: list[bytes] | None = None  # sent before what is in outgoing
        self._tickets = b""  # sent before all that, and never alone

    def feed_end(self) -> None:
        """Record that no more ciphertext will come."""
        self._fed_all = True  # OpenSSL must not know: it would send an alert, and could send nothing after it
        self.has_input = True

    @property
    def holds_tickets(self) -> bool:
        """Whether session tickets wait for the next output; see :meth:`take_outgoing`."""
        return bool(self._tickets)

    def take_outgoing(self) -> bytes:
        """Take what is to be sent: the handshake, answers to the peer, and what was written.

        A server's session tickets are not sent alone, but with the next output. A client that only writes, then closes,
        would not read them; so its kernel would send a reset, which may destroy what it has written.
        """
        ciphertext = self.outgoing.read()
        if self._encrypted:
            ciphertext = b"".join([*self._encrypted, ciphertext])
            self._encrypted = None
        if self._tickets and ciphertext:
            ciphertext = self._tickets + ciphertext
            self._tickets = b""
        return ciphertext

    def handshake(self) -> bool:
        """Continue the handshake; return whether it is done. If not, feed more, unless ``has_input`` is True.

        :raises ssl.SSLError: it has failed. The output then has an alert for the peer.
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
                # With 1.3 the server has sent all of its handshake by then: this output is tickets.
                if self._server_side and self.object.version() == "TLSv1.3":
                    self._tickets = self.outgoing.read()
                return True
        self.has_input = bool(self._chunk)
        return False

    def _shake_hands(self) -> bool:
        try:
            if self.by_name:
                with MUTE_DECODE_ERRORS:
                    self.object.do_handshake()
            else:
                self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def decrypt(self, ciphertext: bytes, size: int) -> bytes | None:
        """:meth:`feed` and :meth:`read` in one call. Only while :attr:`has_input` is False.

        Most requests are exactly one record, for which this is faster.
        """
        length = len(ciphertext)
        if (
            self._chunk
            or self._missing
            or not _HEADER < length <= _PIECE
            or ciphertext[0] != _DATA
            or length != _HEADER + (ciphertext[3] << 8 | ciphertext[4])
        ):
            self.feed(ciphertext)
            return self.read(size)
        self._incoming.write(ciphertext)
        self._size = length
        try:
            record: bytes = self._direct.read(size if size < length else length)
        except ssl.SSLError as error:
            self._brought_nothing(error, WORK)
        else:
            if record:
                self._empty = 0
                if len(record) == size:
                    self._inside = self.has_input = self._direct.pending() > 0
                return record
            self._end = b""
        self.has_input = self._tired or self._end is not None
        return None if self._end is None else self._read_end(self._end)

    def read(self, size: int) -> bytes | None:
        """Up to ``size`` bytes of plaintext; b"" after the peer's close_notify. None: feed more ciphertext or, if
        ``has_input`` is True, call again.

        :raises Truncated: the ciphertext has ended without a close_notify.
        :raises ssl.SSLError: the ciphertext is broken, or too many records have no data.
        """
        if self._kept or self._end is not None or self._tired:
            return self._read_without_input(size)
        records: list[bytes] = []
        self._read_records(size, records, None, 0)
        if records:
            return records[0] if len(records) == 1 else b"".join(records)
        return None if self._end is None else self._read_end(self._end)

    def read_into(self, space: memoryview) -> int | None:
        """As :meth:`read`, into ``space``; return how many bytes, 0 after the peer's close_notify."""
        if self._kept or self._end is not None or self._tired:
            read = self._read_without_input(len(space))
            if read:
                space[: len(read)] = read
            return None if read is None else len(read)
        whole = self._moved >= BULK and not (self._missing or self._inside)
        filled, failed = self._read_long_records(space) if whole else (0, None)
        if filled:
            self._empty = 0
        if failed is not None:
            self._brought_nothing(failed, WORK)
        if self._end is not None or self._tired:
            self.has_input = True
            return filled or (None if self._end is None else len(self._read_end(self._end)))

        filled = self._read_records(len(space), None, space, filled)
        if filled or self._end is None:
            return filled or None
        return len(self._read_end(self._end))

    def _read_without_input(self, size: int) -> bytes | None:
        if self._kept:
            kept, self._kept = self._kept[:size], self._kept[size:]
            return kept
        if self._end is not None:
            return self._read_end(self._end)
        self._tired = False
        return None

    def _read_records(self, size: int, records: list[bytes] | None, space: memoryview | None, filled: int) -> int:
        """Decrypt one record after the other, up to ``size`` bytes together with the ``filled`` ones; return how many
        that are now. The plaintext is added to ``records``, or goes into ``space``."""
        work = WORK
        while filled < size and work > 0:
            try:
                if not (self._inside or (self._chunk and self._feed_record())):
                    break
                # No plaintext is longer than its record. A read allocates as much as it may give.
                most = min(size - filled, RECORD if self._inside else self._size)
                if records is not None:
                    record = self._direct.read(most)
                    count = len(record)
                    if count:
                        records.append(record)
                else:
                    assert space is not None
                    count = self._direct.read(most, space[filled:])
            except ssl.SSLError as error:
                self._inside = False
                work = self._brought_nothing(error, work)
                if self._end is not None:
                    break
                continue
            if not count:
                self._end = b""
                break
            work -= 1
            self._empty = 0
            filled += count
            self._inside = count == most and self._direct.pending() > 0  # only a full read can leave plaintext behind
        more = self._inside or self._tired or (bool(self._chunk) and (filled >= size or work <= 0))
        if self._fed_all and not more and self._end is None:
            self._end = Truncated()
        self.has_input = more or self._end is not None
        return filled

    def _brought_nothing(self, error: ssl.SSLError, work: int) -> int:
        """A record had no data. Return how much work may still be done in this call."""
        self.may_answer = True
        self._read_nothing(error)
        work -= EMPTY_COSTS + self._size // BYTES_PER_MESSAGE
        self._tired = work <= 0
        return work

    def _read_nothing(self, error: ssl.SSLError) -> None:
        if isinstance(error, ssl.SSLWantReadError):  # OpenSSL has processed a record that is not application data
            self._empty += 1
            if self._empty > MOST_EMPTY:
                self._refuse()
        elif isinstance(error, ssl.SSLZeroReturnError):
            self._end = b""
        else:
            self._end = copy(error)

    def _refuse(self) -> None:
        """Fail all reads from here on. A record of unknown type makes OpenSSL send the peer a fatal alert."""
        self._incoming.write(NO_RECORD)
        with contextlib.suppress(ssl.SSLError):
            self._direct.read(1)
        self._end = ssl.SSLError(ssl.SSL_ERROR_SSL, f"more than {MOST_EMPTY} records in a row bring no data")

    def _read_end(self, end: bytes | ssl.SSLError | Truncated) -> bytes:
        # It is stored because OpenSSL reports it only once.
        if isinstance(end, bytes):
            return end
        raise copy(end)  # so the stored one gets no traceback, which would keep its frames alive

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt all of ``data``."""
        size = len(data)
        if size <= _PIECE or self._moved >= BULK:
            if size:
                self._direct.write(data)  # the buffer in memory grows, so it takes everything
            return
        self._moved += size
        encrypted = self._encrypted = self._encrypted or []
        with memoryview(data) as view:
            for at in range(0, size, PIECE):
                self._direct.write(view[at : at + PIECE])
                encrypted.append(self.outgoing.read())

    def close(self) -> None:
        """Write a close_notify. What the peer has sent, and still sends, can be read afterwards.

        Before the handshake, or after an error, do nothing.
        """
        # OpenSSL looks for the peer's close_notify, and fails if it finds data: read that first.
        if self._inside:
            self._inside = False
            self._kept = self._direct.read(RECORD)
        if not isinstance(self._end, ssl.SSLError):
            with contextlib.suppress(ssl.SSLError):  # usually SSLWantReadError: the peer has not answered yet
                self.object.unwrap()


def _direct(tls: ssl.SSLObject) -> Any:
    """What ``tls`` calls to read and write, with the same methods ``read``, ``write`` and ``pending``. To go through
    ``tls`` takes a Python call more for each record. For a user's class (``SSLContext.sslobject_class``), and where it
    is not found, ``tls`` itself."""
    direct = getattr(tls, "_sslobj", None) if type(tls) is ssl.SSLObject else None
    return tls if direct is None else direct


def _may_be_a_record(header: bytes | bytearray | memoryview) -> bool:
    """Whether ``header`` is a valid record header: type, version and length."""
    return 20 <= header[0] <= 24 and header[1] == 3 and (header[3] << 8 | header[4]) <= RECORD + EXPANSION
