"""What the service manager is told. The socket is the test's own: no service manager runs here."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from iostreamsrv.supervisor.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        yield manager


def told(manager: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in manager.recv(4096).decode().split("\n"))


def test_each_state_has_its_words(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready("2 of 2 workers")
    assert told(manager) == {"READY": "1", "STATUS": "2 of 2 workers", "MAINPID": str(os.getpid())}
    notifier.reloading("2 of 2 workers")
    words = told(manager)
    assert words.pop("MONOTONIC_USEC").isdigit()
    assert words == {"RELOADING": "1", "STATUS": "2 of 2 workers"}
    notifier.stopping("1 of 2 workers")
    assert told(manager) == {"STOPPING": "1", "STATUS": "1 of 2 workers"}
    notifier.status("0 of 2 workers")
    assert told(manager) == {"STATUS": "0 of 2 workers"}
    notifier.alive()
    assert told(manager) == {"WATCHDOG": "1"}


def test_an_abstract_socket_is_told_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0iostreamsrv-test-{os.getpid()}")
        manager.settimeout(5)
        Notifier({"NOTIFY_SOCKET": f"@iostreamsrv-test-{os.getpid()}"}).alive()
        assert told(manager) == {"WATCHDOG": "1"}


def test_without_a_manager_or_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    Notifier({}).ready("")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("")


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_told_twice_in_its_interval(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/nowhere", **environment}).watchdog == seconds


def test_without_a_manager_there_is_no_watchdog() -> None:
    assert Notifier({"WATCHDOG_USEC": "3000000"}).watchdog is None
