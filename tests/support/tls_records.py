"""A client that makes its TLS records by hand: those that `ssl` has no call for, and as many at once as it likes.

`Records` has no socket, so that a simulation can use it. Nothing here knows the package. The handshake is OpenSSL's,
which tells the keys through ``SSLContext.keylog_filename``.
"""

import hmac
import os
import socket
import ssl
import struct
import tempfile
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.programs import PATIENCE

ALERT, HANDSHAKE, DATA = 21, 22, 23
"""Types of records."""

KEY_UPDATE = b"\x18\x00\x00\x01"
"""The message's type and length."""

HELLO = b"\x01\0\0\0"

IV = 12

NO_RENEGOTIATION = b"\x01\x64"
"""A warning."""


class Records:
    """The client's end of a TLS connection, without a socket: the handshake, then records that are made by hand.

    The server's certificate is not looked at. What the server sends, OpenSSL decrypts.

    :param version: "TLSv1.3" or "TLSv1.2".
    """

    def __init__(self, version: str = "TLSv1.3") -> None:
        self.version = version
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._shaken = b""
        self._context = _context(version)
        self._folder = tempfile.TemporaryDirectory()
        self._keys = Path(self._folder.name) / "keys"
        self._context.keylog_filename = os.fspath(self._keys)
        self._tls = self._context.wrap_bio(self._incoming, self._outgoing)

    def shake_hands(self, received: bytes = b"") -> tuple[bytes, bool]:
        """Go on with the handshake. Call `end_handshake` afterwards.

        :param received: what has come from the server since the last call.
        :returns: what to send, and whether the handshake is done.
        :raises ssl.SSLError: it has failed.
        """
        self._shaken += received
        self._incoming.write(received)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return self._outgoing.read(), False
        self._take_keys(self._keys.read_text(), self._shaken)
        return self._outgoing.read(), True

    def end_handshake(self) -> None:
        """Remove the file with the keys, whether the handshake has succeeded or not."""
        self._context.keylog_filename = None  # type: ignore[assignment]
        self._folder.cleanup()

    def decrypt(self, received: bytes = b"") -> bytes:
        """What has come from the server, of TLS 1.3; b"" if that is less than a record, or its end.

        :param received: what has come since the last call.
        :raises ssl.SSLError: there is a fatal alert.
        """
        self._incoming.write(received)
        try:
            return self._tls.read(65536)
        except ssl.SSLWantReadError:
            return b""

    def _take_keys(self, logged: str, received: bytes) -> None:
        suite: Any = self._tls.cipher()
        self._hash = "sha384" if "SHA384" in suite[0] else "sha256"
        self._key_size = 32 if "256" in suite[0].partition("GCM")[0] else 16
        lines = {line.split()[0]: line.split()[1:] for line in logged.splitlines() if not line.startswith("#")}
        if self.version == "TLSv1.3":
            self._number = 0
            self._secret = bytes.fromhex(lines["CLIENT_TRAFFIC_SECRET_0"][1])
            self._derive_key()
        else:
            self._number = 1  # Finished was the first
            ours, master = map(bytes.fromhex, lines["CLIENT_RANDOM"])
            theirs = received[11:43]  # behind the headers of record and message, and the version
            block = self._pseudo_random(master, b"key expansion" + theirs + ours, 2 * self._key_size + 8)
            size = self._key_size
            self._aead, self._iv = AESGCM(block[:size]), block[2 * size :][:4]
            self._theirs, self._their_iv = AESGCM(block[size : 2 * size]), block[2 * size + 4 :]
            self._their_number = 1
            self._received = b""

    def _pseudo_random(self, secret: bytes, seed: bytes, size: int) -> bytes:
        """PRF of TLS 1.2."""
        found, state = b"", seed
        while len(found) < size:
            state = hmac.digest(secret, state, self._hash)
            found += hmac.digest(secret, state + seed, self._hash)
        return found[:size]

    # ---- TLS 1.3

    def _expand(self, label: bytes, size: int) -> bytes:
        """HKDF-Expand-Label of the present secret; what is asked for is never more than one block."""
        label = b"tls13 " + label
        info = struct.pack("!HB", size, len(label)) + label + b"\0"
        return hmac.digest(self._secret, info + b"\1", self._hash)[:size]

    def _derive_key(self) -> None:
        self._aead = AESGCM(self._expand(b"key", self._key_size))
        self._iv = self._expand(b"iv", IV)

    def key_update(self, requested: bool = True) -> bytes:
        """A KeyUpdate; what is made afterwards is under the new key.

        :param requested: whether the server is to change its key as well.
        """
        made = self.record(KEY_UPDATE + bytes([requested]), HANDSHAKE)
        self._secret = self._expand(b"traffic upd", len(self._secret))
        self._derive_key()
        self._number = 0
        return made

    # ---- TLS 1.2

    def hello(self, times: int = 1) -> bytes:
        """A ClientHello under the present key: the beginning of a renegotiation. It is empty, as nobody reads it.

        :param times: how many there are in the record.
        """
        return self.record(times * HELLO, HANDSHAKE)

    # ---- both

    def record(self, plaintext: bytes, kind: int = DATA) -> bytes:
        """The next record, ready to be sent; they must be sent in the order in which they are made."""
        number = struct.pack("!Q", self._number)
        self._number += 1
        if self.version == "TLSv1.3":
            nonce = (int.from_bytes(self._iv) ^ int.from_bytes(number)).to_bytes(IV)
            header = struct.pack("!BHH", DATA, 0x0303, len(plaintext) + 1 + 16)
            return header + self._aead.encrypt(nonce, plaintext + bytes([kind]), header)
        about = number + struct.pack("!BHH", kind, 0x0303, len(plaintext))
        ciphertext = number + self._aead.encrypt(self._iv + number, plaintext, about)
        return struct.pack("!BHH", kind, 0x0303, len(ciphertext)) + ciphertext


class RecordClient(Records):
    """A client of a TLS server, behind the handshake.

    :param version: "TLSv1.3" or "TLSv1.2".
    :param receive_buffer: bytes that its kernel takes while it reads nothing, about; None for as usual.
    :ivar socket: blocking, and for a test to use: it is what the records made here are sent with.
    """

    def __init__(self, address: Any, version: str = "TLSv1.3", receive_buffer: int | None = None) -> None:
        super().__init__(version)
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            made, done = self.shake_hands()
            while not done:
                self.socket.sendall(made)
                made, done = self.shake_hands(self._take_chunk())
            self.socket.sendall(made)
        finally:
            self.end_handshake()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def _take_chunk(self) -> bytes:
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError("the server has closed")
        return chunk

    def _receive(self) -> bytes:
        chunk = self._take_chunk()
        self._incoming.write(chunk)
        return chunk

    def line(self) -> bytes:
        """The next line from the server, which must be all there is.

        :raises ssl.SSLError: instead there is an end, or a fatal alert.
        :raises OSError: the connection is gone.
        """
        found = b""
        while not found.endswith(b"\n"):
            found += self._next_data()
        return found

    def end(self) -> OSError:
        """How the server ends; what came before is thrown away."""
        try:
            while True:
                self._next_data()
        except OSError as error:
            return error

    def _next_data(self) -> bytes:
        if self.version == "TLSv1.2":
            return self._next_data_of_1_2()
        while True:
            try:
                data = self._tls.read(65536)
            except ssl.SSLWantReadError:
                self._receive()
            else:
                if not data:
                    raise ConnectionError("the server has ended in order")
                return data

    def _next_data_of_1_2(self) -> bytes:
        """OpenSSL takes a renegotiation that is refused for fatal, and this does not."""
        while True:
            kind, data = self._next_record_of_1_2()
            if kind == DATA:
                return data
            if kind == ALERT and data != NO_RENEGOTIATION:
                raise ssl.SSLError(f"alert {data[1]}")

    def _next_record_of_1_2(self) -> tuple[int, bytes]:
        header, explicit = self._take(5), self._take(8)
        (size,) = struct.unpack("!H", header[3:])
        number = struct.pack("!Q", self._their_number)
        self._their_number += 1
        about = number + header[:3] + struct.pack("!H", size - 8 - 16)
        return header[0], self._theirs.decrypt(self._their_iv + explicit, self._take(size - 8), about)

    def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            self._received += self._receive()
        taken, self._received = self._received[:count], self._received[count:]
        return taken


def _context(version: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
    context.set_ciphers("ECDHE+AESGCM")  # of TLS 1.2; of 1.3 the first is AES-GCM
    return context
