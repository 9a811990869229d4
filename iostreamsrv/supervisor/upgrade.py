"""What a supervisor keeps while a new interpreter takes over its process.

``exec`` keeps the process, its children and its inheritable descriptors, and nothing else. So the rest is written to a
file without a name, whose descriptor an environment variable has. Signals must be blocked until the new interpreter
handles them: their default effect, meanwhile, would end the service.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from typing import Any

from ..runtime.clock import real_time
from . import spawn
from .settings import Settings

VARIABLE = "IOSTREAMSRV_UPGRADE"


def replace_program(state: dict[str, Any], descriptors: Iterable[int]) -> None:
    """Go on in a new interpreter, which calls :func:`kept_state`. Returns only by its exception.

    :param descriptors: what stays open.
    :raises OSError: the interpreter can't be started, or there is no room for the state; nothing has changed.
    """
    kept = list(descriptors)
    with _unnamed_file() as file:
        file.write(json.dumps(state).encode())
        file.seek(0)
        kept.append(file.fileno())
        try:
            for each in kept:
                os.set_inheritable(each, True)
            spawn.become_again({VARIABLE: f"{os.getpid()}:{file.fileno()}"})
        finally:
            for each in kept:
                os.set_inheritable(each, False)


class Checker:
    """A new interpreter that checks whether the service would start.

    :ivar pid: its process.
    :raises OSError: it can't be started.
    """

    def __init__(self) -> None:
        self._output = _unnamed_file()
        self._process = spawn.start_again("--check", output=self._output.fileno())
        self.pid = self._process.pid
        self._killed = False
        self._started_at = real_time()

    def is_late(self, timeout: float) -> bool:
        """Whether it takes longer than ``timeout`` seconds."""
        return real_time() - self._started_at > timeout

    def outcome(self, code: int) -> str:
        """What is wrong, once it has ended with this exit code; empty if nothing is."""
        self._process.returncode = code  # or its destructor complains
        with self._output:
            self._output.seek(0)
            lines = self._output.read().decode(errors="replace").split("\n")
        if self._killed:
            return "the check takes too long"
        said = next((line for line in reversed(lines) if line.strip()), "")
        return "" if code == 0 else said.removeprefix("iostreamsrv: ") or f"exit code {code}"

    def kill(self) -> None:
        """End it: it takes too long, or its result is not needed any more."""
        self._killed = True
        self._process.kill()


def kept_state() -> dict[str, Any] | None:
    """What the supervisor before this one left; None if this process has had no other. Afterwards it is gone."""
    number = _kept_in()
    os.environ.pop(VARIABLE, None)
    if number is None:
        return None
    with open(number, "rb") as file:  # noqa: PTH123 (a descriptor)
        state: dict[str, Any] = json.load(file)
    return state


def kept_settings() -> Settings | None:
    """The settings of the supervisor before this one, if there was one: for when they have become invalid since they
    were checked, because the service must go on."""
    number = _kept_in()
    if number is None:
        return None
    state = json.loads(os.pread(number, os.fstat(number).st_size, 0))
    return Settings.from_json(state["settings"])


def _kept_in() -> int | None:
    process, _, number = os.environ.get(VARIABLE, "").partition(":")
    return int(number) if process == str(os.getpid()) else None


def _unnamed_file() -> Any:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("iostreamsrv-upgrade"), "w+b")  # noqa: PTH123
    return tempfile.TemporaryFile()
