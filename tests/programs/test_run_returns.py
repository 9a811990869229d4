"""`iostreamsrv.run` returns soon after ``drain_timeout``, whatever its handlers do."""

import signal
import socket
import time

import pytest

from tests.support.programs import printed, program
from tests.support.waiting import PATIENCE

DRAIN = 0.5
"""Seconds of ``drain_timeout``."""

SOON = DRAIN + 2.5
"""Seconds within which ``run`` returns: one is for last words and for clients to read them, one for what the loop still
runs, and the rest is for a busy machine."""

ENDING = """
    import asyncio, sys, threading, time, iostreamsrv

    async def swallows(stream):
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print("'cancelled'", flush=True)

    async def swallows_until_closed(stream):
        while True:
            try:
                await stream.read_until(b"\\n")
            except asyncio.CancelledError:
                pass

    async def works_in_a_thread(stream):
        await asyncio.to_thread(released.wait, 60)

    async def works_in_two_threads(stream):
        await asyncio.gather(works_in_a_thread(stream), works_in_a_thread(stream))

    class Server(iostreamsrv.TCPServer):
        async def handle_stream(self, stream, address):
            await stream.write(b"!")
            await globals()[sys.argv[1]](stream)

    released = threading.Event()
    server = Server(drain_timeout=float(sys.argv[2]), drain_idle=0.01)
    server.listen(0, "127.0.0.1")
    print(server.addresses[0])
    iostreamsrv.run(server)
    print("'returned'", flush=True)
    released.set()
"""


def seconds_until_it_returns(handler: str) -> tuple[float, str]:
    """After a SIGTERM to a server whose only client stays; and what it complains of."""
    with (
        program(ENDING, handler, str(DRAIN)) as process,
        socket.create_connection(printed(process), timeout=PATIENCE) as client,
    ):
        assert client.recv(1) == b"!"
        if handler == "swallows_until_closed":
            client.sendall(b"no newline")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        while printed(process) != "returned":
            pass
        took = time.monotonic() - began
        _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "Traceback" not in complaints
    return took, complaints


def test_run_returns_soon_after_drain_timeout_though_a_handler_swallows_its_cancels() -> None:
    took, complaints = seconds_until_it_returns("swallows")
    assert DRAIN < took < SOON
    assert complaints.count("these tasks do not, though they were cancelled") == 1
    assert "Server.handle_stream" in complaints


def test_run_returns_soon_though_a_handler_swallows_cancels_until_its_stream_is_closed() -> None:
    took, complaints = seconds_until_it_returns("swallows_until_closed")
    assert took < SOON
    assert "though they were cancelled" not in complaints


@pytest.mark.parametrize(
    "handler, words",
    [
        ("works_in_a_thread", "1 thread of its executor is still at work"),
        ("works_in_two_threads", "2 threads of its executor are still at work"),
    ],
)
def test_run_returns_soon_while_threads_work_and_says_how_many_in_one_line(handler: str, words: str) -> None:
    took, complaints = seconds_until_it_returns(handler)
    assert DRAIN < took < SOON
    assert complaints.count("still at work") == 1
    assert words in complaints
