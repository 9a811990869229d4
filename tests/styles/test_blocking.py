"""`BlockingServer` and `Handle`: what goes wrong harms the one connection, or is a clear error, and nothing is left."""

import asyncio
import contextlib
import gc
import os
import random
import signal
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iostreamsrv import ConcurrentReadError, ListenError, OptionError
from iostreamsrv.styles import BlockingServer, Handle, Notice, SendTimeoutError
from tests.support.leaks import complaints
from tests.support.peers import tls_contexts
from tests.support.programs import PATIENCE
from tests.support.threads import (
    MEBIBYTE,
    Call,
    Notes,
    connect,
    descriptors_for,
    digest,
    eventually,
    everything,
    exactly,
    others,
    reset,
    send_back,
    serving,
)

pytestmark = pytest.mark.usefixtures("nothing_left")

HEADER = b"PROXY TCP4 10.1.2.3 127.0.0.1 4567 80\r\n"

Pair = tuple[Handle, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A handle and its client."""
    with serving() as server, connect(server) as client, server.accept(PATIENCE) as handle:
        yield handle, client


class Lines(BlockingServer):
    """Sends back what it gets, line by line."""

    def handle(self, sock: Any, address: Any) -> None:
        with sock.makefile("rb") as lines:
            for line in lines:
                sock.sendall(line)


def asks(client: socket.socket, line: bytes = b"hello\n") -> bool:
    """Whether ``line`` comes back."""
    client.sendall(line)
    return exactly(client, len(line)) == line


CUT_OFF = "shutting down: 1 client not done within 0.5 s, and cut off"
"""What is logged when a client's ``handle`` goes on in spite of a stop."""


# ---- options


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": "2"}, {"notify": 1}, {"max_connections": 0}])
def test_an_option_that_cannot_be_raises_and_leaves_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        BlockingServer(**options)


def test_an_unknown_option_is_told_the_nearest_one() -> None:
    with pytest.raises(TypeError, match="max_connections"):
        BlockingServer(max_connection=5)


def test_a_handle_method_and_a_notify_do_not_go_together() -> None:
    with pytest.raises(TypeError, match="either"):
        Lines(notify=Notes())


def test_a_port_that_is_taken_raises_in_the_thread_that_asks() -> None:
    with serving() as server, pytest.raises(ListenError, match="in use"):
        server.listen(server.addresses[0][1], "127.0.0.1")


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1"])
def test_a_timeout_that_cannot_be_raises(pair: Pair, timeout: Any) -> None:
    handle, _ = pair
    for call in (handle.settimeout, lambda timeout: handle.recv(1, timeout), lambda t: handle.sendall(b"x", t)):
        with pytest.raises(OptionError, match="timeout"):
            call(timeout)
    with BlockingServer() as server, pytest.raises(OptionError, match="timeout"):
        server.accept(timeout)


# ---- handles look like sockets


def test_the_timeout_of_a_handle_is_that_of_all_its_calls(pair: Pair) -> None:
    handle, _ = pair
    assert handle.gettimeout() is None
    handle.settimeout(0.05)
    with pytest.raises(TimeoutError):
        handle.recv(1)
    with pytest.raises(SendTimeoutError):
        handle.sendall(bytes(64 * MEBIBYTE))


@pytest.mark.parametrize("make", [bytearray, lambda size: memoryview(bytearray(size))])
def test_recv_into_fills_what_it_is_given(pair: Pair, make: Callable[[int], Any]) -> None:
    handle, client = pair
    client.sendall(b"abcdef")
    eventually(lambda: handle.recv(1) == b"a")
    buffer = make(10)
    assert handle.recv_into(buffer, 2) == 2
    assert handle.recv_into(memoryview(buffer)[2:]) == 3
    assert bytes(buffer) == b"bcdef" + bytes(5)


def test_recv_into_what_cannot_take_it_receives_nothing(pair: Pair) -> None:
    handle, client = pair
    client.sendall(b"abc")
    with pytest.raises(OptionError, match="read-only"):
        handle.recv_into(bytes(3))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="size=4"):
        handle.recv_into(bytearray(3), 4)
    assert exactly(handle, 3) == b"abc"


@pytest.mark.parametrize("data", [b"data", bytearray(b"data"), memoryview(b"data")])
def test_sendall_takes_whatever_is_bytes(pair: Pair, data: Any) -> None:
    handle, client = pair
    handle.sendall(data)
    assert exactly(client, 4) == b"data"


@pytest.mark.parametrize("data", ["data", 4, None])
def test_sendall_of_anything_else_raises_and_sends_nothing(pair: Pair, data: Any) -> None:
    handle, client = pair
    with pytest.raises(TypeError):
        handle.sendall(data)
    handle.close()
    assert everything(client) == b""


def test_what_was_sent_may_be_changed_at_once(pair: Pair) -> None:
    handle, client = pair
    data = bytearray(random.Random(1).randbytes(4 * MEBIBYTE))
    expected = digest(data)
    receiving = Call(exactly, client, len(data))
    handle.sendall(data)
    data[:] = bytes(len(data))
    del data[:]
    assert digest(receiving.result()) == expected


def test_what_a_sendall_that_timed_out_has_sent_may_be_cut_off_at_once(pair: Pair) -> None:
    handle, client = pair
    data = bytearray(random.Random(2).randbytes(32 * MEBIBYTE))
    expected = digest(data)
    try:
        handle.sendall(data, timeout=0.1)
        pytest.fail("the client does not read")
    except SendTimeoutError as error:
        del data[: error.sent]
    receiving = Call(exactly, client, 32 * MEBIBYTE)
    handle.sendall(data)
    assert digest(receiving.result()) == expected


def test_a_handle_as_text_files(pair: Pair) -> None:
    handle, client = pair
    with handle.makefile(encoding="utf-8") as lines, handle.makefile("w", encoding="utf-8") as answers:
        client.sendall("größe\nrest".encode())
        assert lines.readline() == "größe\n"
        answers.write("grüße\n")
        answers.flush()
        assert exactly(client, 8) == "grüße\n".encode()
        client.shutdown(socket.SHUT_WR)
        assert lines.read() == "rest"


def test_a_handle_as_a_file_without_a_buffer(pair: Pair) -> None:
    handle, client = pair
    with handle.makefile("rwb", buffering=0) as file:
        assert file.write(b"abc") == 3
        assert exactly(client, 3) == b"abc"


@pytest.mark.parametrize("arguments", [("a",), ("r", 0), ("",)])
def test_a_mode_that_no_file_can_have_raises(pair: Pair, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(OptionError):
        pair[0].makefile(*arguments)


def test_a_handle_under_tls() -> None:
    tls, trusting = tls_contexts()
    large = random.Random(7).randbytes(4 * MEBIBYTE)
    with serving(ssl_options=tls) as server:
        connecting = Call(lambda: trusting.wrap_socket(connect(server), server_hostname="localhost"))
        with server.accept(PATIENCE) as handle, connecting.result() as client:
            client.sendall(b"hello")
            assert exactly(handle, 5) == b"hello"
            with pytest.raises(TimeoutError):
                handle.recv(1, timeout=0)
            receiving = Call(exactly, client, len(large))
            handle.sendall(large)
            assert digest(receiving.result()) == digest(large)
            ending = Call(client.unwrap)
            assert handle.recv(1) == b""
            handle.close()
            ending.result().close()


def test_a_handle_of_a_proxys_client_has_that_ones_address() -> None:
    with serving(proxy_protocol=["127.0.0.1"]) as server, connect(server) as client:
        client.sendall(HEADER + b"hello")
        with server.accept(PATIENCE) as handle:
            assert handle.getpeername() == ("10.1.2.3", 4567)
            assert exactly(handle, 5) == b"hello"


# ---- handles that are closed, or in two hands


def test_a_handle_that_is_closed_says_so(pair: Pair) -> None:
    handle, client = pair
    handle.close()
    handle.close()
    for call in (lambda: handle.recv(1), lambda: handle.recv_into(bytearray(1)), lambda: handle.sendall(b"x")):
        with pytest.raises(OSError, match="the handle is closed"):
            call()
    assert everything(client) == b""


def test_a_close_delivers_what_was_sent_before(pair: Pair) -> None:
    handle, client = pair
    data = random.Random(2).randbytes(8 * MEBIBYTE)
    receiving = Call(everything, client)
    for begin in range(0, len(data), 10000):
        handle.sendall(data[begin : begin + 10000])
    handle.close()
    assert digest(receiving.result()) == digest(data)


def test_a_close_delivers_what_the_stream_had_no_room_for() -> None:
    with serving(max_write_buffer_size=1000) as server, connect(server) as client, server.accept(PATIENCE) as handle:
        with pytest.raises(SendTimeoutError) as caught:
            handle.sendall(bytes(64 * MEBIBYTE), timeout=0.1)
        for _ in range(20):
            handle.sendall(b"x" * 900)
        handle.close()
        assert digest(everything(client)) == digest(bytes(caught.value.sent) + b"x" * 18000)


def test_a_second_thread_that_receives_is_refused_and_the_first_gets_all(pair: Pair) -> None:
    handle, client = pair
    receiving = Call(handle.recv, 100)
    eventually(lambda: handle.stream.reading())
    with pytest.raises(ConcurrentReadError):
        handle.recv(100)
    client.sendall(b"for the first")
    assert receiving.result() == b"for the first"


def test_threads_that_send_at_once_send_one_after_another(pair: Pair) -> None:
    handle, client = pair
    parts = [bytes([number]) * MEBIBYTE for number in range(1, 5)]
    receiving = Call(exactly, client, 4 * MEBIBYTE)
    for sending in [Call(handle.sendall, part) for part in parts]:
        sending.result()
    received = receiving.result()
    assert sorted(received[begin : begin + MEBIBYTE] for begin in range(0, len(received), MEBIBYTE)) == parts


def test_who_waits_for_another_thread_to_send_waits_no_longer_than_its_timeout(pair: Pair) -> None:
    handle, _ = pair
    sending = Call(handle.sendall, bytes(64 * MEBIBYTE))
    eventually(lambda: handle.stream.writing())
    with pytest.raises(SendTimeoutError) as caught:
        handle.sendall(b"me too", timeout=0.05)
    assert caught.value.sent == 0
    handle.stream.io_loop.add_callback(handle.stream.abort)
    with pytest.raises(ConnectionAbortedError):
        sending.result()


def test_a_handle_that_is_closed_while_another_thread_receives_ends_that(pair: Pair) -> None:
    handle, client = pair
    receiving = Call(handle.recv, 100)
    eventually(lambda: handle.stream.reading())
    handle.close()
    with pytest.raises(ConnectionAbortedError):
        receiving.result()
    assert client.recv(1) == b""


def test_a_handle_that_is_closed_while_another_thread_sends_delivers_what_that_was_told_is_sent(pair: Pair) -> None:
    handle, client = pair
    sending = Call(handle.sendall, bytes(64 * MEBIBYTE), PATIENCE)
    eventually(lambda: handle.stream.writing())
    handle.close()
    received = len(everything(client))
    with contextlib.suppress(ConnectionAbortedError):
        sending.result()
        assert received == 64 * MEBIBYTE
    assert received


def test_ctrl_c_in_recv_leaves_the_handle_usable(pair: Pair) -> None:
    handle, client = pair

    def interrupt() -> None:
        eventually(lambda: handle.stream.reading())
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = Call(interrupt)
    with pytest.raises(KeyboardInterrupt):
        handle.recv(100)
    interrupting.result()
    client.sendall(b"go on")
    assert exactly(handle, 5) == b"go on"


def test_the_loop_cannot_wait_for_itself() -> None:
    raised: list[str] = []

    def call_all() -> None:
        for call in (server.stop, server.accept, lambda: handle.recv(1), lambda: handle.sendall(bytes(MEBIBYTE))):
            try:
                call()
            except RuntimeError as error:
                raised.append(str(error))
            else:
                raised.append("nothing")

    with serving() as server, connect(server) as client, server.accept(PATIENCE) as handle:
        handle.stream.io_loop.add_callback(call_all)
        eventually(lambda: len(raised) == 4)
        assert all("the thread of the server's loop" in text for text in raised)
        client.sendall(b"and goes on")
        assert exactly(handle, 11) == b"and goes on"


def test_sending_to_who_is_gone_is_an_error_soon(pair: Pair) -> None:
    handle, client = pair
    reset(client)

    def fails() -> bool:
        try:
            handle.sendall(b"anybody there?")
        except ConnectionResetError:
            return True
        return False

    eventually(fails)


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize("size", [10, 10_000, 150_000])
@pytest.mark.parametrize("style", ["accept", "handle"])
def test_who_half_closes_before_anybody_receives_gets_the_answer_to_all(style: str, size: int, tls: bool) -> None:
    def answer(sock: Any) -> None:
        sent.wait(PATIENCE)
        with sock:
            count = 0
            while data := sock.recv(3000):
                count += len(data)
            sock.sendall(b"%d bytes" % count)

    class Pool(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            answer(sock)

    sent = threading.Event()
    secure, trusting = tls_contexts()
    server = (Pool if style == "handle" else BlockingServer)(ssl_options=secure if tls else None)
    with server:
        server.listen(0, "127.0.0.1")
        with connect(server) as raw:
            call = Call(lambda: answer(server.accept(PATIENCE))) if style == "accept" else None
            if tls:
                assert half_closing(raw, trusting, bytes(size), sent) == b"%d bytes" % size
            else:
                raw.sendall(bytes(size))
                raw.shutdown(socket.SHUT_WR)
                sent.set()
                assert everything(raw) == b"%d bytes" % size
            if call is not None:
                call.result()


def half_closing(raw: socket.socket, context: ssl.SSLContext, data: bytes, sent: threading.Event) -> bytes:
    """Send ``data`` and an end under TLS, and receive all there is."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")

    def goes_on(step: Callable[[], object]) -> bool:
        try:
            step()
        except ssl.SSLWantReadError:
            return True
        finally:
            raw.sendall(outgoing.read())
        return False

    while goes_on(tls.do_handshake):
        incoming.write(raw.recv(MEBIBYTE))
    goes_on(lambda: tls.write(data))
    goes_on(tls.unwrap)
    raw.shutdown(socket.SHUT_WR)
    sent.set()
    incoming.write(everything(raw))
    received = b""
    with contextlib.suppress(ssl.SSLZeroReturnError):
        while True:
            received += tls.read()
    return received


def test_a_handle_that_nobody_has_any_more_is_closed() -> None:
    with serving() as server, connect(server) as client:
        client.sendall(b"hello")
        assert exactly(server.accept(PATIENCE), 5) == b"hello"
        gc.collect()
        assert client.recv(1) == b""


def test_a_handle_that_nobody_closes_is_forgotten_when_its_client_is_gone() -> None:
    with serving() as server:
        with connect(server):
            handle = server.accept(PATIENCE)
        assert handle.recv(1) == b""
        forgotten = weakref.ref(handle)
        del handle

        def is_forgotten() -> bool:
            gc.collect()
            return forgotten() is None

        eventually(is_forgotten)


# ---- the pool


def test_clients_of_a_pool_get_real_sockets() -> None:
    kinds = []

    class Kind(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            kinds.append(sock)
            assert sock.getpeername() == address
            sock.sendall(sock.recv(100).upper())

    with serving(Kind) as server, connect(server) as client:
        client.sendall(b"hello")
        assert everything(client) == b"HELLO"
    assert [isinstance(each, socket.socket) for each in kinds] == [True]


def test_more_clients_than_threads_are_served_in_their_turn() -> None:
    with serving(Lines, threads=2) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(20)]
        for client in clients:
            client.sendall(b"hello\n")
            client.shutdown(socket.SHUT_WR)
        assert [everything(client) for client in clients] == [b"hello\n"] * 20
        names = [thread.name for thread in threading.enumerate() if thread.name.startswith("handle")]
        assert 1 <= len(names) <= 2  # one, if it was always free again before the next client came


def test_a_handle_method_that_raises_is_logged_once_and_ends_that_client_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(Lines):
        def handle(self, sock: Any, address: Any) -> None:
            if sock.recv(1) == b"!":
                raise ZeroDivisionError
            super().handle(sock, address)

    with serving(Failing) as server, connect(server) as other, connect(server) as client:
        client.sendall(b"!")
        assert client.recv(1) == b""
        other.sendall(b"?")
        assert asks(other)
        address = "{}:{}".format(*client.getsockname())
    (record,) = complaints(caplog)
    assert address in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("error", [ConnectionResetError, TimeoutError, SystemExit])
def test_what_a_client_does_to_its_socket_is_no_complaint(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    raised: list[BaseException] = []

    class Failing(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            try:
                sock.settimeout(0.05 if error is TimeoutError else 10)
                sock.recv(1)
                raise SystemExit
            except BaseException as problem:
                raised.append(problem)
                raise

    with serving(Failing) as server, connect(server) as client:
        if error is ConnectionResetError:
            reset(client)
        elif error is SystemExit:
            client.sendall(b"x")
        while not raised:
            time.sleep(0.01)
    assert [type(problem) for problem in raised] == [error]
    assert complaints(caplog) == []


def test_a_handle_method_that_closes_its_socket_may_go_on_with_something_else() -> None:
    go_on, gone_on = threading.Event(), threading.Event()

    class Closing(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            sock.sendall(b"that is all")
            sock.close()
            assert go_on.wait(PATIENCE)
            gone_on.set()

    with serving(Closing) as server:
        with connect(server) as client:
            assert everything(client) == b"that is all"
        go_on.set()
        assert gone_on.wait(PATIENCE)


def test_a_socket_with_a_file_is_closed_when_the_file_is() -> None:
    class Filing(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            with sock, sock.makefile("wb") as file:
                sock.close()
                file.write(b"after the close")

    with serving(Filing) as server, connect(server) as client:
        assert everything(client) == b"after the close"


def test_the_last_words_to_a_client_that_still_sends_arrive() -> None:
    class Goodbye(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            sock.sendall(b"goodbye")

    with serving(Goodbye) as server, connect(server) as client:
        client.sendall(bytes(300_000))
        assert everything(client) == b"goodbye"


def test_an_idle_timeout_is_that_of_the_sockets(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Lines, idle_timeout=0.1) as server, connect(server) as client:
        assert asks(client)
        assert client.recv(1) == b""
    assert complaints(caplog) == []


def test_a_pool_serves_tls() -> None:
    tls, trusting = tls_contexts()
    with (
        serving(Lines, ssl_options=tls) as server,
        trusting.wrap_socket(connect(server), server_hostname="localhost") as client,
    ):
        assert asks(client)
        large = random.Random(3).randbytes(MEBIBYTE).replace(b"\n", b".") + b"\n"
        client.sendall(large)
        assert digest(exactly(client, len(large))) == digest(large)


def test_a_pool_serves_clients_of_a_proxy_with_their_own_addresses() -> None:
    class Addresses(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            assert sock.getpeername() == address
            sock.sendall(b"%s:%d %s" % (address[0].encode(), address[1], sock.recv(100)))

    with serving(Addresses, proxy_protocol=["127.0.0.1"]) as server, connect(server) as client:
        client.sendall(HEADER + b"hello")
        assert everything(client) == b"10.1.2.3:4567 hello"


def test_a_handle_method_under_tls_that_closes_may_go_on() -> None:
    go_on = threading.Event()

    class Closing(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            sock.sendall(b"that is all")
            sock.close()
            assert go_on.wait(PATIENCE)

    tls, trusting = tls_contexts()
    with (
        serving(Closing, ssl_options=tls) as server,
        trusting.wrap_socket(connect(server), server_hostname="localhost") as client,
    ):
        assert everything(client) == b"that is all"
        go_on.set()


def test_a_pool_has_nobody_to_accept() -> None:
    with serving(Lines) as server, pytest.raises(RuntimeError, match="handle"):
        server.accept(0)


def test_1100_clients_of_a_pool_are_served() -> None:
    class Once(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            sock.sendall(sock.recv(100))

    with descriptors_for(1200), serving(Once, max_connections=1200) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(1100)]
        for client in clients:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
        assert {everything(client) for client in clients} == {b"hello"}


# ---- notices


def test_a_notify_that_raises_is_logged_and_ends_that_client_only(caplog: pytest.LogCaptureFixture) -> None:
    def notify(handle: Handle, notice: Notice) -> None:
        if notice is Notice.RECV:
            handle.sendall(b"%d" % (12 // int(handle.recv(10))))

    with serving(notify=notify) as server, connect(server) as other, connect(server) as client:
        client.sendall(b"0")
        assert client.recv(1) == b""
        other.sendall(b"4")
        assert exactly(other, 1) == b"3"
        address = "{}:{}".format(*client.getsockname())
    (record,) = complaints(caplog)
    assert address in record.getMessage()


def test_what_is_left_when_some_was_received_is_told_of_again() -> None:
    received = []
    with (
        serving(notify=Notes(recv=lambda handle: received.append(handle.recv(4)))) as server,
        connect(server) as client,
    ):
        client.sendall(b"abcdefghij")
        eventually(lambda: b"".join(received) == b"abcdefghij")


def test_a_flood_that_nobody_receives_is_left_to_the_kernel_and_can_be_received_later() -> None:
    notes = Notes()
    flood = random.Random(4).randbytes(16 * MEBIBYTE)
    with serving(notify=notes, max_buffer_size=200_000) as server, connect(server) as client:
        sending = Call(client.sendall, flood)
        handle = server.accept(PATIENCE)
        eventually(lambda: handle.stream.buffered > 200_000 - 65536)
        told = len(notes.told)
        sending.join(0.2)
        assert sending.is_alive()
        assert len(notes.told) <= told + 1
        assert handle.stream.buffered <= 200_000
        assert not handle.stream.closed()
        assert digest(exactly(handle, len(flood))) == digest(flood)
        sending.result()


def test_a_flood_that_nobody_receives_and_that_ends_with_a_reset_is_told_of() -> None:
    notes = Notes()
    with serving(notify=notes, max_buffer_size=200_000) as server:
        client = connect(server)
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(bytes(65536))
        handle = server.accept(PATIENCE)
        eventually(lambda: handle.stream.buffered > 100_000)
        reset(client)
        eventually(lambda: notes.told[-1:] == [Notice.DISCONNECT])
        with pytest.raises(ConnectionResetError):
            while handle.recv(MEBIBYTE):
                pass


def test_who_is_gone_before_anybody_accepted_is_not_kept() -> None:
    notes = Notes()
    with serving(notify=notes) as server:
        connect(server).close()
        notes.wait_for(Notice.CONNECT, Notice.DISCONNECT)
        with pytest.raises(TimeoutError):
            server.accept(0)


def test_another_thread_may_receive_while_notices_are_told() -> None:
    notes = Notes()
    with serving(notify=notes) as server, connect(server) as client, server.accept() as handle:
        for number in range(50):
            client.sendall(b"%02d" % number)
            assert exactly(handle, 2) == b"%02d" % number
    assert notes.told[0] is Notice.CONNECT
    assert notes.told[-1] is Notice.DISCONNECT
    assert set(notes.told[1:-1]) <= {Notice.RECV}


# ---- stop


def test_a_server_that_was_stopped_says_so() -> None:
    with serving() as server, connect(server), server.accept() as handle:
        server.stop()
        server.stop()
        for call in (
            lambda: server.accept(),
            lambda: server.listen(0),
            lambda: server.process(),
            lambda: handle.recv(1),
            lambda: handle.sendall(b"x"),
        ):
            with pytest.raises(ConnectionAbortedError, match="stopped"):
                call()
        with pytest.raises(RuntimeError, match="stopped"):
            server.start()
        assert server.addresses == []


def test_stop_delivers_what_was_sent_before() -> None:
    data = random.Random(8).randbytes(2 * MEBIBYTE)
    with serving() as server, connect(server) as client, server.accept(PATIENCE) as handle:
        receiving = Call(everything, client)
        for begin in range(0, len(data), 50_000):
            handle.sendall(data[begin : begin + 50_000])
        server.stop()
        assert digest(receiving.result()) == digest(data)


def test_stop_before_start_closes_the_port() -> None:
    server = BlockingServer()
    server.listen(0, "127.0.0.1")
    address = server.addresses[0]
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        connect(address)


def test_stop_of_a_server_that_never_did_anything() -> None:
    BlockingServer().stop()


def test_start_may_be_repeated() -> None:
    with serving() as server:
        server.start()
        assert len([thread for thread in threading.enumerate() if thread.name == "BlockingServer"]) == 1


def test_threads_that_stop_at_once_all_return_when_it_is_over() -> None:
    with serving(Lines) as server, connect(server) as client:
        assert asks(client)
        for stopping in [Call(server.stop) for _ in range(5)]:
            stopping.result()
            assert server.addresses == []


def test_stop_from_notify() -> None:
    notes = Notes(recv=lambda handle: servers[0].stop())
    servers: list[BlockingServer] = []
    with serving(notify=notes) as server, connect(server) as client:
        servers.append(server)
        client.sendall(b"stop")
        assert client.recv(1) == b""
        notes.wait_for(Notice.CONNECT, Notice.RECV, Notice.DISCONNECT)


def test_stop_from_a_handle_method() -> None:
    class Stopping(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            sock.recv(1)
            self.stop()
            stopped.append(self.addresses)

    stopped: list[Any] = []
    with serving(Stopping) as server, connect(server) as client:
        client.sendall(b"!")
        assert client.recv(1) == b""
        eventually(lambda: stopped == [[]])


def test_stop_from_a_handle_method_that_another_stop_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    begun = threading.Event()

    class Stopping(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            while sock.recv(1):
                begun.set()
            self.stop()

    with serving(Stopping) as server, connect(server) as client:
        client.sendall(b"!")
        assert begun.wait(PATIENCE)
    assert {record.getMessage() for record in complaints(caplog)} <= {CUT_OFF}


def test_stop_from_a_signal_handler_ends_an_accept_in_the_main_thread() -> None:
    with serving() as server:
        before = signal.signal(signal.SIGUSR1, lambda *_: server.stop())
        try:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(ConnectionAbortedError):
                server.accept()
        finally:
            signal.signal(signal.SIGUSR1, before)


def test_a_signal_handler_may_stop_it_while_the_thread_that_it_interrupts_wakes_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wake = asyncio.BaseEventLoop.call_soon_threadsafe
    server = BlockingServer()
    server.start()
    server.listen(0, "127.0.0.1")
    threads: list[int] = []

    def accept() -> None:
        threads.append(threading.get_ident())
        server.accept()

    def interrupted(loop: Any, *arguments: Any, **context: Any) -> Any:
        if threads == [threading.get_ident()]:
            threads.clear()
            server.stop()  # as a signal handler that runs before the first line of this function
        return wake(loop, *arguments, **context)

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_soon_threadsafe", interrupted)
    with pytest.raises(ConnectionAbortedError):
        Call(accept).result()
    assert threads == []


def test_stop_lets_a_handle_method_say_its_last_words() -> None:
    waits = threading.Event()

    class Waiting(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            while sock.recv(100):
                waits.set()
            sock.sendall(b"the server is stopping")

    with serving(Waiting) as server, connect(server) as client:
        client.sendall(b"hello")
        assert waits.wait(PATIENCE)
        stopping = Call(server.stop)
        assert everything(client) == b"the server is stopping"
        stopping.result()


@pytest.mark.parametrize("tls", [False, True])
def test_stop_ends_handle_methods_that_wait_for_clients(tls: bool) -> None:
    class Sending(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            sock.recv(1)
            sock.sendall(bytes(64 * MEBIBYTE))

    server_context, trusting = tls_contexts()
    with serving(Sending, ssl_options=server_context if tls else None) as server, connect(server) as sock:
        client = trusting.wrap_socket(sock, server_hostname="localhost") if tls else sock
        with client:
            client.sendall(b"!")
            assert client.recv(1)
            server.stop()
            assert [thread for thread in threading.enumerate() if thread.name.startswith("handle")] == []


def test_a_handle_method_that_goes_on_is_left_alone_which_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    begun, end = threading.Event(), threading.Event()

    class Hanging(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            begun.set()
            assert end.wait(PATIENCE)

    with serving(Hanging) as server, connect(server) as client:
        assert begun.wait(PATIENCE)
        server.stop()
        assert client.recv(1) == b""
    (thread,) = [thread for thread in threading.enumerate() if thread.name.startswith("handle")]
    first, second = complaints(caplog)
    assert first.getMessage() == CUT_OFF
    assert thread.name in second.getMessage()
    end.set()
    thread.join(PATIENCE)


def test_clients_that_wait_for_a_thread_see_the_end_at_stop() -> None:
    with serving(Lines, threads=1) as server, connect(server) as served, connect(server) as waiting:
        assert asks(served)
        waiting.sendall(b"me?\n")
        server.stop()
        assert everything(served) == b""
        with contextlib.suppress(ConnectionResetError):
            assert everything(waiting) == b""


# ---- process


def pumped(server: BlockingServer, condition: Callable[[], object]) -> None:
    """Have a main loop go round until ``condition`` holds."""

    def holds() -> object:
        server.process(timeout=0.01)
        return condition()

    eventually(holds)


@contextlib.contextmanager
def without_thread(kind: type[BlockingServer] = BlockingServer, **options: Any) -> Iterator[BlockingServer]:
    server = kind(**options)
    try:
        server.listen(0, "127.0.0.1")
        yield server
    finally:
        server.stop()


def test_process_is_for_servers_without_a_thread() -> None:
    with serving() as server, pytest.raises(RuntimeError, match="thread"):
        server.process()


def test_process_serves_and_makes_no_thread() -> None:
    before = others()
    with without_thread(notify=Notes(recv=send_back)) as server, connect(server) as client:
        client.setblocking(False)
        client.sendall(b"hello")
        received = []

        def answered() -> bool:
            with contextlib.suppress(BlockingIOError):
                received.append(client.recv(100))
            return received == [b"hello"]

        pumped(server, answered)
        assert not others() - before


def test_process_returns_as_soon_as_there_is_something_to_tell() -> None:
    notes = Notes()
    with without_thread(notify=notes) as server, connect(server):
        began = time.monotonic()
        while not notes.told:
            server.process(timeout=100)
        assert time.monotonic() - began < PATIENCE


def test_process_with_nothing_to_do_returns_after_its_timeout() -> None:
    with without_thread() as server:
        began = time.monotonic()
        server.process(timeout=0.1)
        assert time.monotonic() - began >= 0.1


def test_without_a_thread_each_call_runs_the_server_itself() -> None:
    with without_thread() as server, connect(server) as client, server.accept(PATIENCE) as handle:
        client.sendall(b"hello")
        assert exactly(handle, 5) == b"hello"
        with pytest.raises(TimeoutError):
            handle.recv(1, timeout=0.05)
        with pytest.raises(TimeoutError):
            server.accept(timeout=0)
        receiving = Call(exactly, client, 8 * MEBIBYTE)
        handle.sendall(bytes(8 * MEBIBYTE))
        assert receiving.result() == bytes(8 * MEBIBYTE)


def test_without_a_thread_several_may_use_handles_at_once() -> None:
    with without_thread() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(4)]
        handles = [stack.enter_context(server.accept(PATIENCE)) for _ in clients]
        by_address = {handle.getpeername(): handle for handle in handles}
        receiving = [Call(exactly, by_address[client.getsockname()], 4) for client in clients]
        for number, client in reversed(list(enumerate(clients))):
            client.sendall(b"%04d" % number)
        assert [call.result() for call in receiving] == [b"%04d" % number for number in range(4)]


def test_without_a_thread_a_pool_serves_all_the_same() -> None:
    with without_thread(Lines) as server, connect(server) as client:
        asking = Call(asks, client)
        pumped(server, lambda: not asking.is_alive())
        assert asking.result()


def test_without_a_thread_a_pool_serves_tls() -> None:
    tls, trusting = tls_contexts()

    def talk() -> bool:
        with trusting.wrap_socket(connect(server), server_hostname="localhost") as client:
            return asks(client)

    with without_thread(Lines, ssl_options=tls) as server:
        talking = Call(talk)
        pumped(server, lambda: not talking.is_alive())
        assert talking.result()


def test_without_a_thread_stop_tells_of_those_who_are_there() -> None:
    notes = Notes()
    with without_thread(notify=notes) as server, connect(server):
        pumped(server, lambda: notes.told)
        server.stop()
    assert notes.told == [Notice.CONNECT, Notice.DISCONNECT]


def test_without_a_thread_stop_from_another_thread_ends_the_main_loop() -> None:
    with without_thread() as server:
        stopping = threading.Timer(0.1, server.stop)
        stopping.start()
        with pytest.raises(ConnectionAbortedError):
            pumped(server, lambda: False)
        stopping.join()


def test_without_a_thread_stop_from_another_thread_ends_an_accept() -> None:
    with without_thread() as server:
        stopping = threading.Timer(0.1, server.stop)
        stopping.start()
        with pytest.raises(ConnectionAbortedError):
            server.accept()
        stopping.join()


def test_without_a_thread_stop_from_notify() -> None:
    servers: list[BlockingServer] = []
    with without_thread(notify=Notes(connect=lambda handle: servers[0].stop())) as server, connect(server) as client:
        servers.append(server)
        with pytest.raises(ConnectionAbortedError):
            pumped(server, lambda: False)
        assert client.recv(1) == b""
