"""The first process of a service. It has the listening sockets and the workers, and runs no code of the user.

It waits for signals, for words of its workers and for time to pass, gives them to the `Plan`, and carries out what that
says. It has no event loop: there is little to do, and nothing that it depends on may break.
"""

import contextlib
import os
import selectors
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..errors import ListenError, OptionError
from ..runtime.addresses import show
from ..runtime.clock import real_time, real_time_ns
from ..runtime.logs import general, log_to_stderr
from ..runtime.rlimit import raise_limit
from ..server.scoreboard import ForeignMemoryError, Scoreboard
from .actions import Action, Announce, Check, Exit, Kill, Replace, Say, Spawn, Tell
from .channel import Message
from .children import ROWS, Children
from .controlling import Control
from .listening import ServiceListeners
from .notify import Notifier
from .pidfile import PidFile
from .plan import Plan
from .rights import drop_rights
from .settings import START_FAILED, Settings
from .signals import Signals
from .sources import SourceWatch
from .upgrade import Checker, kept_state, replace_program
from .workers import Seen

TICK = 1.0
"""Seconds between two looks at the workers."""

LATE = 3.0
"""Seconds after the last look, above which all processes may have been stopped: no worker hangs then."""

RATE = 0.09
"""Share of its clients that a retired worker closes a second, once it closes them: after eleven seconds all are gone.
In no second more than a tenth of all clients connect again, also where several workers close one more in it."""

HURRY = 5.0
"""Seconds that clients have also in a worker whose clients are to leave for the third reload after it: several reloads
within a moment must not cut those that have just come."""

Reread = Callable[[], Settings]


def serve_with(settings: Settings, reread: Reread | None = None) -> int:
    """Run a service until it is told to stop.

    :param reread: reads the settings again, for a reload, or raises a ValueError; None: they stay as they are.
    :returns: the exit code: 0, or 3 if the service did not start, which one line on stderr explains.
    """
    log_to_stderr()
    state = kept_state()
    with contextlib.ExitStack() as until_end:
        try:
            listeners = until_end.enter_context(
                ServiceListeners(settings.binds, state and state["listeners"], settings.metrics)
            )
            raise_limit(settings.options.get("max_connections"))
            settings = _settle(settings, state and state["settings"], until_end)
        except (ListenError, OptionError) as error:
            print(f"iostreamsrv: {error}", file=sys.stderr, flush=True)
            return START_FAILED
        selector = until_end.enter_context(selectors.DefaultSelector())
        master = Master(settings, lambda: _reread(settings, reread), listeners, selector, state)
        until_end.callback(master.close)
        with Signals(selector, master.on_signal) as signals:
            return master.run(signals)


def _settle(settings: Settings, before: Mapping[str, Any] | None, until_end: contextlib.ExitStack) -> Settings:
    """Write the pid file, give up root's rights, watch the source files; return the settings that count from now on.

    :param before: for an upgrade: the settings until then. What fails is logged then: the service must go on.
    :raises OptionError: at a start, one of these fails.
    """
    try:
        until_end.enter_context(PidFile(settings.pid_file))
    except OptionError as error:
        if before is None:
            raise
        general.error("%s; the one of before stays", error)
        settings = replace(settings, pid_file=before["pid_file"])
        until_end.push(PidFile(settings.pid_file))  # removes it
    else:
        if before is not None and before["pid_file"] != settings.pid_file:
            PidFile(before["pid_file"]).remove()
    with _optional(before is not None):
        drop_rights(settings)
    with _optional(before is not None):
        if settings.reload:
            until_end.enter_context(SourceWatch())
    return settings


@contextlib.contextmanager
def _optional(upgraded: bool) -> Iterator[None]:
    """Log an error, if this is an upgrade."""
    try:
        yield
    except OptionError as error:
        if not upgraded:
            raise
        general.error("%s; the service goes on without it", error)


def _reread(settings: Settings, reread: Reread | None) -> Settings:
    """The settings for a reload. The pid file stays: the next upgrade needs to know it. So do the sockets."""
    if reread is None:
        return settings
    return replace(reread(), pid_file=settings.pid_file, control=settings.control, metrics=settings.metrics)


class Master:
    """See the module.

    :param selector: watches all that it waits for.
    :param state: what the supervisor before this one has left, which it replaces by an upgrade; None at a start.
    """

    def __init__(
        self,
        settings: Settings,
        reread: Reread,
        listeners: ServiceListeners,
        selector: selectors.BaseSelector,
        state: dict[str, Any] | None,
    ) -> None:
        self._settings = settings
        self._reread = reread
        self._listeners = listeners
        self._selector = selector
        self._plan = Plan(settings)
        self._notifier = Notifier()
        self._children = Children(selector, _scoreboard(None if state is None else state["scoreboard"]), self._on_word)
        self._control = Control(selector, settings, self._plan, self._children, self.on_signal)
        self._checker: Checker | None = None
        self._exit_code: int | None = None
        self._to_do: deque[Action] = deque()
        self._looked_at = self._lived_at = 0.0
        self._status = ""
        self._signals: Signals
        self._upgraded = state is not None
        self._left_over: list[str] = [] if state is None else state.get("signals", [])
        if state is not None:
            self._plan.adopt(state["plan"])
            self._children.adopt(state["children"])
        self._control.listen()

    # ---- running

    def run(self, signals: Signals) -> int:
        """Run until all workers have ended after a stop; return the exit code."""
        self._signals = signals
        for address in self._listeners.addresses:
            general.info("listening on %s, process %d", show(address), os.getpid())
        for address in self._listeners.metrics_addresses:
            general.info("metrics at http://%s/metrics", show(address))
        now = real_time()
        self._do(self._plan.on_upgraded(now) if self._upgraded else self._plan.on_start(now))
        self._reap()  # those that ended while this program was replaced
        for name in self._left_over:
            self.on_signal(name)
        while self._exit_code is None:
            for key, _ in self._selector.select(self._patience()):
                key.data()
            self._on_time()
        return self._exit_code

    def _patience(self) -> float:
        times = [self._looked_at + TICK, self._plan.next_time()]
        if self._notifier.watchdog is not None:
            times.append(self._lived_at + self._notifier.watchdog)
        return max(0.0, min(each for each in times if each is not None) - real_time())

    def _on_time(self) -> None:
        now = real_time()
        seen: dict[int, Seen] = {}
        if now - self._looked_at >= TICK:
            late, self._looked_at = now - self._looked_at > LATE and self._looked_at > 0, now
            seen = {} if late else self._look()
        if self._notifier.watchdog is not None and now - self._lived_at >= self._notifier.watchdog:
            self._lived_at = now
            self._notifier.alive()
        self._do(self._plan.on_time(now, seen))

    def _look(self) -> dict[int, Seen]:
        if self._checker is not None and self._checker.is_late(self._settings.ready_timeout):
            self._checker.kill()
        self._control.on_time()
        now, children = real_time_ns(), self._children
        return {
            number: Seen(children.silent(number, now), children.resident(number), children.accepted(number))
            for number in children.numbers
        }

    def close(self) -> None:
        """End what is not a worker."""
        self._control.close()
        if self._checker is not None:
            self._checker.kill()

    # ---- events

    def on_signal(self, name: str) -> None:
        """Act on a signal: "TERM"."""
        if name == "CHLD":
            self._reap()
        elif name == "USR1":
            self._children.tell_all("reopen")
        elif name != "HUP" or self._read_settings():
            self._do(self._plan.on_signal(name, real_time()))

    def _read_settings(self) -> bool:
        """Read the settings again, for a reload; return whether they are right."""
        try:
            self._settings = self._reread()
        except ValueError as error:  # as OptionError is, and what is wrong in a file
            self._do(self._plan.on_refused(str(error)))
            return False
        self._plan.set_settings(self._settings)
        self._control.settings = self._settings
        return True

    def _on_word(self, number: int, message: Message) -> None:
        if message["type"] == "ready":
            self._do(self._plan.on_ready(number, message["drain_timeout"], real_time()))
        elif message["type"] == "leaving":
            self._do(self._plan.on_leaving(number, real_time()))
        elif message["type"] == "failed":
            self._do(self._plan.on_failed(number, message["why"]))

    def _reap(self) -> None:
        """Note which processes have ended. The first process of a container has children that others have left, too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if self._checker is not None and pid == self._checker.pid:
                checker, self._checker = self._checker, None
                problem = checker.outcome(code)
                self._control.on_checked(problem)
                self._do(self._plan.on_checked(problem, real_time()))
            elif (number := self._children.reaped(pid, code)) is not None:
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                self._do(self._plan.on_exit(number, how, real_time()))

    # ---- actions

    def _do(self, actions: list[Action]) -> None:
        """Carry out actions, after those that are still to be carried out: one may cause an event."""
        self._to_do += actions
        if len(self._to_do) > len(actions):
            return
        while self._to_do:
            action = self._to_do[0]
            self._carry_out(action)
            self._to_do.popleft()
        self._tell_status()

    def _carry_out(self, action: Action) -> None:
        match action:
            case Say(level, text):
                general.log(level, "%s", text)
                self._control.on_said(level, text)
            case Spawn():
                self._spawn(action)
            case Tell():
                self._tell(action)
            case Kill(number):
                self._children.signal(number, signal.SIGKILL)
            case Announce(state, problem):
                self._announce(state)
                self._control.on_announced(state, problem)
            case Check():
                self._check()
            case Replace():
                self._replace()
            case Exit(code):
                self._exit_code = code

    def _spawn(self, action: Spawn) -> None:
        job = {
            "settings": self._settings.to_json(),
            "listeners": self._listeners.for_worker(),
            "generation": action.generation,
        }
        try:
            self._children.start(action.number, job, self._settings.target, self._listeners.descriptors)
        except OSError as error:
            self._do(self._plan.on_exit(action.number, f"it cannot be started: {error}", real_time()))

    def _tell(self, action: Tell) -> None:
        if action.word == "retire":
            # Who develops wants to see the new code at once.
            timeout, rate = (0, 1) if self._settings.reload else (self._settings.retire_timeout, RATE)
            self._children.tell(action.number, "retire", timeout=timeout, rate=rate)
            if action.successor is not None and self._children.hands_over(action.number):
                self._children.introduce(action.number, action.successor)
        elif action.word == "hurry":
            self._children.tell(action.number, "retire", timeout=HURRY, rate=RATE)
        else:
            self._children.tell(action.number, action.word)

    def _announce(self, state: str) -> None:
        status = self._status = self._plan.status
        if state == "ready":
            self._notifier.ready(status)
        elif state == "reloading":
            self._notifier.reloading(status)
        else:
            self._notifier.stopping(status)
            self._listeners.close()  # the workers accept what is queued; further clients are refused

    def _tell_status(self) -> None:
        if self._plan.status != self._status:
            self._status = self._plan.status
            self._notifier.status(self._status)

    def _check(self) -> None:
        try:
            self._checker = Checker()
        except OSError as error:
            self._control.on_checked(str(error))
            self._do(self._plan.on_checked(str(error), real_time()))

    def _replace(self) -> None:
        state = {
            "settings": self._settings.to_json(),
            "plan": self._plan.to_json(),
            "children": self._children.to_json(),
            "listeners": self._listeners.to_json(),
            "scoreboard": self._children.scoreboard_fd,
        }
        self._control.close_listener()
        try:
            with self._signals.held_back() as state["signals"]:
                replace_program(state, [*self._listeners.descriptors, *self._children.descriptors])
        except OSError as error:
            self._control.on_not_replaced(str(error))
            self._do(self._plan.on_not_replaced(str(error), real_time()))


def _scoreboard(fd: int | None) -> Scoreboard:
    """The scoreboard of the supervisor before this one, or a new one. If the two have different layouts, the counters
    begin at 0, and a retired worker that hangs is not noticed."""
    if fd is not None:
        try:
            scoreboard = Scoreboard.open(fd)
            scoreboard.recover()
            return scoreboard
        except ForeignMemoryError as error:
            general.warning("the counters of the service begin at 0: %s", error)
            os.close(fd)
    return Scoreboard.create(ROWS)
