"""What a test may leave behind: no descriptor, no complaint in the log."""

import logging
import os
import sys

import pytest


def open_descriptors() -> set[int]:
    """The descriptors this process has open."""

    def is_open(number: int) -> bool:
        try:
            os.fstat(number)
        except OSError:
            return False
        return True

    directory = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    return {number for entry in os.listdir(directory) if is_open(number := int(entry))}  # noqa: PTH208  # 10,000 times


def complaints(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Warnings and worse in the log, but for those that a busy machine makes by having kept the loop waiting."""
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record for record in records if "has blocked the loop" not in record.getMessage()]
