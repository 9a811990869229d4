"""The end of a server whose clients ask again at once, and what it says meanwhile."""

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import pytest
import tornado.web
import tornado.websocket
from tornado.netutil import BlockingResolver

from iostreamsrv import CloseReason, IOStream, StreamClosedError, TCPServer
from iostreamsrv.events import Event
from iostreamsrv.httpserver import HTTPServer
from iostreamsrv.server.base import core_of
from iostreamsrv.styles import BlockingServer, CallbackServer, QueueServer
from iostreamsrv.testing import Simulation
from tests.support.engines import on_every_loop
from tests.support.peers import tls_contexts
from tests.support.programs import printed, program
from tests.support.servers import Echo, Serving, answers
from tests.support.simulations import peer_of, simulate
from tests.support.waiting import PATIENCE, eventually, turns

pytestmark = [*on_every_loop, pytest.mark.usefixtures("clock")]

IDLE = 0.2
"""``drain_idle`` of these servers."""

REQUEST = 0.3
"""Seconds that a request takes."""

BUSY = 20
"""Clients at a time."""

REST = 0.3
"""Seconds that the rest of a shutdown may take."""

SLACK = REST + (5.0 if sys.flags.dev_mode else 2.0)
"""The same, and what a busy machine may add to it."""

LATE: dict[str, Any] = {"delay": (0, 0.04)}
"""A network that acknowledges as late as kernels do."""

THINKING = [0.0, 0.02]
"""Seconds between an answer and the next request."""


class Working(TCPServer):
    """Answers each line after some time, on the next line.

    :ivar begun: requests that were read.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"drain_idle": IDLE, "drain_timeout": 4 * PATIENCE, **options})
        self.begun = 0
        self.ends: list[CloseReason] = []

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        while True:
            line = await stream.read_until(b"\n")
            self.begun += 1
            await asyncio.sleep(REQUEST)
            await stream.write(line)

    def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        self.ends.append(reason)


class Asking:
    """A client that asks, thinks, and asks again, until the server ends the connection in order.

    :ivar answers: that it got whole.
    :ivar reset: whether the connection ended in another way.
    """

    def __init__(self, address: Any, think: float, tls: bool = False, request: bytes = b"please\n") -> None:
        self.answers = 0
        self.reset = False
        self._request = request
        self._think = think
        self._address = address
        self._tls = tls_contexts()[1] if tls else None
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        reader, writer = await asyncio.open_connection(
            *self._address[:2], ssl=self._tls, server_hostname="localhost" if self._tls else None
        )
        try:
            while True:
                writer.write(self._request)
                if not await self.read_answer(reader):
                    break
                self.answers += 1
                if self._think:
                    await asyncio.sleep(self._think)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.reset = True
        finally:
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()

    async def read_answer(self, reader: asyncio.StreamReader) -> bool:
        line = await reader.readline()
        if line and not line.endswith(b"\n"):
            raise asyncio.IncompleteReadError(line, None)
        return line != b""


@contextlib.asynccontextmanager
async def asking(address: Any, think: float, **options: Any) -> AsyncIterator[list[Asking]]:
    clients = [Asking(address, think, **options) for _ in range(BUSY)]
    try:
        yield clients
    finally:
        for client in clients:
            client.task.cancel()
        await asyncio.wait([client.task for client in clients])


async def timed_shutdown(server: TCPServer) -> float:
    began = asyncio.get_running_loop().time()
    await server.shutdown()
    return asyncio.get_running_loop().time() - began


# ---- who asks again at once


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("think", THINKING)
@pytest.mark.gen_test(timeout=60)
async def test_no_busy_client_is_cut_and_none_keeps_the_server(serving: Serving, think: float, tls: bool) -> None:
    server = serving.started(Working(ssl_options=tls_contexts()[0] if tls else None))
    async with asking(server.addresses[0], think, tls=tls) as clients:
        await eventually(lambda: server.begun >= 2 * BUSY)
        took = await timed_shutdown(server)
        await asyncio.wait([client.task for client in clients], timeout=PATIENCE)
        assert sum(client.answers for client in clients) == server.begun, "each request that was begun"
        assert all(client.answers >= 2 for client in clients)
        assert not any(client.reset for client in clients)
    assert set(server.ends) == {"shutdown"}
    assert took < REQUEST + IDLE + SLACK


@pytest.mark.parametrize("think", THINKING)
@pytest.mark.gen_test(timeout=60)
async def test_no_busy_http_client_is_cut_and_none_keeps_the_server(serving: Serving, think: float) -> None:
    begun: list[int] = []

    class Slow(tornado.web.RequestHandler):
        async def get(self) -> None:
            begun.append(1)
            await asyncio.sleep(REQUEST)
            self.finish(b"done\n")

    class AskingHTTP(Asking):
        async def read_answer(self, reader: asyncio.StreamReader) -> bool:
            head = await reader.readuntil(b"\r\n\r\n")
            closes.append(b"Connection: close" in head)
            assert await reader.readexactly(5) == b"done\n"
            return not closes[-1]

    closes: list[bool] = []
    server = HTTPServer(tornado.web.Application([("/", Slow)]), drain_idle=IDLE, drain_timeout=4 * PATIENCE)
    serving.started(server)
    clients = [
        AskingHTTP(server.addresses[0], think, request=b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for _ in range(BUSY)
    ]
    await eventually(lambda: len(begun) >= 2 * BUSY)
    took = await timed_shutdown(server)
    await asyncio.wait([client.task for client in clients], timeout=PATIENCE)
    assert len(closes) == len(begun)
    assert not any(client.reset for client in clients)
    assert closes.count(True) == BUSY, "each connection was told so once, with its last answer"
    assert took < REQUEST + IDLE + SLACK
    assert server.conn_params.no_keep_alive is False, "for the next time"


def test_a_request_that_was_pipelined_behind_the_last_one_is_not_begun() -> None:
    async def main(sim: Simulation) -> None:
        server = Working()
        peer = await peer_of(sim, sim.serve(server))
        peer.send(b"".join(b"%d\n" % number for number in range(100)))
        await eventually(lambda: server.begun)
        took = await timed_shutdown(server)
        said = await peer.receive_all()
        assert said == b"".join(b"%d\n" % number for number in range(server.begun))
        assert 1 <= server.begun <= 3, "in 0.5 s"
        assert server.ends == ["shutdown"]
        assert took < REQUEST + IDLE + REST
        peer.close()

    simulate(main, **LATE)


@pytest.mark.parametrize("way", ["read_bytes", "read_into", "partial", "regex"])
@pytest.mark.gen_test
async def test_whichever_read_asks_again_the_conversation_ends(serving: Serving, way: str) -> None:
    class Numbers(Working):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            while True:
                if way == "read_into":
                    frame = bytearray(4)
                    await stream.read_into(frame)
                elif way == "regex":
                    await stream.read_until_regex(b"....")
                else:
                    await stream.read_bytes(4, partial=way == "partial")
                self.begun += 1
                await asyncio.sleep(0.01)
                await stream.write(b"answ")

    server = serving.started(Numbers())
    peer = serving.connect(server)
    peer.send(b"abcd" * 10_000)
    await eventually(lambda: server.begun)
    await server.shutdown()
    assert await peer.receive_all() == b"answ" * server.begun
    assert server.ends == ["shutdown"]


@pytest.mark.parametrize("inside", [False, True], ids=["waiting in the body", "at work before the body"])
@pytest.mark.gen_test
async def test_a_read_in_the_middle_of_a_request_goes_on(serving: Serving, inside: bool) -> None:
    header, go_on = asyncio.Event(), asyncio.Event()

    class HeaderAndBody(Working):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            while True:
                size = int(await stream.read_until(b"\n"))
                if size == 6:
                    header.set()
                    if inside:
                        await go_on.wait()
                parts = [await stream.read_bytes(size // 2), await stream.read_bytes(size // 2)]
                await stream.write(b"".join(parts))

    server = serving.started(HeaderAndBody(drain_idle=1.0))
    peer = serving.connect(server)
    peer.send(b"4\nabcd")
    assert await peer.receive(4) == b"abcd"
    ending = asyncio.create_task(server.shutdown())
    await asyncio.sleep(0.7)
    peer.send(b"6\nabc")
    await header.wait()
    await asyncio.sleep(0.6)
    assert core_of(server).connections.closes_answered, "drain_idle has passed"
    go_on.set()
    await turns(20)  # the read that waits for the rest of the body has begun
    peer.send(b"def")
    assert await peer.receive_all() == b"abcdef"
    await ending
    assert server.ends == ["shutdown"]


@pytest.mark.gen_test
async def test_what_others_write_while_a_request_comes_is_no_answer_to_it(serving: Serving) -> None:
    half = asyncio.Event()

    class Told(Working):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            while True:
                await stream.read_until(b"\n")
                half.set()
                await stream.write(b"answer to " + await stream.read_until(b"\n"))

    server = serving.started(Told(drain_idle=0.05))
    peer = serving.connect(server)
    peer.send(b"be")
    (stream,) = await there(server)
    await eventually(lambda: stream.buffered)
    ending = asyncio.create_task(server.shutdown())
    for _ in range(20):  # news, while the first line comes
        stream.write(b".")
        await asyncio.sleep(0.01)
    peer.send(b"gin\n")
    await half.wait()
    peer.send(b"this\n")
    assert await peer.receive_all() == b"." * 20 + b"answer to this\n"
    await ending


async def there(server: TCPServer) -> list[IOStream]:
    await eventually(lambda: len(server.streams))
    return list(server.streams)


@pytest.mark.gen_test
async def test_the_handler_learns_that_it_was_the_shutdown(serving: Serving) -> None:
    errors: list[StreamClosedError] = []

    class Learning(Working):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            try:
                await super().handle_stream(stream, address)
            except StreamClosedError as error:
                errors.append(error)
                with pytest.raises(StreamClosedError):
                    stream.write(b"this is too late\n")
                raise

    server = serving.started(Learning())
    async with asking(server.addresses[0], 0.0) as clients:
        await eventually(lambda: server.begun >= BUSY)
        await server.shutdown()
        await asyncio.wait([client.task for client in clients], timeout=PATIENCE)
    assert {(error.reason, error.operation) for error in errors} == {("shutdown", "read")}


def test_a_client_that_stays_after_the_end_keeps_nobody() -> None:
    async def main(sim: Simulation) -> None:
        server = Working(linger=20)
        sim.serve(server)
        peers = [await peer_of(sim, server) for _ in range(5)]
        for peer in peers:
            peer.send(b"one\ntwo\nthree\n" * 10)
        await eventually(lambda: server.begun >= 5)
        assert await timed_shutdown(server) < REQUEST + IDLE + REST  # a linger takes 20
        for peer in peers:
            assert (await peer.receive_all()).startswith(b"one\n")
            peer.close()

    simulate(main, **LATE)


@pytest.mark.gen_test
async def test_a_handler_that_goes_on_after_the_shutdown_reads_as_before(serving: Serving) -> None:
    class Ends(Working):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            while (line := await stream.read_until(b"\n")) != b"shutdown\n":
                await stream.write(line)
            await self.shutdown()
            await stream.write(b"over\n")
            await Echo.handle_stream(self, stream, address)  # type: ignore[arg-type]

    server = serving.started(Ends(drain_idle=0.01))
    peer = serving.connect(server)
    assert await answers(peer)
    peer.send(b"shutdown\n")
    assert await peer.receive(5) == b"over\n"
    for _ in range(3):
        assert await answers(peer)


# ---- the other styles


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_busy_clients_of_a_callback_server_do_not_keep_it(kind: str) -> None:
    async def main(sim: Simulation) -> None:
        begun: list[bytes] = []
        gone: list[CloseReason | None] = []

        def answer(stream: IOStream, data: bytes) -> int:
            begun.append(data)
            stream.write(data)
            return len(data)

        async def answer_later(stream: IOStream, data: bytes) -> int:
            begun.append(data)
            await asyncio.sleep(0.01)
            await stream.write(data)
            return len(data)

        server = CallbackServer(
            on_data=answer if kind == "function" else answer_later,
            on_disconnect=lambda stream, unread, error: gone.append(stream.close_reason),
            drain_idle=IDLE,
            drain_timeout=4 * PATIENCE,
        )
        sim.serve(server)
        async with asking(server.addresses[0], 0.0) as clients:
            await eventually(lambda: len(begun) >= 2 * BUSY)
            took = await timed_shutdown(server)
            await asyncio.wait([client.task for client in clients], timeout=PATIENCE)
            assert sum(client.answers for client in clients) == len(begun)
            assert not any(client.reset for client in clients)
        assert gone == ["shutdown"] * BUSY
        assert took < IDLE + REST

    simulate(main, delay=0.005, cut=0)  # a request that is cut in two is two calls


FLOODS = """
import contextlib, socket, sys, threading

PATIENCE = float(sys.argv[2])

def send(sock):
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(b"please\\n" * 10_000)

def flood():
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), PATIENCE) as sock:
        sending = threading.Thread(target=send, args=[sock])
        sending.start()
        while chunk := sock.recv(1 << 20):
            received.append(len(chunk))
        with contextlib.suppress(OSError):  # a reset has come, as it goes on sending
            sock.shutdown(socket.SHUT_RDWR)
        sending.join(PATIENCE)

received = []
threads = [threading.Thread(target=flood) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sum(received))
"""
"""Three clients that send lines all the time, and read what comes back until the end; prints how many bytes that were.

In a process of its own: its threads would keep the interpreter's lock from the server's.
"""


def stopped_under_floods(port: int, taken: list[int], stop: Callable[[], None]) -> tuple[float, int]:
    """How long ``stop`` takes while clients send, and how many bytes they have got in the end."""
    with program(FLOODS, str(port), str(PATIENCE)) as clients:
        while sum(taken) < 1_000_000:
            time.sleep(0.01)
        assert clients.poll() is None
        began = time.monotonic()
        stop()
        took = time.monotonic() - began
        return took, printed(clients)


@pytest.mark.real_time("threads")
@pytest.mark.parametrize("kind", ["callback", "coroutine", "queue"])
@pytest.mark.gen_test(timeout=60)
async def test_clients_that_send_all_the_time_do_not_keep_a_server_of_another_style(
    serving: Serving, kind: str
) -> None:
    options = {"drain_idle": 0.1, "drain_timeout": 4 * PATIENCE}
    taken: list[int] = []

    def answer(stream: IOStream, data: bytes) -> int:
        taken.append(len(data))
        stream.write(data)
        return len(data)

    async def answer_later(stream: IOStream, data: bytes) -> int:
        taken.append(len(data))
        await stream.write(data)
        return len(data)

    def put(queue: Any, data: bytes) -> None:
        taken.append(len(data))
        queue.put(data)

    loop = asyncio.get_running_loop()
    if kind == "queue":
        server = QueueServer("localhost", 0, put, **options)
        running = threading.Thread(target=server.run)
        running.start()
        took, ended = await asyncio.to_thread(stopped_under_floods, server.port, taken, server.stop)
        running.join(PATIENCE)
    else:
        callbacks = CallbackServer(on_data=answer if kind == "callback" else answer_later, **options)
        serving.started(callbacks)

        def stop() -> None:
            asyncio.run_coroutine_threadsafe(callbacks.shutdown(), loop).result()

        took, ended = await asyncio.to_thread(stopped_under_floods, callbacks.addresses[0][1], taken, stop)
    assert ended == sum(taken), "each got the answers to all that was taken from it"
    assert took < 0.1 + SLACK
    await loop.shutdown_default_executor()


@pytest.mark.real_time("threads")
@pytest.mark.gen_test(timeout=60)
async def test_a_thread_that_has_answered_and_receives_again_learns_of_the_end() -> None:
    errors: list[OSError] = []
    begun: list[bytes] = []

    class Answering(BlockingServer):
        def handle(self, sock: Any, address: Any) -> None:
            try:
                while data := sock.recv(1000):
                    begun.append(data)
                    sock.sendall(data)
            except OSError as error:
                errors.append(error)

    tls = tls_contexts()  # so that handle() has a Handle whatever the transport
    server = Answering(ssl_options=tls[0], drain_idle=0.05)
    server.start()
    await asyncio.to_thread(server.listen, 0, "127.0.0.1")
    inner = server._server
    try:
        reader, writer = await asyncio.open_connection(*server.addresses[0], ssl=tls[1], server_hostname="localhost")
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        ending = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(inner.shutdown(), inner._loop_thread.loop))
        count = 1
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                writer.write(b"two")
                assert await reader.readexactly(3) == b"two"
                count += 1
        writer.close()
        await asyncio.wait_for(ending, PATIENCE)
        assert count == len(begun)
        await eventually(lambda: errors)
        assert isinstance(errors[0], ConnectionAbortedError)
    finally:
        await asyncio.to_thread(server.stop)
    await asyncio.get_running_loop().shutdown_default_executor()


# ---- HTTP and WebSockets


class Message(tornado.websocket.WebSocketHandler):
    began: ClassVar[list[str]] = []

    async def on_message(self, message: str | bytes) -> None:
        self.began.append(str(message))
        await asyncio.sleep(REQUEST)
        await self.write_message(message)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with a message in hand"])
@pytest.mark.gen_test
async def test_websockets_get_1001_after_the_answer_in_hand(serving: Serving, busy: bool) -> None:
    Message.began.clear()
    server = HTTPServer(tornado.web.Application([("/", Message)]), drain_idle=IDLE, drain_timeout=4 * PATIENCE)
    serving.started(server)
    url = f"ws://127.0.0.1:{server.addresses[0][1]}/"
    client = await tornado.websocket.websocket_connect(url, resolver=BlockingResolver())  # without a thread
    if busy:
        client.write_message("hello")
        await eventually(lambda: Message.began)
    ending = asyncio.create_task(timed_shutdown(server))
    if busy:
        assert await client.read_message() == "hello"
    assert await client.read_message() is None
    assert client.close_code == 1001
    client.close()
    assert await ending < REQUEST + IDLE + SLACK


@pytest.mark.gen_test
async def test_an_answer_of_which_a_part_was_sent_is_sent_to_its_end(serving: Serving) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Parts(tornado.web.RequestHandler):
        async def get(self) -> None:
            self.write(b"first ")
            await self.flush()
            begun.set()
            await go_on.wait()
            self.finish(b"second")

    server = HTTPServer(tornado.web.Application([("/", Parts)]), drain_idle=IDLE)
    serving.started(server)
    peer = serving.connect(server)
    peer.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await begun.wait()
    ending = asyncio.create_task(server.shutdown())
    await asyncio.sleep(2 * IDLE)
    go_on.set()
    said = await peer.receive_all()
    assert said.endswith(b"6\r\nfirst \r\n6\r\nsecond\r\n0\r\n\r\n")
    peer.close()
    await ending


@pytest.mark.gen_test
async def test_a_body_after_100_continue_is_waited_for(serving: Serving) -> None:
    class Upload(tornado.web.RequestHandler):
        def post(self) -> None:
            self.finish(b"%d" % len(self.request.body))

    server = HTTPServer(tornado.web.Application([("/", Upload)]), drain_idle=0.05)
    serving.started(server)
    peer = serving.connect(server)
    peer.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8\r\n")
    await there(server)
    ending = asyncio.create_task(server.shutdown())
    await asyncio.sleep(0.2)
    peer.send(b"Expect: 100-continue\r\n\r\n")
    assert b"100" in await peer.receive(25)
    await asyncio.sleep(0.1)
    peer.send(b"1234")
    await asyncio.sleep(0.1)
    peer.send(b"5678")
    said = await peer.receive_all()
    assert b"Connection: close" in said
    assert said.endswith(b"\r\n\r\n8")
    peer.close()
    await ending


# ---- what it says


def test_a_shutdown_says_that_it_waits_and_for_whom(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tornado.general")

    async def main(sim: Simulation) -> None:
        caplog.clear()
        server = Working(drain_timeout=7)
        sim.serve(server)
        events: list[Event] = []
        server.events.subscribe(events.append, "shutdown")
        peers = [await peer_of(sim, server) for _ in range(3)]
        for peer in peers:
            peer.send(b"please\n")
        await eventually(lambda: server.begun == 3)
        await server.shutdown()
        (event,) = events
        assert (event.kind, event.level, event.reason) == ("shutdown", logging.INFO, "shutdown")
        assert messages(caplog) == ["shutting down: 3 clients may finish, up to 7 s"]
        for peer in peers:
            peer.close()

    simulate(main, **LATE)


def test_after_a_cancel_of_serve_forever_it_says_how_to_end_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tornado.general")

    async def main(sim: Simulation) -> None:
        caplog.clear()
        server = Working(drain_timeout=None)
        server.listen(7000, "10.1.0.1")
        forever = asyncio.create_task(server.serve_forever())
        peer = await peer_of(sim, server)
        peer.send(b"please\n")
        await eventually(lambda: server.begun)
        forever.cancel()
        await asyncio.wait([forever])
        assert messages(caplog) == ["shutting down: 1 client may finish, as long as they take; again to end at once"]
        assert await peer.receive_all() == b"please\n"
        peer.close()

    simulate(main, **LATE)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]


@pytest.mark.gen_test
async def test_a_shutdown_says_how_many_it_cuts_off(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    server = serving.started(Working())
    events: list[Event] = []
    server.events.subscribe(events.append, "shutdown")
    for _ in range(2):
        serving.connect(server).send(b"please\n")
    await eventually(lambda: server.begun == 2)
    await server.shutdown(timeout=0.05)
    assert [event.level for event in events] == [logging.INFO, logging.WARNING]
    assert events[1].reason == "drain_timeout"
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == ["shutting down: 2 clients not done within 0.05 s, and cut off"]


@pytest.mark.gen_test
async def test_a_handler_that_works_for_somebody_who_has_gone_counts_as_a_client_of_a_shutdown(
    serving: Serving,
) -> None:
    async def store(stream: IOStream, address: Any) -> None:
        stream.set_close_callback(lambda: None)
        await asyncio.sleep(PATIENCE)

    server = serving.with_handler(store)
    events: list[Event] = []
    server.events.subscribe(events.append, "open", "close", "shutdown")
    peer = serving.connect(server)
    await eventually(lambda: events)
    peer.close()
    await eventually(lambda: not len(server.streams))
    await server.shutdown(timeout=0.05)
    assert [event.text for event in events if event.kind == "shutdown"] == [
        "shutting down: 1 client may finish, up to 0.05 s",
        "shutting down: 1 client not done within 0.05 s, and cut off",
    ]


# ---- in a second loop


def test_wait_draining_works_in_each_loop_that_the_server_serves_in() -> None:
    told: list[int] = []

    class Told(TCPServer):
        drain_idle = 0.01

        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            await stream.wait_draining()
            told.append(stream.id)

    async def serve(ends: str) -> None:
        server.listen(7000, "10.1.0.1")
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        await eventually(lambda: len(server.streams))
        await asyncio.sleep(0.01)
        if ends == "shutdown":
            await server.shutdown()
        else:
            server.stop()
            await server.close_all_connections()
        assert await reader.read() == b""
        writer.close()

    server = Told()
    for ends in ("close", "shutdown", "shutdown"):
        Simulation().run(lambda _, ends=ends: serve(ends))
    assert len(told) == 2
