"""`iostreamsrv.run`: until it ends, or is told to by a signal."""

import asyncio
import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tornado.ioloop

import iostreamsrv
from iostreamsrv import IOLoop
from tests.support.listening import linux_only
from tests.support.programs import eventually, printed, program
from tests.support.waiting import PATIENCE

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


WORKING = """
    import asyncio, contextlib, iostreamsrv, sys

    class Working(iostreamsrv.TCPServer):
        async def handle_stream(self, stream, address):
            line = await stream.read_until(b"\\n")
            print("'working'")
            if line == b"stubborn\\n":
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                print("'cancelled'")
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
            await asyncio.sleep(float(line))
            await stream.write(line)

        async def handle_close(self, stream, reason):
            await asyncio.sleep(0.1)
            print(repr(str(reason)))

    server = Working(drain_timeout=None, drain_idle=0.1)
    server.listen(0, "127.0.0.1")
    print(server.addresses[0])
    iostreamsrv.run(server)
    print("'after run'")
"""
"""A server whose requests take as many seconds as they say."""


def test_a_signal_lets_those_who_are_served_and_those_who_queue_finish() -> None:
    with program(WORKING) as process, contextlib.ExitStack() as stack:
        address = printed(process)

        def fifty() -> list[socket.socket]:
            clients = [socket.create_connection(address, timeout=PATIENCE) for _ in range(50)]
            for client in clients:
                stack.enter_context(client)
                client.sendall(b"0.5\n")
            return clients

        served = fifty()
        for _ in served:
            assert printed(process) == "working"
        process.send_signal(signal.SIGSTOP)
        queued = fifty()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        for client in (*served, *queued):
            assert client.recv(4) == b"0.5\n"
            assert client.recv(1) == b""
            client.close()
        said, complaints = process.communicate(timeout=PATIENCE)
    assert sorted(said.splitlines()) == ["'after run'", *["'local'"] * 100, *["'working'"] * 50]
    assert process.returncode == 0
    assert complaints == ""


def test_an_idle_client_does_not_hold_ctrl_c_up() -> None:
    with program(WORKING) as process:
        with socket.create_connection(printed(process), timeout=PATIENCE) as client:
            eventually_accepted(process, client)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0, "drain_timeout is None"
            assert client.recv(1) == b""
        assert process.communicate()[0].splitlines() == ["'shutdown'", "'after run'"]


def eventually_accepted(process: "subprocess.Popen[str]", client: socket.socket) -> None:
    """Return once another client, who came later, has been served and has left."""
    with socket.create_connection(client.getpeername(), timeout=PATIENCE) as other:
        other.sendall(b"0\n")
        assert printed(process) == "working"
        assert other.recv(2) == b"0\n"
    assert printed(process) == "local"


@linux_only
@pytest.mark.parametrize(
    "first, second",
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)],
    ids=["SIGTERM twice", "SIGINT twice", "one of each"],
)
def test_a_second_signal_ends_a_server_at_once(first: signal.Signals, second: signal.Signals) -> None:
    with program(WORKING) as process:
        address = printed(process)
        with socket.create_connection(address, timeout=PATIENCE) as client:
            client.sendall(b"1000\n")
            assert printed(process) == "working"
            process.send_signal(first)
            until_refused(address)
            process.send_signal(second)
            assert client.recv(1) == b""
            assert printed(process) == "shutdown"
            assert printed(process) == "after run"
            _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert complaints == ""


def until_refused(address: tuple[str, int]) -> None:
    """Return once nobody listens there, without connecting again and again: the last one in would be waited for."""
    eventually(lambda: not is_listening(address[1]), lambda: address)


def is_listening(port: int) -> bool:
    local = f":{port:04X} 00000000:0000 0A"
    return any(local in line for line in Path("/proc/net/tcp").read_text().splitlines())


@linux_only
def test_a_third_signal_kills_a_server_whose_handler_will_not_end() -> None:
    with program(WORKING) as process:
        address = printed(process)
        with socket.create_connection(address, timeout=PATIENCE) as client:
            client.sendall(b"stubborn\n")
            assert printed(process) == "working"
            process.send_signal(signal.SIGTERM)
            until_refused(address)
            process.send_signal(signal.SIGTERM)
            assert printed(process) == "cancelled"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == -signal.SIGTERM


def test_a_shutdown_of_ones_own_that_fails_ends_the_server_and_comes_out() -> None:
    with program("""
        import iostreamsrv

        class Failing(iostreamsrv.TCPServer):
            async def handle_stream(self, stream, address):
                print("'handling'")
                await stream.read_until(b"end")

            async def shutdown(self):
                raise ZeroDivisionError

        server = Failing()
        server.listen(0, "127.0.0.1")
        print(server.addresses[0])
        try:
            iostreamsrv.run(server)
        except ZeroDivisionError:
            print("'raised'")
    """) as process:
        with socket.create_connection(printed(process), timeout=PATIENCE) as client:
            assert printed(process) == "handling"
            process.send_signal(signal.SIGTERM)
            assert client.recv(1) == b""
            assert printed(process) == "raised"
        _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert complaints == ""


def test_a_signal_ends_a_coroutine_that_has_servers_of_its_own() -> None:
    with program("""
        import iostreamsrv

        class Echo(iostreamsrv.TCPServer):
            async def handle_stream(self, stream, address):
                try:
                    while True:
                        await stream.write(await stream.read_until(b"\\n"))
                finally:
                    print("'handler ended'")

        async def main():
            async with Echo() as server:
                server.listen(0, "127.0.0.1")
                print(server.addresses[0])
                await server.serve_forever()

        iostreamsrv.run(main)
        print("'after run'")
    """) as process:
        with socket.create_connection(printed(process), timeout=PATIENCE) as client:
            client.sendall(b"abc\n")
            assert client.recv(4) == b"abc\n"
            process.send_signal(signal.SIGTERM)
            assert printed(process) == "handler ended"
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
