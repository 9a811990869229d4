"""Which core runs: the compiled one, or Python's.

The modules that work for each message exist once, in Python. From the same source, with the types of the ``.pxd`` file
beside each, Cython makes extension modules; three of them have a ``.pyx`` file instead, a twin in C of a few lines of
Python. Python imports an extension module where there is one.

``IOSTREAMSRV_PURE=1`` in the environment chooses the Python core. It is chosen as well, with a warning, if a source was
changed after the extension modules were built: they would run the old code.
"""

import importlib.machinery
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

COMPILED = (
    "iostreamsrv.sansio.search",
    "iostreamsrv.sansio.buffers",
    "iostreamsrv.sansio.reads",
    "iostreamsrv.streams.readiness",
    "iostreamsrv.streams.donefuture",
    "iostreamsrv.streams.wakeup",
    "iostreamsrv.streams.polling",
    "iostreamsrv.streams.hub",
    "iostreamsrv.streams.transports.carrier",
    "iostreamsrv.streams.core",
    "iostreamsrv.streams.sending",
    "iostreamsrv.streams.writing",
    "iostreamsrv.streams.receiving",
    "iostreamsrv.streams.pending",
    "iostreamsrv.streams.completion",
    "iostreamsrv.streams.reading",
    "iostreamsrv.streams.closing",
)
"""The modules of the compiled core. All of them are compiled, or none: a class of C and its base must fit together."""

PACKAGE = Path(__file__).parent
RECORD = "compiled.json"
"""The file beside this one that says what the extension modules were built from: a digest of each source."""


def _file(name: str, suffix: str) -> Path:
    return PACKAGE.parent.joinpath(*name.split(".")).with_suffix(suffix)


def source_of(name: str) -> str:
    """What a module of the compiled core is made from, as a path from the folder of the package."""
    twin = _file(name, ".pyx")
    return str((twin if twin.exists() else _file(name, ".py")).relative_to(PACKAGE.parent))


def _digests() -> dict[str, str]:
    import hashlib  # takes 5 ms, and is needed only where there is a compiled core

    files = [_file(name, suffix) for name in COMPILED for suffix in (".py", ".pyx", ".pxd")]
    return {
        str(path.relative_to(PACKAGE)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.exists()
    }


def record(package: Path) -> None:
    """For the build: write what the extension modules in ``package`` were built from."""
    (package / RECORD).write_text(json.dumps(_digests(), indent=1))


class _PythonCore:
    """An entry of ``sys.meta_path``: finds the sources of the modules of :data:`COMPILED`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in COMPILED:
            return None
        source = str(_file(name, ".py"))
        loader = importlib.machinery.SourceFileLoader(name, source)
        return importlib.util.spec_from_file_location(name, source, loader=loader)


def _choose() -> str:
    """Choose the core that runs from here on; return "python" or "compiled"."""
    built_from = PACKAGE / RECORD
    if not built_from.exists():
        return "python"
    stale = json.loads(built_from.read_text()) != _digests()
    if not stale and not os.environ.get("IOSTREAMSRV_PURE"):
        return "compiled"
    if stale:
        text = "sources of iostreamsrv were changed after its compiled core was built: the Python core runs"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    sys.meta_path.insert(0, _PythonCore())
    return "python"


core = _choose() if __name__ == "iostreamsrv.cores" else ""
"""The core that runs: "python" or "compiled". (setup.py runs this file for the names above.)"""
