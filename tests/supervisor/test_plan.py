"""The plan of a supervisor: events in, actions out."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from iostreamsrv.supervisor.actions import Action, Announce, Check, Exit, Kill, Replace, Say, Spawn, Tell
from iostreamsrv.supervisor.plan import Plan
from iostreamsrv.supervisor.settings import START_FAILED, Settings
from iostreamsrv.supervisor.workers import BACKOFF_LONGEST, Seen


class Service:
    """A plan, and what its actions would have made of the world: which workers there are, and what each was told."""

    def __init__(self, **keywords: Any) -> None:
        self.settings = Settings(target="chat:Chat", jitter=0, **keywords)
        self.plan = Plan(self.settings)
        self.now = 100.0
        self.processes: dict[int, list[str]] = {}
        self.said: list[str] = []
        self.announced: list[str] = []
        self.problem = ""  # of the last announcement
        self.checks = self.replaced = 0
        self.exit_code: int | None = None

    def start(self) -> "Service":
        """Start, and have all workers become ready."""
        self.do(self.plan.on_start(self.now))
        for number in list(self.processes):
            self.ready(number)
        return self

    def do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            assert self.exit_code is None, "it goes on after its end"
            match action:
                case Spawn(number):
                    assert number not in self.processes
                    self.processes[number] = []
                case Tell(number, word):
                    self.processes[number].append(word)
                case Kill(number):
                    self.processes[number].append("kill")
                case Say(_, text):
                    self.said.append(text)
                case Announce(state, problem):
                    self.announced.append(state)
                    self.problem = problem
                case Check():
                    self.checks += 1
                case Replace():
                    self.replaced += 1
                case Exit(code):
                    assert not self.processes
                    self.exit_code = code

    def ready(self, number: int, drain_timeout: float | None = 15.0) -> None:
        self.do(self.plan.on_ready(number, drain_timeout, self.now))

    def exits(self, number: int, how: str = "exit code 1") -> None:
        del self.processes[number]
        self.do(self.plan.on_exit(number, how, self.now))

    def signal(self, name: str) -> None:
        self.do(self.plan.on_signal(name, self.now))

    def pass_time(self, seconds: float, **seen: Seen) -> None:
        """Time passes, at once; ``w1=`` is what is seen of worker 1."""
        self.now += seconds
        self.do(self.plan.on_time(self.now, {int(name[1:]): each for name, each in seen.items()}))

    def kill_killed(self) -> None:
        for number in [number for number, words in self.processes.items() if "kill" in words]:
            self.exits(number, "killed by SIGKILL")


# ---- start


def test_it_is_ready_when_each_worker_is() -> None:
    service = Service(workers=2)
    service.do(service.plan.on_start(service.now))
    service.ready(1)
    assert service.announced == []
    service.ready(2)
    assert service.announced == ["ready"]


def test_a_worker_that_does_not_start_ends_the_first_start() -> None:
    service = Service(workers=2)
    service.do(service.plan.on_start(service.now))
    service.ready(1)
    service.do(service.plan.on_failed(2, "no module named chat"))
    service.exits(2)
    assert service.processes == {1: ["end"]}
    assert "no module named chat" in service.said[0]
    service.exits(1)
    assert service.exit_code == START_FAILED


def test_a_worker_that_is_not_ready_in_time_ends_the_first_start() -> None:
    service = Service(ready_timeout=5)
    service.do(service.plan.on_start(service.now))
    service.pass_time(4.9)
    assert service.processes == {1: []}
    service.pass_time(0.1)
    service.kill_killed()
    assert service.exit_code == START_FAILED
    assert "not ready within 5 s" in service.said[-2]


# ---- crashes


def test_a_crashed_worker_is_replaced_at_once() -> None:
    service = Service(workers=2).start()
    service.pass_time(1)
    service.exits(2, "killed by SIGKILL")
    assert list(service.processes) == [1, 3]
    assert "killed by SIGKILL" in service.said[-1]


def test_a_crash_loop_is_slowed_down_to_thirty_seconds() -> None:
    service = Service().start()
    service.exits(1)  # as soon as it was ready
    delays = []
    for _ in range(10):
        begun = service.now
        while not service.processes:
            due = service.plan.next_time()
            assert due is not None
            service.pass_time(due - service.now)
        delays.append(service.now - begun)
        (number,) = service.processes
        service.exits(number)
    assert delays == sorted(delays)
    assert delays[:3] == [0.5, 1, 2]
    assert delays[-1] == BACKOFF_LONGEST


def test_crashes_are_forgotten_when_a_worker_has_served_for_a_while() -> None:
    service = Service().start()
    service.exits(1)
    service.pass_time(0.5)
    service.ready(2)
    service.pass_time(10, w2=Seen(0, 0, 0))
    service.exits(2)
    assert list(service.processes) == [3]


def test_a_worker_that_hangs_is_killed_and_replaced() -> None:
    service = Service(hang_timeout=5).start()
    service.pass_time(1, w1=Seen(5, 0, 0))
    assert service.processes == {1: []}
    service.pass_time(1, w1=Seen(5.1, 0, 0))
    service.pass_time(1, w1=Seen(6.1, 0, 0))
    assert service.processes == {1: ["kill"]}
    service.kill_killed()
    assert list(service.processes) == [2]


def test_a_worker_that_stops_by_itself_is_replaced_while_its_clients_finish() -> None:
    service = Service().start()
    service.pass_time(1)
    service.do(service.plan.on_leaving(1, service.now))
    assert service.processes == {1: [], 2: []}
    service.ready(2)
    service.exits(1)
    assert service.processes == {2: []}


@pytest.mark.parametrize(
    ("keywords", "seen"),
    [
        ({"worker_lifetime": 60}, Seen(0, 0, 0)),
        ({"worker_max_accepted": 1000}, Seen(0, 0, 1000)),
        ({"worker_max_rss": 1 << 20}, Seen(0, 1 << 21, 0)),
    ],
)
def test_a_worker_that_has_served_enough_is_replaced_without_a_gap(keywords: dict[str, Any], seen: Seen) -> None:
    service = Service(**keywords).start()
    service.pass_time(59, w1=Seen(0, 0, 999))
    assert list(service.processes) == [1]
    service.pass_time(1, w1=seen)
    assert service.processes == {1: [], 2: []}
    service.ready(2)
    assert service.processes == {1: ["retire"], 2: []}


def test_workers_of_one_age_are_replaced_one_after_the_other() -> None:
    service = Service(workers=3, worker_lifetime=60).start()
    seen = {f"w{number}": Seen(0, 0, 0) for number in (1, 2, 3)}
    service.pass_time(60, **seen)
    service.pass_time(1, **seen)
    assert len(service.processes) == 4
    service.ready(4)
    assert len(service.processes) == 5


# ---- reload


def test_a_reload_replaces_one_worker_after_the_other_each_when_the_new_one_is_ready() -> None:
    service = Service(workers=2).start()
    service.signal("HUP")
    assert service.processes == {1: [], 2: [], 3: []}
    service.ready(3)
    assert service.processes == {1: ["retire"], 2: [], 3: [], 4: []}
    service.ready(4)
    assert service.processes == {1: ["retire"], 2: ["retire"], 3: [], 4: []}
    assert service.announced == ["ready", "reloading", "ready"]
    assert service.problem == ""


def test_if_the_new_code_does_not_start_the_old_workers_go_on() -> None:
    service = Service(workers=2).start()
    service.signal("HUP")
    service.exits(3)
    service.pass_time(100)
    assert service.processes == {1: [], 2: []}
    assert "the reload has failed" in service.said[-1]
    assert service.announced == ["ready", "reloading", "ready"]
    assert service.problem == "worker 3 has ended (exit code 1)"


def test_a_reload_ends_a_crash_loop() -> None:
    service = Service().start()
    service.exits(1)
    service.signal("HUP")
    assert list(service.processes) == [2]
    service.ready(2)
    assert service.plan.next_time() is None


def test_a_reload_during_a_reload_is_remembered_once() -> None:
    service = Service().start()
    for _ in range(3):
        service.signal("HUP")
    service.ready(2)
    assert list(service.processes) == [1, 2, 3]
    service.ready(3)
    assert list(service.processes) == [1, 2, 3]


def test_the_third_retiring_generation_hurries_the_oldest() -> None:
    service = Service().start()
    for number in (2, 3):
        service.signal("HUP")
        service.ready(number)
    assert service.processes == {1: ["retire"], 2: ["retire"], 3: []}
    service.signal("HUP")
    service.ready(4)
    assert service.processes == {1: ["retire", "hurry"], 2: ["retire"], 3: ["retire"], 4: []}
    assert any("its clients are being closed" in line for line in service.said)


# ---- upgrade


def test_an_upgrade_checks_first_then_replaces_the_supervisor_then_its_workers() -> None:
    service = Service(workers=2).start()
    service.signal("USR2")
    assert (service.checks, service.replaced) == (1, 0)
    service.do(service.plan.on_checked("", service.now))
    assert service.replaced == 1
    after = Service(workers=2)
    after.processes = service.processes
    after.plan.adopt(service.plan.to_json())
    after.do(after.plan.on_upgraded(service.now))
    assert list(after.processes) == [1, 2, 3]
    after.ready(3)
    after.ready(4)
    assert after.processes == {1: ["retire"], 2: ["retire"], 3: [], 4: []}


def test_an_upgrade_that_is_not_possible_changes_nothing() -> None:
    service = Service().start()
    service.signal("USR2")
    service.do(service.plan.on_checked("no module named chat", service.now))
    assert (service.replaced, service.processes) == (0, {1: []})
    assert "no module named chat" in service.said[-1]
    service.signal("USR2")
    service.do(service.plan.on_checked("", service.now))
    service.do(service.plan.on_not_replaced("no memory", service.now))
    assert service.processes == {1: []}
    service.signal("HUP")
    assert list(service.processes) == [1, 2]


def test_an_upgrade_during_a_reload_follows_it() -> None:
    service = Service().start()
    service.signal("HUP")
    service.signal("USR2")
    assert service.checks == 0
    service.ready(2)
    assert service.checks == 1


# ---- more, fewer


def test_ttin_and_ttou_change_the_number_of_workers() -> None:
    service = Service().start()
    service.signal("TTIN")
    service.ready(2)
    assert service.processes == {1: [], 2: []}
    service.signal("TTOU")
    assert service.processes == {1: [], 2: ["retire"]}
    service.signal("TTOU")
    assert service.processes == {1: [], 2: ["retire"]}
    assert "the last worker" in service.said[-1]


def test_there_are_never_more_workers_than_there_may_be() -> None:
    service = Service().start()
    for _ in range(200):
        service.signal("TTIN")
    assert len(service.processes) == 128
    assert service.said[-1] == "SIGTTIN is ignored: there are 128 workers, and may be no more"
    service.signal("TTOU")
    service.signal("TTIN")
    assert "one worker more: 128" in service.said[-1]


# ---- stop


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_stop_drains_then_ends_at_once_then_kills(name: str) -> None:
    service = Service().start()
    service.signal(name)
    assert service.processes == {1: ["drain"]}
    service.signal(name)
    assert service.processes == {1: ["drain", "end"]}
    service.signal(name)
    assert service.processes == {1: ["drain", "end", "kill"]}
    service.kill_killed()
    assert service.exit_code == 0


def test_quit_ends_at_once() -> None:
    service = Service().start()
    service.signal("QUIT")
    assert service.processes == {1: ["end"]}
    service.pass_time(1)
    assert service.processes == {1: ["end", "kill"]}


def test_a_worker_that_does_not_drain_in_time_is_killed() -> None:
    service = Service(kill_timeout=2)
    service.do(service.plan.on_start(service.now))
    service.ready(1, drain_timeout=15)
    service.signal("TERM")
    service.pass_time(16.9)
    assert service.processes == {1: ["drain"]}
    service.pass_time(0.1)
    assert service.processes == {1: ["drain", "kill"]}


def test_a_stop_during_a_reload_and_during_the_start_leaves_nothing() -> None:
    service = Service().start()
    service.signal("HUP")
    service.signal("TERM")
    assert service.processes == {1: ["drain"], 2: ["kill"]}
    service.kill_killed()
    service.exits(1)
    assert service.exit_code == 0
    starting = Service(workers=2)
    starting.do(starting.plan.on_start(starting.now))
    starting.signal("TERM")
    starting.kill_killed()
    assert starting.exit_code == 0


def test_a_stop_without_a_worker_ends_at_once() -> None:
    service = Service().start()
    service.exits(1)
    service.signal("TERM")
    assert service.exit_code == 0


def test_signals_for_workers_are_ignored_in_a_stop() -> None:
    service = Service().start()
    service.signal("TERM")
    for name in ("HUP", "USR2", "TTIN", "TTOU"):
        service.signal(name)
    assert service.processes == {1: ["drain"]}
    assert "SIGTTOU is ignored" in service.said[-1]


def test_quit_after_term_ends_at_once_and_does_not_kill_yet() -> None:
    service = Service().start()
    service.signal("TERM")
    service.signal("QUIT")
    assert service.processes == {1: ["drain", "end"]}


def test_ttou_removes_a_slot_that_serves_nobody_first() -> None:
    service = Service(workers=2).start()
    service.exits(2)  # a crash at once: the slot waits
    service.signal("TTOU")
    assert service.processes == {1: []}
    assert service.plan.next_time() is None


def test_a_slot_that_never_starts_is_slowed_down_beside_one_that_serves() -> None:
    service = Service(workers=2).start()
    service.exits(2)
    delays = []
    for _ in range(9):
        begun = service.now
        while len(service.processes) < 2:
            service.pass_time(0.5, w1=Seen(0, 0, 0))
        delays.append(service.now - begun)
        service.exits(max(service.processes))
    assert delays[-1] >= BACKOFF_LONGEST


def test_an_empty_slot_is_tried_again_after_an_upgrade() -> None:
    service = Service(workers=2).start()
    service.exits(2)
    after = Service(workers=2)
    after.processes = service.processes
    after.plan.adopt(service.plan.to_json())
    after.do(after.plan.on_upgraded(service.now))
    after.exits(max(after.processes))  # the new code does not start
    after.pass_time(1)
    assert len(after.processes) == 2


def test_a_refused_reload_is_announced_as_one_that_is_over() -> None:
    service = Service().start()
    service.do(service.plan.on_refused("iostreamsrv.toml:3: what?"))
    assert service.announced == ["ready", "reloading", "ready"]
    assert service.problem == "iostreamsrv.toml:3: what?"
    assert "what?" in service.said[-1]
    service.signal("TERM")
    service.do(service.plan.on_refused("what?"))
    assert service.announced[-1] == "stopping"


# ---- whatever comes


class AnyOrder(RuleBasedStateMachine):
    """Any events in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.service = Service(workers=2, worker_lifetime=30, hang_timeout=10)
        self.service.do(self.service.plan.on_start(self.service.now))
        self.checking = 0
        self.stopped = False

    def a_process(self, data: strategies.DataObject) -> int:
        return data.draw(strategies.sampled_from(sorted(self.service.processes)))

    @precondition(lambda self: self.service.processes)
    @rule(data=strategies.data())
    def becomes_ready(self, data: strategies.DataObject) -> None:
        self.service.ready(self.a_process(data))

    @precondition(lambda self: self.service.processes)
    @rule(data=strategies.data(), how=strategies.sampled_from(["exit code 0", "exit code 1", "killed by SIGKILL"]))
    def ends(self, data: strategies.DataObject, how: str) -> None:
        self.service.exits(self.a_process(data), how)

    @precondition(lambda self: self.service.processes)
    @rule(data=strategies.data())
    def leaves(self, data: strategies.DataObject) -> None:
        self.service.do(self.service.plan.on_leaving(self.a_process(data), self.service.now))

    @precondition(lambda self: self.service.exit_code is None)
    @rule(name=strategies.sampled_from(["HUP", "HUP", "USR2", "TTIN", "TTOU"]))
    def signal(self, name: str) -> None:
        self.service.signal(name)

    @precondition(lambda self: self.service.exit_code is None and self.service.checks > self.checking)
    @rule(problem=strategies.sampled_from(["", "it does not work"]))
    def checked(self, problem: str) -> None:
        self.checking += 1
        before = self.service.replaced
        self.service.do(self.service.plan.on_checked(problem, self.service.now))
        if self.service.replaced > before:
            self.service.do(self.service.plan.on_not_replaced("no memory", self.service.now))

    @precondition(lambda self: self.service.exit_code is None)
    @rule(seconds=strategies.sampled_from([0.1, 1.0, 40.0]), silent=strategies.sampled_from([0.0, 11.0]))
    def time(self, seconds: float, silent: float) -> None:
        seen = {f"w{number}": Seen(silent, 0, 0) for number in self.service.processes}
        self.service.pass_time(seconds, **seen)

    @precondition(lambda self: self.service.exit_code is None)
    @rule(name=strategies.sampled_from(["TERM", "QUIT"]))
    def stop(self, name: str) -> None:
        self.service.signal(name)
        self.stopped = True

    @precondition(lambda self: self.service.exit_code is not None)
    @rule()
    def is_over(self) -> None:
        assert not self.service.processes

    @invariant()
    def there_is_always_somebody_to_come(self) -> None:
        """It does not sit there without a worker, and without a time to start one."""
        service = self.service
        if service.exit_code is None and not self.stopped:
            assert service.processes or service.plan.next_time() is not None

    def teardown(self) -> None:
        """From wherever it is, it can be stopped."""
        service = self.service
        for _ in range(3):
            if service.exit_code is None:
                service.signal("TERM")
                service.kill_killed()
        assert service.exit_code in (0, START_FAILED)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis_settings(max_examples=100, stateful_step_count=40, deadline=None)
