"""Errors of one connection, which the kernel reports by accept() and recv(), end or skip that connection only."""

import errno
import socket
from typing import Any

import pytest

from iostreamsrv import CloseReason, IOStream, StreamClosedError
from iostreamsrv.net.acceptor import Acceptor
from tests.support.engines import on_every_loop
from tests.support.peers import Peer, tcp_pair
from tests.support.waiting import eventually

pytestmark = on_every_loop

OF_A_CLIENT = ["ECONNABORTED", "EPROTO", "EOPNOTSUPP", "ETIMEDOUT", "ENOPROTOOPT", "ENONET", "EHOSTDOWN", "ENETUNREACH"]
"""What accept(2) of Linux says is to be treated as if nobody were there yet."""

OF_A_PEER = ["ECONNRESET", "ETIMEDOUT", "EHOSTDOWN", "ENONET", "EPROTO", "EHOSTUNREACH"]


def number_of(name: str) -> int:
    number: int | None = getattr(errno, name, None)
    if number is None:
        pytest.skip(f"there is no {name} here")
    return number


class Listener(socket.socket):
    """A listener on which the first client is gone when it is accepted."""

    error: OSError | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        error, self.error = self.error, None
        if error is not None:
            connection.close()
            raise error
        return connection, address


@pytest.mark.parametrize("name", OF_A_CLIENT)
@pytest.mark.gen_test
async def test_an_error_of_one_client_in_the_queue_is_none_of_the_listener(io_loop: Any, name: str) -> None:
    """Not raised: the fixture io_loop looks whether the loop was told of an error."""
    listener = Listener()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.error = OSError(number_of(name), "pending on the connection")
    accepted: list[socket.socket] = []
    acceptor = Acceptor(listener, lambda connection, address: accepted.append(connection))
    clients = [socket.create_connection(listener.getsockname()) for _ in range(2)]
    acceptor.start(io_loop)
    await eventually(lambda: accepted)
    acceptor.close()
    for each in (*clients, *accepted):
        each.close()


class Broken(socket.socket):
    """A connection that a router has declared broken, as far as receiving goes."""

    error: OSError | None = None

    def recv(self, *arguments: Any) -> bytes:
        if self.error is not None:
            raise self.error
        return super().recv(*arguments)


@pytest.mark.parametrize("name", OF_A_PEER)
@pytest.mark.gen_test
async def test_what_a_network_does_to_a_connection_is_a_reset_of_it(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = tcp_pair()
    broken = Broken(fileno=ours.detach())
    stream, peer = IOStream(broken), Peer(theirs)
    reading = stream.read_until(b"\n")
    broken.error = OSError(number_of(name), "from the network")
    peer.send(b"x")
    with pytest.raises(StreamClosedError) as caught:
        await reading
    assert (caught.value.reason, stream.close_reason) == (CloseReason.RESET, CloseReason.RESET)
    assert caught.value.reason.by_peer
    assert caplog.records == []
    peer.close()
