"""Packaging. What is fixed is in pyproject.toml; what is built is decided here.

``IOSTREAMSRV_BUILD=compiled`` builds the compiled core, which takes a C compiler, Python's headers and a minute.
Without it there is only the Python core. See iostreamsrv/cores.py.
"""

import os
import runpy
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DIRECTIVES = {"language_level": 3, "binding": True, "annotation_typing": False}
"""Annotations stay what they are in Python: they check nothing, and turn nothing into a number of C. The types are in
the .pxd files."""


def compiled_core() -> dict[str, Any]:
    """The arguments of ``setup`` that build the compiled core."""
    requires = {"setup_requires": ["Cython>=3.1"]}
    try:
        from Cython.Build import cythonize
    except ImportError:
        return requires  # they are being asked for; then this is called again
    cores = runpy.run_path("iostreamsrv/cores.py")
    modules = [Extension(name, [cores["source_of"](name)], extra_compile_args=["-O2"]) for name in cores["COMPILED"]]
    extensions = cythonize(modules, build_dir="build/cython", compiler_directives=DIRECTIVES)

    class BuildCore(build_ext):
        """Says what the extension modules were built from, when all of them are built."""

        def run(self) -> None:
            super().run()
            cores["record"](Path("." if self.inplace else self.build_lib, "iostreamsrv"))

    return {**requires, "ext_modules": extensions, "cmdclass": {"build_ext": BuildCore}}


setup(**compiled_core() if os.environ.get("IOSTREAMSRV_BUILD") == "compiled" else {})
