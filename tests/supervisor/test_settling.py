"""The pid file and the rights of a supervisor, at a start and after an upgrade."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv import OptionError
from iostreamsrv.supervisor import master
from iostreamsrv.supervisor.settings import Settings


def made(**values: Any) -> Settings:
    return Settings(target="chat:Chat", **values)


def settled(settings: Settings, before: Settings | None = None) -> tuple[Settings, contextlib.ExitStack]:
    until_end = contextlib.ExitStack()
    state = None if before is None else {"settings": before.to_json(), "listeners": {}}
    return master._settle(settings, state and state["settings"], until_end), until_end


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The pid file of the supervisor before."""
    (tmp_path / "old.pid").write_text(f"{os.getpid()}\n")
    return str(tmp_path / "old.pid")


def test_a_start_fails_if_the_pid_file_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be written"):
        settled(made(pid_file=str(tmp_path / "missing" / "new.pid")))


def test_an_upgrade_goes_on_with_the_pid_file_of_before(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found, until_end = settled(made(pid_file=str(tmp_path / "missing" / "new.pid")), made(pid_file=path))
    assert found == made(pid_file=path)
    assert "cannot be written: No such file or directory; the one of before stays" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert Path(path).exists()
    until_end.close()
    assert not Path(path).exists()


def test_an_upgrade_removes_the_pid_file_of_before_once_there_is_a_new_one(path: str, tmp_path: Path) -> None:
    new = tmp_path / "new.pid"
    found, until_end = settled(made(pid_file=str(new)), made(pid_file=path))
    assert found.pid_file == str(new)
    assert new.read_text() == f"{os.getpid()}\n"
    assert not Path(path).exists()
    until_end.close()
    assert not new.exists()


def test_an_upgrade_without_a_pid_file_removes_that_of_before(path: str) -> None:
    settled(made(), made(pid_file=path))
    assert not Path(path).exists()


def test_an_upgrade_keeps_the_pid_file(path: str) -> None:
    _, until_end = settled(made(pid_file=path), made(pid_file=path))
    assert Path(path).read_text() == f"{os.getpid()}\n"
    until_end.close()
    assert not Path(path).exists()


def refuse(settings: Settings) -> None:
    raise OptionError("user", settings.user, "needs the rights of root")


def test_an_upgrade_goes_on_if_it_may_not_change_the_user(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(master, "drop_rights", refuse)
    with pytest.raises(OptionError):
        settled(made(user="root"))
    assert caplog.records == []
    settled(made(user="root"), made())
    assert "user='root': needs the rights of root; the service goes on without it" in caplog.text


def test_a_reload_leaves_the_pid_file_as_it_is() -> None:
    settings = made(pid_file="old.pid")
    assert master._reread(settings, None) is settings
    assert master._reread(settings, lambda: made(pid_file="new.pid", jitter=0.5)) == made(
        pid_file="old.pid", jitter=0.5
    )
