"""What make says on a machine that lacks something: one line, before anything is made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import PROJECT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here: apt-get install make")

THIS_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def complaint_of_make(folder: Path, python: Path | str) -> str:
    """What ``make test`` complains of in a fresh checkout, for which ``folder`` serves."""
    venv = folder / "venv"
    make = subprocess.run(
        ["make", "test", f"PYTHON={python}", f"VENV={venv}"],
        cwd=PROJECT,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert make.returncode == 2
    assert make.stdout == ""
    assert not venv.exists()
    assert make.stderr.count("\n") == 1
    return make.stderr


def python_with(folder: Path, module: str, source: str) -> Path:
    """This Python, finding ``module`` with another ``source``."""
    (folder / "modules").mkdir()
    (folder / "modules" / f"{module}.py").write_text(source)
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}/modules" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def test_make_names_the_apt_package_where_python_has_no_venv(tmp_path: Path) -> None:
    python = python_with(tmp_path, "ensurepip", "raise ImportError")
    assert f"apt-get install python{THIS_VERSION}-venv" in complaint_of_make(tmp_path, python)


def test_make_names_the_version_of_a_python_that_is_too_old(tmp_path: Path) -> None:
    python = python_with(tmp_path, "sitecustomize", "import sys\nsys.version_info = (3, 10, 12, 'final', 0)\n")
    assert f"needs Python 3.11 or newer, and {python} is 3.10" in complaint_of_make(tmp_path, python)


def test_make_names_the_apt_package_where_there_is_no_python(tmp_path: Path) -> None:
    assert "apt-get install python3 python3-venv" in complaint_of_make(tmp_path, "no-such-python")
