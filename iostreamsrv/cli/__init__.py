"""The command ``iostreamsrv``, which is ``python -m iostreamsrv``, too. All of it but ``info`` needs click."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from . import info

NEEDS_CLICK = 'iostreamsrv: the command needs click: pip install "iostreamsrv[cli]"'


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command that ``arguments`` name, and end the process with its exit code: 0; 2 for a mistake in what was
    typed or configured; 3 if the server does not start.

    :param arguments: what follows the program's name; None for ``sys.argv``.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from .commands import run
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        run = run_without_click
    sys.exit(run(words))


def run_without_click(words: list[str]) -> int:
    """``info [--json]``; one line about all else."""
    if words[:1] == ["info"] and words[1:] in ([], ["--json"]):
        print(info.text(as_json=len(words) == 2))
        return 0
    print(NEEDS_CLICK, file=sys.stderr)
    return 2
