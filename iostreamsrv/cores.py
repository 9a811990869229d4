"""Which core runs: the compiled one, or Python's.

The modules that work for each message exist once, in Python. From the same source, with the types of the ``.pxd`` file
beside each, Cython makes extension modules; some of them have a ``.pyx`` file instead, a twin in C of a few lines of
Python. Python imports an extension module where there is one.

``IOSTREAMSRV_PURE=1`` in the environment chooses the Python core. In a checkout it is chosen as well, with a warning,
if a source was changed after the extension modules were built: they would run the old code. :data:`core` says which
core runs, :data:`why` why it is Python's.
"""

import importlib.machinery
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

COMPILED = (
    "iostreamsrv.sansio.search",
    "iostreamsrv.sansio.buffers",
    "iostreamsrv.sansio.reads",
    "iostreamsrv.sansio.frames",
    "iostreamsrv.sansio.tls",
    "iostreamsrv.net.backlog",
    "iostreamsrv.streams.readiness",
    "iostreamsrv.streams.donefuture",
    "iostreamsrv.streams.wakeup",
    "iostreamsrv.streams.polling",
    "iostreamsrv.streams.hub",
    "iostreamsrv.streams.transports.base",
    "iostreamsrv.streams.transports.carrier",
    "iostreamsrv.streams.transports.socket",
    "iostreamsrv.streams.transports.tls",
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

FOLDER = Path(__file__).resolve().parent.parent
"""The folder of the package. Names of sources are paths from here."""

SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
"""How the extension modules of this Python end. A checkout may have those of several Pythons."""

RECORD = f"compiled{SUFFIX.rpartition('.')[0]}.json"
"""The file beside this one that the build leaves. "sources" has what the extension modules were built from, with the
`_times` and the `_digest` of each file; an installed package has none to compare. "failed" has why there are no such
modules, and "tried" the sources of the try that failed."""

Times = list[int]


def _source(name: str, suffix: str) -> str:
    return name.replace(".", "/") + suffix


def source_of(name: str) -> str:
    """What a module of the compiled core is made from."""
    twin = _source(name, ".pyx")
    return twin if (FOLDER / twin).exists() else _source(name, ".py")


def _times() -> dict[str, Times]:
    """Of each source what changes whenever it is written: size, times of modification and of the last change.

    Programs that write a file may set the one time, and none can set the other.
    """
    times = {}
    for source in ["setup.py", *(_source(name, suffix) for name in COMPILED for suffix in (".py", ".pyx", ".pxd"))]:
        try:
            found = os.stat(f"{FOLDER}/{source}")  # noqa: PTH116 (pathlib takes three times as long)
        except FileNotFoundError:
            continue
        times[source] = [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    return times


def _digest(source: str) -> str:
    import hashlib  # takes some milliseconds, and is needed only for a file that was written again

    return hashlib.sha256((FOLDER / source).read_bytes()).hexdigest()


def snapshot() -> dict[str, tuple[Times, str]]:
    """For the build, before it reads them: the sources, as the record has them."""
    return {source: (times, _digest(source)) for source, times in _times().items()}


def changed(recorded: Mapping[str, tuple[Times, str]]) -> list[str]:
    """The sources that are not what was recorded.

    A file that git, ``cp`` or ``touch`` wrote again may have the same contents, so its digest decides.
    """
    found = _times()

    def differs(source: str) -> bool:
        if source not in found or source not in recorded:
            return True
        times, digest = recorded[source]
        return found[source] != times and _digest(source) != digest

    return sorted(source for source in found.keys() | recorded.keys() if differs(source))


def read_record(package: Path) -> dict[str, Any]:
    """What the build has left in the folder with the extension modules; nothing where there was none."""
    try:
        return json.loads((package / RECORD).read_bytes())  # type: ignore[no-any-return]
    except FileNotFoundError:
        return {}


def write_record(package: Path, **record: Any) -> None:
    """For the build: say what it has made."""
    (package / RECORD).write_text(json.dumps(record, indent=1))


class _PythonCore:
    """An entry of ``sys.meta_path``: finds the sources of this package's modules, whatever lies beside them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith("iostreamsrv."):
            return None
        source = FOLDER / _source(name, ".py")
        if not source.exists():
            return None
        loader = importlib.machinery.SourceFileLoader(name, str(source))
        return importlib.util.spec_from_file_location(name, source, loader=loader)


def _choose() -> tuple[str, str]:
    """Choose the core that runs from here on; return it, and why it is Python's."""
    record = read_record(FOLDER / "iostreamsrv")
    sources = record.get("sources")
    if os.environ.get("IOSTREAMSRV_PURE"):
        why = "IOSTREAMSRV_PURE is set"
    elif sources is None:
        why = record.get("failed", "no compiled core")
    elif sources and (names := changed(sources)):
        why = f"changed after its compiled core was built: {', '.join(names)}"
        warnings.warn(f"iostreamsrv runs on its Python core. {why.capitalize()}", RuntimeWarning, stacklevel=4)
    else:
        return "compiled", ""
    if sources is not None or any((FOLDER / _source(name, SUFFIX)).exists() for name in COMPILED):
        sys.meta_path.insert(0, _PythonCore())
    return "python", why


core, why = _choose() if __name__ == "iostreamsrv.cores" else ("", "")
"""The core that runs, "python" or "compiled", and why it is Python's. (setup.py runs this file for the names above.)"""
