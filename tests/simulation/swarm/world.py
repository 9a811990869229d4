"""Runs a scenario: the server, its clients, the shutdown; and collects what is wrong."""

import asyncio
import logging
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from iostreamsrv import IOStream, TCPServer
from iostreamsrv.certificates import Certificates
from iostreamsrv.testing import Faults, Simulation
from iostreamsrv.testing.simulation import SimulationStuck
from tests.support.certificates import certificate_for

from . import clients, invariants
from .protocol import BLOCKED, BLOCKS
from .record import Record
from .scenario import Scenario, draw
from .servers import STYLES, Lines, Swarm

SHUTDOWN_TAKES = 12.0
"""Seconds that a shutdown may take besides its timeout: for cancelled handlers, last writes, and EOFs."""

LOGGERS = ("iostreamsrv.general", "iostreamsrv.application", "asyncio")


@cache
def tls() -> Certificates:
    """For servers. The key is RSA: its signatures are always of the same length."""
    with tempfile.TemporaryDirectory() as folder:
        return Certificates(dict(certificate_for(rsa.generate_private_key(65537, 2048)).write(Path(folder))))


class World(logging.Handler):
    """A scenario while it runs; it gets the log lines, too.

    :ivar records: of the connections, in the order in which their clients made them.
    :ivar problems: what is wrong: the invariant, and a text.
    :ivar lines: the log.
    :ivar shut_down: when the shutdown began and when it was over.
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
        self._by_address: dict[tuple[str, int], Record] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.lines.append((self.sim.time, record))

    # ---- for clients

    def new_record(self, character: str) -> Record:
        """See `Surroundings`."""
        record = Record(len(self.records), character)
        self.records.append(record)
        return record

    def connected(self, record: Record, address: Any) -> None:
        """See `Surroundings`."""
        self._by_address[tuple(address[:2])] = record

    def patience(self, seconds: float) -> float:
        """See `Surroundings`."""
        blocked = BLOCKED * BLOCKS * self.scenario.characters.count("blocking")
        faults = self.scenario.faults
        struck = 30.0 if {"partition", "stop", "accept", "descriptors"} & set(faults) else 0.0
        return seconds + blocked + struck

    def ends_at(self) -> float:
        """See `Surroundings`."""
        options = self.scenario.options
        return self.patience(self.scenario.shutdown_at + options["drain_timeout"] + 2 * SHUTDOWN_TAKES)

    # ---- for servers

    def record_of(self, number: int) -> Record | None:
        """See `Notes`."""
        return self.records[number] if 0 <= number < len(self.records) else None

    def record_at(self, stream: IOStream) -> Record | None:
        """See `Notes`."""
        return self._by_address.get(tuple(stream.remote_address[:2]))

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
        acting = []
        servers = self._servers()
        try:
            sim.serve(self.server)
            acting = [asyncio.ensure_future(clients.act(self, each)) for each in self.scenario.characters]
            await sim.sleep(self.scenario.shutdown_at)
            await self._shut_down()
            done, pending = await asyncio.wait(acting, timeout=self.patience(2 * SHUTDOWN_TAKES + 60))
        finally:
            for each in acting:
                each.cancel()
            for each in reversed(servers):
                await each.shutdown(timeout=1)
        for task in done:
            task.result()
        if pending:
            self.problems.append(("ends", "clients are still there after the shutdown"))
        await sim.sleep(1)
        self.problems += invariants.at_the_end(self)

    def _servers(self) -> list[TCPServer]:
        scenario = self.scenario
        options = dict(scenario.options)
        if scenario.tls:
            options["ssl_options"] = tls()
        if scenario.proxied:
            options["proxy_protocol"] = ["10.2.0.0/16"]
        self.server = STYLES[scenario.style](**options)
        self.server.notes = self
        if scenario.style != "gateway":
            return [self.server]
        upstream = Lines()
        upstream.notes = self
        self.sim.serve(upstream, port=7001)
        self.server.upstream = upstream  # type: ignore[attr-defined]
        return [upstream, self.server]

    async def _shut_down(self) -> None:
        begun = self.sim.time
        ending = asyncio.ensure_future(self.server.shutdown())
        limit = self.patience(self.scenario.options["drain_timeout"] + SHUTDOWN_TAKES)
        done, _ = await asyncio.wait([ending], timeout=limit)
        if not done:
            self.problems.append(("shutdown", f"has not ended {limit:g} s after it began"))
        self.shut_down = begun, self.sim.time


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
                if not scenario.faults.keys() & {"descriptors"}:
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
