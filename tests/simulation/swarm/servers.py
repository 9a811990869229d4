"""A server of each style that has no threads, for the protocol of the swarm."""

import asyncio
import contextlib
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any, Protocol

import tornado.iostream
import tornado.web

from iostreamsrv import CloseReason, FramingError, IOStream, StreamClosedError, TCPServer
from iostreamsrv.errors import of_stream
from iostreamsrv.framing import Delimited
from iostreamsrv.httpserver import HTTPServer
from iostreamsrv.styles import CallbackServer
from iostreamsrv.styles.queues import SendQueue, _Server  # a `QueueServer` makes a loop, so it cannot be simulated
from iostreamsrv.testing import Simulation

from .protocol import BLOCK, BLOCKED, BROADCAST, FAIL, LEAVE_READING, QUIT, WATCH, WORK, WORKED, Request, broadcast
from .record import Record

whose: ContextVar[int | None] = ContextVar("whose", default=None)
"""The id of the stream whose code has run in this context."""


class Planted(RuntimeError):
    """What a handler raises when it is asked to."""


class Notes(Protocol):
    """What servers note."""

    sim: Simulation
    problems: list[tuple[str, str]]

    def record_of(self, number: int) -> Record | None:
        """The connection of the client with this number."""

    def called(self, stream: IOStream, task: str) -> None:
        """``handle_stream`` runs for a stream, in the task with this name."""

    def closed(self, stream: IOStream, reason: CloseReason) -> None:
        """``handle_close`` is called."""

    def look(self, server: TCPServer) -> None:
        """Check what must hold at any time."""


class Swarm(TCPServer):
    """What the servers of all styles have in common: they answer, and note what they see."""

    notes: Notes

    def answer(self, stream: IOStream, line: bytes) -> tuple[Request, bytes]:
        """The request of a line without its newline, and its answer."""
        self.check_context(stream)
        try:
            record = self.notes.record_of(int(line.split(b" ")[1]))
            assert record is not None
            request = record.take(line)
        except (ValueError, IndexError, AssertionError):
            raise of_stream(FramingError(f"not a request: {line[:60]!r}"), stream.id) from None
        if request.kind == FAIL:
            raise Planted
        if request.kind == BLOCK:
            self.notes.sim.stop(BLOCKED)
        elif request.kind == BROADCAST:
            self.group("all").broadcast(broadcast(request), exclude=stream)
        self.notes.look(self)
        return request, request.answer()

    def check_context(self, stream: IOStream) -> None:
        """Nobody else's code has run in this context."""
        if whose.get() not in (None, stream.id):
            self.notes.problems.append(("contexts", f"{stream.remote_address} runs in the context of another client"))
        whose.set(stream.id)

    def joined(self, stream: IOStream) -> None:
        """A client has come."""
        self.check_context(stream)
        if not stream.closed():
            self.group("all").join(stream)

    def answered(self, request: Request) -> None:
        """A write of an answer was reported done."""
        record = self.notes.record_of(request.client)
        assert record is not None
        record.written += 1

    def answers_draining(self, request: Request) -> None:
        """A request is answered while the server shuts down."""
        record = self.notes.record_of(request.client)
        assert record is not None
        record.answered_draining.add(request.number)

    def _called(self, stream: IOStream) -> None:
        task = asyncio.current_task()
        self.notes.called(stream, "" if task is None else task.get_name())
        self.check_context(stream)

    def handle_close(self, stream: IOStream, reason: CloseReason) -> Awaitable[None] | None:
        self.notes.closed(stream, reason)
        self.check_context(stream)
        return super().handle_close(stream, reason)


class Lines(Swarm):
    """Reads until a newline."""

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        self._called(stream)
        self.joined(stream)
        while await self.serve_one(stream, await self.read_line(stream)):
            pass

    async def handle_reject(self, stream: IOStream, address: Any) -> None:
        await stream.write(b"*0 0\n")

    async def read_line(self, stream: IOStream) -> bytes:
        return bytes((await stream.read_until(b"\n"))[:-1])

    async def write_line(self, stream: IOStream, line: bytes) -> None:
        await stream.write(line + b"\n")

    async def serve_one(self, stream: IOStream, line: bytes) -> bool:
        """Answer a request; whether to go on."""
        request, answer = self.answer(stream, line)
        kind = request.kind
        if kind == WORK:
            await asyncio.sleep(WORKED)
        closed = asyncio.Event()
        if kind == WATCH:
            stream.set_close_callback(closed.set)
        await self.write_line(stream, answer)
        self.answered(request)
        if kind == WATCH:
            await closed.wait()
        elif kind == LEAVE_READING:
            self.left = stream.read_bytes(1)
            self.left.add_done_callback(lambda read: read.cancelled() or read.exception())
        return kind not in (QUIT, LEAVE_READING, WATCH)


class Framed(Lines):
    """Reads and writes with a framing."""

    async def read_line(self, stream: IOStream) -> bytes:
        return bytes(await Delimited(stream).read())

    async def write_line(self, stream: IOStream, line: bytes) -> None:
        await Delimited(stream, max_size=1 << 20).write(line)


class Matching(Lines):
    """Reads what a function recognises."""

    async def read_line(self, stream: IOStream) -> bytes:
        def match(buffer: bytearray) -> tuple[int, bytes] | None:
            end = buffer.find(b"\n")
            return None if end < 0 else (end + 1, bytes(buffer[:end]))

        line: bytes = await stream.read_until_match(match)
        return line


class Parts(Lines):
    """Reads what there is, and looks for lines itself."""

    async def read_line(self, stream: IOStream) -> bytes:
        kept: bytearray = stream.data.setdefault("kept", bytearray())
        while (end := kept.find(b"\n")) < 0:
            kept += await stream.read_bytes(4096, partial=True)
        line = bytes(kept[:end])
        del kept[: end + 1]
        return line


class Callbacks(Swarm, CallbackServer):
    """Answers in a callback, a request for each call."""

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        self._called(stream)
        await CallbackServer.handle_stream(self, stream, address)

    def on_connect(self, stream: IOStream) -> None:
        self.joined(stream)

    def on_data(self, stream: IOStream, data: bytes) -> Any:
        end = data.find(b"\n")
        if end >= 0:
            request, answer = self.answer(stream, data[:end])
            stream.write(answer + b"\n")
            self.answered(request)
        return end + 1

    def on_disconnect(self, stream: IOStream, unread: bytes, error: str) -> None:
        self.check_context(stream)


class CoroutineCallbacks(Callbacks):
    """The callbacks are coroutines."""

    async def on_data(self, stream: IOStream, data: bytes) -> int:
        end = data.find(b"\n")
        if end >= 0:
            request, answer = self.answer(stream, data[:end])
            await asyncio.sleep(0.01)
            await stream.write(answer + b"\n")
            self.answered(request)
        return end + 1


class Queues(Swarm, _Server):
    """What a `QueueServer` runs."""

    def __init__(self, **options: Any) -> None:
        _Server.__init__(self, self._data, **options)
        self._kept: dict[Any, tuple[IOStream, bytearray]] = {}

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        self._called(stream)
        self.joined(stream)
        self._kept[address] = stream, bytearray()
        try:
            await _Server.handle_stream(self, stream, address)
        finally:
            del self._kept[address]

    def _data(self, address: Any, queue: SendQueue, data: bytes) -> None:
        stream, kept = self._kept[address]
        kept += data
        while (end := kept.find(b"\n")) >= 0:
            line = bytes(kept[:end])
            del kept[: end + 1]
            request, answer = self.answer(stream, line)
            queue.put(answer + b"\n")
            self.answered(request)


class Gateway(Swarm):
    """Forwards to another server, and back.

    :ivar upstream: the server.
    """

    upstream: TCPServer

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        self._called(stream)
        stream.allow_half_open = True
        try:
            upstream = await self.notes.sim.connect(self.upstream)
        except OSError:
            stream.abort()
            return
        back = asyncio.create_task(self._forward(upstream, stream))
        try:
            if await self._forward(stream, upstream):
                await back
        finally:
            back.cancel()
            try:
                await asyncio.wait([back])
            finally:
                upstream.close()

    async def _forward(self, source: IOStream, target: IOStream) -> bool:
        """Forward until EOF, and EOF; whether it came so far."""
        with contextlib.suppress(StreamClosedError):
            try:
                while True:
                    await target.write(await source.read_bytes(65536, partial=True))
            except StreamClosedError as error:
                if error.stream_id != source.id or error.reason is not CloseReason.EOF:
                    target.abort()
                    return False
            except OSError:  # of the system, from a read
                target.abort()
                return False
            await target.send_eof()
            return True
        return False


class HTTP(Swarm, HTTPServer):
    """Answers requests of HTTP, by a Tornado application."""

    def initialize(self, **options: Any) -> None:  # type: ignore[override]
        """See `HTTPServer`, which has no other constructor."""
        application = tornado.web.Application([("/", Resource)], log_function=lambda handler: None, server=self)
        super().initialize(application, **options)

    def handle_stream(self, stream: IOStream, address: Any) -> None:  # type: ignore[override]
        self._called(stream)
        HTTPServer.handle_stream(self, stream, address)

    async def handle_reject(self, stream: IOStream, address: Any) -> None:
        await stream.write(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")


class Resource(tornado.web.RequestHandler):
    """Answers a request."""

    def initialize(self) -> None:
        """See `tornado.web.RequestHandler`."""
        self.server: HTTP = self.settings["server"]
        self.left = asyncio.Event()

    def on_connection_close(self) -> None:
        self.left.set()

    async def post(self) -> None:
        stream = self.request.connection.stream  # type: ignore[union-attr]
        request, answer = self.server.answer(stream, self.request.body[:-1])
        if request.kind == WORK:
            await asyncio.sleep(WORKED)
        if self.server.draining:
            self.server.answers_draining(request)
        self.write(answer + b"\n")
        with contextlib.suppress(tornado.iostream.StreamClosedError):
            await (self.flush() if request.kind == WATCH else self.finish())
            self.server.answered(request)
        if request.kind == WATCH:
            await self.left.wait()


STYLES: dict[str, type[Swarm]] = {
    "lines": Lines,
    "framing": Framed,
    "match": Matching,
    "parts": Parts,
    "callbacks": Callbacks,
    "coroutine callbacks": CoroutineCallbacks,
    "queue": Queues,
    "gateway": Gateway,
    "http": HTTP,
}
"""The class of each style."""
