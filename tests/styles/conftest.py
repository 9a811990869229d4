"""Servers and their clients, all ended when a test is."""

from collections.abc import Iterator

import pytest

from iostreamsrv import IOLoop
from tests.test_tcpserver import Serving


@pytest.fixture
def serving(io_loop: IOLoop) -> Iterator[Serving]:
    serving = Serving()
    yield serving
    serving.end()
