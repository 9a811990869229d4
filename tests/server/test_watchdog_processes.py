"""The watchdog in processes that stop, fork, or have nothing to do."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.support import PROJECT

PROGRAM = """
    import asyncio, logging, os, sys, threading, time
    import iostreamsrv

    class Server(iostreamsrv.TCPServer):
        async def handle_stream(self, stream, address):
            async for line in self.lines(stream):
                exec(line)
                await stream.write(line)

        async def lines(self, stream):
            while True:
                yield await stream.read_until(b"\\n")

    async def serving():
        server = Server()
        server.listen(0, "127.0.0.1")
        said = []
        server.events.subscribe(lambda event: said.append(event.text), "error")
        return server, said, await asyncio.open_connection(*server.addresses[0])
"""


def started(body: str, *arguments: str) -> "subprocess.Popen[str]":
    source = textwrap.dedent(PROGRAM) + textwrap.dedent(body)
    command = [sys.executable, "-W", "error", "-c", source, *arguments]
    return subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


STOPPED = """
    async def main():
        server, said, (reader, writer) = await serving()
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        def wait():
            sys.stdin.readline()
            loop.call_soon_threadsafe(told.set)

        threading.Thread(target=wait, daemon=True).start()
        busy = sys.argv[1] == "busy"
        print("ready", flush=True)
        while not told.is_set():  # till it was stopped, and goes on
            if busy:
                writer.write(b"time.sleep(0.05)\\n")
                await reader.readline()
            else:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        print(said, flush=True)
        writer.write(b"time.sleep(0.7)\\n")  # now it says so
        await reader.readline()
        while not said:
            await asyncio.sleep(0.01)
        print(said[0], flush=True)
        writer.close()
        await server.shutdown()

    asyncio.run(main())
"""


@pytest.mark.parametrize("what", ["idle", "busy"])
def test_a_process_that_was_stopped_says_of_nobody_that_he_blocks(what: str) -> None:
    with started(STOPPED, what) as program:
        assert program.stdin
        assert program.stdout
        assert program.stdout.readline() == "ready\n"
        for _ in range(2):
            time.sleep(0.25)
            program.send_signal(signal.SIGSTOP)
            time.sleep(0.9)
            program.send_signal(signal.SIGCONT)
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline() == "[]\n"
        assert program.stdout.readline().startswith("Server.handle_stream (")
    assert program.returncode == 0


FORKS = """
    FORK = b"child = os.fork() or in_child(); os.waitpid(child, 0)\\n"

    def in_child():
        print(threading.active_count(), flush=True)
        asyncio.set_event_loop(None)
        asyncio._set_running_loop(None)
        asyncio.run(blocked("child"))
        os._exit(0)

    async def blocked(name):
        server, said, (reader, writer) = await serving()
        writer.write(b"time.sleep(0.7)\\n")
        await reader.readline()
        while not said:
            await asyncio.sleep(0.01)
        print(name, said[0].split()[0], flush=True)
        writer.close()
        server.stop()
        await server.close_all_connections()

    async def main():
        server, said, (reader, writer) = await serving()
        while threading.active_count() < 2:
            await asyncio.sleep(0.01)
        writer.write(FORK)
        await reader.readline()
        writer.write(b"time.sleep(0.7)\\n")
        await reader.readline()
        while not said:
            await asyncio.sleep(0.01)
        print("parent", said[-1].split()[0], flush=True)
        writer.close()
        await server.shutdown()

    asyncio.run(main())
"""


def test_a_handler_may_fork_and_parent_and_child_are_watched() -> None:
    with started(FORKS) as program:
        assert program.stdout
        lines = program.stdout.read().splitlines()
    assert lines == ["1", "child Server.handle_stream", "parent Server.handle_stream"]
    assert program.returncode == 0


IDLE = """
    async def main():
        server, said, _ = await serving()
        clients = [await asyncio.open_connection(*server.addresses[0]) for _ in range(99)]
        while len(server.streams) < 100:
            await asyncio.sleep(0.01)
        began = time.process_time()
        await asyncio.sleep(3)
        print((time.process_time() - began) / 3, flush=True)
        os._exit(0)

    asyncio.run(main())
"""


def test_a_hundred_idle_clients_cost_less_than_a_hundredth_of_a_core() -> None:
    with started(IDLE) as program:
        assert program.stdout
        share = float(program.stdout.readline())
    assert share < 0.01
