"""What a program for RT-Thread's tcpserver relies on; the numbers are those of its scenarios."""

import contextlib
import os
import random
import time

import pytest

from iostreamsrv.styles import BlockingServer, Handle, Notice, SendTimeoutError
from tests.support.listening import linux_only
from tests.support.programs import PATIENCE
from tests.support.threads import (
    MEBIBYTE,
    Call,
    Notes,
    connect,
    digest,
    eventually,
    everything,
    exactly,
    reset,
    send_back,
    serving,
)

pytestmark = pytest.mark.usefixtures("nothing_left")


# ---- 1: several servers


@linux_only
def test_rtthread_1_two_servers_on_two_addresses_are_two_and_a_third_address_is_nobodys() -> None:
    with BlockingServer() as one, BlockingServer() as other:
        one.listen(0, "127.0.0.1")
        other.listen(0, "127.0.0.2")
        for server in (other, one):
            with connect(server) as client, server.accept(PATIENCE) as handle:
                assert handle.getsockname() == server.addresses[0]
                assert handle.getpeername() == client.getsockname()
            with pytest.raises(ConnectionRefusedError):
                connect(("127.0.0.3", server.addresses[0][1]))


# ---- 2: accept


def test_rtthread_2_accept_gives_up_after_its_timeout() -> None:
    with serving() as server:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="no client connected"):
            server.accept(timeout=0.2)
        assert 0.2 <= time.monotonic() - began < PATIENCE


def test_rtthread_2_accept_without_a_timeout_waits() -> None:
    with serving() as server:
        accepting = Call(server.accept, timeout=None)
        accepting.join(0.1)
        assert accepting.is_alive()
        with connect(server) as client, accepting.result() as handle:
            assert handle.getpeername() == client.getsockname()


def test_rtthread_2_accept_with_0_gives_who_is_there_and_waits_for_nobody() -> None:
    with serving() as server:
        with pytest.raises(TimeoutError):
            server.accept(timeout=0)
        with connect(server):
            accepted = []

            def accepts() -> bool:
                with contextlib.suppress(TimeoutError):
                    accepted.append(server.accept(timeout=0))
                return bool(accepted)

            eventually(accepts)
            accepted[0].close()


# ---- 3: recv


def test_rtthread_3_silence_is_a_timeout_after_which_the_connection_works() -> None:
    with serving() as server, connect(server) as client, server.accept() as handle:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            handle.recv(1024, timeout=0.2)
        assert 0.2 <= time.monotonic() - began < PATIENCE
        client.sendall(b"after all")
        assert handle.recv(1024) == b"after all"
        handle.sendall(b"yes")
        assert exactly(client, 3) == b"yes"


def test_rtthread_3_what_is_not_received_is_there_for_the_next_recv() -> None:
    with serving() as server, connect(server) as client, server.accept() as handle:
        client.sendall(b"abcdefgh")
        eventually(lambda: handle.recv(1, timeout=PATIENCE) == b"a")
        assert exactly(handle, 3) == b"bcd"
        assert handle.recv(4, timeout=0) == b"efgh"


def test_rtthread_3_an_end_is_no_bytes() -> None:
    with serving() as server, connect(server) as client, server.accept() as handle:
        client.sendall(b"the last")
        client.close()
        assert exactly(handle, 8) == b"the last"
        assert handle.recv(1024) == b""
        assert handle.recv(1024, timeout=0) == b""


def test_rtthread_3_a_reset_is_an_error() -> None:
    with serving() as server, connect(server) as client, server.accept() as handle:
        receiving = Call(handle.recv, 1024)
        eventually(lambda: handle.stream.reading())
        reset(client)
        with pytest.raises(ConnectionResetError):
            receiving.result()
        with pytest.raises(ConnectionResetError):
            handle.recv(1024)


# ---- 4: sendall

LARGE = (random.Random(4).randbytes(1_000_003) * 68)[: 64 * MEBIBYTE]


def test_rtthread_4_sendall_to_a_client_that_does_not_read_times_out_and_says_how_much_went() -> None:
    with serving() as server, connect(server) as client, server.accept() as handle:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="of 67108864 bytes") as caught:
            handle.sendall(LARGE, timeout=0.3)
        assert 0.3 <= time.monotonic() - began < PATIENCE
        assert isinstance(caught.value, SendTimeoutError)
        sent = caught.value.sent
        assert 0 < sent < len(LARGE)
        receiving = Call(exactly, client, len(LARGE))
        handle.sendall(LARGE[sent:], timeout=PATIENCE)
        assert digest(receiving.result()) == digest(LARGE)


def test_rtthread_4_nothing_goes_twice_if_sendall_times_out_again_and_again() -> None:
    with serving() as server, connect(server) as client, server.accept() as handle:
        sent = 0
        for _ in range(5):
            with pytest.raises(SendTimeoutError) as caught:
                handle.sendall(LARGE[sent:], timeout=0.05)
            sent += caught.value.sent
        assert handle.stream.queued <= 65536
        receiving = Call(everything, client)
        handle.close()
        assert digest(receiving.result()) == digest(LARGE[:sent])


def test_rtthread_4_sendall_to_a_client_that_reads_sends_all() -> None:
    with serving() as server, connect(server) as client, server.accept() as handle:
        receiving = Call(exactly, client, len(LARGE))
        handle.sendall(LARGE)
        assert digest(receiving.result()) == digest(LARGE)


# ---- 5: notify


def test_rtthread_5_a_client_that_comes_sends_and_goes_is_told_of_in_order_and_once_each() -> None:
    notes = Notes(recv=send_back)
    with serving(notify=notes) as server:
        with connect(server) as client:
            client.sendall(b"hello")
            assert exactly(client, 5) == b"hello"
        notes.wait_for(Notice.CONNECT, Notice.RECV, Notice.DISCONNECT)
        assert len(set(map(id, notes.handles))) == 1


def test_rtthread_5_what_comes_later_is_told_of_again() -> None:
    notes = Notes(recv=send_back)
    with serving(notify=notes) as server, connect(server) as client:
        for text in (b"one", b"three"):
            client.sendall(text)
            assert exactly(client, len(text)) == text
        notes.wait_for(Notice.CONNECT, Notice.RECV, Notice.RECV)


def test_rtthread_5_who_ignores_what_came_costs_nothing_and_is_still_told_of_a_reset() -> None:
    notes = Notes()
    with serving(notify=notes) as server:
        client = connect(server)
        client.sendall(b"hello?")
        notes.wait_for(Notice.CONNECT, Notice.RECV)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.25
        reset(client)
        notes.wait_for(Notice.CONNECT, Notice.RECV, Notice.DISCONNECT)
        assert notes.handles[0].recv(100) == b"hello?"


def test_rtthread_5_who_is_closed_on_connect_sees_the_end_and_is_never_accepted() -> None:
    def close_the_first(handle: Handle) -> None:
        if not notes.told:
            handle.close()

    notes = Notes(connect=close_the_first)
    with serving(notify=notes) as server:
        accepting = Call(server.accept)
        with connect(server) as first:
            assert first.recv(1) == b""
        with connect(server) as second, accepting.result() as handle:
            assert handle.getpeername() == second.getsockname()


# ---- 6: how many


def test_rtthread_6_one_too_many_is_refused_and_a_place_that_is_freed_can_be_had() -> None:
    with serving(max_connections=5) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(5)]
        handles = [stack.enter_context(server.accept()) for _ in clients]
        with connect(server) as sixth:
            assert sixth.recv(1) == b""
        clients[0].close()
        assert handles[0].recv(1) == b""
        handles[0].close()

        def is_served() -> bool:
            client = stack.enter_context(connect(server))
            with contextlib.suppress(TimeoutError), server.accept(timeout=0.1) as handle:
                return bool(handle.getpeername() == client.getsockname())
            return False

        eventually(is_served)


def test_rtthread_6_ten_who_wait_can_all_be_accepted_later() -> None:
    with serving(max_connections=20) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(10)]
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number)
        handles = [stack.enter_context(server.accept(PATIENCE)) for _ in clients]
        assert sorted(handle.recv(10) for handle in handles) == [b"%d" % number for number in range(10)]


# ---- 7: the end


def test_rtthread_7_stop_ends_a_thread_that_waits_in_accept() -> None:
    with serving() as server:
        accepting = Call(server.accept)
        accepting.join(0.05)
        server.stop()
        with pytest.raises(ConnectionAbortedError, match="stopped"):
            accepting.result()


def test_rtthread_7_stop_ends_a_thread_that_waits_in_recv() -> None:
    with serving() as server, connect(server) as client, server.accept() as handle:
        receiving = Call(handle.recv, 100)
        eventually(lambda: handle.stream.reading())
        server.stop()
        with pytest.raises(ConnectionAbortedError):
            receiving.result()
        assert client.recv(1) == b""


def test_rtthread_7_stop_ends_a_thread_that_waits_in_sendall() -> None:
    with serving() as server, connect(server), server.accept() as handle:
        sending = Call(handle.sendall, bytes(64 * MEBIBYTE))
        eventually(lambda: handle.stream.writing())
        server.stop()
        with pytest.raises(ConnectionAbortedError):
            sending.result()


def test_rtthread_7_threads_on_two_clients_do_not_block_each_other() -> None:
    with (
        serving() as server,
        connect(server),
        server.accept() as silent,
        connect(server) as busy,
        server.accept() as handle,
    ):
        receiving = Call(silent.recv, 100)
        eventually(lambda: silent.stream.reading())
        for _ in range(10):
            text = os.urandom(10)
            busy.sendall(text)
            assert exactly(handle, 10) == text
            handle.sendall(text)
            assert exactly(busy, 10) == text
        assert receiving.is_alive()
        server.stop()
        with pytest.raises(ConnectionAbortedError):
            receiving.result()
