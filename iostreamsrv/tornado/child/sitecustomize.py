"""Python imports this module when it starts, if this folder is on PYTHONPATH: `iostreamsrv.tornado.children` puts it
there.

When the program imports Tornado, our classes are put in its place. Before that nothing is loaded, so a program that
does not use Tornado starts as fast as ever. Then the ``sitecustomize`` that would have been imported without this one
gets its turn.
"""

import os
import sys

TYPE_CHECKING = False  # typing takes milliseconds to load, in every process
if TYPE_CHECKING:
    from typing import Any

sys.path[:] = [folder for folder in sys.path if folder != os.path.dirname(__file__)]  # noqa: PTH120  # likewise
VERBOSE = os.environ.pop("IOSTREAMSRV_TORNADO_VERBOSE", "")  # not for the children of this process


class FirstImport:
    """Sees the first import of Tornado, or of iostreamsrv, and has our classes installed right after it.

    Not earlier: a package that is being imported must not be imported for a second time. Each of the two may import the
    other, so the first one is the one to wait for.
    """

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        """For Python: how to load a module."""
        if name not in ("tornado", "iostreamsrv"):
            return None
        others: Any = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None:
            self._install_after(spec.loader)
        return spec

    def _install_after(self, loader: "Any") -> None:
        execute = loader.exec_module

        def exec_module(module: object) -> None:
            del loader.exec_module
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            execute(module)
            install()

        loader.exec_module = exec_module


def install() -> None:
    """Put our classes in the place of Tornado's, unless this Python does not have this package."""
    from importlib.util import find_spec

    if find_spec("iostreamsrv") is None:
        return
    from iostreamsrv.tornado import install

    for name, ours in install().items():
        if VERBOSE:
            print(f"{name} -> {ours}", file=sys.stderr)
    if sys.version_info < (3, 12):
        # At the end of the process these Pythons may free the module _asyncio before they close coroutines that still
        # wait. That of Tornado's WebSockets then makes a Future, which crashes. It depends on the order in which the
        # modules were imported, which is unusual here. Objects that are frozen, such as asyncio's, keep that module.
        import gc

        gc.freeze()


if sys.version_info >= (3, 11):  # noqa: UP036  # a program may start another Python than its own
    if "tornado" in sys.modules or "iostreamsrv" in sys.modules:  # by a .pth file of the installation
        install()
    else:
        sys.meta_path.insert(0, FirstImport())

this = sys.modules.pop("sitecustomize")
try:
    import sitecustomize  # type: ignore  # noqa: F401  # another one, if there is one
except ImportError as error:
    if error.name != "sitecustomize":
        raise
finally:
    sys.modules.setdefault("sitecustomize", this)
