"""`HTTPServer` closes connections in order: the last answer arrives, also while the client still sends."""

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterable
from http.client import responses
from pathlib import Path
from typing import Any

import pytest
import tornado.web
import tornado.websocket

from iostreamsrv import CloseReason, IOStream
from iostreamsrv.httpserver import HTTPServer
from tests.support.engines import on_every_loop
from tests.support.http import upgraded
from tests.support.peers import tls_contexts
from tests.support.servers import Serving
from tests.support.tiers import EVERY_CASE, crossed
from tests.support.waiting import PATIENCE, eventually, turns

pytestmark = on_every_loop

TRIES = 20 if EVERY_CASE else 5

BODY = 8_000_000
"""Bytes that a client sends before it reads."""

LIMIT = 100_000

OVER_BOTH = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


class Whole(tornado.web.RequestHandler):
    def post(self) -> None:
        self.finish(b"%d" % len(self.request.body))

    get = post


@tornado.web.stream_request_body
class Forbidden(tornado.web.RequestHandler):
    """Knows from the head that it wants nothing of this."""

    def prepare(self) -> None:
        raise tornado.web.HTTPError(401)

    def data_received(self, chunk: bytes) -> None:
        raise AssertionError("nobody asked for it")


@tornado.web.stream_request_body
class TooLarge(tornado.web.RequestHandler):
    """Has had enough after some of it."""

    received = 0

    def data_received(self, chunk: bytes) -> None:
        self.received += len(chunk)
        if self.received > LIMIT and not self._finished:
            self.send_error(413)


class Socket(tornado.websocket.WebSocketHandler):
    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)


class Serves(HTTPServer):
    """Notes with what reason its streams end."""

    def initialize(self, *arguments: Any, **keywords: Any) -> None:  # type: ignore[override]
        routes = [("/", Whole), ("/forbidden", Forbidden), ("/large", TooLarge), ("/ws", Socket)]
        application = tornado.web.Application([*routes, *keywords.pop("more", ())], websocket_max_message_size=1000)
        super().initialize(application, **{"max_body_size": LIMIT, **keywords})
        self.ends: list[CloseReason] = []

    def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        self.ends.append(reason)


def sent_and_then_read(address: Any, pieces: Iterable[bytes], tls: ssl.SSLContext | None) -> bytes:
    """For a thread: what a client gets that sends all it has before it reads. A reset is an error."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection(address, 4 * PATIENCE))
        if tls is not None:
            sock = stack.enter_context(tls.wrap_socket(sock, server_hostname="localhost"))
        for piece in pieces:
            sock.sendall(piece)
        received = bytearray()
        while chunk := sock.recv(65536):
            received += chunk
        return bytes(received)


def upload(path: str, size: int = BODY, *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {size}", *lines]
    return "".join(f"{line}\r\n" for line in [*head, ""]).encode()


async def answers_of(server: HTTPServer, request: bytes, body: int, tls: bool, tries: int = TRIES) -> list[Any]:
    context = tls_contexts()[1] if tls else None
    pieces = [request, *[bytes(100_000)] * (body // 100_000)]
    found = []
    for _ in range(tries):
        try:
            asking = asyncio.to_thread(sent_and_then_read, server.addresses[0], pieces, context)
            found.append((await asking).partition(b"\r\n")[0])
        except OSError as error:
            found.append(error)
    await asyncio.get_running_loop().shutdown_default_executor()
    return found


def started(serving: Serving, tls: bool = False, **keywords: Any) -> Any:
    return serving.started(Serves(ssl_options=tls_contexts()[0] if tls else None, **keywords))


# ---- the answer while the body is still coming


@OVER_BOTH
@pytest.mark.parametrize(
    "path, status",
    [
        ("/", b"HTTP/1.1 400 Bad Request"),
        ("/forbidden", b"HTTP/1.1 401 Unauthorized"),
        ("/large", b"HTTP/1.1 413 " + responses[413].encode()),
    ],
    ids=["over max_body_size", "refused by prepare", "refused in the middle"],
)
@pytest.mark.gen_test(timeout=120)
async def test_no_answer_is_lost_while_the_body_is_still_coming(
    serving: Serving, path: str, status: bytes, tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    server = started(serving, tls, max_body_size=LIMIT if path == "/" else 2 * BODY)
    assert await answers_of(server, upload(path), BODY, tls) == [status] * TRIES
    await eventually(lambda: len(server.ends) == TRIES)
    assert set(server.ends) == {"local"}


REFUSALS = {
    "over max_body_size": ("/", b"HTTP/1.1 400 Bad Request"),
    "refused by prepare": ("/forbidden", b"HTTP/1.1 401 Unauthorized"),
    "in the middle": ("/large", b"HTTP/1.1 413 " + responses[413].encode()),
}
"""The path of a request, and the first line of the answer to it."""

TRANSPORTS = {"plain": False, "tls": True}


def chunked(path: str) -> list[bytes]:
    """A request, and its body in chunks."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunk = b"%x\r\n%s\r\n" % (100_000 - 9, bytes(100_000 - 9))
    return [head, *[chunk] * (BODY // 100_000), b"0\r\n\r\n"]


@pytest.mark.parametrize(("refusal", "tls"), crossed(REFUSALS, TRANSPORTS))
@pytest.mark.gen_test(timeout=120)
async def test_no_answer_to_a_chunked_body_is_lost_while_that_is_still_coming(
    serving: Serving, refusal: tuple[str, bytes], tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path, status = refusal
    caplog.set_level(logging.CRITICAL)
    server = started(serving, tls, max_body_size=LIMIT if path == "/" else 2 * BODY)
    context = tls_contexts()[1] if tls else None
    asked = server.addresses[0], chunked(path), context
    found = [await asyncio.to_thread(sent_and_then_read, *asked) for _ in range(TRIES)]
    await asyncio.get_running_loop().shutdown_default_executor()
    assert [answer.partition(b"\r\n")[0] for answer in found] == [status] * TRIES


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    ("refusal", "header", "tls"), crossed(REFUSALS, ["Expect:", "Transfer-Encoding: chunked"], TRANSPORTS)
)
@pytest.mark.gen_test(timeout=120)
async def test_curl_shows_the_answer_to_an_upload_that_is_refused(
    serving: Serving, engine: str, refusal: tuple[str, bytes], header: str, tls: bool, tmp_path: Path, caplog: Any
) -> None:
    path, status = refusal
    if engine != "epoll":
        pytest.skip("sockets do the same on the others, in less time")
    caplog.set_level(logging.CRITICAL)
    server = started(serving, tls, max_body_size=LIMIT if path == "/" else 2 * BODY)
    host, port = server.addresses[0]
    (tmp_path / "body").write_bytes(bytes(BODY))
    command = ["curl", "-sk", "--http1.1", "-o", os.devnull, "-w", "%{http_code}", "-H", header, "-H", "Expect:"]
    command += ["-X", "POST", "-T", str(tmp_path / "body"), f"http{'s' * tls}://{host}:{port}{path}"]
    found = []
    for _ in range(TRIES):
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        found.append((await process.communicate())[0])
    assert found == [status.split()[1]] * TRIES


@pytest.mark.parametrize(
    "request_, lines",
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"this is no request\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
    ],
    ids=["Connection: close", "HTTP/1.0", "garbage", "a wrong length"],
)
@pytest.mark.gen_test(timeout=60)
async def test_whatever_has_tornado_close_the_answer_arrives(
    serving: Serving, request_: bytes, lines: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    server = started(serving)
    assert await answers_of(server, request_, 2_000_000, False, 5) == [lines] * 5


@pytest.mark.gen_test
async def test_a_websocket_that_is_refused_learns_why_while_it_still_sends(serving: Serving) -> None:
    server = started(serving)
    peer = await upgraded(serving.connect(server), "/ws")
    await peer.send_all(b"\x82\xff" + struct.pack(">Q", 1_000_000) + bytes(4) + bytes(1_000_000))
    received = await peer.receive_all()
    assert received.startswith(b"\x88\x11\x03\xf1message too big")
    peer.close()
    await eventually(lambda: server.ends)


# ---- what close() of such a stream is


class Held(tornado.web.RequestHandler):
    """Leaves its stream to the test."""

    async def get(self) -> None:
        self.application.settings["found"].append(self)
        await self.application.settings["go_on"].wait()

    def on_connection_close(self) -> None:
        self.application.settings["left"].append(self)


async def held(serving: Serving) -> tuple[Any, Any, IOStream, Any]:
    server = started(serving, more=[("/held", Held)])
    settings = server.request_callback.settings
    settings.update(found=[], left=[], go_on=asyncio.Event())
    peer = serving.connect(server)
    peer.send(b"GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await eventually(lambda: settings["found"])
    (handler,) = settings["found"]
    return server, peer, handler.request.connection.stream, settings


@pytest.mark.gen_test
async def test_a_stream_is_closed_for_everybody_as_soon_as_close_was_called(serving: Serving) -> None:
    server, peer, stream, settings = await held(serving)
    closed: list[bool] = []
    stream.set_close_callback(lambda: closed.append(True))
    stream.close()
    stream.close()
    assert stream.closed()
    assert stream.close_reason == "local"
    for use in (lambda: stream.write(b"abc"), lambda: stream.read_bytes(1)):
        with pytest.raises(tornado.iostream.StreamClosedError):
            use()
    await turns(2)
    assert closed == [True]
    late: list[bool] = []
    stream.set_close_callback(lambda: late.append(True))
    await turns(2)
    assert late == [True]
    assert await peer.receive_all() == b""
    assert server.ends == [], "it lingers"
    peer.close()
    await eventually(lambda: server.ends)
    assert server.ends == ["local"]
    assert closed == [True]
    settings["go_on"].set()
    await turns()


@pytest.mark.gen_test
async def test_a_handler_learns_once_that_its_client_has_left(serving: Serving) -> None:
    server, peer, _, settings = await held(serving)
    peer.close()
    await eventually(lambda: settings["left"])
    assert settings["left"] == settings["found"]
    assert server.ends == ["eof"]
    settings["go_on"].set()
    await turns()
    assert len(settings["left"]) == 1


@pytest.mark.gen_test
async def test_what_was_written_before_a_close_arrives_whole(serving: Serving) -> None:
    server, peer, stream, settings = await held(serving)
    stream.write(b"x" * 5_000_000)
    stream.close()
    assert await peer.receive_all() == b"x" * 5_000_000
    settings["go_on"].set()
    peer.close()
    await eventually(lambda: server.ends)


@pytest.mark.gen_test
async def test_a_close_with_an_error_is_at_once(serving: Serving) -> None:
    server, _, stream, settings = await held(serving)
    error = OSError("made up")
    stream.close(error)
    assert server.ends == ["local"]
    assert stream.error is error
    settings["go_on"].set()
    await turns()


@pytest.mark.gen_test
async def test_a_connection_that_is_being_closed_holds_no_shutdown_up(serving: Serving) -> None:
    server = started(serving, drain_idle=0.01, linger=20)
    peer = serving.connect(server)
    peer.send(b"GET / HTTP/1.0\r\n\r\n")
    assert (await peer.receive_all()).endswith(b"\r\n\r\n0")
    assert len(server.streams) == 1
    async with asyncio.timeout(PATIENCE):  # a linger takes 20
        await server.shutdown()
    assert server.ends == ["local"]
