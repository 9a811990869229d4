"""A Tornado application with a WebSocket on iostreamsrv. Only the import of HTTPServer differs.

Open it in several browser windows: each shows the messages of all.
"""

import argparse
import asyncio
import contextlib
import sys

import tornado.web
import tornado.websocket

import iostreamsrv
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


async def main(arguments):
    application = tornado.web.Application(
        [("/", Page), ("/lines", Lines, {"pages": set()})], websocket_max_message_size=10_000
    )
    # A page that accepts no data is closed after 5 seconds; until then the others wait for it.
    server = HTTPServer(application, max_connections=1000, idle_timeout=600, write_timeout=5)
    server.listen(arguments.port, arguments.host)
    for host, port, *_ in server.addresses:
        print("listening on", f"[{host}]:{port}" if ":" in host else f"{host}:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8888, help="0: a free one; default: %(default)s")
    try:
        iostreamsrv.run(main(parser.parse_args()))
    except (iostreamsrv.ListenError, iostreamsrv.OptionError) as error:
        sys.exit(f"tornado_app: {error}")
