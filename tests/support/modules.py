"""The modules of the package, and what each imports."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from tests.support import PROJECT

PACKAGE = PROJECT / "iostreamsrv"


FRONT_DOOR = "__init__"
"""Imports from all; nobody imports it."""


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package under its name within it; a subpackage under the subpackage's name."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """The full name of the module that ``from ... import`` names."""
    if not node.level:
        return node.module or ""
    package = path.relative_to(PROJECT).parts[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


@functools.cache
def nodes_of(source: str) -> list[ast.AST]:
    """All nodes of a module: several tests look at those of each."""
    return list(ast.walk(ast.parse(source)))


def imports(path: Path, source: str | None = None) -> Iterator[str]:
    """The full names of the modules that a file imports, wherever in it."""
    for node in nodes_of(path.read_text() if source is None else source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, path)
            names = [f"{module}.{alias.name}" for alias in node.names]
            submodules = [name for name in names if name.removeprefix("iostreamsrv.") in modules()]
            yield from submodules if len(submodules) == len(names) else [module, *submodules]


@functools.cache
def own_imports(path: Path, source: str | None = None) -> list[str]:
    """Those of them that are of this package, by their names within it."""
    return [
        name.removeprefix("iostreamsrv").removeprefix(".") or FRONT_DOOR
        for name in imports(path, source)
        if name.split(".")[0] == "iostreamsrv"
    ]


inside = {name: path for name, path in modules().items() if name != FRONT_DOOR}
