"""A turn: a server and its load, on one side, each on a core."""

import json
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import Cores, busy_seconds, own_seconds
from benchmarks.results import MOST_FOREIGN

from .figures import Figure
from .loads import Load
from .projects import USES
from .running import RUNNER, environment, kill_children
from .venvs import Venv

PATIENCE = 120.0
"""Seconds for a turn. It takes about ten."""


class TurnError(Exception):
    """A server or its load has not done what it should."""


def take(load: Load, venv: Venv, side: str, cores: Cores) -> dict[str, Figure]:
    """Run a load on a side, and once more if other processes disturbed it; its figures by name.

    :raises TurnError: it failed.
    """
    turn = _Turn(load, venv, side, cores)
    first = turn.measured()
    return turn.measured() if any(figure.disturbed for figure in first.values()) else first


class _Turn(NamedTuple):
    load: Load
    venv: Venv
    side: str
    cores: Cores

    def measured(self) -> dict[str, Figure]:
        began, busy, own = time.monotonic(), busy_seconds(self.cores), own_seconds()
        said = self._run()
        foreign = (busy_seconds(self.cores) - busy) - (own_seconds() - own)
        disturbed = foreign > MOST_FOREIGN * (time.monotonic() - began)
        if [each["what"] for each in said] != list(self.load.units):
            raise TurnError(f"{self.load.name} on {self.side}: it said {said}")
        return {each.pop("what"): Figure(**each, disturbed=disturbed) for each in said}

    def _run(self) -> list[dict[str, object]]:
        """Run the server and its load; what the load has printed."""
        with tempfile.TemporaryDirectory(prefix="iostreamsrv-measure-") as temporary:
            folder = Path(temporary)
            (folder / "home").mkdir()
            (folder / "report").touch()
            port = str(_free_port())
            server = self._start(folder, self.cores.server, "serve", port)
            client = self._start(folder, self.cores.load, "load", port, str(server.pid))
            try:
                output, _ = client.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                output = ""
            finally:
                code = client.returncode
                kill_children()
                server.wait()
                client.wait()
            self._check(folder, code)
            return [json.loads(line) for line in output.splitlines() if line.startswith("{")]

    def _start(self, folder: Path, core: int, role: str, *arguments: str) -> "subprocess.Popen[str]":
        command = [*RUNNER[self.side], str(USES / self.load.program), role, *arguments, *self.load.arguments]
        with (folder / f"{role}.log").open("w") as log:
            return subprocess.Popen(
                [str(self.venv.python), *command],
                cwd=folder,
                env=environment(self.venv, folder / "home", folder / "report"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if role == "load" else log,
                stderr=log,
                text=True,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )

    def _check(self, folder: Path, code: int | None) -> None:
        """See that the load has ended well, and that all streams and servers were the side's.

        :raises TurnError: it has not, or they were not.
        """
        name = f"{self.load.name} on {self.side}"
        if code != 0:
            logs = "\n".join((folder / f"{role}.log").read_text(errors="replace")[-1500:] for role in ("serve", "load"))
            raise TurnError(f"{name}: {f'exit code {code}' if code is not None else 'it takes too long'}\n{logs}")
        made = {line.split()[0] for line in (folder / "report").read_text().splitlines()}
        if made != {self.side}:
            raise TurnError(f"{name}: its streams and servers are of {made or 'nobody'}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
