"""What users install has all that the checkout has."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import PROJECT

BUILT = shutil.ignore_patterns("__pycache__", "*.so", "compiled.json")


@pytest.mark.second_tier
def test_a_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(PROJECT / "iostreamsrv", source / "iostreamsrv", ignore=BUILT)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    target.mkdir()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", target, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = target.iterdir()
    there = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for path in (source / "iostreamsrv").rglob("*") if path.is_file())
    assert there == {str(path.relative_to(source)) for path in files}
