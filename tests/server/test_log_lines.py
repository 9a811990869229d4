"""The lines of the log: no peer can forge one, each event is one, and whoever looks for it finds it."""

import ast
import asyncio
import contextlib
import logging
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import IOLoop, IOStream, KickedError, ListenError, StreamClosedError, TCPServer
from iostreamsrv.events import Event, Events
from iostreamsrv.httpserver import HTTPServer
from iostreamsrv.netutil import bind_unix_socket
from iostreamsrv.runtime.addresses import show
from iostreamsrv.sansio.proxy import V2_START, ProxyError, parse_header
from iostreamsrv.styles import CallbackServer
from tests.support import PROJECT
from tests.support.engines import on_every_loop
from tests.support.peers import Peer, tcp_pair
from tests.support.servers import TRUSTING, Echo, Serving, answers, listen_to, unix_server
from tests.support.waiting import eventually, turns

pytestmark = on_every_loop

EVIL = b"x\n2026-11-29 ERROR root logged in\r\x1b[31m\xff\xe2\x80\xa8"
"""A forged line, a colour, a byte that is no UTF-8, and Unicode's own end of a line."""

ESCAPED = r"x\n2026-11-29 ERROR root logged in\r\x1b[31m\xff\u2028"


def from_unix(name: bytes) -> bytes:
    """A PROXY header of version 2 for a client of a Unix socket of this name."""
    return (
        V2_START + bytes([0x21, 0x31]) + struct.pack("!H", 216) + name.ljust(108, b"\0") + b"/run/x".ljust(108, b"\0")
    )


def is_one_line(text: str) -> bool:
    return text.isprintable() and bool(text.encode())  # no surrogate is left


# ---- what peers name


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room in the address of a Unix socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", [EVIL, b"\0" + EVIL])
@pytest.mark.parametrize("way", ["bound", "proxy"])
@pytest.mark.gen_test
async def test_a_clients_name_forges_no_line_and_breaks_no_handler(
    serving: Serving, caplog: pytest.LogCaptureFixture, short_path: Path, way: str, name: bytes
) -> None:
    server = unix_server(serving, short_path, Echo(**({"proxy_protocol": ["unix"]} if way == "proxy" else {})))
    events = listen_to(server)
    caplog.set_level(logging.DEBUG, "iostreamsrv")
    client = socket.socket(socket.AF_UNIX)
    if way == "bound":
        client.bind(name if name.startswith(b"\0") else os.fsencode(short_path / os.fsdecode(name)))
    client.connect(server.addresses[0])
    peer = Peer(client)
    serving.peers.append(peer)
    if way == "proxy":
        peer.send(from_unix(name))
    assert await answers(peer)
    (stream,) = server.streams
    stream.kick("it said " + os.fsdecode(EVIL))
    await eventually(lambda: len(events) == 2)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("iostreamsrv")]
    assert lines == [event.text for event in events]
    assert all(is_one_line(line) for line in lines)
    shown = ("@" if name.startswith(b"\0") else "") + ESCAPED
    assert lines[0].endswith(f"{shown} is connected")
    assert lines[1].endswith(f"{shown} is closed: kicked (it said {ESCAPED})")
    assert all(is_one_line(record.peer) for record in caplog.records if record.name.startswith("iostreamsrv"))


@pytest.mark.parametrize("name", [EVIL, b"\0" + EVIL])
@pytest.mark.gen_test
async def test_a_clients_name_forges_no_line_of_tornados_http_either(
    serving: Serving, caplog: pytest.LogCaptureFixture, short_path: Path, name: bytes
) -> None:
    server = unix_server(serving, short_path, HTTPServer(lambda request: None))
    caplog.set_level(logging.INFO)
    client = socket.socket(socket.AF_UNIX)
    client.bind(name if name.startswith(b"\0") else os.fsencode(short_path / os.fsdecode(name)))
    client.connect(server.addresses[0])
    peer = Peer(client)
    serving.peers.append(peer)
    peer.send(b"nonsense\r\n\r\n")
    assert b" 400 " in await peer.receive_all()
    (line,) = [record.getMessage() for record in caplog.records if "Malformed" in record.getMessage()]
    assert is_one_line(line)
    assert ESCAPED in line


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (EVIL, ESCAPED),
        (os.fsdecode(EVIL), ESCAPED),
        (b"\0" + EVIL, "@" + ESCAPED),
        (("evil\n", 80), r"evil\n:80"),
        (("::1%\x1b", 80, 0, 0), r"[::1%\x1b]:80"),
        ("\ud800", r"\ud800"),
        ("/tmp/grüße", "/tmp/grüße"),
        ("", ""),
    ],
)
def test_an_address_is_shown_on_one_line(address: Any, text: str) -> None:
    assert show(address) == text


def test_errors_that_repeat_a_name_are_one_line(tmp_path: Path) -> None:
    name = tmp_path / "missing" / os.fsdecode(EVIL)
    with pytest.raises(ListenError) as caught:
        bind_unix_socket(name)
    assert ESCAPED in str(caught.value)
    for error in (
        caught.value,
        KickedError(os.fsdecode(EVIL)),
        StreamClosedError(KickedError(os.fsdecode(EVIL)), "read"),
        StreamClosedError(OSError(2, os.fsdecode(EVIL), os.fsdecode(EVIL)), "connect"),
    ):
        assert is_one_line(str(error))
        assert ESCAPED in str(error)


@pytest.mark.parametrize(
    "bytes_", [EVIL, b"PROXY " + EVIL, b"PROXY TCP4 " + EVIL + b"\r\n", b"PROXY TCP6 ::1%\x1b \r\n"]
)
def test_what_a_refused_header_has_in_it_is_one_line(bytes_: bytes) -> None:
    with pytest.raises(ProxyError) as caught:
        parse_header(bytes_)
    assert is_one_line(str(caught.value))


def test_an_events_text_is_one_line() -> None:
    assert Event("error", os.fsdecode(EVIL)).text == ESCAPED


# ---- levels


@pytest.mark.gen_test
async def test_a_refused_header_of_a_trusted_proxy_is_a_warning_and_a_strangers_is_not(serving: Serving) -> None:
    for options, data, level in (
        (TRUSTING, b"GET / HTTP/1.1\r\n", logging.WARNING),
        ({**TRUSTING, "proxy_header_timeout": 0.05}, b"PROXY ", logging.WARNING),
        ({"proxy_protocol": ["192.0.2.0/24"]}, b"GET / HTTP/1.1\r\n", logging.INFO),
    ):
        server = serving.started(Echo(**options))
        events = listen_to(server, "error")
        serving.connect(server).send(data)
        await eventually(lambda events=events: events)
        assert [(event.level, event.reason) for event in events] == [(level, "proxy_error")]


# ---- loggers


@pytest.mark.gen_test
async def test_a_record_says_which_event_peer_reason_and_stream_it_is_about(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "iostreamsrv")

    async def handler(stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        raise ZeroDivisionError

    server = serving.with_handler(handler)
    peer = serving.connect(server)
    await eventually(lambda: len(server.streams))
    (stream,) = server.streams
    peer.send(b"\n")
    await peer.receive_all()
    await eventually(stream.closed)
    await turns()
    peername = "{}:{}".format(*peer.socket.getsockname())
    records: list[Any] = [record for record in caplog.records if record.name.startswith("iostreamsrv")]
    assert [(record.name, record.event, record.peer, record.reason, record.stream_id) for record in records] == [
        ("iostreamsrv.general", "listen", "{}:{}".format(*server.addresses[0]), None, None),
        ("iostreamsrv.general", "open", peername, None, stream.id),
        ("iostreamsrv.application", "error", peername, "handler_error", stream.id),
        ("iostreamsrv.general", "close", peername, "handler_error", stream.id),
    ]


class Collecting(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.names.append(record.name)


@contextlib.contextmanager
def handling(name: str, *filters: logging.Filter) -> Iterator[list[str]]:
    handler = Collecting()
    for each in filters:
        handler.addFilter(each)
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield handler.names
    finally:
        logger.removeHandler(handler)


def tell() -> None:
    Events().emit(Event("error", "something", logging.WARNING))


LOGGERS = ["tornado.general", "tornado", "iostreamsrv.general", "iostreamsrv"]


@pytest.mark.parametrize("name", LOGGERS)
def test_an_event_is_one_line_for_the_root_and_for_the_handlers_on_either_name(
    caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with handling("") as root, handling(name) as own:
        tell()
    assert root == own == ["iostreamsrv.general"]


@pytest.mark.parametrize("name", LOGGERS)
def test_a_level_on_either_name_silences_and_opens(caplog: pytest.LogCaptureFixture, name: str) -> None:
    logger = logging.getLogger(name)
    general = logging.getLogger("iostreamsrv.general")
    with handling("") as root:
        assert not Events().wanted("open")
        try:
            logger.setLevel(logging.ERROR)
            tell()
            assert root == []
            logger.setLevel(logging.DEBUG)
            assert general.isEnabledFor(logging.DEBUG)
            assert Events().wanted("open")
            tell()
        finally:
            logger.setLevel(logging.NOTSET)
        assert not Events().wanted("open")
    assert root == ["iostreamsrv.general"]


@pytest.mark.parametrize("name", ["tornado.general", "iostreamsrv.general"])
def test_a_filter_on_either_name_drops_a_line(caplog: pytest.LogCaptureFixture, name: str) -> None:
    logger = logging.getLogger(name)
    seen: list[str] = []

    def drop(record: logging.LogRecord) -> bool:
        seen.append(record.getMessage())
        return False

    logger.addFilter(drop)
    try:
        tell()
    finally:
        logger.removeFilter(drop)
    assert seen == ["something"]
    assert caplog.records == []


@pytest.mark.parametrize("name", LOGGERS)
def test_a_name_that_does_not_propagate_keeps_its_lines(caplog: pytest.LogCaptureFixture, name: str) -> None:
    logger = logging.getLogger(name)
    with handling("") as root, handling(name) as own:
        logger.propagate = False
        try:
            tell()
        finally:
            logger.propagate = True
    assert (own, root) == (["iostreamsrv.general"], [])


@pytest.mark.parametrize("on", ["", "tornado", "tornado.general", "iostreamsrv"])
@pytest.mark.parametrize(
    ("selected", "name"),
    [
        ("tornado", "tornado.general"),
        ("tornado.general", "tornado.general"),
        ("iostreamsrv", "iostreamsrv.general"),
        ("", "iostreamsrv.general"),
        ("tornado.access", None),
        ("torn", None),
    ],
)
def test_a_handler_that_selects_lines_by_either_name_gets_them_under_that_name(
    caplog: pytest.LogCaptureFixture, on: str, selected: str, name: str | None
) -> None:
    with handling("") as all_lines, handling(on, logging.Filter(selected)) as own:
        tell()
    assert own == ([] if name is None else [name])
    assert all_lines == ["iostreamsrv.general"], "it is the same line for everybody else"


def test_a_filter_that_selects_tornados_logger_on_that_logger_drops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    selecting = logging.Filter("tornado.general")
    logger = logging.getLogger("tornado.general")
    logger.addFilter(selecting)
    try:
        with handling("") as root:
            tell()
    finally:
        logger.removeFilter(selecting)
    assert root == ["iostreamsrv.general"]


CONFIGURED = """
    import logging, logging.config
    from iostreamsrv.events import Event, Events

    names = {names!r}
    if names is not None:
        logging.config.dictConfig({{
            "version": 1,
            "handlers": {{"out": {{"class": "logging.StreamHandler"}}}},
            "loggers": {{name: {{"handlers": ["out"]}} for name in names}},
        }})
    Events().emit(Event("error", "something", logging.WARNING))
"""


@pytest.mark.parametrize(
    "names",
    [
        None,
        ["tornado"],
        pytest.param(["tornado.general"], marks=pytest.mark.second_tier),
        pytest.param(["iostreamsrv"], marks=pytest.mark.second_tier),
        ["iostreamsrv.general"],
    ],
)
def test_without_and_with_a_configuration_of_either_name_an_event_is_one_line(names: list[str] | None) -> None:
    source = textwrap.dedent(CONFIGURED).format(names=names)
    done = subprocess.run([sys.executable, "-c", source], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stderr == "something\n"


# ---- handlers that block


class Blocks(TCPServer):
    """Blocks the loop after a line, or at once."""

    at_once = False

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        if not self.at_once:
            await stream.read_until(b"\n")
        time.sleep(0.55)
        await stream.write(b"late\n")
        await stream.read_until_close()


class BlocksAtOnce(Blocks):
    at_once = True


class BlocksAsFunction(TCPServer):
    def handle_stream(self, stream: IOStream, address: Any) -> None:
        time.sleep(0.55)
        stream.write(b"late\n")


def slow_data(stream: IOStream, data: bytes) -> int:
    time.sleep(0.55)
    stream.write(b"late\n")
    return len(data)


BLOCKING: dict[str, Any] = {
    "Blocks.handle_stream": Blocks,
    "BlocksAtOnce": BlocksAtOnce,
    "BlocksAsFunction.handle_stream": BlocksAsFunction,
    "slow_data": lambda: CallbackServer(on_data=slow_data),
}


@pytest.mark.parametrize("name", BLOCKING)
@pytest.mark.gen_test
async def test_a_handler_that_blocks_the_loop_is_a_warning_that_names_it_and_the_client(
    serving: Serving, name: str
) -> None:
    server = serving.started(BLOCKING[name]())
    events = listen_to(server, "error")
    peer = serving.connect(server)
    host, port = peer.socket.getsockname()
    peer.send(b"hello\n")
    assert await peer.receive(5) == b"late\n"
    await eventually(lambda: events)
    await turns(10)
    (event,) = events
    assert event.level == logging.WARNING
    assert event.stream is next(iter(server.streams))
    seconds = re.search(r" has blocked the loop for (\d\.\d) s", event.text)
    assert seconds
    assert float(seconds[1]) >= 0.5
    assert event.text.startswith(name) or name == "BlocksAtOnce"
    assert f"{host}:{port}" in event.text


@pytest.mark.gen_test
async def test_a_handler_that_waits_for_long_blocks_nobody(serving: Serving) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        await stream.read_until(b"\n")
        await asyncio.sleep(0.6)
        await stream.write(b"late\n")

    server = serving.with_handler(handler)
    events = listen_to(server, "error")
    peer = serving.connect(server)
    peer.send(b"hello\n")
    assert await peer.receive(5) == b"late\n"
    assert not events


# ---- asyncio's debug mode

DEBUGGED = """
    import asyncio, logging, sys, threading, time
    import iostreamsrv
    from iostreamsrv.streams import hub

    if sys.argv[1] == "loop":
        hub.driver = hub.LoopHub

    {body}

    asyncio.run(main(), debug=True)
"""


def debugged(engine: str, body: str) -> subprocess.CompletedProcess[str]:
    source = textwrap.dedent(DEBUGGED).format(body=textwrap.dedent(body))
    command = [sys.executable, "-c", source, engine]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=60)


on_both_hubs = pytest.mark.parametrize("hub", ["epoll", pytest.param("loop", marks=pytest.mark.second_tier)])


SLOW = """
class Slow(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        while True:
            line = await stream.read_until(b"\\\\n")
            time.sleep(0.15)
            await stream.write(line)

async def main():
    logging.basicConfig(level=logging.WARNING)
    server = Slow()
    server.listen(0, "127.0.0.1")
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    await asyncio.sleep(0.05)
    writer.write(b"hello\\\\n")
    await reader.readline()
    writer.close()
    await server.shutdown()
"""


@on_both_hubs
def test_under_debug_the_line_of_a_slow_callback_names_the_coroutine_and_its_line(io_loop: IOLoop, hub: str) -> None:
    lines = debugged(hub, SLOW.replace("\\\\n", "\\n")).stderr.splitlines()
    slow = [
        line for line in lines if re.search(r"Executing <Task .*Slow\.handle_stream\(\) .* took [\d.]+ seconds", line)
    ]
    assert slow, lines
    assert re.search(r"handle_stream\(\) running at <string>:\d+>", slow[0])


ELSEWHERE = """
async def main():
    other = []
    a, b = __import__("socket").socketpair()
    stream = iostreamsrv.IOStream(a)

    def attempt(what):
        try:
            what()
        except RuntimeError as error:
            other.append(str(error))

    calls = [lambda: stream.write(b"x"), lambda: stream.read_bytes(1), stream.close, stream.abort,
             stream.kick, stream.drain, stream.send_eof]
    for call in calls:
        thread = threading.Thread(target=attempt, args=[call])
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.001)
    assert not stream.closed()
    await stream.write(b"y")  # here it goes on
    b.send(b"z")
    assert await stream.read_bytes(1) == b"z"
    stream.close()
    print(len(other), len(set(other)), other[0])
"""


@on_both_hubs
def test_under_debug_a_stream_that_another_thread_uses_raises_and_says_what_to_call(io_loop: IOLoop, hub: str) -> None:
    count, kinds, text = debugged(hub, ELSEWHERE).stdout.split(" ", 2)
    assert (count, kinds) == ("7", "1")
    assert "another thread" in text
    assert "io_loop.add_callback(" in text
    assert "run_coroutine_threadsafe(" in text


OTHER_LOOP = """
async def make():
    a, b = __import__("socket").socketpair()
    return iostreamsrv.IOStream(a), b

first = asyncio.new_event_loop()
first.set_debug(True)
stream, peer = first.run_until_complete(make())

async def main():
    for use in (lambda: stream.write(b"x"), lambda: stream.read_bytes(1), stream.close):
        try:
            use()
        except RuntimeError as error:
            print(error)
"""


WALKED = """
import inspect, os, socket, ssl
from iostreamsrv.iostream import PipeIOStream, SSLIOStream
from iostreamsrv.streams.served import ServedStream

ARGUMENTS = {
    "connect": [("127.0.0.1", 1)],
    "enqueue": [b"x"],
    "read_bytes": [1],
    "read_into": [bytearray(1)],
    "read_until": [b"!"],
    "read_until_match": [lambda buffer: None],
    "read_until_regex": [b"!"],
    "sendfile": [open(os.__file__, "rb")],
    "set_close_callback": [lambda: None],
    "set_nodelay": [True],
    "start_tls": [False],
    "take_buffered": [1],
    "write": [b"x"],
}
LOOKS = {"at_eof", "closed", "fileno", "reading", "writing"}  # they tell how it is, and change nothing
HOOKS = {  # the stream and its hub call them; whoever overrides one is called in the loop
    *("close_fd", "dispatch", "forget_output", "get_fd_error", "lose_descriptor", "read_from_fd"),
    *("uncork", "write_shared", "write_to_fd"),
    *vars(ServedStream),  # a server calls them
}
NONE_AT_ALL = {SSLIOStream: {"start_tls"}, PipeIOStream: {"send_eof", "set_nodelay"}}  # never more than an error

async def of(result):
    return await result

def attempt(call, arguments, raised):
    try:
        result = call(*arguments)
        if inspect.iscoroutine(result):
            asyncio.run(of(result))
    except RuntimeError as error:
        raised.append(str(error))

async def main():
    pair = socket.socketpair()
    secure = socket.socketpair()
    pipe = os.pipe()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    streams = [
        iostreamsrv.IOStream(pair[0]), SSLIOStream(secure[0], ssl_options=context), PipeIOStream(pipe[0])
    ]
    walked, silent, setters = 0, [], []
    for stream in streams:
        kind = type(stream)
        for name in dir(kind):
            if name.startswith("_"):
                continue
            setters += [name for each in [getattr(kind, name)] if isinstance(each, property) and each.fset]
            if name in LOOKS | HOOKS | NONE_AT_ALL.get(kind, set()):
                continue
            if not callable(getattr(kind, name)):
                continue
            raised = []
            thread = threading.Thread(target=attempt, args=[getattr(stream, name), ARGUMENTS.get(name, []), raised])
            thread.start()
            while thread.is_alive():
                await asyncio.sleep(0.001)
            walked += 1
            if not raised or "another thread" not in raised[0]:
                silent.append((kind.__name__, name, raised))
    print((walked, silent, setters))
    for stream in streams:
        assert not stream.closed()
        stream.close()
    pair[1].close(), secure[1].close(), os.close(pipe[1])
"""


@on_both_hubs
def test_under_debug_whatever_another_thread_calls_of_a_stream_raises(io_loop: IOLoop, hub: str) -> None:
    walked, silent, setters = ast.literal_eval(debugged(hub, WALKED).stdout)
    assert walked > 50, "all public methods of three kinds of streams"
    assert silent == []
    assert set(setters) == {"socket"}, "all else that may be set are plain attributes, and stay as cheap as these"


@on_both_hubs
def test_under_debug_a_stream_that_another_loop_uses_raises_and_says_what_to_call(io_loop: IOLoop, hub: str) -> None:
    lines = debugged(hub, OTHER_LOOP).stdout.splitlines()
    assert len(lines) == 3
    assert all("another loop" in line and "io_loop.add_callback(" in line for line in lines)


@pytest.mark.gen_test
async def test_without_debug_nothing_is_looked_at(serving: Serving) -> None:
    ours, theirs = tcp_pair()
    stream = IOStream(ours)
    raised: list[BaseException] = []

    def write() -> None:
        try:
            stream.write(b"x")
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    stream.close()
    theirs.close()
    assert bool(raised) is asyncio.get_running_loop().get_debug()


@pytest.mark.gen_test
async def test_a_gateways_stream_that_wakes_what_blocks_is_a_warning(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving.started(Echo())
    assert await answers(serving.connect(server))
    ours, theirs = tcp_pair()
    stream = IOStream(ours)
    reading = asyncio.ensure_future(_block_after(stream))
    await turns()
    Peer(theirs).send(b"x")
    await reading
    (text,) = [record.getMessage() for record in caplog.records if record.name == "iostreamsrv.general"]
    where = r"_block_after \(test_log_lines\.py:\d+\)"
    assert re.fullmatch(
        rf"{where} has blocked the loop for 0\.\d s, and all clients with it, for 127\.0\.0\.1:\d+", text
    )
    stream.close()
    theirs.close()


async def _block_after(stream: IOStream) -> None:
    await stream.read_bytes(1)
    time.sleep(0.55)
    await asyncio.sleep(0.05)
