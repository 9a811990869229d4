"""A venv with gunicorn and uvicorn, made from ``requirements.txt`` beside it, from PyPI."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import PROJECT

FOLDER = PROJECT / ".operations" / platform.python_version()
PYTHON = FOLDER / "bin" / "python"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PATIENCE = 600.0
"""Seconds for one command."""


class InstallError(Exception):
    """It could not be made: why."""


def install() -> None:
    """Make it, unless it is there with the same requirements.

    :raises InstallError: there is no network, for example.
    """
    stamp = FOLDER / "requirements.txt"
    wanted = REQUIREMENTS.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(FOLDER))
    _run(str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(REQUIREMENTS))
    stamp.write_text(wanted)


def is_installed() -> bool:
    """Whether it is there."""
    return (FOLDER / "requirements.txt").exists()


def versions() -> dict[str, str]:
    """Of what is installed, as the requirements have it."""
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def environment() -> dict[str, str]:
    """For programs of the venv: without what belongs to this interpreter."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, env=environment(), stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(str(error)) from error
    if done.returncode:
        raise InstallError("\n".join(done.stderr.splitlines()[-5:]))
