"""The package and its tests run where people put them: in a path with a space, for a user who is not root, by nohup."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import PROJECT
from tests.support.waiting import PATIENCE

NOBODY = 65534

COPIED = (
    ".ci",
    "iostreamsrv",
    "tests",
    "examples",
    "docs",
    "benchmarks",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "Makefile",
)

REPRESENTATIVE = (
    "tests/programs/test_makefile.py",
    "tests/programs/test_run_returns.py",
    "tests/server/test_options.py",
)
"""Tests that run make, and programs that are ended by signals."""

LIMIT = 120
"""Seconds for them, most of which a busy machine takes."""


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A copy of this checkout, in a path with a space; root gives it to nobody."""
    with tempfile.TemporaryDirectory() as base:
        copy = Path(base) / "with space"
        copy.mkdir()
        for source in map(PROJECT.joinpath, COPIED):
            if source.is_dir():
                shutil.copytree(source, copy / source.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy)
        if os.geteuid() == 0:
            for path in (copy.parent, copy, *copy.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        yield copy


def environment(checkout: Path) -> dict[str, str]:
    """That of somebody whose home is beside it, and who has no other copy on the path."""
    paths = [checkout, Path(pytest.__file__).parent.parent]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    return {
        **kept,
        "HOME": str(checkout.parent),
        "TMPDIR": str(checkout.parent),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }


def ignores_signals() -> None:
    """As a shell has a program start by ``nohup … &``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def unprivileged() -> dict[str, Any]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def python(checkout: Path) -> str:
    """One that this user can run: root's may be in root's home."""
    same = f"import sys; assert sys.version_info[:2] == {sys.version_info[:2]}; import hypothesis, pytest, tornado"
    for path in (sys.executable, "/usr/bin/python3"):
        command = [path, "-c", same]
        with contextlib.suppress(OSError):
            if not subprocess.run(command, env=environment(checkout), **unprivileged(), capture_output=True).returncode:
                return path
    pytest.skip("nobody can run a Python that has pytest")


def test_the_echo_example_runs_from_a_path_with_a_space_and_ends_in_order(checkout: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-u", checkout / "examples" / "echo.py", "--port", "0"],
        cwd=checkout.parent,
        env=environment(checkout),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            host, _, port = process.stdout.readline().split()[-1].rpartition(":")
            with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
                client.sendall(b"hello\n")
                assert client.recv(6) == b"hello\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no nohup")
def test_tests_pass_for_a_user_who_is_not_root_in_a_path_with_a_space_by_nohup(checkout: Path) -> None:
    command = [python(checkout), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *REPRESENTATIVE]
    done = subprocess.run(
        command,
        cwd=checkout,
        env=environment(checkout),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        preexec_fn=ignores_signals,
        **unprivileged(),
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
