"""The engines that tests run on: `--engines` chooses among them."""

import importlib.util

import pytest

EVERY_ENGINE = [
    "epoll",
    "loop",
    "memory",
    pytest.param(
        "uvloop",
        marks=pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed"),
    ),
]
"""The hub on its own epoll, the hub on the loop's readers and writers, the hub of streams in memory, and the first of
them inside uvloop."""


EVERY_LOOP = [engine for engine in EVERY_ENGINE if engine != "memory"]
"""The engines without the one in memory, which makes no difference to what comes over a socket."""


on_every_loop = [
    pytest.mark.usefixtures("io_loop"),
    pytest.mark.engines(*EVERY_LOOP),
]
"""``pytestmark`` of a file whose tests are of servers and clients."""


on_every_engine = [
    pytest.mark.usefixtures("io_loop"),
    pytest.mark.engines(*EVERY_ENGINE),
]
"""``pytestmark`` of a file whose tests are to run on every engine."""


EVERY_STREAM = [*EVERY_ENGINE, "tls"]
"""The engines, and streams under TLS on the first of them."""


on_every_stream = [
    pytest.mark.usefixtures("io_loop"),
    pytest.mark.engines(*EVERY_STREAM),
]
"""``pytestmark`` of a file whose tests are to run under TLS as well.

Those that are about a plain socket say so with ``@pytest.mark.plain("why")``, and don't.
"""
