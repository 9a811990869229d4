"""`iostreamsrv.streams.hub` with descriptors that were closed behind its back, with errors in the midst of a batch, and
with children."""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from iostreamsrv import IOLoop, IOStream
from iostreamsrv.streams.hub import hub_of
from tests.support.engines import on_every_loop
from tests.support.peers import MakePair, Peer, tcp_pair
from tests.support.programs import printed, program
from tests.support.waiting import PATIENCE, eventually, turns

pytestmark = on_every_loop

LINE = b"0123456789abcde\n"


@contextlib.contextmanager
def held_by_a_child(sock: socket.socket) -> Iterator[None]:
    """Meanwhile another process has a copy of ``sock``, so that it stays in each epoll that it was registered with."""
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[sock.fileno()], stderr=subprocess.DEVNULL
    ) as child:
        try:
            yield
        finally:
            assert child.stdin is not None
            child.stdin.close()


def at_number(sock: socket.socket, number: int) -> socket.socket:
    """The same connection, with this number for its descriptor."""
    if sock.fileno() == number:
        return sock
    os.dup2(sock.fileno(), number)
    sock.close()
    return socket.socket(fileno=number)


async def all_read(others: list[tuple[IOStream, Peer]]) -> None:
    """Each of them receives a line, all in one batch."""
    reading = [stream.read_until(b"\n") for stream, _ in others]
    await turns()
    for _, peer in others:
        peer.send(LINE)
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*reading) == [LINE] * len(others)


# ---- descriptors closed behind our back


@pytest.mark.parametrize("said", [True, False], ids=["and then the stream", "and nothing else"])
@pytest.mark.gen_test
async def test_a_stale_entry_makes_no_other_stream_deaf(make_pair: MakePair, engine: str, said: bool) -> None:
    if engine == "loop":
        pytest.skip("asyncio's own epoll reports stale entries for ever")
    stream, peer = make_pair()
    others = [make_pair() for _ in range(8)]
    stream.read_until(b"\n").add_done_callback(lambda done: done.exception())
    await turns()
    with held_by_a_child(stream.socket):
        for _ in range(3):
            await all_read(others)
            if stream.socket is not None:
                stream.socket.close()
            if said:
                stream.close()
            reading = [other.read_until(b"\n") for other, _ in others]
            await turns()
            peer.send(LINE)  # in one batch with those of all others
            for _, other in others:
                other.send(LINE)
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.gather(*reading) == [LINE] * len(others)
        await eventually(stream.closed)


@pytest.mark.gen_test
async def test_a_number_that_the_hub_does_not_know_loses_no_event_of_the_others(
    make_pair: MakePair, engine: str, io_loop: IOLoop
) -> None:
    if engine == "loop":
        pytest.skip("there each stream has a handler of its own")
    others = [make_pair() for _ in range(8)]
    await all_read(others)
    ours, theirs = socket.socketpair()
    hub_of(io_loop)._epoll.register(ours, 1)  # type: ignore[attr-defined]
    theirs.send(b"!")
    for _ in range(3):
        await all_read(others)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("closing", ["the socket", "the number"])
@pytest.mark.gen_test
async def test_a_number_that_was_used_again_is_noticed_and_harms_nobody(
    make_pair: MakePair, caplog: pytest.LogCaptureFixture, engine: str, closing: str
) -> None:
    dead, dead_peer = make_pair()
    others = [make_pair() for _ in range(4)]
    reading = dead.read_until(b"\n")
    await all_read(others)
    number = dead.fileno()
    with held_by_a_child(dead.socket) if engine != "loop" else contextlib.nullcontext():
        ours, theirs = tcp_pair()
        if closing == "the socket":
            dead.socket.close()
        else:
            os.close(number)
        successor, peer = make_pair((at_number(ours, number), theirs))
        successor.linger = 0.01
        assert successor.fileno() == number
        with caplog.at_level(logging.WARNING):
            await all_read([(successor, peer), *others])
        assert dead.closed()
        assert reading.done()
        reading.exception()
        assert f"its descriptor {number} was closed by other code" in caplog.text
        # What happens to the dead one is nothing to its successor.
        successor.set_close_callback(lambda: None)
        with contextlib.suppress(OSError):  # where there is no copy, there is no connection
            dead_peer.send(LINE)
            dead_peer.half_close()
        await asyncio.sleep(0.05)
        assert not successor.closed()
        dead.close()
        await all_read([(successor, peer), *others])
        await successor.write(LINE)
        assert await peer.receive(len(LINE)) == LINE


# ---- errors in the midst of a batch


def complaints_of(loop: asyncio.AbstractEventLoop) -> list[BaseException | None]:
    complaints: list[BaseException | None] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context.get("exception")))
    return complaints


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
@pytest.mark.gen_test
async def test_an_error_in_one_dispatch_loses_no_event_of_the_others(
    make_pair: MakePair, error: type[BaseException]
) -> None:
    pairs = [make_pair() for _ in range(8)]
    await all_read(pairs)
    complaints = complaints_of(asyncio.get_running_loop())
    broken = pairs[0][0]

    def fail(events: int) -> None:
        raise error

    reading = [stream.read_until(b"\n") for stream, _ in pairs]
    broken._dispatch_not_open = fail  # type: ignore[method-assign]
    broken._connect_future = asyncio.Future()  # so its dispatch begins, and ends, with that
    await turns()
    for _, peer in pairs:
        peer.send(LINE)
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*reading[1:]) == [LINE] * 7
    assert {type(complaint) for complaint in complaints} == {error}
    reading[0].cancel()


@pytest.mark.gen_test
async def test_an_error_in_sending_what_was_corked_keeps_back_no_other_answer(make_pair: MakePair, engine: str) -> None:
    if engine == "loop":
        pytest.skip("there each stream has a run of its own")
    pairs = [make_pair() for _ in range(8)]
    complaints = complaints_of(asyncio.get_running_loop())

    async def answer(stream: IOStream) -> None:
        while True:
            stream.write(await stream.read_until(b"\n"))

    def fail(data: object) -> int:
        raise asyncio.CancelledError  # an Exception would close the stream

    answering = [asyncio.create_task(answer(stream)) for stream, _ in pairs]
    await turns()
    broken = pairs[3][0]
    broken.write_to_fd = fail  # type: ignore[method-assign]
    for _, peer in pairs:
        peer.send(LINE * 2)
    for stream, peer in pairs:
        if stream is not broken:
            async with asyncio.timeout(PATIENCE):
                assert await peer.receive(2 * len(LINE)) == LINE * 2
    assert [type(complaint) for complaint in complaints] == [asyncio.CancelledError]
    for task in answering:
        task.cancel()
    broken.close()
    await asyncio.wait(answering)


# ---- children


FORKING = """
    import asyncio, os, socket, sys
    from iostreamsrv import IOStream
    from iostreamsrv.streams import hub

    if sys.argv[1] == "loop":
        hub.driver = hub.LoopHub

    async def main():
        pairs = [socket.socketpair() for _ in range(3)]
        streams = [IOStream(ours) for ours, _ in pairs]
        reading = [stream.read_until(b"\\n") for stream in streams]
        await asyncio.sleep(0.01)
        child = os.fork()
        if not child:
            for stream in streams:
                stream.close()
            os._exit(0)
        assert os.waitpid(child, 0) == (child, 0)
        for _, theirs in pairs:
            theirs.send(b"line\\n")
        done, _ = await asyncio.wait(reading, timeout=5)
        print(len(done))
        for stream in streams:
            stream.close()
        for read in reading:
            read.exception()
        for _, theirs in pairs:
            theirs.close()

    asyncio.run(main())
"""


@pytest.mark.gen_test
async def test_a_childs_copies_cannot_take_the_parents_streams_out_of_its_epoll(engine: str) -> None:
    if engine == "uvloop":
        pytest.skip("uvloop forbids to fork while it runs")
    with program(FORKING, engine) as process:
        assert printed(process) == 3
        assert process.wait() == 0


LISTENING = """
    import asyncio, os, socket, sys
    from iostreamsrv import TCPServer
    from iostreamsrv.streams import hub

    if sys.argv[1] == "loop":
        hub.driver = hub.LoopHub

    class Greeter(TCPServer):
        async def handle_stream(self, stream, address):
            await stream.write(b"hello\\n")

    async def main():
        server = Greeter()
        server.listen(0, "127.0.0.1")
        await asyncio.sleep(0.01)
        child = os.fork()
        if not child:
            try:
                server.stop()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        print(len(await asyncio.wait_for(reader.readline(), 5)))
        writer.close()
        await server.shutdown()

    asyncio.run(main())
"""


@pytest.mark.gen_test
async def test_a_child_that_stops_its_copy_of_a_server_leaves_the_parent_accepting(engine: str) -> None:
    if engine == "uvloop":
        pytest.skip("uvloop forbids to fork while it runs")
    with program(LISTENING, engine) as process:
        assert printed(process) == len("hello\n")
        assert process.wait() == 0


STALE = """
    import asyncio, os, socket
    from iostreamsrv import IOStream

    async def main():
        pairs = [socket.socketpair() for _ in range(3)]
        streams = [IOStream(ours) for ours, _ in pairs]
        reading = [stream.read_until(b"\\n") for stream in streams]
        await asyncio.sleep(0.01)
        ready, go = os.pipe()
        child = os.fork()
        if not child:
            os.close(go)
            os.read(ready, 1)  # until the parent has ended
            os._exit(0)
        streams[0].socket.close()
        reading[0].add_done_callback(lambda done: done.exception())
        streams[0].close()
        for _, theirs in pairs:
            theirs.send(b"line\\n")
        done, _ = await asyncio.wait(reading[1:], timeout=5)
        print(len(done))
        os.close(go)
        os.close(ready)
        os.waitpid(child, 0)
        for stream in streams:
            stream.close()
        for read in reading:
            read.exception()
        for _, theirs in pairs:
            theirs.close()

    asyncio.run(main())
"""


@pytest.mark.gen_test
async def test_a_descriptor_that_a_forked_child_holds_makes_no_other_stream_deaf(engine: str) -> None:
    if engine != "epoll":
        pytest.skip("the program has a loop of its own")
    with program(STALE) as process:
        assert printed(process) == 2
        assert process.wait() == 0
