"""The test kit for others."""

import asyncio
import logging
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import IOStream, ListenError, OptionError, StreamClosedError, TCPServer
from iostreamsrv.streams.transports.memory import MemorySocket
from iostreamsrv.testing import bind_unused_port, memory_stream_pair, running
from tests.support import PROJECT
from tests.support.leaks import open_descriptors
from tests.support.peers import tcp_pair
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("io_loop")


class Echo(TCPServer):
    async def handle_stream(self, stream: IOStream, address: object) -> None:
        while True:
            await stream.write(await stream.read_until(b"\n"))


# ---- memory_stream_pair


@pytest.mark.gen_test
async def test_a_handler_serves_a_stream_in_memory() -> None:
    before = open_descriptors()
    ours, theirs = memory_stream_pair()
    handling = asyncio.ensure_future(Echo().handle_stream(theirs, theirs.remote_address))
    await ours.write(b"one\ntwo\n")
    assert await ours.read_until(b"\n") == b"one\n"
    assert await ours.read_until(b"\n") == b"two\n"
    assert open_descriptors() == before
    ours.close()
    with pytest.raises(StreamClosedError):
        await handling
    assert theirs.close_reason == "eof"


@pytest.mark.gen_test
async def test_streams_in_memory_are_iostreams_with_addresses() -> None:
    ours, theirs = memory_stream_pair(max_buffer_size=1000)
    assert isinstance(ours, IOStream)
    assert (ours.local_address, ours.remote_address) == (theirs.remote_address, theirs.local_address)
    assert ours.max_buffer_size == theirs.max_buffer_size == 1000
    assert ours.fileno() == -1
    ours.set_nodelay(True)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("capacity", [1, 1000, 65536])
@pytest.mark.gen_test
async def test_a_writer_in_memory_waits_for_a_reader(capacity: int) -> None:
    ours, theirs = memory_stream_pair(capacity=capacity)
    writing = ours.write(b"x" * (capacity + 1))
    await asyncio.sleep(0)
    assert not writing.done()
    assert await theirs.read_bytes(capacity + 1) == b"x" * (capacity + 1)
    await writing
    ours.close()
    theirs.close()


@pytest.mark.gen_test
async def test_a_half_close_in_memory_leaves_the_other_direction() -> None:
    ours, theirs = memory_stream_pair(allow_half_open=True)
    await ours.write(b"request")
    await ours.send_eof()
    assert await theirs.read_until_close() == b"request"
    await theirs.write(b"reply")
    await theirs.send_eof()
    assert await ours.read_until_close() == b"reply"
    await eventually(lambda: ours.closed() and theirs.closed())


@pytest.mark.gen_test
async def test_an_abort_in_memory_resets_the_other_end() -> None:
    ours, theirs = memory_stream_pair()
    reading = theirs.read_bytes(1)
    ours.abort()
    with pytest.raises(StreamClosedError) as caught:
        await reading
    assert isinstance(caught.value.real_error, ConnectionResetError)
    assert theirs.close_reason == "reset"


@pytest.mark.gen_test
async def test_closing_in_memory_with_unread_bytes_resets_the_other_end() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.write(b"unread")
    ours.close()
    with pytest.raises(StreamClosedError):
        await theirs.read_bytes(1)
    assert theirs.close_reason == "reset"


@pytest.mark.gen_test
async def test_a_file_is_sent_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4096)
    ours, theirs = memory_stream_pair()
    with path.open("rb") as file:
        sending = ours.sendfile(file)
    assert await theirs.read_bytes(1 << 20) == path.read_bytes()
    assert await sending == 1 << 20
    ours.close()
    theirs.close()


def test_a_wrong_option_for_streams_in_memory_raises() -> None:
    with pytest.raises(OptionError, match="max_buffer_size=0"):
        memory_stream_pair(max_buffer_size=0)


RESET = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
ERROR = (socket.SOL_SOCKET, socket.SO_ERROR)

SCRIPTS = {
    "bytes": "0 send abcdef|1 recv 4|1 recv 4|1 recv 4|0 send |1 recv 4",
    "a look": "0 send abc|1 peek 2|1 recv 9",
    "a half-close": "0 send abc|0 shutdown|0 send d|1 recv 9|1 recv 9|1 recv 9|1 send xyz|0 recv 9",
    "a close": "0 send abc|0 close|1 recv 9|1 recv 9|1 send |1 send x|1 send y|1 send z|1 recv 9|1 shutdown",
    "a close with unread bytes": "1 send abc|0 close|1 recv 9|1 recv 9|1 send x|1 shutdown",
    "a reset": "0 send abc|0 reset|1 recv 9|1 recv 9|1 recv 9|1 send x|1 shutdown",
    "a reset after an end": "0 shutdown|1 recv 9|0 reset|1 recv 9|1 send x|1 send y|1 recv 9",
    "an error that is asked for": "0 reset|1 error|1 error|1 send x|1 recv 9",
    "both ends": "0 shutdown|1 shutdown|0 recv 9|1 recv 9|0 error|1 error",
}


def outcomes(script: str, ends: tuple[Any, Any]) -> list[Any]:
    """What each step of a script gives, or the error it raises."""
    said: list[Any] = []
    for step in script.split("|"):
        number, what, *word = step.split(" ")
        try:
            said.append(step_of(ends[int(number)], what, *word))
        except OSError as error:
            said.append(error.errno)
    return said


def step_of(end: Any, what: str, word: str = "") -> Any:
    if what == "send":
        return end.send(word.encode())
    if what == "recv":
        return end.recv(int(word))
    if what == "peek":
        return end.recv(int(word), socket.MSG_PEEK)
    if what == "shutdown":
        return end.shutdown(socket.SHUT_WR)
    if what == "error":
        return end.getsockopt(*ERROR)
    if what == "reset":
        end.setsockopt(*RESET)
    return end.close()


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_socket_in_memory_does_as_the_kernels(script: str) -> None:
    kernels = tcp_pair()
    for end in kernels:
        end.setblocking(False)
    with kernels[0], kernels[1]:
        assert outcomes(script, MemorySocket.pair()) == outcomes(script, kernels)


def test_a_socket_in_memory_is_full_when_nobody_receives() -> None:
    one, other = MemorySocket.pair(4)
    assert one.send(b"12345") == 4
    with pytest.raises(BlockingIOError):
        one.send(b"5")
    assert other.recv(1) == b"1"
    assert one.send(b"5") == 1


def test_a_memory_stream_can_be_closed_after_its_loop() -> None:
    async def main() -> tuple[IOStream, IOStream]:
        one, other = memory_stream_pair()
        one.read_bytes(1)
        await asyncio.sleep(0)  # the hub has seen all there is
        return one, other

    for stream in reversed(asyncio.run(main())):
        stream.close()


@pytest.mark.parametrize("capacity", [0, -1, True, 1.5])
def test_a_capacity_that_cannot_be_is_refused(capacity: Any) -> None:
    with pytest.raises(OptionError, match="capacity="):
        memory_stream_pair(capacity=capacity)


@pytest.mark.gen_test
async def test_a_stream_in_memory_says_that_it_is_connected_already() -> None:
    ours, theirs = memory_stream_pair()
    with pytest.raises(StreamClosedError, match="connected already"):
        await ours.connect(("127.0.0.1", 1))
    theirs.close()


# ---- bind_unused_port


def test_an_unused_port_is_listened_on() -> None:
    listener, port = bind_unused_port()
    with listener, socket.create_connection(("127.0.0.1", port)):
        assert listener.getsockname() == ("127.0.0.1", port)


def test_an_unused_port_of_no_address_of_ours_is_an_error() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1"):
        bind_unused_port(address="192.0.2.1")


# ---- running


@pytest.mark.gen_test
async def test_a_server_runs_as_long_as_the_block() -> None:
    server = Echo()
    async with running(server) as address:
        stream = IOStream(socket.socket())
        await stream.connect(address)
        await stream.write(b"hello\n")
        assert await stream.read_until(b"\n") == b"hello\n"
        (theirs,) = server.streams
    assert theirs.close_reason == "shutdown"
    assert server.addresses == []
    with pytest.raises(StreamClosedError):
        await stream.read_bytes(1)


@pytest.mark.gen_test
async def test_a_server_that_listens_already_goes_on_where_it_does() -> None:
    server = Echo()
    server.add_socket(bind_unused_port()[0])
    (address,) = server.addresses
    async with running(server) as given:
        assert given == address


@pytest.mark.gen_test
async def test_an_error_in_the_block_comes_out_and_ends_the_server() -> None:
    server = Echo()
    with pytest.raises(ZeroDivisionError):
        async with running(server):
            raise ZeroDivisionError
    assert server.addresses == []


@pytest.mark.gen_test
async def test_streams_of_a_server_that_was_stopped_in_the_block_are_closed(caplog: pytest.LogCaptureFixture) -> None:
    server = Echo()
    async with running(server) as address:
        stream = IOStream(socket.socket())
        await stream.connect(address)
        await eventually(lambda: len(server.streams))
        server.stop()
        await asyncio.sleep(0)
    with pytest.raises(StreamClosedError):
        await stream.read_bytes(1)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


class Sleepy(TCPServer):
    """A handler that waits for nothing of its stream, and takes a moment to end."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.ended = asyncio.Event(), asyncio.Event()
        self.may_end = asyncio.Event()

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await self.may_end.wait()
            self.ended.set()


def test_running_ends_handlers_also_of_a_server_that_was_stopped() -> None:
    async def main() -> None:
        server = Sleepy()
        server.may_end.set()
        async with running(server) as address:
            with socket.create_connection(address):
                await server.begun.wait()
            server.stop()
            await asyncio.sleep(0)
        assert server.ended.is_set()

    asyncio.run(main())


def test_a_cancel_while_running_ends_is_not_lost() -> None:
    async def main() -> None:
        server = Sleepy()
        asyncio.get_running_loop().call_later(0.05, server.may_end.set)
        entered = asyncio.Event()

        async def use() -> None:
            async with running(server) as address:
                with socket.create_connection(address):
                    await server.begun.wait()
                entered.set()

        using = asyncio.create_task(use())
        await entered.wait()
        await asyncio.sleep(0)
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using

    asyncio.run(main())


# ---- fixtures


OF_SOMEBODY_ELSE = """\
import pytest
from iostreamsrv import IOStream, TCPServer
import socket

class Echo(TCPServer):
    async def handle_stream(self, stream, address):
        while True:
            await stream.write(await stream.read_until(b"\\n"))

@pytest.mark.gen_test
async def test_serve(serve):
    first, second = serve(Echo()), serve(Echo())
    for address in (first, second):
        stream = IOStream(socket.socket())
        await stream.connect(address)
        await stream.write(b"hello\\n")
        assert await stream.read_until(b"\\n") == b"hello\\n"
        stream.close()

@pytest.mark.gen_test
async def test_memory_streams(memory_streams):
    ours, theirs = memory_streams
    await ours.write(b"hello\\n")
    assert await theirs.read_until(b"\\n") == b"hello\\n"

def test_unused_port(unused_port):
    listener, port = unused_port
    socket.create_connection(("127.0.0.1", port)).close()
"""


def test_the_fixtures_serve_the_tests_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["iostreamsrv.pytest_plugin"]')
    (tmp_path / "test_theirs.py").write_text(OF_SOMEBODY_ELSE)
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "3 passed" in ended.stdout, ended.stdout + ended.stderr
