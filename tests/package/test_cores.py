"""Which core runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from iostreamsrv import core, cores
from tests.support import PROJECT

IMPORTED = """
import importlib, json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import iostreamsrv
    from iostreamsrv import cores
files = [importlib.import_module(name).__file__ for name in cores.COMPILED]
print(json.dumps([iostreamsrv.core, files, [str(each.message) for each in caught]]))
"""


def imported(folder: Path, **environment: str) -> tuple[str, list[str], list[str]]:
    """The core that runs in a new process, the files of its modules, and the warnings."""
    found = subprocess.run(
        [sys.executable, "-c", IMPORTED], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    running, files, warned = json.loads(found.stdout)
    return running, files, warned


def test_every_module_of_the_compiled_core_has_a_source_in_python() -> None:
    for name in cores.COMPILED:
        assert PROJECT.joinpath(*name.split(".")).with_suffix(".py").exists()


def test_the_core_that_is_named_is_the_one_that_runs() -> None:
    running, files, warned = imported(PROJECT)
    assert (running, warned) == (core, [])
    assert all(file.endswith(".py") == (running == "python") for file in files)


def test_the_python_core_can_be_chosen() -> None:
    running, files, warned = imported(PROJECT, IOSTREAMSRV_PURE="1")
    assert (running, warned) == ("python", [])
    assert all(file.endswith(".py") for file in files)


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    """A folder with the package, as if a source was changed after a build."""
    for path in (PROJECT / "iostreamsrv").rglob("*"):
        if path.suffix in (".py", ".pyx", ".pxd"):
            copy = tmp_path / path.relative_to(PROJECT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (tmp_path / "iostreamsrv/compiled.json").write_text("{}")
    return tmp_path


def test_a_source_that_was_changed_after_the_build_runs_in_python_and_warns(stale: Path) -> None:
    running, files, (warned,) = imported(stale)
    assert running == "python"
    assert all(file.endswith(".py") for file in files)
    assert "changed after its compiled core was built" in warned
