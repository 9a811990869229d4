"""`iostreamsrv.run`: until it ends, or is told to by a signal."""

import asyncio
import signal
import socket
from collections.abc import Iterator

import pytest
import tornado.ioloop

import iostreamsrv
from iostreamsrv import IOLoop
from tests.support import PATIENCE, printed, program

ECHO = """
    import asyncio, iostreamsrv

    class Echo(iostreamsrv.TCPServer):
        async def handle_stream(self, stream, address):
            try:
                while True:
                    await stream.write(await stream.read_until(b"\\n"))
            finally:
                print("'handler ended'")

    server = Echo()
    server.listen(0, "127.0.0.1")
    print(server.addresses[0])
    iostreamsrv.run(server)
    print("'after run'")
"""


@pytest.fixture
def no_loop() -> Iterator[None]:
    """None is current before, and none after: ``run`` has its own."""
    yield
    asyncio.set_event_loop(None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_server_in_order(number: signal.Signals) -> None:
    with program(ECHO) as process:
        with socket.create_connection(printed(process), timeout=PATIENCE) as client:
            client.sendall(b"abc\n")
            assert client.recv(4) == b"abc\n"
            process.send_signal(number)
            assert printed(process) == "handler ended"
            assert client.recv(1) == b""
        assert printed(process) == "after run"
        _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert complaints == ""


def test_a_second_signal_cancels_again_and_a_third_kills() -> None:
    stubborn = """
        import asyncio, iostreamsrv

        async def main():
            print("'running'")
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    print("'cancelled'")

        iostreamsrv.run(main)
    """
    with program(stubborn) as process:
        assert printed(process) == "running"
        process.send_signal(signal.SIGTERM)
        assert printed(process) == "cancelled"
        process.send_signal(signal.SIGTERM)
        assert printed(process) == "cancelled"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == -signal.SIGTERM


def test_run_ends_the_tasks_that_are_left_and_its_coroutines_errors_come_out() -> None:
    with program("""
        import asyncio, iostreamsrv

        async def other():
            try:
                await asyncio.sleep(60)
            finally:
                print("'other ended'")

        async def main():
            task = asyncio.create_task(other())
            await asyncio.sleep(0)
            raise ZeroDivisionError

        try:
            iostreamsrv.run(main())
        except ZeroDivisionError:
            print("'raised'")
    """) as process:
        first = printed(process)
        second = printed(process)
        _, complaints = process.communicate(timeout=PATIENCE)
    assert {first, second} == {"other ended", "raised"}
    assert process.returncode == 0
    assert complaints == ""


def test_run_runs_a_coroutine_to_its_end(no_loop: None) -> None:
    ended: list[bool] = []

    async def main() -> None:
        await asyncio.sleep(0)
        ended.append(True)

    iostreamsrv.run(main())
    iostreamsrv.run(main)
    assert ended == [True, True]


def test_run_returns_when_its_server_is_stopped(no_loop: None) -> None:
    class Once(iostreamsrv.TCPServer):
        async def handle_stream(self, stream: iostreamsrv.IOStream, address: object) -> None:
            self.stop()

    server = Once()
    server.listen(0, "127.0.0.1")
    with socket.create_connection(server.addresses[0], timeout=PATIENCE) as client:
        iostreamsrv.run(server)
        assert client.recv(1) == b""


def test_run_restores_the_signals(no_loop: None) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    iostreamsrv.run(lambda: asyncio.sleep(0))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.gen_test
async def test_run_inside_a_running_loop_names_the_way_there(io_loop: IOLoop) -> None:
    coroutine = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="serve_forever"):
        iostreamsrv.run(coroutine)
    await coroutine


def test_the_ioloop_is_tornados() -> None:
    assert IOLoop is tornado.ioloop.IOLoop
