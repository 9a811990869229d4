"""`CallbackServer`: what is called, when, and what becomes of callbacks that do wrong."""

import asyncio
import gc
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from tornado import gen

from iostreamsrv import IOLoop, IOStream, OptionError, bind_sockets
from iostreamsrv.styles import CallbackServer
from iostreamsrv.styles.callbacks import CALLBACKS
from iostreamsrv.styles.session import MAX_CONSECUTIVE_CALLS
from tests.support.peers import Peer
from tests.support.recorder import Recorder, nothing
from tests.support.servers import Serving
from tests.support.waiting import PATIENCE, eventually, turns

pytestmark = pytest.mark.usefixtures("io_loop")

FOR_CLIENTS = [name for name in CALLBACKS if name != "on_listen"]


def started(serving: Serving, **keywords: Any) -> Recorder:
    server = Recorder(**{"linger": 0.1, **keywords})  # for clients that do not close
    serving.started(server)
    return server


def echo(stream: IOStream, data: bytes) -> int:
    stream.write(data)
    return len(data)


def line(stream: IOStream, data: bytes) -> int:
    return data.find(b"\n") + 1


async def line_later(stream: IOStream, data: bytes) -> int:
    await asyncio.sleep(0)
    return line(stream, data)


async def answers(peer: Peer, data: bytes = b"ping") -> bool:
    peer.send(data)
    return await peer.receive(len(data)) == data


async def ended(peer: Peer) -> None:
    """Return when the client has seen the end, or a reset, which it is where it has sent what nobody read."""
    try:
        await peer.receive_all()
    except ConnectionResetError:
        pass


# ---- how callbacks are given


@pytest.mark.gen_test
async def test_callbacks_may_be_overridden(serving: Serving) -> None:
    class Greeter(CallbackServer):
        def on_connect(self, stream: IOStream) -> None:
            stream.write(b"welcome\n")

        async def on_data(self, stream: IOStream, data: bytes) -> int:
            await stream.write(data.upper())
            return len(data)

    peer = serving.connect(serving.started(Greeter()))
    assert await peer.receive(8) == b"welcome\n"
    peer.send(b"hello")
    assert await peer.receive(5) == b"HELLO"


class CallableObject:
    async def __call__(self, stream: IOStream, data: bytes) -> int:
        return echo(stream, data)


@gen.coroutine
def tornado_coroutine(stream: IOStream, data: bytes) -> Any:
    yield gen.sleep(0)
    return echo(stream, data)


async def coroutine(stream: IOStream, data: bytes) -> int:
    return echo(stream, data)


@pytest.mark.parametrize(
    "on_data",
    [
        echo,
        coroutine,
        partial(coroutine),
        CallableObject(),
        tornado_coroutine,
        lambda stream, data: coroutine(stream, data),
        lambda stream, data: asyncio.ensure_future(coroutine(stream, data)),
    ],
    ids=["function", "coroutine", "partial", "object", "gen.coroutine", "function of a coroutine", "of a task"],
)
@pytest.mark.gen_test
async def test_on_data_may_be_whatever_can_be_called_or_awaited(serving: Serving, on_data: Any) -> None:
    server = serving.started(CallbackServer(on_data=on_data))
    peer = serving.connect(server)
    assert await answers(peer)
    assert await answers(peer)


@pytest.mark.gen_test
async def test_without_on_data_all_is_consumed(serving: Serving) -> None:
    server = serving.started(CallbackServer(max_buffer_size=1000))
    peer = serving.connect(server)
    await peer.send_all(bytes(100_000))
    peer.half_close()
    assert await peer.receive_all() == b""


@pytest.mark.parametrize("name", CALLBACKS)
def test_what_is_no_function_of_these_arguments_is_refused(name: str) -> None:
    wrong: Any
    wrong = {name: 5}
    with pytest.raises(OptionError, match=f"^{name}=5: must be a function"):
        CallbackServer(**wrong)
    wrong = {name: lambda: None}
    with pytest.raises(OptionError, match=rf"must take \({', '.join(CALLBACKS[name])}\), takes \(\)"):
        CallbackServer(**wrong)


def test_a_method_with_other_arguments_is_refused() -> None:
    class Wrong(CallbackServer):
        def on_data(self, data: bytes) -> int:  # type: ignore[override]
            return 0

    with pytest.raises(OptionError, match="on_data"):
        Wrong()


def test_a_callback_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"on_receive.*on_data"):
        CallbackServer(on_receive=echo)


@pytest.mark.parametrize("interval", [0, -1, True, "1", float("inf")])
def test_a_tick_interval_that_cannot_be_is_refused(interval: Any) -> None:
    with pytest.raises(OptionError, match="tick_interval"):
        CallbackServer(tick_interval=interval)


# ---- on_listen


@pytest.mark.gen_test
async def test_on_listen_has_each_address(serving: Serving) -> None:
    server = started(serving)
    server.listen(0, "127.0.0.1")
    assert [address for (address,) in server.of("on_listen")] == server.addresses
    assert all(port for _, port in server.addresses)


@pytest.mark.gen_test
async def test_on_listen_may_stop_the_server(serving: Serving) -> None:
    def on_listen(address: Any) -> None:
        server.stop()

    server = Recorder(on_listen=on_listen)
    server.add_sockets([*bind_sockets(0, "127.0.0.1"), *bind_sockets(0, "127.0.0.1")])
    assert len(server.of("on_listen")) == 2
    assert server.addresses == []


def test_a_coroutine_on_listen_runs_on_the_loop_that_runs_the_server(serving: Serving, io_loop: IOLoop) -> None:
    """Also when ``listen`` was called while another one was current."""
    loops: list[Any] = []

    async def on_listen(address: Any) -> None:
        loops.append(asyncio.get_running_loop())
        server.stop()

    server = Recorder(on_listen=on_listen)
    serving.started(server)

    async def main() -> None:
        await asyncio.wait_for(server.serve_forever(), 5)
        assert loops == [asyncio.get_running_loop()]

    asyncio.run(main())


# ---- on_data


@pytest.mark.parametrize("on_data", [line, line_later])
@pytest.mark.gen_test
async def test_many_messages_that_come_at_once_are_offered_one_by_one(serving: Serving, on_data: Any) -> None:
    count = MAX_CONSECUTIVE_CALLS * 3 + 1
    server = started(serving, on_data=on_data)
    peer = serving.connect(server)
    await server.called("on_connect")
    peer.send(b"x\n" * count + b"rest")
    await server.called("on_data", count + 1)
    await turns(20)
    assert [len(data) for data in server.received] == [2 * left + 4 for left in range(count, -1, -1)]


@pytest.mark.parametrize("on_data", [line, line_later])
@pytest.mark.gen_test
async def test_a_client_that_sends_one_byte_at_a_time_is_served(serving: Serving, on_data: Any) -> None:
    server = started(serving, on_data=on_data)
    peer = serving.connect(server)
    for number, byte in enumerate(b"ab\ncd\n", 1):
        peer.send(bytes([byte]))
        await server.called("on_data", number)
    assert server.received == [b"a", b"ab", b"ab\n", b"c", b"cd", b"cd\n"]
    (stream,) = server.streams
    await eventually(lambda: stream.buffered == 0)


async def keep_later(stream: IOStream, data: bytes) -> None:
    return None


@pytest.mark.parametrize("on_data", [lambda stream, data: None, keep_later], ids=["function", "coroutine"])
@pytest.mark.gen_test
async def test_a_message_in_n_pieces_costs_time_in_proportion_to_n(serving: Serving, on_data: Any) -> None:
    """Of 8 times as many pieces it is 8 times as much; were all that has come copied for each, it would be 64 times."""
    piece = 4096

    async def cpu_seconds(pieces: int) -> float:
        server = CallbackServer(on_data=on_data, max_buffer_size=64 << 20, read_chunk_size=piece)
        serving.started(server)
        peer = serving.connect(server)
        begun = time.process_time()
        await peer.send_all(bytes(pieces * piece))
        await eventually(lambda: [stream.buffered for stream in server.streams] == [pieces * piece])
        return time.process_time() - begun

    # What else a busy machine does in between adds to some of them.
    few = max([await cpu_seconds(500) for _ in range(5)])
    assert min([await cpu_seconds(4000) for _ in range(3)]) < 25 * few


@pytest.mark.gen_test
async def test_what_on_data_keeps_of_its_data_does_not_change(serving: Serving) -> None:
    server = started(serving)
    peer = serving.connect(server)
    for number in range(1, 50):
        peer.send(b"%02d" % number)
        await server.called("on_data", number)
    everything = server.received[-1]
    assert len(everything) == 98
    assert all(type(data) is bytes and everything.startswith(data) for data in server.received)


@pytest.mark.gen_test
async def test_a_coroutine_that_consumes_slowly_holds_its_client_up(serving: Serving) -> None:
    """Meanwhile nothing is received, so that what a client may send is what the kernel's buffers take."""
    go = asyncio.Event()

    async def on_data(stream: IOStream, data: bytes) -> int:
        await go.wait()
        return len(data)

    server = started(serving, on_data=on_data)
    peer = serving.connect(server)
    sending = asyncio.create_task(peer.send_all(bytes(32 << 20)))
    await server.called("on_data")
    await turns(100)
    (stream,) = server.streams
    assert stream.bytes_read <= 1 << 17
    assert not sending.done()
    go.set()
    await sending
    await eventually(lambda: stream.bytes_read == 32 << 20)


@pytest.mark.parametrize("on_data", [lambda stream, data: 0, line_later])
@pytest.mark.gen_test
async def test_a_message_may_fill_the_buffer_and_not_more(serving: Serving, on_data: Any) -> None:
    server = started(serving, on_data=on_data, max_buffer_size=100)
    peer = serving.connect(server)
    peer.send(b"x" * 100)
    await eventually(lambda: server.received[-1:] == [b"x" * 100])
    await turns(20)
    assert len(server.streams) == 1
    peer.send(b"y")
    _, error = await server.called("on_error")
    assert error.reason == "buffer_full"
    _, unread, _ = await server.called("on_disconnect")
    assert unread == b"x" * 100 + b"y"


@pytest.mark.gen_test
async def test_half_a_message_is_waited_for_by_a_shutdown(serving: Serving) -> None:
    server = started(serving, on_data=line, drain_idle=0.02)
    peer = serving.connect(server)
    peer.send(b"half a ")
    await server.called("on_data")
    ending = asyncio.create_task(server.shutdown())
    await eventually(lambda: server.addresses == [])
    await asyncio.sleep(0.1)
    assert not ending.done()
    peer.send(b"line\n")
    await ending
    assert server.received == [b"half a ", b"half a line\n"]
    assert server.of("on_disconnect")[0][1:] == [b"", "shutdown"]


@pytest.mark.gen_test
async def test_half_a_message_has_a_read_timeout(serving: Serving) -> None:
    server = started(serving, on_data=line, read_timeout=0.3)
    peer = serving.connect(server)
    stream, unread, _ = await drip_until_closed(server, peer)
    assert stream.close_reason == "read_timeout"
    assert unread


async def drip_until_closed(server: Recorder, peer: Peer) -> list[Any]:
    while not server.of("on_disconnect"):
        try:
            peer.send(b".")
        except ConnectionError:
            break
        await asyncio.sleep(0.02)
    return await server.called("on_disconnect")


# ---- order


@pytest.mark.gen_test
async def test_the_callbacks_of_a_client_are_never_two_at_a_time(serving: Serving) -> None:
    running: set[IOStream] = set()
    most = 0

    async def busy(stream: IOStream, *_: Any) -> int:
        nonlocal most
        assert stream not in running
        running.add(stream)
        most = max(most, len(running))
        await asyncio.sleep(0.005)
        running.discard(stream)
        return 1

    callbacks: Any = dict.fromkeys(FOR_CLIENTS, busy)
    server = started(serving, tick_interval=0.003, **callbacks)
    peers = [serving.connect(server) for _ in range(3)]
    for _ in range(10):
        for peer, stream in zip(peers, server.streams, strict=False):
            peer.send(b"ab")
            stream.write(b"cd")
        await asyncio.sleep(0.01)
    for peer in peers:
        peer.close()
    await server.called("on_disconnect", 3)
    await eventually(lambda: not running)
    assert most > 1, "but clients do not wait for each other"
    assert len(server.of("on_tick")) > 3
    assert len(server.of("on_data")) > 3


@pytest.mark.gen_test
async def test_ticks_do_not_pile_up_behind_one_that_takes_long(serving: Serving) -> None:
    go = asyncio.Event()

    async def on_tick(stream: IOStream) -> None:
        await go.wait()

    server = started(serving, tick_interval=0.01, on_tick=on_tick, on_data=echo)
    peer = serving.connect(server)
    await server.called("on_tick")
    await asyncio.sleep(0.1)
    assert len(server.of("on_tick")) == 1
    server.on_tick = lambda stream: None  # type: ignore[method-assign]
    go.set()
    assert await answers(peer)


@pytest.mark.gen_test
async def test_ticks_go_on_after_all_clients_have_gone_and_others_come(serving: Serving) -> None:
    server = started(serving, tick_interval=0.02)
    for times in (1, 2):
        peer = serving.connect(server)
        await server.called("on_connect", times)
        begun = len(server.of("on_tick"))
        await server.called("on_tick", begun + 2)
        peer.close()
        await server.called("on_disconnect", times)


def test_ticks_come_on_another_loop_as_well(serving: Serving, io_loop: IOLoop) -> None:
    server = Recorder(tick_interval=0.02)
    serving.started(server)

    async def once() -> None:
        serving_task = asyncio.create_task(server.serve_forever())
        before = len(server.of("on_tick"))
        serving.connect(server)
        await server.called("on_tick", before + 1)
        await server.close_all_connections()
        serving_task.cancel()
        await asyncio.wait([serving_task])
        server.listen(0, "127.0.0.1")

    for _ in range(2):
        asyncio.run(once())


@pytest.mark.gen_test
async def test_on_write_tells_when_all_has_left(serving: Serving) -> None:
    size = 8 << 20
    server = started(serving, on_connect=lambda stream: stream.write(bytes(size)) and None)
    peer = serving.connect(server)
    await server.called("on_connect")
    (stream,) = server.streams
    await eventually(lambda: stream.queued)
    await turns(20)
    assert server.of("on_write") == []
    await peer.receive(size)
    await server.called("on_write")
    assert stream.queued == 0
    await turns(20)
    assert len(server.of("on_write")) == 1


@pytest.mark.gen_test
async def test_on_write_tells_of_a_broadcast(serving: Serving) -> None:
    server = started(serving)
    peer = serving.connect(server)
    await server.called("on_connect")
    await server.broadcast(b"news")
    await server.called("on_write")
    assert await peer.receive(4) == b"news"


@pytest.mark.gen_test
async def test_on_error_says_what_was_being_done(serving: Serving) -> None:
    server = started(serving)
    peer = serving.connect(server)
    await server.called("on_connect")
    peer.reset()
    stream, error = await server.called("on_error")
    assert (error.operation, error.reason, error.errno) == ("read", "reset", stream.error.errno)
    await server.called("on_disconnect")
    assert server.names == ["on_connect", "on_error", "on_disconnect"]


# ---- callbacks that do wrong


class Trouble(Exception):
    """What a callback raises."""


def fails(*_: Any) -> None:
    raise Trouble("what is wrong")


async def fails_later(*_: Any) -> None:
    await asyncio.sleep(0)
    raise Trouble("what is wrong")


def logged(caplog: pytest.LogCaptureFixture, kind: type[BaseException] = Trouble) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.exc_info and record.exc_info[0] is kind]


@pytest.mark.parametrize("name", ["on_connect", "on_data", "on_write", "on_tick"])
@pytest.mark.parametrize("failing", [fails, fails_later])
@pytest.mark.gen_test
async def test_a_callback_that_raises_closes_its_client_alone_and_is_logged_once(
    serving: Serving, caplog: pytest.LogCaptureFixture, name: str, failing: Any
) -> None:
    server = started(serving, tick_interval=0.02, **{"on_data": echo, name: failing})
    peer = serving.connect(server)
    await server.called("on_connect")
    peer.send(b"data")
    _, error = await server.called("on_error")
    assert (error.reason, type(error.real_error)) == ("handler_error", Trouble)
    _, _, said = await server.called("on_disconnect")
    assert said == str(error.real_error) == "what is wrong"
    await ended(peer)
    assert len(logged(caplog)) == 1
    setattr(server, name, echo if name == "on_data" else nothing)
    assert await answers(serving.connect(server))
    assert len(server.of("on_disconnect")) == 1


@pytest.mark.parametrize("failing", [fails, fails_later])
@pytest.mark.gen_test
async def test_an_on_error_that_raises_does_not_keep_on_disconnect_from_being_called(
    serving: Serving, caplog: pytest.LogCaptureFixture, failing: Any
) -> None:
    server = started(serving, on_error=failing, on_disconnect=failing)
    peer = serving.connect(server)
    await server.called("on_connect")
    peer.reset()
    await server.called("on_disconnect")
    await eventually(lambda: logged(caplog))
    await server.shutdown(timeout=5)
    assert len(server.of("on_disconnect")) == 1


@pytest.mark.parametrize("failing", [fails, fails_later])
@pytest.mark.gen_test
async def test_what_raises_for_no_client_is_logged(
    serving: Serving, caplog: pytest.LogCaptureFixture, failing: Any
) -> None:
    server = started(serving, on_listen=failing, on_error=failing, max_connections=1, on_data=echo)
    peer = serving.connect(server)
    await server.called("on_connect")
    assert await serving.connect(server).receive_all() == b""
    await eventually(lambda: len(logged(caplog)) == 2)
    assert await answers(peer)


@pytest.mark.parametrize("returned", [True, "5", 2.0, b"data", [], object()])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.gen_test
async def test_on_data_that_returns_no_number_is_an_error(
    serving: Serving, caplog: pytest.LogCaptureFixture, returned: Any, later: bool
) -> None:
    async def on_data_later(stream: IOStream, data: bytes) -> Any:
        return returned

    server = started(serving, on_data=on_data_later if later else lambda stream, data: returned)
    peer = serving.connect(server)
    peer.send(b"data")
    _, unread, _ = await server.called("on_disconnect")
    assert unread == b"data"
    (record,) = logged(caplog, TypeError)
    assert "on_data must return how many bytes" in str(record.exc_info[1])  # type: ignore[index]


@pytest.mark.gen_test
async def test_on_data_that_returns_less_than_minus_one_is_an_error(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server = started(serving, on_data=lambda stream, data: -2)
    serving.connect(server).send(b"data")
    await server.called("on_disconnect")
    assert len(logged(caplog, ValueError)) == 1


@pytest.mark.gen_test
async def test_what_the_other_callbacks_return_does_not_matter(serving: Serving) -> None:
    others: Any = {name: lambda *_: 5 for name in CALLBACKS if name != "on_data"}
    server = started(serving, on_data=echo, tick_interval=0.01, **others)
    peer = serving.connect(server)
    assert await answers(peer)
    await server.called("on_tick", 2)
    await server.called("on_write")
    peer.close()
    await server.called("on_disconnect")


@pytest.mark.gen_test
async def test_what_was_consumed_before_on_data_raised_is_not_unread(serving: Serving) -> None:
    def on_data(stream: IOStream, data: bytes) -> int:
        if data.startswith(b"bad"):
            raise Trouble
        return 4

    server = started(serving, on_data=on_data)
    serving.connect(server).send(b"goodgoodbad!")
    _, unread, _ = await server.called("on_disconnect")
    assert unread == b"bad!"


@pytest.mark.gen_test
async def test_a_callback_that_blocks_costs_nobody_its_connection(serving: Serving) -> None:
    def on_data(stream: IOStream, data: bytes) -> int:
        if data == b"block":
            time.sleep(0.8)
        return echo(stream, data)

    server = started(serving, on_data=on_data, idle_timeout=0.6)
    blocking, other = serving.connect(server), serving.connect(server)
    assert await answers(other)
    assert await answers(blocking, b"block")
    assert await answers(other)


@pytest.mark.gen_test
async def test_a_callback_that_never_returns_keeps_only_its_own_client(serving: Serving) -> None:
    async def on_data(stream: IOStream, data: bytes) -> int:
        if data == b"hang":
            await asyncio.Event().wait()
        return echo(stream, data)

    server = started(serving, on_data=on_data, drain_idle=0.02)
    hanging, other = serving.connect(server), serving.connect(server)
    hanging.send(b"hang")
    await server.called("on_data")
    assert await answers(other)
    await server.shutdown(timeout=0.3)
    reasons = [stream.close_reason for stream, _, _ in server.of("on_disconnect")]
    assert sorted(reasons) == ["drain_timeout", "shutdown"]


# ---- callbacks that end things


Ending = Callable[[CallbackServer, IOStream], Any]


def close(server: CallbackServer, stream: IOStream) -> None:
    stream.close()


def abort(server: CallbackServer, stream: IOStream) -> None:
    stream.abort()


def kick(server: CallbackServer, stream: IOStream) -> None:
    stream.kick("go away")


def kick_all(server: CallbackServer, stream: IOStream) -> None:
    server.kick_all("closing")


def aclose(server: CallbackServer, stream: IOStream) -> Awaitable[None]:
    return stream.aclose()


def shut_down(server: CallbackServer, stream: IOStream) -> Awaitable[None]:
    return server.shutdown()


def close_and_shut_down(server: CallbackServer, stream: IOStream) -> Awaitable[None]:
    stream.close()
    return server.shutdown()


def close_all(server: CallbackServer, stream: IOStream) -> Awaitable[None]:
    return server.close_all_connections()


def shut_down_in_a_task(server: CallbackServer, stream: IOStream) -> None:
    server.task = asyncio.ensure_future(server.shutdown())  # type: ignore[attr-defined]


ENDINGS = [close, abort, kick, kick_all, aclose, shut_down, close_and_shut_down, close_all, shut_down_in_a_task]


@pytest.mark.parametrize("name", FOR_CLIENTS)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.gen_test
async def test_any_callback_may_end_its_client_or_all(serving: Serving, name: str, ending: Ending) -> None:
    """Each client has one on_disconnect, nothing waits for itself, and nothing is left."""
    done: list[IOStream] = []

    def callback(stream: IOStream, *arguments: Any) -> Any:
        if not done and arguments != (b"",):
            done.append(stream)
            return consuming(ending(server, stream))
        return len(arguments[0]) if name == "on_data" else None

    def consuming(result: Any) -> Any:
        if name != "on_data":
            return result
        return 4 if result is None else consumed_later(result)

    async def consumed_later(result: Awaitable[None]) -> int:
        await result
        return 4

    server = started(serving, tick_interval=0.02, drain_idle=0.02, drain_timeout=60, **{name: callback})
    peers = [serving.connect(server) for _ in range(2)]
    await eventually(lambda: done or len(server.of("on_connect")) == 2)
    if name == "on_data":
        peers[0].send(b"data")
    elif name == "on_write":
        await server.broadcast(b"news")
    elif name in ("on_error", "on_disconnect"):
        peers[0].reset()
    await eventually(lambda: done)
    for peer in peers:
        peer.close()
    await server.shutdown()
    await eventually(lambda: len(server.of("on_disconnect")) == len(server.of("on_connect")))
    assert len({stream for stream, _, _ in server.of("on_disconnect")}) == len(server.of("on_connect"))
    await eventually(lambda: len(server.streams) == 0)


@pytest.mark.parametrize("name", ["on_connect", "on_data", "on_write", "on_tick", "on_disconnect"])
@pytest.mark.gen_test
async def test_a_client_whose_callback_shut_the_server_down_is_closed_in_order(serving: Serving, name: str) -> None:
    async def callback(stream: IOStream, *arguments: Any) -> int:
        await server.shutdown()
        if not stream.closed():
            await stream.write(b"good bye")
        over.set()
        return 4

    over = asyncio.Event()
    server = started(serving, tick_interval=0.02, drain_idle=0.02, drain_timeout=60, **{name: callback})
    peer = serving.connect(server)
    await server.called("on_connect")
    if name == "on_data":
        peer.send(b"data")
    elif name == "on_write":
        (stream,) = server.streams
        server.broadcast(b"")
        stream.write(b"")
        await server.broadcast(b"x")
    elif name == "on_disconnect":
        peer.close()
    await over.wait()
    if name != "on_disconnect":
        assert (await peer.receive_all()).endswith(b"good bye")
        peer.close()
    await server.called("on_disconnect")


@pytest.mark.gen_test
async def test_stop_within_a_callback_leaves_the_clients(serving: Serving) -> None:
    def on_data(stream: IOStream, data: bytes) -> int:
        server.stop()
        return echo(stream, data)

    server = started(serving, on_data=on_data)
    (address,) = server.addresses
    peer = serving.connect(server)
    assert await answers(peer)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    assert await answers(peer)


@pytest.mark.parametrize("on_data", [line, line_later])
@pytest.mark.parametrize("ending", [close, abort, kick])
@pytest.mark.gen_test
async def test_nothing_is_offered_to_on_data_after_it_has_ended_its_client(
    serving: Serving, on_data: Any, ending: Ending
) -> None:
    def end_first(stream: IOStream, data: bytes) -> Any:
        ending(server, stream)
        return on_data(stream, data)

    server = started(serving, on_data=end_first)
    serving.connect(server).send(b"a\nb\nc")
    _, unread, _ = await server.called("on_disconnect")
    assert server.received == [b"a\nb\nc"]
    assert unread == b"b\nc"


@pytest.mark.gen_test
async def test_on_error_may_close_a_client_for_whom_there_is_no_place(serving: Serving) -> None:
    """Also where it would still have been told why."""

    class Sorry(Recorder):
        async def handle_reject(self, stream: IOStream, address: Any) -> None:
            await stream.write(b"sorry")

    server = Sorry(max_connections=1, on_error=lambda stream, error: stream.close(), drain_idle=0.02)
    serving.started(server)
    serving.connect(server)
    await server.called("on_connect")
    assert await serving.connect(server).receive_all() == b""
    async with asyncio.timeout(PATIENCE):
        await server.shutdown(timeout=None)


@pytest.mark.gen_test
async def test_on_disconnect_may_shut_the_server_down_after_an_error(serving: Serving) -> None:
    async def on_disconnect(stream: IOStream, unread: bytes, error: str) -> None:
        await server.shutdown(timeout=None)
        over.set()

    over = asyncio.Event()
    server = started(serving, on_data=fails, on_disconnect=on_disconnect, drain_idle=0.02)
    serving.connect(server).send(b"data")
    async with asyncio.timeout(PATIENCE):
        await over.wait()


@pytest.mark.gen_test
async def test_a_cancel_is_not_taken_for_a_tick(serving: Serving) -> None:
    def on_tick(stream: IOStream) -> Awaitable[Any]:
        ending.append(asyncio.ensure_future(server.close_all_connections()))
        return asyncio.Event().wait()

    ending: list[asyncio.Future[None]] = []
    server = started(serving, tick_interval=0.02, on_tick=on_tick)
    serving.connect(server)
    await server.called("on_disconnect")
    await ending[0]
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})


@pytest.mark.gen_test
async def test_a_coroutine_that_is_at_work_at_the_end_is_waited_for(serving: Serving) -> None:
    go = asyncio.Event()

    async def on_tick(stream: IOStream) -> None:
        await go.wait()

    server = started(serving, tick_interval=0.01, on_tick=on_tick)
    peer = serving.connect(server)
    await server.called("on_tick")
    (stream,) = server.streams
    peer.close()
    stream.close()
    await turns(20)
    assert server.of("on_disconnect") == []
    go.set()
    await server.called("on_disconnect")


@pytest.mark.gen_test
async def test_nothing_is_left_of_clients_that_have_gone(serving: Serving) -> None:
    others = [each for each in gc.get_objects() if isinstance(each, IOStream)]  # of tests whose loop was closed before
    server = started(serving, on_data=echo, tick_interval=0.01)
    for _ in range(20):
        peer = serving.connect(server)
        assert await answers(peer)
        peer.close()
    await server.called("on_disconnect", 20)
    server.calls.clear()
    await server.shutdown()
    gc.collect()
    assert [each for each in gc.get_objects() if isinstance(each, IOStream) and each not in others] == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
