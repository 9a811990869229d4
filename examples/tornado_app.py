"""A Tornado application with a WebSocket on iostreamsrv. Only the import of HTTPServer differs.

Open it in several browser windows: each shows the messages of all.

Start it in the project's folder, with one worker, which has all pages in its memory:

    iostreamsrv serve examples.tornado_app:server --bind 127.0.0.1:8888
"""

import asyncio
import contextlib

import tornado.web
import tornado.websocket

from iostreamsrv.httpserver import HTTPServer

PAGE = """<!DOCTYPE html>
<title>What all say</title>
<link rel="icon" href="data:,">
<form><input name="line" autofocus autocomplete="off"><button>Say</button></form>
<ul></ul>
<script>
const socket = new WebSocket(`ws${location.protocol.slice(4)}//${location.host}/lines`);
const show = text => {
  const item = document.createElement("li");
  item.textContent = text;
  document.querySelector("ul").append(item);
};
socket.onopen = () => socket.send(location.hash.slice(1) || "a page is here");
socket.onmessage = event => show(event.data);
socket.onclose = () => show("(the server has gone)");
document.forms[0].onsubmit = event => {
  event.preventDefault();
  socket.send(event.target.line.value);
  event.target.reset();
};
</script>
"""


class Page(tornado.web.RequestHandler):
    def get(self):
        self.write(PAGE)


class Lines(tornado.websocket.WebSocketHandler):
    def initialize(self, pages):
        self.pages = pages

    def open(self):
        self.pages.add(self)

    async def on_message(self, message):
        await asyncio.gather(*(page.show(message) for page in self.pages))  # waits for the slowest

    async def show(self, message):
        with contextlib.suppress(tornado.websocket.WebSocketClosedError):  # on_close() is about to be called
            await self.write_message(message)

    def on_close(self):
        self.pages.discard(self)


application = tornado.web.Application(
    [("/", Page), ("/lines", Lines, {"pages": set()})], websocket_max_message_size=10_000
)
# A page that accepts no data is closed after 5 seconds; until then the others wait for it.
server = HTTPServer(application, max_connections=1000, idle_timeout=600, write_timeout=5)
