"""``examples/resp_server.py`` beside the same ``handle_stream`` on Tornado's `TCPServer`, under redis-benchmark.

``python -m benchmarks.resp`` measures GET and SET on 50 connections, with one command and with 16 under way on each. In
every round each server has its turn, in a fresh process, on a core of its own; redis-benchmark has another. What is
shown is the median of the rounds: commands a second, the server's CPU time for one, and both in relation to Tornado's.

Tornado has no ``read_until_match``, so there a command is read with ``read_until`` and ``read_bytes``. The same is done
on iostreamsrv for comparison, and redis-server shows what there is to gain in C.
"""

import contextlib
import importlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import tornado.iostream
import tornado.tcpserver

from .machine import cpu_seconds
from .outside import REFERENCE, Figures, begin, in_turns, lines, parser
from .servers import REPOSITORY, START_TIMEOUT, MeasurementError

CONNECTIONS = 50
DEPTHS = (1, 16)
COMMANDS = ("GET", "SET")
WARM_UP = 5_000
REDIS = "redis-server"


# ---- the servers


example: Any = importlib.import_module("examples.resp_server")


length, MAX_LINE, MAX_WORDS, MAX_VALUE = example.length, example.MAX_LINE, example.MAX_WORDS, example.MAX_VALUE


async def read_in_steps(_server: Any, stream: Any) -> list[bytes]:
    """The words of the next command, read with Tornado's methods only. Inline commands are not supported."""
    words = []
    line = await stream.read_until(b"\n", MAX_LINE)
    for _ in range(length(line, MAX_WORDS, "invalid multibulk length")):
        line = await stream.read_until(b"\n", MAX_LINE)
        word = await stream.read_bytes(length(line, MAX_VALUE, "invalid bulk length") + 2)
        words.append(word[:-2])
    return words


def ours() -> Any:
    return example.RespServer()


def ours_in_steps() -> Any:
    return type("InSteps", (example.RespServer,), {"read_command": read_in_steps})()


def tornados() -> Any:
    class TornadoServer(tornado.tcpserver.TCPServer):
        read_command = read_in_steps

        def __init__(self) -> None:
            super().__init__()
            self.store = example.Store()

        async def handle_stream(self, stream: tornado.iostream.IOStream, address: Any) -> None:
            stream.set_nodelay(True)
            with contextlib.suppress(tornado.iostream.StreamClosedError):
                await example.RespServer.handle_stream(self, stream, address)

    return TornadoServer()


SERVERS = {"iostreamsrv": ours, "iostreamsrv, Tornado's reads": ours_in_steps, REFERENCE: tornados}


# ---- measuring


@contextlib.contextmanager
def started(name: str, core: int) -> Iterator[tuple[int, int]]:
    """Start a server in a separate process; yield its process id and its port."""
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "benchmarks.resp", "--serve", name]
        if name == REDIS:
            port = free_port()
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            command = [REDIS, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", folder]
        process = stack.enter_context(
            subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(process.terminate)
        os.sched_setaffinity(process.pid, {core})
        assert process.stdout is not None
        if name == REDIS:
            wait_for(port)
        else:
            port = int(process.stdout.readline())
        yield process.pid, port


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(port: int) -> None:
    late = time.monotonic() + START_TIMEOUT
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > late:
                raise MeasurementError(f"{REDIS} did not start") from None
            time.sleep(0.02)


def measure(name: str, command: str, depth: int, requests: int, core: int) -> Figures:
    with started(name, core) as (pid, port):
        load(port, command, depth, WARM_UP)
        before = cpu_seconds(pid)
        rate = load(port, command, depth, requests)
        return Figures(rate, (cpu_seconds(pid) - before) / requests)


def load(port: int, command: str, depth: int, requests: int) -> float:
    """Run a number of commands; return how many per second."""
    options = f"-h 127.0.0.1 -p {port} -c {CONNECTIONS} -P {depth} -n {requests} -t {command.lower()} --csv"
    ran = subprocess.run(["redis-benchmark", *options.split()], capture_output=True, text=True, check=True)
    last = ran.stdout.splitlines()[-1].split(",")
    if last[0].strip('"') != command:
        raise MeasurementError(f"redis-benchmark said {ran.stdout!r}")
    return float(last[1].strip('"'))


def main() -> None:
    options = parser(__doc__, SERVERS)
    options.add_argument("--requests", type=int, default=50_000, help="in each run; default: %(default)s")
    arguments = options.parse_args()
    cores = begin(arguments, SERVERS, "redis-benchmark", "redis-tools")
    if cores is None:
        return
    names = [*SERVERS, *([REDIS] if shutil.which(REDIS) else [])]
    for depth in DEPTHS:
        for command in COMMANDS:
            requests = arguments.requests * (1 if depth == 1 else 2)
            run = partial(measure, command=command, depth=depth, requests=requests, core=cores.server)
            print(f"{command}, -P {depth}:", *lines(in_turns(names, arguments.rounds, run)), sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
