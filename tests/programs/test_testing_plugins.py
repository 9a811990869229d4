"""The fixtures of the test kit in projects of others: each plugin that runs coroutines as tests, in a venv with nothing
else. The projects' tests must pass, and warn of nothing: what a fixture leaves behind on a loop is a warning there.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import PROJECT
from tests.support.authorities import environment_with_them

OURS = ["tornado>=6.5", "cryptography>=42"]
"""What iostreamsrv itself needs."""

ASYNCIO = ["pytest-asyncio>=1.1"]  # older ones cancel no task before they close a loop
ANYIO = ["anyio>=4", "pytest>=8.4"]
TORNADO = ["pytest-tornado==0.8.1", "pytest>=8.4,<9", "setuptools<80.9"]

FUNCTION_LOOPS = ["-o", "asyncio_default_fixture_loop_scope=function"]  # the default, about which it warns
MODULE_LOOPS = [f"asyncio_default_{kind}_loop_scope=module" for kind in ("test", "fixture")]
DEPRECATED = [  # pytest-tornado's own io_loop uses these, and Python 3.12 warns of the last
    *("-W", "ignore:make_current"),
    *("-W", "ignore:clear_current"),
    *("-W", "ignore:There is no current event loop"),
]

BEGINNING = """\
import asyncio
import gc
import socket

import pytest
IMPORTS
from iostreamsrv import IOLoop, TCPClient, TCPServer

pytest_plugins = ["iostreamsrv.pytest_plugin"]

SAID = []
KEPT = []


class Echo(TCPServer):
    async def handle_stream(self, stream, address):
        try:
            while True:
                await stream.write(await stream.read_until(b"\\n"))
        finally:
            SAID.append("the handler ends")

    async def handle_close(self, stream, reason):
        await asyncio.sleep(0.05)
        SAID.append(str(reason))


async def greeted(address):
    stream = await TCPClient().connect(*address)
    await echoed(stream)
    return stream


async def echoed(stream):
    await stream.write(b"hello\\n")
    assert await stream.read_until(b"\\n") == b"hello\\n"


def test_an_unused_port(unused_port):
    listener, port = unused_port
    with socket.create_connection(("127.0.0.1", port)):
        assert listener.getsockname()[1] == port


@pytest.fixture(autouse=True)
def nothing_is_left_for_the_collector():
    yield
    gc.collect()  # so that what is left warns here
"""

COROUTINES = """

DECORATOR
async def test_two_servers(serve):
    for address in serve(Echo()), serve(Echo()):
        (await greeted(address)).close()


DECORATOR
async def test_a_client_that_stays(serve):
    SAID.clear()
    KEPT.append(await greeted(serve(Echo())))


def test_its_handler_has_ended_and_its_stream_is_closed():
    assert SAID == ["the handler ends", "shutdown"]
    KEPT.pop().abort()


DECORATOR
async def test_a_server_without_clients(serve):
    KEPT.append(serve(Echo()))


def test_it_listens_no_more():
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(KEPT.pop())


DECORATOR
async def test_a_server_that_is_shut_down_by_the_test(serve):
    server = Echo()
    (await greeted(serve(server))).close()
    await server.shutdown()


DECORATOR
async def test_streams_in_memory(memory_streams):
    ours, theirs = memory_streams
    await ours.write(b"hello\\n")
    assert await theirs.read_until(b"\\n") == b"hello\\n"
    ours.read_bytes(1)  # and nobody awaits it
    KEPT.append(theirs)


def test_they_are_closed():
    assert KEPT.pop().closed()


DECORATOR
async def test_streams_in_memory_are_a_sequence_of_two(memory_streams):
    assert len(memory_streams) == 2
    assert [*memory_streams] == [memory_streams[0], memory_streams[-1]]


DECORATOR
async def test_streams_that_nobody_wants(memory_streams):
    pass


DECORATOR
async def test_on_a_simulation(simulation):
    stream = await simulation.connect(simulation.serve(Echo(idle_timeout=3600)))
    await echoed(stream)
    assert await stream.read_until_close() == b""
    assert simulation.time > 3600
"""

WITH_A_FIXTURE = """

FIXTURE
async def client(serve):
    stream = await greeted(serve(Echo()))
    yield stream
    await echoed(stream)  # the server is there until after this
    stream.close()


DECORATOR
async def test_a_fixture_that_uses_ours(client):
    await echoed(client)
"""

PLAIN = """

def test_a_plain_test(serve, memory_streams):
    async def main():
        (await greeted(serve(Echo()))).close()
        ours, theirs = memory_streams
        await ours.write(b"hello\\n")
        assert await theirs.read_until(b"\\n") == b"hello\\n"

    asyncio.run(main())


def test_outside_a_coroutine(serve, memory_streams):
    server = Echo()
    for use in lambda: serve(server), lambda: memory_streams[0]:
        with pytest.raises(RuntimeError, match="inside a coroutine"):
            use()
    assert server.addresses == []
"""

WITH_TORNADO = """

@pytest.fixture
def client(serve, io_loop):
    stream = io_loop.run_sync(lambda: greeted(serve(Echo())))
    yield stream
    io_loop.run_sync(lambda: echoed(stream))  # the server is there until after this
    stream.close()


DECORATOR
async def test_a_fixture_that_uses_ours(client):
    await echoed(client)


def test_outside_a_coroutine(serve, memory_streams, io_loop):
    address = serve(Echo())
    ours, theirs = memory_streams
    io_loop.run_sync(lambda: greeted(address)).close()
    io_loop.run_sync(lambda: ours.write(b"hello"))
"""

A_LOOP_OF_THEIR_OWN = """

@pytest.fixture
def io_loop():
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield IOLoop.current()
    loop.close()
    asyncio.set_event_loop(None)


def test_a_server_on_a_loop_that_never_runs(serve):
    KEPT.append(serve(Echo()))


def test_it_listens_no_more():
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(KEPT.pop())
"""

ANYIO_BACKEND = """

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


class Way(NamedTuple):
    """A way to run coroutines as tests.

    :ivar decorator: what users write above a test.
    :ivar fixture: and above a fixture that is a coroutine; None where there is no such thing.
    :ivar more: parts of the test file. pytest-tornado leaves a loop open where a test calls ``asyncio.run``.
    """

    packages: list[str]
    decorator: str
    fixture: str | None
    options: list[str]
    more: tuple[str, ...] = (WITH_A_FIXTURE, PLAIN)


WAYS = {
    "pytest-asyncio, strict": Way(ASYNCIO, "@pytest.mark.asyncio", "@pytest_asyncio.fixture", FUNCTION_LOOPS),
    "pytest-asyncio, auto": Way(ASYNCIO, "", "@pytest.fixture", ["-o", "asyncio_mode=auto", *FUNCTION_LOOPS]),
    "pytest-asyncio, one loop for all": Way(
        ASYNCIO, "@pytest.mark.asyncio", "@pytest_asyncio.fixture", ["-o", MODULE_LOOPS[0], "-o", MODULE_LOOPS[1]]
    ),
    "anyio": Way(ANYIO, "@pytest.mark.anyio", "@pytest.fixture", [], (ANYIO_BACKEND, WITH_A_FIXTURE, PLAIN)),
    "pytest-tornado": Way(TORNADO, "@pytest.mark.gen_test", None, DEPRECATED, (WITH_TORNADO,)),
}


def file_for(way: Way) -> str:
    """The test file of a project that does it this way."""
    imports = "import pytest_asyncio\n" if "pytest_asyncio" in (way.fixture or "") else ""
    return (
        (BEGINNING + COROUTINES + "".join(way.more))
        .replace("IMPORTS\n", imports)
        .replace("DECORATOR\n", way.decorator and way.decorator + "\n")
        .replace("FIXTURE\n", f"{way.fixture}\n")
    )


MakeVenv = Callable[[list[str]], Path]


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> MakeVenv:
    """The Python of a venv that has these packages; each venv is made once."""
    made: dict[tuple[str, ...], Path] = {}

    def make(packages: list[str]) -> Path:
        if tuple(packages) not in made:
            folder = tmp_path_factory.mktemp("venv")
            run([sys.executable, "-m", "venv", folder], folder)
            install(folder / "bin" / "python", [*OURS, *packages])
            made[tuple(packages)] = folder / "bin" / "python"
        return made[tuple(packages)]

    return make


def install(python: Path, packages: list[str]) -> None:
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries=1", *packages]
    outcome = run(pip, python.parent)
    if outcome.returncode != 0 and "No matching distribution found" in outcome.stdout:
        pytest.skip(f"no package index has these: {', '.join(packages)}")
    assert outcome.returncode == 0, outcome.stdout


def run(command: list[str | Path], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment_with_them(), "PYTHONPATH": str(PROJECT), "PYTEST_ADDOPTS": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def run_pytest(python: Path, options: list[str], source: str, folder: Path) -> None:
    """All the tests in ``source`` pass, and nothing warns, not even when pytest ends."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_theirs.py").write_text(source)
    outcome = run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *options], folder)
    count = len(re.findall(r"^(?:async )?def test_", source, re.MULTILINE))
    assert outcome.returncode == 0, outcome.stdout
    assert re.search(rf"^{count} passed in ", outcome.stdout, re.MULTILINE), outcome.stdout


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_fixtures_work_with_this_plugin(way: Way, venv: MakeVenv, tmp_path: Path) -> None:
    run_pytest(venv(way.packages), way.options, file_for(way), tmp_path)


def test_the_fixtures_work_without_a_plugin(venv: MakeVenv, tmp_path: Path) -> None:
    source = (BEGINNING + PLAIN).replace("IMPORTS\n", "")
    run_pytest(venv(ASYNCIO), ["-p", "no:asyncio"], source, tmp_path)


def test_a_server_on_a_loop_that_never_runs_is_ended(venv: MakeVenv, tmp_path: Path) -> None:
    source = (BEGINNING + A_LOOP_OF_THEIR_OWN).replace("IMPORTS\n", "")
    run_pytest(venv(ASYNCIO), ["-p", "no:asyncio"], source, tmp_path)


PAGE = (PROJECT / "docs" / "guide" / "testing.md").read_text()


@pytest.mark.parametrize("name", ["pytest-asyncio, strict", "anyio", "pytest-tornado"])
def test_the_example_in_the_guide_passes_with_its_plugin(name: str, venv: MakeVenv, tmp_path: Path) -> None:
    way = WAYS[name]
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (source,) = [block for block in blocks if way.decorator in block]
    run_pytest(venv(way.packages), way.options, source, tmp_path)
