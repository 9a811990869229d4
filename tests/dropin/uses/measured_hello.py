"""``bokeh serve`` of a page that says hello: ``serve PORT`` becomes it, ``load PORT PID`` asks for it, and measures."""

import http.client
import os
import sys
from pathlib import Path

from checks import until
from meter import Meter
from programs import is_up

APPLICATION = """
from bokeh.io import curdoc
from bokeh.models import Div

curdoc().add_root(Div(text="Hello, world"))
"""
COUNT = 200


def serve(port: str) -> None:
    Path("hello.py").write_text(APPLICATION)
    options = ("--address", "127.0.0.1", "--port", port, "--log-level", "warning")
    os.execv(sys.executable, [sys.executable, "-m", "bokeh", "serve", "hello.py", *options])


def load(port: str, pid: str) -> None:
    until(lambda: is_up(f"http://127.0.0.1:{port}/hello"), 60)
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
    get(connection, 50)
    with Meter(int(pid)).measure('"hello" pages', COUNT):
        get(connection, COUNT)


def get(connection: http.client.HTTPConnection, count: int) -> None:
    for _ in range(count):
        connection.request("GET", "/hello")
        reply = connection.getresponse()
        assert b"bokeh" in reply.read() and reply.status == 200


if __name__ == "__main__":
    {"serve": serve, "load": load}[sys.argv[1]](*sys.argv[2:])
