"""`iostreamsrv.run`, and `QueueServer.run`: how they leave signals, and that they end."""

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import iostreamsrv
from iostreamsrv.certificates import self_signed
from iostreamsrv.styles import QueueServer
from tests.support import PROJECT
from tests.support.programs import printed, program
from tests.support.waiting import PATIENCE

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

SERVING = """
    import asyncio, signal, sys, iostreamsrv

    class Echo(iostreamsrv.TCPServer):
        async def handle_stream(self, stream, address):
            while True:
                await stream.write(await stream.read_until(b"\\n"))

    for name in sys.argv[1].split():
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    server = Echo(drain_idle=0.01)
    server.listen(0, "127.0.0.1")
    print(server.addresses[0])
    iostreamsrv.run(server)
    names = ["SIGINT", "SIGTERM", "SIGHUP"]
    print([name for name in names if signal.getsignal(getattr(signal, name)) == signal.SIG_IGN])
"""
"""An echo server with signals that are ignored."""


@pytest.fixture
def no_loop() -> Iterator[None]:
    yield
    asyncio.set_event_loop(None)


@pytest.fixture
def signals() -> Iterator[None]:
    """All are handled in the end as at first."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def asks(client: socket.socket) -> None:
    client.sendall(b"abc\n")
    assert client.recv(4) == b"abc\n"


# ---- signals that are ignored


@pytest.mark.parametrize("ignored, ends", [("SIGINT", "SIGTERM"), ("SIGTERM", "SIGINT"), ("SIGINT SIGHUP", "SIGTERM")])
def test_a_signal_that_is_ignored_stays_so(ignored: str, ends: str) -> None:
    with program(SERVING, ignored) as process:
        with socket.create_connection(printed(process), timeout=PATIENCE) as client:
            asks(client)
            for name in ignored.split():
                for _ in range(3):
                    process.send_signal(getattr(signal, name))
            time.sleep(0.1)
            asks(client)
            process.send_signal(getattr(signal, ends))
            assert client.recv(1) == b""
        assert printed(process) == ignored.split()
        _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert complaints == ""


def test_a_hangup_that_is_ignored_reloads_nothing(tmp_path: Path) -> None:
    with program(
        """
        import signal, sys, iostreamsrv

        class Server(iostreamsrv.TCPServer):
            async def handle_stream(self, stream, address):
                pass

            def reload_certificates(self):
                print("'reloaded'")

        if sys.argv[3]:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        server = Server({"certfile": sys.argv[1], "keyfile": sys.argv[2]})
        server.listen(0, "127.0.0.1")
        print(server.addresses[0])
        iostreamsrv.run(server)
        """,
        *self_signed().write(tmp_path).values(),
        "ignored",
    ) as process:
        address = printed(process)
        socket.create_connection(address, timeout=PATIENCE).close()
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said, complaints = process.communicate(timeout=PATIENCE)
    assert (said, process.returncode) == ("", 0)
    assert "Error" not in complaints


def test_a_program_that_nohup_started_in_the_background_serves_until_sigterm(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text("import sys\nsys.argv.append('')\n" + "\n".join(line[4:] for line in SERVING.splitlines()))
    command = f"nohup {shlex.quote(sys.executable)} -u {shlex.quote(str(script))} & echo $!; wait"
    with subprocess.Popen(
        ["/bin/sh", "-c", command],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as shell:
        assert shell.stdout is not None
        server = int(shell.stdout.readline())
        try:
            with socket.create_connection(printed(shell), timeout=PATIENCE) as client:
                asks(client)
                for number in (signal.SIGINT, signal.SIGHUP):
                    os.kill(server, number)
                time.sleep(0.1)
                asks(client)
                os.kill(server, signal.SIGTERM)
                assert client.recv(1) == b""
            assert printed(shell) == ["SIGINT", "SIGHUP"]
            assert shell.wait(PATIENCE) == 0
        finally:
            if shell.poll() is None:
                os.kill(server, signal.SIGKILL)


def test_programs_that_tests_start_take_signals_though_the_tests_ignore_them() -> None:
    """As with ``nohup make test &``."""
    tests = ["tests/programs/test_ioloop.py", "-k", "test_a_signal_ends_a_server_in_order"]
    command = 'trap "" INT HUP; exec "$0" -m pytest -q -p no:cacheprovider "$@"'
    ran = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, *tests],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=12 * PATIENCE,
    )
    assert ran.returncode == 0, ran.stdout
    assert "2 passed" in ran.stdout


# ---- handlers of the application


def handler(number: int, frame: Any) -> None:
    """Of an application."""


def test_run_puts_the_handlers_of_the_application_back(no_loop: None, signals: None) -> None:
    seen: list[Any] = []

    async def main() -> None:
        seen.extend(signal.getsignal(number) for number in SIGNALS[:2])

    for number in SIGNALS:
        signal.signal(number, handler)
    iostreamsrv.run(main)
    assert handler not in seen, "it has its own meanwhile"
    assert [signal.getsignal(number) for number in SIGNALS] == [handler] * 3


def test_run_puts_them_back_when_it_was_ended_by_signals(no_loop: None, signals: None) -> None:
    async def main() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            try:
                await asyncio.sleep(PATIENCE)
            except asyncio.CancelledError:
                pass

    for number in SIGNALS:
        signal.signal(number, handler)
    iostreamsrv.run(main)
    assert [signal.getsignal(number) for number in SIGNALS] == [handler] * 3


def test_run_puts_the_default_and_what_is_ignored_back(no_loop: None, signals: None) -> None:
    kinds = [signal.SIG_DFL, signal.SIG_IGN, signal.SIG_DFL]
    for number, kind in zip(SIGNALS, kinds, strict=True):
        signal.signal(number, kind)
    iostreamsrv.run(lambda: asyncio.sleep(0))
    assert [signal.getsignal(number) for number in SIGNALS] == kinds


def test_run_puts_the_wakeup_descriptor_back(no_loop: None) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        before = signal.set_wakeup_fd(ours.fileno())
        try:
            iostreamsrv.run(lambda: asyncio.sleep(0))
        finally:
            after = signal.set_wakeup_fd(before)
        assert after == ours.fileno()


def test_a_queue_server_leaves_signals_as_it_found_them(signals: None) -> None:
    for number, kind in zip(SIGNALS, [signal.SIG_IGN, handler, handler], strict=True):
        signal.signal(number, kind)
    seen: list[Any] = []

    def stop(queue: Any, data: bytes) -> None:
        seen.extend(signal.getsignal(number) for number in SIGNALS[:2])
        server.stop()

    server = QueueServer("localhost", 0, stop, drain_idle=0.01)
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(b"!")
        server.run()
        assert client.recv(1) == b""
    assert seen[0] == signal.SIG_IGN
    assert seen[1] is not handler
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_IGN, handler, handler]


# ---- the end


STUBBORN = """
    import asyncio, iostreamsrv, time

    class Stubborn(iostreamsrv.TCPServer):
        drain_timeout = 0.1
        drain_idle = 0.01

        async def handle_stream(self, stream, address):
            print("'working'")
            while True:
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    print("'no'")

    server = Stubborn()
    server.listen(0, "127.0.0.1")
    print(server.addresses[0])
    iostreamsrv.run(server)
    print("'after run'")
"""


def test_run_ends_after_one_signal_though_a_handler_swallows_cancels() -> None:
    with program(STUBBORN) as process, socket.create_connection(printed(process), timeout=PATIENCE) as client:
        assert printed(process) == "working"
        process.send_signal(signal.SIGTERM)
        assert client.recv(1) == b""
        said, complaints = process.communicate(timeout=3 * PATIENCE)
    assert said.splitlines()[-1] == "'after run'"
    assert process.returncode == 0
    assert "these tasks do not" in complaints
    assert "Stubborn.handle_stream" in complaints
    assert "was destroyed" not in complaints
    assert "Traceback" not in complaints


def test_run_gives_a_task_that_tidies_up_the_time_for_it() -> None:
    with program("""
        import asyncio, iostreamsrv

        async def tidying():
            try:
                await asyncio.sleep(1000)
            finally:
                asyncio.create_task(last())
                await asyncio.sleep(0.5)
                print("'tidy'")

        async def last():
            try:
                await asyncio.sleep(1000)
            finally:
                print("'last'")

        async def main():
            asyncio.create_task(tidying())
            await asyncio.sleep(0)

        iostreamsrv.run(main)
        print("'after run'")
    """) as process:
        said, complaints = process.communicate(timeout=3 * PATIENCE)
    assert sorted(said.splitlines()[:2]) == ["'last'", "'tidy'"]
    assert said.splitlines()[2:] == ["'after run'"]
    assert complaints == ""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_run_does_not_wait_for_threads_longer_than_for_tasks(loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    with (
        program(
            """
        import asyncio, iostreamsrv, sys, threading, time

        released = threading.Event()

        class Threads(iostreamsrv.TCPServer):
            drain_timeout = 0.1
            drain_idle = 0.01

            async def handle_stream(self, stream, address):
                print("'working'")
                await asyncio.to_thread(released.wait, 60)

        if sys.argv[1] == "uvloop":
            import uvloop
            asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        server = Threads()
        server.listen(0, "127.0.0.1")
        print(server.addresses[0])
        iostreamsrv.run(server)
        print("'after run'")
        released.set()
        """,
            loop,
        ) as process,
        socket.create_connection(printed(process), timeout=PATIENCE) as client,
    ):
        assert printed(process) == "working"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert client.recv(1) == b""
        assert printed(process) == "after run"
        assert time.monotonic() - began < 2 * PATIENCE
        _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "Traceback" not in complaints
    assert "still at work" in complaints


def test_run_waits_for_a_thread_that_is_soon_done() -> None:
    with program("""
        import asyncio, iostreamsrv, time

        def work():
            time.sleep(0.3)
            print("'worked'")

        async def main():
            asyncio.ensure_future(asyncio.to_thread(work))
            await asyncio.sleep(0.05)

        iostreamsrv.run(main)
        print("'after run'")
    """) as process:
        said, complaints = process.communicate(timeout=PATIENCE)
    assert said.splitlines() == ["'worked'", "'after run'"]
    assert complaints == ""
