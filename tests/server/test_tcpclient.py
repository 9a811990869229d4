"""TCPClient over real sockets: what it connects to, what it tries, how it fails, and that nothing of it is left."""

import asyncio
import contextlib
import datetime
import errno
import itertools
import math
import select
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tornado.tcpclient
import tornado.util

from iostreamsrv import (
    CloseReason,
    IOStream,
    OptionError,
    ResolveError,
    StreamClosedError,
    StreamTimeoutError,
    TCPClient,
    tcpclient,
)
from tests.support.engines import on_every_loop
from tests.support.listening import unused_port
from tests.support.peers import Peer
from tests.support.waiting import PATIENCE, eventually, turns

pytestmark = on_every_loop

REFUSED = ("127.0.0.1", 1)
"""Nobody listens there."""

AGES = 60.0
"""Seconds that no test waits."""

Address = tuple[int, Any]


class Resolver:
    """Gives the addresses it was given, and remembers what it was asked; raises what is an exception."""

    def __init__(self, *answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[Any, ...]] = []
        self.closed = False

    async def resolve(self, *question: Any) -> list[Address]:
        self.asked.append(question)
        for each in self.answer:
            if isinstance(each, BaseException):
                raise each
        return list(self.answer)

    def close(self) -> None:
        self.closed = True


class SilentResolver(Resolver):
    """Never answers."""

    async def resolve(self, *question: Any) -> list[Address]:
        self.asked.append(question)
        return await asyncio.get_running_loop().create_future()


def client_of(*answer: Any) -> TCPClient:
    """A client whose every host has these addresses: (host, port) pairs are of IPv4."""
    addresses = [
        (socket.AF_INET, each) if isinstance(each, tuple) and isinstance(each[0], str) else each for each in answer
    ]
    return TCPClient(Resolver(*addresses))  # type: ignore[arg-type]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener


@pytest.fixture
def address(listener: socket.socket) -> tuple[str, int]:
    """Somebody listens there."""
    host, port = listener.getsockname()
    return host, port


@pytest.fixture
def dead() -> Iterator[tuple[str, int]]:
    """An address where a connection is neither made nor refused: the listener's queue is full."""
    with contextlib.ExitStack() as open_sockets:
        listener = open_sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(10):
            client = open_sockets.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            if not select.select([], [client], [], 0.02)[1]:
                yield listener.getsockname()
                return
        pytest.skip("this system takes connections beyond a listener's backlog")


@pytest.fixture
def head_start(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Changes the time between two attempts."""
    return lambda seconds: monkeypatch.setattr(tcpclient, "HEAD_START", seconds)


def accepted(listener: socket.socket) -> Peer:
    connection, _ = listener.accept()
    return Peer(connection)


def is_waiting(listener: socket.socket) -> bool:
    """Whether a client waits to be accepted."""
    return bool(select.select([listener], [], [], 0)[0])


# ---- connecting


@pytest.mark.gen_test
async def test_the_stream_is_connected_and_speaks_both_ways(listener: socket.socket, address: tuple[str, int]) -> None:
    client = TCPClient()
    stream = await client.connect(*address)
    peer = accepted(listener)
    assert isinstance(stream, IOStream)
    assert stream.remote_address == address
    await stream.write(b"hello\n")
    assert await peer.receive(6) == b"hello\n"
    peer.send(b"good day\n")
    assert await stream.read_until(b"\n") == b"good day\n"
    stream.close()
    assert await peer.receive_all() == b""
    peer.close()
    client.close()


@pytest.mark.gen_test
async def test_a_name_is_resolved_by_the_system(listener: socket.socket, address: tuple[str, int]) -> None:
    stream = await TCPClient().connect("localhost", address[1], timeout=PATIENCE)
    assert stream.remote_address == address
    stream.close()


@pytest.mark.gen_test
async def test_an_ipv6_address_is_connected_to() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with listener:
        port = listener.getsockname()[1]
        for family in (socket.AF_UNSPEC, socket.AF_INET6):
            stream = await TCPClient().connect("::1", port, family, source_ip="::1")
            assert stream.socket.family == socket.AF_INET6
            assert stream.remote_address[:2] == ("::1", port)
            stream.close()


@pytest.mark.gen_test
async def test_a_resolver_may_give_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        stream = await client_of((socket.AF_UNIX, path)).connect("name", 0)
        assert stream.remote_address == path
        stream.close()


@pytest.mark.gen_test
async def test_the_resolver_is_asked_for_what_was_given(listener: socket.socket, address: tuple[str, int]) -> None:
    resolver = Resolver((socket.AF_INET, address))
    client = TCPClient(resolver)  # type: ignore[arg-type]
    for port in (80, "http"):
        (await client.connect("example.test", port, socket.AF_INET)).close()
    assert resolver.asked == [("example.test", 80, socket.AF_INET), ("example.test", "http", socket.AF_INET)]


@pytest.mark.gen_test
async def test_the_client_closes_its_own_resolver_only() -> None:
    given = Resolver()
    TCPClient(given).close()  # type: ignore[arg-type]
    assert not given.closed
    client = TCPClient()
    client.resolver = own = given  # type: ignore[assignment]
    client.close()
    assert own.closed


@pytest.mark.gen_test
async def test_the_stream_has_the_buffer_size_that_was_asked_for(
    listener: socket.socket, address: tuple[str, int]
) -> None:
    stream = await TCPClient().connect(*address, max_buffer_size=1000)
    assert stream.max_buffer_size == 1000
    stream.close()
    stream = await TCPClient().connect(*address)
    assert stream.max_buffer_size == 100 << 20
    stream.close()


# ---- one address after the other


def test_families_take_turns_beginning_with_that_of_the_first() -> None:
    six, four, unix = socket.AF_INET6, socket.AF_INET, socket.AF_UNIX
    order = [(six, 1), (six, 2), (six, 3), (four, 4), (unix, 5), (four, 6)]
    assert tcpclient.interleaved(order) == [(six, 1), (four, 4), (unix, 5), (six, 2), (four, 6), (six, 3)]
    assert tcpclient.interleaved(order[3:]) == [(four, 4), (unix, 5), (four, 6)]


@pytest.mark.gen_test
async def test_an_address_that_does_not_answer_holds_the_next_one_up_for_its_head_start_only(
    dead: tuple[str, int], listener: socket.socket, address: tuple[str, int]
) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    stream = await client_of(dead, address).connect("example.test", 80, timeout=PATIENCE)
    assert loop.time() - began > 0.2
    assert stream.remote_address == address
    stream.close()


@pytest.mark.gen_test
async def test_after_an_address_that_fails_the_next_one_is_tried_at_once(
    head_start: Any, listener: socket.socket, address: tuple[str, int]
) -> None:
    head_start(AGES)
    stream = await client_of(REFUSED, REFUSED, address).connect("example.test", 80)
    assert stream.remote_address == address
    stream.close()


@pytest.mark.gen_test
async def test_an_address_that_fails_late_begins_the_next_one_while_another_is_under_way(
    head_start: Any, dead: tuple[str, int], listener: socket.socket, address: tuple[str, int]
) -> None:
    head_start(0.01)

    class Client(TCPClient):
        def _create_stream(self, size: Any, af: int, addr: Any, **source: Any) -> Any:
            head_start(0.01 if addr == dead else AGES)
            return super()._create_stream(size, af, addr, **source)

    client = Client(client_of(dead, REFUSED, address).resolver)
    stream = await client.connect("example.test", 80, timeout=PATIENCE)
    assert stream.remote_address == address
    stream.close()


@pytest.mark.usefixtures("clock")
@pytest.mark.gen_test
async def test_once_connected_no_other_address_is_tried(
    head_start: Any, listener: socket.socket, address: tuple[str, int]
) -> None:
    head_start(0.5)
    with socket.create_server(("127.0.0.1", 0)) as other:
        stream = await client_of(address, other.getsockname()).connect("example.test", 80)
        await asyncio.sleep(0.6)
        assert is_waiting(listener)
        assert not is_waiting(other)
        stream.close()


@pytest.mark.parametrize("wrong", [("127.0.0.1",), ("127.0.0.1", "80"), ("127.0.0.1", 99999), 80, None])
@pytest.mark.gen_test
async def test_an_address_that_is_none_is_passed_over(
    wrong: Any, listener: socket.socket, address: tuple[str, int]
) -> None:
    stream = await client_of((socket.AF_INET, wrong), address).connect("example.test", 80)
    assert stream.remote_address == address
    stream.close()


@pytest.mark.gen_test
async def test_a_family_that_there_is_not_is_passed_over(listener: socket.socket, address: tuple[str, int]) -> None:
    stream = await client_of((999, ("a", 1)), address).connect("example.test", 80)
    assert stream.remote_address == address
    stream.close()


# ---- the source


@pytest.mark.skipif(sys.platform != "linux", reason="other systems give the loopback interface one address")
@pytest.mark.gen_test
async def test_a_connection_comes_from_the_source_that_was_asked_for(
    listener: socket.socket, address: tuple[str, int]
) -> None:
    free = unused_port()
    for source, seen in (
        ({"source_ip": "127.0.0.3"}, "127.0.0.3"),
        ({"source_port": free}, "127.0.0.1"),
        ({"source_ip": "127.0.0.3", "source_port": free}, "127.0.0.3"),
    ):
        stream = await TCPClient().connect(*address, **source)  # type: ignore[arg-type]
        connection, (host, port) = listener.accept()
        connection.close()  # first, so that the port is free again
        assert host == seen
        assert port == source.get("source_port", port)
        assert stream.local_address == (host, port)
        stream.close()


@pytest.mark.gen_test
async def test_attempts_that_overlap_may_have_one_source_port(
    head_start: Any, dead: tuple[str, int], listener: socket.socket, address: tuple[str, int]
) -> None:
    head_start(0.01)
    free = unused_port()
    stream = await client_of(dead, address).connect("example.test", 80, source_port=free, timeout=PATIENCE)
    assert stream.local_address == ("127.0.0.1", free)
    peer = accepted(listener)
    peer.close()
    stream.close()


@pytest.mark.gen_test
async def test_an_address_of_another_family_than_the_source_is_passed_over(
    listener: socket.socket, address: tuple[str, int]
) -> None:
    client = client_of((socket.AF_INET6, ("::1", address[1], 0, 0)), address)
    stream = await client.connect("example.test", 80, source_ip="127.0.0.1")
    assert stream.remote_address == address
    stream.close()
    with pytest.raises(StreamClosedError, match=r"the source \[::1\]:0 is of another family") as caught:
        await TCPClient().connect(*address, source_ip="::1")
    assert caught.value.errno == errno.EAFNOSUPPORT


@pytest.mark.gen_test
async def test_a_source_that_this_host_has_not_is_named(address: tuple[str, int]) -> None:
    with pytest.raises(StreamClosedError, match=r"cannot bind the source 192\.0\.2\.1:0: ") as caught:
        await TCPClient().connect(*address, source_ip="192.0.2.1")
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.gen_test
async def test_a_source_port_that_somebody_listens_on_is_named(address: tuple[str, int]) -> None:
    with pytest.raises(StreamClosedError, match=rf"cannot bind the source \*:{address[1]}: ") as caught:
        await TCPClient().connect(*REFUSED, source_port=address[1])
    assert caught.value.errno == errno.EADDRINUSE


# ---- errors


@pytest.mark.gen_test
async def test_a_refused_connection_says_who_refused_it() -> None:
    with pytest.raises(StreamClosedError) as caught:
        await TCPClient().connect(*REFUSED)
    error = caught.value
    assert isinstance(error, OSError)
    assert error.errno == errno.ECONNREFUSED
    assert error.operation == "connect"
    assert error.reason is CloseReason.RESET
    assert isinstance(error.real_error, ConnectionRefusedError)
    assert error.real_error.filename == "127.0.0.1:1"
    assert str(error) == "cannot connect to 127.0.0.1:1: Connection refused"


@pytest.mark.gen_test
async def test_where_all_addresses_fail_the_error_names_each_with_its_reason() -> None:
    client = client_of(REFUSED, (socket.AF_INET, "nonsense"), (999, ("10.0.0.1", 80)))
    with pytest.raises(StreamClosedError) as caught:
        await client.connect("example.test", "http")
    assert str(caught.value).startswith(
        "cannot connect to example.test:http: 127.0.0.1:1: Connection refused, "
        "10.0.0.1:80: Address family not supported by protocol, nonsense: "
    )
    assert caught.value.errno == errno.ECONNREFUSED


@pytest.mark.parametrize(
    ("answer", "text", "number"),
    [
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "Name or service not known",
            socket.EAI_NONAME,
        ),
        (OSError(errno.ETIMEDOUT, "the resolver is down"), "the resolver is down", errno.ETIMEDOUT),
        (OSError("no such name"), "no such name", socket.EAI_FAIL),
        (TimeoutError(), "TimeoutError", socket.EAI_FAIL),
        (UnicodeError("label too long"), "label too long", socket.EAI_FAIL),
        (None, "it has no address", socket.EAI_NONAME),
    ],
)
@pytest.mark.gen_test
async def test_a_name_that_does_not_resolve_is_named(answer: Any, text: str, number: int) -> None:
    client = client_of(*([answer] if answer else []))
    with pytest.raises(ResolveError) as caught:
        await client.connect("example.test", 80, timeout=AGES)
    assert str(caught.value) == f"cannot resolve example.test:80: {text}"
    assert caught.value.errno == number
    assert isinstance(caught.value, socket.gaierror)


@pytest.mark.parametrize(
    ("host", "port", "family"),
    [
        ("127.0.0.1", "no-such-service", socket.AF_UNSPEC),
        ("127.0.0.1", 80, socket.AF_INET6),
        ("x" * 64 + ".test", 80, socket.AF_UNSPEC),
    ],
    ids=["service", "family", "label"],
)
@pytest.mark.gen_test
async def test_what_the_system_cannot_resolve_is_named(host: str, port: int | str, family: Any) -> None:
    with pytest.raises(ResolveError) as caught:
        await TCPClient().connect(host, port, family)
    assert str(caught.value).startswith(f"cannot resolve {host}:{port}: ")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("host", value) for value in ("", None, b"localhost", 1, "a\0b")],
        *[("port", value) for value in (-1, 65536, True, 80.0, None, "", "65536", "-1")],
        *[("af", value) for value in ("inet", None, True)],
        *[("ssl_options", value) for value in ([], object())],
        *[("max_buffer_size", value) for value in (0, -1, "1", True, math.nan)],
        *[("source_ip", value) for value in ("", "localhost", 1, b"1.1.1.1", "127.0.0.1:80", "1.2.3")],
        *[("source_port", value) for value in (-1, 65536, True, "80", 80.0)],
        *[("timeout", value) for value in (math.inf, math.nan, "1", True)],
    ],
)
@pytest.mark.gen_test
async def test_an_argument_that_cannot_be_is_refused_by_name_before_anything_is_tried(option: str, value: Any) -> None:
    resolver = Resolver()
    arguments = {"host": "example.test", "port": 80, option: value}
    with pytest.raises(OptionError, match=f"^{option}=") as caught:
        await TCPClient(resolver).connect(**arguments)  # type: ignore[arg-type]
    assert caught.value.option == option
    assert not resolver.asked


# ---- timeouts


@pytest.mark.parametrize("timeout", [0, -1, -0.5, datetime.timedelta(0), datetime.timedelta(seconds=-1)])
@pytest.mark.gen_test
async def test_a_timeout_that_has_passed_already_is_a_timeout_at_once_as_with_tornado(timeout: Any) -> None:
    resolver = Resolver()
    with pytest.raises(StreamTimeoutError, match="Timeout while resolving") as caught:
        await TCPClient(resolver).connect("example.test", 80, timeout=timeout)  # type: ignore[arg-type]
    assert caught.value.operation == "connect"
    assert not resolver.asked, "nothing is tried"
    with pytest.raises(tornado.util.TimeoutError):
        await tornado.tcpclient.TCPClient().connect("127.0.0.1", 1, timeout=timeout)


@pytest.mark.parametrize("timeout", [0.02, datetime.timedelta(milliseconds=20)], ids=["seconds", "timedelta"])
@pytest.mark.gen_test
async def test_a_timeout_says_that_it_passed_while_resolving(timeout: Any) -> None:
    with pytest.raises(StreamTimeoutError) as caught:
        await TCPClient(SilentResolver()).connect("example.test", 80, timeout=timeout)  # type: ignore[arg-type]
    assert str(caught.value) == "Timeout while resolving example.test"
    assert caught.value.operation == "connect"


@pytest.mark.gen_test
async def test_a_timeout_names_the_addresses_that_were_being_connected_to(
    head_start: Any, dead: tuple[str, int]
) -> None:
    head_start(0.001)
    with pytest.raises(TimeoutError) as caught:
        await client_of(REFUSED, dead, REFUSED, dead).connect("example.test", 80, timeout=0.3)
    shown = f"{dead[0]}:{dead[1]}"
    assert str(caught.value) == f"Timeout while connecting to {shown}, {shown}"


@pytest.mark.gen_test
async def test_a_timeout_of_the_callers_own_cancels_all_of_it(head_start: Any, dead: tuple[str, int]) -> None:
    head_start(0.001)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client_of(dead, dead).connect("example.test", 80, timeout=AGES)


# ---- cancels: the fixture of the loop sees to it that no descriptor, no task and no complaint is left


@pytest.mark.gen_test
async def test_a_connect_may_be_cancelled_while_it_resolves() -> None:
    resolver = SilentResolver()
    connecting = asyncio.ensure_future(TCPClient(resolver).connect("example.test", 80))  # type: ignore[arg-type]
    await eventually(lambda: resolver.asked)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting


@pytest.mark.usefixtures("clock")
@pytest.mark.gen_test
async def test_a_connect_that_is_cancelled_closes_every_attempt_and_begins_no_other(
    head_start: Any, dead: tuple[str, int], listener: socket.socket, address: tuple[str, int]
) -> None:
    made: list[IOStream] = []

    class Client(TCPClient):
        def _create_stream(self, *args: Any, **kwargs: Any) -> Any:
            head_start(0.001 if len(made) < 2 else 0.5)
            stream, connected = super()._create_stream(*args, **kwargs)
            made.append(stream)
            return stream, connected

    client = Client(client_of(dead, dead, dead, address).resolver)
    connecting = asyncio.ensure_future(client.connect("example.test", 80))
    await eventually(lambda: len(made) == 3)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert all(stream.closed() for stream in made)
    await asyncio.sleep(0.6)
    assert len(made) == 3
    assert not is_waiting(listener)


@pytest.mark.gen_test
async def test_a_connect_that_is_cancelled_after_any_number_of_turns_leaves_nothing(
    listener: socket.socket, address: tuple[str, int]
) -> None:
    cancelled = 0
    for count in itertools.count():
        connecting = asyncio.ensure_future(client_of(REFUSED, address).connect("example.test", 80, timeout=AGES))
        await turns(count)
        if not connecting.cancel():
            break
        with pytest.raises(asyncio.CancelledError):
            await connecting
        cancelled += 1
    connecting.result().close()
    assert cancelled > 3
    while is_waiting(listener):
        peer = accepted(listener)
        assert await peer.receive_all() == b""
        peer.close()


@pytest.mark.gen_test
async def test_a_connect_that_is_cancelled_in_the_turn_it_is_connected_closes_the_stream(
    listener: socket.socket, address: tuple[str, int]
) -> None:
    made: list[IOStream] = []

    class Client(TCPClient):
        def _create_stream(self, *args: Any, **kwargs: Any) -> Any:
            stream, connected = super()._create_stream(*args, **kwargs)
            made.append(stream)
            connected.add_done_callback(lambda _: asyncio.get_running_loop().call_soon(connecting.cancel))
            return stream, connected

    connecting = asyncio.ensure_future(Client().connect(*address))
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert [stream.closed() for stream in made] == [True]


@pytest.mark.gen_test
async def test_a_timeout_at_any_moment_leaves_nothing(listener: socket.socket, address: tuple[str, int]) -> None:
    outcomes = set()
    for count in range(40):
        try:
            stream = await client_of(REFUSED, address).connect("example.test", 80, timeout=1e-6 + count * 2e-5)
            stream.close()
            outcomes.add("connected")
        except StreamTimeoutError as error:
            outcomes.add("timed out")
            assert str(error).startswith("Timeout while ")
        while is_waiting(listener):
            peer = accepted(listener)
            assert await peer.receive_all() == b""
            peer.close()
    assert "timed out" in outcomes
