"""Ends, wanted and not: of a worker, and of the first process."""

import contextlib
import math
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Container

from tests.faults.probes import Figures, Threshold
from tests.support.waiting import waited

from . import processes
from .clients import Clients, Ended
from .rows import Mutation, Row, Trial
from .services import GTHREAD, GUNICORN, KINDS, OURS, PATIENCE, UVICORN, Service

MOMENT = 0.5
"""Seconds around the end of a worker in which a client that had no answer yet may have been its own."""


class Watch(threading.Thread):
    """Looks at the counters of a service all the time.

    :ivar fell: how often one of them was less than before.
    """

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self._service = service
        self._done = threading.Event()
        self.fell = 0
        self.looks = 0

    def run(self) -> None:
        with self._service.scoreboard() as scoreboard:
            before = scoreboard.totals()
            while not self._done.wait(0.002):
                now = scoreboard.totals()
                self.fell += any(one < other for one, other in zip(now[1:], before[1:], strict=True))
                self.looks += 1
                before = now

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()


def measure_kill(trial: Trial) -> Figures:
    """Kill a worker, again and again, while clients talk."""
    times = trial.size(2, 10)
    killed: dict[int, float] = {}
    known: list[set[int]] = []  # the workers at each kill
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(trial.service()).started()
        watch = stack.enter_context(Watch(service)) if trial.is_ours else None
        clients = stack.enter_context(Clients(service, talks=4, pause=0.15))
        time.sleep(1.0)
        for _ in range(times):
            known.append(service.servers())
            pid = random.choice(sorted(known[-1]))
            killed[pid] = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            time.sleep(trial.size(3, 2))
        outcome = clients.outcome()
        servers = service.servers()
    seconds = [replaced_after(outcome.clients, *each) for each in zip(killed.values(), known, strict=True)]
    others = [each for each in outcome.failed if not is_own(each, killed)]
    figures = {
        **outcome.figures(),
        "lost, of others": len(others),
        "replaced after, s": max(seconds),
        "workers less": service.workers - len(servers),
    }
    if watch is not None:
        figures |= {"counters fell": watch.fell, "counted": watch.looks > 0}
    return figures


def replaced_after(clients: list[Ended], when: float, known: Container[int]) -> float:
    """Seconds from ``when`` until a process answers that was not there before."""
    first: dict[int, float] = {}
    for each in clients:
        if each.pids:
            answered = each.due + each.latencies[0]
            first[each.pids[0]] = min(first.get(each.pids[0], math.inf), answered)
    return min((at - when for pid, at in first.items() if at > when and pid not in known), default=math.inf)


def is_own(client: Ended, dead: dict[int, float]) -> bool:
    """Whether a client that failed was one of those that died: it had its answers from there, or none yet."""
    if client.pids:
        return client.pids[0] in dead
    return any(-0.05 <= client.ended - when <= MOMENT for when in dead.values())


HANG = 2
"""Seconds after which a worker that shows no life is to be replaced."""


def measure_stop(trial: Trial) -> Figures:
    """Stop a worker, and wait for another one in its place."""
    options = {
        UVICORN: ("--timeout-worker-healthcheck", str(HANG)),
        GTHREAD: ("--timeout", str(HANG)),
        GUNICORN: ("--timeout", str(HANG)),
    }.get(trial.kind, ("--hang-timeout", str(HANG)))
    with trial.service(None, *options).started() as service, Clients(service) as clients:
        time.sleep(1.0)
        before = service.servers()
        pid, began = random.choice(sorted(before)), time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        waited(lambda: pid not in service.servers(), trial.size(15, 30))
        dead_at = time.monotonic()
        gone = pid not in service.servers()
        waited(lambda: len(service.servers()) == service.workers, PATIENCE)
        time.sleep(1.5)
        outcome = clients.outcome()
    others = [each for each in outcome.failed if not is_own(each, {pid: dead_at})]
    return {
        **outcome.figures(),
        "lost, of others": len(others) if gone else len(outcome.failed),
        "replaced after, s": replaced_after(outcome.clients, began, before) if gone else math.inf,
    }


DRAIN = 2
"""Seconds for a shutdown, of all services."""

WITHIN = DRAIN + 1


def measure_end(trial: Trial, case: str) -> Figures:
    """End a service while a client is in the middle of a question."""
    options = {
        UVICORN: ("--timeout-graceful-shutdown", str(DRAIN)),
        GTHREAD: ("--graceful-timeout", str(DRAIN)),
        GUNICORN: ("--graceful-timeout", str(DRAIN)),
    }.get(trial.kind, ("--drain-timeout", str(DRAIN)))
    with trial.service(None, *options) as service:
        if case == "start":
            assert waited(lambda: service.servers() or service.left() == [], PATIENCE), service.said()
        else:
            service.started()
        with contextlib.ExitStack() as stack:
            if case != "start":
                client = stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
                client.sendall(b"GET /")
                stack.enter_context(Clients(service, clients=20, stay=True))
                time.sleep(0.5)
            began = time.monotonic()
            CASES[case](service)
            is_over = waited(lambda: not service.left(), 4 * WITHIN)
            seconds = time.monotonic() - began if is_over else math.inf
            exit_code, _ = service.ended(0.1)
            figures = {
                "seconds": seconds,
                "left": len(service.left()),
                "port taken": not processes.can_bind(service.port),
            }
    if case != "kill":
        figures["exit code"] = -999 if exit_code is None else exit_code
    return figures


def _kill(service: Service) -> None:
    service.signal("KILL")


def _end(service: Service) -> None:
    service.signal("TERM")


def _end_in_reload(service: Service) -> None:
    service.signal("HUP")
    time.sleep(0.1)
    service.signal("TERM")


def _end_after_two_reloads(service: Service) -> None:
    service.signal("HUP")
    service.signal("HUP")
    time.sleep(0.5)
    service.signal("HUP")
    service.signal("TERM")


def _end_group(service: Service) -> None:
    os.killpg(service.pid, signal.SIGTERM)


CASES = {
    "kill": _kill,
    "rest": _end,
    "reload": _end_in_reload,
    "start": _end,
    "reloads": _end_after_two_reloads,
    "group": _end_group,
}

HAS_NO_LIFELINE = Mutation(
    "left",
    "supervisor/worker.py",
    '    lifeline.watch(job["lifeline"], patience.seconds)\n',
    "",
)
IS_NOT_TOLD = Mutation(
    "seconds", "supervisor/workers.py", '            self.actions.append(Tell(worker.number, "drain"))\n', ""
)
LEAVES_WHO_STARTS = Mutation(
    "seconds",
    "supervisor/workers.py",
    "        if worker.state is State.STARTING or urgency > 2:\n            self.kill(worker)\n",
    "        if worker.state is State.STARTING:\n            pass\n"
    "        elif urgency > 2:\n            self.kill(worker)\n",
)
HEEDS_SIGNALS_TWICE = Mutation(
    "exit code",
    "supervisor/master.py",
    "                self._exit_code = code\n",
    "                self._exit_code = code or 1\n",
)
DOES_NOT_LOOK = Mutation(
    "replaced after, s",
    "supervisor/workers.py",
    "        if limit is not None and seen.silent > limit:\n",
    "        if False:\n",
)
WAITS_LONG = Mutation("replaced after, s", "supervisor/workers.py", "        delay = 0.0\n", "        delay = 2.5\n")
FORGETS_THE_DEAD = Mutation(
    "counters fell",
    "supervisor/children.py",
    "        self.scoreboard.fold(child.row)\n",
    "        for cell in range(16):\n            self.scoreboard.row(child.row).cells[cell] = 0\n",
)

OF_ENDS = (
    Threshold("left", "=", 0),
    Threshold("port taken", "=", 0),
    Threshold("seconds", "≤", WITHIN, timed=True),
    Threshold("exit code", "=", 0),
)

ENDS = {
    "kill": ("kill of the first process", "SIGKILL to the first process.", HAS_NO_LIFELINE),
    "rest": ("TERM at rest", "SIGTERM to the first process.", IS_NOT_TOLD),
    "reload": ("TERM in a reload", "SIGTERM while a reload starts a worker.", IS_NOT_TOLD),
    "start": ("TERM at the start", "SIGTERM while the first worker starts.", LEAVES_WHO_STARTS),
    "reloads": ("TERM after several HUPs", "Two SIGHUP at once, one more in the reload, and SIGTERM.", IS_NOT_TOLD),
    "group": (
        "TERM to the group",
        "SIGTERM to all processes at once, as some terminals and tools do.",
        HEEDS_SIGNALS_TWICE,
    ),
}

ROWS: tuple[Row, ...] = (
    Row(
        "kill of a worker",
        "SIGKILL to a worker, 10 times, while each client asks four times within half a second.",
        measure_kill,
        (
            Threshold("lost, of others", "=", 0),
            Threshold("late", "=", 0, timed=True),
            Threshold("replaced after, s", "≤", 1, timed=True, quiet=True),
            Threshold("workers less", "=", 0),
            Threshold("counters fell", "=", 0),
            Threshold("counted", "=", 1),
        ),
        mutations=(WAITS_LONG, FORGETS_THE_DEAD),
    ),
    Row(
        "stop of a worker",
        f"SIGSTOP to a worker. It is to be replaced after {HANG} s without a sign of life.",
        measure_stop,
        (
            Threshold("lost, of others", "=", 0),
            Threshold("late", "=", 0, timed=True),
            Threshold("replaced after, s", "≤", HANG + 3, timed=True),
        ),
        mutations=(DOES_NOT_LOOK,),
    ),
    *(
        Row(
            name,
            f"{about} A client is in the middle of a question, and 20 are idle; there are {DRAIN} s for a shutdown.",
            measure_end,
            OF_ENDS,
            mutations=(mutation,),
            kinds=KINDS if case in ("kill", "rest", "group") else (OURS,),
            options={"case": case},
        )
        for case, (name, about, mutation) in ENDS.items()
    ),
)
