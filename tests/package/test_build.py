"""What is built from the sources: all of the compiled core, or none of it; and what users install has all files."""

import json
import os
import re
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
    *(
        ".git",
        ".venv*",
        ".dropin",
        ".operations",
        ".hypothesis",
        ".*_cache",
        "__pycache__",
        "build",
        "dist",
        "*.egg-info",
    ),
    *("*.so", "compiled*.json"),
)

PATIENCE = 400
"""Seconds for one build, on a machine that is busy."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout, of which nothing is built."""
    return Path(shutil.copytree(PROJECT, tmp_path / "checkout", ignore=MADE))


SOME = [f"iostreamsrv.sansio.{name}" for name in ("search", "buffers", "reads")]


@pytest.fixture
def small(checkout: Path) -> Path:
    """The same, with fewer modules to compile: it takes a second."""
    file = checkout / "iostreamsrv/cores.py"
    text, count = re.subn(
        r"^COMPILED = \(.*?^\)$", f"COMPILED = {SOME}", file.read_text(), flags=re.DOTALL | re.MULTILINE
    )
    assert count == 1
    file.write_text(text)
    return checkout


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


def installed(source: Path, **environment: str) -> tuple[Path, str]:
    """What pip installs, without a network: the folder with what the wheel has, and the wheel's tag."""
    wheels, folder = source.parent / "wheels", source.parent / "installed"
    command = ["-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    done = run(*command, "--wheel-dir", wheels, source, folder=source.parent, **environment)
    assert done.returncode == 0, done.stdout
    (wheel,) = wheels.iterdir()
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
        (NO_HEADERS, "true", f"no headers of Python 3.{sys.version_info.minor}"),
        (NO_CYTHON, "true", "no Cython 3.1 or newer"),
        (OLD_CYTHON, "true", "no Cython 3.1 or newer"),
    ],
    ids=["compiler", "headers", "cython", "cython-3.0"],
)
def test_where_something_is_missing_one_line_says_so(
    tmp_path: Path, modules: dict[str, str], compiler: str, why: str
) -> None:
    for name, text in modules.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    command = ["setup.py", "--quiet", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path]
    missing = {"CC": compiler, "PYTHONPATH": str(tmp_path)}
    done = run(*command, folder=PROJECT, **missing)
    assert done.returncode == 0
    assert done.stdout.startswith(f"iostreamsrv: no compiled core, but Python's, which is slower: {why}: ")
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.rglob("*.so")) == []

    done = run(*command, folder=PROJECT, IOSTREAMSRV_BUILD="compiled", **missing)
    assert done.returncode == 1
    assert done.stdout.startswith(f"iostreamsrv: no compiled core: {why}: ")
    assert done.stdout.count("\n") == 1


def test_where_something_is_missing_the_python_core_is_installed(checkout: Path) -> None:
    folder, tag = installed(checkout, CC="/nowhere/cc")
    assert tag == "py3-none-any"
    said = run("-m", "iostreamsrv", "info", folder=folder, PYTHONPATH=str(folder)).stdout
    assert "python (no compiled core: no C compiler (/nowhere/cc))" in said


def test_a_wrong_value_is_an_error_that_names_the_right_ones(tmp_path: Path) -> None:
    done = run("setup.py", "--version", folder=PROJECT, IOSTREAMSRV_BUILD="fast")
    assert done.returncode == 1
    assert done.stdout == "IOSTREAMSRV_BUILD is 'fast', and must be one of auto, compiled, pure\n"


# ---- all or none


def test_a_module_that_cannot_be_compiled_leaves_none_in_the_wheel(small: Path, tmp_path: Path) -> None:
    folder, tag = installed(small, CC=compiler(tmp_path, fails_for="sansio/reads.c"))
    assert tag == "py3-none-any"
    assert [name for name in files_of(folder) if name.endswith(".so")] == []
    said = run("-m", "iostreamsrv", "info", folder=folder, PYTHONPATH=str(folder)).stdout
    assert "python (no compiled core: CompileError in its build)" in said
    assert run(PROJECT / ".ci/smoke.py", "python", folder=folder, PYTHONPATH=str(folder)).returncode == 0


class InPlace:
    """Builds in a checkout, as make does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "iostreamsrv/sansio/reads.py"
        self.generated = folder / "build/cython/iostreamsrv/sansio/reads.c"

    def build(self, fails_for: str = "nothing") -> str:
        command = ["setup.py", "--quiet", "build_ext", "--inplace"]
        done = run(*command, folder=self.folder, CC=compiler(self.folder, fails_for))
        assert done.returncode == 0, done.stdout
        return done.stdout

    @property
    def made(self) -> list[str]:
        found = (self.folder / "iostreamsrv").rglob(f"*{cores.SUFFIX}")
        return sorted(path.name.removesuffix(cores.SUFFIX) for path in found)

    @property
    def record(self) -> list[str]:
        return list(json.loads((self.folder / "iostreamsrv" / cores.RECORD).read_text()))


@pytest.fixture
def in_place(small: Path) -> InPlace:
    in_place = InPlace(small)
    assert in_place.build() == "iostreamsrv: building the compiled core, which takes up to a minute\n"
    assert (in_place.made, in_place.record) == (["buffers", "reads", "search"], ["sources"])
    return in_place


def test_a_module_that_cannot_be_compiled_any_more_leaves_none_in_the_checkout(in_place: InPlace) -> None:
    other = in_place.generated.with_name("buffers.c")
    before = other.stat().st_mtime_ns
    in_place.source.write_text(in_place.source.read_text() + "# changed\n")
    assert "no compiled core, but Python's" in in_place.build(fails_for="sansio/reads.c")
    assert (in_place.made, in_place.record) == ([], ["failed", "tried"])
    assert run("-c", "import iostreamsrv.sansio.reads", folder=in_place.folder).returncode == 0

    in_place.source.write_text(in_place.source.read_text() + "# mended\n")
    in_place.build()
    assert (in_place.made, in_place.record) == (["buffers", "reads", "search"], ["sources"])
    assert other.stat().st_mtime_ns == before  # what had not changed is not built again


def test_where_nothing_has_changed_nothing_is_built(in_place: InPlace) -> None:
    in_place.generated.unlink()
    in_place.source.write_bytes(in_place.source.read_bytes())
    assert in_place.build() == ""
    assert not in_place.generated.exists()


def test_an_old_file_in_place_of_a_new_one_is_built(in_place: InPlace) -> None:
    """Cython and the compiler go by times alone."""
    in_place.source.write_text(in_place.source.read_text() + "OF_ANOTHER_REVISION = 1\n")
    os.utime(in_place.source, (1e9, 1e9))
    in_place.build()
    assert "OF_ANOTHER_REVISION" in in_place.generated.read_text()


def test_a_module_that_is_not_compiled_any_more_is_removed(in_place: InPlace) -> None:
    file = in_place.folder / "iostreamsrv/cores.py"
    file.write_text(file.read_text().replace(f"COMPILED = {SOME}", f"COMPILED = {SOME[:2]}"))
    in_place.build()
    assert in_place.made == ["buffers", "search"]


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
    assert not [name for name in there if name.startswith("iostreamsrv/") and name.endswith((".c", ".so"))]


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
