"""Servers in the test's own loop, and their clients."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import (
    IOStream,
    TCPServer,
    bind_unix_socket,
)
from iostreamsrv.events import Event
from iostreamsrv.server.base import core_of
from tests.support.peers import Peer, TLSEnd, TLSPeer, tls_contexts
from tests.support.waiting import eventually, turns

Handler = Callable[[IOStream, Any], Any]


class Echo(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        while True:
            await stream.write(await stream.read_until(b"\n"))


class Serving:
    """Servers and their clients, all of which are ended when the test is."""

    def __init__(self) -> None:
        self.servers: list[TCPServer] = []
        self.peers: list[Peer] = []

    def started(self, server: TCPServer, port: int = 0) -> TCPServer:
        server.listen(port, "127.0.0.1")
        self.servers.append(server)
        return server

    def with_handler(self, handler: Handler, **options: Any) -> TCPServer:
        server = TCPServer(**options)
        server.handle_stream = handler  # type: ignore[method-assign]
        return self.started(server)

    def connect(self, server: TCPServer | Any) -> Peer:
        address = server.addresses[0] if isinstance(server, TCPServer) else server
        peer = Peer(socket.create_connection(address))
        self.peers.append(peer)
        return peer

    def end(self) -> None:
        for peer in self.peers:
            peer.close()
        for server in self.servers:
            server.stop()
            for stream in core_of(server).streams:
                stream.abort()


async def answers(peer: Peer, line: bytes = b"abc\n") -> bool:
    peer.send(line)
    return await peer.receive(len(line)) == line


LONG_ENOUGH = 40
"""Turns of the loop in which a server would have accepted and answered."""


async def waits(peer: Peer) -> bool:
    """Whether a client that has sent a line stays without an answer."""
    await turns(LONG_ENOUGH)
    return not peer.has_input()


async def is_turned_away(peer: Peer) -> bool:
    """Whether the server closes this connection without a word."""
    return await peer.receive_all() == b""


def unix_server(serving: Serving, directory: Path, server: TCPServer) -> TCPServer:
    """The server, listening at a Unix socket."""
    server.add_socket(bind_unix_socket(str(directory / "socket")))
    serving.servers.append(server)
    return server


def connect_unix(serving: Serving, server: TCPServer) -> Peer:
    client = socket.socket(socket.AF_UNIX)
    client.connect(server.addresses[0])
    peer = Peer(client)
    serving.peers.append(peer)
    return peer


def listen_to(server: TCPServer, *kinds: Any) -> list[Event]:
    """What the server tells of these kinds, as it comes."""
    events: list[Event] = []
    server.events.subscribe(events.append, *kinds)
    return events


TRUSTING: dict[str, Any] = {"proxy_protocol": ["127.0.0.0/8"]}


def header(host: str) -> bytes:
    """What a proxy says of a client; of itself, if there is no host."""
    if not host:
        return b"PROXY UNKNOWN\r\n"
    family = 6 if ":" in host else 4
    return f"PROXY TCP{family} {host} {'::1' if family == 6 else '127.0.0.1'} 1000 2000\r\n".encode()


AT_ONCE: dict[str, Any] = {"drain_idle": 0.01}
"""For servers whose idle clients need not be waited for."""


def refused(address: Any) -> None:
    """Nobody listens there."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def connect_tls(serving: Serving, server: TCPServer) -> TLSPeer:
    end = TLSEnd(socket.create_connection(server.addresses[0]), tls_contexts()[1])
    peer = TLSPeer(end)
    serving.peers.append(peer)
    await eventually(end.handshake)
    return peer
