"""The other ends of streams: plain sockets and TLS, which know nothing of the package."""

import asyncio
import contextlib
import functools
import socket
import ssl
import struct
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

from iostreamsrv import IOStream
from iostreamsrv.certificates import self_signed
from iostreamsrv.iostream import SSLIOStream
from iostreamsrv.streams import hub
from iostreamsrv.streams.transports.memory import MemorySocket


class Peer:
    """The other end of a stream: a plain socket that does as it is told.

    What is sent goes out at once; it must be less than the kernel takes without anybody reading.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        assert self.socket.send(data) == len(data)

    async def send_all(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive_some(self, size: int) -> bytes:
        """What there is, up to ``size`` bytes; b"" at the end."""
        return await asyncio.get_running_loop().sock_recv(self.socket, size)

    async def receive(self, count: int) -> bytes:
        """Exactly ``count`` bytes."""
        received = bytearray()
        while len(received) < count:
            chunk = await self.receive_some(count - len(received))
            assert chunk, f"the stream ended after {len(received)} bytes"
            received += chunk
        return bytes(received)

    async def chunks(self) -> AsyncIterator[bytes]:
        """What arrives, as it arrives, until the end."""
        while chunk := await self.receive_some(1 << 20):
            yield chunk

    async def receive_all(self) -> bytes:
        """Everything until the end of the stream."""
        return b"".join([chunk async for chunk in self.chunks()])

    def has_input(self) -> bool:
        """Whether bytes, an end or an error wait to be received."""
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        return True

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """End the connection with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


MakePair = Callable[..., tuple[IOStream, Peer]]
"""Makes a stream, connected to a peer; see the fixture `make_pair`."""


class MemoryPeer(Peer):
    """The other end of a stream in memory, which is no descriptor that a loop could wait for."""

    def __init__(self, end: MemorySocket) -> None:
        self.socket = cast(Any, end)
        self._ready = asyncio.Event()
        end.notify = lambda _events: self._ready.set()

    async def _retry(self, attempt: Callable[..., Any], *arguments: Any) -> Any:
        while True:
            self._ready.clear()
            try:
                return attempt(*arguments)
            except BlockingIOError:
                await self._ready.wait()

    async def send_all(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            sent += await self._retry(self.socket.send, data[sent:])

    async def receive_some(self, size: int) -> bytes:
        received: bytes = await self._retry(self.socket.recv, size)
        return received


class Cut(ConnectionError):
    """The stream ended under TLS without a word."""


class TLSEnd:
    """The client's end of TLS over a non-blocking socket, with the interface of a plain one.

    It knows nothing of the package.

    :ivar raw: the socket.
    :ivar tls: the `ssl.SSLObject`.
    """

    def __init__(self, raw: socket.socket, context: ssl.SSLContext, server_side: bool = False) -> None:
        self.raw = raw
        raw.setblocking(False)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side)
        self._unsent = b""
        self._unread = b""
        self._waiting: asyncio.Future[OSError | None] | None = None  # for room
        self._ended = False
        self._shut = False  # the socket is to be shut when all has been sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def handshake(self) -> bool:
        """Go on with the handshake as far as bytes are there; whether it is done."""
        while True:
            try:
                self.tls.do_handshake()
                return True
            except ssl.SSLWantReadError:
                pass
            finally:
                self.flush()
            try:
                self._receive()
            except BlockingIOError:
                return False

    def send(self, data: bytes) -> int:
        self.flush()
        if self._unsent:
            raise BlockingIOError
        if data:
            self.tls.write(data)
        self.flush()
        return len(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        while not self._unread:
            try:
                self._unread = self.tls.read(min(size, 1 << 16))  # it reserves as much each time
            except ssl.SSLWantReadError:
                self._receive()
            except ssl.SSLZeroReturnError:
                return b""
            else:
                if not self._unread:
                    return b""
        received = self._unread[:size]
        if not flags & socket.MSG_PEEK:
            self._unread = self._unread[size:]
        return received

    def _receive(self) -> None:
        chunk = self.raw.recv(65536)
        if not chunk:
            raise Cut("the stream ended without a close_notify")
        self._incoming.write(chunk)

    def flush(self) -> None:
        """Send what there is, now and when there is room."""
        if self._flush_now():
            self._stop_waiting()
        elif self._waiting is None:
            loop = asyncio.get_running_loop()
            loop.add_writer(self.raw, self._flush_on)
            self._waiting = loop.create_future()

    def _flush_now(self) -> bool:
        self._unsent += self._outgoing.read()
        try:
            while self._unsent:
                self._unsent = self._unsent[self.raw.send(self._unsent) :]
        except BlockingIOError:
            return False
        if self._shut:
            self.raw.shutdown(socket.SHUT_WR)
            self._shut = False
        return True

    def _flush_on(self) -> None:
        try:
            self.flush()
        except OSError as error:
            self._stop_waiting(error)

    def _stop_waiting(self, error: OSError | None = None) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.get_loop().remove_writer(self.raw)
            if not waiting.done():
                waiting.set_result(error)

    async def sent(self) -> None:
        """Return when all has been sent; raise if it cannot be."""
        error = None if self._waiting is None else await self._waiting
        if error is not None:
            raise error

    def say_goodbye(self) -> None:
        """Have a close_notify to be sent, once."""
        if self._ended:
            return
        self._ended = True
        # OpenSSL throws away what it finds while it looks for the answer.
        with contextlib.suppress(ssl.SSLError):
            while chunk := self.tls.read(1 << 20):
                self._unread += chunk
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()

    def shutdown(self, how: int) -> None:
        assert how == socket.SHUT_WR
        self.say_goodbye()
        self._shut = True
        self.flush()

    def close(self) -> None:
        if self.raw.fileno() >= 0:
            self.say_goodbye()
            with contextlib.suppress(OSError):
                self._flush_now()
            self.drop()

    def drop(self) -> None:
        """Close the socket without a word."""
        self._stop_waiting()
        self.raw.close()


class TLSPeer(Peer):
    """The other end of a stream under TLS, the client."""

    def __init__(self, end: TLSEnd) -> None:
        super().__init__(end.raw)
        self.end = end
        self.socket = cast(Any, end)

    async def send_all(self, data: bytes) -> None:
        for begin in range(0, len(data), 65536):
            self.socket.send(data[begin : begin + 65536])
            await self.end.sent()

    async def receive_some(self, size: int) -> bytes:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return self.socket.recv(size)
            except BlockingIOError:
                ready = loop.create_future()
                loop.add_reader(self.end.raw, ready.set_result, None)
                ready.add_done_callback(lambda _: loop.remove_reader(self.end.raw))
                await ready

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.end.drop()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


@functools.cache
def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's, with a certificate, and that of a client who trusts it and calls it localhost."""
    pair = self_signed()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as directory:
        server.load_cert_chain(**pair.write(directory))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=pair.certificate.decode())
    client.check_hostname = False
    return server, client


def tls_pair(sockets: tuple[socket.socket, socket.socket], **options: Any) -> tuple[SSLIOStream, TLSPeer]:
    """The server's stream and the client's peer, the handshake done."""
    server, client = tls_contexts()
    end = TLSEnd(sockets[1], client)
    end.handshake()
    wrapped = server.wrap_socket(sockets[0], server_side=True, do_handshake_on_connect=False)
    stream = SSLIOStream(wrapped, **options)
    while not end.handshake() or not stream.wait_for_handshake().done():
        stream._dispatch_now(hub.READABLE)
    peer = TLSPeer(end)
    assert not peer.has_input()  # tickets come with the first write: closing with them unread would be a reset
    return stream, peer
