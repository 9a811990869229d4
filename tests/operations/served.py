"""What is served: each answer names the process that gives it. A service gets a copy of this file, as ``served.py``."""

import os
import time

from tornado.web import Application, RequestHandler

from iostreamsrv import IOStream, TCPServer
from iostreamsrv.httpserver import HTTPServer


class Echo(TCPServer):
    """Answers lines."""

    async def handle_stream(self, stream: IOStream, address: object) -> None:
        while True:
            line = await stream.read_until(b"\n")
            await stream.write(b"%d %b" % (os.getpid(), line))


class Plain(TCPServer):
    """Answers lines with themselves: the load of the benchmarks expects that."""

    async def handle_stream(self, stream: IOStream, address: object) -> None:
        while True:
            await stream.write(await stream.read_until(b"\n"))


class Computing(TCPServer):
    """Computes for a millisecond before each answer."""

    async def handle_stream(self, stream: IOStream, address: object) -> None:
        while True:
            line = await stream.read_until(b"\n")
            until = time.thread_time() + 0.001
            while time.thread_time() < until:
                pass
            await stream.write(line)


class Hello(RequestHandler):
    def get(self) -> None:
        self.write(b"%d\n" % os.getpid())


def hello() -> HTTPServer:
    """The same in HTTP, with Tornado's framework on our server."""
    return HTTPServer(Application([("/", Hello)], log_function=lambda handler: None))  # as the others log no request


class Counting(TCPServer):
    """Answers lines with their number. Its clients go on in the next worker."""

    async def handle_stream(self, stream: IOStream, address: object) -> None:
        await self.handle_resume(stream, address, 0)

    def handle_handover(self, stream: IOStream) -> int:
        count: int = stream.data["count"]
        return count

    async def handle_resume(self, stream: IOStream, address: object, state: int) -> None:
        stream.data["count"] = state
        while True:
            line = await stream.read_until(b"\n")
            stream.data["count"] += 1
            await stream.write(b"%d %d %b" % (os.getpid(), stream.data["count"], line))
