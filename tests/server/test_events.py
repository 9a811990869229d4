"""What a server tells of its clients: to whom, in which order, in which words, and how often in the log."""

import asyncio
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import CloseReason, IOStream, OptionError, TCPClient, TCPServer
from iostreamsrv.events import Event, Events
from tests.support.engines import on_every_loop
from tests.support.peers import Peer, tls_contexts
from tests.support.servers import (
    TRUSTING,
    Echo,
    Serving,
    answers,
    connect_unix,
    header,
    is_turned_away,
    listen_to,
    unix_server,
)
from tests.support.waiting import eventually, turns

pytestmark = on_every_loop


def event(kind: Any = "error", text: str = "it happened", **more: Any) -> Event:
    return Event(kind, text, **{"level": logging.WARNING, **more})


# ---- subscribing


def test_a_listener_gets_the_kinds_it_asked_for_in_order_and_no_others() -> None:
    events = Events()
    got: list[str] = []
    events.subscribe(lambda each: got.append(each.kind), "reject", "limit")
    for kind in ("open", "limit", "close", "reject", "error", "limit"):
        events.emit(event(kind))
    assert got == ["limit", "reject", "limit"]


def test_a_listener_that_names_no_kind_gets_all() -> None:
    events = Events()
    got: list[str] = []
    events.subscribe(lambda each: got.append(each.kind))
    kinds = ["open", "close", "reject", "error", "limit"]
    for kind in kinds:
        events.emit(event(kind))
    assert got == kinds


@pytest.mark.parametrize("wrong", ["opened", "", None, 1, "OPEN"])
def test_a_kind_there_is_not_is_named_and_nothing_subscribed(wrong: Any) -> None:
    events = Events()
    got: list[Event] = []
    with pytest.raises(OptionError, match=f"^kinds={re.escape(repr(wrong))}: there are listen, open, close"):
        events.subscribe(got.append, "open", wrong)
    events.emit(event("open"))
    assert not got


class Listening:
    def __init__(self) -> None:
        self.got: list[Event] = []

    def hear(self, event: Event) -> None:
        self.got.append(event)


def test_who_subscribes_twice_is_told_once_and_unsubscribes_once() -> None:
    events = Events()
    listening = Listening()
    events.subscribe(listening.hear, "error")
    events.subscribe(listening.hear)  # a method is another object each time
    events.emit(event())
    assert len(listening.got) == 1
    events.unsubscribe(listening.hear)
    events.unsubscribe(listening.hear)
    events.emit(event())
    events.emit(event("limit"))
    assert len(listening.got) == 1


def test_listeners_are_told_in_the_order_in_which_they_came() -> None:
    events = Events()
    got: list[int] = []
    for number in range(3):
        events.subscribe(lambda _, number=number: got.append(number))  # type: ignore[misc]
    events.emit(event())
    assert got == [0, 1, 2]


def test_a_listener_may_end_itself_and_bring_another_while_it_is_told() -> None:
    events = Events()
    got: list[str] = []

    def first(_: Event) -> None:
        got.append("first")
        events.unsubscribe(first)
        events.subscribe(second)

    def second(_: Event) -> None:
        got.append("second")

    events.subscribe(first)
    events.subscribe(lambda _: got.append("third"))
    events.emit(event())
    assert got == ["first", "third"]
    events.emit(event())
    assert got == ["first", "third", "third", "second"]


@pytest.mark.gen_test
async def test_a_listener_that_raises_is_logged_and_harms_neither_others_nor_the_client(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving.started(Echo())

    def failing(event: Event) -> None:
        raise ZeroDivisionError

    server.events.subscribe(failing, "open")
    events = listen_to(server, "open")
    peer = serving.connect(server)
    assert await answers(peer)
    assert len(events) == 1
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("iostreamsrv.application", logging.ERROR)
    assert record.getMessage().startswith("Exception in callback <function ")
    assert record.getMessage().endswith(f"for an event: {events[0].text}")
    assert record.exc_info


# ---- what is told


@pytest.mark.gen_test
async def test_a_client_comes_and_goes(serving: Serving) -> None:
    told: list[str] = []

    class Server(Echo):
        async def handle_stream(self, stream: IOStream, address: Any) -> None:
            told.append("handle_stream")
            await super().handle_stream(stream, address)

        def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
            told.append("handle_close")

    server = serving.started(Server())
    server.events.subscribe(lambda event: told.append(event.kind))
    events = listen_to(server)
    peer = serving.connect(server)
    assert await answers(peer)
    (stream,) = server.streams
    host, port = peer.socket.getsockname()
    peer.close()
    await eventually(lambda: "handle_close" in told)
    assert told == ["open", "handle_stream", "close", "handle_close"]
    opened, closed = events
    assert (opened.kind, opened.level, opened.reason, opened.error) == ("open", logging.DEBUG, None, None)
    assert (closed.kind, closed.level, closed.reason, closed.error) == ("close", logging.DEBUG, "eof", None)
    for each in events:
        assert each.stream is stream
        assert each.address == (host, port)
    assert opened.at <= closed.at
    assert opened.text == f"{host}:{port} is connected"
    assert closed.text == f"{host}:{port} is closed: eof"
    assert stream.fileno() == -1
    assert (stream.bytes_read, stream.bytes_written, stream.buffered) == (4, 4, 0)


def reset(peer: Peer, stream: IOStream) -> None:
    peer.reset()


ENDS: dict[str, tuple[Callable[[Peer, IOStream], object], str]] = {
    "reset": (reset, r"reset \(.*Connection reset by peer\)"),
    "kicked": (lambda peer, stream: stream.kick("too loud"), r"kicked \(too loud\)"),
    "aborted": (lambda peer, stream: stream.abort(), "aborted"),
    "local": (lambda peer, stream: stream.close(), "local"),
    "buffer_full": (lambda peer, stream: peer.send(bytes(3000)), "buffer_full.*"),
}


@pytest.mark.parametrize("reason", ENDS)
@pytest.mark.gen_test
async def test_a_close_tells_its_reason_once(serving: Serving, reason: str) -> None:
    end, words = ENDS[reason]
    server = serving.started(Echo(max_buffer_size=1000))
    events = listen_to(server, "close")
    peer = serving.connect(server)
    assert await answers(peer)
    (stream,) = server.streams
    host, port = peer.socket.getsockname()
    end(peer, stream)
    await eventually(lambda: events)
    await turns()
    (closed,) = events
    assert closed.reason == reason
    assert re.fullmatch(f"{host}:{port} is closed: {words}", closed.text)
    assert closed.error is stream.error


@pytest.mark.gen_test
async def test_a_full_read_buffer_is_one_event_and_one_line_in_the_log(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving.started(Echo(max_buffer_size=1000))
    events = listen_to(server)
    peer = serving.connect(server)
    assert await answers(peer)
    peer.send(bytes(3000))
    await eventually(lambda: events[-1].kind == "close")
    assert [(event.kind, event.reason) for event in events[1:]] == [("limit", "buffer_full"), ("close", "buffer_full")]
    (record,) = caplog.records
    assert record.getMessage().startswith("Reached maximum read buffer size (127.0.0.1:")


@pytest.mark.gen_test
async def test_a_handler_that_raises_is_told_before_the_close(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(stream: IOStream, address: Any) -> None:
        raise ZeroDivisionError("made up")

    server = serving.with_handler(handler)
    events = listen_to(server)
    peer = serving.connect(server)
    assert await is_turned_away(peer)
    peer.close()
    await eventually(lambda: len(events) == 3)
    assert [event.kind for event in events] == ["open", "error", "close"]
    assert [event.reason for event in events] == [None, "handler_error", "handler_error"]
    assert isinstance(events[1].error, ZeroDivisionError)


@pytest.mark.gen_test
async def test_who_is_closed_before_its_handler_has_a_close_and_no_open(serving: Serving) -> None:
    server = serving.started(Echo(**TRUSTING))
    events = listen_to(server)
    peer = serving.connect(server)
    peer.send(b"hello\r\n")
    host, port = peer.socket.getsockname()
    assert await is_turned_away(peer)
    await eventually(lambda: len(events) == 2)
    assert [(event.kind, event.reason) for event in events] == [("error", "proxy_error"), ("close", "proxy_error")]
    assert events[0].text.startswith(f"PROXY header of {host}:{port}: ")
    assert events[0].level == logging.WARNING


@pytest.mark.gen_test
async def test_behind_a_proxy_it_is_the_client_that_is_named(serving: Serving) -> None:
    server = serving.started(Echo(**TRUSTING))
    events = listen_to(server)
    peer = serving.connect(server)
    peer.send(header("192.0.2.1"))
    assert await answers(peer)
    peer.close()
    await eventually(lambda: len(events) == 2)
    assert [event.text for event in events] == ["192.0.2.1:1000 is connected", "192.0.2.1:1000 is closed: eof"]
    assert {event.address for event in events} == {("192.0.2.1", 1000)}


@pytest.mark.gen_test
async def test_clients_of_a_unix_socket_are_named_after_it(serving: Serving, tmp_path: Path) -> None:
    server = unix_server(serving, tmp_path, Echo(max_connections=1, when_full="reject"))
    path = server.addresses[0]
    events = listen_to(server)
    assert await answers(connect_unix(serving, server))
    assert await is_turned_away(connect_unix(serving, server))
    await eventually(lambda: len(events) == 3)
    assert [event.text for event in events[:2]] == [
        f"a client of {path} is connected",
        f"a client of {path} is rejected: max_connections is 1",
    ]
    assert {event.address for event in events} == {""}


@pytest.mark.gen_test
async def test_a_header_of_a_unix_client_that_is_refused_is_named_after_the_socket(
    serving: Serving, tmp_path: Path
) -> None:
    server = unix_server(serving, tmp_path, Echo(**TRUSTING))
    events = listen_to(server, "error")
    assert await is_turned_away(connect_unix(serving, server))
    (error,) = events
    assert error.text.startswith(f"PROXY header of a client of {server.addresses[0]}: ")


@pytest.mark.gen_test
async def test_a_handshake_that_fails_names_its_client(serving: Serving) -> None:
    server = serving.started(Echo(ssl_options=tls_contexts()[0]))
    events = listen_to(server)
    peer = serving.connect(server)
    host, port = peer.socket.getsockname()
    peer.send(b"GET / HTTP/1.1\r\n\r\n")
    await eventually(lambda: len(events) == 2)
    assert [(event.kind, event.reason) for event in events] == [("error", "tls_error"), ("close", "tls_error")]
    for event in events:
        assert f"{host}:{port}" in event.text
        assert event.address == (host, port)


@pytest.mark.gen_test
async def test_a_handshake_that_fails_at_a_unix_socket_says_so(serving: Serving, tmp_path: Path) -> None:
    server = unix_server(serving, tmp_path, Echo(ssl_options=tls_contexts()[0]))
    events = listen_to(server, "error")
    connect_unix(serving, server).send(b"GET / HTTP/1.1\r\n\r\n")
    await eventually(lambda: events)
    assert events[0].text.endswith(" (a client of a Unix socket)")


@pytest.mark.gen_test
async def test_a_client_over_tls_comes_and_goes_once(serving: Serving) -> None:
    context, trusting = tls_contexts()
    server = serving.started(Echo(ssl_options=context))
    events = listen_to(server)
    stream = await TCPClient().connect(*server.addresses[0], ssl_options=trusting)
    await stream.aclose()
    await eventually(lambda: len(events) == 2)
    assert [event.kind for event in events] == ["open", "close"]
    assert events[0].stream is events[1].stream


@pytest.mark.parametrize("way", ["kick", "close", "abort"])
@pytest.mark.gen_test
async def test_a_listener_that_closes_a_client_as_it_comes_keeps_it_from_the_handler(
    serving: Serving, way: str
) -> None:
    called: list[str] = []

    class Server(TCPServer):
        def handle_stream(self, stream: IOStream, address: Any) -> None:
            called.append("handle_stream")

        def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
            called.append("handle_close")

    server = serving.started(Server(max_connections=1))
    server.events.subscribe(lambda event: getattr(event.stream, way)(), "open")
    events = listen_to(server, "close")
    for _ in range(3):
        serving.connect(server)
    await eventually(lambda: len(events) == 3)
    assert not called
    assert not len(server.streams)


@pytest.mark.gen_test
async def test_a_listener_may_write_to_a_client_as_it_comes(serving: Serving) -> None:
    server = serving.started(Echo())

    def greet(event: Event) -> None:
        assert isinstance(event.stream, IOStream)
        event.stream.write(b"welcome\n")

    server.events.subscribe(greet, "open")
    peer = serving.connect(server)
    assert await peer.receive(8) == b"welcome\n"
    assert await answers(peer)


# ---- the log


@pytest.mark.gen_test
async def test_clients_are_in_the_log_at_debug_level(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    server = serving.started(Echo())
    with caplog.at_level(logging.DEBUG, "tornado.general"):
        for _ in range(30):  # no limit for these: who turns them on wants to see each
            peer = serving.connect(server)
            assert await answers(peer)
            peer.close()
        await eventually(lambda: not len(server.streams))
    lines = [record.getMessage() for record in caplog.records if record.name == "iostreamsrv.general"]
    assert sum(line.endswith("is connected") for line in lines) == 30
    assert sum(line.endswith("is closed: eof") for line in lines) == 30
    assert not [line for line in lines if "like this one" in line]


@pytest.mark.gen_test
async def test_nothing_is_made_of_what_nobody_wants_to_see(serving: Serving) -> None:
    events = Events()
    assert not events.wanted("open")
    assert not events.wanted("close")
    assert events.wanted("error")
    listener = Listening()
    events.subscribe(listener.hear, "close")
    assert events.wanted("close")
    assert not events.wanted("open")
    events.unsubscribe(listener.hear)
    assert not events.wanted("close")
    events.unsubscribe(events.log)
    assert not events.wanted("error")


@pytest.mark.gen_test
async def test_a_server_without_its_log_is_silent(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    server = serving.started(Echo(max_connections=1, when_full="reject"))
    server.events.unsubscribe(server.events.log)
    events = listen_to(server, "reject")
    with caplog.at_level(logging.DEBUG):
        assert await answers(serving.connect(server))
        assert await is_turned_away(serving.connect(server))
    assert len(events) == 1
    assert not [record for record in caplog.records if record.name.startswith(("iostreamsrv", "tornado"))]


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("iostreamsrv")]


@pytest.mark.gen_test
async def test_a_flood_of_one_kind_leaves_ten_lines_and_the_others_can_be_told(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving.started(Echo(max_connections=1, when_full="reject"))
    with caplog.at_level(logging.INFO):
        assert await answers(serving.connect(server))
        for _ in range(60):
            assert await is_turned_away(serving.connect(server))
        assert 10 <= len(lines_of(caplog)) <= 20  # one more for each second that this takes
        stranger = TCPServer()  # has a limit of its own
        stranger.events.emit(event("reject", "somebody else is rejected", reason=CloseReason.REJECTED))
        server.events.emit(event("error", "something else went wrong"))
    assert lines_of(caplog)[-2:] == ["somebody else is rejected", "something else went wrong"]


def test_lines_of_another_kind_reason_or_level_have_a_limit_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    kinds = [
        event("error", reason=CloseReason.TLS_ERROR),
        event("error", reason=CloseReason.PROXY_ERROR),
        event("limit", reason=CloseReason.TLS_ERROR),
        event("limit", reason=CloseReason.TLS_ERROR, level=logging.ERROR),
    ]
    for _ in range(30):
        for each in kinds:
            events.emit(each)
    assert len(lines_of(caplog)) == 10 * len(kinds)


def test_listeners_are_told_of_what_the_log_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    got: list[Event] = []
    events.subscribe(got.append)
    for _ in range(50):
        events.emit(event())
    assert len(got) == 50
    assert len(lines_of(caplog)) == 10


@pytest.mark.gen_test
async def test_the_line_after_a_flood_says_how_many_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    for _ in range(25):
        events.emit(event())
    while len(lines_of(caplog)) == 10:
        await asyncio.sleep(0.05)
        events.emit(event(text="again"))
    found = re.fullmatch(r"again \(and (\d+) lines like this one before\)", lines_of(caplog)[-1])
    assert found
    assert int(found[1]) >= 15


def test_what_handlers_raise_is_logged_whole_ten_times_and_then_counted(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    for _ in range(30):
        events.emit(event(reason=CloseReason.HANDLER_ERROR, error=ZeroDivisionError(), level=logging.ERROR))
    assert [record.name for record in caplog.records] == ["iostreamsrv.application"] * 10
    assert all(record.exc_info for record in caplog.records)


def test_a_percent_sign_in_a_text_is_one(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    events.emit(event(text="100 %s of it %d"))
    events.emit(event(text="100 %s", reason=CloseReason.HANDLER_ERROR, error=ZeroDivisionError()))
    assert lines_of(caplog) == ["100 %s of it %d", "100 %s"]
