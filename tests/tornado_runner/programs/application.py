"""An application with WebSockets, on `Application.listen`, and its clients."""

import asyncio
import logging
import socket
import sys

import tornado.httpclient
import tornado.web
import tornado.websocket
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from tornado.testing import bind_unused_port

PAYLOAD = b"x" * (3 << 20)


class Hello(tornado.web.RequestHandler):
    async def get(self, name: str) -> None:
        await asyncio.sleep(0)
        self.write({"hello": name, "from": self.request.remote_ip, "query": self.get_query_argument("q", None)})

    def post(self, name: str) -> None:
        self.write(f"{name} has sent {len(self.request.body)} bytes")


class Stream(tornado.web.RequestHandler):
    async def get(self) -> None:
        for _ in range(3):
            self.write(PAYLOAD)
            await self.flush()


class Chat(tornado.websocket.WebSocketHandler):
    async def on_message(self, message: str | bytes) -> None:
        await self.write_message(message, binary=isinstance(message, bytes))

    def on_close(self) -> None:
        print("closed:", self.close_code, self.close_reason)
        closed.set()


closed = asyncio.Event()


async def main() -> None:
    application = tornado.web.Application(
        [
            ("/hello/(.*)", Hello),
            ("/stream", Stream),
            ("/chat", Chat),
            ("/old", tornado.web.RedirectHandler, {"url": "/hello/you"}),
        ]
    )
    server = application.listen(0, "127.0.0.1")
    listener, port = bind_unused_port()
    server.add_socket(listener)
    client = tornado.httpclient.AsyncHTTPClient()
    assert isinstance(client, SimpleAsyncHTTPClient)
    for path in "/hello/world?q=1", "/old", "/nothing", "/stream":
        answer = await client.fetch(f"http://127.0.0.1:{port}{path}", raise_error=False)
        print(path, answer.code, answer.reason, answer.body[:80], len(answer.body))
    answer = await client.fetch(f"http://127.0.0.1:{port}/hello/poster", method="POST", body=PAYLOAD)
    print(answer.code, answer.body)
    chat = await tornado.websocket.websocket_connect(f"ws://127.0.0.1:{port}/chat")
    for message in "one", b"two", "three" * 100_000:
        await chat.write_message(message, binary=isinstance(message, bytes))
        echo = await chat.read_message()
        print(type(echo).__name__, echo == message)
    chat.close(1000, "enough")
    await closed.wait()
    print(await chat.read_message())
    server.stop()
    await server.close_all_connections()
    with socket.socket() as refused:
        print(refused.connect_ex(("127.0.0.1", port)) != 0)
    print(type(server).__module__, file=sys.stderr)


logging.getLogger("tornado.access").setLevel(logging.ERROR)
asyncio.run(main())
