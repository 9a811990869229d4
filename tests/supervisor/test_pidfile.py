"""The file with the number of the service's first process."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
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


@pytest.fixture
def service() -> Iterator[int]:
    """A process that looks like that of a service."""
    with subprocess.Popen([sys.executable, "-c", "input()", "iostreamsrv", "serve"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def test_that_of_a_running_service_is_an_error_and_stays(tmp_path: Path, service: int) -> None:
    path = tmp_path / "service.pid"
    path.write_text(f"{service}\n")
    with pytest.raises(OptionError, match=f"process {service}, which is running"), PidFile(str(path)):
        pass
    assert path.read_text() == f"{service}\n"


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="nothing says what a process runs")
def test_that_of_another_program_which_has_got_the_number_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "service.pid"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.001)  # it is about to become that program
        path.write_text(f"{process.pid}\n")
        with PidFile(str(path)):
            assert path.read_text() == f"{os.getpid()}\n"
        process.kill()


def test_a_number_that_no_process_can_have_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "service.pid"
    path.write_text("9" * 30)
    with PidFile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_everybody_may_read_it_and_only_the_owner_write_it(tmp_path: Path) -> None:
    path = tmp_path / "service.pid"
    for umask in 0o000, 0o077:
        before = os.umask(umask)
        try:
            with PidFile(str(path)):
                assert path.stat().st_mode & 0o777 == 0o644
        finally:
            os.umask(before)


def test_a_link_that_another_user_has_put_beside_it_is_not_written_to(tmp_path: Path) -> None:
    path, victim = tmp_path / "service.pid", tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".service.pid.{os.getpid()}").symlink_to(victim)
    with PidFile(str(path)):
        assert victim.read_text() == "mine"
        assert not path.is_symlink()


def test_a_current_folder_that_is_gone_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(OptionError, match="No such file"), PidFile("service.pid"):
        pass


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
