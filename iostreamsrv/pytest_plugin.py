"""Fixtures for pytest. To use them, write ``pytest_plugins = ["iostreamsrv.pytest_plugin"]`` in the conftest.py of the
top folder.

They use the loop that runs the test: that of pytest-asyncio (1.1 or newer, both modes), of anyio's plugin on asyncio,
of pytest-tornado, or of ``asyncio.run`` in a plain test. They require none of these plugins.
"""

# A fixture is set up before the loop of its test runs, and may be torn down after that loop is closed: pytest-asyncio,
# anyio and `asyncio.run` create and close the loop in between. So a fixture finds the loop when the test uses it, and
# what must be cleaned up on that loop is a task that cleans up when it is cancelled. Either the fixture cancels it, or
# the runner of the loop, which cancels all tasks before it closes the loop. pytest-tornado's `io_loop` only closes the
# loop. So we request `io_loop` first, and are therefore torn down before it.

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
from .testing import bind_unused_port, memory_stream_pair
from .testing.serving import end

__all__ = ["memory_streams", "serve", "unused_port"]


@pytest.fixture
def memory_streams(request: pytest.FixtureRequest) -> Iterator[Sequence[IOStream]]:
    """Two streams connected in memory, see `memory_stream_pair`. They are closed after the test. ::

        async def test_it_arrives(memory_streams):
            ours, theirs = memory_streams
            await ours.write(b"hello\\n")
            assert await theirs.read_until(b"\\n") == b"hello\\n"

    They are created when the test unpacks them, on the loop that runs then.

    :raises RuntimeError: the test unpacks them while no loop runs.
    """
    pair = _MemoryStreams(_io_loop(request))
    yield pair
    pair.abort()


@pytest.fixture
def unused_port() -> Iterator[tuple[socket.socket, int]]:
    """A listening socket and its port, see `bind_unused_port`. The socket is closed after the test."""
    listener, port = bind_unused_port()
    yield listener, port
    listener.close()


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[[TCPServer], Any]]:
    """A function that starts a server on a free port of 127.0.0.1 and returns its address: ``(host, port)``. ::

        async def test_it_echoes(serve):
            stream = await TCPClient().connect(*serve(EchoServer()))

    The server uses the loop that runs when the function is called. When the test ends, or that loop is closed, the
    server is stopped, its handlers are cancelled and its streams closed.

    :raises RuntimeError: the function is called while no loop runs.
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
    """Serve until the server is stopped. If this task is cancelled, stop the server without waiting for clients."""
    serving = asyncio.ensure_future(server.serve_forever())
    try:
        await asyncio.wait([serving])
    finally:
        await end(server, serving)


async def _cancel(task: "asyncio.Task[None]") -> None:
    """Cancel a task that was created before this one, and so has started even if the loop has never run before."""
    task.cancel()
    await asyncio.wait([task])


class _MemoryStreams(Sequence[IOStream]):
    """A pair of streams that is created when an item is first used."""

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
        """Abort both streams, if they were created."""
        for stream in self._pair:
            stream.abort()


def _io_loop(request: pytest.FixtureRequest) -> IOLoop | None:
    """The fixture ``io_loop``, if it exists; None for a coroutine that is not run by pytest-tornado."""
    if inspect.iscoroutinefunction(request.function) and not request.node.get_closest_marker("gen_test"):
        return None
    try:
        io_loop: IOLoop = request.getfixturevalue("io_loop")
    except pytest.FixtureLookupError as error:
        if error.argname != "io_loop":  # a fixture that io_loop requests is missing
            raise
        return None
    return io_loop


def _loop(io_loop: IOLoop | None) -> asyncio.AbstractEventLoop:
    """The running loop, or pytest-tornado's, which may not be running yet."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        if io_loop is None:
            raise RuntimeError("no loop is running: use this fixture inside a coroutine") from None
        return asyncio_loop(io_loop)
