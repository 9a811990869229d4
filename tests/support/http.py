"""Requests and answers of HTTP and WebSockets as bytes."""

import re

from tests.support.peers import Peer


def request(path: str = "/", *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode() + body


def upload(body: bytes) -> bytes:
    return request("/", f"Content-Length: {len(body)}", method="POST", body=body)


UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def frame(payload: bytes, kind: int = 0x81) -> bytes:
    """A client's frame, by default all of a text; the mask is 0."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xff" + size.to_bytes(8)
    return bytes([kind]) + length + bytes(4) + payload


async def head(peer: Peer) -> bytes:
    found = b""
    while not found.endswith(b"\r\n\r\n"):
        found += await peer.receive(1)
    return found


async def answer(peer: Peer) -> tuple[int, bytes]:
    """The status and the body."""
    found = await head(peer)
    size = re.search(rb"(?i)\r\ncontent-length: *(\d+)", found)
    return int(found.split()[1]), await peer.receive(int(size[1]) if size else 0)


async def upgraded(peer: Peer, path: str = "/echo") -> Peer:
    peer.send(request(path, *UPGRADE))
    assert (await head(peer)).startswith(b"HTTP/1.1 101 ")
    return peer
