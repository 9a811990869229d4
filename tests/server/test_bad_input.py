"""What users and clients get wrong: a clear error, nothing bound, nothing else harmed."""

import asyncio
import math
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from iostreamsrv import (
    CloseReason,
    IOLoop,
    IOStream,
    ListenError,
    OptionError,
    ServerOptions,
    StreamClosedError,
    TCPServer,
    UnsatisfiableReadError,
    bind_sockets,
)
from tests.support.leaks import open_descriptors
from tests.support.peers import Peer
from tests.support.programs import printed, program
from tests.support.waiting import PATIENCE, eventually

# ---- options of a server


class Silent(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await stream.read_until_close()


@pytest.fixture
def server(io_loop: IOLoop) -> Iterator[Silent]:
    """A server that must have bound nothing when the test has ended."""
    before = open_descriptors()
    server = Silent()
    yield server
    assert server.addresses == []
    assert open_descriptors() == before


BINDERS: dict[str, Callable[..., Any]] = {
    "listen": lambda server, *arguments, **options: server.listen(*arguments, **options),
    "bind": lambda server, *arguments, **options: server.bind(*arguments, **options),
    "bind_sockets": lambda server, *arguments, **options: bind_sockets(*arguments, **options),
}
in_every_way = pytest.mark.parametrize("bind", BINDERS.values(), ids=list(BINDERS))


def named(option: str, value: object) -> str:
    """The beginning of an `OptionError`."""
    return "^" + re.escape(f"{option}={value!r}: ")


@in_every_way
@pytest.mark.parametrize("port", [-1, 65536, 70000, True, False, 80.0, math.nan, None, b"80", "", "70000", [80]])
def test_a_bad_port_is_named_with_its_value(server: Silent, bind: Callable[..., Any], port: Any) -> None:
    with pytest.raises(OptionError, match=named("port", port)) as caught:
        bind(server, port, "127.0.0.1")
    assert isinstance(caught.value, ValueError)
    assert (caught.value.option, caught.value.value) == ("port", port)


@in_every_way
def test_a_service_nobody_knows_is_named(server: Silent, bind: Callable[..., Any]) -> None:
    with pytest.raises(ListenError, match="no-such-service"):
        bind(server, "no-such-service", "127.0.0.1")


@in_every_way
@pytest.mark.parametrize("address", [127, b"127.0.0.1", ("127.0.0.1", 80), True])
def test_a_bad_address_is_named_with_its_value(server: Silent, bind: Callable[..., Any], address: Any) -> None:
    with pytest.raises(OptionError, match=named("address", address)):
        bind(server, 0, address)


@in_every_way
@pytest.mark.parametrize("address", ["256.0.0.1", "127.0.0.1.", "::g", "a" * 300, "192.0.2.1", "\udcff"])
def test_an_address_that_is_none_of_ours_is_named(server: Silent, bind: Callable[..., Any], address: str) -> None:
    with pytest.raises(ListenError) as caught:
        bind(server, 0, address)
    assert address.replace("\udcff", r"\xff") in str(caught.value)
    assert caught.value.errno


@in_every_way
@pytest.mark.parametrize(
    "option, value",
    [
        ("backlog", 0),
        ("backlog", -1),
        ("backlog", True),
        ("backlog", 1.5),
        ("backlog", 1 << 31),
        ("flags", 1 << 31),
        ("family", 99),
        ("flags", "AI_PASSIVE"),
        ("reuse_port", 1),
        ("reuse_port", None),
    ],
)
def test_other_arguments_of_listening_are_named(
    server: Silent, bind: Callable[..., Any], option: str, value: Any
) -> None:
    with pytest.raises(OptionError, match=named(option, value)):
        bind(server, 0, "127.0.0.1", **{option: value})


@pytest.mark.parametrize("value", [0, -1, 0.5, math.nan, True, "1", b"1", [1]])
@pytest.mark.parametrize("option", ["max_buffer_size", "max_write_buffer_size", "read_chunk_size"])
def test_a_bad_size_is_named_with_its_value(option: str, value: Any) -> None:
    for kind in (Silent, ServerOptions):
        with pytest.raises(OptionError, match=named(option, value)):
            kind(**{option: value})


@pytest.mark.parametrize(
    "option, value",
    [
        ("cork", 1),
        ("cork", None),
        ("close_on_return", 0),
        ("close_on_return", "yes"),
        ("allow_half_open", 1),
        ("allow_half_open", None),
        ("nodelay", 0),
        ("nodelay", "no"),
        ("io_loop", "loop"),
        ("strict_validity", 1),
        ("allow_legacy_tls", None),
    ],
)
def test_other_options_are_named_with_their_value(option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=named(option, value)):
        Silent(**{option: value})


@pytest.mark.parametrize("value", [0, -1, 0.5, 1000.0, math.inf, math.nan, True, "1", b"1", [1], 1 << 31])
@pytest.mark.parametrize("option", ["send_buffer_size", "receive_buffer_size"])
def test_a_bad_size_for_the_kernel_is_named_with_its_value(option: str, value: Any) -> None:
    for kind in (Silent, ServerOptions):
        with pytest.raises(OptionError, match=named(option, value)):
            kind(**{option: value})


@pytest.mark.parametrize(
    "value",
    [-1, -0.001, math.inf, -math.inf, math.nan, True, False, None, "2", b"2", [2], pytest.param(10**400, id="huge")],
)
def test_a_bad_linger_is_named_with_its_value(value: Any) -> None:
    for kind in (Silent, ServerOptions):
        with pytest.raises(OptionError, match=named("linger", value)):
            kind(linger=value)


@pytest.mark.parametrize(
    "value",
    [
        0,
        1,
        60,
        60.0,
        "on",
        [60, 10, 6],
        {60, 10, 6},
        (),
        (60,),
        (60, 10),
        (60, 10, 6, 1),
        (0, 10, 6),
        (60, 0, 6),
        (60, 10, 0),
        (-1, 10, 6),
        (60.0, 10, 6),
        (True, 10, 6),
        ("60", 10, 6),
        (None, None, None),
        (32768, 10, 6),
        (60, 32768, 6),
        (60, 10, 128),
    ],
)
def test_a_bad_keepalive_is_named_with_its_value(value: Any) -> None:
    for kind in (Silent, ServerOptions):
        with pytest.raises(OptionError, match=named("keepalive", value)):
            kind(keepalive=value)


def test_sizes_that_are_unusual_but_clear_are_taken() -> None:
    options = ServerOptions(max_buffer_size=1000.9, max_write_buffer_size=math.inf)  # type: ignore[arg-type]
    assert options.max_buffer_size == 1000
    assert options.max_write_buffer_size > 1 << 60
    assert ServerOptions(max_buffer_size=None).max_buffer_size == ServerOptions().max_buffer_size  # type: ignore[arg-type]


def test_options_cannot_be_changed_behind_the_check() -> None:
    with pytest.raises(AttributeError):
        Silent().options.cork = "no"  # type: ignore[misc, assignment]


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("max_bufer_size", "max_buffer_size"),
        ("corked", "cork"),
        ("close_at_return", "close_on_return"),
        ("keep_alive", "keepalive"),
        ("no_delay", "nodelay"),
        ("half_open", "allow_half_open"),
        ("recv_buffer_size", "receive_buffer_size"),
    ],
)
def test_an_option_there_is_not_comes_with_a_suggestion(wrong: str, right: str) -> None:
    with pytest.raises(TypeError, match=f"'{wrong}'.*did you mean '{right}'"):
        Silent(**{wrong: 1})  # type: ignore[arg-type]


def test_an_option_like_none_there_is_comes_with_a_list() -> None:
    with pytest.raises(TypeError, match=r"'zzz'.*max_buffer_size"):
        Silent(zzz=1)


@pytest.mark.parametrize("count", [-1, 1.5, "2", True])
def test_a_number_of_processes_is_an_integer_from_zero(server: Silent, count: Any) -> None:
    with pytest.raises(OptionError, match=named("num_processes", count)):
        server.start(count)


@pytest.mark.parametrize("count", [-1, 1.5, "2", True])
def test_a_number_of_restarts_is_an_integer_from_zero(server: Silent, count: Any) -> None:
    with pytest.raises(OptionError, match=named("max_restarts", count)):
        server.start(2, count)


@pytest.mark.gen_test
async def test_a_running_loop_does_not_fork(server: Silent) -> None:
    with pytest.raises(RuntimeError, match="there is a loop already"):
        server.start(2)


LOOPS = {
    "one that was set": "asyncio.set_event_loop(asyncio.new_event_loop())",
    "an IOLoop": "iostreamsrv.IOLoop.current()",
    "an IOLoop of another thread": "thread.submit(iostreamsrv.IOLoop.current).result()",
}


@pytest.mark.parametrize("make", LOOPS.values(), ids=LOOPS)
def test_a_loop_that_does_not_run_does_not_fork_either(make: str) -> None:
    # In a process of its own: if it forks after all, that is not the process that runs the tests.
    source = f"""
        import asyncio, concurrent.futures, iostreamsrv, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        thread = concurrent.futures.ThreadPoolExecutor(1)
        server = iostreamsrv.TCPServer()
        server.handle_stream = lambda stream, address: None
        server.bind(0, "127.0.0.1")
        {make}
        try:
            server.start(2)
        except RuntimeError as error:
            print(repr(str(error)))
        """
    with program(source) as process:
        assert "there is a loop already" in printed(process)


def test_a_worker_does_not_fork_again() -> None:
    source = """
        import iostreamsrv, os
        first, second = iostreamsrv.TCPServer(), iostreamsrv.TCPServer()
        first.handle_stream = second.handle_stream = lambda stream, address: None
        first.start(2)
        try:
            second.start(2)
        except RuntimeError as error:
            os.write(1, f"{str(error)!r}\\n".encode())  # the two print into one pipe
        """
    with program(source) as process:
        said = {printed(process), printed(process)}
    assert ["this process is a worker" in text for text in said] == [True]


@pytest.mark.gen_test
async def test_a_server_that_listens_does_not_fork(server: Silent) -> None:
    server.listen(0, "127.0.0.1")
    with pytest.raises(RuntimeError, match="there is a loop already"):
        server.start(2)
    server.stop()


def test_a_thread_does_not_fork(server: Silent) -> None:
    with ThreadPoolExecutor(1) as thread, pytest.raises(RuntimeError, match="only the main thread"):
        thread.submit(server.start, 2).result()


# ---- handlers


@pytest.mark.parametrize("method", ["listen", "bind", "start"])
def test_a_server_without_a_handler_does_not_start(io_loop: IOLoop, method: str) -> None:
    server = TCPServer()
    with pytest.raises(NotImplementedError, match=r"TCPServer has no handle_stream\(stream, address\)"):
        getattr(server, method)(*[0, "127.0.0.1"][: 0 if method == "start" else 2])
    assert server.addresses == []


@pytest.mark.gen_test
async def test_a_server_without_a_handler_does_not_serve(io_loop: IOLoop) -> None:
    with pytest.raises(NotImplementedError):
        await TCPServer().serve_forever()


@pytest.mark.parametrize(
    "handler", [lambda: None, lambda stream: None, lambda a, b, c: None, lambda a, *, b: None], ids="0134"
)
def test_a_handler_that_takes_other_arguments_is_refused(io_loop: IOLoop, handler: Any) -> None:
    class Wrong(TCPServer):
        handle_stream = staticmethod(handler)

    with pytest.raises(OptionError, match=r"handle_stream=.*must take \(stream, address\)"):
        Wrong()
    server = TCPServer()
    server.handle_stream = handler  # type: ignore[method-assign]
    with pytest.raises(OptionError, match="handle_stream="):
        server.listen(0, "127.0.0.1")
    assert server.addresses == []


@pytest.mark.parametrize("handler", [42, "handler"])
def test_a_handler_that_cannot_be_called_is_refused(io_loop: IOLoop, handler: Any) -> None:
    server = TCPServer()
    server.handle_stream = handler  # type: ignore[method-assign]
    with pytest.raises(OptionError, match=named("handle_stream", handler)):
        server.listen(0, "127.0.0.1")


@pytest.mark.parametrize(
    "handler", [lambda *arguments: None, lambda stream, address, more=1: None, print], ids=["*", "default", "builtin"]
)
def test_a_handler_that_can_take_both_is_accepted(io_loop: IOLoop, handler: Any) -> None:
    server = TCPServer()
    server.handle_stream = handler  # type: ignore[method-assign]
    server.listen(0, "127.0.0.1")
    server.stop()


# ---- sockets


@pytest.fixture
def sockets() -> Iterator[dict[str, Any]]:
    """Sockets a server cannot listen on."""
    listening = socket.create_server(("127.0.0.1", 0))
    unbound = socket.socket()
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    closed = socket.socket()
    closed.close()
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    connected, other = socket.socketpair()
    yield {
        "not listening": [unbound],
        "a bound one and a bad one": [bound, unbound],
        "closed": [closed],
        "datagrams": [datagrams],
        "connected": [connected],
        "twice the same": [listening, listening],
        "a good one and a bad one": [listening, unbound],
        "a number": [listening.fileno()],
    }
    for sock in (listening, unbound, bound, datagrams, connected, other):
        sock.close()


@pytest.mark.parametrize(
    "which",
    [
        "not listening",
        "a bound one and a bad one",
        "closed",
        "datagrams",
        "connected",
        "twice the same",
        "a good one and a bad one",
        "a number",
    ],
)
def test_sockets_that_cannot_be_listened_on_are_refused(sockets: dict[str, Any], io_loop: IOLoop, which: str) -> None:
    server = Silent()
    with pytest.raises(OptionError, match=r"^sockets="):
        server.add_sockets(sockets[which])
    assert server.addresses == [], "one of them was added"


def test_a_socket_that_was_added_before_is_refused(io_loop: IOLoop) -> None:
    server = Silent()
    listener = socket.create_server(("127.0.0.1", 0))
    server.add_socket(listener)
    with pytest.raises(OptionError, match="was added before"):
        server.add_socket(listener)
    assert len(server.addresses) == 1
    server.stop()


# ---- what clients send


GREEDY = """
    import resource, sys
    import iostreamsrv

    READS = {
        "max_buffer_size": lambda stream: stream.read_until(b"\\n"),
        "max_bytes": lambda stream: stream.read_until(b"\\n", 1 << 20),
        "max_bytes of a regex": lambda stream: stream.read_until_regex(b"\\r?\\n", 1 << 20),
    }

    def resident():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()

    class Server(iostreamsrv.TCPServer):
        async def handle_stream(self, stream, address):
            before = resident()
            try:
                await READS[sys.argv[1]](stream)
            except iostreamsrv.StreamClosedError as error:
                print({"reason": str(error.reason), "read": stream.bytes_read, "grown": resident() - before})
            self.stop()

    server = Server()
    server.listen(0, "127.0.0.1")
    print(server.addresses[0])
    iostreamsrv.run(server)
"""


@pytest.mark.parametrize("limit", ["max_buffer_size", "max_bytes", "max_bytes of a regex"])
def test_120_mb_without_an_end_are_not_taken(limit: str) -> None:
    sent = 0
    with program(GREEDY, limit) as process:
        with socket.create_connection(printed(process), timeout=PATIENCE) as client, pytest.raises(ConnectionError):
            while sent < 120_000_000:
                sent += client.send(b"x" * 65536)
        end = printed(process)
        assert process.wait(PATIENCE) == 0
    assert end["reason"] == "buffer_full"
    assert end["read"] <= (1 << 20) + 128 * 1024
    assert end["grown"] <= 8 << 20


def test_256_mb_written_to_one_who_does_not_read_are_refused() -> None:
    lavish = """
        import resource, sys
        import iostreamsrv

        class Server(iostreamsrv.TCPServer):
            async def handle_stream(self, stream, address):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                block = bytes(65536)
                try:
                    for written in range(4096):
                        stream.write(block)
                except iostreamsrv.StreamBufferFullError as error:
                    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                    print({"blocks": written, "grown": grown * 1024, "closed": stream.closed()})
                stream.abort()
                self.stop()

        server = Server()
        server.listen(0, "127.0.0.1")
        print(server.addresses[0])
        iostreamsrv.run(server)
    """
    with program(lavish) as process:
        with socket.create_connection(printed(process), timeout=PATIENCE):
            end = printed(process)
        assert process.wait(PATIENCE) == 0
    assert end["blocks"] < 4096
    assert end["grown"] <= (1 << 20) + (4 << 20)
    assert end["closed"] is False


@pytest.mark.gen_test
async def test_a_regex_that_backtracks_costs_no_more_than_its_max_bytes(stream: IOStream, peer: Peer) -> None:
    # Each "a" is tried as the beginning, and all that follow are gone through each time: a million bytes would take
    # hours.
    sending = asyncio.create_task(peer.send_all(b"a" * 1_000_000))
    with pytest.raises(StreamClosedError) as caught:
        await stream.read_until_regex(rb"a+b", max_bytes=2000)
    assert caught.value.reason is CloseReason.BUFFER_FULL
    assert isinstance(caught.value.real_error, UnsatisfiableReadError)
    await asyncio.wait([sending])
    sending.exception()


@pytest.mark.parametrize(
    "read",
    [
        lambda stream: stream.read_until(""),
        lambda stream: stream.read_until("\n"),
        lambda stream: stream.read_until(b""),
        lambda stream: stream.read_until(None),
        lambda stream: stream.read_until(bytearray(b"\n")),
        lambda stream: stream.read_until(b"\n", max_bytes=0),
        lambda stream: stream.read_until(b"\n", max_bytes=1.5),
        lambda stream: stream.read_until(b"\n", max_bytes=True),
        lambda stream: stream.read_until_regex("x"),
        lambda stream: stream.read_until_regex(b"x", max_bytes=-1),
        lambda stream: stream.read_bytes(-1),
        lambda stream: stream.read_bytes(1.5),
        lambda stream: stream.read_bytes(True),
        lambda stream: stream.read_bytes(None, partial=True),
        lambda stream: stream.read_into(b"immutable"),
        lambda stream: stream.read_until_match(b"no function"),
    ],
)
@pytest.mark.gen_test
async def test_a_bad_argument_of_a_read_is_named_and_does_no_harm(
    stream: IOStream, peer: Peer, read: Callable[[IOStream], Any]
) -> None:
    with pytest.raises(OptionError, match=r"^(delimiter|max_bytes|regex|num_bytes|buf|match)="):
        read(stream)
    peer.send(b"abc\n")
    assert await stream.read_until(b"\n") == b"abc\n"


@pytest.mark.gen_test
async def test_a_regex_that_is_none_is_refused(stream: IOStream, peer: Peer) -> None:
    with pytest.raises(re.error):
        stream.read_until_regex(b"(")
    peer.send(b"abc\n")
    assert await stream.read_until(b"\n") == b"abc\n"


@pytest.mark.gen_test
async def test_reads_and_writes_that_are_cancelled_at_any_point_leave_a_working_stream(
    stream: IOStream, peer: Peer
) -> None:
    async def exchange() -> None:
        while True:
            await stream.write(await stream.read_until(b"\n"))

    sent = b""
    for number in range(100):
        task = asyncio.create_task(exchange())
        for part in (b"ab", b"c\n", b"d"):
            peer.send(part)
            sent += part
            for _ in range(number % 3):
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    lines = sent[: sent.rindex(b"\n") + 1]
    await eventually(lambda: stream.reading() is False)
    while stream.bytes_written < len(lines):
        await stream.write(await stream.read_until(b"\n"))
    assert await peer.receive(len(lines)) == lines
