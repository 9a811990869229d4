"""What tests of listening sockets need: to be refused, to be somebody else, to be on a loop."""

import contextlib
import json
import os
import pwd
import random
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from iostreamsrv import ListenError
from tests.support import PROJECT
from tests.support.engines import on_every_engine
from tests.support.leaks import open_descriptors
from tests.support.waiting import PATIENCE

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has this")


def on_loops(test: Any) -> Any:
    """A test that needs a loop, on each kind there is."""
    for mark in on_every_engine:
        test = mark(test)
    return test


def unused_port() -> int:
    """A port that is free in both families, and that the kernel gives to no socket which asks for any port.

    Other tests run at the same time: of those that the kernel chooses from (from 32768 on Linux, 49152 elsewhere), one
    that was free a moment ago may be a client's of another test by the time it is used.
    """
    families = {"0.0.0.0": socket.AF_INET, "::": socket.AF_INET6}
    if not has_ipv6():
        del families["::"]
    for port in random.sample(range(15_000, 32_000), 100):
        with contextlib.suppress(OSError):
            for address, family in families.items():
                socket.create_server((address, port), family=family).close()
            return port
    raise AssertionError("100 ports were in use")


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


with_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Be an ordinary user, who may not what root may."""
    if os.geteuid():
        yield
        return
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def refused(text: str, number: int | None = None) -> Iterator[None]:
    """What is done in here raises a `ListenError` that begins with this, and leaves nothing open."""
    before = open_descriptors()
    with pytest.raises(ListenError, match="^" + re.escape(f"cannot listen on {text}")) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert caught.value.errno
    assert number in (None, caught.value.errno)
    assert open_descriptors() == before


def output(source: str, *before: str, environment: dict[str, str] | None = None, **options: Any) -> list[Any]:
    """What a program prints, a line of JSON each, when it runs under the command ``before``."""
    command = [*before, sys.executable, "-c", textwrap.dedent(source)]
    environment = {**os.environ, **(environment or {}), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE * 4, **options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
