"""`HTTPServer`: what Tornado's HTTP server has from `TCPServer`. HTTP itself is tested by Tornado's own suites."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tornado.httpserver
import tornado.web
import tornado.websocket

from iostreamsrv import CloseReason, IOLoop, IOStream, OptionError, ServerOptions, TCPServer, bind_unix_socket
from iostreamsrv.certificates import self_signed
from iostreamsrv.httpserver import TORNADO_OPTIONS, HTTPServer
from iostreamsrv.options import NAMES
from tests.support.engines import on_every_loop
from tests.support.hostile import header
from tests.support.http import answer, frame, request, upgraded, upload
from tests.support.peers import Peer, TLSEnd, TLSPeer, tls_contexts
from tests.support.servers import AT_ONCE, Serving, connect_tls, refused, waits
from tests.support.waiting import eventually, turns

pytestmark = on_every_loop

MEBIBYTE = 1 << 20

LOCAL = {"proxy_protocol": ["127.0.0.0/8"]}


@pytest.fixture(autouse=True)
def no_tracebacks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that clients do here is a fault of the server's."""
    caplog.set_level(logging.INFO)
    yield
    assert [record for record in caplog.get_records("call") if record.exc_info or record.name == "asyncio"] == []


class Root(tornado.web.RequestHandler):
    def get(self) -> None:
        self.write(f"{self.request.protocol} {self.request.remote_ip}")

    def head(self) -> None:
        self.finish()

    def post(self) -> None:
        self.write(str(len(self.request.body)))


class Work(tornado.web.RequestHandler):
    """Answers when it is told to."""

    async def get(self) -> None:
        self.settings["working"].set()
        await self.settings["done"].wait()
        self.write("done")


class Echo(tornado.websocket.WebSocketHandler):
    def open(self) -> None:
        self.settings["working"].set()

    async def on_message(self, message: str | bytes) -> None:
        with contextlib.suppress(tornado.websocket.WebSocketClosedError):
            await self.write_message(message)

    def on_close(self) -> None:
        self.settings["closed"].set()


class Busy(Echo):
    """Takes its time with each message."""

    async def on_message(self, message: str | bytes) -> None:
        await self.settings["done"].wait()
        await super().on_message(message)


def application(**settings: Any) -> tornado.web.Application:
    """Its settings have the events ``working``, ``done`` and ``closed``."""
    events = {name: asyncio.Event() for name in ("working", "done", "closed")}
    routes = [("/", Root), ("/work", Work), ("/echo", Echo), ("/busy", Busy)]
    return tornado.web.Application(routes, log_function=lambda _: None, **events, **settings)


class Noting(HTTPServer):
    """Notes with what reason its streams end."""

    def initialize(self, *arguments: Any, **keywords: Any) -> None:  # type: ignore[override]
        super().initialize(*arguments, **keywords)
        self.ends: list[CloseReason] = []

    def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        self.ends.append(reason)


def started(serving: Serving, **keywords: Any) -> Any:
    return serving.started(Noting(application(), **{**AT_ONCE, **keywords}))


async def asked(peer: Peer, data: bytes) -> tuple[int, bytes]:
    peer.send(data)
    return await answer(peer)


async def echoes(peer: Peer, text: bytes = b"hello") -> bool:
    peer.send(frame(text))
    return await peer.receive(2 + len(text)) == bytes([0x81, len(text)]) + text


async def ended(peer: Peer) -> bytes:
    """What comes until the end, which may be a reset; then the peer ends its side, too."""
    received = b""
    try:
        async for chunk in peer.chunks():
            received += chunk
    except ConnectionError:
        pass
    peer.close()
    return received


async def drip(peer: Peer, begin: bytes, drop: bytes) -> None:
    """Send ``begin``, then a drop now and then, until the server has had enough."""
    peer.send(begin)
    while not peer.has_input():
        peer.send(drop)
        await asyncio.sleep(0.02)
    await ended(peer)


# ---- what it is made of


def sample_app() -> Any:
    return lambda request: None


THEIR_PLACES: dict[str, tuple[Any, Any]] = {
    "no_keep_alive": (True, lambda server: server.conn_params.no_keep_alive),
    "xheaders": (True, lambda server: server.xheaders),
    "ssl_options": (None, lambda server: server.ssl_options),
    "protocol": ("https", lambda server: server.protocol),
    "decompress_request": (True, lambda server: server.conn_params.decompress),
    "chunk_size": (1000, lambda server: server.conn_params.chunk_size),
    "max_header_size": (1000, lambda server: server.conn_params.max_header_size),
    "idle_connection_timeout": (7.0, lambda server: server.conn_params.header_timeout),
    "body_timeout": (8.0, lambda server: server.conn_params.body_timeout),
    "max_body_size": (1000, lambda server: server.conn_params.max_body_size),
    "max_buffer_size": (1000, lambda server: server.options.max_buffer_size),
    "trusted_downstream": (["10.0.0.1"], lambda server: server.trusted_downstream),
}

OUR_VALUES: dict[str, Any] = {
    "max_buffer_size": 5000,
    "max_write_buffer_size": 5000,
    "read_chunk_size": 1000,
    "cork": False,
    "close_on_return": False,
    "allow_half_open": True,
    "linger": 1.0,
    "max_connections": 7,
    "max_connections_per_ip": 3,
    "when_full": "evict",
    "idle_timeout": 1.0,
    "read_timeout": 2.0,
    "write_timeout": 3.0,
    "min_rate": 4.0,
    "min_rate_window": 6.0,
    "drain_timeout": 7.0,
    "drain_idle": 8.0,
    "keepalive": (1, 2, 3),
    "nodelay": False,
    "send_buffer_size": 9000,
    "receive_buffer_size": 9000,
    "handshake_timeout": 9.0,
    "strict_validity": True,
    "allow_legacy_tls": True,
    "proxy_protocol": ["10.0.0.0/8"],
    "proxy_header_timeout": 10.0,
}


def test_every_keyword_there_is_has_its_place_below() -> None:
    assert set(THEIR_PLACES) == set(TORNADO_OPTIONS)
    assert set(OUR_VALUES) == set(NAMES)


@pytest.mark.parametrize("name", THEIR_PLACES)
def test_a_keyword_of_tornados_goes_where_tornado_has_it(name: str) -> None:
    value, place = THEIR_PLACES[name]
    assert place(HTTPServer(sample_app(), **{name: value})) == value


@pytest.mark.parametrize("name", OUR_VALUES)
def test_a_keyword_of_ours_goes_into_the_options(name: str) -> None:
    value = OUR_VALUES[name]
    server = HTTPServer(sample_app(), **{name: value})
    usual = HTTPServer(sample_app()).options
    assert getattr(server.options, name) == value
    assert server.options == usual.replaced({name: value})


def test_all_keywords_go_together() -> None:
    theirs = {name: value for name, (value, _) in THEIR_PLACES.items() if name not in OUR_VALUES}
    del theirs["chunk_size"]
    server = HTTPServer(sample_app(), **theirs, **OUR_VALUES)
    assert server.options == ServerOptions(**OUR_VALUES)
    assert all(place(server) == theirs[name] for name, (_, place) in THEIR_PLACES.items() if name in theirs)


def test_a_read_chunk_is_what_http_reads_at_a_time() -> None:
    for name in ("chunk_size", "read_chunk_size"):
        server = HTTPServer(sample_app(), **{name: 1000})
        assert (server.read_chunk_size, server.conn_params.chunk_size) == (1000, 1000)


@pytest.mark.gen_test
async def test_a_loop_may_be_given(serving: Serving, io_loop: IOLoop) -> None:
    server = started(serving, io_loop=io_loop)
    assert await asked(serving.connect(server), request()) == (200, b"http 127.0.0.1")


@pytest.mark.parametrize(
    "wrong, right", [("max_conections", "max_connections"), ("xheader", "xheaders"), ("max_body_sice", "max_body_size")]
)
def test_a_wrong_keyword_is_refused_and_the_nearest_one_is_suggested(wrong: str, right: str) -> None:
    with pytest.raises(TypeError, match=f"'{wrong}'.*did you mean '{right}'"):
        HTTPServer(sample_app(), **{wrong: 1})


def test_a_keyword_that_resembles_none_is_refused_with_all_there_are() -> None:
    with pytest.raises(TypeError, match=r"'qqq'.*xheaders.*max_connections"):
        HTTPServer(sample_app(), qqq=1)


@pytest.mark.parametrize("name, value", [("max_connections", 0), ("read_chunk_size", 0), ("idle_timeout", -1)])
def test_a_wrong_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"^{name}={value}: "):
        HTTPServer(sample_app(), **{name: value})


def test_class_attributes_are_options_and_keywords_go_before_them() -> None:
    class Small(HTTPServer):
        max_connections = 10
        idle_timeout = 20
        max_buffer_size = 5000
        max_write_buffer_size = 6000

    options = Small(sample_app(), idle_timeout=30).options
    assert (options.max_connections, options.idle_timeout) == (10, 30)
    assert (options.max_buffer_size, options.max_write_buffer_size) == (5000, 6000)
    assert Small(sample_app(), max_buffer_size=MEBIBYTE).options.max_buffer_size == MEBIBYTE


def test_options_may_be_given_together_and_keywords_go_before_them() -> None:
    options = ServerOptions(max_connections=10, idle_timeout=20, max_write_buffer_size=6000)
    server = HTTPServer(sample_app(), options=options, idle_timeout=30)
    assert (server.options.max_connections, server.options.idle_timeout) == (10, 30)
    assert (server.options.max_buffer_size, server.options.max_write_buffer_size) == (100 * MEBIBYTE, 6000)


def test_the_buffers_are_as_large_as_tornados_by_default() -> None:
    options = HTTPServer(sample_app()).options
    assert (options.max_buffer_size, options.max_write_buffer_size) == (100 * MEBIBYTE, 100 * MEBIBYTE)
    assert HTTPServer(sample_app(), max_buffer_size=None).options.max_buffer_size == 100 * MEBIBYTE


def test_no_request_has_a_timer_of_its_own_by_default() -> None:
    assert HTTPServer(sample_app()).conn_params.header_timeout is None


@pytest.mark.gen_test
async def test_tornados_timeout_of_headers_is_kept(serving: Serving) -> None:
    server = started(serving, idle_connection_timeout=0.5)
    peer = serving.connect(server)
    assert await asked(peer, request()) == (200, b"http 127.0.0.1")
    assert await peer.receive_all() == b""
    peer.close()
    await eventually(lambda: server.ends)
    assert server.ends == ["local"]


class Configured(HTTPServer):
    def initialize(self, *arguments: Any, tag: str = "", **keywords: Any) -> None:  # type: ignore[override]
        super().initialize(*arguments, **keywords)
        self.tag = tag


@pytest.mark.gen_test
async def test_configure_makes_a_call_of_the_class_make_another_one_and_leaves_tornados_alone(serving: Serving) -> None:
    HTTPServer.configure(Configured, tag="mine", max_connections=5)
    try:
        server: Any = HTTPServer(application())
        assert (type(server), server.tag, server.options.max_connections) == (Configured, "mine", 5)
        assert type(tornado.httpserver.HTTPServer(sample_app())) is tornado.httpserver.HTTPServer
    finally:
        HTTPServer.configure(None)
    assert type(HTTPServer(sample_app())) is HTTPServer
    assert await asked(serving.connect(serving.started(server)), request()) == (200, b"http 127.0.0.1")


@pytest.mark.gen_test
async def test_where_tornados_is_made_by_others_configure_puts_ours_in_its_place(serving: Serving) -> None:
    tornado.httpserver.HTTPServer.configure("iostreamsrv.httpserver.HTTPServer", max_connections=5)
    try:
        server: Any = application().listen(0, "127.0.0.1", xheaders=True)
    finally:
        tornado.httpserver.HTTPServer.configure(None)
    serving.servers.append(server)
    assert isinstance(server, HTTPServer)
    assert (server.options.max_connections, server.xheaders) == (5, True)
    assert await asked(serving.connect(server), request("/", "X-Real-Ip: 192.0.2.1")) == (200, b"http 192.0.2.1")


def test_it_is_a_server_of_both_kinds() -> None:
    server = HTTPServer(sample_app())
    assert isinstance(server, TCPServer)
    assert isinstance(server, tornado.httpserver.HTTPServer)


# ---- limits


@pytest.mark.gen_test
async def test_requests_of_one_connection_are_answered_in_order(serving: Serving) -> None:
    server = started(serving)
    peer = serving.connect(server)
    peer.send(b"".join(upload(bytes(size)) for size in range(40)))
    for size in range(40):
        assert await answer(peer) == (200, b"%d" % size)
    assert [len(server.streams), server.ends] == [1, []]


@pytest.mark.gen_test
async def test_a_client_that_half_closes_behind_its_requests_is_answered_all_of_them(serving: Serving) -> None:
    server = started(serving)
    peer = serving.connect(server)
    peer.send(upload(b"abc") * 20)
    peer.half_close()
    for _ in range(20):
        assert await answer(peer) == (200, b"3")
    assert await peer.receive_all() == b""
    assert server.ends == ["eof"]


@pytest.mark.gen_test
async def test_one_client_more_waits_until_there_is_a_place(serving: Serving) -> None:
    server = started(serving, max_connections=1)
    first, second = serving.connect(server), serving.connect(server)
    assert await asked(first, request()) == (200, b"http 127.0.0.1")
    second.send(request())
    assert await waits(second)
    first.close()
    assert await answer(second) == (200, b"http 127.0.0.1")


@pytest.mark.gen_test
async def test_an_idle_connection_is_evicted_for_a_newcomer_and_a_request_in_hand_is_not(serving: Serving) -> None:
    server = started(serving, max_connections=2, when_full="evict")
    working, idle = serving.connect(server), serving.connect(server)
    working.send(request("/work"))
    assert await asked(idle, request()) == (200, b"http 127.0.0.1")
    await server.request_callback.settings["working"].wait()
    newcomer = serving.connect(server)
    assert await asked(newcomer, request()) == (200, b"http 127.0.0.1")
    assert await idle.receive_all() == b""
    server.request_callback.settings["done"].set()
    assert await answer(working) == (200, b"done")
    assert server.ends == ["evicted"]


@pytest.mark.gen_test
async def test_one_address_gets_its_share_and_is_told_so_in_http(serving: Serving) -> None:
    class Polite(Noting):
        async def handle_reject(self, stream: IOStream, address: Any) -> None:
            await stream.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    server = serving.started(Polite(application(), max_connections_per_ip=1))
    peer = serving.connect(server)
    assert await asked(peer, request()) == (200, b"http 127.0.0.1")
    other = serving.connect(server)
    assert await answer(other) == (503, b"")
    assert await other.receive_all() == b""
    assert await asked(peer, request()) == (200, b"http 127.0.0.1")


@pytest.mark.parametrize("option, sent", [("idle_timeout", b""), ("read_timeout", b""), ("read_timeout", b"GET / HT")])
@pytest.mark.gen_test
async def test_a_client_that_asks_for_nothing_is_closed(serving: Serving, option: str, sent: bytes) -> None:
    server = started(serving, **{option: 0.2})
    peer = serving.connect(server)
    peer.send(sent)
    assert await peer.receive_all() == b""
    assert server.ends == [option]


@pytest.mark.parametrize(
    "limits, reason",
    [({"read_timeout": 0.3}, "read_timeout"), ({"min_rate": 1000, "min_rate_window": 0.1}, "min_rate")],
)
@pytest.mark.gen_test
async def test_headers_that_drip_are_ended_however_often_bytes_come(
    serving: Serving, limits: dict[str, float], reason: str
) -> None:
    server = started(serving, idle_timeout=10, **limits)
    await drip(serving.connect(server), b"GET / HTTP/1.1\r\n", b"X: y\r\n")
    assert server.ends == [reason]


@pytest.mark.gen_test
async def test_a_body_that_drips_is_ended_by_tornados_timeout(serving: Serving) -> None:
    server = started(serving, body_timeout=0.3, idle_timeout=10)
    await drip(serving.connect(server), request("/", "Content-Length: 999999", method="POST"), b"x")
    await eventually(lambda: server.ends)
    assert server.ends == ["local"]


@pytest.mark.gen_test
async def test_a_client_that_takes_nothing_of_its_answer_is_closed(serving: Serving) -> None:
    server = started(serving, write_timeout=0.2)
    peer = await upgraded(serving.connect(server))
    with pytest.raises(ConnectionError):
        while True:  # answered until the kernel has no room, and then no longer received
            await peer.send_all(frame(bytes(60_000)))
    assert server.ends == ["write_timeout"]
    await server.request_callback.settings["closed"].wait()


@pytest.mark.gen_test
async def test_a_silent_websocket_is_ended_by_the_read_timeout(serving: Serving) -> None:
    server = started(serving, read_timeout=0.2)
    peer = await upgraded(serving.connect(server))
    assert await peer.receive_all() == b""
    assert server.ends == ["read_timeout"]


@pytest.mark.usefixtures("clock")
@pytest.mark.gen_test
async def test_a_websocket_that_answers_pings_is_not_silent(serving: Serving) -> None:
    pinging = application(websocket_ping_interval=1, websocket_ping_timeout=1)
    server = serving.started(Noting(pinging, read_timeout=3))
    peer = await upgraded(serving.connect(server))
    for _ in range(4):
        assert await peer.receive(2) == b"\x89\0"
        peer.send(frame(b"", 0x8A))
    assert await echoes(peer)
    assert server.ends == []


# ---- TLS


def certificate_seen(peer: TLSPeer) -> bytes:
    seen = peer.end.tls.getpeercert(binary_form=True)
    assert seen is not None
    return seen


async def connect_without_trust(serving: Serving, server: TCPServer) -> TLSPeer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    peer = TLSPeer(TLSEnd(socket.create_connection(server.addresses[0]), context))
    serving.peers.append(peer)
    await eventually(peer.end.handshake)
    return peer


@pytest.mark.gen_test
async def test_under_tls_requests_are_https(serving: Serving) -> None:
    server = started(serving, ssl_options=tls_contexts()[0])
    peer = await connect_tls(serving, server)
    assert await asked(peer, request()) == (200, b"https 127.0.0.1")
    assert await echoes(await upgraded(peer))


@pytest.mark.gen_test
async def test_certificates_are_reloaded_for_new_connections_and_the_others_go_on(
    serving: Serving, tmp_path: Path
) -> None:
    files = self_signed().write(tmp_path)
    server = started(serving, ssl_options=files)
    old = await connect_without_trust(serving, server)
    self_signed().write(tmp_path)
    assert server.reload_certificates()
    new = await connect_without_trust(serving, server)
    assert certificate_seen(old) != certificate_seen(new)
    for peer in (old, new):
        assert await asked(peer, request()) == (200, b"https 127.0.0.1")


# ---- who asks


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7"])
@pytest.mark.gen_test
async def test_behind_a_proxy_the_remote_ip_is_the_clients(serving: Serving, version: int, host: str) -> None:
    server = started(serving, **LOCAL)
    peer = serving.connect(server)
    peer.send(header(version, host, 4711))
    assert await asked(peer, request()) == (200, f"http {host}".encode())


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7"])
@pytest.mark.gen_test
async def test_the_remote_ip_is_the_clients_also_where_the_proxy_comes_by_a_unix_socket(
    serving: Serving, tmp_path: Path, host: str
) -> None:
    server = Noting(application(), proxy_protocol=["unix"])
    server.add_socket(bind_unix_socket(str(tmp_path / "socket")))
    serving.servers.append(server)
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / "socket"))
    peer = Peer(client)
    serving.peers.append(peer)
    peer.send(header(2, host, 4711))
    assert await asked(peer, request()) == (200, f"http {host}".encode())


@pytest.mark.parametrize("path", [b"", b"/run/client"])
@pytest.mark.gen_test
async def test_a_client_of_the_proxys_unix_socket_has_no_ip(serving: Serving, path: bytes) -> None:
    server = started(serving, **LOCAL)
    peer = serving.connect(server)
    peer.send(b"\r\n\r\n\0\r\nQUIT\n\x21\x31\x00\xd8" + path.ljust(216, b"\0"))
    assert await asked(peer, request()) == (200, b"http 0.0.0.0")


@pytest.mark.gen_test
async def test_xheaders_name_the_client_in_front_of_the_proxys(serving: Serving) -> None:
    server = started(serving, xheaders=True, trusted_downstream=["192.0.2.7"], **LOCAL)
    peer = serving.connect(server)
    peer.send(header(1, "192.0.2.7", 4711))
    assert await asked(peer, request("/", "X-Forwarded-For: 192.0.2.1, 192.0.2.7")) == (200, b"http 192.0.2.1")
    assert await asked(peer, request()) == (200, b"http 192.0.2.7")


# ---- the end

GOING_AWAY = b"\x88\x1d\x03\xe9the server is shutting down"
"""What a WebSocket gets."""


@pytest.mark.gen_test
async def test_a_shutdown_lets_the_request_in_hand_finish_and_then_ends_its_connection(serving: Serving) -> None:
    server = started(serving)
    settings = server.request_callback.settings
    peer = serving.connect(server)
    peer.send(request("/work"))
    await settings["working"].wait()
    (address,) = server.addresses
    ending = asyncio.create_task(server.shutdown())
    await eventually(lambda: server.draining)
    refused(address)
    settings["done"].set()
    assert await answer(peer) == (200, b"done")
    assert await peer.receive_all() == b""
    await ending
    assert server.ends == ["shutdown"]


@pytest.mark.gen_test
async def test_a_shutdown_waits_for_the_rest_of_a_body_that_has_begun(serving: Serving) -> None:
    server = started(serving)
    peer = serving.connect(server)
    whole = upload(bytes(1000))
    peer.send(whole[:-500])
    await eventually(lambda: [stream.bytes_read for stream in server.streams] == [len(whole) - 500])
    ending = asyncio.create_task(server.shutdown())
    await eventually(lambda: not server.addresses)
    await asyncio.sleep(0.1)  # some looks at who merely waits
    assert await asked(peer, whole[-500:]) == (200, b"1000")
    assert await peer.receive_all() == b""
    await ending


@pytest.mark.gen_test
async def test_a_shutdown_ends_idle_connections_and_websockets_without_waiting_for_its_timeout(
    serving: Serving,
) -> None:
    server = started(serving, drain_timeout=None)
    kept, fresh, websocket = (serving.connect(server) for _ in range(3))
    assert await asked(kept, request()) == (200, b"http 127.0.0.1")
    await upgraded(websocket)
    await eventually(lambda: len(server.streams) == 3)
    await server.shutdown()
    for peer in (kept, fresh):
        assert await peer.receive_all() == b""
    assert await websocket.receive_all() == GOING_AWAY
    assert server.ends == ["shutdown"] * 3
    await server.request_callback.settings["closed"].wait()


@pytest.mark.gen_test
async def test_a_shutdown_lets_a_websocket_finish_with_the_message_it_has(serving: Serving) -> None:
    server = started(serving)
    peer = await upgraded(serving.connect(server), "/busy")
    peer.send(frame(b"hello"))
    await eventually(lambda: [stream.bytes_read > 0 and not stream.reading() for stream in server.streams] == [True])
    ending = asyncio.create_task(server.shutdown())
    await eventually(lambda: server.draining)
    await asyncio.sleep(0.1)  # some looks at who merely waits
    server.request_callback.settings["done"].set()
    assert await peer.receive_all() == b"\x81\x05hello" + GOING_AWAY
    await ending


@pytest.mark.gen_test
async def test_a_request_that_never_finishes_is_ended_at_the_timeout(serving: Serving) -> None:
    server = started(serving)
    peer = serving.connect(server)
    peer.send(request("/work"))
    await server.request_callback.settings["working"].wait()
    await server.shutdown(timeout=0.1)
    assert await peer.receive_all() == b""
    assert server.ends == ["drain_timeout"]
    server.request_callback.settings["done"].set()  # nobody is there any more


@pytest.mark.gen_test
async def test_close_all_connections_ends_all_kinds_and_leaves_nothing(serving: Serving) -> None:
    server = started(serving)
    kept, working, websocket = (serving.connect(server) for _ in range(3))
    assert await asked(kept, request()) == (200, b"http 127.0.0.1")
    await upgraded(websocket)
    server.request_callback.settings["working"].clear()
    working.send(request("/work"))
    await server.request_callback.settings["working"].wait()
    await server.close_all_connections()
    assert (len(server.streams), server._connections) == (0, set())
    for peer in (kept, working, websocket):
        assert await peer.receive_all() == b""
    assert server.ends == ["shutdown"] * 3
    assert await asked(serving.connect(server), request()) == (200, b"http 127.0.0.1")
    server.request_callback.settings["done"].set()


@pytest.mark.gen_test
async def test_serve_forever_that_is_cancelled_lets_the_request_in_hand_finish(serving: Serving) -> None:
    server = started(serving)
    running = asyncio.create_task(server.serve_forever())
    peer = serving.connect(server)
    peer.send(request("/work"))
    await server.request_callback.settings["working"].wait()
    running.cancel()
    server.request_callback.settings["done"].set()
    assert await answer(peer) == (200, b"done")
    with pytest.raises(asyncio.CancelledError):
        await running
    assert server.addresses == []


@pytest.mark.gen_test
async def test_streams_are_those_of_all_clients_and_a_kick_ends_one(serving: Serving) -> None:
    server = started(serving)
    kept, websocket = serving.connect(server), await upgraded(serving.connect(server))
    assert await asked(kept, request()) == (200, b"http 127.0.0.1")
    by_port = {stream.remote_address[1]: stream for stream in server.streams}
    assert set(by_port) == {peer.socket.getsockname()[1] for peer in (kept, websocket)}
    by_port[websocket.socket.getsockname()[1]].kick("enough")
    assert await websocket.receive_all() == b""
    await server.request_callback.settings["closed"].wait()
    assert await asked(kept, request()) == (200, b"http 127.0.0.1")
    server.kick_all()
    assert await kept.receive_all() == b""
    assert server.ends == ["kicked", "kicked"]


# ---- bodies


@pytest.mark.gen_test
async def test_a_body_of_more_than_a_mebibyte_is_taken_by_default(serving: Serving) -> None:
    server = started(serving)
    peer = serving.connect(server)
    await peer.send_all(upload(bytes(3 * MEBIBYTE)))
    assert await answer(peer) == (200, b"%d" % (3 * MEBIBYTE))


@pytest.mark.parametrize("limits", [{"max_body_size": 1000}, {"max_buffer_size": 1000}])
@pytest.mark.gen_test
async def test_a_body_may_be_as_large_as_the_limit_and_no_larger(serving: Serving, limits: dict[str, int]) -> None:
    server = started(serving, **limits)
    peer = serving.connect(server)
    assert await asked(peer, upload(bytes(1000))) == (200, b"1000")
    assert await asked(peer, upload(bytes(1001))) == (400, b"")
    assert await ended(peer) == b""


@pytest.mark.gen_test
async def test_100_mebibytes_are_the_limit_by_default(serving: Serving) -> None:
    server = started(serving)
    fitting, larger = serving.connect(server), serving.connect(server)
    for peer, size in ((fitting, 100 * MEBIBYTE), (larger, 100 * MEBIBYTE + 1)):
        headers = (f"Content-Length: {size}", "Expect: 100-continue")
        assert await asked(peer, request("/", *headers, method="POST")) == (100, b"")
    assert await answer(larger) == (400, b"")
    assert await waits(fitting)


@pytest.mark.gen_test
async def test_chunks_count_together(serving: Serving) -> None:
    peer = serving.connect(started(serving, max_body_size=1000))
    chunked = request("/", "Transfer-Encoding: chunked", method="POST")
    assert await asked(peer, chunked + b"1f4\r\n" + bytes(500) + b"\r\n1f4\r\n" + bytes(500) + b"\r\n0\r\n\r\n") == (
        200,
        b"1000",
    )
    assert await asked(peer, chunked + b"1f4\r\n" + bytes(500) + b"\r\n1f5\r\n" + bytes(501) + b"\r\n0\r\n\r\n") == (
        400,
        b"",
    )


# ---- what is wrong

BODY = b"5\r\nhello\r\n0\r\n\r\n"

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(*headers: str, body: bytes = BODY) -> bytes:
    return request("/", *headers, method="POST", body=body)


MALFORMED = {
    "both a length and chunks": post("Content-Length: 5", "Transfer-Encoding: chunked"),
    "chunks and then a length": post("Transfer-Encoding: chunked", "Content-Length: 5"),
    "two lengths": post("Content-Length: 5", "Content-Length: 6"),
    "a list of lengths": post("Content-Length: 5, 6"),
    "a negative length": post("Content-Length: -1"),
    "a length with a sign": post("Content-Length: +5"),
    "a length in hexadecimal": post("Content-Length: 0x5"),
    "a length with an underscore": post("Content-Length: 1_0"),
    "a folded length": post("Content-Length: 1\r\n 0"),
    "no length": post("Content-Length: "),
    "a length of other digits": post("Content-Length: \N{ARABIC-INDIC DIGIT FIVE}"),
    "another encoding": post("Transfer-Encoding: gzip, chunked"),
    "an encoding that is twice": post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "an encoding that is nearly one": post("Transfer-Encoding: xchunked"),
    "a space before the colon": post("Transfer-Encoding : chunked"),
    "a header without a colon": request("/", "what"),
    "a header without a name": request("/", ": what"),
    "a bare CR in a header": request("/", "X: a\rY: b"),
    "a NUL in a header": request("/", "X: a\0b"),
    "a folded first header": b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": request("/", "Host: other"),
    "a line without a version": b"GET /\r\n\r\n",
    "another protocol": b"GET / ICY/1.0\r\n\r\n",
    "a request line of four words": b"GET / there HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "another version": b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n",
    "no ASCII": b"G\xc3\x89T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "garbage": bytes(range(256)) + b"\r\n\r\n",
    "a chunk of a negative size": post("Transfer-Encoding: chunked", body=b"-5\r\nhello\r\n0\r\n\r\n"),
    "a chunk whose size has a sign": post("Transfer-Encoding: chunked", body=b"+5\r\nhello\r\n0\r\n\r\n"),
    "a chunk whose size has a prefix": post("Transfer-Encoding: chunked", body=b"0x5\r\nhello\r\n0\r\n\r\n"),
    "a chunk with an extension": post("Transfer-Encoding: chunked", body=b"5;name=value\r\nhello\r\n0\r\n\r\n"),
    "a chunk without a size": post("Transfer-Encoding: chunked", body=b"\r\nhello\r\n0\r\n\r\n"),
    "a chunk that is longer than it says": post("Transfer-Encoding: chunked", body=b"3\r\nhello\r\n0\r\n\r\n"),
    "a chunk that is far too large": post("Transfer-Encoding: chunked", body=b"f" * 16 + b"\r\nhello\r\n"),
    "trailers": post("Transfer-Encoding: chunked", body=b"0\r\nX: y\r\n\r\n"),
    "too large a body": post("Content-Length: 99999999999999999999"),
    "a length of too many digits for Python": post("Content-Length: " + "9" * 5000),
}
"""Requests that another server may read differently: nothing is guessed, nothing behind them is taken for a request."""


@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.gen_test
async def test_a_malformed_request_is_answered_and_what_follows_it_is_no_request(serving: Serving, kind: str) -> None:
    server = started(serving)
    good, peer = serving.connect(server), serving.connect(server)
    peer.send(MALFORMED[kind] + SMUGGLED)
    assert await ended(peer) == b"HTTP/1.1 400 Bad Request\r\n\r\n"
    assert await asked(good, request()) == (200, b"http 127.0.0.1")
    await eventually(lambda: server.ends)
    assert server.ends == ["local"]


@pytest.mark.gen_test
async def test_garbage_behind_a_request_ends_the_connection_after_its_answer(serving: Serving) -> None:
    peer = serving.connect(started(serving))
    peer.send(request() + b"what\r\n\r\n" + SMUGGLED)
    assert await answer(peer) == (200, b"http 127.0.0.1")
    assert await ended(peer) == b"HTTP/1.1 400 Bad Request\r\n\r\n"


@pytest.mark.parametrize("line", [b"GET /" + b"x" * 70_000, b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000])
@pytest.mark.gen_test
async def test_lines_that_are_too_long_end_the_connection(serving: Serving, line: bytes) -> None:
    server = started(serving)
    peer = serving.connect(server)
    peer.send(line)
    assert await ended(peer) == b""
    assert server.ends == ["buffer_full"]


@pytest.mark.gen_test
async def test_a_chunk_size_that_never_ends_ends_the_connection(serving: Serving) -> None:
    server = started(serving)
    peer = serving.connect(server)
    peer.send(post("Transfer-Encoding: chunked", body=b"0" * 1000))
    assert await ended(peer) == b""
    assert server.ends == ["buffer_full"]


@pytest.mark.gen_test
async def test_many_malformed_requests_are_a_few_lines_in_the_log(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server = started(serving)
    for _ in range(50):
        peer = serving.connect(server)
        peer.send(b"GET /" + b"x" * 70_000)
        await ended(peer)
    assert len([record for record in caplog.records if record.levelno >= logging.INFO]) <= 25
    assert len(server.ends) == 50


# ---- WebSockets that are wrong

WRONG_FRAMES = {
    "a reserved bit": frame(b"hello", 0xF1),
    "an unknown opcode": frame(b"hello", 0x83),
    "a continuation of nothing": frame(b"hello", 0x80),
    "a ping in pieces": frame(b"hello", 0x09),
    "a ping that is too long": bytes([0x89, 0xFE, 1, 0]) + bytes(4 + 256),
    "no UTF-8": frame(b"\xff\xfe"),
    "two beginnings": frame(b"a", 0x01) + frame(b"b", 0x01),
}


@pytest.mark.parametrize("kind", WRONG_FRAMES)
@pytest.mark.gen_test
async def test_a_wrong_frame_ends_its_websocket_and_no_other(serving: Serving, kind: str) -> None:
    server = started(serving)
    good, bad = [await upgraded(serving.connect(server)) for _ in range(2)]
    bad.send(WRONG_FRAMES[kind])
    await ended(bad)
    assert await echoes(good)
    await eventually(lambda: server.ends)
    assert server.ends == ["local"]


@pytest.mark.gen_test
async def test_a_message_that_is_too_large_is_refused_before_it_is_there(serving: Serving) -> None:
    server = serving.started(Noting(application(websocket_max_message_size=1000)))
    good, bad = [await upgraded(serving.connect(server)) for _ in range(2)]
    bad.send(frame(bytes(2000))[:14])
    assert (await ended(bad)).startswith(b"\x88\x11\x03\xf1message too big")
    assert await echoes(good)


@pytest.mark.gen_test
async def test_a_message_of_pieces_that_are_too_large_together_is_refused(serving: Serving) -> None:
    server = serving.started(Noting(application(websocket_max_message_size=1000)))
    peer = await upgraded(serving.connect(server))
    peer.send(frame(bytes(600), 0x02) + frame(bytes(600), 0x80))
    assert (await ended(peer)).startswith(b"\x88\x11\x03\xf1message too big")


@pytest.mark.gen_test
async def test_a_flood_that_a_handler_does_not_keep_up_with_stays_in_the_kernel(serving: Serving) -> None:
    server = started(serving)
    good, flooding = serving.connect(server), await upgraded(serving.connect(server), "/busy")
    flood = asyncio.create_task(flooding.send_all(frame(bytes(60_000)) * 500))
    await turns(50)
    for _ in range(20):
        assert await asked(good, request()) == (200, b"http 127.0.0.1")
    assert not flood.done()
    assert max(stream.buffered for stream in server.streams) <= 2 * server.read_chunk_size
    flood.cancel()
    server.request_callback.settings["done"].set()


@pytest.mark.gen_test
async def test_a_flood_of_pings_that_nobody_takes_the_answers_of_is_not_queued(serving: Serving) -> None:
    server = started(serving)
    peer = await upgraded(serving.connect(server))
    (stream,) = server.streams
    pings = frame(bytes(125), 0x89) * 1000
    for _ in range(3):
        await peer.send_all(pings)
    await eventually(lambda: stream.bytes_read > 2 * len(pings))
    assert stream.queued < 100_000  # of 390 KB; what is corked may be 64 KiB
