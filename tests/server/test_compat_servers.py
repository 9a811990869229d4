"""What programs for Tornado do with servers beyond its documentation: see docs/from_tornado.md."""

import asyncio
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tornado.httpserver
import tornado.tcpserver
from tornado import gen
from tornado.netutil import Resolver
from tornado.web import Application, RequestHandler

from iostreamsrv import (
    CertificateError,
    IOLoop,
    IOStream,
    ListenError,
    OptionError,
    StreamClosedError,
    StreamTimeoutError,
    TCPClient,
    TCPServer,
    add_accept_handler,
)
from iostreamsrv.certificates import Certificates, self_signed
from iostreamsrv.httpserver import HTTPServer
from iostreamsrv.runtime.loops import asyncio_loop, current_loop
from iostreamsrv.server.base import core_of
from tests.support.engines import on_every_loop
from tests.support.http import answer, request
from tests.support.peers import tcp_pair
from tests.support.servers import AT_ONCE, Echo, Serving, answers, connect_unix, listen_to, refused
from tests.support.waiting import PATIENCE, turns

pytestmark = on_every_loop


# ---- names that belong to users

TO_OVERRIDE = {"handle_stream", "handle_close", "handle_reject"}
"""What a server calls of its subclass."""


def names_of_users(server: TCPServer, tornados: object) -> list[str]:
    """The names that a fresh server has, except those that Tornado's server has as well, and what users override."""
    known = set(dir(tornados)) | TO_OVERRIDE | {"_iostreamsrv"}
    names = [name for name in dir(server) if name not in known and not name.startswith("__")]
    assert {"events", "options", "addresses", "certificates", "draining", "suspended", "streams", "group"} <= set(names)
    return names


OFTEN = ["_clients", "_options", "_listeners", "_io_loop", "_started", "_ending", "_accepted", "_overrides", "_stopped"]
"""What programs for Tornado call things of their own, and what servers of this package had once."""


def with_names(base: Any, names: list[str], way: str) -> Any:
    """A subclass of ``base`` with these names: as class attributes, or set before or after the constructor."""
    users = {name: f"the user's {name}" for name in names}
    if way == "class":
        return type("Users", (base,), users)

    class Users(base):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            if way == "before":
                vars(self).update(users)
            super().__init__(*arguments, **options)
            if way == "after":
                for name, value in users.items():
                    setattr(self, name, value)

    return Users


ways = pytest.mark.parametrize("way", ["class", "before", "after"])


@pytest.mark.gen_test
@ways
async def test_a_subclass_may_give_any_name_to_something_of_its_own(serving: Serving, way: str) -> None:
    names = [*names_of_users(Echo(), tornado.tcpserver.TCPServer()), *OFTEN]
    server = with_names(Echo, names, way)(**AT_ONCE)
    serving.started(server)
    (address,) = core_of(server).listeners.addresses
    peer = serving.connect(address)
    assert await answers(peer)
    assert {name: getattr(server, name) for name in names} == {name: f"the user's {name}" for name in names}
    peer.send(b"half a ")
    shutdown = asyncio.create_task(TCPServer.shutdown(server, timeout=5))
    peer.send(b"line\n")
    assert await peer.receive_all() == b"half a line\n"
    await shutdown
    refused(address)


@pytest.mark.gen_test
@ways
async def test_a_server_with_names_of_the_users_serves_until_cancelled(serving: Serving, way: str) -> None:
    names = [*names_of_users(Echo(), tornado.tcpserver.TCPServer()), *OFTEN]
    server = with_names(Echo, names, way)(**AT_ONCE)
    serving.started(server)
    (address,) = core_of(server).listeners.addresses
    task = asyncio.ensure_future(TCPServer.serve_forever(server))
    peer = serving.connect(address)
    assert await answers(peer)
    task.cancel()
    assert await peer.receive_all() == b""
    with pytest.raises(asyncio.CancelledError):
        await task
    refused(address)


class Hello(RequestHandler):
    def get(self) -> None:
        self.write("hello")


@pytest.mark.gen_test
@ways
async def test_a_subclass_of_the_http_server_may_give_any_name_to_something_of_its_own(
    serving: Serving, way: str
) -> None:
    application = Application([("/", Hello)])
    names = names_of_users(HTTPServer(application), tornado.httpserver.HTTPServer(application))
    server = with_names(HTTPServer, [*names, "_requests", "_websockets", "_clients"], way)(application, **AT_ONCE)
    serving.started(server)
    (address,) = core_of(server).listeners.addresses
    peer = serving.connect(address)
    peer.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"200 OK" in await peer.receive(12 + 5)
    await TCPServer.shutdown(server, timeout=5)
    refused(address)


@pytest.mark.gen_test
async def test_what_was_set_before_the_constructor_stays_except_for_tornados_names(serving: Serving) -> None:
    class Server(Echo):
        def __init__(self) -> None:
            self.max_buffer_size = 5
            self.read_chunk_size = 5
            self.events = ["mine"]  # type: ignore[assignment]
            super().__init__()

    server = Server()
    assert server.events == ["mine"]
    assert server.max_buffer_size == TCPServer().max_buffer_size
    assert server.read_chunk_size == TCPServer().read_chunk_size


@pytest.mark.gen_test
async def test_a_shutdown_method_of_another_meaning_does_not_keep_clients(serving: Serving) -> None:
    calls = []

    class Server(Echo):
        def shutdown(self) -> None:  # type: ignore[override]
            calls.append(self)

    server = serving.started(Server(**AT_ONCE))
    task = asyncio.ensure_future(server.serve_forever())
    peer = serving.connect(server)
    assert await answers(peer)
    task.cancel()
    assert await peer.receive_all() == b""
    with pytest.raises(asyncio.CancelledError):
        await task
    assert calls == [server]


@pytest.mark.gen_test
async def test_a_handle_close_that_is_no_function_is_the_users(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server = Echo(**AT_ONCE)
    server.handle_close = None  # type: ignore[method-assign, assignment]
    server.handle_reject = 5  # type: ignore[method-assign, assignment]
    peer = serving.connect(serving.started(server))
    assert await answers(peer)
    peer.close()
    await server.shutdown()
    assert caplog.records == []


# ---- sockets that do not listen yet


def bound(family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0)) -> socket.socket:
    made = socket.socket(family)
    made.bind(address)
    return made


@pytest.mark.gen_test
async def test_a_socket_that_is_merely_bound_begins_to_listen(serving: Serving) -> None:
    server = Echo()
    serving.servers.append(server)
    server.add_socket(listener := bound())
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert await answers(serving.connect(server))
    listener.listen(5)  # as salt does, after it has added the socket
    assert await answers(serving.connect(server))


@pytest.mark.gen_test
async def test_so_does_a_unix_socket_that_is_bound(serving: Serving, tmp_path: Path) -> None:
    server = Echo()
    serving.servers.append(server)
    server.add_sockets([bound(socket.AF_UNIX, str(tmp_path / "socket"))])
    assert await answers(connect_unix(serving, server))


@pytest.mark.gen_test
async def test_so_does_a_socket_of_an_accept_handler(serving: Serving) -> None:
    accepted = asyncio.get_running_loop().create_future()
    with bound() as listener:
        remove = add_accept_handler(listener, lambda connection, _: accepted.set_result(connection))
        with socket.create_connection(listener.getsockname()), await accepted:
            remove()


@pytest.mark.gen_test
async def test_no_socket_begins_to_listen_if_one_is_unusable(serving: Serving) -> None:
    ours, theirs = tcp_pair()
    with ours, theirs, bound() as listener, socket.socket() as unbound:
        for unusable in ours, unbound:
            with pytest.raises(OptionError, match="is not listening"):
                Echo().add_sockets([listener, unusable])
            assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


@pytest.mark.gen_test
async def test_a_socket_that_may_not_listen_is_not_added(serving: Serving) -> None:
    with bound() as other, socket.socket() as listener:
        for each in other, listener:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(other.getsockname())
        other.listen()
        server = Echo()
        with pytest.raises(ListenError, match="Address already in use"):
            server.add_socket(listener)
        assert server.addresses == []


# ---- Tornado's private names


@pytest.mark.gen_test
@pytest.mark.parametrize("make", [Echo, partial(HTTPServer, Application())])
async def test_sockets_has_the_listening_sockets_by_descriptor(serving: Serving, make: Any) -> None:
    server = make()
    assert server._sockets == {}
    serving.started(server)
    server.listen(0, "127.0.0.1")
    assert [each.getsockname() for each in server._sockets.values()] == server.addresses
    assert all(each.fileno() == number for number, each in server._sockets.items())
    server._sockets = {}
    server.suspend()
    assert len(server._sockets) == 2
    server.stop()
    assert server._sockets == {}


@pytest.mark.gen_test
async def test_a_private_name_that_is_not_there_says_so(serving: Serving) -> None:
    for server in Echo(), HTTPServer(Application()):
        for name in "_handlers", "_pending_sockets", "_started", "_stopped", "_handle_connection":
            with pytest.raises(AttributeError, match=f"no attribute '{name}': it is private to Tornado's"):
                getattr(server, name)


@pytest.mark.gen_test
async def test_a_server_is_an_instance_of_tornados_class(serving: Serving) -> None:
    assert isinstance(Echo(), tornado.tcpserver.TCPServer)
    assert isinstance(HTTPServer(Application()), tornado.httpserver.HTTPServer)


@pytest.mark.gen_test
@pytest.mark.parametrize("base, arguments", [(Echo, ()), (HTTPServer, (Application(),))])
async def test_an_overridden_handle_connection_is_warned_of_once(
    serving: Serving, base: Any, arguments: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Server(base):  # type: ignore[misc]
        def _handle_connection(self, connection: Any, address: Any) -> None:
            raise NotImplementedError

    for server in Server(*arguments), Server(*arguments):
        serving.started(server)
        server.listen(0, "127.0.0.1")
    (record,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert "Server._handle_connection() is never called" in record.getMessage()
    assert "handle_stream" in record.getMessage()


# ---- ssl_options of a listening server


def files_in(directory: Path) -> dict[str, str]:
    return dict(self_signed().write(directory))


async def is_served_under_tls(server: TCPServer, files: dict[str, str]) -> bool:
    options = {"ca_certs": files["certfile"]}
    try:
        stream = await TCPClient().connect(*server.addresses[0], ssl_options=options, timeout=PATIENCE)
    except StreamClosedError:
        return False
    await stream.write(b"abc\n")
    reply = await stream.read_until(b"\n")
    await stream.aclose()
    return reply == b"abc\n"


@pytest.mark.gen_test
async def test_ssl_options_of_a_listening_server_are_those_of_new_connections(serving: Serving, tmp_path: Path) -> None:
    one, other = files_in(tmp_path / "one"), files_in(tmp_path / "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(**one)
    server = serving.started(Echo(**AT_ONCE))
    before = serving.connect(server)
    assert await answers(before)
    for given, files in (context, one), (other, other), (Certificates(one), one):
        server.ssl_options = given
        assert server.ssl_options is given
        assert await is_served_under_tls(server, files)
        assert len(server.certificates) == 1
    server.ssl_options = None
    assert server.certificates == []
    assert await answers(serving.connect(server))
    assert await answers(before)


@pytest.mark.gen_test
async def test_ssl_options_may_be_set_before_the_server_listens(serving: Serving, tmp_path: Path) -> None:
    files = files_in(tmp_path)
    server = Echo()
    server.ssl_options = files
    serving.started(server)
    assert await is_served_under_tls(server, files)


@pytest.mark.gen_test
async def test_invalid_ssl_options_change_nothing(serving: Serving, tmp_path: Path) -> None:
    files = files_in(tmp_path)
    server = serving.started(Echo(ssl_options=files))
    certificates = server.certificates
    for invalid in {"certfile": str(tmp_path / "none.pem")}, {"certfile": files["keyfile"]}, "cert.pem":
        with pytest.raises(CertificateError):
            server.ssl_options = invalid  # type: ignore[assignment]
        assert server.ssl_options is files
        assert server.certificates == certificates
    assert await is_served_under_tls(server, files)


@pytest.mark.gen_test
async def test_reload_certificates_reads_the_files_that_were_set_last(serving: Serving, tmp_path: Path) -> None:
    server = serving.started(Echo(ssl_options=files_in(tmp_path / "before")))
    files = files_in(tmp_path / "now")
    server.ssl_options = files
    self_signed().write(tmp_path / "now")
    reloaded = listen_to(server, "reload")
    assert server.reload_certificates()
    assert len(reloaded) == 1
    assert await is_served_under_tls(server, files)


@pytest.mark.gen_test
async def test_a_listener_with_tls_options_of_its_own_keeps_them(serving: Serving, tmp_path: Path) -> None:
    files = files_in(tmp_path)
    server = Echo()
    server.listen(0, "127.0.0.1", ssl_options=files)
    serving.servers.append(server)
    server.ssl_options = files_in(tmp_path / "other")
    assert len(server.certificates) == 2
    assert await is_served_under_tls(server, files)


@pytest.mark.gen_test
async def test_certificates_that_are_set_while_listening_are_watched_for_expiry(
    serving: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving.started(Echo())
    server.ssl_options = dict(self_signed(days=2).write(tmp_path))
    assert "expires on" in caplog.text


# ---- an HTTP server whose handle_stream is a coroutine


class Slow(RequestHandler):
    async def get(self) -> None:
        self.settings["working"].set()
        await self.settings["done"].wait()
        self.write("done")


@pytest.mark.gen_test
async def test_a_coroutine_that_hands_over_to_the_http_server_leaves_its_stream_open(serving: Serving) -> None:
    class Proxied(HTTPServer):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:  # type: ignore[override]
            assert await stream.read_until(b"\r\n") == b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"
            super().handle_stream(stream, address)

    working, done = asyncio.Event(), asyncio.Event()
    application = Application([("/", Slow)], working=working, done=done)
    server = serving.started(Proxied(application, **AT_ONCE))
    peer = serving.connect(server)
    peer.send(b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + request("/"))
    await working.wait()
    await turns(20)
    done.set()
    assert await answer(peer) == (200, b"done")


# ---- TCPClient


def drive(coroutine: Any) -> "asyncio.Future[Any]":
    """Step a coroutine without a task, at first without a running loop."""
    done: asyncio.Future[Any] = asyncio_loop(current_loop()).create_future()

    def step(_: object = None) -> None:
        try:
            waiting = coroutine.send(None)
        except StopIteration as returned:
            done.set_result(returned.value)
        except Exception as error:
            done.set_exception(error)
        else:
            waiting._asyncio_future_blocking = False
            waiting.add_done_callback(step)

    step()
    return done


class Numeric(Resolver):
    """Unlike Tornado's other resolvers, it needs no running loop."""

    def initialize(self) -> None:
        pass

    async def resolve(self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC) -> Any:
        return [each[::4] for each in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)]


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("begin", [gen.convert_yielded, drive])
def test_a_client_may_begin_to_connect_before_a_loop_runs(
    serving: Serving, io_loop: IOLoop, begin: Any, timeout: float | None
) -> None:
    server = serving.started(Echo())
    connecting = begin(TCPClient(Numeric()).connect(*server.addresses[0], timeout=timeout))

    async def ask() -> bytes:
        stream = await connecting
        await stream.write(b"abc\n")
        reply = await stream.read_until(b"\n")
        await stream.aclose()
        return bytes(reply)

    assert io_loop.run_sync(ask) == b"abc\n"
    io_loop.run_sync(server.close_all_connections)


def test_a_client_asks_its_resolver_at_once() -> None:
    """distributed has such a resolver, and a test of that."""
    with pytest.raises(socket.gaierror):
        TCPClient(Numeric()).connect("::1", 80, socket.AF_INET).send(None)


def test_a_client_that_connects_without_a_task_can_time_out(serving: Serving, io_loop: IOLoop) -> None:
    class Never(Resolver):
        def initialize(self) -> None:
            pass

        async def resolve(self, *_: Any) -> Any:
            await asyncio.Event().wait()

    connecting = drive(TCPClient(Never()).connect("localhost", 80, timeout=0.01))
    with pytest.raises(StreamTimeoutError, match="while resolving localhost"):
        io_loop.run_sync(lambda: connecting)
