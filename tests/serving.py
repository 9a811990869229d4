"""Servers in the test's own loop, and their clients."""

import socket
from collections.abc import Callable
from typing import Any

from iostreamsrv import IOStream, TCPServer
from tests.support import Peer

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
            for stream in server.streams:
                stream.abort()


async def answers(peer: Peer, line: bytes = b"abc\n") -> bool:
    peer.send(line)
    return await peer.receive(len(line)) == line
