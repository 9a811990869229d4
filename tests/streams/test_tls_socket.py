"""What ``stream.socket`` is under TLS: nothing that could send or receive past TLS."""

import socket
import ssl
from collections.abc import Iterator

import pytest

from iostreamsrv import IOLoop, IOStream
from tests.support.peers import TLSPeer, tcp_pair, tls_pair

pytestmark = pytest.mark.usefixtures("io_loop")

Pair = tuple[IOStream, TLSPeer]


@pytest.fixture
def pair(io_loop: IOLoop) -> Iterator[Pair]:
    stream, peer = tls_pair(tcp_pair())
    yield stream, peer
    stream.abort()
    peer.close()


INSTEAD = {
    "close": "close",
    "connect": "connect",
    "connect_ex": "connect",
    "detach": "close",
    "do_handshake": "wait_for_handshake",
    "makefile": "read",
    "read": "read_bytes",
    "recv": "read_bytes",
    "recv_into": "read_into",
    "recvfrom": "read_bytes",
    "recvfrom_into": "read_into",
    "recvmsg": "read_bytes",
    "recvmsg_into": "read_into",
    "send": "write",
    "sendall": "write",
    "sendfile": "sendfile",
    "sendmsg": "write",
    "sendto": "write",
    "settimeout": "set_timeouts",
    "unwrap": "aclose",
    "write": "write",
}


@pytest.mark.parametrize(("name", "method"), INSTEAD.items(), ids=INSTEAD)
def test_what_would_bypass_tls_raises_and_names_the_streams_method(pair: Pair, name: str, method: str) -> None:
    stream, peer = pair
    assert hasattr(stream, method) or method == "read"
    with pytest.raises(AttributeError, match=rf"bypass TLS, use the stream's .*{method}"):
        getattr(stream.socket, name)
    assert not peer.has_input()


HARMLESS = {
    "family",
    "fileno",
    "get_inheritable",
    "getblocking",
    "getpeername",
    "getsockname",
    "getsockopt",
    "gettimeout",
    "proto",
    "set_inheritable",
    "setsockopt",
    "shutdown",
    "timeout",
    "type",
}

OF_TLS = {name for name in dir(ssl.SSLObject) if not name.startswith("_")} - {
    "do_handshake",
    "read",
    "unwrap",
    "verify_client_post_handshake",
    "write",
}


def test_all_that_a_socket_has_is_either_harmless_or_raises(pair: Pair) -> None:
    sock = pair[0].socket
    for name in dir(ssl.SSLSocket):
        if name.startswith("_"):
            continue
        if name in HARMLESS | OF_TLS:
            getattr(sock, name)
        else:
            with pytest.raises(AttributeError, match=name):
                getattr(sock, name)


def test_what_one_asks_a_socket_is_answered(pair: Pair) -> None:
    stream, peer = pair
    sock: ssl.SSLSocket = stream.socket  # type: ignore[assignment]
    assert sock.getsockname() == peer.socket.getpeername()
    assert sock.getpeername() == peer.socket.getsockname()
    assert sock.fileno() == stream.fileno()
    assert sock.family == socket.AF_INET
    assert sock.getblocking() is False
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.version() == "TLSv1.3"
    assert sock.getpeercert() is None
    assert "TLSv1.3 over" in repr(sock)
