"""Fixtures for pytest, to be asked for: ``pytest_plugins = ["iostreamsrv.pytest_plugin"]`` in the top folder's
conftest.py.

They work on the loop that runs the test, whatever started it: pytest-asyncio (1.1 or newer, both modes), anyio's plugin
on asyncio, pytest-tornado, or a plain test that calls ``asyncio.run``. They need none of these plugins.
"""

# A fixture is set up before the loop of its test runs, and may be torn down after that loop is closed: pytest-asyncio,
# anyio and `asyncio.run` make the loop and close it in between. So a fixture takes the loop when the test calls it, and
# what has to end on that loop is a task that ends when it is cancelled. Whoever is first cancels it: the fixture, or
# the runner of the loop, as each of them cancels all tasks before it closes the loop. pytest-tornado's `io_loop` does
# not: it merely closes the loop. So we ask for `io_loop` first, and thus are torn down before it.

import asyncio
import inspect
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import pytest
from tornado.ioloop import IOLoop

from .iostream import IOStream
from .runtime.loops import asyncio_loop
from .tcpserver import TCPServer
from .testing import bind_unused_port, end, memory_stream_pair

__all__ = ["memory_streams", "serve", "unused_port"]


@pytest.fixture
def memory_streams(request: pytest.FixtureRequest) -> Iterator[Sequence[IOStream]]:
    """Two streams that are connected in memory, see `memory_stream_pair`; closed when the test ends. ::

        async def test_it_arrives(memory_streams):
            ours, theirs = memory_streams
            await ours.write(b"hello\\n")
            assert await theirs.read_until(b"\\n") == b"hello\\n"

    They are made when the test unpacks them, on the loop that runs then.

    :raises RuntimeError: they are unpacked where no loop runs.
    """
    pair = _MemoryStreams(_io_loop(request))
    yield pair
    pair.abort()


@pytest.fixture
def unused_port() -> Iterator[tuple[socket.socket, int]]:
    """A listening socket and its port, see `bind_unused_port`; closed when the test ends."""
    listener, port = bind_unused_port()
    yield listener, port
    listener.close()


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[[TCPServer], Any]]:
    """A function that has a server listen on a free port of 127.0.0.1, and returns its address: ``(host, port)``. ::

        async def test_it_echoes(serve):
            stream = await TCPClient().connect(*serve(EchoServer()))

    The server serves on the loop that runs when the function is called. When the test ends, or that loop is closed,
    it is stopped, and its handlers and streams are ended.

    :raises RuntimeError: the function is called where no loop runs.
    """
    io_loop = _io_loop(request)
    serving: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    def start(server: TCPServer) -> Any:
        loop = _loop(io_loop)
        server.listen(0, "127.0.0.1")
        serving.append((loop, loop.create_task(_serve(server))))
        return server.addresses[0]

    yield start
    for loop, task in serving:
        if not loop.is_closed():
            loop.run_until_complete(_cancel(task))


async def _serve(server: TCPServer) -> None:
    """Serve until the server is stopped, or until cancelled: then it ends at once, and lets no client finish."""
    serving = asyncio.ensure_future(server.serve_forever())
    try:
        await asyncio.wait([serving])
    finally:
        await end(server, serving)


async def _cancel(task: "asyncio.Task[None]") -> None:
    """Cancel a task that was made before this one, and so has begun even if the loop has never run before."""
    task.cancel()
    await asyncio.wait([task])


class _MemoryStreams(Sequence[IOStream]):
    """A pair of streams that is made when it is first looked at."""

    def __init__(self, io_loop: IOLoop | None) -> None:
        self._io_loop = io_loop
        self._pair: tuple[IOStream, ...] = ()

    def __len__(self) -> int:
        return 2

    @overload
    def __getitem__(self, index: int) -> IOStream: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[IOStream]: ...

    def __getitem__(self, index: int | slice) -> IOStream | Sequence[IOStream]:
        if not self._pair:
            _loop(self._io_loop)
            self._pair = memory_stream_pair()
        return self._pair[index]

    def abort(self) -> None:
        """Close both, if they were made."""
        for stream in self._pair:
            stream.abort()


def _io_loop(request: pytest.FixtureRequest) -> IOLoop | None:
    """The fixture ``io_loop``, if there is one, but for coroutines that something else than pytest-tornado runs."""
    if inspect.iscoroutinefunction(request.function) and not request.node.get_closest_marker("gen_test"):
        return None
    try:
        io_loop: IOLoop = request.getfixturevalue("io_loop")
    except pytest.FixtureLookupError as error:
        if error.argname != "io_loop":  # one that io_loop asks for
            raise
        return None
    return io_loop


def _loop(io_loop: IOLoop | None) -> asyncio.AbstractEventLoop:
    """The loop that runs, or will: pytest-tornado's is current before it runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        if io_loop is None:
            raise RuntimeError("no loop is running: use this fixture inside a coroutine") from None
        return asyncio_loop(io_loop)
