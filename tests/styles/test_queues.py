"""`QueueServer` and `SendQueue`: what goes wrong harms the one connection, or is a clear error, and nothing is left."""

import asyncio
import contextlib
import os
import queue
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iostreamsrv import OptionError, StreamClosedError
from iostreamsrv.styles import QueueServer, SendQueue
from iostreamsrv.styles.outbox import Outbox
from iostreamsrv.testing import memory_stream_pair
from tests.support.leaks import complaints
from tests.support.peers import tls_contexts
from tests.support.programs import PATIENCE
from tests.support.threads import (
    MEBIBYTE,
    Call,
    asks,
    connect,
    digest,
    eventually,
    everything,
    exactly,
    put_back,
    queues,
    reset,
)

pytestmark = pytest.mark.usefixtures("nothing_left")

Taken = tuple[SendQueue, socket.socket]


@pytest.fixture
def taken() -> Iterator[Taken]:
    """The queue of a client, for this thread, and the client."""
    found: queue.Queue[SendQueue] = queue.Queue()
    with queues(lambda queue, data: found.put(queue)) as server, connect(server) as client:
        client.sendall(b"!")
        yield found.get(timeout=PATIENCE), client


def fill(sending: SendQueue) -> int:
    """Put until there is no more room; how many bytes."""
    count = 0
    while True:
        try:
            sending.put(bytes(65536), timeout=0.2)
        except queue.Full:
            return count
        count += 65536


# ---- arguments


@pytest.mark.parametrize("mode", [None, "", 5, [], b"localhost"])
def test_a_mode_that_cannot_be_raises(mode: Any) -> None:
    with pytest.raises(OptionError, match="mode="):
        QueueServer(mode, 0, put_back)


async def coroutine(queue: SendQueue, data: bytes) -> None:
    """No callback."""


@pytest.mark.parametrize(
    "callback",
    [None, 5, coroutine, lambda: None, lambda queue: None, lambda a, b, c, d: None],
    ids=["none", "a number", "a coroutine", "no arguments", "one argument", "four arguments"],
)
def test_a_callback_that_cannot_be_raises(callback: Any) -> None:
    with pytest.raises(OptionError, match="callback="):
        QueueServer("localhost", 0, callback)


class Caller:
    def method(self, queue: SendQueue, data: bytes) -> None:
        queue.put(data)

    def __call__(self, queue: SendQueue, data: bytes, more: Any = None) -> None:
        queue.put(data)


@pytest.mark.parametrize(
    "callback", [Caller().method, Caller(), SendQueue.put, lambda *arguments: arguments[0].put(*arguments[1:])]
)
def test_a_callback_that_can_take_two_arguments_gets_these(callback: Any) -> None:
    with queues(callback) as server, connect(server) as client:
        assert asks(client, b"hello")


def test_an_unknown_option_is_told_the_nearest_one() -> None:
    with pytest.raises(TypeError, match="max_connections"):
        QueueServer("localhost", 0, put_back, max_connection=5)


# ---- run and stop


def test_run_twice_raises() -> None:
    with queues(put_back) as server, connect(server) as client:
        assert asks(client, b"hello")
        with pytest.raises(RuntimeError, match="run already"):
            server.run()
    with pytest.raises(RuntimeError, match="run already"):
        server.run()


def test_run_after_stop_returns_at_once() -> None:
    server = QueueServer("localhost", 0, put_back)
    server.stop()
    server.stop()
    server.run()
    Call(server.stop).result()


def test_a_callback_that_exits_ends_run_and_leaves_nothing() -> None:
    def callback(queue: SendQueue, data: bytes) -> None:
        if data == b"exit":
            sys.exit("a client asked for it")
        queue.put(data)

    server = QueueServer("localhost", 0, callback)
    running = Call(server.run)
    with connect(server) as client, connect(server) as other:
        assert asks(other, b"hello")
        client.sendall(b"exit")
        with pytest.raises(SystemExit, match="asked"):
            running.result()
        assert everything(other) == b""
    server.stop()


def test_stop_from_the_callback_delivers_what_was_put() -> None:
    def callback(queue: SendQueue, data: bytes) -> None:
        queue.put(b"goodbye")
        server.stop()

    server = QueueServer("localhost", 0, callback)
    running = Call(server.run)
    with connect(server) as client:
        client.sendall(b"stop")
        assert everything(client) == b"goodbye"
    running.result()


def test_threads_that_stop_at_once_all_return_when_run_has() -> None:
    server = QueueServer("localhost", 0, put_back)
    running = Call(server.run)
    for stopping in [Call(server.stop) for _ in range(5)]:
        stopping.result()
    running.result()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_run_in_the_main_thread(number: int) -> None:
    server = QueueServer("localhost", 0, put_back)

    def use() -> bool:
        with connect(server) as client:
            answered = asks(client, b"hello")
            os.kill(os.getpid(), number)
            return answered and client.recv(1) == b""

    using = Call(use)
    server.run()
    assert using.result()


def test_threads_that_wait_in_put_learn_that_the_client_is_gone(taken: Taken) -> None:
    sending, _ = taken
    fill(sending)
    putting = [Call(sending.put, bytes(65536)) for _ in range(3)]
    putting[0].join(0.05)
    assert all(call.is_alive() for call in putting)
    sending._stream.io_loop.add_callback(sending._stream.abort)
    for call in putting:
        with pytest.raises(StreamClosedError):
            call.result()


def test_stop_ends_threads_that_wait_in_put_for_a_client_that_does_not_read() -> None:
    found: queue.Queue[SendQueue] = queue.Queue()
    with queues(lambda queue, data: found.put(queue)) as server, connect(server) as client:
        client.sendall(b"!")
        sending = found.get(timeout=PATIENCE)
        fill(sending)
        putting = Call(sending.put, bytes(65536))
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < PATIENCE
        with pytest.raises(StreamClosedError):
            putting.result()


# ---- put


@pytest.mark.parametrize("data", ["text", 5, None])
def test_put_takes_only_bytes(taken: Taken, data: Any) -> None:
    sending, _ = taken
    with pytest.raises(TypeError):
        sending.put(data)
    assert sending.empty()


def test_put_copies_what_may_change(taken: Taken) -> None:
    sending, client = taken
    data = bytearray(b"before")
    sending.put(data)
    data[:] = b"after!"
    del data[:]
    assert exactly(client, 6) == b"before"


def test_a_full_queue_raises_or_waits_until_there_is_room(taken: Taken) -> None:
    sending, client = taken
    count = fill(sending)
    assert sending.full()
    assert 0 < sending.qsize() <= MEBIBYTE
    with pytest.raises(queue.Full):
        sending.put_nowait(bytes(65536))
    putting = Call(sending.put, b"x" * 65536)
    assert exactly(client, count + 65536) == bytes(count) + b"x" * 65536
    putting.result()
    eventually(sending.empty)
    assert not sending.full()


def test_a_hundred_thousand_small_puts_all_arrive_though_the_client_is_slow_to_begin(taken: Taken) -> None:
    sending, client = taken
    count = fill(sending)
    pieces = [b"%05d" % number for number in range(100_000)]

    def put() -> None:
        for piece in pieces:
            sending.put(piece)

    putting = Call(put)
    putting.join(0.1)
    assert digest(exactly(client, count + 500_000)) == digest(bytes(count) + b"".join(pieces))
    putting.result()


def test_puts_from_many_threads_all_arrive_in_each_ones_order(taken: Taken) -> None:
    sending, client = taken

    def put(letter: bytes) -> None:
        for number in range(1000):
            sending.put(letter + b"%04d" % number)

    receiving = Call(exactly, client, 8 * 1000 * 5)
    for putting in [Call(put, bytes([65 + number])) for number in range(8)]:
        putting.result()
    received = receiving.result()
    pieces = [received[begin : begin + 5] for begin in range(0, len(received), 5)]
    for number in range(8):
        letter = bytes([65 + number])
        assert [piece for piece in pieces if piece.startswith(letter)] == [letter + b"%04d" % n for n in range(1000)]


def test_each_put_for_a_client_that_half_closes_arrives_or_raises(taken: Taken) -> None:
    sending, client = taken
    counts: list[int] = []

    def put_until_refused() -> None:
        count = 0
        with contextlib.suppress(StreamClosedError):
            for _ in range(10_000):
                sending.put(b"x", timeout=PATIENCE)
                count += 1
        counts.append(count)

    putting = [Call(put_until_refused) for _ in range(4)]
    exactly(client, 1000)
    client.shutdown(socket.SHUT_WR)
    received = 1000 + len(everything(client))
    for each in putting:
        each.result()
    assert received == sum(counts)


def test_large_puts_from_threads_arrive_whole_one_after_another(taken: Taken) -> None:
    sending, client = taken
    parts = [bytes([number]) * (4 * MEBIBYTE) for number in range(1, 5)]
    receiving = Call(exactly, client, 16 * MEBIBYTE)
    for putting in [Call(sending.put, part) for part in parts]:
        putting.result()
    received = receiving.result()
    size = 4 * MEBIBYTE
    assert sorted(received[begin : begin + size] for begin in range(0, len(received), size)) == parts


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_put_for_a_client_who_is_gone_raises(taken: Taken, leave: Callable[[socket.socket], None]) -> None:
    sending, client = taken
    leave(client)

    def is_gone() -> bool:
        try:
            sending.put(b"anybody there?")
        except StreamClosedError:
            return True
        return False

    eventually(is_gone)


def test_a_put_after_stop_raises() -> None:
    found: queue.Queue[SendQueue] = queue.Queue()
    with queues(lambda queue, data: found.put(queue)) as server, connect(server) as client:
        client.sendall(b"!")
        sending = found.get(timeout=PATIENCE)
    with pytest.raises(StreamClosedError):
        sending.put(b"too late")


# ---- floods


def test_a_callback_that_puts_until_the_queue_is_full_goes_on_when_it_has_room() -> None:
    def callback(sending: SendQueue, data: bytes) -> None:
        try:
            while True:
                sending.put(bytes(65536))
                counts[-1] += 65536
        except queue.Full:
            counts.append(0)

    counts = [0]
    with queues(callback) as server, connect(server) as client, connect(server) as other:
        client.sendall(b"!")
        eventually(lambda: len(counts) > 1)
        other.sendall(b"!")
        eventually(lambda: len(counts) > 2)
        assert exactly(other, counts[1]) == bytes(counts[1])
        assert exactly(client, counts[0]) == bytes(counts[0])


def test_a_callback_that_does_not_care_for_full_ends_its_client_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def callback(sending: SendQueue, data: bytes) -> None:
        while data == b"flood":
            sending.put(bytes(65536))
        sending.put(data)

    with queues(callback, linger=0.1) as server, connect(server) as other, connect(server) as client:
        client.sendall(b"flood")
        everything(client)
        assert asks(other, b"still there")
    (record,) = complaints(caplog)
    assert "queue" in record.getMessage()
    assert not record.exc_info


def test_nothing_more_is_received_from_a_client_that_does_not_take_its_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = random.Random(5).randbytes(32 * MEBIBYTE)
    with queues(put_back) as server, connect(server) as client, connect(server) as other:
        sending = Call(client.sendall, data)
        sending.join(0.5)
        assert sending.is_alive()
        assert asks(other, b"me too")
        assert digest(exactly(client, len(data))) == digest(data)
        sending.result()
    assert complaints(caplog) == []


def test_a_client_that_sends_a_byte_at_a_time_harms_nobody() -> None:
    with queues(put_back) as server, connect(server) as slow, connect(server) as other:
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(200):
            assert asks(slow, bytes([number]))
        assert asks(other, b"hello")


def test_a_queue_under_tls() -> None:
    tls, trusting = tls_contexts()
    large = random.Random(6).randbytes(16 * MEBIBYTE)
    with (
        queues(lambda queue, data: queue.put(large), ssl_options=tls) as server,
        trusting.wrap_socket(connect(server), server_hostname="localhost") as client,
    ):
        client.sendall(b"!")
        assert digest(exactly(client, len(large))) == digest(large)


def test_a_put_of_a_thread_does_not_wait_for_the_next_client() -> None:
    """The loop is woken by it, and by nothing else."""
    found: queue.Queue[SendQueue] = queue.Queue()
    with queues(lambda queue, data: found.put(queue)) as server, connect(server) as client:
        client.sendall(b"!")
        sending = found.get(timeout=PATIENCE)
        for _ in range(3):
            time.sleep(0.1)
            threading.Thread(target=sending.put, args=(b"now",)).start()
            assert exactly(client, 3) == b"now"


# ---- the outbox


def test_a_queue_is_short_enough_as_soon_as_a_part_of_it_was_taken() -> None:
    """Not only when all of it was: a server that waits for that would go round in circles until then."""

    async def main() -> None:
        ours, peer = memory_stream_pair(capacity=1000)
        outbox = Outbox(ours, ours.io_loop.add_callback)
        outbox.put_in_loop(bytes(100_000))
        outbox.put_in_loop(bytes(60_000))
        waiting = asyncio.ensure_future(outbox.drain(50_000))
        await peer.read_bytes(120_000)
        await asyncio.wait_for(waiting, PATIENCE)
        assert 0 < outbox.size <= 50_000
        ours.abort()
        peer.close()

    asyncio.run(main())
