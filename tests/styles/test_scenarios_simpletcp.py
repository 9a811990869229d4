"""What a program for simpleTCP relies on; the numbers are those of its scenarios."""

import contextlib
import random
import socket
import threading
import time
from typing import Any

import pytest

from iostreamsrv import ListenError, OptionError
from iostreamsrv.styles import QueueServer, SendQueue
from tests.support.leaks import complaints
from tests.support.programs import PATIENCE
from tests.support.threads import (
    MEBIBYTE,
    Call,
    asks,
    connect,
    descriptors_for,
    digest,
    everything,
    exactly,
    put_back,
    queues,
    reset,
)

pytestmark = pytest.mark.usefixtures("nothing_left")


# ---- 1: the echo


def test_simpletcp_1_two_clients_get_their_own_bytes_each() -> None:
    kinds = set()

    def callback(queue: SendQueue, data: bytes) -> None:
        kinds.add(type(data))
        queue.put(data)

    with queues(callback) as server, connect(server) as one, connect(server) as other:
        one.sendall(b"one")
        other.sendall(b"other")
        assert exactly(one, 3) == b"one"
        assert exactly(other, 5) == b"other"
        assert asks(one, b"again")
    assert kinds == {bytes}


@pytest.mark.parametrize(("mode", "host"), [("localhost", "127.0.0.1"), ("public", "0.0.0.0"), ("127.0.0.1",) * 2])
def test_simpletcp_1_the_mode_says_where_it_listens(mode: str, host: str) -> None:
    server = QueueServer(mode, 0, put_back)
    assert server.addresses == [(host, server.port)]
    server.stop()


def test_simpletcp_1_a_callback_of_three_arguments_gets_the_address() -> None:
    def callback(address: Any, queue: SendQueue, data: bytes) -> None:
        assert address == queue.address
        queue.put(b"%s:%d" % (address[0].encode(), address[1]))

    with queues(callback) as server, connect(server) as client:
        client.sendall(b"who am I?")
        address = "{}:{}".format(*client.getsockname())
        assert exactly(client, len(address)) == address.encode()


# ---- 2: put


def test_simpletcp_2_a_put_from_another_thread_arrives_at_once() -> None:
    taken: list[SendQueue] = []
    with queues(lambda queue, data: taken.append(queue)) as server, connect(server) as client:
        client.sendall(b"later")
        while not taken:
            time.sleep(0.01)
        time.sleep(0.2)  # the loop is asleep by now
        began = time.monotonic()
        taken[0].put(b"now")
        assert exactly(client, 3) == b"now"
        assert time.monotonic() - began < PATIENCE / 4


def test_simpletcp_2_one_put_of_16_mib_arrives_whole() -> None:
    large = random.Random(2).randbytes(16 * MEBIBYTE)
    with queues(lambda queue, data: queue.put(large)) as server, connect(server) as client:
        client.sendall(b"all of it, please")
        assert digest(exactly(client, len(large))) == digest(large)


# ---- 3: ends and errors


def test_simpletcp_3_who_half_closes_gets_the_full_echo() -> None:
    data = random.Random(3).randbytes(5 * MEBIBYTE)
    with queues(put_back) as server, connect(server) as client:
        receiving = Call(everything, client)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert digest(receiving.result()) == digest(data)


def test_simpletcp_3_a_reset_ends_that_connection_only() -> None:
    with queues(put_back) as server, connect(server) as other:
        client = connect(server)
        assert asks(client, b"hello")
        client.sendall(bytes(MEBIBYTE))
        reset(client)
        assert asks(other, b"still there")


def test_simpletcp_3_a_callback_that_raises_ends_that_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    def callback(queue: SendQueue, data: bytes) -> None:
        queue.put(b"%d" % (12 // int(data)))

    with queues(callback) as server, connect(server) as other, connect(server) as client:
        client.sendall(b"0")
        assert client.recv(1) == b""
        other.sendall(b"4")
        assert exactly(other, 1) == b"3"
        address = "{}:{}".format(*client.getsockname())
    (record,) = complaints(caplog)
    assert address in record.getMessage()
    assert record.exc_info


# ---- 4: many, and the end


def test_simpletcp_4_1100_clients_are_served_at_once() -> None:
    with descriptors_for(1100), queues(put_back, max_connections=1200) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(1100)]
        for number, client in enumerate(clients):
            client.sendall(b"%04d" % number)
        assert [exactly(client, 4) for client in clients] == [b"%04d" % number for number in range(1100)]


def test_simpletcp_4_stop_has_run_return_and_the_port_can_be_bound_at_once() -> None:
    busy = threading.Event()

    def slow_echo(queue: SendQueue, data: bytes) -> None:
        queue.put(data)
        busy.set()
        time.sleep(0.2)

    server = QueueServer("localhost", 0, slow_echo)
    running = Call(server.run)
    with connect(server) as client:
        client.sendall(b"hello")
        assert busy.wait(PATIENCE)
        server.stop()
        again = QueueServer("localhost", server.port, put_back)
        assert again.port == server.port
        assert everything(client) == b"hello"
    running.result()
    again.stop()


def test_simpletcp_4_port_0_becomes_a_real_one() -> None:
    with queues(put_back) as server, connect(("127.0.0.1", server.port)) as client:
        assert 0 < server.port < 65536
        assert asks(client, b"hello")


@pytest.mark.parametrize("port", [-1, 65536, 1.5, None])
def test_simpletcp_4_a_wrong_port_raises(port: Any) -> None:
    with pytest.raises(OptionError, match=f"port={port}"):
        QueueServer("localhost", port, put_back)


def test_simpletcp_4_a_port_that_is_taken_raises() -> None:
    with queues(put_back) as server, pytest.raises(ListenError, match=str(server.port)):
        QueueServer("localhost", server.port, put_back)


def test_simpletcp_4_run_serves_in_any_thread() -> None:
    with queues(put_back) as server:
        assert threading.current_thread() is threading.main_thread()
        with connect(server) as client:
            assert asks(client, b"from a thread")
