"""What a program for Control4's TCP server API relies on; the numbers are those of its scenarios."""

import asyncio
import errno
import importlib.util
import socket
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from iostreamsrv import IOStream, Keepalive, ListenError, TCPServer, resolve
from tests.support.listening import with_ipv6
from tests.support.peers import Peer
from tests.support.programs import PROJECT, Client, Program, Served
from tests.support.servers import Echo, Serving, answers
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("io_loop")


# ---- 1: resolving and listening


@pytest.mark.gen_test
async def test_control4_1_resolving_gives_endpoints_and_one_of_them_can_be_chosen(serving: Serving) -> None:
    server = Echo()
    serving.servers.append(server)
    endpoints = await resolve("127.0.0.1", 0)
    assert [(each.host, each.port) for each in endpoints] == [("127.0.0.1", 0)]
    (chosen,) = endpoints
    server.listen(chosen.port, chosen.host, family=chosen.family)
    assert await answers(serving.connect(server))


@with_ipv6
@pytest.mark.gen_test
async def test_control4_1_everything_has_an_endpoint_of_each_family(serving: Serving) -> None:
    endpoints = await resolve("*", 80)
    assert {(each.family, each.host) for each in endpoints} == {(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")}


@pytest.mark.parametrize("host", ["*", "localhost", "127.0.0.1"])
@pytest.mark.gen_test
async def test_control4_1_a_star_a_name_and_an_address_can_be_listened_on(serving: Serving, host: str) -> None:
    server = Echo()
    serving.servers.append(server)
    server.listen(0, host)
    port = server.addresses[0][1]
    assert port
    assert await answers(serving.connect(("127.0.0.1", port)))


@pytest.mark.gen_test
async def test_control4_1_a_service_has_a_name(serving: Serving) -> None:
    try:
        number = socket.getservbyname("http", "tcp")
    except OSError:
        pytest.skip("no /etc/services here")
    assert {each.port for each in await resolve("127.0.0.1", "http")} == {number}


@pytest.mark.gen_test
async def test_control4_1_a_busy_port_is_one_error(serving: Serving) -> None:
    (address,) = serving.started(Echo()).addresses
    server = Echo()
    with pytest.raises(ListenError, match=f"127.0.0.1:{address[1]}") as caught:
        server.listen(address[1], address[0])
    assert caught.value.errno == errno.EADDRINUSE
    assert server.addresses == []


# ---- 2: reads


async def read(serving: Serving, sent: bytes, reading: Any) -> tuple[Any, bytes]:
    """What a read gives a handler to whom ``sent`` comes in two pieces, and what it leaves."""
    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def handler(stream: IOStream, address: Any) -> None:
        result.set_result(await reading(stream))
        rest.append(await stream.read_until_close())

    rest: list[bytes] = []
    server = serving.with_handler(handler)
    peer = serving.connect(server)
    peer.send(sent[:1])
    await eventually(lambda: [stream.bytes_read for stream in server.streams] == [1])
    peer.send(sent[1:])
    got = await result
    peer.close()
    await eventually(lambda: rest)
    return got, rest[0]


@pytest.mark.gen_test
async def test_control4_2_until_a_delimiter_which_stays_in_the_data(serving: Serving) -> None:
    got = await read(serving, b"one\r\ntwo", lambda stream: stream.read_until(b"\r\n"))
    assert got == (b"one\r\n", b"two")


@pytest.mark.gen_test
async def test_control4_2_up_to_n(serving: Serving) -> None:
    async def twice(stream: IOStream) -> list[bytes]:
        return [await stream.read_bytes(4, partial=True) for _ in range(2)]

    assert await read(serving, b"abcdefgh", twice) == ([b"a", b"bcde"], b"fgh")


@pytest.mark.gen_test
async def test_control4_2_at_least_n_gives_all_there_is(serving: Serving) -> None:
    def at_least_4(buffer: bytearray) -> tuple[int, bytes] | None:
        return (len(buffer), bytes(buffer)) if len(buffer) >= 4 else None

    got = await read(serving, b"abcdefgh", lambda stream: stream.read_until_match(at_least_4))
    assert got == (b"abcdefgh", b"")


@pytest.mark.gen_test
async def test_control4_2_until_one_of_a_set(serving: Serving) -> None:
    got = await read(serving, b"key=value;", lambda stream: stream.read_until_regex(rb"[;=]"))
    assert got == (b"key=", b"value;")


@pytest.mark.gen_test
async def test_control4_2_until_one_not_of_a_set(serving: Serving) -> None:
    got = await read(serving, b"123 apples", lambda stream: stream.read_until_regex(rb"[^0-9]"))
    assert got == (b"123 ", b"apples")


@pytest.mark.gen_test
async def test_control4_2_until_a_function_says_so(serving: Serving) -> None:
    def frame(buffer: bytearray) -> tuple[int, str] | None:
        return (1 + buffer[0], buffer[1 : 1 + buffer[0]].decode()) if len(buffer) > buffer[0] else None

    got = await read(serving, b"\x03abcdef", lambda stream: stream.read_until_match(frame))
    assert got == ("abc", b"def")


@pytest.mark.gen_test
async def test_control4_2_a_tail_without_delimiter_is_there_at_the_end(serving: Serving) -> None:
    tails: list[tuple[Any, bytes]] = []

    async def handle_close(stream: IOStream, reason: Any) -> None:
        tails.append((reason, await stream.read_bytes(stream.buffered)))

    server = Echo()
    server.handle_close = handle_close  # type: ignore[method-assign]
    peer = serving.connect(serving.started(server))
    assert await answers(peer)
    peer.send(b"no newline")
    peer.close()
    await eventually(lambda: tails)
    assert tails == [("eof", b"no newline")]


# ---- 3: closing, and options of sockets


@pytest.mark.gen_test
async def test_control4_3_closing_the_listener_leaves_the_clients(serving: Serving) -> None:
    server = serving.started(Echo())
    (address,) = server.addresses
    peer = serving.connect(server)
    assert await answers(peer)
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    assert await answers(peer)


@pytest.mark.gen_test
async def test_control4_3_a_graceful_close_gives_a_slow_reader_everything_and_then_the_end(serving: Serving) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        stream.write(b"x" * (4 << 20))
        await stream.aclose()

    server = serving.with_handler(handler, send_buffer_size=65536)
    peer = serving.connect(server)
    received = 0
    async for chunk in peer.chunks():
        received += len(chunk)
        await asyncio.sleep(0.002)
    assert received == 4 << 20


@pytest.mark.gen_test
async def test_control4_3_a_reset_has_its_errno(serving: Serving) -> None:
    ends: list[tuple[Any, Any]] = []

    def handle_close(stream: IOStream, reason: Any) -> None:
        ends.append((reason, getattr(stream.error, "errno", None)))

    server = Echo()
    server.handle_close = handle_close  # type: ignore[method-assign]
    peer = serving.connect(serving.started(server))
    assert await answers(peer)
    peer.reset()
    await eventually(lambda: ends)
    assert ends == [("reset", errno.ECONNRESET)]


@pytest.mark.gen_test
async def test_control4_3_keepalive_nodelay_and_linger_can_be_chosen(serving: Serving) -> None:
    async def options(**given: Any) -> tuple[Any, ...]:
        seen: list[tuple[Any, ...]] = []

        async def handler(stream: IOStream, address: Any) -> None:
            sock = stream.socket
            asked = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)]
            asked += [(socket.IPPROTO_TCP, socket.TCP_NODELAY)]
            seen.append((*(sock.getsockopt(*each) for each in asked), stream.linger))

        serving.connect(serving.with_handler(handler, **given))
        await eventually(lambda: seen)
        return seen[0]

    chosen = await options(keepalive=Keepalive(20, 5, 3), nodelay=True, linger=0.5)
    assert (bool(chosen[0]), chosen[1], bool(chosen[2]), chosen[3]) == (True, 20, True, 0.5)
    keepalive, _, nodelay, linger = await options(keepalive=False, nodelay=False, linger=0)
    assert (keepalive, nodelay, linger) == (0, 0, 0)


# ---- 4: the chat


WELCOME = b"Welcome! Please enter your name:\r\n"
CHAT = PROJECT / "examples" / "chat.py"


@pytest.fixture
def chat() -> Iterator[Program]:
    with Served("examples.chat:ChatServer").listening() as program:
        yield program


class Person(Client):
    """A client of the chat, welcomed, and named if it has a name."""

    def __init__(self, chat: Program, name: bytes = b"") -> None:
        super().__init__(chat.addresses[0])
        assert self.line() == WELCOME
        if name:
            assert self.ask(name + b"\r\n") == b"Thank you, %s! Type 'quit' to disconnect.\r\n" % name

    def hears(self, news: bytes) -> bool:
        """Whether the next thing is this, and the empty line that follows news."""
        return self.line() + self.line() == news + b"\r\n\r\n"

    def everything(self) -> bytes:
        """All until the end."""
        return self._lines.read()


def test_control4_4_the_sixth_is_told_so_and_nobody_else_notices(chat: Program) -> None:
    people = [Person(chat) for _ in range(5)]
    with chat.client() as sixth:
        assert sixth._lines.read() == b"Sorry, I only allow 5 concurrent connections!\r\n"
    for number, person in enumerate(people):
        assert person.ask(b"n%d\r\n" % number) == b"Thank you, n%d! Type 'quit' to disconnect.\r\n" % number
        for other in people[:number]:
            assert other.hears(b"n%d joined!" % number)
    for person in people:
        person.__exit__()


def test_control4_4_names(chat: Program) -> None:
    with Person(chat) as alice, Person(chat) as bob, Person(chat) as unnamed:
        assert alice.ask(b"Al\x07ice\r\n") == b"Thank you, Alice! Type 'quit' to disconnect.\r\n"
        assert bob.ask(b"ALICE\r\n") == b"Choose a different name, please:\r\n"
        assert bob.ask(b"\r\n") == b"Please enter your name:\r\n"
        assert bob.ask(b"\x01\r\n") == b"Please enter your name:\r\n"
        assert bob.ask(b"Bob\r\n") == b"Thank you, Bob! Type 'quit' to disconnect.\r\n"
        assert alice.hears(b"Bob joined!")
        assert unnamed.ask(b"\r\n") == b"Please enter your name:\r\n"  # the news of Bob were not for it


def test_control4_4_names_beyond_ascii_survive(chat: Program) -> None:
    with Person(chat, "Zoë 日本".encode()) as zoe, Person(chat, b"\x80\xff") as raw:
        assert zoe.hears(b"\x80\xff joined!")
        assert raw.ask(b"\xfe\r\n") == b"You wrote: \xfe\r\n"
        assert zoe.hears(b"\x80\xff wrote: \xfe")


def test_control4_4_what_one_writes_goes_to_all_who_have_a_name(chat: Program) -> None:
    with Person(chat, b"Alice") as alice, Person(chat, b"Bob") as bob, Person(chat) as unnamed:
        assert alice.hears(b"Bob joined!")
        alice.send(b"hi\r")
        assert unnamed.ask(b"\r\n") == b"Please enter your name:\r\n"  # so much time has passed
        assert alice.ask(b"\n") == b"You wrote: hi\r\n"
        assert bob.hears(b"Alice wrote: hi")
        assert alice.ask(b"\r\nQUIT\r\n") == b"You wrote: QUIT\r\n"
        assert bob.hears(b"Alice wrote: QUIT")
        assert unnamed.ask(b"\r\n") == b"Please enter your name:\r\n"


def test_control4_4_quit_is_a_name_at_first_and_the_end_later(chat: Program) -> None:
    people = [Person(chat, b"quit"), *(Person(chat) for _ in range(4))]
    assert people[1].ask(b"Bob\r\n").startswith(b"Thank you, Bob!")
    assert people[0].hears(b"Bob joined!")
    people[0].send(b"quit\r\n")
    assert people[0].everything() == b"Goodbye, quit!\r\n"
    assert people[1].hears(b"quit disconnected!")
    people.append(Person(chat))  # the place is free
    for person in people:
        person.__exit__()


def test_control4_4_a_last_line_without_its_end_counts(chat: Program) -> None:
    with Person(chat, b"Alice") as alice, Person(chat) as dan:
        dan.send(b"Dan")
        dan.socket.shutdown(socket.SHUT_WR)
        assert alice.hears(b"Dan joined!")
        assert alice.hears(b"Dan disconnected!")
        assert dan.everything() == b"Thank you, Dan! Type 'quit' to disconnect.\r\n"


def test_control4_4_who_leaves_unnamed_leaves_without_a_word(chat: Program) -> None:
    with Person(chat, b"Alice") as alice:
        Person(chat).__exit__()
        with Person(chat, b"Bob"):
            assert alice.hears(b"Bob joined!")


def test_control4_4_at_the_end_everybody_is_told(chat: Program) -> None:
    with Person(chat, b"Alice") as alice, Person(chat, b"Bob") as bob, Person(chat) as unnamed:
        assert alice.hears(b"Bob joined!")
        chat.send_signal(15)
        for person in (alice, bob, unnamed):
            assert person.everything() == b"Server is shutting down!\r\n"
    assert chat.outcome() == (0, "", "")


@pytest.fixture
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chat", CHAT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.gen_test
async def test_control4_4_stopped_and_started_again_there_is_room_for_five_again(
    serving: Serving, module: ModuleType
) -> None:
    async def arrive() -> Peer:
        peer = serving.connect(server)
        assert await peer.receive(len(WELCOME)) == WELCOME
        return peer

    server: TCPServer = module.ChatServer()
    serving.servers.append(server)
    for _ in range(2):
        server.listen(0, "127.0.0.1")
        people = [await arrive() for _ in range(5)]
        assert await serving.connect(server).receive(6) == b"Sorry,"
        ending = asyncio.create_task(server.shutdown())
        for peer in people:
            assert await peer.receive_all() == b"Server is shutting down!\r\n"
            peer.close()
        for peer in serving.peers:
            peer.close()
        await ending
        assert server.addresses == []


@pytest.mark.gen_test
async def test_control4_4_stopped_while_somebody_reads_too_slowly_nothing_more_is_taken_in(
    serving: Serving, module: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    # No small receive buffer: with one, a client that reads again after a pause gets a few KB for each window probe of
    # the server's kernel, and during the pause the time between probes doubles. The chat's five seconds are too short
    # then.
    module.ChatServer.send_buffer_size = 65536
    server: TCPServer = module.ChatServer()
    serving.started(server)
    peer = serving.connect(server)
    lines = 4000
    sending = asyncio.create_task(peer.send_all(b"Alice\r\n" + (b"x" * 1000 + b"\r\n") * lines))
    await eventually(lambda: [stream for stream in server.streams if stream.queued])
    (stream,) = server.streams
    await eventually(lambda: stream.buffered and not stream.reading())
    ending = asyncio.create_task(server.shutdown())
    received = await peer.receive_all()
    assert received.endswith(b"You wrote: " + b"x" * 1000 + b"\r\nServer is shutting down!\r\n")
    assert received.count(b"You wrote: ") < lines
    await sending
    peer.close()
    await ending
    assert caplog.records == []
