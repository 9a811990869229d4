"""Handlers that block the loop: each is named, with its client, wherever it blocks; and nobody else is."""

import asyncio
import contextlib
import gc
import logging
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tornado.web
import tornado.websocket

from iostreamsrv import CloseReason, Event, IOLoop, IOStream, TCPServer
from iostreamsrv.httpserver import HTTPServer
from iostreamsrv.server.watchdog import BLOCKED
from iostreamsrv.styles import BlockingServer, CallbackServer, QueueServer
from tests.support.engines import on_every_loop
from tests.support.http import UPGRADE, frame, request, upload
from tests.support.servers import Serving, listen_to
from tests.support.waiting import PATIENCE, eventually, turns

pytestmark = on_every_loop

LONG = 0.6
"""Seconds that are too many."""


def watchdogs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "iostreamsrv watchdog"]


# ---- wherever it blocks


class FirstStep(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        time.sleep(LONG)
        await stream.read_until_close()


class AsFunction(TCPServer):
    def handle_stream(self, stream: IOStream, address: Any) -> None:
        time.sleep(LONG)


class AfterRead(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        time.sleep(LONG)
        await stream.read_until_close()


class AfterSleep(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await asyncio.sleep(0.01)
        time.sleep(LONG)
        await stream.read_until_close()


class AfterThread(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await asyncio.to_thread(time.sleep, 0.01)
        time.sleep(LONG)
        await stream.read_until_close()


class AfterTimeout(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await asyncio.wait_for(stream.read_until(b"\n"), 60)
        time.sleep(LONG)
        await stream.read_until_close()


class Computes(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            pass
        await stream.read_until_close()


async def child() -> None:
    await asyncio.sleep(0.01)
    time.sleep(LONG)


class InGroup(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
        await stream.read_until_close()


class InGather(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await asyncio.gather(child(), asyncio.sleep(0.01))
        await stream.read_until_close()


class InWait(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await asyncio.wait([asyncio.create_task(child())])
        await stream.read_until_close()


class InTimeout(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await asyncio.wait_for(child(), 60)
        await stream.read_until_close()


class InGrandchild(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.between())
        await stream.read_until_close()

    async def between(self) -> None:
        await asyncio.create_task(child())


class Closes(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        stream.io_loop.add_callback(stream.close)

    def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        time.sleep(LONG)


class ClosesLater(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        stream.io_loop.add_callback(stream.close)

    async def handle_close(self, stream: IOStream, reason: CloseReason) -> None:  # type: ignore[override]
        await asyncio.sleep(0.01)
        time.sleep(LONG)


class HasCloseCallback(TCPServer):
    def handle_stream(self, stream: IOStream, address: Any) -> None:
        stream.set_close_callback(self.on_end)
        stream.read_until(b"\n").add_done_callback(lambda _: stream.close())

    def on_end(self) -> None:
        time.sleep(LONG)


class Rejects(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await stream.read_until_close()

    async def handle_reject(self, stream: IOStream, address: Any) -> None:
        time.sleep(LONG)


def slow(stream: IOStream) -> None:
    time.sleep(LONG)


class OnConnect(CallbackServer):
    def on_connect(self, stream: IOStream) -> None:
        time.sleep(LONG)


class OnData(CallbackServer):
    def on_data(self, stream: IOStream, data: bytes) -> int:
        time.sleep(LONG)
        return len(data)


class OnDataLater(CallbackServer):
    async def on_data(self, stream: IOStream, data: bytes) -> int:  # type: ignore[override]
        await asyncio.sleep(0.01)
        time.sleep(LONG)
        return len(data)


class OnDisconnect(CallbackServer):
    def on_data(self, stream: IOStream, data: bytes) -> int:
        stream.close()
        return len(data)

    def on_disconnect(self, stream: IOStream, unread: bytes, error: str) -> None:
        time.sleep(LONG)


class Ticks(CallbackServer):
    tick_interval = 0.05
    ticked = False

    def on_tick(self, stream: IOStream) -> None:
        if not self.ticked:
            self.ticked = True
            time.sleep(LONG)


class Page(tornado.web.RequestHandler):
    def get(self) -> None:
        time.sleep(LONG)


class AsyncPage(tornado.web.RequestHandler):
    async def get(self) -> None:
        await asyncio.sleep(0.01)
        time.sleep(LONG)


class PageOfTasks(tornado.web.RequestHandler):
    async def get(self) -> None:
        await asyncio.gather(child(), asyncio.sleep(0))


@tornado.web.stream_request_body
class Upload(tornado.web.RequestHandler):
    def data_received(self, chunk: bytes) -> None:
        time.sleep(LONG)

    def post(self) -> None:
        pass


class Socket(tornado.websocket.WebSocketHandler):
    def on_message(self, message: str | bytes) -> None:
        time.sleep(LONG)


def web(handler: type[tornado.web.RequestHandler]) -> Callable[[], TCPServer]:
    return lambda: HTTPServer(tornado.web.Application([("/", handler)]))


LINE = b"hello\n"
UPGRADED = request("/", *UPGRADE) + frame(b"hello")

WHEREVER: dict[str, tuple[Callable[[], TCPServer], bytes, str]] = {
    "first step": (FirstStep, LINE, "FirstStep.handle_stream"),
    "plain function": (AsFunction, LINE, "AsFunction.handle_stream"),
    "after a read": (AfterRead, LINE, "AfterRead.handle_stream"),
    "after a sleep": (AfterSleep, LINE, "AfterSleep.handle_stream"),
    "after a thread": (AfterThread, LINE, "AfterThread.handle_stream"),
    "after a timeout": (AfterTimeout, LINE, "AfterTimeout.handle_stream"),
    "computes": (Computes, LINE, "Computes.handle_stream"),
    "in a TaskGroup": (InGroup, LINE, "child"),
    "in gather": (InGather, LINE, "child"),
    "in wait": (InWait, LINE, "child"),
    "in wait_for": (InTimeout, LINE, "child" if sys.version_info < (3, 12) else "InTimeout.handle_stream"),
    "in a grandchild": (InGrandchild, LINE, "child"),
    "handle_close": (Closes, LINE, "Closes.handle_close"),
    "handle_close, later": (ClosesLater, LINE, "ClosesLater.handle_close"),
    "on_connect": (OnConnect, LINE, "OnConnect.on_connect"),
    "on_data": (OnData, LINE, "OnData.on_data"),
    "on_data, later": (OnDataLater, LINE, "OnDataLater.on_data"),
    "on_disconnect": (OnDisconnect, LINE, "OnDisconnect.on_disconnect"),
    "on_tick": (Ticks, LINE, "Ticks.on_tick"),
    "callback of a keyword": (lambda: CallbackServer(on_connect=slow), LINE, "slow"),
    "request": (web(Page), request(), "Page.get"),
    "request, later": (web(AsyncPage), request(), "AsyncPage.get"),
    "request, in a task": (web(PageOfTasks), request(), "child"),
    "body": (web(Upload), upload(b"abc"), "Upload.data_received"),
    "WebSocket": (web(Socket), UPGRADED, "Socket.on_message"),
}


async def warning_of(server: TCPServer, serving: Serving, line: bytes, patience: float = PATIENCE) -> tuple[Event, str]:
    """Connect, send a line, and wait for the one warning; with the client's address.

    On a machine that is so busy that the watchdog's thread sleeps while the handler does, the next client is tried.
    """
    events = listen_to(server, "error")
    async with asyncio.timeout(patience):
        while not events:
            peer = serving.connect(server)
            host, port = peer.socket.getsockname()
            peer.send(line)
            with contextlib.suppress(TimeoutError):
                await eventually(lambda: events, 2 * LONG + 1)
    await turns(10)
    (event,) = events
    return event, f"{host}:{port}"


def has_blocked(name: str) -> str:
    """A pattern: the groups are the seconds and the client."""
    lines = r" \(test_watchdog\.py:\d+(?:, in .*, test_watchdog\.py:\d+)?\)"
    return (
        re.escape(name)
        + lines
        + r" has blocked the loop for (\d+\.\d) s, and all clients with it(?:, (?:serving|for) (\S+))?"
    )


@pytest.mark.parametrize("place", WHEREVER)
@pytest.mark.gen_test
async def test_what_blocks_the_loop_is_named_with_its_line_and_its_client(serving: Serving, place: str) -> None:
    make, data, name = WHEREVER[place]
    event, address = await warning_of(serving.started(make()), serving, data)
    assert event.level == logging.WARNING
    found = re.fullmatch(has_blocked(name), event.text)
    assert found, event.text
    assert float(found[1]) >= LONG
    assert found[2] == address
    assert isinstance(event.stream, IOStream)
    assert "{}:{}".format(*event.address) == address


@pytest.mark.gen_test
async def test_a_close_callback_that_blocks_the_loop_is_named_with_its_client(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving.started(HasCloseCallback())
    peer = serving.connect(server)
    peer.send(LINE)
    await eventually(lambda: caplog.messages)
    found = re.fullmatch(has_blocked("HasCloseCallback.on_end"), caplog.messages[0])
    assert found
    assert found[2] == "{}:{}".format(*peer.socket.getsockname())


@pytest.mark.gen_test
async def test_a_goodbye_that_blocks_the_loop_is_named_with_its_client(serving: Serving) -> None:
    server = serving.started(Rejects(max_connections=1, when_full="reject"))
    serving.connect(server)
    await eventually(lambda: len(server.streams))
    event, address = await warning_of(server, serving, LINE)
    found = re.fullmatch(has_blocked("Rejects.handle_reject"), event.text)
    assert found
    assert found[2] == address


@pytest.mark.gen_test
async def test_a_task_that_no_handler_waits_for_is_named_alone(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving.with_handler(wait_for_the_end)
    events = listen_to(server, "error")
    serving.connect(server)
    await eventually(lambda: len(server.streams))
    await asyncio.create_task(child())
    await eventually(lambda: caplog.messages)
    found = re.fullmatch(has_blocked("child"), caplog.messages[0])
    assert found
    assert found[2] is None
    assert not events


async def wait_for_the_end(stream: IOStream, address: Any) -> None:
    await stream.read_until_close()


def size_of_a_long_sum() -> int:
    """How many numbers take more than BLOCKED seconds to add, during which no other thread runs."""

    def seconds() -> float:
        began = time.thread_time()
        sum(range(500_000))
        return time.thread_time() - began

    return int(500_000 * 1.2 * BLOCKED / min(seconds() for _ in range(5)))


class Adds(TCPServer):
    def __init__(self) -> None:
        super().__init__()
        self.size = size_of_a_long_sum()

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        taken = 0.0
        while taken < BLOCKED:  # less CPU time than that is no proof; and the machine may be faster than it was before
            began = time.thread_time()
            sum(range(self.size))
            taken = time.thread_time() - began
            self.size *= 2
        await stream.read_until_close()


async def expect_adds_to_be_named(serving: Serving, patience: float = PATIENCE) -> None:
    event, address = await warning_of(serving.started(Adds()), serving, LINE, patience)
    found = re.fullmatch(has_blocked("Adds.handle_stream"), event.text)
    assert found
    assert found[2] == address


@pytest.mark.gen_test
async def test_a_call_that_lets_no_other_thread_run_is_named_as_well(serving: Serving) -> None:
    await expect_adds_to_be_named(serving)


BUSY_FOR = 30
"""Seconds after which a busy process ends by itself. So the test ends soon after, whatever else the machine does."""


@pytest.fixture
def little_of_a_core() -> Iterator[None]:
    """Share a core with four processes that never rest, so this one gets a fifth of it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    program = f"import time; end = time.monotonic() + {BUSY_FOR}\nwhile time.monotonic() < end: pass"
    busy = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]
    yield
    for process in busy:
        process.kill()
        process.wait()
    os.sched_setaffinity(0, before)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not bind a process to a core")
@pytest.mark.alone
@pytest.mark.second_tier  # it takes 3 s for itself
@pytest.mark.gen_test(timeout=4 * BUSY_FOR)
async def test_a_call_that_lets_no_other_thread_run_is_named_where_the_machine_has_too_much_to_do(
    little_of_a_core: None, serving: Serving
) -> None:
    await expect_adds_to_be_named(serving, patience=3 * BUSY_FOR)


def helper() -> None:
    time.sleep(LONG)


class UsesHelper(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        helper()
        await stream.read_until_close()


@pytest.mark.gen_test
async def test_the_function_that_a_handler_calls_is_named_with_its_line(serving: Serving) -> None:
    event, _ = await warning_of(serving.started(UsesHelper()), serving, LINE)
    called = UsesHelper.handle_stream.__code__.co_firstlineno + 1
    sleeps = helper.__code__.co_firstlineno + 1
    where = f"handle_stream (test_watchdog.py:{called}, in helper, test_watchdog.py:{sleeps})"
    assert event.text.startswith(f"UsesHelper.{where} has blocked")


# ---- and nobody else


class Together(TCPServer):
    """All handlers go on in the same turn of the loop."""

    seconds = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await self.go.wait()
        time.sleep(self.seconds)
        await stream.read_until_close()


async def together(serving: Serving, count: int, seconds: float) -> list[Event]:
    """What is said of so many handlers that block the loop for so long each, in one turn."""
    server = Together()
    serving.started(server)
    server.seconds = seconds
    events = listen_to(server, "error")
    for _ in range(count):
        serving.connect(server)
    await eventually(lambda: len(server.go._waiters) == count)  # type: ignore[attr-defined]
    server.go.set()
    await asyncio.sleep(0.3)
    return events


@pytest.mark.gen_test
async def test_many_short_handlers_in_a_row_are_not_taken_for_one_that_blocks(serving: Serving) -> None:
    assert await together(serving, 100, 0.01) == []


@pytest.mark.gen_test
async def test_each_of_two_handlers_that_block_the_same_turn_is_named(serving: Serving) -> None:
    events = await together(serving, 2, LONG)
    assert len({event.stream for event in events}) == len(events) == 2


@pytest.mark.gen_test
async def test_a_handler_that_takes_a_third_of_a_second_is_not_said_to_block(serving: Serving) -> None:
    assert await together(serving, 1, 0.3) == []


class Sleeps(BlockingServer):
    def __init__(self) -> None:
        super().__init__()
        self.done = threading.Event()

    def handle(self, sock: Any, address: Any) -> None:
        sock.recv(100)
        time.sleep(LONG)
        self.done.set()


@pytest.mark.gen_test
async def test_a_thread_of_a_blocking_server_blocks_nobody(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    with Sleeps() as server:
        server.listen(0, "127.0.0.1")
        serving.connect(server.addresses[0]).send(LINE)
        await eventually(server.done.is_set)
        await asyncio.sleep(0.2)
        assert not caplog.messages


class InThread:
    """A server in a loop in a thread of its own, as long as the `with`."""

    def __init__(self, server: TCPServer) -> None:
        self.server = server
        self.events = listen_to(server, "error")
        self._started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.server.listen(0, "127.0.0.1")
        self._started.set()
        await self._stop.wait()
        self.server.stop()
        await self.server.close_all_connections()

    def __enter__(self) -> "InThread":
        self._thread.start()
        assert self._started.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


@pytest.mark.gen_test
async def test_of_servers_in_several_threads_only_the_one_that_is_blocked_says_so(serving: Serving) -> None:
    with InThread(AfterRead()) as blocked, InThread(Quiet()) as quiet:
        mine = serving.started(Quiet())
        others = listen_to(mine, "error")
        peers = [serving.connect(server) for server in (blocked.server, quiet.server, mine)]
        for peer in peers:
            peer.send(LINE)
        await eventually(lambda: blocked.events)
        assert re.fullmatch(has_blocked("AfterRead.handle_stream"), blocked.events[0].text)
        assert not quiet.events
        assert not others


class Quiet(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await stream.read_until_close()


def slow_callback(queue: Any, data: bytes) -> None:
    time.sleep(LONG)


@pytest.mark.gen_test
async def test_the_callback_of_a_queue_server_is_named(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    server = QueueServer("localhost", 0, slow_callback)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        serving.connect(server.addresses[0]).send(LINE)
        await eventually(lambda: caplog.messages)
    finally:
        server.stop()
        thread.join()
    assert re.fullmatch(has_blocked("slow_callback"), caplog.messages[0])


# ---- the thread


@pytest.mark.gen_test
async def test_the_thread_is_there_as_long_as_there_are_clients(serving: Serving) -> None:
    await eventually(lambda: not watchdogs())  # of other tests
    server = serving.started(Quiet())
    await turns()
    assert not watchdogs()
    for _ in range(2):
        peer = serving.connect(server)
        await eventually(watchdogs)
        peer.close()
        await eventually(lambda: not watchdogs())


def test_no_server_is_kept_alive(io_loop: IOLoop) -> None:
    kept: list[weakref.ref[Any]] = []

    async def main() -> None:
        server = Quiet()
        server.listen(0, "127.0.0.1")
        _, writer = await asyncio.open_connection(*server.addresses[0])
        await eventually(lambda: len(server.streams))
        kept.append(weakref.ref(server))
        await eventually(watchdogs)
        server.stop()
        writer.close()
        await server.close_all_connections()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join()
    (server,) = kept
    gc.collect()
    assert server() is None
