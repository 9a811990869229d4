"""Runs a scenario: the server, its clients, the shutdown; and collects what is wrong."""

import asyncio
import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from iostreamsrv import CloseReason, IOStream, TCPServer
from iostreamsrv.certificates import Certificates, KeyPair
from iostreamsrv.events import Event
from iostreamsrv.netutil import bind_unix_socket
from iostreamsrv.testing import Faults, Simulation
from iostreamsrv.testing.simulation import SimulationStuck
from tests.support.certificates import certificate_for

from . import clients, invariants
from .peer import Peer
from .protocol import BLOCKED, BLOCKS
from .record import Record
from .scenario import Scenario, draw
from .servers import STYLES, Lines, Swarm

SHUTDOWN_TAKES = 12.0
"""Seconds that a shutdown may take besides its timeout: for cancelled handlers, last writes, and EOFs."""

LOGGERS = ("iostreamsrv.general", "iostreamsrv.application", "tornado.general", "tornado.application", "asyncio")


@cache
def key_pair(name: str) -> KeyPair:
    """For servers. The key is RSA: its signatures are always of the same length."""
    return certificate_for(_key(), name)


@cache
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@cache
def tls() -> Certificates:
    """For servers whose certificates are not reloaded."""
    with tempfile.TemporaryDirectory() as folder:
        return Certificates(dict(key_pair("localhost").write(folder)))


@contextlib.contextmanager
def certificates_of(scenario: Scenario) -> Iterator[tuple[Certificates | None, Path | None]]:
    """The certificates of a scenario, and the folder of their files if they are reloaded."""
    if not scenario.tls or "reload" not in scenario.faults:
        yield tls() if scenario.tls else None, None
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Certificates(dict(key_pair("localhost").write(folder))), Path(folder)


class World(logging.Handler):
    """A scenario while it runs; it gets the log lines, too.

    :ivar records: of the connections, in the order in which their clients made them.
    :ivar problems: what is wrong: the invariant, and a text.
    :ivar lines: the log.
    :ivar shut_down: when the shutdown began and when it was over.
    :ivar kicked: which connections were kicked, by number, and when.
    :ivar cancelled: likewise, whose handlers were cancelled.
    """

    sim: Simulation
    server: Swarm

    def __init__(self, scenario: Scenario) -> None:
        super().__init__()
        self.scenario = scenario
        self.records: list[Record] = []
        self.problems: list[tuple[str, str]] = []
        self.lines: list[tuple[float, logging.LogRecord]] = []
        self.shut_down: tuple[float, float] | None = None
        self.kicked: dict[int, float] = {}
        self.cancelled: dict[int, float] = {}
        self._shutdown_began: asyncio.Future[float] | None = None
        self._by_name: dict[str, Record] = {}
        self._early: dict[str, list[Callable[[Record], None]]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.lines.append((self.sim.time, record))

    # ---- for clients

    def new_record(self, character: str) -> Record:
        """See `Surroundings`."""
        record = Record(len(self.records), character)
        self.records.append(record)
        return record

    def connected(self, record: Record, name: str) -> None:
        """See `Surroundings`."""
        self._by_name[name] = record
        for note in self._early.pop(name, ()):
            note(record)

    def patience(self, seconds: float) -> float:
        """See `Surroundings`."""
        blocked = BLOCKED * BLOCKS * self.scenario.characters.count("blocking")
        faults = self.scenario.faults
        struck = 30.0 if {"partition", "stop", "block", "accept", "descriptors"} & set(faults) else 0.0
        return seconds + blocked + struck

    def ends_at(self) -> float:
        """See `Surroundings`."""
        longest = self.scenario.loosest("drain_timeout") + 2 * SHUTDOWN_TAKES
        return self.patience(self.scenario.shutdown_at + longest)

    # ---- for servers

    def record_of(self, number: int) -> Record | None:
        """See `Notes`."""
        return self.records[number] if 0 <= number < len(self.records) else None

    def called(self, stream: IOStream, task: str) -> None:
        """See `Notes`."""
        name = stream.data["name"] = self._name_of(stream)
        self._when_known(name, lambda record: record.called(task))

    def closed(self, stream: IOStream, reason: CloseReason) -> None:
        """See `Notes`."""
        close = reason, self.sim.time
        self._when_known(self._name_of(stream), lambda record: record.closes.append(close))

    def _when_known(self, name: str, note: Callable[[Record], None]) -> None:
        """Note something of a client: later, if it does not know yet that it is connected, as the loop was blocked."""
        record = self._by_name.get(name)
        if record is None:
            self._early.setdefault(name, []).append(note)
        else:
            note(record)

    def _name_of(self, stream: IOStream) -> str:
        """See `Surroundings.connected`. What stands for the address of a Unix socket ends with that, so it is kept."""
        address = stream.remote_address
        if isinstance(address, tuple):
            return f"{address[0]}:{address[1]}"
        return stream.data.get("name") or self.sim.loop.kernel.peer_name(stream.fileno())

    def look(self, server: TCPServer) -> None:
        """See `Notes`."""
        self.problems += invariants.of_memory(server)

    def problems_of_records(self) -> list[tuple[str, str]]:
        """What was seen to be wrong at once."""
        return [problem for record in self.records for problem in record.problems]

    # ---- running

    async def run(self, sim: Simulation) -> None:
        """Everything."""
        self.sim = sim
        with certificates_of(self.scenario) as (certificates, folder):
            acting: list[asyncio.Future[None]] = []
            servers = self._servers(certificates)
            changing = sim.loop.call_later(self.scenario.shutdown_at / 2, self._change_files, folder)
            try:
                if self.scenario.unix:
                    _listen_on_unix_socket(self.server)
                sim.serve(self.server)
                acting = [asyncio.ensure_future(clients.act(self, each)) for each in self.scenario.characters]
                await self._shut_down()
                done, pending = await asyncio.wait(acting, timeout=self.patience(2 * SHUTDOWN_TAKES + 60))
                await self._serve_again()
            finally:
                changing.cancel()
                for each in acting:
                    each.cancel()
                for each in reversed(servers):
                    await each.shutdown(timeout=1)
        for task in done:
            task.result()
        if pending:
            self.problems.append(("ends", "clients are still there after the shutdown"))
        await sim.sleep(1)
        self._find_victims()
        self.problems += invariants.at_the_end(self)

    def _find_victims(self) -> None:
        for name, at in invariants.victims(self, "kick").items():
            if (record := self._by_name.get(name)) is not None:
                self.kicked[record.number] = at
        tasks = invariants.victims(self, "cancel")
        self.cancelled = {each.number: tasks[each.task] for each in self.records if each.task in tasks}

    def _servers(self, certificates: Certificates | None) -> list[TCPServer]:
        scenario = self.scenario
        options = dict(scenario.options, ssl_options=certificates)
        if scenario.proxied:
            options["proxy_protocol"] = ["10.2.0.0/16", "unix"]
        self.server = STYLES[scenario.style](**options)
        self.server.notes = self
        began = self._shutdown_began = self.sim.loop.create_future()

        def note(event: Event) -> None:
            if not began.done():
                began.set_result(self.sim.time)

        self.server.events.subscribe(note, "shutdown")
        if scenario.style != "gateway":
            return [self.server]
        upstream = Lines()
        upstream.notes = self
        self.sim.serve(upstream, port=7001)
        self.server.upstream = upstream  # type: ignore[attr-defined]
        return [upstream, self.server]

    def _change_files(self, folder: Path | None) -> None:
        """The files of the certificates change, so that the next reload has something to do."""
        if folder is None:
            return
        if self.scenario.certificates == "renewed":
            key_pair("renewed").write(folder)
        elif self.scenario.certificates == "lost":
            (folder / "key.pem").unlink()

    async def _shut_down(self) -> None:
        """Begin the shutdown at its time, unless a fault has begun it before; and wait until it is over."""
        began = self._shutdown_began
        assert began is not None
        await asyncio.wait([began], timeout=self.scenario.shutdown_at)
        ending = asyncio.ensure_future(self.server.shutdown())
        limit = self.patience(self.scenario.loosest("drain_timeout") + SHUTDOWN_TAKES)
        done, _ = await asyncio.wait([ending], timeout=limit)
        if not done:
            self.problems.append(("shutdown", f"has not ended {limit:g} s after it began"))
        self.shut_down = await began, self.sim.time

    async def _serve_again(self) -> None:
        """Serve again, as a server may after a shutdown: all places are free, also those of a host."""
        scenario = self.scenario
        if scenario.faults_strike or not scenario.limits("max_connections", "max_connections_per_ip"):
            return
        options = self.server.options
        most = int(min(options.max_connections or 4, options.max_connections_per_ip or 4))
        self.sim.serve(self.server, port=7002)
        first = Peer(self, "again")
        peers = [first, *(Peer(self, "again", first.host) for _ in range(most - 1))]
        opened = await asyncio.gather(*(peer.open() for peer in peers))
        answered = await asyncio.gather(*(peer.ask() for peer, has in zip(peers, opened, strict=True) if has))
        if not all(opened) or not all(answered):
            self.problems.append(("left", f"places: {opened} {answered} are served after the shutdown, on one host"))
        for peer, has in zip(peers, opened, strict=True):
            if has:
                peer.close()
        await self.server.shutdown(timeout=5)


def _listen_on_unix_socket(server: TCPServer) -> None:
    listener = bind_unix_socket("/run/swarm.sock")
    try:
        server.add_socket(listener)
    except OSError:
        listener.close()
        raise


def problems_of(seed: int) -> list[tuple[str, str]]:
    """Run a seed: the invariants that did not hold, each with a text."""
    return play(seed)[0]


def play(seed: int) -> tuple[list[tuple[str, str]], str]:
    """Run a seed: the invariants that did not hold, each with a text; and a hash of all that happened."""
    scenario = draw(seed)
    world = World(scenario)
    sim = Simulation(seed, Faults(**scenario.faults))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(world)
        logger.propagate = False
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                sim.run(world.run)
            except SimulationStuck as stuck:
                world.problems.append(("stuck", str(stuck)))
            except OSError as error:
                if not scenario.faults.keys() & {"descriptors", "setsockopt"}:
                    raise
                sim.note("server", f"cannot be started: {error}")
    finally:
        for logger, propagate in before:
            logger.removeHandler(world)
            logger.propagate = propagate
    world.problems += [("warnings", str(each.message)) for each in warned]
    world.problems += [("errors", str(each.get("message"))) for each in sim.errors]
    world.problems += invariants.of_descriptors(sim)
    return world.problems, sim.trace.digest()
