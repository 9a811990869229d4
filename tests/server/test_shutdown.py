"""The end of a server: `TCPServer.shutdown` in all its circumstances, and `TCPServer.handle_close`."""

import asyncio
import contextlib
import logging
import socket
import ssl
from typing import Any

import pytest

from iostreamsrv import CloseReason, IOStream, OptionError, StreamClosedError, TCPServer
from iostreamsrv.iostream import SSLIOStream
from iostreamsrv.server.base import core_of
from iostreamsrv.server.shutdown import drain
from tests.support.engines import on_every_loop
from tests.support.peers import Peer, TLSEnd, TLSPeer, tls_contexts
from tests.support.servers import AT_ONCE, Echo, Serving, answers, connect_tls, refused
from tests.support.waiting import eventually, fill, turns

pytestmark = [*on_every_loop, pytest.mark.usefixtures("clock")]


class Noting(TCPServer):
    """Echoes lines, and notes with what reason its streams end."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**AT_ONCE, **options})
        self.ends: list[CloseReason] = []

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await Echo.handle_stream(self, stream, address)  # type: ignore[arg-type]

    def handle_close(self, stream: IOStream, reason: CloseReason) -> Any:
        assert stream.closed()
        assert stream.fileno() == -1
        self.ends.append(reason)


class Working(Noting):
    """Answers when it is told to.

    :ivar working: is set when a request is in hand.
    :ivar done: to be set to have it answered.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.working, self.done = asyncio.Event(), asyncio.Event()

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        line = await stream.read_until(b"\n")
        self.working.set()
        try:
            await self.done.wait()
        except asyncio.CancelledError:
            await stream.write(b"last words\n")
            raise
        await stream.write(line)


# ---- who is waited for


@pytest.mark.gen_test
async def test_without_clients_it_is_over_at_once(serving: Serving) -> None:
    server = serving.started(Echo())
    (address,) = server.addresses
    await server.shutdown()
    await server.shutdown()
    assert server.addresses == []
    refused(address)


@pytest.mark.gen_test
async def test_a_server_that_never_listened_may_be_shut_down() -> None:
    server = Echo()
    await server.shutdown()
    server.bind(0, "127.0.0.1")
    await server.shutdown()
    assert server.addresses == []


@pytest.mark.gen_test
async def test_who_queues_is_served_first(serving: Serving) -> None:
    server = serving.started(Noting())
    peers = [serving.connect(server) for _ in range(40)]
    for number, peer in enumerate(peers):
        peer.send(b"%02d\n" % number)
    assert len(server.streams) == 0
    await server.shutdown()
    for number, peer in enumerate(peers):
        assert await peer.receive_all() == b"%02d\n" % number
    assert server.ends == ["shutdown"] * 40


@pytest.mark.gen_test
async def test_who_queues_at_a_server_that_is_suspended_is_served_first(serving: Serving) -> None:
    server = serving.started(Noting())
    server.suspend()
    peer = serving.connect(server)
    peer.send(b"abc\n")
    await turns()
    assert len(server.streams) == 0
    await server.shutdown()
    assert await peer.receive_all() == b"abc\n"
    assert not server.suspended


@pytest.mark.gen_test
async def test_who_queues_at_a_server_that_is_full_is_served_when_there_is_a_place(serving: Serving) -> None:
    server = serving.started(Working(max_connections=2))
    inside = [serving.connect(server) for _ in range(2)]
    await eventually(lambda: len(server.streams) == 2)
    outside = [serving.connect(server) for _ in range(5)]
    peers = [*inside, *outside]
    for number, peer in enumerate(peers):
        peer.send(b"%d\n" % number)
    await server.working.wait()
    address = server.addresses[0]
    ending = asyncio.create_task(server.shutdown())
    await eventually(lambda: server.draining)
    refused(address)
    assert len(server.streams) == 2
    server.done.set()
    for number, peer in enumerate(peers):
        assert await peer.receive_all() == b"%d\n" % number
        peer.close()
    await ending
    assert server.ends == ["local"] * 7


@pytest.mark.gen_test
async def test_who_queues_at_a_server_that_stays_full_is_closed_at_the_timeout(serving: Serving) -> None:
    server = serving.started(Working(max_connections=1))
    inside = serving.connect(server)
    inside.send(b"abc\n")
    await server.working.wait()
    outside = serving.connect(server)
    await server.shutdown(timeout=0.05)
    with contextlib.suppress(ConnectionResetError):
        assert await outside.receive_all() == b""
    assert await inside.receive_all() == b"last words\n"
    assert server.ends == ["drain_timeout"]


@pytest.mark.gen_test
async def test_new_clients_are_refused_while_the_others_finish(serving: Serving) -> None:
    server = serving.started(Working())
    (address,) = server.addresses
    peer = serving.connect(server)
    peer.send(b"abc\n")
    await server.working.wait()
    ending = asyncio.create_task(server.shutdown())
    await eventually(lambda: server.draining)
    refused(address)
    server.done.set()
    assert await peer.receive_all() == b"abc\n"
    peer.close()
    await ending
    assert not server.draining
    assert server.ends == ["local"]


@pytest.mark.gen_test
async def test_idle_streams_end_and_their_handlers_learn_why(serving: Serving) -> None:
    errors: list[StreamClosedError] = []

    async def handler(stream: IOStream, address: Any) -> None:
        try:
            await stream.read_until(b"\n")
        except StreamClosedError as error:
            errors.append(error)

    server = serving.with_handler(handler, **AT_ONCE)
    peer = serving.connect(server)
    await eventually(lambda: len(server.streams))
    await server.shutdown()
    assert await peer.receive_all() == b""
    assert [error.reason for error in errors] == ["shutdown"]


@pytest.mark.gen_test
async def test_an_idle_client_may_begin_a_request_for_some_time(serving: Serving) -> None:
    server = serving.started(Noting(drain_idle=0.3))
    peer = serving.connect(server)
    assert await answers(peer)
    ending = asyncio.create_task(server.shutdown())
    await eventually(lambda: server.draining)
    assert await answers(peer, b"just in time\n")
    assert not ending.done()
    assert await peer.receive_all() == b""
    await ending
    assert server.ends == ["shutdown"]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.gen_test
async def test_a_request_of_which_a_part_has_come_is_waited_for(serving: Serving, tls: bool) -> None:
    server = serving.started(Noting(ssl_options=tls_contexts()[0] if tls else None))
    peer = await connect_tls(serving, server) if tls else serving.connect(server)
    assert await answers(peer)
    peer.send(b"half of ")
    (stream,) = server.streams
    await eventually(lambda: stream.buffered)
    ending = asyncio.create_task(server.shutdown())
    await asyncio.sleep(0.1)  # ten times drain_idle
    assert await answers_in_part(peer, b"a line\n", b"half of a line\n")
    assert await peer.receive_all() == b""
    await ending
    assert server.ends == ["shutdown"]


async def answers_in_part(peer: Peer, rest: bytes, line: bytes) -> bool:
    peer.send(rest)
    return await peer.receive(len(line)) == line


@pytest.mark.gen_test
async def test_a_record_of_which_a_part_has_come_is_waited_for(serving: Serving) -> None:
    server = serving.started(Noting(ssl_options=tls_contexts()[0]))
    peer = await connect_tls(serving, server)
    assert await answers(peer)
    peer.end.tls.write(b"a line\n")
    record = peer.end._outgoing.read()
    (stream,) = server.streams
    await eventually(lambda: stream.idle_time > 0.05)
    peer.end.raw.send(record[:10])
    await eventually(lambda: stream.idle_time < 0.05)
    ending = asyncio.create_task(server.shutdown())
    await asyncio.sleep(0.1)
    peer.end.raw.send(record[10:])
    assert await peer.receive_all() == b"a line\n"
    await ending
    assert server.ends == ["shutdown"]


@pytest.mark.gen_test
async def test_what_is_queued_for_a_slow_client_is_delivered(serving: Serving) -> None:
    sizes: list[int] = []

    async def handler(stream: IOStream, address: Any) -> None:
        sizes.append(fill(stream))
        await stream.read_until(b"\n")

    server = serving.with_handler(handler, max_write_buffer_size=1 << 26, **AT_ONCE)
    peer = serving.connect(server)
    await eventually(lambda: sizes)
    ending = asyncio.create_task(server.shutdown())
    await asyncio.sleep(0.1)
    assert len(await peer.receive_all()) == sizes[0]
    await ending


@pytest.mark.gen_test
async def test_a_handshake_under_way_is_waited_for_and_a_silent_client_is_not(serving: Serving) -> None:
    server = serving.started(Noting(ssl_options=tls_contexts()[0], drain_idle=0.3))
    silent = serving.connect(server)
    end = TLSEnd(socket.create_connection(server.addresses[0]), tls_contexts()[1])
    peer = TLSPeer(end)
    serving.peers.append(peer)
    await eventually(lambda: len(server.streams) == 2)
    ending = asyncio.create_task(server.shutdown())
    await eventually(end.handshake)
    assert await answers(peer)
    assert await silent.receive_all() == b""
    assert await peer.receive_all() == b""
    await ending
    assert server.ends == ["shutdown"]


@pytest.mark.gen_test
async def test_a_handshake_that_drips_is_waited_for(serving: Serving) -> None:
    server = serving.started(Noting(ssl_options=tls_contexts()[0], drain_idle=0.3))
    raw = socket.create_connection(server.addresses[0])
    end = TLSEnd(raw, tls_contexts()[1])
    peer = TLSPeer(end)
    serving.peers.append(peer)
    with contextlib.suppress(ssl.SSLWantReadError):
        end.tls.do_handshake()
    hello = end._outgoing.read()
    await eventually(lambda: len(server.streams))
    ending = asyncio.create_task(server.shutdown())
    for number in range(50):
        raw.send(hello[number : number + 1])
        await asyncio.sleep(0.01)
    raw.send(hello[50:])
    await eventually(end.handshake)
    assert await answers(peer)
    assert await peer.receive_all() == b""
    await ending
    assert server.ends == ["shutdown"]


@pytest.mark.gen_test
async def test_a_request_that_is_still_in_the_kernel_is_waited_for(serving: Serving) -> None:
    server = serving.started(Noting())
    peer = serving.connect(server)
    assert await answers(peer)
    peer.send(b"in time\n")
    await drain(core_of(server).connections, idle=0.0, timeout=None)  # which looks at once
    assert await peer.receive_all() == b"in time\n"


# ---- the timeout


@pytest.mark.gen_test
async def test_what_is_not_done_in_time_is_cancelled_and_has_its_last_words(serving: Serving) -> None:
    server = serving.started(Working())
    peer = serving.connect(server)
    peer.send(b"abc\n")
    await server.working.wait()
    ending = asyncio.create_task(server.shutdown(timeout=0.05))
    received = asyncio.create_task(peer.receive_all())
    while not received.done():
        peer.send(b"unread, which the close must not answer with a reset\n")
        await asyncio.sleep(0.001)
    assert received.result() == b"last words\n"
    peer.close()
    await ending
    assert server.ends == ["drain_timeout"]


@pytest.mark.gen_test
async def test_last_words_may_be_many_for_a_client_that_reads(serving: Serving) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        try:
            await stream.read_until(b"\n")
            await asyncio.Event().wait()
        finally:
            stream.write(bytes(1 << 23))

    server = serving.with_handler(handler, **AT_ONCE)
    peer = serving.connect(server)
    peer.send(b"abc\n")
    await eventually(lambda: len(server.streams))
    (stream,) = server.streams
    ending = asyncio.create_task(server.shutdown(timeout=0.05))
    assert len(await peer.receive_all()) == 1 << 23
    peer.close()
    await ending
    assert stream.close_reason == "drain_timeout"


@pytest.mark.gen_test
async def test_the_timeout_is_an_option(serving: Serving) -> None:
    server = serving.started(Working(drain_timeout=0.05))
    peer = serving.connect(server)
    peer.send(b"abc\n")
    await server.working.wait()
    await server.shutdown()
    assert server.ends == ["drain_timeout"]


@pytest.mark.gen_test
async def test_one_that_was_stopped_ends_its_clients(serving: Serving) -> None:
    server = serving.started(Noting())
    peer = serving.connect(server)
    assert await answers(peer)
    server.stop()
    assert not server.draining
    assert await answers(peer)
    await server.shutdown()
    assert await peer.receive_all() == b""
    assert server.ends == ["shutdown"]


@pytest.mark.gen_test
async def test_without_a_timeout_it_waits(serving: Serving) -> None:
    server = serving.started(Working(drain_timeout=0.05))
    peer = serving.connect(server)
    peer.send(b"abc\n")
    await server.working.wait()
    ending = asyncio.create_task(server.shutdown(timeout=None))
    await asyncio.sleep(0.2)
    server.done.set()
    assert await peer.receive_all() == b"abc\n"
    peer.close()
    await ending
    assert server.ends == ["local"]


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), True, "1"])
@pytest.mark.gen_test
async def test_a_timeout_that_cannot_be_changes_nothing(serving: Serving, timeout: Any) -> None:
    server = serving.started(Echo())
    with pytest.raises(OptionError, match="timeout"):
        await server.shutdown(timeout=timeout)
    assert await answers(serving.connect(server))


@pytest.mark.gen_test
async def test_a_stream_that_nobody_reads_is_closed_at_the_timeout(serving: Serving) -> None:
    server = serving.with_handler(lambda stream, address: None, **AT_ONCE)
    peer = serving.connect(server)
    await eventually(lambda: len(server.streams))
    (stream,) = server.streams
    await server.shutdown(timeout=0.05)
    assert stream.close_reason == "drain_timeout"
    assert await peer.receive_all() == b""


@pytest.mark.gen_test
async def test_a_handler_that_will_not_end_holds_nobody_up(serving: Serving) -> None:
    working, done = asyncio.Event(), asyncio.Event()

    async def handler(stream: IOStream, address: Any) -> None:
        working.set()
        while not done.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await done.wait()

    server = serving.with_handler(handler, **AT_ONCE)
    peer = serving.connect(server)
    await working.wait()
    await server.shutdown(timeout=0.05)
    assert len(server.streams) == 0
    assert await peer.receive_all() == b""
    done.set()


@pytest.mark.gen_test
async def test_what_is_owed_to_a_client_that_takes_nothing_is_given_up_at_the_timeout(serving: Serving) -> None:
    class Owing(Noting):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await stream.read_until(b"\n")
            await stream.write(bytes(60_000))  # corked, for the second line
            await stream.read_until(b"end")

    server = serving.started(Owing(send_buffer_size=4096))
    peer = Peer(socket.socket())
    serving.peers.append(peer)
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with contextlib.suppress(BlockingIOError):
        peer.socket.connect(server.addresses[0])
    await eventually(lambda: len(server.streams))
    peer.send(b"line\nline\n")
    (stream,) = server.streams
    await eventually(lambda: stream.queued and stream.reading())
    await server.shutdown(timeout=0.05)
    assert server.ends == ["drain_timeout"]
    assert len(server.streams) == 0


# ---- who asks


@pytest.mark.gen_test
async def test_whoever_asks_meanwhile_waits_for_the_same_end(serving: Serving) -> None:
    server = serving.started(Working())
    peer = serving.connect(server)
    peer.send(b"abc\n")
    await server.working.wait()
    endings = [asyncio.create_task(server.shutdown(timeout)) for timeout in (None, 0.01)]
    await asyncio.sleep(0.1)
    assert not any(ending.done() for ending in endings), "the first has no timeout"
    server.done.set()
    assert await peer.receive_all() == b"abc\n"
    peer.close()
    await asyncio.gather(*endings)
    assert server.ends == ["local"]


@pytest.mark.gen_test
async def test_a_cancel_of_one_who_waits_for_it_leaves_it_alone(serving: Serving) -> None:
    server = serving.started(Working())
    peer = serving.connect(server)
    peer.send(b"abc\n")
    await server.working.wait()
    first, second = asyncio.create_task(server.shutdown()), asyncio.create_task(server.shutdown())
    await turns()
    second.cancel()
    await asyncio.wait([second])
    assert second.cancelled()
    server.done.set()
    assert await peer.receive_all() == b"abc\n"
    peer.close()
    await first
    assert server.ends == ["local"]


@pytest.mark.gen_test
async def test_a_cancel_ends_all_at_once(serving: Serving) -> None:
    server = serving.started(Working(drain_idle=60))
    busy, idle = serving.connect(server), serving.connect(server)
    busy.send(b"abc\n")
    await server.working.wait()
    ending = asyncio.create_task(server.shutdown())
    await eventually(lambda: server.draining)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert server.ends == ["shutdown"] * 2
    assert server.addresses == []
    assert not server.draining
    assert await idle.receive_all() == b""


class EndedByClients(Noting):
    """Shuts down when a client says so, and answers afterwards."""

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        while await stream.read_until(b"\n") != b"shutdown\n":
            await stream.write(b"ok\n")
        await self.shutdown(timeout=60)
        await stream.write(b"done\n")


@pytest.mark.parametrize("askers", [1, 3])
@pytest.mark.gen_test
async def test_a_handler_that_asks_is_not_waited_for(serving: Serving, askers: int) -> None:
    server = serving.started(EndedByClients())
    peers, idle = [serving.connect(server) for _ in range(askers)], serving.connect(server)
    idle.send(b"hello\n")
    assert await idle.receive(3) == b"ok\n"
    for peer in peers:
        peer.send(b"shutdown\n")
    assert await idle.receive_all() == b""
    for peer in peers:
        assert await peer.receive_all() == b"done\n"
        peer.close()
    await eventually(lambda: len(server.ends) == askers + 1)
    assert sorted(server.ends) == ["local"] * askers + ["shutdown"]


@pytest.mark.gen_test
async def test_a_handle_close_that_asks_is_not_waited_for(serving: Serving) -> None:
    over = asyncio.Event()

    class EndsWithItsFirst(Echo):
        async def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
            await self.shutdown(timeout=60)
            over.set()

    server = serving.started(EndsWithItsFirst(**AT_ONCE))
    first, second = serving.connect(server), serving.connect(server)
    assert await answers(first)
    assert await answers(second)
    first.close()
    assert await second.receive_all() == b""
    await over.wait()
    assert len(server.streams) == 0


# ---- afterwards


@pytest.mark.gen_test
async def test_the_server_may_listen_again(serving: Serving) -> None:
    server = serving.started(Noting(max_connections=2))
    for count in range(1, 4):
        peers = [serving.connect(server) for _ in range(2)]
        for peer in peers:
            assert await answers(peer)
        await server.shutdown()
        assert server.ends == ["shutdown"] * 2 * count
        for peer in peers:
            assert await peer.receive_all() == b""
        serving.started(server)


@pytest.mark.gen_test
async def test_one_that_was_full_and_is_shut_down_serves_again(serving: Serving) -> None:
    server = serving.started(Noting(max_connections=1))
    assert await answers(serving.connect(server))
    for _ in range(3):
        serving.connect(server)
    await server.shutdown()
    serving.started(server)
    peers = [serving.connect(server) for _ in range(2)]
    assert await answers(peers[0])
    peers[0].close()
    assert await answers(peers[1])


@pytest.mark.gen_test
async def test_async_with_shuts_down(serving: Serving) -> None:
    async with Working() as server:
        serving.started(server)
        peer = serving.connect(server)
        peer.send(b"abc\n")
        await server.working.wait()
        asyncio.get_running_loop().call_later(0.05, server.done.set)
    assert server.ends == ["local"]
    assert server.addresses == []
    assert await peer.receive_all() == b"abc\n"


@pytest.mark.gen_test
async def test_async_with_shuts_down_also_for_an_error(serving: Serving) -> None:
    with pytest.raises(ZeroDivisionError):
        async with serving.started(Noting()) as server:
            peer = serving.connect(server)
            assert await answers(peer)
            raise ZeroDivisionError
    assert await peer.receive_all() == b""


# ---- serve_forever


@pytest.mark.gen_test
async def test_serve_forever_ends_with_the_shutdown_and_not_before(serving: Serving) -> None:
    server = serving.started(Working())
    forever = asyncio.create_task(server.serve_forever())
    peer = serving.connect(server)
    peer.send(b"abc\n")
    await server.working.wait()
    ending = asyncio.create_task(server.shutdown())
    await eventually(lambda: server.draining)
    await turns()
    assert not forever.done()
    server.done.set()
    assert await peer.receive_all() == b"abc\n"
    peer.close()
    await forever
    await ending
    assert len(server.streams) == 0


@pytest.mark.gen_test
async def test_a_cancel_of_serve_forever_ends_a_shutdown_at_once(serving: Serving) -> None:
    server = serving.started(Working())
    forever = asyncio.create_task(server.serve_forever())
    peer = serving.connect(server)
    peer.send(b"abc\n")
    await server.working.wait()
    ending = asyncio.create_task(server.shutdown(timeout=None))
    await eventually(lambda: server.draining)
    forever.cancel()
    with pytest.raises(asyncio.CancelledError):
        await forever
    await ending
    assert server.ends == ["shutdown"]


@pytest.mark.gen_test
async def test_serve_forever_again_after_a_shutdown(serving: Serving) -> None:
    server = Noting()
    for _ in range(2):
        serving.started(server)
        forever = asyncio.create_task(server.serve_forever())
        assert await answers(serving.connect(server))
        await server.shutdown()
        await forever


# ---- close_all_connections


@pytest.mark.gen_test
async def test_close_all_connections_ends_streams_and_handlers_and_listening_goes_on(serving: Serving) -> None:
    server = serving.started(Working())
    peers = [serving.connect(server) for _ in range(3)]
    for peer in peers:
        peer.send(b"abc\n")
    await eventually(lambda: server.working.is_set() and len(server.streams) == 3)
    await server.close_all_connections()
    assert server.ends == ["shutdown"] * 3
    server.done.set()
    assert await answers(serving.connect(server))


# ---- wait_draining


@pytest.mark.gen_test
async def test_a_handler_can_say_goodbye(serving: Serving) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        await stream.wait_draining()
        await stream.write(b"good bye\n")

    server = serving.with_handler(handler, drain_idle=60)
    peer = serving.connect(server)
    await eventually(lambda: len(server.streams))
    await turns()
    assert not peer.has_input()
    late = serving.connect(server)  # to be accepted by the shutdown
    ending = asyncio.create_task(server.shutdown())
    for each in (peer, late):
        assert await each.receive_all() == b"good bye\n"
        each.close()
    await ending


@pytest.mark.gen_test
async def test_wait_draining_is_of_the_shutdown_to_come(serving: Serving) -> None:
    told: list[IOStream] = []

    class Told(Noting):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await stream.wait_draining()
            told.append(stream)

    server = Told()
    for count in range(2):
        serving.started(server)
        serving.connect(server).half_close()
        await eventually(lambda: len(server.streams))
        await turns()
        assert len(told) == count
        await server.shutdown()
        assert len(told) == count + 1


# ---- handle_close


@pytest.mark.parametrize(
    "way", ["eof", "reset", "local", "handler_error", "kicked", "idle_timeout", "aborted", "shutdown"]
)
@pytest.mark.parametrize("kind", ["function", "coroutine"])
@pytest.mark.gen_test
async def test_handle_close_is_called_once_whatever_ended_the_stream(
    serving: Serving, way: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    closed: list[tuple[IOStream, CloseReason]] = []
    streams: list[IOStream] = []

    class Server(TCPServer):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            streams.append(stream)
            if way == "idle_timeout":
                stream.set_timeouts(idle=0.05)
            if way == "local":
                return
            if way == "handler_error":
                raise ZeroDivisionError
            await stream.read_until(b"\n")

        def handle_close(self, stream: IOStream, reason: CloseReason) -> Any:
            closed.append((stream, reason))
            return asyncio.sleep(0) if kind == "coroutine" else None

    server = serving.started(Server(**AT_ONCE))
    peer = serving.connect(server)
    await eventually(lambda: streams)
    (stream,) = streams
    if way in ("eof", "local", "handler_error"):
        peer.half_close()
    elif way == "reset":
        peer.reset()
    elif way == "kicked":
        stream.kick()
    elif way == "aborted":
        stream.abort()
    elif way == "shutdown":
        await server.shutdown()
    await eventually(lambda: closed)
    await server.shutdown()
    assert closed == [(stream, way)]


@pytest.mark.gen_test
async def test_handle_close_is_called_for_streams_of_plain_functions(serving: Serving) -> None:
    class Server(Noting):
        def handle_stream(self, stream: IOStream, address: Any) -> None:  # type: ignore[override]
            stream.close()

    server = serving.started(Server())
    await serving.connect(server).receive_all()
    await eventually(lambda: server.ends)
    assert server.ends == ["local"]


@pytest.mark.gen_test
async def test_handle_close_is_given_the_stream_that_went_on_under_tls(serving: Serving) -> None:
    closed: list[IOStream] = []

    class Server(TCPServer):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            stream.data["name"] = "this one"
            await (await stream.start_tls(True, tls_contexts()[0])).read_until(b"\n")

        def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
            closed.append(stream)

    server = serving.started(Server(**AT_ONCE))
    (await connect_tls(serving, server)).close()
    await eventually(lambda: closed)
    await server.shutdown()
    (stream,) = closed
    assert isinstance(stream, SSLIOStream)
    assert stream.data == {"name": "this one"}


BEFORE_THE_HANDLER: dict[str, dict[str, Any]] = {
    "not from the proxy": {"proxy_protocol": ["10.0.0.0/8"]},
    "a bad header": {"proxy_protocol": ["127.0.0.0/8"]},
    "an end in the header": {"proxy_protocol": ["127.0.0.0/8"]},
    "a bad handshake": {"ssl_options": True},
    "an end in the handshake": {"ssl_options": True},
    "a late handshake": {"ssl_options": True, "handshake_timeout": 0.05},
    "too many": {"when_full": "reject", "max_connections": 1},
    "too many of a host": {"max_connections_per_ip": 1},
    "shut down in the header": {"proxy_protocol": ["127.0.0.0/8"]},
    "shut down in the handshake": {"ssl_options": True},
}


@pytest.mark.parametrize("way", BEFORE_THE_HANDLER)
@pytest.mark.gen_test
async def test_handle_close_is_not_called_for_those_who_never_reached_a_handler(
    serving: Serving, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    options = dict(BEFORE_THE_HANDLER[way])
    if options.get("ssl_options"):
        options["ssl_options"] = tls_contexts()[0]
    server = serving.started(Noting(**options))
    if way.startswith("too many"):
        assert await answers(serving.connect(server))
    peer = serving.connect(server)
    if way.startswith("a bad"):
        peer.send(b"what is neither\r\n" * 10)
    elif way.startswith("an end"):
        peer.half_close()
    elif way.startswith("shut down"):
        await eventually(lambda: len(server.streams))
        await server.shutdown()
    with contextlib.suppress(ConnectionResetError):
        await peer.receive_all()
    assert server.ends == []
    await server.shutdown()
    assert server.ends == ["shutdown"] * way.startswith("too many")


@pytest.mark.parametrize("kind", ["function", "coroutine", "no awaitable"])
@pytest.mark.gen_test
async def test_what_handle_close_raises_is_logged_and_harms_nobody(
    serving: Serving, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Server(Echo):
        def handle_close(self, stream: IOStream, reason: CloseReason) -> Any:
            if kind == "coroutine":
                return self.fail()
            if kind == "no awaitable":
                return 42
            raise ZeroDivisionError

        async def fail(self) -> None:
            raise ZeroDivisionError

    server = serving.started(Server(**AT_ONCE))
    peers = [serving.connect(server) for _ in range(3)]
    for peer in peers:
        assert await answers(peer)
    host, port = peers[0].socket.getsockname()
    peers[0].close()
    await eventually(lambda: caplog.records)
    for peer in peers[1:]:
        assert await answers(peer)
    assert len(server.streams) == 2
    (record,) = caplog.records
    assert record.getMessage() == f"Exception in callback handle_close for {host}:{port}"
    assert record.exc_info
    await server.shutdown()
    assert len(caplog.records) == 3


class Slow(Echo):
    """Its ends take some time.

    :ivar begun: how many have begun.
    :ivar may_end: lets them end.
    :ivar ended: how many have.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**AT_ONCE, **options})
        self.begun = self.ended = 0
        self.may_end = asyncio.Event()

    async def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        self.begun += 1
        await self.may_end.wait()
        self.ended += 1


@pytest.mark.gen_test
async def test_shutdown_waits_for_every_handle_close(serving: Serving) -> None:
    server = serving.started(Slow())
    peers = [serving.connect(server) for _ in range(3)]
    for peer in peers:
        assert await answers(peer)
    peers[0].close()
    await eventually(lambda: server.begun == 1)
    ending = asyncio.create_task(server.shutdown())
    await eventually(lambda: server.begun == 3)
    assert not ending.done()
    server.may_end.set()
    await ending
    assert server.ended == 3


@pytest.mark.gen_test
async def test_a_handle_close_that_does_not_end_is_cancelled_at_the_timeout(serving: Serving) -> None:
    server = serving.started(Slow())
    assert await answers(serving.connect(server))
    await server.shutdown(timeout=0.2)
    assert (server.begun, server.ended) == (1, 0)


@pytest.mark.gen_test
async def test_those_whose_streams_are_closed_at_the_timeout_still_have_a_handle_close(serving: Serving) -> None:
    class Server(Slow):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await stream.read_until(b"\n")
            await asyncio.Event().wait()

    server = serving.started(Server())
    server.may_end.set()
    peer = serving.connect(server)
    peer.send(b"abc\n")
    await eventually(lambda: len(server.streams))
    await server.shutdown(timeout=0.1)
    assert server.ended == 1


@pytest.mark.gen_test
async def test_handle_close_may_be_assigned_on_the_server(serving: Serving) -> None:
    ends: list[CloseReason] = []
    server = serving.started(Echo())
    server.handle_close = lambda stream, reason: ends.append(reason)  # type: ignore[method-assign, assignment]
    peer = serving.connect(server)
    assert await answers(peer)
    peer.close()
    await eventually(lambda: ends)
    assert ends == ["eof"]
