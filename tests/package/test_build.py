"""What is built from the sources: all of the compiled core, or none of it; and what users install has all files."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from iostreamsrv import cores
from tests.support import PROJECT

pytest.importorskip("Cython", reason='no Cython here: pip install "Cython>=3.1"')

pytestmark = pytest.mark.second_tier

MADE = shutil.ignore_patterns(
    ".*cache",
    ".git",
    ".venv*",
    ".dropin",
    ".hypothesis",
    "__pycache__",
    "build",
    "dist",
    "*.egg-info",
    "*.so",
    "*.json",
)

PATIENCE = 400
"""Seconds for one build, on a machine that is busy."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout, of which nothing is built."""
    return Path(shutil.copytree(PROJECT, tmp_path / "checkout", ignore=MADE))


def run(*command: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python, with no more of ours in the environment than is given."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "IOSTREAMSRV"))}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )


def build_wheel(source: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What pip does to install it, and says with ``--verbose``; without a network."""
    command = ["-m", "pip", "wheel", "--verbose", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    return run(*command, "--wheel-dir", source.parent / "wheels", source, folder=source.parent, **environment)


def installed(source: Path, **environment: str) -> tuple[Path, str]:
    """The folder with what a wheel has, and the wheel's tag."""
    done = build_wheel(source, **environment)
    assert done.returncode == 0, done.stdout
    (wheel,) = (source.parent / "wheels").iterdir()
    folder = source.parent / "installed"
    zipfile.ZipFile(wheel).extractall(folder)
    return folder, "-".join(wheel.stem.split("-")[2:])


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in (folder / "iostreamsrv").rglob("*") if path.is_file()}


def compiler(folder: Path, fails_for: str) -> str:
    """A C compiler that is fast: it makes empty files, except from one source."""
    program = folder / "cc"
    program.write_text(f"""#!/bin/sh
case "$*" in *{fails_for}*) echo "no space left" >&2; exit 1;; esac
while [ $# -gt 0 ]; do if [ "$1" = -o ]; then : >"$2"; fi; shift; done
""")
    program.chmod(0o755)
    return str(program)


def lines_of_ours(output: str) -> list[str]:
    return [line.strip() for line in output.splitlines() if line.strip().startswith("iostreamsrv: ")]


# ---- what is missing

NO_CYTHON = {"Cython/__init__.py": "raise ImportError"}
OLD_CYTHON = {"Cython/__init__.py": "__version__ = '3.0.12'"}
NO_HEADERS = {
    "sitecustomize.py": """
import sysconfig
get_path = sysconfig.get_path
sysconfig.get_path = lambda name, *rest, **named: "/nowhere" if name == "include" else get_path(name, *rest, **named)
"""
}


@pytest.mark.parametrize(
    "modules, compiler, why",
    [
        ({}, "/nowhere/cc -pthread", "no C compiler (/nowhere/cc)"),
        (NO_HEADERS, "true", "no headers of Python 3.{}".format(*sys.version_info[1:])),
        (NO_CYTHON, "true", "no Cython 3.1 or newer"),
        (OLD_CYTHON, "true", "no Cython 3.1 or newer"),
    ],
    ids=["compiler", "headers", "cython", "cython-3.0"],
)
def test_where_something_is_missing_one_line_says_so_and_the_python_core_is_installed(
    checkout: Path, modules: dict[str, str], compiler: str, why: str
) -> None:
    others = checkout.parent / "others"
    for name, text in modules.items():
        (others / name).parent.mkdir(parents=True, exist_ok=True)
        (others / name).write_text(text)
    missing = {"CC": compiler, "PYTHONPATH": str(others)}
    done = build_wheel(checkout, **missing)
    assert done.returncode == 0, done.stdout
    (line,) = lines_of_ours(done.stdout)
    assert line.startswith(f"iostreamsrv: no compiled core, but Python's, which is slower: {why}: ")
    assert "Traceback" not in done.stdout

    folder, tag = installed(checkout, **missing)
    assert tag == "py3-none-any"
    said = run("-m", "iostreamsrv", "info", folder=folder, PYTHONPATH=str(folder)).stdout
    assert f"python (no compiled core: {why})" in said

    demanded = build_wheel(checkout, IOSTREAMSRV_BUILD="compiled", **missing)
    assert demanded.returncode != 0
    assert f"iostreamsrv: no compiled core: {why}" in demanded.stdout


def test_a_wrong_value_is_an_error_that_names_the_right_ones(checkout: Path) -> None:
    done = build_wheel(checkout, IOSTREAMSRV_BUILD="fast")
    assert done.returncode != 0
    assert "IOSTREAMSRV_BUILD is 'fast', and must be one of auto, compiled, pure" in done.stdout


# ---- all or none


def test_a_module_that_cannot_be_compiled_leaves_none_in_the_wheel(checkout: Path, tmp_path: Path) -> None:
    folder, tag = installed(checkout, CC=compiler(tmp_path, fails_for="streams/reading.c"))
    assert tag == "py3-none-any"
    assert [name for name in files_of(folder) if name.endswith(".so")] == []
    said = run("-m", "iostreamsrv", "info", folder=folder, PYTHONPATH=str(folder)).stdout
    assert "python (no compiled core: CompileError in its build)" in said
    assert run(PROJECT / ".ci/smoke.py", "python", folder=folder, PYTHONPATH=str(folder)).returncode == 0


def test_a_module_that_cannot_be_compiled_any_more_leaves_none_in_the_checkout(checkout: Path, tmp_path: Path) -> None:
    def build(fails_for: str) -> str:
        command = ["setup.py", "--quiet", "build_ext", "--inplace"]
        done = run(*command, folder=checkout, CC=compiler(tmp_path, fails_for))
        assert done.returncode == 0, done.stdout
        return done.stdout

    def made() -> int:
        return len(list((checkout / "iostreamsrv").rglob(f"*{cores.SUFFIX}")))

    record = checkout / "iostreamsrv" / cores.RECORD
    assert len(lines_of_ours(build("nothing"))) == 1
    assert made() == len(cores.COMPILED)
    assert json.loads(record.read_text()).keys() == {"sources"}
    assert build("nothing") == ""  # nothing to do

    changed = checkout / "iostreamsrv/streams/reading.py"
    changed.write_text(changed.read_text() + "# changed\n")
    assert "no compiled core, but Python's" in build("streams/reading.c")
    assert made() == 0
    assert json.loads(record.read_text()).keys() == {"failed"}
    assert run("-c", "import iostreamsrv", folder=checkout).returncode == 0

    changed.write_text(changed.read_text() + "# and mended\n")
    build("nothing")
    assert made() == len(cores.COMPILED)
    assert json.loads(record.read_text()).keys() == {"sources"}


def test_an_old_file_in_place_of_a_new_one_is_built(checkout: Path, tmp_path: Path) -> None:
    """Cython and the compiler go by times alone."""
    command = ["setup.py", "--quiet", "build_ext", "--inplace"]
    run(*command, folder=checkout, CC=compiler(tmp_path, "nothing"))
    generated = checkout / "build/cython/iostreamsrv/streams/reading.c"
    changed = checkout / "iostreamsrv/streams/reading.py"
    changed.write_text(changed.read_text() + "OF_ANOTHER_REVISION = 1\n")
    os.utime(changed, (1e9, 1e9))
    assert "OF_ANOTHER_REVISION" not in generated.read_text()
    run(*command, folder=checkout, CC=compiler(tmp_path, "nothing"))
    assert "OF_ANOTHER_REVISION" in generated.read_text()


# ---- what users install


@pytest.fixture
def unpacked(checkout: Path) -> Path:
    """The folder of a source distribution."""
    make = "import setuptools.build_meta as it; it.build_sdist('..')"
    done = run("-c", make, folder=checkout)
    assert done.returncode == 0, done.stdout
    (archive,) = checkout.parent.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(checkout.parent, filter="data")
    return archive.with_suffix("").with_suffix("")


def test_a_source_distribution_is_a_checkout(checkout: Path, unpacked: Path) -> None:
    tracked = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()}
    there = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    of_the_build = {name for name in tracked if "egg-info" in name}
    assert tracked - there - of_the_build == {".gitignore"}
    assert not [name for name in there if name.endswith((".c", ".so"))]


def expected(source: Path) -> set[str]:
    return {name for name in files_of(source) if not name.endswith(".pxd")}


def test_a_pure_wheel_of_the_source_distribution_has_every_file_and_works(unpacked: Path) -> None:
    sources = expected(unpacked)
    folder, tag = installed(unpacked, IOSTREAMSRV_BUILD="pure")
    assert tag == "py3-none-any"
    assert files_of(folder) == sources
    smoke = run(PROJECT / ".ci/smoke.py", "python", folder=folder, PYTHONPATH=str(folder))
    assert str(folder) in smoke.stdout and smoke.returncode == 0, smoke.stdout


CC = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]


@pytest.mark.skipif(shutil.which(CC) is None, reason="no C compiler here: apt-get install gcc")
@pytest.mark.skipif(
    not Path(sysconfig.get_path("include"), "Python.h").exists(), reason="no headers of Python here: python3-dev"
)
def test_a_compiled_wheel_of_the_source_distribution_has_every_file_and_works(unpacked: Path) -> None:
    sources = expected(unpacked)
    folder, tag = installed(unpacked, IOSTREAMSRV_BUILD="compiled", CFLAGS="-O0 -g0 -w")
    assert tag.startswith(f"cp3{sys.version_info.minor}-cp3{sys.version_info.minor}")
    modules = {name.replace(".", "/") + cores.SUFFIX for name in cores.COMPILED}
    assert files_of(folder) == sources | modules | {f"iostreamsrv/{cores.RECORD}"}
    for environment, core in ({}, "compiled"), ({"IOSTREAMSRV_PURE": "1"}, "python"):
        smoke = run(PROJECT / ".ci/smoke.py", core, folder=folder, PYTHONPATH=str(folder), **environment)
        assert str(folder) in smoke.stdout and smoke.returncode == 0, smoke.stdout
