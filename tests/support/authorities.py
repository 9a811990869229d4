"""The certificate authorities that the system trusts. No test does: it takes OpenSSL 40 ms to read them, for each
context of a client. pip needs them.
"""

import os

VARIABLE = "SSL_CERT_FILE"

_file = os.environ.get(VARIABLE)


def forget() -> None:
    """Have this process and its children find none."""
    os.environ[VARIABLE] = os.devnull


def environment_with_them() -> dict[str, str]:
    """The environment as it was before."""
    there = {} if _file is None else {VARIABLE: _file}
    return {name: value for name, value in os.environ.items() if name != VARIABLE} | there
