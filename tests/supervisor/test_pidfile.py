"""The file with the number of the service's first process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from iostreamsrv import OptionError
from iostreamsrv.supervisor.pidfile import PidFile


def test_it_has_the_number_while_the_service_runs(tmp_path: Path) -> None:
    path = tmp_path / "service.pid"
    with PidFile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


def test_without_a_path_there_is_none() -> None:
    with PidFile(None):
        pass


@pytest.mark.parametrize("left", ["", "what?", "-1", "0"])
def test_a_file_without_a_number_is_replaced(tmp_path: Path, left: str) -> None:
    path = tmp_path / "service.pid"
    path.write_text(left)
    with PidFile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_that_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "service.pid"
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        path.write_text(str(process.pid))
    with PidFile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_that_of_a_living_process_is_an_error_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "service.pid"
    path.write_text(f"{os.getppid()}\n")
    with pytest.raises(OptionError, match=f"process {os.getppid()}, which is running"), PidFile(str(path)):
        pass
    assert path.read_text() == f"{os.getppid()}\n"


def test_a_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="No such file"), PidFile(str(tmp_path / "missing" / "service.pid")):
        pass


def test_a_file_that_another_service_has_replaced_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "service.pid"
    with PidFile(str(path)):
        path.write_text("1\n")
    assert path.read_text() == "1\n"


def test_after_an_upgrade_it_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "service.pid"
    path.write_text(f"{os.getpid()}\n")
    with PidFile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()
