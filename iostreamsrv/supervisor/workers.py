"""The workers of a service as its `Plan` knows them, and the actions that concern a single one."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from .actions import Action, Kill, Say, Spawn, Tell
from .settings import MAX_WORKERS, Settings

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
    :ivar crashes: workers of it that have not started, or crashed at once, in a row.
    """

    serving: int | None = None
    coming: int | None = None
    retry_at: float | None = None
    crashes: int = 0


class Seen(NamedTuple):
    """What is known of a worker from outside: seconds since its loop last ran, its resident memory in bytes, and how
    many connections it has accepted."""

    silent: float
    rss: int
    accepted: int


class Workers:
    """The workers, and the slots that they have.

    :param draw: draws a number from 0 to 1, for ``jitter``.
    :ivar actions: what is to be done. The plan takes them from here.
    """

    def __init__(self, settings: Settings, draw: Callable[[], float]) -> None:
        self.settings = settings
        self.all: dict[int, Worker] = {}
        self.slots: list[Slot] = []
        self.generation = 0
        self.actions: list[Action] = []
        self._draw = draw
        self._next_number = 1

    @property
    def status(self) -> str:
        """One line for the service manager."""
        counts = {state: sum(each.state is state for each in self.all.values()) for state in State}
        parts = [f"{counts[State.READY]} of {len(self.slots)} workers"]
        parts += [f"{counts[state]} {state}" for state in State if state is not State.READY and counts[state]]
        return ", ".join(parts)

    def next_time(self) -> float | None:
        """When a worker is to be killed or started next; None if none is."""
        times = [each.kill_at for each in self.all.values()] + [slot.retry_at for slot in self.slots]
        return min((each for each in times if each is not None), default=None)

    def slot_of(self, number: int) -> Slot | None:
        """The slot that a worker serves in, or will; None for one that has left it."""
        return next((slot for slot in self.slots if number in (slot.serving, slot.coming)), None)

    @property
    def complete(self) -> bool:
        """Whether each slot has a worker that serves."""
        return all(slot.serving is not None for slot in self.slots)

    # ---- through an upgrade

    def to_json(self) -> dict[str, Any]:
        """What :meth:`adopt` needs."""
        return {
            "workers": [asdict(each) for each in self.all.values()],
            "slots": [[each.serving, each.coming] for each in self.slots],
            "generation": self.generation,
            "next_number": self._next_number,
        }

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take over the workers of the supervisor that this one has replaced in its process. What has been added to the
        state since is ignored, and what is missing has its default: the two may be of different versions."""
        known = Worker.__dataclass_fields__
        for each in state["workers"]:
            worker = Worker(**{name: value for name, value in each.items() if name in known})
            worker.state = State(worker.state)
            self.all[worker.number] = worker
        # An empty slot had a time to be tried again, which has passed, more or less.
        self.slots = [
            Slot(serving, coming, 0.0 if serving is None and coming is None else None)
            for serving, coming in state["slots"]
        ]
        self.generation = state["generation"]
        self._next_number = state["next_number"]

    # ---- what happens to one

    def add_slot(self, now: float) -> None:
        """Add a slot, and start its worker."""
        self.slots.append(Slot())
        self.spawn(self.slots[-1], now)

    def add_one(self, now: float) -> None:
        """Add a slot to a service that runs, unless it has as many as there may be."""
        if len(self.slots) >= MAX_WORKERS:
            self.say(logging.WARNING, f"SIGTTIN is ignored: there are {len(self.slots)} workers, and may be no more")
        else:
            self.add_slot(now)
            self.say(logging.INFO, f"one worker more: {len(self.slots)}")

    def remove_slot(self) -> Slot:
        """Remove a slot, an empty one if there is one. Its worker retires."""
        slot = next((each for each in self.slots if each.serving is None), self.slots[-1])
        self.slots.remove(slot)
        if slot.coming is not None:
            self.kill(self.all[slot.coming])
        if slot.serving is not None:
            self.retire(self.all[slot.serving])
        self.say(logging.INFO, f"one worker less: {len(self.slots)}")
        return slot

    def spawn(self, slot: Slot, now: float) -> None:
        """Start a worker for a slot."""
        settings = self.settings
        spread = 1 + settings.jitter * self._draw()
        worker = Worker(self._next_number, self.generation, kill_at=now + settings.ready_timeout)
        worker.lifetime = settings.worker_lifetime and settings.worker_lifetime * spread
        worker.most_accepted = settings.worker_max_accepted and settings.worker_max_accepted * spread
        self._next_number += 1
        self.all[worker.number] = worker
        slot.coming, slot.retry_at = worker.number, None
        self.actions.append(Spawn(worker.number, worker.generation))

    def retire(self, worker: Worker, successor: int | None = None) -> None:
        """Have a worker serve the clients that it has, and accept no more."""
        worker.state = State.RETIRING
        self.actions.append(Tell(worker.number, "retire", successor))
        self._hurry_oldest()

    def _hurry_oldest(self) -> None:
        """Limit what is retired: the generations, and the workers, of which one generation may have many if they are
        replaced for their age."""
        retiring = [each for each in self.all.values() if each.state is State.RETIRING]
        generations = sorted({each.generation for each in retiring})[-RETIRING_GENERATIONS:]
        newest = retiring[-RETIRING_GENERATIONS * len(self.slots) :]
        for worker in retiring:
            if not worker.hurried and (worker.generation not in generations or worker not in newest):
                worker.hurried = True
                self.actions.append(Tell(worker.number, "hurry"))
                self.say(logging.WARNING, f"worker {worker.number} retired long ago: its clients are being closed")

    def forget_crashes(self) -> None:
        """Other code runs: what has crashed before says nothing about it."""
        for slot in self.slots:
            slot.crashes = 0

    def stop_all(self, now: float, urgency: int) -> None:
        """Shut all workers down, and start none any more."""
        for slot in self.slots:
            slot.retry_at = None
        for worker in self.all.values():
            self._stop(worker, now, urgency)

    def _stop(self, worker: Worker, now: float, urgency: int) -> None:
        """Shut a worker down: let its clients finish; with an urgency of 2 close everything at once; above, kill it.

        One that has not started has no clients, and is killed."""
        if worker.state is State.STARTING or urgency > 2:
            self.kill(worker)
        elif urgency == 2:
            self.actions.append(Tell(worker.number, "end"))
            worker.kill_at = now + END_PATIENCE
        else:
            self.actions.append(Tell(worker.number, "drain"))
            limit = worker.drain_timeout
            worker.kill_at = None if limit is None else now + limit + self.settings.kill_timeout
        worker.state = State.STOPPING

    def kill_late(self, worker: Worker) -> None:
        """Kill a worker that was to be ready, or to have ended, by now."""
        worker.kill_at = None
        if worker.state is State.STARTING:
            worker.why = f"not ready within {self.settings.ready_timeout:g} s"
        else:
            self.say(logging.WARNING, f"worker {worker.number} does not end: it is killed")
        self.kill(worker)

    def kill(self, worker: Worker) -> None:
        """Kill a worker."""
        worker.killed = True
        self.actions.append(Kill(worker.number))

    def look_at(self, worker: Worker, seen: Seen, now: float) -> str:
        """Kill a worker that hangs. Say why one has served long enough; nothing if it has not."""
        limit = self.settings.hang_timeout
        if limit is not None and seen.silent > limit:
            worker.why = f"its loop has not run for {seen.silent:.0f} s"
            self.say(logging.ERROR, f"worker {worker.number} hangs: {worker.why}; it is killed")
            self.kill(worker)
            return ""
        if worker.state is not State.READY:
            return ""
        slot = self.slot_of(worker.number)
        if slot is not None and now - worker.ready_at >= STABLE:
            slot.crashes = 0
        return self._worn(worker, seen, now)

    def _worn(self, worker: Worker, seen: Seen, now: float) -> str:
        most_rss = self.settings.worker_max_rss
        if worker.lifetime is not None and now - worker.ready_at >= worker.lifetime:
            return f"is {now - worker.ready_at:.0f} s old"
        if worker.most_accepted is not None and seen.accepted >= worker.most_accepted:
            return f"has accepted {seen.accepted} connections"
        if most_rss is not None and seen.rss > most_rss:
            return f"has {seen.rss >> 20} MiB of memory"
        return ""

    def retry(self, slot: Slot, crashed: bool, now: float) -> float:
        """Start another worker for a slot: at once, or later each time if the last one has crashed.

        :returns: in how many seconds.
        """
        delay = 0.0
        if crashed:
            slot.crashes += 1
            delay = min(BACKOFF_FIRST * 2 ** min(slot.crashes - 1, 16), BACKOFF_LONGEST)
        slot.retry_at = now + delay
        self.retry_due(now)
        return delay

    def retry_due(self, now: float) -> None:
        """Start those workers whose time has come."""
        for slot in self.slots:
            if slot.retry_at is not None and now >= slot.retry_at:
                self.spawn(slot, now)

    def say(self, level: int, text: str) -> None:
        """Write a line to the log."""
        self.actions.append(Say(level, text))
