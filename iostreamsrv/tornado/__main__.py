"""The command ``python -m iostreamsrv.tornado``.

It sets the environment (see `children`) and then becomes the program, by ``exec``. So the program is started by Python
itself: its ``__main__``, ``sys.argv``, ``sys.path``, exit code, tracebacks and signals are what they are without us.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .children import environment
from .replacements import check_version

COMMAND = "python -m iostreamsrv.tornado"

USAGE = f"{COMMAND} [-v] PROGRAM [ARGUMENT ...]\n       {COMMAND} [-v] -m MODULE [ARGUMENT ...]"


def main(arguments: Sequence[str]) -> NoReturn:
    """Become the program that ``arguments`` name."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        usage=USAGE,
        description="Run a program written for Tornado, and the Python processes that it starts, on iostreamsrv.",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print to stderr what is replaced in Tornado")
    parser.add_argument("-m", "--module", action="store_true", help="run a module, as python -m does")
    parser.add_argument("program", metavar="PROGRAM", help="the file of the program; with -m, the module's name")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="the program's arguments")
    options = parser.parse_args(arguments)
    try:
        check_version()
    except RuntimeError as error:
        parser.error(str(error))
    if sys.flags.ignore_environment or sys.flags.no_site:
        parser.error("Python's options -E, -I and -S are not possible: they ignore PYTHONPATH or sitecustomize")
    command = [sys.executable, *interpreter_options(arguments), *["-m"] * options.module, options.program]
    sys.stdout.flush()
    os.execve(sys.executable, [*command, *options.arguments], environment(os.environ, options.verbose))


def interpreter_options(arguments: Sequence[str]) -> list[str]:
    """What stands between ``python`` and ``-m iostreamsrv.tornado`` on the command line, such as ``-X dev``."""
    *options, last = sys.orig_argv[1 : len(sys.orig_argv) - len(arguments)]
    # It is "-m", "iostreamsrv.tornado"; or in one, or with other letters before the m, as in "-um".
    if last == __package__:
        last = options.pop()
    last = last.removesuffix(str(__package__)).removesuffix("m")
    return [*options, *[last] * (last != "-")]


if __name__ == "__main__":
    main(sys.argv[1:])
