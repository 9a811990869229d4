"""The warning that goes with ``reuse_port``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from iostreamsrv import bind_sockets
from iostreamsrv.net import bind


@pytest.fixture
def migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the system says, in a file of its own."""
    file = tmp_path / "tcp_migrate_req"
    monkeypatch.setattr(bind, "MIGRATION", file)
    bind._warn_of_lost_backlogs.cache_clear()
    yield file
    bind._warn_of_lost_backlogs.cache_clear()


def warnings_of(log: pytest.LogCaptureFixture, reuse_port: bool = True) -> int:
    for _ in range(2):
        with contextlib.closing(bind_sockets(0, "127.0.0.1", reuse_port=reuse_port)[0]):
            pass
    return sum("tcp_migrate_req" in record.message for record in log.records)


def test_a_backlog_that_would_be_lost_is_warned_of_once(migration: Path, caplog: pytest.LogCaptureFixture) -> None:
    migration.write_text("0\n")
    assert warnings_of(caplog) == 1


@pytest.mark.parametrize("text", ["1\n", None])
def test_otherwise_nothing_is_said(migration: Path, caplog: pytest.LogCaptureFixture, text: str | None) -> None:
    if text is not None:
        migration.write_text(text)
    assert warnings_of(caplog) == 0


def test_without_reuse_port_nothing_is_said(migration: Path, caplog: pytest.LogCaptureFixture) -> None:
    migration.write_text("0\n")
    assert warnings_of(caplog, reuse_port=False) == 0
