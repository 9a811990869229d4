"""Context variables (`contextvars`): a client never sees what another client's code has set.

Every callback that users write notes what it sees and leaves its client's name behind. A client's first callback is to
see what was set where the server was told to listen, and all later ones what its own callbacks have set.
"""

import ast
import asyncio
import contextlib
import gc
import queue
import re
import socket
import ssl
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tornado.web
import tornado.websocket

from iostreamsrv import (
    CloseReason,
    Event,
    IOLoop,
    IOStream,
    TCPServer,
    add_accept_handler,
    bind_sockets,
    bind_unix_socket,
)
from iostreamsrv.framing import Framing
from iostreamsrv.httpserver import HTTPServer
from iostreamsrv.styles import BlockingServer, CallbackServer, Notice, QueueServer
from iostreamsrv.styles.callbacks import CALLBACKS
from tests.support.engines import on_every_loop
from tests.support.http import UPGRADE, answer, frame, head, request
from tests.support.modules import inside
from tests.support.peers import MakePair, Peer, TLSEnd, TLSPeer, tls_contexts
from tests.support.servers import Serving
from tests.support.threads import Call, exactly
from tests.support.threads import connect as connect_blocking
from tests.support.waiting import PATIENCE, eventually, turns

WHO: ContextVar[str] = ContextVar("who", default="nobody")


def as_server(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Call ``function``, which has a server listen, where WHO is "server"."""

    def call() -> Any:
        WHO.set("server")
        return function(*arguments, **keywords)

    return Context().run(call)


def name_of(stream: Any) -> str:
    return f"client {stream.id}"


class Seen:
    """What callbacks have seen, client by client, in the order of their calls."""

    def __init__(self) -> None:
        self.of: dict[str, list[tuple[str, str]]] = {}

    def __call__(self, callback: str, name: str) -> None:
        self.of.setdefault(name, []).append((callback, WHO.get()))
        WHO.set(name)

    def names(self, name: str) -> set[str]:
        """Of the callbacks that were called for a client."""
        return {callback for callback, _ in self.of.get(name, ())}

    def check(self) -> None:
        """Each client began with what the server has, and went on with its own."""
        for name, calls in self.of.items():
            expected = ["server"] + [name] * (len(calls) - 1)
            assert calls == [(callback, value) for (callback, _), value in zip(calls, expected, strict=True)], name


loops = on_every_loop[1]
"""Both hubs, and uvloop."""


# ---- a server with coroutines or functions for handlers


class Walked(TCPServer):
    """Does what its clients ask for, and notes what all of its callbacks see."""

    linger = 0.05

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen = Seen()
        self.events.subscribe(self.on_event)

    def on_event(self, event: Event) -> None:
        if event.stream is not None:
            self.seen(f"event {event.kind}", name_of(event.stream))

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        self.seen("handle_stream", name_of(stream))
        stream.set_close_callback(partial(self.seen, "close callback", name_of(stream)))
        await self.serve(stream)

    async def serve(self, stream: IOStream) -> None:
        while (way := await stream.read_until_match(partial(self.match, name_of(stream)))) != "return":
            await WAYS[way](self, stream)
            if not stream.closed():
                await stream.write(b"done\n")
        stream.set_close_callback(None)  # or the return would leave the stream open

    def match(self, name: str, buffer: bytearray) -> tuple[int, str] | None:
        self.seen("match", name)
        end = buffer.find(b"\n") + 1
        return (end, buffer[: end - 1].decode()) if end else None

    async def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        self.seen("handle_close", name_of(stream))
        await asyncio.sleep(0)
        self.seen("handle_close", name_of(stream))


class WalkedFunctions(Walked):
    """Its handlers are plain functions."""

    def handle_stream(self, stream: IOStream, address: Any) -> None:  # type: ignore[override]
        self.seen("handle_stream", name_of(stream))
        stream.set_close_callback(partial(self.seen, "close callback", name_of(stream)))
        asyncio.ensure_future(self.serve(stream)).add_done_callback(lambda serving: self.served(serving, stream))

    def served(self, serving: "asyncio.Future[None]", stream: IOStream) -> None:
        serving.exception()
        stream.close()

    def handle_close(self, stream: IOStream, reason: CloseReason) -> None:  # type: ignore[override]
        self.seen("handle_close", name_of(stream))


async def nothing(server: TCPServer, stream: IOStream) -> None:
    pass


async def close(server: TCPServer, stream: IOStream) -> None:
    stream.close()


async def aclose(server: TCPServer, stream: IOStream) -> None:
    await stream.aclose()


async def abort(server: TCPServer, stream: IOStream) -> None:
    stream.abort()


async def kick(server: TCPServer, stream: IOStream) -> None:
    stream.kick("go")


async def kick_all(server: TCPServer, stream: IOStream) -> None:
    server.kick_all()


async def raise_error(server: TCPServer, stream: IOStream) -> None:
    raise ZeroDivisionError


async def close_in_a_task(server: TCPServer, stream: IOStream) -> None:
    async def later() -> None:
        WHO.set("a task of " + name_of(stream))
        await asyncio.sleep(0)
        stream.close()

    await asyncio.create_task(later())


async def time_out(server: TCPServer, stream: IOStream) -> None:
    stream.set_timeouts(idle=0.05)


async def resume(server: TCPServer, stream: IOStream) -> None:
    server.suspend()
    await asyncio.sleep(0)
    server.resume()


async def replace_options(server: TCPServer, stream: IOStream) -> None:
    server.replace_options(max_connections=10)


async def shut_down(server: TCPServer, stream: IOStream) -> None:
    await server.shutdown(PATIENCE)


async def kick_others(server: TCPServer, stream: IOStream) -> None:
    for other in server.streams:
        if other is not stream:
            other.kick()


async def start_tls(server: TCPServer, stream: IOStream) -> None:
    await stream.write(b"go ahead\n")
    secured = await stream.start_tls(True, tls_contexts()[0])
    assert isinstance(server, Walked)
    await server.serve(secured)


WAYS: dict[str, Callable[[TCPServer, IOStream], Awaitable[None]]] = {
    "nothing": nothing,
    "close": close,
    "aclose": aclose,
    "abort": abort,
    "kick": kick,
    "kick all": kick_all,
    "error": raise_error,
    "close in a task": close_in_a_task,
    "time out": time_out,
    "resume": resume,
    "replace options": replace_options,
    "shut down": shut_down,
    "kick others": kick_others,
    "start tls": start_tls,
}

FREEING: dict[str, dict[str, Any]] = {
    "return": {"max_connections": 1},
    "close": {"max_connections": 1},
    "aclose": {"max_connections": 1},
    "abort": {"max_connections": 1},
    "kick": {"max_connections": 1},
    "kick all": {"max_connections": 1},
    "error": {"max_connections": 1},
    "close in a task": {"max_connections": 1},
    "time out": {"max_connections": 1},
    "leave": {"max_connections": 1},
    "replace options": {"max_connections": 1},
    "be evicted": {"max_connections": 1, "when_full": "evict"},
    "resume": {},
    "nothing": {},
}
"""How a first client may give its place, or the listener, to a second one; and with what options that matters."""

TRANSPORTS: dict[str, tuple[type[Walked], dict[str, Any]]] = {
    "tcp": (Walked, {}),
    "functions": (WalkedFunctions, {}),
    "unix": (Walked, {}),
    "tls": (Walked, {"ssl_options": True}),
    "proxy": (Walked, {"proxy_protocol": ["127.0.0.0/8"]}),
    "proxy and tls": (WalkedFunctions, {"proxy_protocol": ["127.0.0.0/8"], "ssl_options": True}),
}


def listening(serving: Serving, transport: str, directory: Path, **options: Any) -> Walked:
    kind, more = TRANSPORTS[transport]
    options |= more
    if "ssl_options" in options:
        options["ssl_options"] = tls_contexts()[0]
    server = kind(**options)
    serving.servers.append(server)
    if transport == "unix":
        as_server(server.add_socket, bind_unix_socket(str(directory / "socket")))
    else:
        as_server(server.listen, 0, "127.0.0.1")
    return server


async def connect(serving: Serving, server: TCPServer, transport: str = "tcp") -> Peer:
    """A client that is through with what comes before the handler."""
    address = server.addresses[0]
    raw = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    raw.connect(address)
    if "proxy" in transport:
        raw.sendall(b"PROXY TCP4 127.0.0.1 127.0.0.1 1000 2000\r\n")
    peer = Peer(raw)
    serving.peers.append(peer)
    return await secured(serving, peer) if "tls" in transport else peer


async def secured(serving: Serving, peer: Peer) -> Peer:
    end = TLSEnd(peer.socket, tls_contexts()[1])
    over_tls = TLSPeer(end)
    serving.peers.append(over_tls)
    await eventually(end.handshake)
    return over_tls


async def ask(peer: Peer, way: str) -> None:
    """In two pieces, for the second of which the server has to wait."""
    peer.send(way[:2].encode())
    await turns(20)
    peer.send(way[2:].encode() + b"\n")


async def done(peer: Peer, way: str = "nothing") -> None:
    await ask(peer, way)
    assert await peer.receive(5) == b"done\n"


async def ended(peer: Peer) -> None:
    with contextlib.suppress(ConnectionError):
        await peer.receive_all()


ROLE: ContextVar[str] = ContextVar("role", default="guest")


@loops
@pytest.mark.parametrize("way", ["close", "kick", "return", "resume"])
@pytest.mark.gen_test(timeout=20)
async def test_a_guest_never_gets_the_role_of_an_admin_whose_place_it_has(serving: Serving, way: str) -> None:
    async def handle(stream: IOStream, address: Any) -> None:
        while (line := await stream.read_until(b"\n")) != b"return\n":
            if line == b"login\n":
                ROLE.set("admin")
            else:
                await WAYS[line[:-1].decode()](server, stream)
            if not stream.closed():
                await stream.write(ROLE.get().encode())

    server = TCPServer(max_connections=2 if way == "resume" else 1, linger=0.01)
    server.handle_stream = handle  # type: ignore[method-assign]
    serving.started(server)
    admin, guest = await connect(serving, server), await connect(serving, server)
    admin.send(b"login\n")
    assert await admin.receive(5) == b"admin"
    admin.send(way.encode() + b"\n")
    if way == "resume":
        assert await admin.receive(5) == b"admin"
        guest = await connect(serving, server)
        admin.close()
    guest.send(b"nothing\n")
    assert await guest.receive(5) == b"guest"


EVERYTHING = {"event open", "handle_stream", "match", "close callback", "event close", "handle_close"}
"""What a `Walked` server has called for a client that has come and gone."""


@loops
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("way", FREEING)
@pytest.mark.gen_test(timeout=20)
async def test_a_client_never_sees_the_context_of_another(
    serving: Serving, tmp_path: Path, way: str, transport: str
) -> None:
    server = listening(serving, transport, tmp_path, **FREEING[way])
    first = await connect(serving, server, transport)
    await done(first)
    coming = asyncio.ensure_future(connect(serving, server, transport))
    await turns(20)
    if way == "leave":
        first.close()
    elif way == "resume":
        await done(first, way)
    elif way not in ("nothing", "be evicted"):
        await ask(first, way)
    second = await coming
    await done(second)
    await done(second)
    await ask(second, "close")
    await ended(second)
    first.close()
    await eventually(
        lambda: (
            [seen & EVERYTHING for seen in map(server.seen.names, server.seen.of)] == [EVERYTHING] * 2
            if way != "return"
            else not server.streams
        )
    )
    server.seen.check()
    assert len(server.seen.of) == 2


@loops
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.gen_test(timeout=20)
async def test_a_client_that_another_one_ends_is_told_in_its_own_context(
    serving: Serving, tmp_path: Path, transport: str
) -> None:
    server = listening(serving, transport, tmp_path)
    clients = [await connect(serving, server, transport) for _ in range(3)]
    for client in clients:
        await done(client)
    await done(clients[0], "kick others")
    for client in clients[1:]:
        await ended(client)
    await ask(clients[0], "close")
    await ended(clients[0])
    await eventually(lambda: list(map(server.seen.names, server.seen.of)) == [EVERYTHING] * 3)
    server.seen.check()


@loops
@pytest.mark.parametrize("again", ["stop", "shut down", "a new port"])
@pytest.mark.gen_test(timeout=20)
async def test_clients_begin_with_the_context_in_which_their_listener_was_opened(
    serving: Serving, tmp_path: Path, again: str
) -> None:
    server = listening(serving, "tcp", tmp_path)
    before = await connect(serving, server)
    await done(before)
    if again == "shut down":
        before.close()
        await server.shutdown()
    elif again == "stop":
        server.stop()

    def listen() -> None:
        WHO.set("again")
        server.listen(0, "127.0.0.1")

    copy_context().run(listen)
    after = Peer(socket.create_connection(server.addresses[-1]))
    serving.peers.append(after)
    await done(after)
    await eventually(lambda: len(server.seen.of) == 2)
    values = [calls[0][1] for calls in server.seen.of.values()]
    assert values == ["server", "again"]


@loops
@pytest.mark.gen_test(timeout=20)
async def test_whom_a_shutdown_takes_in_does_not_see_the_context_of_its_caller(
    serving: Serving, tmp_path: Path
) -> None:
    server = listening(serving, "tcp", tmp_path)
    first = await connect(serving, server)
    await done(first)
    server.suspend()
    second = await connect(serving, server)  # waits in the kernel's queue
    await ask(first, "shut down")
    await done(second)
    await ask(second, "close")
    await ended(second)
    assert await first.receive(5) == b"done\n"
    first.close()
    await eventually(lambda: list(map(server.seen.names, server.seen.of)) == [EVERYTHING] * 2)
    server.seen.check()


@loops
@pytest.mark.parametrize("started", ["listen", "bind and start", "add_socket"])
@pytest.mark.gen_test(timeout=20)
async def test_the_context_is_that_of_the_call_that_has_it_accept(serving: Serving, started: str) -> None:
    server = Walked()
    serving.servers.append(server)
    if started == "listen":
        as_server(server.listen, 0, "127.0.0.1")
    elif started == "bind and start":
        server.bind(0, "127.0.0.1")
        as_server(server.start)
    else:
        as_server(server.add_socket, bind_sockets(0, "127.0.0.1")[0])
    WHO.set("somebody else")
    task = asyncio.ensure_future(server.serve_forever())
    for _ in range(2):
        await done(await connect(serving, server))
    assert len(server.seen.of) == 2
    server.seen.check()
    task.cancel()
    await asyncio.wait([task])


def test_serve_forever_in_another_loop_keeps_the_context() -> None:
    server = Walked(linger=0.01, drain_idle=0.01)
    asyncio.set_event_loop(asyncio.new_event_loop())
    before = IOLoop.current()
    as_server(server.listen, 0, "127.0.0.1")

    async def main() -> None:
        WHO.set("main")
        task = asyncio.ensure_future(server.serve_forever())
        for _ in range(2):
            with socket.create_connection(server.addresses[0]) as client:
                await done(Peer(client))
        task.cancel()
        await asyncio.wait([task])

    try:
        asyncio.run(main())
    finally:
        before.close()
        asyncio.set_event_loop(None)
    assert len(server.seen.of) == 2
    server.seen.check()


# ---- those who are turned away


@loops
@pytest.mark.parametrize("kind", ["coroutine", "function"])
@pytest.mark.gen_test(timeout=20)
async def test_each_one_who_is_rejected_begins_with_the_context_of_the_server(serving: Serving, kind: str) -> None:
    class Rejecting(Walked):
        async def handle_reject(self, stream: IOStream, address: Any) -> None:
            self.seen("handle_reject", name_of(stream))
            await stream.write(b"sorry\n")
            self.seen("handle_reject", name_of(stream))

    class RejectingFunction(Walked):
        def handle_reject(self, stream: IOStream, address: Any) -> None:
            self.seen("handle_reject", name_of(stream))
            stream.write(b"sorry\n")

    server = (Rejecting if kind == "coroutine" else RejectingFunction)(max_connections=1, when_full="reject")
    serving.servers.append(server)
    as_server(server.listen, 0, "127.0.0.1")
    await done(await connect(serving, server))
    for _ in range(3):
        peer = await connect(serving, server)
        assert await peer.receive_all() == b"sorry\n"
        peer.close()
    await eventually(lambda: sum("event close" in server.seen.names(name) for name in server.seen.of) == 3)
    assert sum("handle_reject" in server.seen.names(name) for name in server.seen.of) == 3
    server.seen.check()


# ---- functions that a read calls


class Lines(Framing[str]):
    def __init__(self, stream: IOStream, seen: Seen) -> None:
        super().__init__(stream)
        self.seen = seen

    def decode(self, buffer: bytearray) -> tuple[int, str] | None:
        self.seen("decode", name_of(self.stream))
        end = buffer.find(b"\n") + 1
        return (end, buffer[:end].decode()) if end else None

    def encode(self, message: str) -> bytes:
        self.seen("encode", name_of(self.stream))
        return message.encode()


@loops
@pytest.mark.gen_test(timeout=20)
async def test_a_framing_decodes_and_encodes_in_the_context_of_its_client(serving: Serving) -> None:
    seen = Seen()

    async def handle(stream: IOStream, address: Any) -> None:
        lines = Lines(stream, seen)
        async for line in lines:
            await lines.write(line)

    server = TCPServer()
    server.handle_stream = handle  # type: ignore[method-assign]
    serving.servers.append(server)
    as_server(server.listen, 0, "127.0.0.1")
    peers = [await connect(serving, server) for _ in range(3)]
    for _ in range(2):
        for peer in peers:
            await ask(peer, "hello")
            assert await peer.receive(6) == b"hello\n"
    assert len(seen.of) == 3
    seen.check()


@loops
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.gen_test
async def test_a_match_function_sees_what_the_task_that_awaits_it_sees(
    make_pair: MakePair, engine: str, end: bool
) -> None:
    """Also when the end of the stream has it called for the last time."""
    found: list[str] = []

    def match(buffer: bytearray) -> tuple[int, bytes] | None:
        found.append(WHO.get())
        return (5, bytes(buffer)) if len(buffer) == 5 else None

    async def read(name: str, stream: IOStream) -> Any:
        WHO.set(name)
        reading = stream.read_until_match(match)
        return await asyncio.wait_for(reading, PATIENCE)

    one, other = make_pair(), make_pair()
    reads = [asyncio.ensure_future(read(name, pair[0])) for name, pair in {"one": one, "other": other}.items()]
    await turns()
    for _, peer in (one, other):
        peer.send(b"abc")
    await eventually(lambda: len(found) == 2)
    for stream, peer in (one, other):
        if end:
            calls = len(found)
            peer.close()
            await eventually(stream.closed)
            await eventually(lambda calls=calls: len(found) > calls)  # type: ignore[misc]
        else:
            peer.send(b"de")
    results = await asyncio.gather(*reads, return_exceptions=True)
    assert found[:2] == ["one", "other"]
    assert set(found) == {"one", "other"}
    if not end:
        assert results == [b"abcde"] * 2


@loops
@pytest.mark.gen_test(timeout=20)
async def test_a_match_function_that_nobody_awaits_yet_sees_its_client(serving: Serving) -> None:
    found: list[tuple[str, str]] = []
    release = asyncio.Event()

    async def handle(stream: IOStream, address: Any) -> None:
        WHO.set(name_of(stream))
        reading = stream.read_until_match(partial(match, name_of(stream)))
        await release.wait()
        await stream.write(await reading)

    def match(name: str, buffer: bytearray) -> tuple[int, bytes] | None:
        found.append((name, WHO.get()))
        return (1, bytes(buffer))

    server = TCPServer()
    server.handle_stream = handle  # type: ignore[method-assign]
    serving.servers.append(server)
    as_server(server.listen, 0, "127.0.0.1")
    peers = [await connect(serving, server) for _ in range(3)]
    await eventually(lambda: len(server.streams) == 3)
    await turns(20)
    for peer in peers:
        peer.send(b"x")
    await eventually(lambda: len(found) == 3)
    release.set()
    for peer in peers:
        assert await peer.receive(1) == b"x"
    assert [name for name, value in found if name != value] == []


# ---- TLS


def sni_context(called: list[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def choose(connection: Any, name: str | None, of: ssl.SSLContext) -> None:
        called.append(WHO.get())
        WHO.set(f"sni {len(called)}")
        connection.context = tls_contexts()[0]

    context.sni_callback = choose  # type: ignore[assignment]
    return context


@pytest.fixture
def sni(tmp_path: Path) -> tuple[ssl.SSLContext, list[str]]:
    from iostreamsrv.certificates import self_signed

    called: list[str] = []
    context = sni_context(called)
    context.load_cert_chain(**self_signed().write(tmp_path))
    return context, called


@loops
@pytest.mark.parametrize("proxied", [False, True])
@pytest.mark.gen_test(timeout=20)
async def test_an_sni_callback_runs_in_the_context_of_its_client(
    serving: Serving, sni: tuple[ssl.SSLContext, list[str]], proxied: bool
) -> None:
    handled: list[str] = []

    async def handle(stream: IOStream, address: Any) -> None:
        handled.append(WHO.get())
        await stream.write(b"hello")
        await stream.read_until_close()

    context, called = sni
    server = TCPServer(ssl_options=context, proxy_protocol=["127.0.0.0/8"] if proxied else None)
    server.handle_stream = handle  # type: ignore[method-assign]
    serving.servers.append(server)
    as_server(server.listen, 0, "127.0.0.1")
    for _ in range(3):
        peer = await connect(serving, server, "proxy and tls" if proxied else "tls")
        assert await peer.receive(5) == b"hello"
    assert called == ["server"] * 3
    assert handled == ["sni 1", "sni 2", "sni 3"]


@loops
@pytest.mark.gen_test(timeout=20)
async def test_a_stream_that_goes_on_under_tls_has_the_context_of_the_one_before(
    serving: Serving, tmp_path: Path
) -> None:
    server = listening(serving, "tcp", tmp_path)
    for _ in range(2):
        peer = await connect(serving, server)
        await done(peer)
        await ask(peer, "start tls")
        assert await peer.receive(9) == b"go ahead\n"
        peer = await secured(serving, peer)
        await done(peer)
        await ask(peer, "close")
        await ended(peer)
    await eventually(lambda: [seen >= EVERYTHING for seen in map(server.seen.names, server.seen.of)] == [True] * 2)
    server.seen.check()


# ---- streams of one's own


@loops
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.gen_test
async def test_a_close_callback_of_a_stream_of_ones_own_sees_what_was_set_when_it_was_given(
    make_pair: MakePair, asynchronous: bool
) -> None:
    found: list[str] = []

    async def note() -> None:
        await asyncio.sleep(0)
        found.append(WHO.get())

    def use(name: str, stream: IOStream) -> None:
        WHO.set(name)
        stream.set_close_callback(note if asynchronous else lambda: found.append(WHO.get()))  # type: ignore[arg-type]

    stream, _ = make_pair()
    copy_context().run(use, "first", stream)
    copy_context().run(use, "second", stream)
    WHO.set("who closes it")
    stream.close()
    await eventually(lambda: found)
    copy_context().run(use, "third", stream)  # it is closed already
    await eventually(lambda: len(found) == 2)
    assert found == ["second", "third"]


@loops
@pytest.mark.gen_test
async def test_each_call_of_an_accept_handler_begins_with_what_was_set_when_it_was_added(io_loop: IOLoop) -> None:
    found: list[str] = []
    (listener,) = bind_sockets(0, "127.0.0.1")

    def accepted(connection: socket.socket, address: Any) -> None:
        found.append(WHO.get())
        WHO.set(str(address))
        connection.close()

    remove = as_server(add_accept_handler, listener, accepted)
    for count in range(1, 4):
        with socket.create_connection(listener.getsockname()):
            await eventually(lambda count=count: len(found) == count)  # type: ignore[misc]
    remove()
    listener.close()
    assert found == ["server"] * 3


# ---- callbacks


class WalkedCallbacks(CallbackServer):
    linger = 0.05

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen = Seen()
        self.listened: list[str] = []

    def on_listen(self, address: Any) -> None:
        self.listened.append(WHO.get())

    def on_connect(self, stream: IOStream) -> None:
        self.seen("on_connect", name_of(stream))

    def on_data(self, stream: IOStream, data: bytes) -> Any:
        self.seen("on_data", name_of(stream))
        if data.startswith(b"raise"):
            raise ZeroDivisionError
        if data.startswith(b"kick"):
            stream.kick()
        if not data.endswith(b"\n"):
            return 0
        stream.write(data)
        return len(data)

    def on_write(self, stream: IOStream) -> None:
        self.seen("on_write", name_of(stream))

    def on_error(self, stream: IOStream, error: Exception) -> None:
        self.seen("on_error", name_of(stream))

    def on_disconnect(self, stream: IOStream, unread: bytes, error: str) -> None:
        self.seen("on_disconnect", name_of(stream))

    def on_tick(self, stream: IOStream) -> None:
        self.seen("on_tick", name_of(stream))


def later(name: str) -> Any:
    """The callback of this name, as a coroutine."""
    function = getattr(WalkedCallbacks, name)

    async def call(*arguments: Any) -> Any:
        await asyncio.sleep(0)
        return function(*arguments)

    return call


LATER: dict[str, Any] = {name: later(name) for name in CALLBACKS}
WalkedCoroutines = type("WalkedCoroutines", (WalkedCallbacks,), LATER)


async def converse(peer: Peer, seen: Seen, count: int) -> str:
    """Have all callbacks called that do not end it; the name of the client, the count-th that came."""
    for text in (b"hello\n", b"hello\n"):
        peer.send(text[:2])
        await turns(20)
        peer.send(text[2:])
        assert await peer.receive(len(text)) == text
    name = list(seen.of)[count - 1]
    await eventually(lambda: seen.names(name) >= {"on_connect", "on_data", "on_write", "on_tick"})
    return name


@loops
@pytest.mark.parametrize("kind", [WalkedCallbacks, WalkedCoroutines])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.gen_test(timeout=20)
async def test_no_callback_sees_the_context_of_another_client(serving: Serving, kind: Any, together: bool) -> None:
    server = kind(tick_interval=0.01, when_full="wait", max_connections=4 if together else 1)
    serving.servers.append(server)
    as_server(server.listen, 0, "127.0.0.1")
    first = await connect(serving, server)
    await converse(first, server.seen, 1)
    coming = [await connect(serving, server) for _ in range(2)]
    if not together:
        first.send(b"kick")
    second = await converse(coming[0], server.seen, 2)
    coming[0].send(b"raise")
    await ended(coming[0])
    await eventually(lambda: server.seen.names(second) == set(CALLBACKS) - {"on_listen"})
    await converse(coming[1], server.seen, 3)
    assert server.listened == ["server"]
    server.seen.check()
    for peer in serving.peers:
        peer.close()
    await eventually(lambda: not server.streams)
    server.seen.check()


@loops
@pytest.mark.parametrize("kind", [WalkedCallbacks, WalkedCoroutines])
@pytest.mark.gen_test(timeout=20)
async def test_on_error_of_a_rejected_client_begins_with_the_context_of_the_server(serving: Serving, kind: Any) -> None:
    server = kind(max_connections=1)
    serving.servers.append(server)
    as_server(server.listen, 0, "127.0.0.1")
    first = await connect(serving, server)
    first.send(b"hello\n")
    await first.receive(6)
    for _ in range(3):
        await ended(await connect(serving, server))
    await eventually(lambda: len(server.seen.of) == 4)
    assert [server.seen.names(name) for name in server.seen.of][1:] == [{"on_error"}] * 3
    server.seen.check()


def test_on_listen_runs_in_the_context_of_listen_also_outside_a_loop() -> None:
    found: list[str] = []

    async def on_listen(address: Any) -> None:
        found.append(WHO.get())

    server = CallbackServer(on_listen=on_listen)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    as_server(server.listen, 0, "127.0.0.1")

    async def main() -> None:
        WHO.set("main")
        task = asyncio.ensure_future(server.serve_forever())
        await eventually(lambda: found)
        task.cancel()
        await asyncio.wait([task])

    io_loop = IOLoop.current()
    try:
        loop.run_until_complete(main())
    finally:
        io_loop.close()
        asyncio.set_event_loop(None)
    assert found == ["server"]


# ---- HTTP


class WalkedRequest(tornado.web.RequestHandler):
    def initialize(self) -> None:
        self.client = name_of(self.request.connection.stream)  # type: ignore[union-attr]
        self.settings["seen"]("initialize", self.client)

    def prepare(self) -> None:
        self.settings["seen"]("prepare", self.client)

    async def get(self) -> None:
        self.settings["seen"]("get", self.client)
        await asyncio.sleep(0)
        self.settings["seen"]("get", self.client)
        self.write("done")

    def on_finish(self) -> None:
        self.settings["seen"]("on_finish", self.client)


class Waiting(WalkedRequest):
    async def get(self) -> None:
        self.settings["seen"]("get", self.client)
        self.settings["waiting"].set()
        await self.settings["gone"].wait()

    def on_connection_close(self) -> None:
        self.settings["seen"]("on_connection_close", self.client)
        self.settings["gone"].set()


class WalkedSocket(tornado.websocket.WebSocketHandler):
    def initialize(self) -> None:
        self.client = name_of(self.request.connection.stream)  # type: ignore[union-attr]
        self.settings["seen"]("initialize", self.client)

    def open(self) -> None:
        self.settings["seen"]("open", self.client)

    async def on_message(self, message: str | bytes) -> None:
        self.settings["seen"]("on_message", self.client)
        await self.write_message(message)

    def on_close(self) -> None:
        self.settings["seen"]("on_close", self.client)


class WalkedHTTP(HTTPServer):
    def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        self.request_callback.settings["seen"]("handle_close", name_of(stream))


HTTP = {
    "/": {"initialize", "prepare", "get", "on_finish", "handle_close"},
    "/waiting": {"initialize", "prepare", "get", "on_connection_close", "handle_close"},
    "/socket": {"initialize", "open", "on_message", "on_close", "handle_close"},
}
"""What is called for a client that asks for a path."""


@loops
@pytest.mark.parametrize("path", HTTP)
@pytest.mark.gen_test(timeout=20)
async def test_no_http_request_sees_the_context_of_another_client(serving: Serving, path: str) -> None:
    """Requests of one client may: as in Tornado they have copies of the context of their connection."""
    seen = Seen()
    routes: Any = [("/", WalkedRequest), ("/waiting", Waiting), ("/socket", WalkedSocket)]
    waiting, gone = asyncio.Event(), asyncio.Event()
    application = tornado.web.Application(routes, seen=seen, waiting=waiting, gone=gone, log_function=lambda _: None)
    server: Any = WalkedHTTP(application, max_connections=1)
    serving.servers.append(server)
    as_server(server.listen, 0, "127.0.0.1")
    coming = [await connect(serving, server) for _ in range(3)]
    for peer in coming:
        waiting.clear()
        gone.clear()
        if path == "/":
            for _ in range(2):
                peer.send(request())
                assert await answer(peer) == (200, b"done")
        elif path == "/waiting":
            peer.send(request(path))
            await waiting.wait()
        else:
            peer.send(request(path, *UPGRADE))
            await head(peer)
            peer.send(frame(b"hello"))
            assert (await peer.receive(7))[2:] == b"hello"
        peer.close()
        await eventually(lambda: any(HTTP[path] <= seen.names(name) for name in list(seen.of)[-1:]))
    await eventually(lambda: not server.streams)
    assert len(seen.of) == 3
    strangers = [(name, call) for name, calls in seen.of.items() for call in calls if call[1] not in ("server", name)]
    assert strangers == []


# ---- threads


class Blocking(BlockingServer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.found: queue.SimpleQueue[str] = queue.SimpleQueue()

    def handle(self, sock: Any, address: Any) -> None:
        self.found.put(WHO.get())
        WHO.set(str(address))
        sock.sendall(sock.recv(10))


def blocking_client(server: Any, tls: bool) -> Any:
    client: Any = connect_blocking(server)
    if tls:
        client = tls_contexts()[1].wrap_socket(client)
    return client


@pytest.mark.parametrize("tls", [False, True])
def test_handle_in_a_thread_begins_with_the_context_of_the_server(tls: bool) -> None:
    with Blocking(threads=1, ssl_options=tls_contexts()[0] if tls else None) as server:
        as_server(server.listen, 0, "127.0.0.1")
        for _ in range(3):
            with blocking_client(server, tls) as client:
                client.sendall(b"hello")
                assert exactly(client, 5) == b"hello"
        assert [server.found.get(timeout=PATIENCE) for _ in range(3)] == ["server"] * 3


@pytest.mark.parametrize("pumped", [False, True])
def test_notify_sees_what_it_has_set_for_the_same_client_only(pumped: bool) -> None:
    seen = Seen()

    def notify(handle: Any, notice: Notice) -> None:
        seen(str(notice), str(handle.address))
        if notice is Notice.RECV:
            handle.sendall(handle.recv(10))

    server = BlockingServer(notify=notify)
    ending = threading.Event()

    def pump() -> None:
        while not ending.is_set():
            server.process(0.05)

    if not pumped:
        server.start()
    as_server(server.listen, 0, "127.0.0.1")
    pumping = Call(pump) if pumped else None
    try:
        clients = [blocking_client(server, False) for _ in range(3)]
        for _ in range(2):
            for client in clients:
                client.sendall(b"hello")
                assert exactly(client, 5) == b"hello"
        for client in clients:
            client.close()
        done = threading.Event()
        for _ in range(500):
            if [seen.names(name) for name in list(seen.of)] == [{"connect", "recv", "disconnect"}] * 3:
                break
            done.wait(0.01)
    finally:
        ending.set()
        if pumping is not None:
            pumping.result()
        server.stop()
    assert [seen.names(name) for name in seen.of] == [{"connect", "recv", "disconnect"}] * 3
    seen.check()


def test_the_callback_of_a_queue_server_sees_its_own_client_only() -> None:
    seen = Seen()

    def echo(address: Any, sending: Any, data: bytes) -> None:
        seen("callback", str(address))
        sending.put(data)

    server = as_server(QueueServer, "localhost", 0, echo)
    running = Call(server.run)
    try:
        clients = [connect_blocking(server) for _ in range(3)]
        for _ in range(2):
            for client in clients:
                client.sendall(b"hello")
                assert exactly(client, 5) == b"hello"
        for client in clients:
            client.close()
    finally:
        server.stop()
        running.result()
    assert len(seen.of) == 3
    seen.check()


# ---- what there is


def test_every_callback_that_a_user_can_write_is_walked() -> None:
    """A new one is to be added to the walks above."""
    callbacks = {
        name
        for kind in (TCPServer, CallbackServer, BlockingServer)
        for name in vars(kind)
        if re.match("handle|notify|on_", name)
    }
    walked = {"handle_stream", "handle_reject", "handle_close", "handle", "notify", *CALLBACKS}
    assert callbacks == walked
    assert {name for name in vars(Framing) if re.match("decode|encode", name)} == {"decode", "encode"}


@loops
@pytest.mark.gen_test(timeout=20)
async def test_a_stream_that_delivers_its_last_bytes_ends_in_its_own_context(serving: Serving) -> None:
    """Its handler is over long before."""
    found: list[tuple[str, str]] = []
    returned = asyncio.Event()

    class Hasty(TCPServer):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            WHO.set(name_of(stream))
            await stream.read_until(b"\n")
            assert stream.write(bytes(60_000)).done()  # corked
            stream.close()
            returned.set()

        def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
            found.append((name_of(stream), WHO.get()))

    server = serving.started(Hasty(send_buffer_size=4096))
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(server.addresses[0])
    peer = Peer(client)
    serving.peers.append(peer)
    await eventually(lambda: any(stream.reading() for stream in server.streams))
    peer.send(b"one\ntwo\n")
    await returned.wait()
    await turns(20)
    assert not found
    assert len(await peer.receive(60_000)) == 60_000
    await eventually(lambda: found)
    assert [name for name, value in found if name != value] == []


STREAM: ContextVar[IOStream | None] = ContextVar("stream", default=None)


@loops
@pytest.mark.gen_test(timeout=20)
async def test_what_a_client_has_set_is_gone_with_it(serving: Serving) -> None:
    """Without the garbage collector, also if it is the stream itself."""
    streams: weakref.WeakSet[IOStream] = weakref.WeakSet()

    class Remembering(TCPServer):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            streams.add(stream)
            STREAM.set(stream)
            stream.set_close_callback(turns)  # type: ignore[arg-type]
            await stream.read_bytes(1)
            stream.close()

        async def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
            assert STREAM.get() is stream

    server = serving.started(Remembering())
    gc.disable()
    try:
        for _ in range(3):
            peer = await connect(serving, server)
            peer.send(b"x")
            await ended(peer)
        await eventually(lambda: not streams)
    finally:
        gc.enable()


def contexts() -> int:
    gc.collect()
    return sum(type(each) is Context for each in gc.get_objects())


@pytest.mark.gen_test(timeout=20)
async def test_an_idle_client_has_one_context(serving: Serving) -> None:
    async def handle(stream: IOStream, address: Any) -> None:
        await stream.read_until_match(lambda buffer: None)

    server = TCPServer()
    server.handle_stream = handle  # type: ignore[method-assign]
    serving.started(server)
    await eventually(lambda: True)
    before = contexts()
    for _ in range(100):
        await connect(serving, server)
    await eventually(lambda: len(server.streams) == 100)
    await turns(20)
    assert contexts() - before <= 100 + 10


REGISTERING = {
    "add_callback",
    "add_done_callback",
    "add_handler",
    "add_reader",
    "add_signal_handler",
    "add_writer",
    "call_at",
    "call_later",
    "call_soon",
    "call_soon_threadsafe",
    "create_task",
    "ensure_future",
    "run_in_executor",
    "update_handler",
}
"""What keeps the context of the code that calls it, unless it is told another one."""

INHERITING = {
    # the client's own, or a copy of it
    "server.close_reports._call_handle_close",
    "styles.blocking.server._serve_handle",
    "styles.blocking.pool.call",
    # that of the code that waits for it, and for no longer
    "streams.eager._find_wakeup",
    "runtime.running.certificate_reload",
    "runtime.running._until_signal",
    "runtime.running.begin",
    "runtime.running.reload",
    "runtime.signals.handle_signal",
    "net.resolve.resolve",
    "pytest_plugin._serve",
    "pytest_plugin.serve",
    "pytest_plugin.start",
    "tcpclient._begin_next",
    "tcpclient.connect",
    "testing.serving.running",
    # that of a worker's main function: what the supervisor says is heard in it, and no client's code calls these
    "server.handover._head",
    "supervisor.worker._end_by",
    "supervisor.worker._move",
    "supervisor.worker._retire",
    "supervisor.worker._watch_certificates",
    "supervisor.worker.look",
    "supervisor.worker.serve",
    # that of the test that runs a simulation
    "testing.simulation.disturbances._shut_down",
    "testing.simulation.disturbances.strike",
    "testing.simulation.loop.create_task",
    "testing.simulation.loop.run_in_executor",
    "testing.simulation.simulation.run",
    "testing.simulation.simulation.serve",
    # these call LoopThread.call_soon, which runs what it gets in an empty context
    "styles.blocking.handle.__del__",
    "styles.blocking.handle.close",
    "styles.blocking.loop_thread._wait_for",
    # called from LoopThread._work or an outbox's flush, which have an empty one; or merely set an event
    "styles.blocking.loop_thread.begin",
    "styles.blocking.loop_thread.stop",
    "styles.blocking.loop_thread.run_once",
    "styles.blocking.loop_thread.run",
    "styles.blocking.handle._receive",
    "styles.outbox._watch",
    "styles.outbox.flush",
    "styles.queues.stop",
}
"""The functions in which that is right."""


def registrations(source: str) -> Iterator[str]:
    """The functions that call one of these without a context."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    told = any(keyword.arg == "context" for keyword in node.keywords)
                    if node.func.attr in REGISTERING and not told:
                        yield function.name


def test_whatever_the_package_registers_says_whose_context_it_has() -> None:
    """What is new here: give it an empty one (see `iostreamsrv.runtime.contexts`), or say why it may inherit."""
    found = {f"{name}.{function}" for name, path in inside.items() for function in registrations(path.read_text())}
    assert found == INHERITING
