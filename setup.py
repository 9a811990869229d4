"""Packaging. What is fixed is in pyproject.toml; what is built is decided here.

The compiled core is built where Cython, a C compiler and Python's headers are, which takes half a minute to a minute.
Elsewhere, and where it can't be built, one line says so, and the Python core is all there is. ``IOSTREAMSRV_BUILD`` in
the environment changes that: ``compiled`` fails instead, ``pure`` does not try. See iostreamsrv/cores.py.
"""

import os
import platform
import runpy
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CORES = runpy.run_path("iostreamsrv/cores.py")

WAYS = ("auto", "compiled", "pure")
WAY = os.environ.get("IOSTREAMSRV_BUILD") or "auto"

CYTHON = (3, 1)
"""The oldest one; pyproject.toml has it, too."""

DIRECTIVES = {"language_level": 3, "binding": True, "annotation_typing": False}
"""Annotations stay what they are in Python: they check nothing, and turn nothing into a number of C. The types are in
the .pxd files."""

FLAGS = [] if os.environ.get("CFLAGS") else ["-O2", "-g0", "-w"]
"""For what Cython generates: the debugging information that Python itself was built with would take half as long again,
and the compiler's warnings are not about anything in the sources. With ``CFLAGS`` in the environment, only those."""


class Obstacle(Exception):
    """Why the compiled core can't be built here, and a command that may change that."""

    def __init__(self, why: str, command: str = "") -> None:
        super().__init__(f"{why}: {command}" if command else why)
        self.why = why


def check_machine() -> None:
    """Raise `Obstacle` where something is missing."""
    if sys.implementation.name != "cpython" or os.name != "posix":
        raise Obstacle(f"not for {platform.python_implementation()} on {platform.system()}")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise Obstacle("not for a free-threaded Python")
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        raise Obstacle(f"no C compiler ({compiler})", "apt-get install gcc")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        version = "{}.{}".format(*sys.version_info)
        raise Obstacle(f"no headers of Python {version}", f"apt-get install python{version}-dev")
    try:
        from Cython import __version__ as cython
    except ImportError:
        cython = "0.0"
    if tuple(map(int, cython.split(".")[:2])) < CYTHON:
        wanted = "Cython {}.{} or newer".format(*CYTHON)
        raise Obstacle(f"no {wanted}", 'pip install "Cython>={}.{}"'.format(*CYTHON))


def say(text: str) -> None:
    """One line. (pip shows it with ``--verbose``.)"""
    print(f"iostreamsrv: {' '.join(text.split())}", file=sys.stderr, flush=True)


class BuildCore(build_ext):
    """Builds all modules of the compiled core, or none: a class of C and its base must fit together."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if not self.parallel:
            self.parallel = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def run(self) -> None:
        package = Path("." if self.inplace else self.build_lib, "iostreamsrv")
        sources = CORES["snapshot"]()
        if self.inplace and self._is_built(package):
            CORES["write_record"](package, sources=sources)
            return
        everything = not self.inplace or self._misleads(package)
        package.mkdir(parents=True, exist_ok=True)
        (package / CORES["RECORD"]).unlink(missing_ok=True)  # what happens to be there, until all of it is
        try:
            check_machine()
            say("building the compiled core, which takes up to a minute")
            self._cythonize(everything)
            super().run()
        except Exception as error:
            self._remove(package, keep=[])
            why = error.why if isinstance(error, Obstacle) else f"{type(error).__name__} in its build"
            tried = {} if everything else {"tried": sources}
            CORES["write_record"](package, failed=f"no compiled core: {why}", **tried)
            if WAY == "compiled":
                raise SystemExit(f"iostreamsrv: no compiled core: {error}") from error
            say(f"no compiled core, but Python's, which is slower: {error}")
            self._be_pure()
        else:
            self._remove(package, keep=[self._file(package, each.name) for each in self.extensions])
            # The sources of what is installed stay what they are; those of a checkout do not.
            CORES["write_record"](package, sources=sources if self.inplace else {})

    def _file(self, package: Path, name: str) -> Path:
        return package.parent / self.get_ext_filename(name)

    def _is_built(self, package: Path) -> bool:
        sources = CORES["read_record"](package).get("sources")
        files = [self._file(package, each.name) for each in self.extensions]
        return bool(sources) and not CORES["changed"](sources) and all(each.exists() for each in files)

    def _misleads(self, package: Path) -> bool:
        """Whether Cython, which compares times, would miss a change: of setup.py, or by a file that is old.

        Without a record of the last build, or of a try to build what had changed, nobody knows.
        """
        record = CORES["read_record"](package)
        sources = record.get("sources") or record.get("tried")
        if not sources:
            return True
        changed = CORES["changed"](sources)
        built = (package / CORES["RECORD"]).stat().st_mtime
        present = [Path(each) for each in changed if Path(each).exists()]
        return "setup.py" in changed or any(each.stat().st_mtime <= built for each in present)

    def _cythonize(self, everything: bool) -> None:
        from Cython.Build import cythonize

        self.force = self.force or everything
        modules = [Extension(each.name, [CORES["source_of"](each.name)]) for each in self.extensions]
        made = cythonize(
            modules,
            build_dir="build/cython",
            compiler_directives=DIRECTIVES,
            force=self.force,
            quiet=self.verbose < 1,
        )
        sources = {each.name: each.sources for each in made}
        for extension in self.extensions:
            extension.sources = sources[extension.name]

    def _remove(self, package: Path, keep: list[Path]) -> None:
        """Remove the extension modules of this Python, also those that are none any more."""
        for path in package.rglob("*" + CORES["SUFFIX"]):
            if path not in keep:
                path.unlink()

    def _be_pure(self) -> None:
        """From here on, be a distribution without extension modules: its wheel is for every machine."""
        self.extensions = []
        self.distribution.ext_modules = []
        wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
        if wheel is not None:
            wheel.root_is_pure = True


if WAY not in WAYS:
    raise SystemExit(f"IOSTREAMSRV_BUILD is {WAY!r}, and must be one of {', '.join(WAYS)}")
if __name__ == "__main__":
    # Their sources are known when Cython has made them; until then not even Cython is needed.
    modules = [Extension(name, [], depends=["setup.py"], extra_compile_args=FLAGS) for name in CORES["COMPILED"]]
    setup(ext_modules=[] if WAY == "pure" else modules, cmdclass={"build_ext": BuildCore})
