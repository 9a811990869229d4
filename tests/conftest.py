"""The loop each test runs on, and streams on it. Whoever uses them is checked for leaks when the test has ended."""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import select
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # `pytest_sessionstart` says which core runs, and why
    from iostreamsrv import cores

from iostreamsrv import IOLoop, IOStream
from iostreamsrv.streams import hub
from iostreamsrv.streams.memory import MemoryStream
from iostreamsrv.streams.transports.memory import MemorySocket
from iostreamsrv.testing import MockClock
from tests.support import authorities
from tests.support.leaks import open_descriptors
from tests.support.peers import MakePair, MemoryPeer, Peer, tcp_pair, tls_pair
from tests.support.programs import heed_signals
from tests.support.servers import Serving
from tests.support.waiting import PATIENCE

SECOND_TIER = {"programs", "faults", "chaos", "dropin", "operations"}
"""Folders whose tests take long: they run with ``--all``, when they are named, or if marked ``first_tier``."""

DEFAULT_ENGINES = "epoll,tls" if hasattr(select, "epoll") else "loop,tls"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("iostreamsrv")
    group.addoption("--all", action="store_true", dest="every_tier", help="run the second tier, too")
    group.addoption(
        "--engines",
        default=DEFAULT_ENGINES,
        help=f"what to run on, of epoll,loop,uvloop,memory,tls, or all; default {DEFAULT_ENGINES}",
    )


def pytest_configure(config: pytest.Config) -> None:
    heed_signals()
    if cores.core == "python":
        if os.environ.get("IOSTREAMSRV_BUILD") == "compiled":
            raise pytest.UsageError(f"no compiled core to test ({cores.why}): make compiled")
        os.environ["IOSTREAMSRV_PURE"] = "1"  # likewise in the programs that tests start, without a warning
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):  # it runs tests
        authorities.forget()
        if sys.flags.dev_mode:
            debug_this_process_only()
            config.option.async_test_timeout *= 5  # everything takes several times as long


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        reason = f" ({cores.why})" if cores.why else ""
        print(f"These tests run on the {cores.core} core of iostreamsrv{reason}.", flush=True)


def debug_this_process_only() -> None:
    """With ``-X dev``: programs that tests start run as users run them, and slow callbacks are no trouble: everything
    is slow then."""
    for name in "PYTHONDEVMODE", "PYTHONASYNCIODEBUG":
        os.environ.pop(name, None)
    logging.getLogger("asyncio").addFilter(lambda record: not str(record.msg).startswith("Executing "))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import only files that have tests to run: to collect all of them takes several seconds, in every process."""
    if collection_path.suffix != ".py":
        return None
    needed = ["mark.alone"] if config.option.markexpr == "alone" else []
    if not config.option.every_tier and collection_path.parent.name in SECOND_TIER - _named_folders(config):
        needed.append("mark.first_tier")
    text = collection_path.read_text() if needed else ""
    return not all(mark in text for mark in needed) or None


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make tests only for the engines that were asked for. To make the others and leave them out took as long again.

    A test for none of these is made for one of its own, and left out below.
    """
    mark = metafunc.definition.get_closest_marker("engines")
    if mark is not None:
        asked_for = [each for each in mark.args if _is_asked_for(metafunc.config, _name_of(each))]
        metafunc.parametrize("engine", asked_for or mark.args[:1], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what other engines and another tier were not asked for, and under TLS what is about plain sockets."""
    every_tier = config.getoption("every_tier")
    named = _named_folders(config)

    def is_wanted(item: pytest.Item) -> bool:
        engine = _engine_of(item)
        if engine == "tls" and item.get_closest_marker("plain"):
            return False
        if engine is not None and not _is_asked_for(config, engine):
            return False

        if item.get_closest_marker("second_tier"):
            return every_tier or any(item.path.name in argument for argument in config.args)
        folder = item.path.parent.name
        return every_tier or folder not in SECOND_TIER - named or item.get_closest_marker("first_tier") is not None

    wanted = [item for item in items if is_wanted(item)]
    config.hook.pytest_deselected(items=list(set(items).difference(wanted)))
    items[:] = wanted


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[None]:
    """Keep the garbage collector away from what is collected, which stays to the end.

    There are some hundred thousand objects of it, and it looks at all of them whenever a test calls ``gc.collect()``:
    a third of a second each time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        _freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Likewise away from what pytest has noted of each file's tests: twenty objects of each test."""
    try:
        return (yield)
    finally:
        if nextitem is None or nextitem.path != item.path:
            _freeze()


def _freeze() -> None:
    """Collect the garbage there is; of the rest take it that it stays."""
    gc.collect()
    gc.freeze()


def _named_folders(config: pytest.Config) -> set[str]:
    """Those of the second tier that the command line names."""
    return {folder for folder in SECOND_TIER for argument in config.args if f"tests/{folder}" in argument}


def _is_asked_for(config: pytest.Config, engine: str) -> bool:
    engines = config.getoption("engines").split(",")
    return engine in engines or "all" in engines


def _name_of(engine: Any) -> str:
    """Of a value of the mark ``engines``, which may have marks of its own."""
    return engine if isinstance(engine, str) else engine.values[0]


def _engine_of(item: pytest.Item) -> str | None:
    call = getattr(item, "callspec", None)
    return None if call is None else call.params.get("engine")


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which hub and which loop to run on; see `tests.support.engines.EVERY_ENGINE`."""
    name: str = getattr(request, "param", "epoll")
    monkeypatch.setattr(hub, "driver", hub.LoopHub if name == "loop" else hub.EpollHub)
    return name


@pytest.fixture
def io_loop(engine: str) -> Iterator[IOLoop]:
    """A loop of the test's own, in place of pytest-tornado's; no task and no descriptor may be left in the end."""
    _warm_up(engine)
    before = open_descriptors()
    loop = new_loop(engine)
    asyncio.set_event_loop(loop)
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    io_loop = IOLoop.current()
    yield io_loop
    try:
        unfinished = loop.run_until_complete(_unfinished_tasks())
    finally:
        io_loop.close()
        asyncio.set_event_loop(None)
    assert not complaints
    assert not unfinished
    assert open_descriptors() == before


@pytest.fixture
def clock(io_loop: IOLoop, engine: str, request: pytest.FixtureRequest) -> Iterator[MockClock | None]:
    """Time that passes at once: when the loop is idle it jumps to its next timer. None on uvloop, where time is real.

    For tests whose servers and clients are in their own loop. Threads and other processes, and what the kernel puts off
    (an ACK comes up to 40 ms late), need time that is real: ``@pytest.mark.real_time("why")`` leaves it so. The time
    limit of the test is real in any case.
    """
    if engine == "uvloop" or request.node.get_closest_marker("real_time"):
        yield None
        return
    loop: asyncio.AbstractEventLoop = io_loop.asyncio_loop  # type: ignore[attr-defined]
    clock = MockClock(autojump_threshold=0)
    with contextlib.ExitStack() as stack:
        loop.call_soon(lambda: stack.enter_context(clock.installed(loop)))  # after the test's time limit is set
        yield clock
        assert not loop.run_until_complete(_unfinished_tasks())


@functools.cache
def _warm_up(engine: str) -> None:
    """The first loop of its kind may open descriptors that the process then keeps, as libuv does for signals."""
    loop = new_loop(engine)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def new_loop(engine: str) -> asyncio.AbstractEventLoop:
    """A loop of the kind an engine runs in."""
    if engine != "uvloop":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


async def _unfinished_tasks() -> set[asyncio.Task[Any]]:
    """The tasks that don't end by themselves; they are cancelled, lest they trouble the next test as well."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if not tasks:
        return set()
    _, unfinished = await asyncio.wait(tasks, timeout=PATIENCE)
    for task in unfinished:
        task.cancel()
    if unfinished:
        await asyncio.wait(unfinished, timeout=PATIENCE)
    return unfinished


@pytest.fixture
def make_pair(io_loop: IOLoop, engine: str) -> Iterator[MakePair]:
    """Makes a stream with the options it is given, connected to a `Peer`, over TCP unless it is given ``sockets``, or
    the engine is in memory; under TLS if that is the engine.

    All are closed in the end.
    """
    made: list[tuple[IOStream, Peer]] = []

    def make(sockets: tuple[socket.socket, socket.socket] | None = None, **options: Any) -> tuple[IOStream, Peer]:
        pair: tuple[IOStream, Peer]
        if engine == "memory" and sockets is None:
            one, other = MemorySocket.pair(1 << 20)
            pair = MemoryStream(cast(socket.socket, one), **options), MemoryPeer(other)
        elif engine == "tls":
            pair = tls_pair(sockets or tcp_pair(), **options)
        else:
            ours, theirs = sockets or tcp_pair()
            pair = IOStream(ours, **options), Peer(theirs)
        made.append(pair)
        return pair

    yield make
    for stream, peer in made:
        stream.abort()
        peer.close()


@pytest.fixture
def pair(make_pair: MakePair) -> tuple[IOStream, Peer]:
    """A stream and its peer."""
    return make_pair()


@pytest.fixture
def stream(pair: tuple[IOStream, Peer]) -> IOStream:
    """The stream of ``pair``."""
    return pair[0]


@pytest.fixture
def peer(pair: tuple[IOStream, Peer]) -> Peer:
    """The peer of ``pair``."""
    return pair[1]


@pytest.fixture
def serving(io_loop: IOLoop) -> Iterator[Serving]:
    """Servers and their clients, all ended when the test is."""
    serving = Serving()
    yield serving
    serving.end()
