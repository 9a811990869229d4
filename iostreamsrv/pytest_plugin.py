"""Fixtures for pytest. To use them, write ``pytest_plugins = ["iostreamsrv.pytest_plugin"]`` in conftest.py.

They need a fixture ``io_loop``, which pytest-tornado provides.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .ioloop import IOLoop
from .iostream import IOStream
from .tcpserver import TCPServer
from .testing import bind_unused_port, end, memory_stream_pair

__all__ = ["memory_streams", "serve", "unused_port"]


@pytest.fixture
def memory_streams(io_loop: IOLoop) -> Iterator[tuple[IOStream, IOStream]]:
    """Two streams connected in memory, see `memory_stream_pair`. They are closed after the test."""
    pair = memory_stream_pair()
    yield pair
    for stream in pair:
        stream.abort()


@pytest.fixture
def unused_port() -> Iterator[tuple[socket.socket, int]]:
    """A listening socket and its port, see `bind_unused_port`. The socket is closed after the test."""
    listener, port = bind_unused_port()
    yield listener, port
    listener.close()


@pytest.fixture
def serve(io_loop: IOLoop) -> Iterator[Callable[[TCPServer], Any]]:
    """A function that starts a server on a free port of 127.0.0.1 and returns its address: ``(host, port)``.

    After the test, all these servers are stopped, their handlers cancelled and their streams closed.
    """
    loop: asyncio.AbstractEventLoop = io_loop.asyncio_loop  # type: ignore[attr-defined]
    serving: list[tuple[TCPServer, asyncio.Task[None]]] = []

    def start(server: TCPServer) -> Any:
        server.listen(0, "127.0.0.1")
        serving.append((server, loop.create_task(server.serve_forever())))
        return server.addresses[0]

    yield start
    for server, task in serving:
        loop.run_until_complete(end(server, task))
