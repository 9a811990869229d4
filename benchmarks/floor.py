"""The echo server in C, ``floor.c``."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from .programs import compiled


@cache
def floor_program(tls: bool) -> Path | None:
    """The program; None if it cannot be compiled here. It is removed at exit."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return compiled(Path(__file__).with_name("floor.c"), Path(folder), tls=tls)
