"""The loop of a simulation."""

import asyncio
import gc
import itertools
import selectors
import socket
from asyncio.selector_events import BaseSelectorEventLoop
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from heapq import heapify, heappop, heappush
from typing import Any

from ...runtime.clock import real_wall_time
from ...streams.hub import close_unused
from .faults import Faults
from .network import Network
from .polling import Selector
from .trace import CHUNK, Trace

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

START = 1000.0
"""The time at the beginning."""


FEW_CANCELLED = 1000
"""Timers that were cancelled and do no harm until they are due."""

MOST_TURNS = 1_000_000
"""Turns of the loop at one instant after which it is taken to go round in circles."""


class SimulationStuck(RuntimeError):
    """All tasks wait for something that will not come: there is no timer, and nothing is on its way. Or there is
    always something to do, so that no time passes."""


class Timer(asyncio.TimerHandle):
    """A timer in the agenda. A client that sleeps makes one for each request, and asyncio's asks the loop four times
    whether it is in debug mode, in a call of a method each. Apart from that it is the same."""

    __slots__ = ()

    _loop: "SimulationLoop"
    _source_traceback: Any
    _scheduled: bool

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], loop: "SimulationLoop", context: Any
    ) -> None:
        if loop._debug:
            super().__init__(when, callback, args, loop, context)
            del self._source_traceback[-3:]  # this function, and two of the loop
        else:
            self._when, self._callback, self._args, self._loop = when, callback, args, loop
            self._context = copy_context() if context is None else context
            self._cancelled = False
            self._repr = self._source_traceback = None
        self._scheduled = True

    def cancel(self) -> None:
        """See `asyncio.TimerHandle.cancel`. `asyncio.sleep` cancels its timer also when that was due."""
        if self._scheduled and not self._cancelled:
            self._loop.count_cancelled()
        if self._loop._debug:
            asyncio.Handle.cancel(self)
        else:
            self._cancelled = True
            self._callback = self._args = None  # type: ignore[assignment]


class SimulationLoop(BaseSelectorEventLoop):
    """An asyncio loop without descriptors and without real time.

    :ivar kernel: its network. Until a `Simulation` begins there are no faults, and the seed is 0.
    :ivar disturb: is called at each instant at which something happens.
    """

    # What BaseEventLoop has, and its stubs do not.
    _ready: deque[Any]  # of handles, and their private fields
    _stopping: bool
    _closed: bool
    _debug: bool
    _timer_cancelled_count: int

    def __init__(self) -> None:
        self.kernel = Network(0, Faults(), START, Trace())
        self._waiting = Selector(self.kernel)
        self._turns_left = MOST_TURNS
        self._tasks = 0
        self._date = real_wall_time() - START  # at time 0
        self.disturb: Callable[[], None] | None = None
        super().__init__(self._waiting)

    def begin(self, seed: object, faults: Faults, trace: Trace, date: float | None) -> None:
        """Have another network from here on.

        :param date: see `Simulation`.
        :raises RuntimeError: there are sockets in the one that there is.
        """
        close_unused(self)
        if self.kernel.open:
            raise RuntimeError("this loop has sockets: begin a simulation in a new loop")
        before, self.kernel = self.kernel, Network(seed, faults, self.kernel.now, trace)
        timers = [entry for entry in before.agenda if type(entry[2]) is Timer]
        heapify(timers)
        self.kernel.agenda, self.kernel.sequence = timers, before.sequence
        self._selector = self._waiting = Selector(self.kernel)
        self._date = (real_wall_time() if date is None else date) - self.kernel.now

    def _make_self_pipe(self) -> None:
        """Nothing outside wakes this loop."""

    _close_self_pipe = _make_self_pipe

    def _write_to_self(self) -> None:
        """See above."""

    def close(self) -> None:
        """See `asyncio.loop.close`. As there, the timers are let go of."""
        super().close()
        agenda = self.kernel.agenda
        agenda[:] = [entry for entry in agenda if type(entry[2]) is not Timer]
        heapify(agenda)

    # ---- time

    def time(self) -> float:
        """Seconds; see `asyncio.loop.time`."""
        return self.kernel.now

    def wall_time(self) -> float:
        """The date; see :mod:`iostreamsrv.runtime.clock`."""
        return self._date + self.kernel.now

    def call_at(  # type: ignore[override]  # the stubs count the arguments
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See `asyncio.loop.call_at`."""
        return self._enter(when, callback, args, context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See `asyncio.loop.call_later`."""
        return self._enter(self.kernel.now + delay, callback, args, context)

    def _enter(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> asyncio.TimerHandle:
        if self._closed:
            raise RuntimeError("Event loop is closed")
        network = self.kernel
        timer = Timer(when, callback, args, self, context)
        heappush(network.agenda, (when, next(network.sequence), timer))
        return timer

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """See `asyncio.loop.call_soon`. It makes no more calls than it must: there is one for each wake-up."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def _pass_time(self) -> list[Timer] | None:
        """Go to the next instant at which something happens, and let it happen; see `_happened`."""
        network = self.kernel
        agenda = network.agenda
        if not agenda:
            waiting = ", ".join(sorted(task.get_name() for task in asyncio.all_tasks(self)))
            raise SimulationStuck(f"all tasks wait, and nothing is on its way: {waiting}")
        when, _, entry = agenda[0]
        if type(entry) is Timer and entry._cancelled:
            self._drop(heappop(agenda)[2])
            return None
        if when > network.now:
            network.now = when
            self._turns_left = MOST_TURNS
            if network.faults.stop and network.injector.strikes("stop", "process"):
                self.stop_process(network.injector.draw(network.faults.stop_time))
            if self.disturb is not None:
                self.disturb()
        if len(network.trace.recent) >= CHUNK:
            network.trace.fold()
            gc.collect(1)
        return self._happened()

    def _happened(self) -> list[Timer] | None:
        """Let happen what is due; the timers among it, those of the same instant in a drawn order."""
        network = self.kernel
        agenda, now = network.agenda, network.now
        due: list[Timer] | None = None
        while agenda and agenda[0][0] <= now:
            entry = heappop(agenda)[2]
            if type(entry) is not Timer:
                entry()
            elif entry._cancelled:
                self._drop(entry)
            else:
                entry._scheduled = False
                if due is None:
                    due = [entry]
                else:
                    due.append(entry)
        return due if due is None or len(due) == 1 else self._in_drawn_order(due)

    def _in_drawn_order(self, due: list[Timer]) -> list[Timer]:
        drawn: list[Timer] = []
        for _, same in itertools.groupby(due, Timer.when):
            timers = list(same)
            if len(timers) > 1:
                self.kernel.shuffle(timers)
            drawn += timers
        return drawn

    def _drop(self, timer: Timer) -> None:
        timer._scheduled = False
        self._timer_cancelled_count -= 1

    def count_cancelled(self) -> None:
        """Forget timers that were cancelled, when they are more than all else; `asyncio` does likewise."""
        self._timer_cancelled_count += 1
        agenda = self.kernel.agenda
        if self._timer_cancelled_count > FEW_CANCELLED and self._timer_cancelled_count * 2 > len(agenda):
            kept = []
            for each in agenda:
                if type(each[2]) is Timer and each[2]._cancelled:
                    self._drop(each[2])
                else:
                    kept.append(each)
            agenda[:] = kept
            heapify(agenda)

    def stop_process(self, seconds: float) -> None:
        """Let time pass without anything running."""
        self.kernel.note("process", f"stopped for {seconds:.6f} s")
        self.kernel.now += seconds

    def block(self) -> None:
        """Let a callback block, amid those of this turn that have not run yet."""
        injector, ready = self.kernel.injector, self._ready
        seconds = injector.draw(self.kernel.faults.stop_time)
        handle = asyncio.Handle(self.stop_process, (seconds,), self)
        ready.insert(injector.pick(range(len(ready) + 1)), handle)

    def jump(self, seconds: float) -> None:
        """Let the date jump."""
        self.kernel.note("process", f"the date jumps by {seconds:.6f} s")
        self._date += seconds

    def jump_by_chance(self) -> None:
        """Let the date jump by a number of seconds that is drawn, forward or back."""
        injector = self.kernel.injector
        self.jump(injector.draw(self.kernel.faults.jump_time) * injector.pick((1, -1)))

    # asyncio calls _run_once for each turn of the loop. Here it makes turns until the loop is stopped, or has another
    # network. A request and its reply take four turns, each with one callback or two, so a turn is written for speed:
    # what it needs is looked up once for all turns, the selector is not asked if no descriptor has changed, and a
    # callback is run as Handle._run does it, without a call of that.

    def _run_once(self) -> None:
        """Turns, as `asyncio` has them: descriptors that are ready, then timers, then all callbacks that there are."""
        network, ready, waiting = self.kernel, self._ready, self._waiting
        agenda, maybe = network.agenda, waiting.maybe
        next_ready = ready.popleft
        while True:
            due = self._happened() if agenda and agenda[0][0] <= network.now else None
            events = waiting.select() if maybe else None
            while not (ready or due or events or self._stopping):
                due = self._pass_time()
                if maybe:
                    events = waiting.select()
            if events:
                self._add_callbacks(events)
            if due:
                ready.extend(due)
            self._turns_left -= 1
            if self._turns_left <= 0:
                self._turns_left = MOST_TURNS  # for what is still to be cleaned up
                raise SimulationStuck(f"the loop has turned {MOST_TURNS:,} times, and no time has passed")
            for _ in range(len(ready)):
                handle = next_ready()
                if not handle._cancelled:
                    try:
                        handle._context.run(handle._callback, *handle._args)
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:
                        self._callback_failed(handle, error)
            handle = None  # what it holds may end now, not when the next one is run
            if self._stopping or self.kernel is not network:
                return

    def _add_callbacks(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        ready = self._ready
        for key, seen in events:
            reader, writer = key.data
            if seen & READ and not reader._cancelled:
                ready.append(reader)
            if seen & WRITE and not writer._cancelled:
                ready.append(writer)

    def _callback_failed(self, handle: Any, error: BaseException) -> None:
        context = {"message": f"Exception in callback {handle!r}", "exception": error, "handle": handle}
        if handle._source_traceback:
            context["source_traceback"] = handle._source_traceback
        self.call_exception_handler(context)

    def create_task(self, coro: Any, *, name: Any = None, **options: Any) -> Any:
        """See `asyncio.loop.create_task`. Tasks without a name get one that does not depend on earlier simulations."""
        self._tasks += 1
        return super().create_task(coro, name=f"Task-{self._tasks}" if name is None else name, **options)

    # ---- what asyncio does with the system

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Run a function in this thread, a turn later. There are no others."""
        future = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:
                future.set_exception(error)

        self.call_later(self.kernel.delay(self.kernel.draw), run)
        return future

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        """See `asyncio.loop.create_connection`."""
        if options.get("sock") is None and host is not None:
            found = await self.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]
            options["sock"] = self.kernel.socket(family)
            options["sock"].setblocking(False)
            await self.sock_connect(options["sock"], address)
            if options.get("ssl") and options.get("server_hostname") is None:
                options["server_hostname"] = host
        return await super().create_connection(protocol_factory, **options)

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        """See `asyncio.loop.create_server`; it listens on one address."""
        if options.get("sock") is None:
            found = await self.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            options["sock"] = self.kernel.socket(family)
            options["sock"].setblocking(False)
            options["sock"].bind(address)
        return await super().create_server(protocol_factory, **options)
