"""HTTP servers that all answer with the same greeting: Tornado's Application on iostreamsrv and on Tornado itself,
``examples/http_hello.py`` (h11), and a parser in C, httptools, on iostreamsrv and in uvicorn.
"""

import asyncio
import importlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from .machine import BACKLOG, CHUNK

BODY = b"Hello, world\n"


def application() -> Any:
    import tornado.web

    class Hello(tornado.web.RequestHandler):
        def get(self) -> None:
            self.write(BODY)

    return tornado.web.Application([("/", Hello)])


def tornado_on_iostreamsrv() -> Any:
    from iostreamsrv.httpserver import HTTPServer

    return HTTPServer(application())


def tornado_itself() -> Any:
    from tornado.httpserver import HTTPServer

    return HTTPServer(application())


def h11_on_iostreamsrv() -> Any:
    return importlib.import_module("examples.http_hello").HelloServer()


class Request:
    """What httptools calls, for the requests of one connection.

    :ivar complete: the targets of requests that are complete, and not answered yet.
    """

    def __init__(self) -> None:
        self.complete: list[bytes] = []
        self.headers: list[tuple[bytes, bytes]] = []

    def on_message_begin(self) -> None:
        self.target = b""
        self.headers = []

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_message_complete(self) -> None:
        self.complete.append(self.target)


def httptools_on_iostreamsrv() -> Any:
    from iostreamsrv import TCPServer

    httptools = importlib.import_module("httptools")

    class HelloServer(TCPServer):
        async def handle_stream(self, stream: Any, address: Any) -> None:
            request = Request()
            parser = httptools.HttpRequestParser(request)
            try:
                while True:
                    parser.feed_data(await stream.read_bytes(CHUNK, partial=True))
                    if request.complete:
                        await stream.write(b"".join([answer(target) for target in request.complete]))
                        request.complete.clear()
                        if not parser.should_keep_alive():
                            return
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                await stream.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    return HelloServer()


def answer(target: bytes) -> bytes:
    status, body = (b"200 OK", BODY) if target == b"/" else (b"404 Not Found", b"")
    return b"HTTP/1.1 %b\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


async def start_uvicorn(listener: socket.socket) -> object:
    uvicorn = importlib.import_module("uvicorn")

    async def hello(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})

    quiet = {"log_config": None, "access_log": False, "date_header": False, "server_header": False}
    config = uvicorn.Config(hello, http="httptools", ws="none", lifespan="off", backlog=BACKLOG, **quiet)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    return serving


def started(make: Callable[[], Any]) -> Callable[[socket.socket], Awaitable[object]]:
    async def start(listener: socket.socket) -> object:
        server = make()
        server.add_socket(listener)
        return server

    return start


GREETERS: dict[str, Callable[[socket.socket], Awaitable[object]]] = {
    "iostreamsrv": started(tornado_on_iostreamsrv),
    "Tornado": started(tornado_itself),
    "iostreamsrv, h11": started(h11_on_iostreamsrv),
    "iostreamsrv, httptools": started(httptools_on_iostreamsrv),
    "uvicorn, httptools": start_uvicorn,
}
