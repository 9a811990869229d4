"""What tests hold of a simulation."""

import asyncio
import contextlib
import gc
import itertools
import math
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Self, TypeVar

from ...errors import OptionError
from ...iostream import IOStream
from ...runtime.checks import check_int, is_number
from ...runtime.cleanup import age, cancel_remaining_tasks
from ...runtime.exports import set_module
from ...runtime.loops import current_loop
from ...server.base import core_of
from ...tcpserver import TCPServer
from ..serving import end
from .disturbances import Disturbances
from .faults import Faults
from .loop import SimulationLoop, SimulationStuck
from .network import Network
from .sockets import SimulatedSocket
from .trace import Trace

T = TypeVar("T")

PORT = 7000
"""What a server listens on unless it listens already."""


@set_module("iostreamsrv.testing")
class Simulation:
    """A network and a clock in memory, on which the real server and real streams run. ::

        async def main(sim):
            server = sim.serve(Chat(idle_timeout=60), hosts=2)
            alice, bob = await sim.connect(server), await sim.connect(server, bandwidth=1000)
            await alice.write(b"hello\\n")
            assert await bob.read_until(b"\\n") == b"hello\\n"
            await sim.sleep(3600)  # an hour, in milliseconds
            assert await alice.read_until_close() == b""

        Simulation(seed=7, faults=Faults(delay=(0, 0.2))).run(main)

    :meth:`run` makes a ``SimulationLoop`` and may be called anywhere, also while another loop runs: that one stands
    still until the simulation is over. Inside a loop that is a ``SimulationLoop`` already,
    ``async with Simulation(7) as sim:`` does the same.

    **What is promised.** Time passes only when nothing is left to do, and then at once. There are no descriptors, no
    threads and no real time. All that is left to chance follows from the seed: with the same seed and the same code,
    the same happens in the same order, and :attr:`trace` is the same, on all versions of Python. What is not simulated
    is listed in :mod:`iostreamsrv.testing.simulation`.

    When it ends, servers are stopped, clients are closed, and tasks that are left are cancelled.

    :param seed: an integer or a string.
    :param faults: what the network is like, and what goes wrong; default: a delay of 0.5 ms, and no faults.
    :param date: the date at the beginning, in seconds of `time.time`, for what depends on dates, such as warnings of
        certificates that expire; default (None): the real one. (OpenSSL looks at the real date.)
    :ivar loop: the loop, while the simulation runs, and afterwards.
    :ivar trace: what has happened: ``trace.entries``, ``str(trace)``, ``trace.svg()``, ``trace.digest()``.
    :ivar errors: what ``loop.call_exception_handler`` was called with: exceptions that were not caught. At the end of
        :meth:`run` also tasks that do not end although they are cancelled.
    """

    loop: SimulationLoop

    def __init__(self, seed: int | str = 0, faults: Faults | None = None, *, date: float | None = None) -> None:
        if not isinstance(seed, int | str):
            raise OptionError("seed", seed, "must be an integer or a string")
        if faults is not None and not isinstance(faults, Faults):
            raise OptionError("faults", faults, "must be a Faults, or None")
        if date is not None and not is_number(date):
            raise OptionError("date", date, "must be seconds of time.time(), or None")
        self.seed = seed
        self._date = date
        self.faults = Faults() if faults is None else faults
        self._begin_again(0.0)

    def _begin_again(self, now: float) -> None:
        """Forget the last run, so that the next one does the same."""
        self._begun = now
        self.trace = Trace(now)
        self.errors: list[dict[str, Any]] = []
        self._serving: list[tuple[TCPServer, asyncio.Task[None]]] = []
        self._clients: list[IOStream] = []
        self._next_server = itertools.count(1)
        self._next_client = itertools.count(1)
        self._turns: dict[TCPServer, Iterator[Any]] = {}

    def __repr__(self) -> str:
        return f"<Simulation seed={self.seed!r}>"

    # ---- running

    def run(self, main: "Callable[[Simulation], Awaitable[T]]") -> T:
        """Run a coroutine function in the simulation, and return what it returns.

        It may be called more than once: each run begins at the beginning, with a new trace, and does the same.

        :param main: is called with the simulation.
        :raises RuntimeError: all tasks wait for something that will not come, or there is always something to do, so
            that no time passes. It is a ``SimulationStuck``.
        :raises Exception: what ``main`` raises.
        """
        with _no_loop_running(), _no_garbage_collector(), contextlib.closing(SimulationLoop()) as loop:
            task: asyncio.Task[T] = loop.create_task(self._run(main))
            try:
                return loop.run_until_complete(task)
            finally:
                if not task.done():  # nothing happens any more
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, SimulationStuck):
                        loop.run_until_complete(task)
                loop.run_until_complete(loop.shutdown_asyncgens())
                self._end_stubborn_tasks(loop)

    async def _run(self, main: "Callable[[Simulation], Awaitable[T]]") -> T:
        async with self:
            return await main(self)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, SimulationLoop):
            kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
            raise RuntimeError(f"a simulation needs a SimulationLoop, not {kind}: use Simulation(seed).run(main)")
        self.loop = loop
        self._begin_again(loop.kernel.now)
        loop.begin(self.seed, self.faults, self.trace, self._date)
        disturbances = Disturbances(loop, self.faults, self._turns)
        loop.disturb = disturbances.strike if disturbances else None
        loop.set_exception_handler(self._note_error)
        current_loop()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.loop.disturb = None
        for server, serving in reversed(self._serving):
            await end(server, serving)
        self._serving.clear()
        for stream in self._clients:
            stream.close()
        self._clients.clear()
        await cancel_remaining_tasks()
        self.loop.set_exception_handler(None)

    def _end_stubborn_tasks(self, loop: SimulationLoop) -> None:
        """Report tasks that do not end although they were cancelled, and close their coroutines: else the garbage
        collector would do that at some time, perhaps amid another simulation."""
        for task in sorted(asyncio.all_tasks(loop), key=age):
            self._note_error(loop, {"message": f"{task.get_name()} was cancelled, and does not end", "task": task})
            with contextlib.suppress(Exception):
                task.get_coro().close()

    def _note_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(context)
        error = context.get("exception")
        self.note("loop", f"error: {context['message'] if error is None else type(error).__name__}")
        loop.default_exception_handler(context)

    # ---- servers and clients

    def serve(self, server: TCPServer, *, hosts: int = 1, port: int = PORT) -> TCPServer:
        """Have a server listen, and serve until the simulation ends or it is stopped.

        :param server: the server. Unless it listens already, it listens on ``port`` of new hosts.
        :param hosts: how many hosts it listens on, each with an address of its own: ``10.1.0.1`` and so on. Clients
            take them in turn.
        :param port: 0 for one that is free.
        :returns: the server.
        """
        check_int("hosts", hosts, 1, 250)
        listeners = core_of(server).listeners
        if not listeners.addresses:
            for _ in range(hosts):
                server.listen(port, f"10.1.0.{next(self._next_server)}")
        self._turns[server] = itertools.cycle(listeners.addresses)
        self._serving.append((server, self.loop.create_task(server.serve_forever())))
        return server

    async def connect(
        self,
        server: TCPServer | Any,
        *,
        host: str | None = None,
        bandwidth: float | None = None,
        ssl_options: dict[str, Any] | ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        **options: Any,
    ) -> IOStream:
        """Connect to a server as a client.

        :param server: a server, or an address: ``(host, port)`` or the path of a Unix socket.
        :param host: the client's IP address; default (None): a new host for each client, ``10.2.0.1`` and so on.
        :param bandwidth: bytes per second in each direction; None for no limit.
        :param ssl_options: for TLS, as for `IOStream.start_tls`.
        :param server_hostname: the name to check with TLS.
        :param options: keywords of `IOStream`.
        :raises StreamClosedError: there is no connection.
        """
        if bandwidth is not None and not (is_number(bandwidth) and 0 < bandwidth < math.inf):
            raise OptionError("bandwidth", bandwidth, "must be a number of bytes per second, or None")
        address = next(self._turns[server]) if isinstance(server, TCPServer) else server
        stream = IOStream(self._client_socket(address, host, bandwidth), **options)
        try:
            await stream.connect(address)
            if ssl_options is not None:
                stream = await stream.start_tls(False, ssl_options, server_hostname)
        except BaseException:
            stream.close()
            raise
        self._clients = [each for each in self._clients if not each.closed()]
        self._clients.append(stream)
        return stream

    def _client_socket(self, address: Any, host: str | None, bandwidth: float | None) -> SimulatedSocket:
        family = 1 if isinstance(address, str | bytes) else (10 if ":" in address[0] else 2)
        made = self._network.socket(family)
        assert isinstance(made, SimulatedSocket)
        made.bandwidth = bandwidth
        if not made.unix:
            if host is None:
                number = next(self._next_client)
                host = f"fd02::{number:x}" if family == 10 else f"10.2.{number >> 8 & 255}.{number & 255}"
            made.bind((host, 0))
        return made

    # ---- time and faults

    @property
    def _network(self) -> Network:
        return self.loop.kernel

    @property
    def time(self) -> float:
        """Seconds since the beginning."""
        return self._network.now - self._begun

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Let time pass, as `asyncio.sleep` does."""
        return asyncio.sleep(seconds)

    def partition(self, one: "str | IOStream | TCPServer", other: "str | IOStream | TCPServer", seconds: float) -> None:
        """Let nothing arrive between two hosts, in both directions, for a time.

        :param one: an IP address; a stream, for the host of its own end; or a server, for all its hosts.
        :param other: likewise.
        :param seconds: after which it works again.
        """
        for each in _hosts(one):
            for its in _hosts(other):
                self._network.part(each, its, seconds)

    def heal(self) -> None:
        """End all partitions."""
        self._network.heal()

    def stop(self, seconds: float) -> None:
        """Let time pass without anything running, as if the process was stopped, or a handler had blocked the loop."""
        self.loop.stop_process(seconds)

    def jump(self, seconds: float) -> None:
        """Let the date jump, forward or, if below 0, back. Timers and deadlines do not depend on it."""
        self.loop.jump(seconds)

    # ---- what has happened

    def note(self, who: str, what: str) -> None:
        """Add an entry to the trace. It must not contain what differs from run to run, such as an ``id()``."""
        self._network.note(who, what)

    @property
    def struck(self) -> int:
        """How many faults have struck; 0 if it has not run."""
        return self._network.injector.struck if hasattr(self, "loop") else 0

    @property
    def open_descriptors(self) -> int:
        """How many descriptors are open: sockets of servers and clients, the hub's epoll, spare ones of listeners."""
        return len(self._network.open)


def _hosts(place: "str | IOStream | TCPServer") -> list[str]:
    if isinstance(place, str):
        return [place]
    addresses = [place.local_address] if isinstance(place, IOStream) else place.addresses
    return [address[0] for address in addresses]


@contextlib.contextmanager
def _no_loop_running() -> Iterator[None]:
    """Let another loop run, although one may be running here."""
    outer = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(outer)


@contextlib.contextmanager
def _no_garbage_collector() -> Iterator[None]:
    """Let cycles be collected at fixed turns of the loop only: what is collected may run code."""
    enabled = gc.isenabled()
    gc.collect(1)
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
