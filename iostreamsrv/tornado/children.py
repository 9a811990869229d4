"""The environment in which every Python process has our classes in the place of Tornado's.

Python imports ``sitecustomize`` when it starts, before the program. The folder ``child`` has one, so it is enough that
this folder is the first on PYTHONPATH: processes inherit the environment, whatever starts them.
"""

import os
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path

PACKAGE = Path(__file__).parent.parent

FOLDER = Path(__file__).parent / "child"
"""The folder with the ``sitecustomize``."""

VERBOSE = "IOSTREAMSRV_TORNADO_VERBOSE"
"""The environment variable by which the first process is asked to print what it has replaced."""


def environment(inherited: Mapping[str, str], verbose: bool = False) -> dict[str, str]:
    """``inherited`` with what the child processes need.

    :param verbose: whether the first of them prints what it has replaced.
    """
    path = [str(FOLDER), *_package(), *filter(None, [inherited.get("PYTHONPATH")])]
    return {**inherited, "PYTHONPATH": os.pathsep.join(path)} | ({VERBOSE: "1"} if verbose else {})


def _package() -> list[str]:
    """Where this package is, unless Python finds it by itself: it does not where it is only in the current folder."""
    where = sys.path if sys.flags.safe_path else sys.path[1:]
    found = _find(PACKAGE.name, where)
    if found is not None and found.origin == str(PACKAGE / "__init__.py"):
        return []
    return [str(PACKAGE.parent)]


def _find(name: str, where: list[str]) -> ModuleSpec | None:
    """What an import of ``name`` would find, with ``where`` in the place of ``sys.path``."""
    before, sys.path = sys.path, where
    try:
        return next(filter(None, (finder.find_spec(name, None) for finder in sys.meta_path)), None)
    finally:
        sys.path = before
