"""A program that ends while WebSockets are open whose server has gone, as bokeh's client sessions do."""

import subprocess
import sys

import tornado.ioloop
from tornado.websocket import websocket_connect

SERVER = """
import asyncio
import tornado.web
from tornado.netutil import bind_sockets
from tornado.httpserver import HTTPServer
from tornado.websocket import WebSocketHandler

class Echo(WebSocketHandler):
    def on_message(self, message):
        self.write_message(message)

async def main():
    sockets = bind_sockets(0, "127.0.0.1")
    HTTPServer(tornado.web.Application([("/", Echo)])).add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
assert server.stdout is not None
port = int(server.stdout.readline())


class Session:
    """A client with a loop that runs only while it is used."""

    def __init__(self) -> None:
        self.loop = tornado.ioloop.IOLoop()

    async def talk(self) -> None:
        """Have a message echoed."""
        self.socket = await websocket_connect(f"ws://127.0.0.1:{port}/")
        await self.socket.write_message("hello")
        print(await self.socket.read_message())


sessions = [Session() for _ in range(3)]
for session in sessions:
    session.loop.run_sync(session.talk)
server.terminate()
server.wait()
server.stdout.close()
print(type(sessions[0].socket.protocol.stream).__module__, file=sys.stderr)  # type: ignore[union-attr]
