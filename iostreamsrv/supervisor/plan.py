"""What a supervisor does about its workers: events in, actions out. No process, no socket, no clock is touched here.

Each method that begins with ``on_`` takes an event and returns the actions that follow from it, in their order;
:mod:`iostreamsrv.supervisor.master` carries them out. Times are seconds of one monotonic clock, which the caller reads.

A *slot* is a place for one serving worker. Whatever replaces a worker does it in the same way: a new one starts, and
only when it is ready the slot becomes its own, and the previous worker retires: it accepts no more, and serves the
clients that it has. So a reload, an upgrade, a worker that is too old and one that has crashed differ in what begins
them, and in what happens if the new worker does not start:

- at the first start the supervisor gives up (exit code 3),
- in a reload the workers that are left stay in place, and no further slot is tried,
- after a crash the slot is tried again, later each time (:data:`BACKOFF_FIRST` to :data:`BACKOFF_LONGEST`).

Slots are replaced one at a time, so that a reload needs the memory of one more worker, not of twice as many.
"""

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from .settings import Settings

BACKOFF_FIRST = 0.5
"""Seconds before a slot is tried again whose worker did not become ready, or crashed at once. Doubled each time."""

BACKOFF_LONGEST = 30.0

STABLE = 10.0
"""Seconds that a worker must have served for crashes before it to be forgotten."""

SHORT_LIFE = 1.0
"""A worker that was ready for less is taken for one that did not start."""

END_PATIENCE = 1.0
"""Seconds for a worker to close everything at once, before it is killed."""

RETIRING_GENERATIONS = 2
"""Generations of retired workers that may keep their clients. The oldest of more must close theirs, paced."""

EXIT_OK = 0
EXIT_NOT_STARTED = 3


# ---- actions


class Spawn(NamedTuple):
    """Start a worker, in a fresh interpreter."""

    number: int
    generation: int


class Tell(NamedTuple):
    """Send a worker a word: "retire" (serve its clients, but accept no more), "hurry" (a retired one: begin to close
    them, paced), "drain" (shut down), "end" (close everything at once).

    :ivar successor: the worker that takes the place of one that retires.
    """

    number: int
    word: Literal["retire", "hurry", "drain", "end"]
    successor: int | None = None


class Kill(NamedTuple):
    """End a worker with SIGKILL."""

    number: int


class Check(NamedTuple):
    """Have a new interpreter check that the service would start; `Plan.on_checked` takes the outcome."""


class Replace(NamedTuple):
    """Replace the supervisor itself by a new interpreter, which keeps the process, its sockets and its children."""


class Announce(NamedTuple):
    """Tell the service manager."""

    state: Literal["ready", "reloading", "stopping"]


class Say(NamedTuple):
    """Write a line to the log."""

    level: int
    text: str


class Exit(NamedTuple):
    """End: no worker is left."""

    code: int


Action = Spawn | Tell | Kill | Check | Replace | Announce | Say | Exit


# ---- state


class State(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    RETIRING = "retiring"
    STOPPING = "stopping"


@dataclass(slots=True)
class Worker:
    """One worker, from its spawn until its process has been reaped.

    :ivar number: counts the workers of a service; never used twice.
    :ivar generation: counts the reloads and upgrades before it.
    :ivar drain_timeout: seconds that its server's shutdown may take; None for no limit. It says so when it is ready.
    :ivar kill_at: when to kill it, if it has not ended by then.
    :ivar lifetime: seconds after which it is replaced; None: never.
    :ivar most_accepted: connections after which it is replaced; None: never.
    :ivar why: what it said before it ended.
    """

    number: int
    generation: int
    started_at: float
    state: State = State.STARTING
    ready_at: float = 0.0
    drain_timeout: float | None = None
    kill_at: float | None = None
    lifetime: float | None = None
    most_accepted: float | None = None
    hurried: bool = False
    killed: bool = False
    why: str = ""


@dataclass(slots=True, eq=False)
class Slot:
    """A place for one serving worker.

    :ivar serving: the worker that serves; None after a crash.
    :ivar coming: the one that starts, and will replace it.
    :ivar retry_at: when to start one again.
    """

    serving: int | None = None
    coming: int | None = None
    retry_at: float | None = None


class Seen(NamedTuple):
    """What is known of a worker from outside: seconds since its loop last ran, its resident memory in bytes, and how
    many connections it has accepted."""

    silent: float
    rss: int
    accepted: int


@dataclass(slots=True)
class Upcoming:
    """What is still to be replaced, and why. At most one reload is remembered while another one is running."""

    slots: list[Slot] = field(default_factory=list)
    current: Slot | None = None
    reloading: bool = False
    reload_again: bool = False
    upgrade: bool = False
    checking: bool = False


class Plan:
    """The workers of a service, and what to do about them.

    :param settings: see `Settings`.
    :param draw: draws a number from 0 to 1, for ``jitter``.
    """

    def __init__(self, settings: Settings, draw: Callable[[], float] = random.random) -> None:
        self.workers: dict[int, Worker] = {}
        self.slots: list[Slot] = []
        self.generation = 0
        self._settings = settings
        self._draw = draw
        self._phase: Literal["starting", "running", "stopping"] = "starting"
        self._upcoming = Upcoming()
        self._stops = 0  # how often it was asked to stop
        self._exit_code = EXIT_OK
        self._crashes = 0  # in a row
        self._next_number = 1
        self._actions: list[Action] = []

    # ---- what it looks like

    @property
    def status(self) -> str:
        """One line for the service manager."""
        counts = {state: sum(each.state is state for each in self.workers.values()) for state in State}
        parts = [f"{counts[State.READY]} of {len(self.slots)} workers"]
        parts += [f"{counts[state]} {state}" for state in State if state is not State.READY and counts[state]]
        return ", ".join(parts)

    def next_time(self) -> float | None:
        """When :meth:`on_time` must be called at the latest; None if nothing is due."""
        times = [each.kill_at for each in self.workers.values()] + [slot.retry_at for slot in self.slots]
        return min((each for each in times if each is not None), default=None)

    def set_settings(self, settings: Settings) -> None:
        """Use other settings from the next event on; for a number of workers see TTIN and TTOU."""
        self._settings = settings

    # ---- through an upgrade

    def to_json(self) -> dict[str, Any]:
        """What the next supervisor needs to know, which replaces this one in its process."""
        return {
            "workers": [asdict(each) for each in self.workers.values()],
            "slots": [[each.serving, each.coming] for each in self.slots],
            "generation": self.generation,
            "next_number": self._next_number,
        }

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take over the workers of the supervisor before this one."""
        known = Worker.__dataclass_fields__
        for each in state["workers"]:
            worker = Worker(**{name: value for name, value in each.items() if name in known})
            worker.state = State(worker.state)
            self.workers[worker.number] = worker
        self.slots = [Slot(serving, coming) for serving, coming in state["slots"]]
        self.generation = state["generation"]
        self._next_number = state["next_number"]
        self._phase = "running"

    # ---- events

    def on_start(self, now: float) -> list[Action]:
        """The supervisor starts."""
        self.slots = [Slot() for _ in range(self._settings.workers)]
        for slot in self.slots:
            self._spawn(slot, now)
        return self._taken()

    def on_upgraded(self, now: float) -> list[Action]:
        """This supervisor has replaced another one and has its workers (:meth:`adopt`)."""
        self._say(logging.INFO, "the supervisor is upgraded: its workers are replaced")
        self._begin_reload(now)
        return self._taken()

    def on_ready(self, number: int, drain_timeout: float | None, now: float) -> list[Action]:
        """A worker accepts."""
        worker = self.workers[number]
        worker.drain_timeout = drain_timeout
        slot = self._slot_of(number)
        if worker.state is not State.STARTING or slot is None:
            return self._taken()
        worker.state, worker.ready_at, worker.kill_at = State.READY, now, None
        before, slot.serving, slot.coming = slot.serving, number, None
        if before is not None:
            self._retire(self.workers[before], number)
        if self._phase == "starting" and all(each.serving is not None for each in self.slots):
            self._phase = "running"
            self._announce("ready")
        if self._upcoming.current is slot:
            self._upcoming.current = None
        self._go_on(now)
        return self._taken()

    def on_failed(self, number: int, why: str) -> list[Action]:
        """A worker says why it will end."""
        self.workers[number].why = why
        return self._taken()

    def on_exit(self, number: int, how: str, now: float) -> list[Action]:
        """A worker's process has ended.

        :param how: such as "exit code 1".
        """
        worker = self.workers.pop(number)
        slot = self._slot_of(number)
        if self._phase != "stopping" and slot is not None:
            self._exited_unasked(worker, slot, f"worker {number} has ended ({worker.why or how})", now)
        if self._phase == "stopping" and not self.workers:
            self._actions.append(Exit(self._exit_code))
        return self._taken()

    def on_signal(self, name: str, now: float) -> list[Action]:
        """The supervisor got a signal.

        :param name: "TERM", "INT", "QUIT", "HUP", "USR2", "TTIN" or "TTOU".
        """
        if name in ("TERM", "INT", "QUIT"):
            self._stop(now, self._stops + (2 if name == "QUIT" else 1))
        elif self._phase == "stopping":
            self._say(logging.WARNING, f"SIG{name} is ignored: the service is shutting down")
        elif name == "HUP":
            self._reload(now)
        elif name == "USR2":
            self._upgrade()
        elif name == "TTIN":
            self.slots.append(Slot())
            self._spawn(self.slots[-1], now)
            self._say(logging.INFO, f"one worker more: {len(self.slots)}")
        elif name == "TTOU":
            self._remove_slot(now)
        return self._taken()

    def on_checked(self, problem: str, now: float) -> list[Action]:
        """The outcome of `Check`: what is wrong, or nothing."""
        self._upcoming.checking = False
        if self._phase == "stopping":
            pass
        elif problem:
            self._not_upgraded(problem, now)
        else:
            self._actions.append(Replace())
        return self._taken()

    def on_not_replaced(self, problem: str, now: float) -> list[Action]:
        """`Replace` has failed, and changed nothing."""
        self._not_upgraded(problem, now)
        return self._taken()

    def on_time(self, now: float, seen: Mapping[int, Seen]) -> list[Action]:
        """Time has passed: once a second, and at :meth:`next_time`.

        :param seen: what is known of the workers.
        """
        for worker in list(self.workers.values()):
            if worker.kill_at is not None and now >= worker.kill_at:
                self._kill_late(worker)
            elif worker.state is not State.STARTING and not worker.killed and worker.number in seen:
                self._look_at(worker, seen[worker.number], now)
        for slot in self.slots:
            if slot.retry_at is not None and now >= slot.retry_at:
                self._spawn(slot, now)
        if self._phase == "running":
            self._go_on(now)
        return self._taken()

    # ---- one worker

    def _spawn(self, slot: Slot, now: float) -> None:
        settings = self._settings
        spread = 1 + settings.jitter * self._draw()
        worker = Worker(self._next_number, self.generation, now, kill_at=now + settings.ready_timeout)
        worker.lifetime = settings.worker_lifetime and settings.worker_lifetime * spread
        worker.most_accepted = settings.worker_max_accepted and settings.worker_max_accepted * spread
        self._next_number += 1
        self.workers[worker.number] = worker
        slot.coming, slot.retry_at = worker.number, None
        self._actions.append(Spawn(worker.number, worker.generation))

    def _retire(self, worker: Worker, successor: int | None = None) -> None:
        worker.state = State.RETIRING
        self._actions.append(Tell(worker.number, "retire", successor))
        self._hurry_oldest()

    def _hurry_oldest(self) -> None:
        """Limit what is retired: the generations, and the workers, of which one generation may have many if they are
        replaced for their age."""
        retiring = [each for each in self.workers.values() if each.state is State.RETIRING]
        generations = sorted({each.generation for each in retiring})[-RETIRING_GENERATIONS:]
        newest = retiring[-RETIRING_GENERATIONS * len(self.slots) :]
        for worker in retiring:
            if not worker.hurried and (worker.generation not in generations or worker not in newest):
                worker.hurried = True
                self._actions.append(Tell(worker.number, "hurry"))
                self._say(logging.WARNING, f"worker {worker.number} retired long ago: its clients are being closed")

    def _kill_late(self, worker: Worker) -> None:
        worker.kill_at = None
        if worker.state is State.STARTING:
            worker.why = f"not ready within {self._settings.ready_timeout:g} s"
        else:
            self._say(logging.WARNING, f"worker {worker.number} does not end: it is killed")
        self._kill(worker)

    def _kill(self, worker: Worker) -> None:
        worker.killed = True
        self._actions.append(Kill(worker.number))

    def _look_at(self, worker: Worker, seen: Seen, now: float) -> None:
        """Kill a worker that hangs; replace one that has served long enough."""
        settings = self._settings
        if settings.hang_timeout is not None and seen.silent > settings.hang_timeout:
            worker.why = f"its loop has not run for {seen.silent:.0f} s"
            self._say(logging.ERROR, f"worker {worker.number} hangs: {worker.why}; it is killed")
            self._kill(worker)
        elif worker.state is State.READY:
            if now - worker.ready_at >= STABLE:
                self._crashes = 0
            if why := self._worn(worker, seen, now):
                self._renew(worker, why)

    def _worn(self, worker: Worker, seen: Seen, now: float) -> str:
        most_rss = self._settings.worker_max_rss
        if worker.lifetime is not None and now - worker.ready_at >= worker.lifetime:
            return f"is {now - worker.ready_at:.0f} s old"
        if worker.most_accepted is not None and seen.accepted >= worker.most_accepted:
            return f"has accepted {seen.accepted} connections"
        if most_rss is not None and seen.rss > most_rss:
            return f"has {seen.rss >> 20} MiB of memory"
        return ""

    def _renew(self, worker: Worker, why: str) -> None:
        slot = self._slot_of(worker.number)
        upcoming = self._upcoming
        if slot is not None and slot.coming is None and slot is not upcoming.current and slot not in upcoming.slots:
            if slot.retry_at is None:
                self._say(logging.INFO, f"worker {worker.number} {why}: it is replaced")
                upcoming.slots.append(slot)

    def _exited_unasked(self, worker: Worker, slot: Slot, text: str, now: float) -> None:
        if worker.number == slot.coming:
            slot.coming = None
            self._not_started(slot, text, now)
        else:
            slot.serving = None
            if slot.coming is None:
                delay = self._delay(now - worker.ready_at < SHORT_LIFE)
                slot.retry_at = now + delay
                self._say(logging.ERROR, f"{text}: it is replaced{f' in {delay:g} s' if delay else ''}")
                self._spawn_due(slot, now)

    def _not_started(self, slot: Slot, text: str, now: float) -> None:
        upcoming = self._upcoming
        of_reload = upcoming.current is slot
        if of_reload:
            upcoming.current = None
        if self._phase == "starting":
            self._say(logging.ERROR, f"{text}: the service does not start")
            self._exit_code = EXIT_NOT_STARTED
            self._stop(now, 2)
            return
        if slot.serving is None:
            delay = self._delay(True)
            slot.retry_at = now + delay
            self._say(logging.ERROR, f"{text}: another one starts in {delay:g} s")
        elif not upcoming.reloading:
            slot.retry_at = now + self._delay(True)
            self._say(logging.ERROR, f"{text}: worker {slot.serving} goes on")
        if of_reload and upcoming.reloading:
            upcoming.slots.clear()
            self._say(logging.ERROR, f"{text}: the reload has failed, and the workers before it go on")
            self._end_reload()
        self._go_on(now)

    def _delay(self, crashed: bool) -> float:
        """Seconds until the next try."""
        if not crashed:
            return 0.0
        self._crashes += 1
        delay: float = min(BACKOFF_FIRST * 2 ** min(self._crashes - 1, 16), BACKOFF_LONGEST)
        return delay

    def _spawn_due(self, slot: Slot, now: float) -> None:
        if slot.retry_at is not None and slot.retry_at <= now:
            self._spawn(slot, now)

    # ---- reload and upgrade

    def _reload(self, now: float) -> None:
        upcoming = self._upcoming
        if self._phase == "starting" or upcoming.reloading or upcoming.checking:
            upcoming.reload_again = True
            self._say(logging.INFO, "SIGHUP: another reload follows this one")
        else:
            self._say(logging.INFO, f"reloading: {len(self.slots)} workers are replaced, one after the other")
            self._begin_reload(now)

    def _begin_reload(self, now: float) -> None:
        self.generation += 1
        self._upcoming.reloading = True
        self._upcoming.slots = list(self.slots)
        self._announce("reloading")
        self._go_on(now)

    def _end_reload(self) -> None:
        self._upcoming.reloading = False
        self._announce("ready")

    def _go_on(self, now: float) -> None:
        """Replace the next slot; after the last one do what was asked meanwhile."""
        upcoming = self._upcoming
        if self._phase != "running" or upcoming.current is not None:
            return
        free = next((slot for slot in upcoming.slots if slot.coming is None), None)
        if free is not None:
            upcoming.slots.remove(free)
            upcoming.current = free
            self._spawn(free, now)
        elif not upcoming.slots:
            if upcoming.reloading:
                self._say(logging.INFO, f"reloaded: {self.status}")
                self._crashes = 0
                self._end_reload()
            self._do_remembered(now)

    def _do_remembered(self, now: float) -> None:
        upcoming = self._upcoming
        if upcoming.upgrade:
            upcoming.upgrade = False
            self._upgrade()
        elif upcoming.reload_again and not upcoming.checking:
            upcoming.reload_again = False
            self._begin_reload(now)

    def _upgrade(self) -> None:
        upcoming = self._upcoming
        if self._phase == "starting" or upcoming.reloading or upcoming.current is not None:
            upcoming.upgrade = True
            self._say(logging.INFO, "SIGUSR2: an upgrade follows")
        elif not upcoming.checking:
            upcoming.checking = True
            self._say(logging.INFO, "upgrading: a new interpreter checks the service first")
            self._actions.append(Check())

    def _not_upgraded(self, problem: str, now: float) -> None:
        self._say(logging.ERROR, f"the upgrade has failed, and nothing has changed: {problem}")
        self._go_on(now)

    # ---- fewer, none

    def _remove_slot(self, now: float) -> None:
        if len(self.slots) == 1:
            self._say(logging.WARNING, "SIGTTOU is ignored: it is the last worker")
            return
        slot = self.slots.pop()
        upcoming = self._upcoming
        if slot in upcoming.slots:
            upcoming.slots.remove(slot)
        if upcoming.current is slot:
            upcoming.current = None
        if slot.coming is not None:
            self._kill(self.workers[slot.coming])
        if slot.serving is not None:
            self._retire(self.workers[slot.serving])
        self._say(logging.INFO, f"one worker less: {len(self.slots)}")
        if self._phase == "starting" and all(each.serving is not None for each in self.slots):
            self._phase = "running"
            self._announce("ready")
        self._go_on(now)

    def _stop(self, now: float, urgency: int) -> None:
        """Stop; with an urgency of 2 close everything at once, with more kill."""
        if self._phase != "stopping":
            self._phase = "stopping"
            self._announce("stopping")
            self._say(logging.INFO, f"stopping: {self.status}")
        self._stops = urgency
        self._upcoming = Upcoming()
        for slot in self.slots:
            slot.retry_at = None
        for worker in self.workers.values():
            self._stop_worker(worker, now, urgency)
        if not self.workers:
            self._actions.append(Exit(self._exit_code))

    def _stop_worker(self, worker: Worker, now: float, urgency: int) -> None:
        if worker.state is State.STARTING or urgency > 2:
            self._kill(worker)
        elif urgency == 2:
            self._actions.append(Tell(worker.number, "end"))
            worker.kill_at = now + END_PATIENCE
        else:
            self._actions.append(Tell(worker.number, "drain"))
            limit = worker.drain_timeout
            worker.kill_at = None if limit is None else now + limit + self._settings.kill_timeout
        worker.state = State.STOPPING

    # ---- small things

    def _slot_of(self, number: int) -> Slot | None:
        return next((slot for slot in self.slots if number in (slot.serving, slot.coming)), None)

    def _say(self, level: int, text: str) -> None:
        self._actions.append(Say(level, text))

    def _announce(self, state: Literal["ready", "reloading", "stopping"]) -> None:
        self._actions.append(Announce(state))

    def _taken(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions
