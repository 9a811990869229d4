"""The echo server in C, ``floor.c``, compiled on demand."""

import atexit
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("floor.c")
TLS = ("-DTLS", "-lssl", "-lcrypto")


@cache
def floor_program(tls: bool) -> Path | None:
    """The compiled program; None if there is no C compiler, or no OpenSSL to compile with. It is removed at exit."""
    compiler = shutil.which("cc")
    if not compiler:
        return None
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = Path(folder, "floor")
    command = [compiler, "-O2", "-o", program, SOURCE, *(TLS if tls else ())]
    ended = subprocess.run(command, stderr=subprocess.DEVNULL)
    return None if ended.returncode else program
