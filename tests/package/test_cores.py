"""Which core runs."""

import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
print(json.dumps([iostreamsrv.core, cores.why, files, [str(each.message) for each in caught]]))
"""


def imported(folder: Path, **environment: str) -> tuple[str, str, list[str]]:
    """The core that runs in a new process, why, and the warnings. Python's core is only Python's files."""
    found = subprocess.run(
        [sys.executable, "-c", IMPORTED], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    running, why, files, warned = json.loads(found.stdout)
    assert all(Path(file).is_relative_to(folder) for file in files)
    assert running == "compiled" or all(file.endswith(".py") for file in files)
    return running, why, warned


def test_every_module_of_the_compiled_core_has_a_source_in_python() -> None:
    for name in cores.COMPILED:
        assert PROJECT.joinpath(*name.split(".")).with_suffix(".py").exists()


def test_the_core_that_is_named_is_the_one_that_runs() -> None:
    compiled = {
        bool(getattr(importlib.import_module(name), "__file__", "").endswith(cores.SUFFIX)) for name in cores.COMPILED
    }
    assert compiled == {core == "compiled"}
    assert bool(cores.why) == (core == "python")


def test_the_python_core_can_be_chosen() -> None:
    assert imported(PROJECT, IOSTREAMSRV_PURE="1") == ("python", "IOSTREAMSRV_PURE is set", [])


# ---- a checkout. Its extension modules are not needed to test which core it chooses.


def write_record(folder: Path, **record: Any) -> None:
    runpy.run_path(str(folder / "iostreamsrv/cores.py"))["write_record"](folder / "iostreamsrv", **record)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with the package, of which nothing is compiled."""
    for path in [PROJECT / "setup.py", *(PROJECT / "iostreamsrv").rglob("*")]:
        if path.suffix in (".py", ".pyx", ".pxd"):
            copy = tmp_path / path.relative_to(PROJECT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
    return tmp_path


@pytest.fixture
def checkout(sources: Path) -> Path:
    """The same, as it is after a build."""
    snapshot = runpy.run_path(str(sources / "iostreamsrv/cores.py"))["snapshot"]()
    assert len(snapshot) > len(cores.COMPILED)
    write_record(sources, sources=snapshot)
    return sources


def test_a_checkout_runs_what_was_built_from_it(checkout: Path) -> None:
    assert imported(checkout) == ("compiled", "", [])


def test_a_checkout_may_be_imported_through_a_link(checkout: Path) -> None:
    (checkout / "elsewhere").mkdir()
    (checkout / "elsewhere/iostreamsrv").symlink_to(checkout / "iostreamsrv")
    assert imported(checkout / "elsewhere") == ("compiled", "", [])


def append(path: Path) -> None:
    path.write_text(path.read_text() + "# changed\n")


def replace_one_letter_and_keep_the_time(path: Path) -> None:
    found = path.stat()
    text = path.read_text()
    path.write_text(text.replace("the", "The", 1))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert path.read_text() != text
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (found.st_size, found.st_mtime_ns)


def put_an_older_file_there(path: Path) -> None:
    older = path.with_name("older")
    older.write_text(path.read_text() + "# of another revision\n")
    os.utime(older, (1e9, 1e9))
    older.replace(path)


@pytest.mark.parametrize("change", [append, replace_one_letter_and_keep_the_time, put_an_older_file_there])
def test_a_source_that_was_changed_after_the_build_runs_in_python_and_warns(
    checkout: Path, change: Callable[[Path], None]
) -> None:
    change(checkout / "iostreamsrv/streams/core.py")
    running, why, (warned,) = imported(checkout)
    assert (running, why) == ("python", "changed after its compiled core was built: iostreamsrv/streams/core.py")
    assert why.lower() in warned.lower()
    assert imported(checkout, IOSTREAMSRV_PURE="1") == ("python", "IOSTREAMSRV_PURE is set", [])


@pytest.mark.parametrize("changed", ["setup.py", "iostreamsrv/sansio/search.pyx", "iostreamsrv/sansio/search.py"])
def test_every_file_of_the_build_counts(checkout: Path, changed: str) -> None:
    append(checkout / changed)
    _, why, _ = imported(checkout)
    assert changed in why


def test_a_file_that_is_new_or_gone_counts(checkout: Path) -> None:
    (checkout / "iostreamsrv/sansio/buffers.pxd").unlink()
    (checkout / "iostreamsrv/sansio/reads.pyx").touch()
    _, why, _ = imported(checkout)
    assert why.endswith(": iostreamsrv/sansio/buffers.pxd, iostreamsrv/sansio/reads.pyx")


def test_a_file_that_was_written_anew_and_is_the_same_does_not_count(checkout: Path) -> None:
    for path in checkout.rglob("*.p*"):
        path.write_bytes(path.read_bytes())
    assert imported(checkout) == ("compiled", "", [])


def test_a_module_that_is_not_compiled_may_change(checkout: Path) -> None:
    append(checkout / "iostreamsrv/events.py")
    assert imported(checkout) == ("compiled", "", [])


def test_an_installed_package_has_nothing_to_compare(sources: Path) -> None:
    write_record(sources, sources={})
    append(sources / "iostreamsrv/streams/core.py")
    (sources / "setup.py").unlink()
    assert imported(sources) == ("compiled", "", [])


def damage(folder: Path, module: str) -> None:
    """Put an extension module there that Python can't import, and would, rather than the source."""
    (folder / "iostreamsrv" / (module + cores.SUFFIX)).write_text("no extension module")


def test_extension_modules_of_a_build_that_did_not_end_are_not_used(sources: Path) -> None:
    damage(sources, "streams/hub")
    assert imported(sources) == ("python", "no compiled core", [])


def test_an_extension_module_of_an_earlier_revision_is_not_used(checkout: Path) -> None:
    damage(checkout, "events")
    append(checkout / "iostreamsrv/streams/core.py")
    running, _, _ = imported(checkout)
    assert running == "python"


def test_what_was_missing_in_the_build_is_why(sources: Path) -> None:
    write_record(sources, failed="no compiled core: no C compiler (gcc)")
    assert imported(sources) == ("python", "no compiled core: no C compiler (gcc)", [])


def test_what_another_python_built_is_not_used(sources: Path) -> None:
    (sources / "iostreamsrv/compiled.cpython-310-x86_64-linux-gnu.json").write_text('{"sources": {}}')
    assert imported(sources) == ("python", "no compiled core", [])


def test_no_compiled_module_releases_the_interpreters_lock() -> None:
    """So no other thread runs between a check of a buffer and its use in C. (What Python's own calls release it for,
    they hold as an exported buffer, which cannot be resized.)"""
    sources = [
        PROJECT / (name.replace(".", "/") + suffix) for name in cores.COMPILED for suffix in (".py", ".pyx", ".pxd")
    ]
    lines = [(path.name, line) for path in sources if path.exists() for line in path.read_text().splitlines()]
    words = re.compile(r"\bnogil\b|ALLOW_THREADS|PyEval_SaveThread|PyGILState|allow_threads")
    # To declare that a function of C needs no lock is not to release it.
    assert [each for each in lines if words.search(each[1]) and not each[1].startswith("cdef extern from")] == []
