"""Clients that are slow, broken or hostile, for the tests that are about them."""

import contextlib
import math
import random
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

from tests.support.programs import PATIENCE

# ---- a client's side of TLS, by the byte


class HandMadeClient:
    """The client's side of TLS without a socket, to be sent in whatever pieces."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def hello(self) -> bytes:
        """Its ClientHello."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._outgoing.read()

    def finish(self, sock: socket.socket, first: bytes, send: Callable[[bytes], object]) -> None:
        """Receive what the server answers to the hello, then send the rest of the handshake with the first data."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                if answer := self._outgoing.read():
                    send(answer)
                self._receive(sock)
        self._tls.write(first)
        send(self._outgoing.read())

    def _receive(self, sock: socket.socket) -> None:
        received = sock.recv(65536)
        if not received:
            raise ConnectionError("the server has closed")
        self._incoming.write(received)

    def line(self, sock: socket.socket) -> bytes:
        """The next line, which must be all there is."""
        found = b""
        while not found.endswith(b"\n"):
            try:
                found += self._tls.read(65536)
            except ssl.SSLWantReadError:
                self._receive(sock)
        return found


def reset(sock: socket.socket) -> None:
    """End the connection with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def everything(sock: socket.socket) -> bytes:
    """What comes until the end, which may be a reset, and must come."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65536):
            received += chunk
    return received


# ---- many at once


class Crowd:
    """Many connections to a server, none of which gets anywhere. They may still be in the kernel's queue."""

    def __init__(self, address: tuple[str, int], size: int, source: str | None = None) -> None:
        self._selector = selectors.DefaultSelector()
        self._began: dict[socket.socket, float] = {}
        self._dripped = 0
        for _ in range(size):
            sock = socket.socket()
            if source is not None:
                sock.bind((source, 0))
            sock.setblocking(False)
            sock.connect_ex(address)
            self._began[sock] = time.monotonic()
            self._selector.register(sock, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._began:
            sock.close()
        self._selector.close()

    def ends(self, drip: bytes = b"", every: float = 1.0, patience: float = PATIENCE) -> list[float]:
        """Wait until all have been closed: how long each was open, in seconds; infinite for those that still are.

        :param drip: what each sends meanwhile, a byte at a time, ``every`` so many seconds.
        """
        lasted: list[float] = []
        sent, due = 0, time.monotonic()
        late = due + patience
        while self._selector.get_map() and (now := time.monotonic()) < late:
            if drip and now >= due:
                self.send(drip[sent : sent + 1])
                sent, due = sent + 1, due + every
            for key, _ in self._selector.select(max(0.0, due - now) if drip else 0.1):
                sock: Any = key.fileobj
                if has_ended(sock):
                    self._selector.unregister(sock)
                    lasted.append(time.monotonic() - self._began[sock])
        return lasted + [math.inf] * len(self._selector.get_map())

    def send(self, data: bytes) -> None:
        """Have each send ``data`` that is not known to be closed."""
        self._send(list(self._began), data)

    def drip(self, count: int) -> None:
        """Have the next ``count`` of them send a byte, each in its turn."""
        socks = list(self._began)
        self._send((socks[(self._dripped + number) % len(socks)] for number in range(count)), b"x")
        self._dripped += count

    def _send(self, socks: Iterable[socket.socket], data: bytes) -> None:
        for sock in socks:
            with contextlib.suppress(OSError):  # it has just been closed, which select() will tell
                sock.send(data)


def has_ended(sock: socket.socket) -> bool:
    try:
        return not sock.recv(65536)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


# ---- resets


class Enough(Exception):
    """A client has sent as many bytes as it was to."""


def sending_at_most(sock: socket.socket, count: int) -> Callable[[bytes], None]:
    left = count

    def send(data: bytes) -> None:
        nonlocal left
        sock.sendall(data[:left])
        left -= len(data)
        if left <= 0:
            raise Enough

    return send


def reset_somewhere(address: tuple[str, int], trusting: ssl.SSLContext, chance: random.Random) -> None:
    """Connect, and end with a RST at some point of the handshake or behind it."""
    sock = socket.create_connection(address, PATIENCE)
    client = HandMadeClient(trusting)
    send = sending_at_most(sock, chance.choice((0, chance.randrange(600), chance.randrange(500, 800))))
    try:
        send(client.hello())
        client.finish(sock, b"hello\n" * 20, send)
        client.line(sock)
    except Enough:
        pass
    finally:
        reset(sock)


# ---- what is no handshake


HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def mutated(hello: bytes, chance: random.Random) -> bytes:
    """A ClientHello with something wrong, or another thing altogether."""
    data = bytearray(hello)
    match chance.randrange(7):
        case 0:  # some bytes are others
            for _ in range(chance.randrange(1, 20)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        case 1:  # the end is missing
            del data[chance.randrange(len(data)) :]
        case 2:  # a part is missing
            start = chance.randrange(len(data))
            del data[start : start + chance.randrange(1, 100)]
        case 3:  # a part is there twice
            start = chance.randrange(len(data))
            data[start:start] = data[start : start + chance.randrange(1, 100)]
        case 4:  # the lengths of record and message are lies
            position = chance.choice((3, 4, 6, 7, 8, 43, 44))
            data[position] = chance.randrange(256)
        case 5:  # a record of another type or version
            data[chance.randrange(3)] = chance.randrange(256)
        case _:
            return chance.randbytes(chance.randrange(1, 1000))
    return bytes(data)


def no_hellos(trusting: ssl.SSLContext, count: int, chance: random.Random) -> Iterable[bytes]:
    """What comes to a TLS port and is no ClientHello: mutated ones, and now and then HTTP."""
    hello = HandMadeClient(trusting).hello()
    for number in range(count):
        yield HTTP if number % 10 == 0 else mutated(hello, chance)


def say_only(address: tuple[str, int], data: bytes, source: str | None = None) -> None:
    """Connect, send ``data``, half-close, and read until the end."""
    with socket.create_connection(address, PATIENCE, (source, 0) if source else None) as sock:
        with contextlib.suppress(OSError):  # it was closed, or reset, before all was said
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        everything(sock)


# ---- the PROXY header


def header(version: int, host: str, port: int) -> bytes:
    """The header for a client."""
    is_v6 = ":" in host
    here = "2001:db8::2" if is_v6 else "192.0.2.2"
    if version == 1:
        return f"PROXY TCP{6 if is_v6 else 4} {host} {here} {port} 443\r\n".encode()
    family = socket.AF_INET6 if is_v6 else socket.AF_INET
    addresses = b"".join(socket.inet_pton(family, each) for each in (host, here)) + struct.pack("!HH", port, 443)
    more = b"\x01\x00\x04echo"  # a TLV: the protocol that was agreed on
    kind = 0x21 if is_v6 else 0x11
    body = addresses + more
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x21, kind, len(body)) + body
