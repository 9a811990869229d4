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
from dataclasses import dataclass, field
from typing import Any, Literal

from .actions import Action, Announce, Check, Exit, Replace
from .settings import START_FAILED, Settings
from .workers import SHORT_LIFE, Seen, Slot, State, Worker, Workers


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
        self._workers = Workers(settings, draw)
        self._phase: Literal["starting", "running", "stopping"] = "starting"
        self._upcoming = Upcoming()
        self._urgency = 0  # of the stop
        self._exit_code = 0

    @property
    def status(self) -> str:
        """One line about the workers, for people."""
        return self._workers.status

    def next_time(self) -> float | None:
        """When :meth:`on_time` must be called at the latest; None if nothing is due."""
        return self._workers.next_time()

    def set_settings(self, settings: Settings) -> None:
        """Use other settings from the next event on. The number of workers stays: see TTIN and TTOU."""
        self._workers.settings = settings

    def to_json(self) -> dict[str, Any]:
        """What :meth:`adopt` needs."""
        return self._workers.to_json()

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take over the workers of the supervisor that this one has replaced in its process."""
        self._workers.adopt(state)
        self._phase = "running"

    # ---- events

    def on_start(self, now: float) -> list[Action]:
        """The supervisor starts."""
        for _ in range(self._workers.settings.workers):
            self._workers.add_slot(now)
        return self._taken()

    def on_upgraded(self, now: float) -> list[Action]:
        """This supervisor has replaced another one and has its workers (:meth:`adopt`)."""
        self._workers.say(logging.INFO, "the supervisor is upgraded: its workers are replaced")
        self._begin_reload(now)
        return self._taken()

    def on_ready(self, number: int, drain_timeout: float | None, now: float) -> list[Action]:
        """A worker accepts."""
        worker = self._workers.all[number]
        worker.drain_timeout = drain_timeout
        slot = self._workers.slot_of(number)
        if worker.state is not State.STARTING or slot is None:
            return self._taken()
        worker.state, worker.ready_at, worker.kill_at = State.READY, now, None
        before, slot.serving, slot.coming = slot.serving, number, None
        if before is not None:
            self._workers.retire(self._workers.all[before], number)
        self._note_if_complete()
        if self._upcoming.current is slot:
            self._upcoming.current = None
        self._go_on(now)
        return self._taken()

    def on_leaving(self, number: int, now: float) -> list[Action]:
        """A worker has stopped to accept, though it was not told to: its process got a signal, or the server stopped
        itself."""
        worker, slot = self._workers.all[number], self._workers.slot_of(number)
        if worker.state is State.READY and slot is not None:
            worker.state = State.RETIRING
            self._vacate(slot, worker, f"worker {number} has stopped accepting by itself", now)
        return self._taken()

    def on_failed(self, number: int, why: str) -> list[Action]:
        """A worker says why it will end."""
        self._workers.all[number].why = why
        return self._taken()

    def on_exit(self, number: int, how: str, now: float) -> list[Action]:
        """A worker's process has ended.

        :param how: such as "exit code 1".
        """
        worker = self._workers.all.pop(number)
        slot = self._workers.slot_of(number)
        text = f"worker {number} has ended ({worker.why or how})"
        if slot is not None and self._phase != "stopping":
            if number == slot.coming:
                slot.coming = None
                self._not_started(slot, text, now)
            else:
                self._vacate(slot, worker, text, now)
        self._exit_if_empty()
        return self._taken()

    def on_signal(self, name: str, now: float) -> list[Action]:
        """The supervisor got a signal.

        :param name: "TERM", "INT", "QUIT", "HUP", "USR2", "TTIN" or "TTOU".
        """
        if name in ("TERM", "INT", "QUIT"):
            self._stop(now, max(self._urgency + 1, 2 if name == "QUIT" else 1))
            self._exit_if_empty()
        elif self._phase == "stopping":
            self._workers.say(logging.WARNING, f"SIG{name} is ignored: the service is shutting down")
        elif name == "HUP":
            self._reload(now)
        elif name == "USR2":
            self._upgrade()
        elif name == "TTIN":
            self._workers.add_one(now)
        elif name == "TTOU":
            self._remove_slot(now)
        return self._taken()

    def on_refused(self, problem: str) -> list[Action]:
        """A reload is not possible: the settings are wrong."""
        self._workers.say(logging.ERROR, f"no reload, the workers go on: {problem}")
        if self._phase == "running" and not self._upcoming.reloading:
            self._announce("reloading")  # systemd may wait until it is over
            self._announce("ready", problem)
        return self._taken()

    def on_checked(self, problem: str, now: float) -> list[Action]:
        """The outcome of `Check`: what is wrong, or nothing."""
        self._upcoming.checking = False
        if problem:
            self._not_upgraded(problem, now)
        elif self._phase != "stopping":
            self._workers.actions.append(Replace())
        return self._taken()

    def on_not_replaced(self, problem: str, now: float) -> list[Action]:
        """`Replace` has failed, and changed nothing."""
        self._not_upgraded(problem, now)
        return self._taken()

    def on_time(self, now: float, seen: Mapping[int, Seen]) -> list[Action]:
        """Time has passed: once a second, and at :meth:`next_time`.

        :param seen: what is known of the workers.
        """
        for worker in list(self._workers.all.values()):
            if worker.kill_at is not None and now >= worker.kill_at:
                self._workers.kill_late(worker)
            elif worker.state is not State.STARTING and not worker.killed and worker.number in seen:
                self._look_at(worker, seen[worker.number], now)
        self._workers.retry_due(now)
        if self._phase == "running":
            self._go_on(now)
        return self._taken()

    # ---- one worker

    def _note_if_complete(self) -> None:
        if self._phase == "starting" and self._workers.complete:
            self._phase = "running"
            self._announce("ready")

    def _look_at(self, worker: Worker, seen: Seen, now: float) -> None:
        why = self._workers.look_at(worker, seen, now)
        slot = self._workers.slot_of(worker.number)
        if why and slot is not None and self._is_settled(slot):
            self._workers.say(logging.INFO, f"worker {worker.number} {why}: it is replaced")
            self._upcoming.slots.append(slot)

    def _is_settled(self, slot: Slot) -> bool:
        """Whether nothing is replaced there, nor about to be."""
        upcoming = self._upcoming
        starting = slot.coming is not None or slot.retry_at is not None
        return not starting and slot is not upcoming.current and slot not in upcoming.slots

    def _vacate(self, slot: Slot, worker: Worker, text: str, now: float) -> None:
        """Replace a worker that has left its slot."""
        slot.serving = None
        if slot.coming is not None:
            return self._workers.say(logging.WARNING, text)
        delay = self._workers.retry(slot, now - worker.ready_at < SHORT_LIFE, now)
        self._workers.say(logging.ERROR, f"{text}: another one starts{f' in {delay:g} s' if delay else ''}")

    def _not_started(self, slot: Slot, text: str, now: float) -> None:
        workers, upcoming = self._workers, self._upcoming
        of_reload = upcoming.current is slot and upcoming.reloading
        if upcoming.current is slot:
            upcoming.current = None
        if self._phase == "starting":
            workers.say(logging.ERROR, f"{text}: the service does not start")
            self._exit_code = START_FAILED
            self._stop(now, 2)
        elif of_reload:
            workers.say(logging.ERROR, f"{text}: the reload has failed, and the workers before it go on")
            upcoming.slots.clear()
            self._end_reload(text)
        if self._phase == "running" and (slot.serving is None or not of_reload):
            delay = workers.retry(slot, True, now)
            goes_on = "" if slot.serving is None else f"worker {slot.serving} goes on, and "
            workers.say(logging.ERROR, f"{text}: {goes_on}another one starts in {delay:g} s")
        self._go_on(now)

    # ---- reload and upgrade

    def _reload(self, now: float) -> None:
        upcoming = self._upcoming
        if self._phase == "starting" or upcoming.reloading or upcoming.checking:
            upcoming.reload_again = True
            self._workers.say(logging.INFO, "SIGHUP: another reload follows this one")
        else:
            self._workers.say(logging.INFO, "reloading: the workers are replaced, one after the other")
            self._begin_reload(now)

    def _begin_reload(self, now: float) -> None:
        self._workers.generation += 1
        self._upcoming.reloading = True
        self._upcoming.slots = list(self._workers.slots)
        self._announce("reloading")
        self._go_on(now)

    def _end_reload(self, problem: str = "") -> None:
        self._upcoming.reloading = False
        self._announce("ready", problem)

    def _go_on(self, now: float) -> None:
        """Replace the next slot; after the last one do what was asked meanwhile."""
        upcoming = self._upcoming
        if self._phase != "running" or upcoming.current is not None:
            return
        free = next((slot for slot in upcoming.slots if slot.coming is None), None)
        if free is not None:
            upcoming.slots.remove(free)
            upcoming.current = free
            self._workers.spawn(free, now)
        elif not upcoming.slots:
            if upcoming.reloading:
                self._workers.say(logging.INFO, f"reloaded: {self.status}")
                self._workers.forget_crashes()
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
            self._workers.say(logging.INFO, "SIGUSR2: an upgrade follows")
        elif upcoming.checking:
            self._workers.say(logging.INFO, "SIGUSR2: the upgrade is being checked already")
        else:
            upcoming.checking = True
            self._workers.say(logging.INFO, "upgrading: a new interpreter checks the service first")
            self._workers.actions.append(Check())

    def _not_upgraded(self, problem: str, now: float) -> None:
        self._workers.say(logging.ERROR, f"the upgrade has failed, and nothing has changed: {problem}")
        self._go_on(now)

    # ---- fewer, none

    def _remove_slot(self, now: float) -> None:
        if len(self._workers.slots) == 1:
            self._workers.say(logging.WARNING, "SIGTTOU is ignored: it is the last worker")
            return
        slot, upcoming = self._workers.remove_slot(), self._upcoming
        upcoming.slots = [each for each in upcoming.slots if each is not slot]
        if upcoming.current is slot:
            upcoming.current = None
        self._note_if_complete()
        self._go_on(now)

    def _stop(self, now: float, urgency: int) -> None:
        """Stop; with an urgency of 2 close everything at once, with more kill."""
        if self._phase != "stopping":
            self._phase = "stopping"
            self._announce("stopping")
            self._workers.say(logging.INFO, f"stopping: {self.status}")
        self._urgency = urgency
        self._upcoming = Upcoming()
        self._workers.stop_all(now, urgency)

    def _exit_if_empty(self) -> None:
        if self._phase == "stopping" and not self._workers.all:
            self._workers.actions.append(Exit(self._exit_code))

    def _announce(self, state: Literal["ready", "reloading", "stopping"], problem: str = "") -> None:
        self._workers.actions.append(Announce(state, problem))

    def _taken(self) -> list[Action]:
        actions, self._workers.actions = self._workers.actions, []
        return actions
