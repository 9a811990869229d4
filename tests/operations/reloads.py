"""Reload and upgrade: who comes, who is there, and code that does not start."""

import contextlib
import time

from tests.faults.probes import Figures, Threshold
from tests.support.waiting import waited

from . import processes
from .clients import Clients
from .rows import LOSSES, Mutation, Row, Trial
from .services import KINDS, OURS, OURS_HTTP, PATIENCE, Service

KEPT = (
    Threshold("not replaced", "=", 0),
    Threshold("descriptors more", "=", 0),
    Threshold("children more", "=", 0),
    Threshold("first process gone", "=", 0),
)

FAST = Threshold("p99, ms", "≤", 50, timed=True, quiet=True, full_only=True)


def measure(trial: Trial, signal: str = "HUP", silent: float = 0.0) -> Figures:
    """Replace the workers again and again, while clients come."""
    times = trial.size(2, 20)
    with trial.service().started() as service, Clients(service, silent=silent) as clients:
        time.sleep(0.5 + silent)
        descriptors, children = processes.descriptors(service.pid), len(service.servers())
        failed, began = 0, time.monotonic()
        for _ in range(times):
            if not service.replaced(signal):
                failed += 1
                break
        seconds = (time.monotonic() - began) / times
        outcome = clients.outcome()
        waited(lambda: (processes.descriptors(service.pid), len(service.servers())) <= (descriptors, children), 5.0)
        return {
            **outcome.figures(),
            "not replaced": failed,
            "seconds each": seconds,
            "descriptors more": processes.descriptors(service.pid) - descriptors,
            "children more": len(service.servers()) - children,
            "first process gone": service.ended(0)[0] is not None,
        }


def measure_idle(trial: Trial) -> Figures:
    """Reload while clients are there that say nothing."""
    count, reloads, timeout = trial.size(100, 200), trial.size(2, 5), trial.size(12, 40)
    options = ("--retire-timeout", str(timeout)) if trial.is_ours else ()
    with trial.service(None, *options).started() as service, Clients(service, clients=count, stay=True) as clients:
        time.sleep(1 + count / 200)
        began = time.monotonic()
        for _ in range(reloads):
            assert service.replaced(), service.said()
        in_time = time.monotonic() < began + timeout
        if trial.is_ours:  # each closes a tenth a second, after its timeout
            waited(lambda: len(service.servers()) == service.workers, timeout + 20)
        outcome = clients.outcome()
    assert in_time, "the reloads took longer than the time that clients have"
    figures: Figures = {
        "clients": len(outcome.clients),
        "closed before the timeout": sum(each < began + timeout for each in outcome.closed),
        "reset": sum(each.outcome == "reset" for each in outcome.clients),
    }
    if trial.is_ours:
        figures["left open"] = len(outcome.clients) - len(outcome.closed)
        figures["% closed within a second"] = 100 * most_within(outcome.closed, 1.0) / len(outcome.clients)
    return figures


def measure_generations(trial: Trial) -> Figures:
    """Reload three times; each generation of workers has clients that stay."""
    count = 100
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(trial.service()).started()
        loads = []
        for _ in range(3):
            loads.append(stack.enter_context(Clients(service, clients=count, stay=True)))
            time.sleep(1 + count / 200)
            assert service.replaced(), service.said()
        waited(lambda: len(service.servers()) == 3 * service.workers, 25)
        oldest, *younger = [each.outcome() for each in loads]
    return {
        "clients": 3 * count,
        "left open": count - len(oldest.closed),
        "reset": len(oldest.failed) - len(oldest.closed),
        "% closed within a second": 100 * most_within(oldest.closed, 1.0) / count,
        "younger closed": sum(len(each.failed) for each in younger),
    }


def most_within(times: list[float], seconds: float) -> int:
    """How many of these times are within so many seconds, at most."""
    return max((sum(begin <= each < begin + seconds for each in times) for begin in times), default=0)


GOOD = "from served import Echo as Target, hello\n"
BROKEN = {
    "raises": "raise RuntimeError('broken on purpose')\n",
    "has a bad option": "from served import Echo\ndef Target():\n    return Echo(read_timeout=-1)\nhello = Target\n",
    "hangs": "import time\ntime.sleep(1000)\n",
    "exits": "import os\nos._exit(7)\n",
}
GOOD_OF_PEERS = "from served_by_peers import asgi, wsgi\n"
READY = 3
"""Seconds that new code gets to start, where it hangs."""


def measure_broken(trial: Trial, code: str) -> Figures:
    """Reload while the code on the disk does not start; then start it."""
    good = GOOD if trial.is_ours else GOOD_OF_PEERS
    options = ("--ready-timeout", str(READY)) if trial.is_ours else ()

    def service(text: str) -> Service:
        without_bytecode = {"PYTHONDONTWRITEBYTECODE": "1"}  # both texts may be of the same second
        target = f"current:{_name_of(trial.kind)}"
        return trial.service(target, *options, files={"current.py": text}, environment=without_bytecode)

    with service(good) as running, Clients(running.started()) as clients:
        time.sleep(0.5)
        before, said = running.servers(), len(running.said())
        (running.folder / "current.py").write_text(BROKEN[code])
        if trial.is_ours:
            running.replaced()
        else:
            running.signal("HUP")
            time.sleep(READY + 3)
        time.sleep(0.5)
        gone, said_so = before - running.servers(), names_it(running.said()[said:].lower())
        figures = {**clients.outcome().figures(), "workers gone": len(gone), "said": said_so}
    if trial.is_ours:
        with service(BROKEN[code]) as first:
            exit_code, seconds = first.ended(PATIENCE)
            waited(lambda: not first.left(), 1.0)
            figures |= {"first start: exit code": -999 if exit_code is None else exit_code}
            figures |= {"first start: seconds": seconds, "first start: left": len(first.left())}
    return figures


def names_it(log: str) -> bool:
    """Whether a log says that something is wrong, in the words of any of the kinds."""
    return any(word in log for word in ("fail", "error", "exit", "timeout"))


def _name_of(kind: str) -> str:
    return {"iostreamsrv": "Target", "iostreamsrv, HTTP": "hello", "gunicorn, gthread": "wsgi"}.get(kind, "asgi")


SHUTS_THE_LISTENER_DOWN = Mutation(
    "lost",
    "supervisor/worker.py",
    "            self._end_by(self._core.retire(timeout, rate))\n",
    "            for each in self._core.listeners.sockets:\n"
    "                each.shutdown(2)\n"
    "            self._end_by(self._core.retire(timeout, rate))\n",
)

FORGETS_A_SOCKET = Mutation(
    "first process gone",
    "supervisor/upgrade.py",
    "            for each in kept:\n                os.set_inheritable(each, True)\n",
    "            for each in kept[1:]:\n                os.set_inheritable(each, True)\n",
)

CLOSES_ITS_CLIENTS = Mutation(
    "lost",
    "supervisor/worker.py",
    "self._end_by(self._core.retire(timeout, rate))",
    "self._end_by(self._close_all())",
)

CLOSES_ALL_AT_ONCE = Mutation("% closed within a second", "supervisor/master.py", "RATE = 0.09\n", "RATE = 1.0\n")

CANCELS_THE_RETIREMENT = Mutation(
    "% closed within a second",
    "supervisor/worker.py",
    "            self._repaced = asyncio.get_running_loop().create_task(self._core.retire(timeout, rate))\n",
    "            self._end_by(self._core.retire(timeout, rate))\n",
)

DOES_NOT_WAIT_FOR_READY = Mutation(
    "workers gone",
    "supervisor/plan.py",
    "            upcoming.current = free\n",
    "            upcoming.current = free\n"
    "            if free.serving is not None:\n"
    "                self._workers.retire(self._workers.all[free.serving])\n"
    "                free.serving = None\n",
)

ROWS: tuple[Row, ...] = (
    Row(
        "reload",
        "SIGHUP, 20 times, one after the other.",
        measure,
        (*LOSSES, FAST, *KEPT),
        mutations=(SHUTS_THE_LISTENER_DOWN,),
    ),
    Row(
        "upgrade",
        "SIGUSR2, 20 times: a new interpreter in the same process.",
        measure,
        (*LOSSES, FAST, *KEPT),
        mutations=(FORGETS_A_SOCKET,),
        kinds=(OURS, OURS_HTTP),
        options={"signal": "USR2"},
    ),
    Row(
        "reload, silent clients",
        "The same as reload, and each client says nothing for 2 s after it has connected.",
        measure,
        LOSSES,
        mutations=(CLOSES_ITS_CLIENTS,),
        options={"silent": 2.0},
    ),
    Row(
        "upgrade, silent clients",
        "The same as upgrade, with such clients.",
        measure,
        LOSSES,
        mutations=(CLOSES_ITS_CLIENTS,),
        kinds=(OURS, OURS_HTTP),
        options={"silent": 2.0, "signal": "USR2"},
    ),
    Row(
        "idle clients",
        "200 clients, who have had an answer and stay, over 5 reloads. iostreamsrv has `--retire-timeout 40`; gunicorn"
        " and uvicorn have their keep-alive timeout raised to 75 s.",
        measure_idle,
        (
            Threshold("closed before the timeout", "=", 0),
            Threshold("reset", "=", 0),
            Threshold("left open", "=", 0),
            Threshold("% closed within a second", "≤", 10, timed=True),
        ),
        mutations=(CLOSES_ITS_CLIENTS._replace(breaks="closed before the timeout"), CLOSES_ALL_AT_ONCE),
    ),
    Row(
        "three generations",
        "Three reloads, and before each 100 clients come and stay. Those of the oldest workers are closed for it.",
        measure_generations,
        (
            Threshold("left open", "=", 0),
            Threshold("reset", "=", 0),
            Threshold("% closed within a second", "≤", 10, timed=True),
            Threshold("younger closed", "=", 0),
        ),
        mutations=(CANCELS_THE_RETIREMENT,),
        kinds=(OURS, OURS_HTTP),
    ),
    *(
        Row(
            f"new code {code}",
            f"A reload while the code on the disk {about}. Then a first start of it.",
            measure_broken,
            (
                *LOSSES,
                Threshold("workers gone", "=", 0),
                Threshold("said", "=", 1),
                Threshold("first start: exit code", "=", 3),
                Threshold("first start: seconds", "≤", 5, timed=True),
                Threshold("first start: left", "=", 0),
            ),
            mutations=(DOES_NOT_WAIT_FOR_READY,),
            kinds=(OURS,) if code == "has a bad option" else KINDS,
            options={"code": code},
        )
        for code, about in (
            ("raises", "raises an exception at its import"),
            ("has a bad option", "gives the server an option that it does not take"),
            ("hangs", f"does not come to an end of its import; iostreamsrv has `--ready-timeout {READY}`"),
            ("exits", "ends the process at its import"),
        )
    ),
)
