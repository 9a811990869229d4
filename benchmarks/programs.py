"""Programs in C, compiled on demand: the load generator and the floor."""

import shutil
import subprocess
from pathlib import Path

FLAGS = ("-O2", "-Wall", "-Wextra", "-pthread")
TLS = ("-DTLS", "-lssl", "-lcrypto")


def compiled(source: Path, folder: Path, *, tls: bool) -> Path | None:
    """Compile ``source`` into ``folder``; None if there is no C compiler, or if it fails, which is printed.

    :param tls: whether it speaks TLS, which takes OpenSSL to compile.
    """
    compiler, program = shutil.which("cc"), folder / (f"{source.stem}-tls" if tls else source.stem)
    if not compiler:
        return None
    ended = subprocess.run([compiler, *FLAGS, "-o", program, source, *(TLS if tls else ())])
    return None if ended.returncode else program
