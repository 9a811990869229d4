"""A process ends when the one that watches over it is gone."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.programs import PATIENCE, printed, program

CHILD = """
import os, signal, sys, threading, time
from iostreamsrv.runtime.lifeline import watch
{prelude}
reading, writing = os.pipe()
child = os.fork()
if child:
    os.close(reading)
    print(child, flush=True)
    time.sleep(60)
    os._exit(0)
os.close(writing)
watch(reading, lambda: {patience})
try:
    {body}
except SystemExit:
    print("'ended by itself'", flush=True)
    os._exit(0)
"""

ON_TERM = "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())"


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def children() -> Iterator[list[int]]:
    pids: list[int] = []
    yield pids
    for pid in pids:
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)


def seconds_until_gone(pid: int) -> float:
    start = time.monotonic()
    while not gone(pid):
        assert time.monotonic() < start + PATIENCE
        time.sleep(0.01)
    return time.monotonic() - start


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_child_gets_sigterm_when_its_parent_is_gone(how: signal.Signals, children: list[int]) -> None:
    with program(CHILD.format(prelude=ON_TERM, body="while True: time.sleep(1)", patience="60")) as parent:
        children.append(child := printed(parent))
        time.sleep(0.3)
        assert not gone(child)
        parent.send_signal(how)
        assert printed(parent) == "ended by itself"
        assert seconds_until_gone(child) < 1


@pytest.mark.parametrize(
    "prelude, body",
    [
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "while True: time.sleep(1)"),
        ("signal.signal(signal.SIGTERM, lambda number, frame: None)", "while True: pass"),
    ],
    ids=["ignores", "computes"],
)
def test_a_child_that_does_not_heed_sigterm_is_killed(prelude: str, body: str, children: list[int]) -> None:
    with program(CHILD.format(prelude=prelude, body=body, patience="0.5")) as parent:
        children.append(child := printed(parent))
        time.sleep(0.2)
        parent.kill()
        assert 0.4 < seconds_until_gone(child) < PATIENCE / 2
