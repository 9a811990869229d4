"""Fixtures for pytest. To use them, write ``pytest_plugins = ["iostreamsrv.pytest_plugin"]`` in the conftest.py of the
top folder.

They use the loop that runs the test: that of pytest-asyncio (1.1 or newer, both modes), of anyio's plugin on asyncio,
of pytest-tornado, or of ``asyncio.run`` in a plain test. They require none of these plugins. The exception is
`simulation`: a test that has it runs on a simulated loop, whichever plugin it is for.

Options of pytest, when the plugin is named in the conftest.py of the top folder:

- ``--seeds N`` runs each test that has `simulation` with N seeds, 0 to N - 1.
- ``--seed S`` runs them with this seed only.
- ``--simulation-traces DIR`` writes the trace of each that fails into this folder, as text and as an SVG time line.
"""

# A fixture is set up before the loop of its test runs, and may be torn down after that loop is closed: pytest-asyncio,
# anyio and `asyncio.run` create and close the loop in between. So a fixture finds the loop when the test uses it, and
# what must be cleaned up on that loop is a task that cleans up when it is cancelled. Either the fixture cancels it, or
# the runner of the loop, which cancels all tasks before it closes the loop. pytest-tornado's `io_loop` only closes the
# loop. So we request `io_loop` first, and are therefore torn down before it.
#
# A test on a simulation is called by none of these plugins: around their calls we put a plain function in its place,
# which runs it in the simulation. pytest-asyncio has put its own there before; the coroutine is behind that.

import argparse
import asyncio
import functools
import inspect
import re
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import pytest
from tornado.ioloop import IOLoop

from .iostream import IOStream
from .runtime.loops import asyncio_loop
from .server.base import core_of
from .tcpserver import TCPServer
from .testing import Faults, Simulation, bind_unused_port, memory_stream_pair
from .testing.serving import end
from .testing.simulation.shrinking import shrink

__all__ = ["memory_streams", "serve", "simulation", "unused_port"]


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
        return core_of(server).listeners.addresses[0]

    yield start
    for loop, task in serving:
        if not loop.is_closed():
            loop.run_until_complete(_cancel(task))


@pytest.fixture
def simulation(request: pytest.FixtureRequest) -> Simulation:
    """A `Simulation`, on whose loop the test runs. ::

        @pytest.mark.simulation(rst=0.01, delay=(0, 0.2))
        async def test_a_silent_client_is_closed(simulation):
            stream = await simulation.connect(simulation.serve(EchoServer(idle_timeout=3600)))
            assert await stream.read_until_close() == b""

    The arguments of the mark are those of `Faults`; without it there are none. (Pytest knows the mark if the plugin is
    named in a conftest.py.) A test that is a coroutine runs in the
    simulation and needs no other plugin; a plain one calls ``simulation.run(main)``. Other fixtures do not run in it.

    A test that fails is run again, with the same fixtures and fewer faults each time, to find the shortest prefix of
    its faults with which it still fails, see :mod:`iostreamsrv.testing.simulation.shrinking`. What it raised with these
    is reported, with the seed, the faults, the end of the trace, and how to run it again.
    """
    marker = request.node.get_closest_marker("simulation")
    return Simulation(getattr(request, "param", 0), None if marker is None else Faults(**marker.kwargs))


def pytest_addoption(parser: pytest.Parser) -> None:
    """See the module."""
    group = parser.getgroup("iostreamsrv")
    group.addoption("--seeds", type=_count, metavar="N", help="run each simulation with N seeds, 0 to N - 1; default 1")
    group.addoption("--seed", metavar="S", help="run each simulation with this seed only")
    group.addoption(
        "--simulation-traces", metavar="DIR", help="write the traces of simulations that fail to this folder"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return int(text)


def pytest_configure(config: pytest.Config) -> None:
    """See the module."""
    config.addinivalue_line("markers", "simulation(**faults): what goes wrong in the test's simulation, see Faults")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """See the module."""
    if "simulation" in metafunc.fixturenames:
        seeds = _seeds(metafunc.config)
        metafunc.parametrize("simulation", seeds, indirect=True, ids=[f"seed{seed}" for seed in seeds])


def _seeds(config: pytest.Config) -> Sequence[int | str]:
    """What the options ask for; they are unknown if the plugin is named in a test file."""
    seed = config.getoption("--seed", None)
    if seed is not None:
        return [int(seed) if re.fullmatch(r"-?\d+", seed) else seed]
    return range(config.getoption("--seeds", None) or 1)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Run a test that has `simulation` in it, and shrink its faults if it fails."""
    simulation, test = pyfuncitem.funcargs.get("simulation"), pyfuncitem.obj
    if not isinstance(simulation, Simulation):
        return (yield)
    pyfuncitem.obj = _simulated(pyfuncitem, simulation, _coroutine_function(test) or test)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = test


def _coroutine_function(test: Any) -> Any:
    """The test, if it is one, also behind pytest-asyncio's own function; None for a plain test."""
    candidates = (test, getattr(test, "__wrapped__", None))
    return next((each for each in candidates if inspect.iscoroutinefunction(each)), None)


def _simulated(item: pytest.Function, simulation: Simulation, test: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function with the arguments of the test, which runs it and shrinks its faults."""

    @functools.wraps(test)  # pytest-tornado looks at the arguments
    def run(**arguments: Any) -> Any:
        def once() -> Any:
            if inspect.iscoroutinefunction(test):
                return simulation.run(lambda _: test(**arguments))
            return test(**arguments)

        try:
            return once()
        except (Exception, pytest.fail.Exception) as error:
            shrunk = shrink(simulation, once, error)
            again = f'pytest "{item.nodeid}"'
            if hasattr(item.config.option, "seed"):  # not if the plugin is named in the test file: see _seeds()
                again += f" --seed {simulation.seed}"
            item.add_report_section("call", "simulation", shrunk.report(simulation, again) + _written(item, simulation))
            raise shrunk.error from None

    return run


def _written(item: pytest.Function, simulation: Simulation) -> str:
    """Write the trace, if an option says where; a line that names the files."""
    folder = item.config.getoption("--simulation-traces", None)
    if folder is None:
        return ""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]+", "-", item.nodeid).strip("-")[-150:]
    (path / f"{name}.txt").write_text(f"{simulation.trace}\n", encoding="utf-8")
    (path / f"{name}.svg").write_text(simulation.trace.svg(), encoding="utf-8")
    return f"\nthe trace: {path / name}.txt and .svg"


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
