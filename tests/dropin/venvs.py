"""A venv for each project, with the versions that its file in `requirements` says, and the project's own sources."""

import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from iostreamsrv.version import __version__
from tests.support import PROJECT

HERE = Path(__file__).resolve().parent
CACHE = PROJECT / ".dropin" / platform.python_version()
WITNESS = HERE / "witness.py"
PATIENCE = 1800.0
"""Seconds for one command of pip. Some projects bring a hundred packages."""

STARTS_WITNESS = f"""\
import os; "IOSTREAMSRV_DROPIN_REPORT" in os.environ and exec(open({str(WITNESS)!r}).read(), {{"__name__": "witness"}})
"""


def own_versions() -> dict[str, str]:
    """Of this Python, and of the package: the commit that changed it last."""
    command = ["git", "-C", str(PROJECT), "log", "-1", "--format=%h", "--", "iostreamsrv"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    package = f"{__version__}, commit {commit}" if commit else __version__
    return {"python": f"{platform.python_implementation()} {platform.python_version()}", "iostreamsrv": package}


class InstallError(Exception):
    """pip could not install a project: its last lines."""


class Venv:
    """What is installed for a project.

    :param name: of the project, and of its file of requirements.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = CACHE / name
        self.python = self.folder / "bin" / "python"
        self.requirements = HERE / "requirements" / f"{name}.txt"

    def install(self) -> None:
        """Make it, unless it is there with the same requirements. iostreamsrv is the checkout's, as it is then.

        :raises InstallError: pip failed.
        """
        stamp = self.folder / "requirements.txt"
        wanted = self.requirements.read_text()
        if stamp.exists() and stamp.read_text() == wanted:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self._run(sys.executable, "-m", "venv", str(self.folder))
        self._pip("install", "--requirement", str(self.requirements))
        self._pip("install", "--no-deps", "--editable", str(PROJECT))
        (site_packages,) = self.folder.glob("lib/python*/site-packages")
        (site_packages / "iostreamsrv_dropin_witness.pth").write_text(STARTS_WITNESS)
        stamp.write_text(wanted)

    def source(self, distribution: str) -> Path:
        """The folder of a distribution's sources, from its sdist on PyPI, in the version that is installed.

        :raises InstallError: pip failed.
        """
        version = self.version(distribution)
        parent = self.folder / "source"
        folder = parent / f"{distribution}-{version}"
        if not folder.exists():
            parent.mkdir(exist_ok=True)
            only_it = ("--no-deps", "--no-binary", distribution)
            self._pip("download", *only_it, "--dest", str(parent), f"{distribution}=={version}")
            with tarfile.open(parent / f"{folder.name}.tar.gz") as sdist:
                sdist.extractall(parent, filter="data")
        return folder

    def version(self, distribution: str) -> str:
        """The version of a distribution that is installed."""
        program = f"import importlib.metadata as it; print(it.version({distribution!r}))"
        return self._run(str(self.python), "-c", program).strip()

    def _pip(self, command: str, *arguments: str) -> None:
        self._run(str(self.python), "-m", "pip", command, "--quiet", "--disable-pip-version-check", *arguments)

    def _run(self, *command: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment["IOSTREAMSRV_BUILD"] = "pure"  # the compiled core is in the checkout, or is not to be there
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PATIENCE, env=environment, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InstallError(f"{self.name}: {error}") from error
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")][-5:]
            raise InstallError(f"{self.name}: {' '.join(command[2:5])}: " + "\n".join(last))
        return done.stdout
