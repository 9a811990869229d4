"""Prints in one line why this Python cannot make the venv, if it cannot. Any Python must be able to read this file."""

import sys

python = sys.argv[1]
version = "%d.%d" % sys.version_info[:2]  # noqa: UP031

if sys.version_info < (3, 11):  # noqa: UP036
    print(
        "iostreamsrv needs Python 3.11 or newer, and " + python + " is " + version + "; another: make PYTHON=python3.13"
    )
else:
    try:
        import venv  # noqa: F401
        from ensurepip import bootstrap  # noqa: F401
    except ImportError:  # Debian and Ubuntu keep it in a package of its own
        print(python + " has no venv module: sudo apt-get install python" + version + "-venv")
