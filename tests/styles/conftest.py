"""What a test of threads may leave behind."""

import gc
from collections.abc import Iterator

import pytest

from tests.support.leaks import open_descriptors
from tests.support.threads import others


@pytest.fixture
def nothing_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No thread and no descriptor may be left in the end, and no loop complain of a task or a callback."""
    threads, descriptors = others(), open_descriptors()
    yield
    gc.collect()
    for thread in others() - threads:
        thread.join(1.0)  # one that has stopped the server itself may have its last steps before it
    assert not others() - threads  # one of an earlier test may have ended since
    assert open_descriptors() == descriptors
    assert [record.getMessage() for record in caplog.get_records("call") if record.name == "asyncio"] == []
