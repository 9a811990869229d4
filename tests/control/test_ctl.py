"""``iostreamsrv ctl`` and a service that runs."""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv.cli.commands import run
from iostreamsrv.control import ControlClient, ControlError
from tests.support import PROJECT
from tests.support.programs import Program, eventually

pytestmark = [
    pytest.mark.second_tier,
    pytest.mark.skipif(sys.platform != "linux", reason="the service is Linux's"),
]

APP = """
import iostreamsrv

class Echo(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        while True:
            await stream.write(await stream.read_until(b"\\n"))
"""


class Service(Program):
    """A service in a folder of its own, of two workers, with its control socket there.

    :param runtime: whether the socket is where systemd wants it, instead of named.
    """

    def __init__(self, folder: Path, *options: str, runtime: bool = False) -> None:
        (folder / "app.py").write_text(APP)
        self.folder = folder
        self.path = folder / ("control.sock" if runtime else "c")
        where = () if runtime else ("--control", "c")
        words = ("-m", "iostreamsrv", "serve", "app:Echo", "--bind", "127.0.0.1:0", "-w", "2", *where, *options)
        variables = {"PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1", "RUNTIME_DIRECTORY": ""}
        super().__init__(
            *words, folder=folder, environment={**variables, **({"RUNTIME_DIRECTORY": str(folder)} if runtime else {})}
        )

    def ready(self) -> "Service":
        """Wait until all workers serve."""
        self.wait_for("listening on")
        eventually(self.path.exists, self.said)
        with ControlClient(str(self.path)) as client:
            eventually(lambda: [each["state"] for each in client.workers()] == ["ready", "ready"], self.said)
        line = next(line for line in self.said().splitlines() if "listening on" in line)
        host, _, port = line.partition("listening on ")[2].partition(",")[0].rpartition(":")
        self.addresses.append((host, int(port)))
        return self


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as service:
        yield service.ready()


Ctl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """What ``ctl`` does with these words: its exit code, and what it says on stdout and stderr."""

    def ctl(*words: str) -> tuple[int, str, str]:
        code = run(["ctl", "--control", str(tmp_path / "c"), *words])
        return code, *capsys.readouterr()

    return ctl


def shown(ctl: Ctl, what: str) -> Any:
    code, said, problem = ctl("--json", "show", what)
    assert (code, problem) == (0, "")
    return json.loads(said)


def test_workers_and_stats_are_shown_as_clients_know_them(service: Service, ctl: Ctl) -> None:
    with service.client() as one, service.client() as two:
        for client in (one, two):
            assert client.ask(b"hello\n") == b"hello\n"
        workers = shown(ctl, "workers")
        assert [each["number"] for each in workers] == [1, 2]
        assert all(os.getpgid(each["pid"]) for each in workers)
        assert {each["state"] for each in workers} == {"ready"}
        assert sum(each["open"] for each in workers) == sum(each["accepted"] for each in workers) == 2
        assert all(each["rss"] > 1 << 20 and each["heartbeat_age"] < 10 for each in workers)
    eventually(lambda: shown(ctl, "stats")["closed"] == 2, service.said)
    eventually(lambda: shown(ctl, "stats")["bytes_received"] == 12, service.said)
    found = shown(ctl, "stats")
    assert (found["open"], found["accepted"], found["bytes_sent"], found["errors"]) == (0, 2, 12, 0)
    code, table, _ = ctl("show", "workers")
    assert code == 0
    head, *rows = table.splitlines()
    assert head.split()[:5] == ["worker", "pid", "generation", "state", "open"]
    assert [row.split()[3] for row in rows] == ["ready", "ready"]


def test_a_dead_workers_counts_stay_in_the_stats(service: Service, ctl: Ctl) -> None:
    with service.client() as client:
        client.ask(b"x\n")
        (busy,) = [each["pid"] for each in shown(ctl, "workers") if each["open"]]
        os.kill(busy, signal.SIGKILL)
        assert client.line() == b""
    eventually(lambda: busy not in [each["pid"] for each in shown(ctl, "workers")], service.said)
    found = shown(ctl, "stats")
    assert (found["open"], found["accepted"], found["closed"]) == (0, 1, 1)


def test_config_is_what_counts_now(service: Service, ctl: Ctl) -> None:
    assert shown(ctl, "config")["jitter"] == 0.1
    (service.folder / "iostreamsrv.toml").write_text("jitter = 0.5\n")
    assert ctl("reload")[0] == 0
    found = shown(ctl, "config")
    assert (found["jitter"], found["target"], found["workers"], found["control"]) == (0.5, "app:Echo", 2, "c")
    assert "jitter" in ctl("show", "config")[1]


def test_a_reload_is_over_when_ctl_ends(service: Service, ctl: Ctl) -> None:
    assert ctl("reload") == (0, "reloaded\n", "")
    ready = [each for each in shown(ctl, "workers") if each["state"] == "ready"]
    assert [(each["number"], each["generation"]) for each in ready] == [(3, 1), (4, 1)]


def test_a_reload_of_broken_code_exits_with_3_and_says_why_and_the_service_goes_on(service: Service, ctl: Ctl) -> None:
    with service.client() as client:
        client.ask(b"x\n")
        (service.folder / "app.py").write_text("raise RuntimeError('broken')\n")
        code, said, problem = ctl("reload")
        assert (code, said) == (3, "")
        assert "RuntimeError: broken" in problem
        assert problem.count("\n") == 1
        assert client.ask(b"x\n") == b"x\n"
    assert [each["number"] for each in shown(ctl, "workers")] == [1, 2]
    (service.folder / "app.py").write_text(APP)
    assert ctl("reload")[0] == 0


def test_a_reload_of_wrong_settings_exits_with_3(service: Service, ctl: Ctl) -> None:
    (service.folder / "iostreamsrv.toml").write_text("jitter = 5\n")
    code, _, problem = ctl("reload")
    assert code == 3
    assert "jitter=5: must be a number from 0 to 1" in problem


def test_a_reload_that_waits_for_another_one_is_told_of_its_own(service: Service) -> None:
    one, two = ControlClient(str(service.path)), ControlClient(str(service.path), timeout=60)
    with one, two, socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(service.path))
        raw.sendall(b'{"verb": "reload"}\n')
        two.reload()
        assert raw.recv(4096) == b'{"version": 1, "result": {}}\n'
        assert {each["generation"] for each in one.workers() if each["state"] == "ready"} == {2}


def test_one_worker_more_and_one_less(service: Service, ctl: Ctl) -> None:
    assert ctl("workers", "+1") == (0, "3 workers\n", "")
    eventually(lambda: [each["state"] for each in shown(ctl, "workers")] == ["ready"] * 3, service.said)
    assert json.loads(ctl("--json", "workers", "-1")[1]) == {"workers": 2}
    assert ctl("workers", "-1") == (0, "1 worker\n", "")
    code, _, problem = ctl("workers", "-1")
    assert code == 1
    assert "the last worker" in problem
    assert ctl("workers", "2")[0] == 2


def test_an_upgrade_keeps_the_process_and_the_socket_is_made_anew(service: Service, ctl: Ctl) -> None:
    with service.client() as client:
        client.ask(b"x\n")
        assert ctl("upgrade")[0] == 0
        assert "the supervisor is upgraded" in service.wait_for("the supervisor is upgraded")
        eventually(
            lambda: {each["generation"] for each in shown(ctl, "workers") if each["state"] == "ready"} == {1},
            service.said,
        )
        assert service.path.stat().st_mode & 0o777 == 0o600
        assert client.ask(b"x\n") == b"x\n"
    assert service.end()[0] == 0
    assert not service.path.exists()


def test_an_upgrade_to_broken_code_exits_with_3(service: Service, ctl: Ctl) -> None:
    (service.folder / "app.py").write_text("raise RuntimeError('broken')\n")
    code, _, problem = ctl("upgrade")
    assert code == 3
    assert "broken" in problem
    assert [each["number"] for each in shown(ctl, "workers")] == [1, 2]


def test_drain_lets_clients_finish_and_is_no_second_signal(service: Service, ctl: Ctl) -> None:
    with service.client() as client:
        client.send(b"half a line")
        eventually(lambda: shown(ctl, "stats")["open"] == 1, service.said)
        assert ctl("drain") == (0, "shutting down\n", "")
        assert ctl("drain")[0] == 0
        code, _, problem = ctl("reload")
        assert (code, problem) == (1, "iostreamsrv: the service is shutting down\n")
        client.send(b"\n")
        assert client.line() == b"half a line\n"
    assert service.outcome()[0] == 0
    assert not service.path.exists()


def test_whoever_waits_for_a_reload_is_told_that_the_service_ends(service: Service) -> None:
    (service.folder / "app.py").write_text("import time\ntime.sleep(60)\n")
    with ControlClient(str(service.path)) as waits, ControlClient(str(service.path)) as ends:
        with pytest.raises(TimeoutError):
            waits.request("reload", timeout=0.2)
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(20)
            raw.connect(str(service.path))
            raw.sendall(b'{"verb": "reload"}\n')
            ends.workers()  # the one before has come
            ends.drain()
            assert b"the service is shutting down" in raw.recv(4096)
    assert service.outcome()[0] == 0


def test_a_second_service_leaves_the_socket_of_the_first_one(service: Service, ctl: Ctl, tmp_path: Path) -> None:
    words = ("-m", "iostreamsrv", "serve", "app:Echo", "--bind", "127.0.0.1:0", "--control", "c")
    with Program(*words, folder=tmp_path, environment={"PYTHONDONTWRITEBYTECODE": "1"}) as second:
        said = second.wait_for("a server is listening there", "listening on 127.0.0.1")
        assert said.count("no control socket: c: ") == 1
        assert second.end()[0] == 0
    assert len(shown(ctl, "workers")) == 2


def test_a_service_that_was_killed_leaves_a_socket_that_the_next_one_replaces(tmp_path: Path, ctl: Ctl) -> None:
    with Service(tmp_path) as dead:
        dead.ready().send_signal(signal.SIGKILL)
        dead.outcome()
    assert (tmp_path / "c").exists()
    code, _, problem = ctl("show", "stats")
    assert (code, problem) == (1, f"iostreamsrv: {tmp_path}/c: Connection refused\n")
    with Service(tmp_path) as service:
        service.ready()
        assert len(shown(ctl, "workers")) == 2


def test_where_systemd_has_a_folder_for_it_the_socket_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Service(tmp_path, runtime=True) as service:
        service.ready()
        monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
        assert run(["ctl", "show", "stats"]) == 0


def test_there_is_no_socket_unless_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Service(tmp_path, "--control", "none") as service:
        service.wait_for("listening on")
        assert service.end()[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.py"]


def test_ctl_without_a_socket_asks_which_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert run(["ctl", "show", "stats"]) == 2
    assert "Name its control socket" in capsys.readouterr().err
    (tmp_path / "iostreamsrv.toml").write_text('control = "missing"\n')
    assert run(["ctl", "show", "stats"]) == 1
    assert capsys.readouterr().err == "iostreamsrv: missing: No such file or directory\n"


def test_clients_that_misbehave_harm_neither_the_service_nor_ctl(service: Service, ctl: Ctl) -> None:
    def raw() -> socket.socket:
        end = socket.socket(socket.AF_UNIX)
        end.settimeout(20)
        end.connect(str(service.path))
        return end

    silent = [raw() for _ in range(20)]  # more than there is room for
    half, garbage, long, deaf = (raw() for _ in range(4))
    half.sendall(b'{"verb": "rel')
    garbage.sendall(b"\0\xff garbage\n" * 10)
    long.sendall(b"x" * (10 << 20))
    deaf.settimeout(0.5)
    with pytest.raises(TimeoutError):
        deaf.sendall(b'{"verb": "show workers"}\n' * 1_000_000)
    with service.client() as client:
        assert client.ask(b"x\n") == b"x\n"
    assert len(shown(ctl, "workers")) == 2
    long.sendall(b'\n{"verb": "show stats"}\n')
    answers = long.makefile("rb")
    assert b"the line is longer than" in answers.readline()
    assert b"accepted" in answers.readline()
    assert garbage.makefile("rb").readline().startswith(b'{"version": 1, "error": {"code": "invalid"')
    for each in (*silent, half, garbage, long, deaf):
        each.close()
    answers.close()
    assert ctl("show", "stats")[0] == 0
    assert service.end()[0] == 0


@pytest.mark.parametrize(
    "verb, arguments, message",
    [
        ("show wrkers", {}, "did you mean 'show workers'"),
        ("x" * 60_000, {}, "there is no verb"),
        ("reload", {"now": True}, "reload has no argument 'now'"),
        ("workers", {}, "change must be 1 or -1"),
        ("workers", {"change": 0}, "change must be 1 or -1"),
        ("workers", {"change": [1]}, "change must be 1 or -1"),
        ("workers", {"change": True}, "change must be 1 or -1"),
    ],
)
def test_a_wrong_request_is_answered_with_what_is_wrong(
    service: Service, verb: str, arguments: dict[str, Any], message: str
) -> None:
    with ControlClient(str(service.path)) as client:
        with pytest.raises(ControlError, match=message) as caught:
            client.request(verb, arguments)
        assert caught.value.code == "invalid"
        assert len(caught.value.message) < 500
        assert client.stats()["open"] == 0
