"""`TCPServer`: listening, handling, ending."""

import asyncio
import gc
import logging
import socket
from collections.abc import Awaitable
from typing import Any

import pytest
from tornado import gen

from iostreamsrv import CloseReason, IOLoop, IOStream, ListenError, TCPServer
from tests.support.engines import on_every_loop
from tests.support.leaks import open_descriptors
from tests.support.listening import unused_port
from tests.support.peers import Peer
from tests.support.servers import Echo, Handler, Serving, answers
from tests.support.waiting import eventually, turns

pytestmark = on_every_loop


@pytest.fixture
def echo(serving: Serving) -> TCPServer:
    return serving.started(Echo())


# ---- listening


@pytest.mark.gen_test
async def test_clients_are_accepted_and_handled(serving: Serving, echo: TCPServer) -> None:
    peers = [serving.connect(echo) for _ in range(40)]  # more than are accepted in one turn
    for peer in peers:
        assert await answers(peer)


@pytest.mark.gen_test
async def test_a_rush_of_clients_lets_the_loop_have_its_turns(serving: Serving, echo: TCPServer) -> None:
    for _ in range(60):
        serving.connect(echo)
    while not len(echo.streams):
        await turns(1)
    assert len(echo.streams) < 60
    await eventually(lambda: len(echo.streams) == 60)


@pytest.mark.gen_test
async def test_listen_may_be_called_again(serving: Serving, echo: TCPServer) -> None:
    echo.listen(0, "127.0.0.1")
    assert len(echo.addresses) == 2
    for address in echo.addresses:
        assert await answers(serving.connect(address))


@pytest.mark.gen_test
async def test_listen_everywhere_has_one_port_for_all_families(serving: Serving) -> None:
    server = Echo()
    server.listen(0)
    serving.servers.append(server)
    assert len({address[1] for address in server.addresses}) == 1
    assert await answers(serving.connect(("127.0.0.1", server.addresses[0][1])))


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
@pytest.mark.gen_test
async def test_a_family_alone(serving: Serving) -> None:
    server = Echo()
    server.listen(0, family=socket.AF_INET)
    serving.servers.append(server)
    assert [len(address) for address in server.addresses] == [2]


@pytest.mark.gen_test
async def test_a_port_may_be_a_string_that_resolves(io_loop: IOLoop) -> None:
    number = unused_port()
    server = Echo()
    server.listen(str(number), "127.0.0.1")
    assert server.addresses == [("127.0.0.1", number)]
    server.stop()


@pytest.mark.gen_test
async def test_bind_lets_clients_queue_until_start(serving: Serving) -> None:
    server = Echo()
    serving.servers.append(server)
    server.bind(0, "127.0.0.1")
    assert len(server.addresses) == 1
    peer = serving.connect(server)
    peer.send(b"early\n")
    await turns()
    assert len(server.streams) == 0
    server.start()
    assert await peer.receive(6) == b"early\n"


@pytest.mark.gen_test
async def test_bind_after_start_listens(serving: Serving) -> None:
    server = Echo()
    serving.servers.append(server)
    server.start()
    server.bind(0, "127.0.0.1")
    assert await answers(serving.connect(server))


@pytest.mark.gen_test
async def test_start_twice_is_an_error(serving: Serving) -> None:
    server = Echo()
    serving.servers.append(server)
    server.bind(0, "127.0.0.1")
    server.start()
    with pytest.raises(RuntimeError, match="started already"):
        server.start()


@pytest.mark.gen_test
async def test_stop_refuses_new_clients_and_leaves_the_others(serving: Serving, echo: TCPServer) -> None:
    (address,) = echo.addresses
    peer = serving.connect(echo)
    assert await answers(peer)
    echo.stop()
    echo.stop()
    assert echo.addresses == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    assert await answers(peer)
    assert len(echo.streams) == 1


@pytest.mark.gen_test
async def test_a_stopped_server_may_listen_again_on_the_same_port(serving: Serving, echo: TCPServer) -> None:
    (address,) = echo.addresses
    for _ in range(3):
        echo.stop()
        echo.listen(address[1], address[0])
        assert await answers(serving.connect(address))
    echo.stop()
    echo.bind(address[1], address[0])
    echo.start()
    assert await answers(serving.connect(address))


@pytest.mark.gen_test
async def test_a_bound_server_that_was_never_started_can_be_stopped() -> None:
    server = Echo()
    server.bind(0, "127.0.0.1")
    server.stop()
    assert server.addresses == []


@pytest.mark.gen_test
async def test_sockets_that_exist_can_be_added(serving: Serving) -> None:
    server = Echo()
    serving.servers.append(server)
    server.add_sockets([socket.create_server(("127.0.0.1", 0)) for _ in range(2)])
    server.add_socket(socket.create_server(("127.0.0.1", 0)))
    assert len(server.addresses) == 3
    for address in server.addresses:
        assert await answers(serving.connect(address))


@pytest.mark.gen_test
async def test_a_unix_socket_can_be_added(serving: Serving, tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    server = Echo()
    serving.servers.append(server)
    server.add_socket(listener)
    assert server.addresses == [path]
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    peer = Peer(client)
    serving.peers.append(peer)
    assert await answers(peer)


@pytest.mark.gen_test
async def test_reuse_port_lets_two_servers_share_it(serving: Serving) -> None:
    servers = [Echo(), Echo()]
    serving.servers += servers
    servers[0].listen(0, "127.0.0.1", reuse_port=True)
    (address,) = servers[0].addresses
    servers[1].listen(address[1], "127.0.0.1", reuse_port=True)
    for _ in range(4):
        assert await answers(serving.connect(address))


@pytest.mark.gen_test
async def test_an_address_in_use_is_named_and_nothing_is_left_bound(serving: Serving, echo: TCPServer) -> None:
    (host, port) = echo.addresses[0]
    before = open_descriptors()
    other = Echo()
    with pytest.raises(ListenError, match=f"127.0.0.1:{port}") as caught:
        other.listen(port, host)
    assert isinstance(caught.value, OSError)
    assert other.addresses == []
    assert open_descriptors() == before


@pytest.mark.gen_test
async def test_a_host_that_does_not_resolve_is_named(io_loop: IOLoop) -> None:
    server = Echo()
    with pytest.raises(ListenError, match=r"999\.1\.1\.1:0"):
        server.listen(0, "999.1.1.1")
    assert server.addresses == []


def test_listen_before_a_loop_runs_binds_now_and_accepts_later(serving: Serving, io_loop: IOLoop) -> None:
    server = serving.started(Echo())
    peer = serving.connect(server)
    peer.send(b"abc\n")
    assert len(server.streams) == 0
    assert io_loop.run_sync(lambda: peer.receive(4)) == b"abc\n"


@pytest.mark.gen_test
async def test_a_server_may_be_given_its_loop(serving: Serving, io_loop: IOLoop) -> None:
    server = serving.started(Echo(io_loop=io_loop))
    assert await answers(serving.connect(server))


# ---- serve_forever


@pytest.mark.gen_test
async def test_serve_forever_ends_when_the_server_is_stopped(serving: Serving, echo: TCPServer) -> None:
    task = asyncio.create_task(echo.serve_forever())
    peer = serving.connect(echo)
    assert await answers(peer)
    echo.stop()
    await task
    assert await answers(peer), "stop() is about listeners only"


@pytest.mark.gen_test
async def test_serve_forever_that_is_cancelled_ends_handlers_and_streams(serving: Serving, echo: TCPServer) -> None:
    task = asyncio.create_task(echo.serve_forever())
    peer = serving.connect(echo)
    assert await answers(peer)
    (stream,) = echo.streams
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stream.close_reason == "shutdown"
    assert len(echo.streams) == 0
    assert echo.addresses == []
    assert await peer.receive_all() == b""


def test_serve_forever_accepts_on_the_loop_it_runs_on(serving: Serving, io_loop: IOLoop) -> None:
    """Also when ``listen`` was called while another one was current."""
    server = serving.started(Echo())

    async def main() -> None:
        task = asyncio.create_task(server.serve_forever())
        peer = serving.connect(server)
        assert await answers(peer)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())


# ---- the handler


@pytest.mark.gen_test
async def test_the_handler_gets_the_stream_and_the_clients_address(serving: Serving) -> None:
    seen: list[Any] = []

    async def handler(stream: IOStream, address: Any) -> None:
        seen.append((address, stream.remote_address, stream.local_address))

    server = serving.with_handler(handler)
    peer = serving.connect(server)
    assert await peer.receive_all() == b""
    assert seen == [(peer.socket.getsockname(), peer.socket.getsockname(), server.addresses[0])]


@gen.coroutine
def tornado_coroutine(stream: IOStream, address: Any) -> Any:
    line = yield stream.read_until(b"\n")
    yield stream.write(line)


async def coroutine(stream: IOStream, address: Any) -> None:
    await stream.write(await stream.read_until(b"\n"))


class Callable_:
    async def __call__(self, stream: IOStream, address: Any) -> None:
        await coroutine(stream, address)


def function_that_makes_a_coroutine(stream: IOStream, address: Any) -> Awaitable[None]:
    return coroutine(stream, address)


def function_that_makes_a_task(stream: IOStream, address: Any) -> Awaitable[None]:
    return asyncio.ensure_future(coroutine(stream, address))


@pytest.mark.parametrize(
    "handler",
    [coroutine, tornado_coroutine, Callable_(), function_that_makes_a_coroutine, function_that_makes_a_task],
    ids=["coroutine", "gen.coroutine", "object", "function of a coroutine", "function of a task"],
)
@pytest.mark.gen_test
async def test_any_handler_that_can_be_awaited_is(serving: Serving, handler: Handler) -> None:
    server = serving.with_handler(handler)
    peer = serving.connect(server)
    assert await answers(peer)
    assert await peer.receive_all() == b""
    peer.close()
    await eventually(lambda: len(server.streams) == 0)


@pytest.mark.gen_test
async def test_the_stream_of_a_plain_function_stays_open(serving: Serving) -> None:
    kept: list[IOStream] = []
    server = serving.with_handler(lambda stream, address: kept.append(stream))
    peer = serving.connect(server)
    await eventually(lambda: kept)
    await turns()
    peer.send(b"abc\n")
    assert await kept[0].read_until(b"\n") == b"abc\n"
    assert not kept[0].closed()


@pytest.mark.gen_test
async def test_a_plain_function_may_use_callbacks(serving: Serving) -> None:
    def handler(stream: IOStream, address: Any) -> None:
        stream.read_until(b"\n").add_done_callback(lambda line: stream.write(line.result()))

    assert await answers(serving.connect(serving.with_handler(handler)))


@pytest.mark.gen_test
async def test_a_stream_is_closed_in_order_when_its_coroutine_returns(serving: Serving) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        stream.write(b"x" * 8_000_000)  # not awaited, and unread input is left

    server = serving.with_handler(handler)
    peer = serving.connect(server)
    await eventually(lambda: len(server.streams))
    (stream,) = server.streams
    peer.send(b"request\n" + bytes(10_000))
    assert len(await peer.receive_all()) == 8_000_000
    peer.close()
    await eventually(stream.closed)
    assert stream.close_reason is CloseReason.LOCAL


@pytest.mark.parametrize("why", ["close_on_return is off", "a read is pending", "a close callback is set"])
@pytest.mark.gen_test
async def test_a_stream_stays_open_when_its_coroutine_returns(serving: Serving, why: str) -> None:
    returned = asyncio.Event()

    async def handler(stream: IOStream, address: Any) -> None:
        if why == "a read is pending":
            stream.read_until(b"\n")
        elif why == "a close callback is set":
            stream.set_close_callback(lambda: None)
        returned.set()

    server = serving.with_handler(handler, close_on_return=why != "close_on_return is off")
    peer = serving.connect(server)
    await returned.wait()
    await turns()
    (stream,) = server.streams
    assert not stream.closed()
    await stream.write(b"still here")
    assert await peer.receive(10) == b"still here"


@pytest.mark.parametrize("kind", ["coroutine", "function", "result"])
@pytest.mark.gen_test
async def test_an_exception_closes_its_stream_and_is_logged_once_with_the_address(
    serving: Serving, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    async def failing_coroutine(stream: IOStream, address: Any) -> None:
        await stream.write(b"so far\n")
        raise ZeroDivisionError("made up")

    def failing_function(stream: IOStream, address: Any) -> None:
        stream.write(b"so far\n")
        raise ZeroDivisionError("made up")

    def failing_result(stream: IOStream, address: Any) -> Any:
        stream.write(b"so far\n")
        return 42  # nothing to wait for

    handlers: dict[str, Handler] = {
        "coroutine": failing_coroutine,
        "function": failing_function,
        "result": failing_result,
    }
    server = serving.with_handler(handlers[kind])
    peer = serving.connect(server)
    await eventually(lambda: len(server.streams) or caplog.records)
    assert await peer.receive_all() == b"so far\n"
    host, port = peer.socket.getsockname()
    peer.close()
    await eventually(lambda: len(server.streams) == 0)
    (record,) = caplog.records
    assert record.name == "iostreamsrv.application"
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("Exception in callback")
    assert f"{host}:{port}" in record.getMessage()
    assert record.exc_info


@pytest.mark.gen_test
async def test_an_exception_touches_nobody_else(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        while True:
            line = await stream.read_until(b"\n")
            if line == b"fail\n":
                raise ZeroDivisionError
            await stream.write(line)

    server = serving.with_handler(handler)
    good = serving.connect(server)
    assert await answers(good)
    for _ in range(20):
        bad = serving.connect(server)
        bad.send(b"fail\n")
        assert await bad.receive_all() == b""
        bad.close()
        assert await answers(good)
    await eventually(lambda: len(server.streams) == 1)
    assert 10 <= len(caplog.records) <= 20  # one more for each second that this takes


@pytest.mark.parametrize("way", ["an end", "a reset", "a timeout", "too long a line"])
@pytest.mark.gen_test
async def test_what_a_client_causes_is_no_error_and_leaves_no_traceback(
    serving: Serving, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    caplog.set_level(logging.DEBUG)
    streams: list[IOStream] = []

    async def handler(stream: IOStream, address: Any) -> None:
        streams.append(stream)
        await stream.read_until(b"\n", 1000, timeout=0.02 if way == "a timeout" else None)

    server = serving.with_handler(handler)
    peer = serving.connect(server)
    await eventually(lambda: streams)
    if way == "an end":
        peer.half_close()
    elif way == "a reset":
        peer.reset()
    elif way == "too long a line":
        peer.send(bytes(1001))
    if way == "a timeout":
        assert await peer.receive_all() == b""
        peer.half_close()
    await eventually(streams[0].closed)
    await eventually(lambda: len(server.streams) == 0)
    assert not [record for record in caplog.records if record.exc_info or record.levelno > logging.INFO]
    reasons = {"an end": "eof", "a reset": "reset", "a timeout": "read_timeout", "too long a line": "buffer_full"}
    assert streams[0].close_reason == reasons[way]


@pytest.mark.gen_test
async def test_a_handler_whose_writes_overflow_loses_its_client_only(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    reasons: list[Any] = []

    async def handler(stream: IOStream, address: Any) -> None:
        stream.set_close_callback(lambda: reasons.append(stream.close_reason))
        while True:
            stream.write(bytes(100_000))

    server = serving.with_handler(handler, max_write_buffer_size=200_000)
    peer = serving.connect(server)
    assert await peer.receive_all()
    peer.close()
    await eventually(lambda: reasons)
    assert reasons == ["buffer_full"]
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.gen_test
async def test_a_handler_that_is_cancelled_closes_its_stream(serving: Serving) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def handler(stream: IOStream, address: Any) -> None:
        tasks.append(asyncio.current_task())  # type: ignore[arg-type]
        await stream.read_until(b"\n")

    server = serving.with_handler(handler)
    peer = serving.connect(server)
    await eventually(lambda: tasks)
    (stream,) = server.streams
    tasks[0].cancel()
    assert await peer.receive_all() == b""
    assert stream.close_reason == "shutdown"


@pytest.mark.gen_test
async def test_without_a_handler_clients_of_added_sockets_are_closed_and_one_error_is_logged(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server = TCPServer()
    serving.servers.append(server)
    server.add_socket(socket.create_server(("127.0.0.1", 0)))
    for _ in range(3):
        assert await serving.connect(server).receive_all() == b""
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "handle_stream" in record.getMessage()
    server.handle_stream = coroutine  # type: ignore[method-assign]
    assert await answers(serving.connect(server))


# ---- streams and options


@pytest.mark.gen_test
async def test_repr_tells_where_a_server_listens_and_how_many_clients_it_has(serving: Serving) -> None:
    class Chat(Echo):
        pass

    class Unfinished(TCPServer):
        def __init__(self) -> None:
            assert repr(self) == "<Unfinished without its constructor>"

    Unfinished()
    server = Chat()
    assert repr(server) == "<Chat not listening, 0 clients>"
    serving.started(server)
    (listener,) = server._sockets.values()
    assert repr(server) == f"<Chat listening on 127.0.0.1:{listener.getsockname()[1]}, 0 clients>"
    for word in ("1 client>", "2 clients>"):
        serving.connect(server)
        await eventually(lambda word=word: repr(server).endswith(f", {word}"))


@pytest.mark.gen_test
async def test_streams_are_those_that_are_open(serving: Serving, echo: TCPServer) -> None:
    peers = [serving.connect(echo) for _ in range(3)]
    for peer in peers:
        assert await answers(peer)
    assert len(echo.streams) == 3
    for stream in echo.streams:
        assert echo.streams.get(stream.id) is stream
        assert stream in echo.streams
    peers[0].close()
    await eventually(lambda: len(echo.streams) == 2)
    gone = next(iter(echo.streams))
    gone.close()
    assert gone not in echo.streams
    assert echo.streams.get(gone.id) is None
    assert "anything else" not in echo.streams
    assert len(echo.streams) == 1


@pytest.mark.gen_test
async def test_streams_may_be_closed_while_one_goes_over_them(serving: Serving, echo: TCPServer) -> None:
    for _ in range(3):
        assert await answers(serving.connect(echo))
    for stream in echo.streams:
        stream.close()
    assert len(echo.streams) == 0


@pytest.mark.gen_test
async def test_a_subclass_may_use_the_name_streams_for_its_own(serving: Serving) -> None:
    class Own(Echo):
        def __init__(self) -> None:
            super().__init__()
            self.streams = []  # type: ignore[assignment, misc]

    server = serving.started(Own())
    peer = serving.connect(server)
    assert await answers(peer)
    peer.close()
    await turns()
    assert server.streams == []


@pytest.mark.gen_test
async def test_options_reach_the_streams(serving: Serving) -> None:
    server = serving.started(
        Echo(max_buffer_size=10_000, read_chunk_size=1000, max_write_buffer_size=20_000, cork=False)
    )
    assert await answers(serving.connect(server))
    (stream,) = server.streams
    assert stream.max_buffer_size == server.max_buffer_size == 10_000
    assert stream.read_chunk_size == server.read_chunk_size == 1000
    assert stream.max_write_buffer_size == 20_000
    assert stream.cork is False


@pytest.mark.gen_test
async def test_a_server_limits_its_streams_unless_told_otherwise(serving: Serving) -> None:
    server = serving.started(Echo(max_buffer_size=None))
    assert await answers(serving.connect(server))
    (stream,) = server.streams
    assert stream.max_buffer_size == 1 << 20
    assert stream.max_write_buffer_size == 1 << 20


# ---- all at once


@pytest.mark.gen_test
async def test_clients_that_reset_at_any_point_leave_nothing(serving: Serving, echo: TCPServer) -> None:
    good = serving.connect(echo)
    for number in range(60):
        peer = serving.connect(echo)
        for byte in b"abc\nde"[: number % 7]:
            peer.send(bytes([byte]))
        await turns(number % 5)
        peer.reset()
    assert await answers(good)
    await eventually(lambda: len(echo.streams) == 1)


@pytest.mark.gen_test
async def test_every_pipelined_line_is_answered_before_the_end(serving: Serving, echo: TCPServer) -> None:
    peer = serving.connect(echo)
    lines = b"".join(b"%d\n" % number for number in range(5000))
    peer.send(lines)
    peer.half_close()
    assert await peer.receive_all() == lines


def test_a_handle_close_that_the_end_of_the_loop_overtakes_is_cancelled_like_any_task() -> None:
    class Server(Echo):
        async def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
            raise AssertionError("there was no time for it")

    async def main() -> None:
        server = Server()
        server.listen(0, "127.0.0.1")
        with socket.create_connection(server.addresses[0]):
            await eventually(lambda: len(server.streams) == 1)
            (stream,) = server.streams
            server.stop()
            asyncio.get_running_loop().call_soon(stream.close)  # in the last turn of the loop

    asyncio.run(main())
    gc.collect()  # a coroutine that was never awaited warns here
