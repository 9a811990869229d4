"""Python imports this module when it starts, if this folder is on PYTHONPATH: `iostreamsrv.tornado.children` puts it
there.

When the program imports Tornado, our classes are put in its place. Before that nothing is loaded, so a program that does
not use Tornado starts as fast as ever. Then the ``sitecustomize`` that would have been imported without this one gets
its turn.

Programs may start any version of Python, so there is nothing here that an old one does not know.
"""

import os
import sys

sys.path[:] = [folder for folder in sys.path if folder != os.path.dirname(__file__)]  # noqa: PTH120  # pathlib is slow
VERBOSE = os.environ.pop("IOSTREAMSRV_TORNADO_VERBOSE", "")  # not for the children of this process


class FirstImport:
    """Sees the first import of Tornado, or of iostreamsrv, and has our classes installed right after it.

    Not earlier: a package that is being imported must not be imported for a second time. Either of them imports the
    other one, so there is only one to wait for.
    """

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        """For Python: how to load a module."""
        if name not in ("tornado", "iostreamsrv"):
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None:
            loader = spec.loader
            execute = loader.exec_module

            def exec_module(module):  # type: ignore[no-untyped-def]
                del loader.exec_module
                sys.meta_path.remove(self)
                execute(module)
                install()

            loader.exec_module = exec_module
        return spec


def install():  # type: ignore[no-untyped-def]
    """Put our classes in the place of Tornado's, unless this Python does not have this package."""
    from importlib.util import find_spec

    if find_spec("iostreamsrv") is None:
        return
    import iostreamsrv.tornado

    replaced = iostreamsrv.tornado.install()
    if VERBOSE:
        for name, ours in replaced.items():
            print(f"{name} -> {ours}", file=sys.stderr)


if sys.version_info >= (3, 11):
    sys.meta_path.insert(0, FirstImport())

this = sys.modules.pop("sitecustomize")
try:
    import sitecustomize  # noqa: F401  # another one
except ImportError as error:
    if error.name != "sitecustomize":
        raise
finally:
    sys.modules.setdefault("sitecustomize", this)
