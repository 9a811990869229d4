"""Programs in C, compiled on demand: the load generator, the floor, and a clock."""

import shutil
import subprocess
from pathlib import Path

FLAGS = ("-O2", "-Wall", "-Wextra", "-pthread")
TLS = ("-DTLS", "-lssl", "-lcrypto")
LIBRARY = ("-shared", "-fPIC")


def compiled(source: Path, folder: Path, *, tls: bool = False, library: bool = False) -> Path | None:
    """Compile ``source`` into ``folder``; None if there is no C compiler, or if it fails, which is printed.

    :param tls: whether it speaks TLS, which takes OpenSSL to compile.
    :param library: whether it is to be loaded into other programs.
    """
    compiler, program = shutil.which("cc"), folder / (f"{source.stem}-tls" if tls else source.stem)
    if not compiler:
        return None
    options = [*FLAGS, *(LIBRARY if library else ())]
    ended = subprocess.run([compiler, *options, "-o", program, source, *(TLS if tls else ())])
    return None if ended.returncode else program
