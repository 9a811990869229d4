"""A program on our classes and on Tornado's: it prints the same, ends the same, and knows the same about itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from iostreamsrv.tornado.children import FOLDER
from tests.support import PROJECT
from tests.support.programs import PATIENCE

PROGRAMS = Path(__file__).parent / "programs"
RUNNER = ("-m", "iostreamsrv.tornado")


def python(*arguments: str | Path, folder: Path = PROJECT, path: str = "") -> "subprocess.CompletedProcess[str]":
    """A Python process that has ended. ``path`` is what it has on PYTHONPATH besides this project."""
    core = {name: value for name, value in os.environ.items() if name == "IOSTREAMSRV_PURE"}
    environment = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "PYTHONPATH": f"{path}:{PROJECT}".strip(":")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**environment, **core},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
    )


def outcome(done: "subprocess.CompletedProcess[str]") -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "name, on_tornado, on_ours",
    [
        ("application.py", "tornado.httpserver\n", "iostreamsrv.tornado.servers\n"),
        ("tcp.py", "tornado.iostream tornado.tcpserver\n", "iostreamsrv.iostream iostreamsrv.tornado.servers\n"),
        ("left_open.py", "tornado.iostream\n", "iostreamsrv.iostream\n"),
    ],
)
def test_a_program_prints_on_our_classes_what_it_prints_on_tornados(name: str, on_tornado: str, on_ours: str) -> None:
    theirs, ours = python(PROGRAMS / name), python(*RUNNER, PROGRAMS / name)
    assert (theirs.returncode, theirs.stderr) == (0, on_tornado)
    assert (ours.returncode, ours.stderr) == (0, on_ours)
    assert theirs.stdout
    assert ours.stdout == theirs.stdout


def test_child_processes_have_our_classes_too(tmp_path: Path) -> None:
    theirs, ours = python(PROGRAMS / "children.py"), python(*RUNNER, PROGRAMS / "children.py", folder=tmp_path)
    assert (theirs.returncode, theirs.stderr) == (ours.returncode, ours.stderr) == (0, "")
    assert ours.stdout == re.sub(r"\btornado\.iostream", "iostreamsrv.iostream", theirs.stdout)
    assert ours.stdout.count("iostreamsrv.iostream") == 7


ABOUT_ITSELF = """
import sys
print(sys.argv, sys.path, sys.orig_argv[-3:], sys.flags, sys.warnoptions, sys._xoptions)
print(__name__, __file__, __spec__ and __spec__.name, sys.modules["__main__"].__dict__ is globals())
print(sorted(name for name in sys.modules if "tornado" in name or "iostreamsrv" in name))
"""

ENDS = {
    "itself": ABOUT_ITSELF,
    "exit": "import sys; sys.exit(7)",
    "exit_with_a_message": "import sys; sys.exit('it is enough')",
    "exception": "import tornado.web\ndef f():\n    int('no')\ntry:\n    f()\nexcept ValueError:\n    1 / 0",
    "syntax": "print('never'\n",
    "interrupt": "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)",
    "signal": "import os, signal\nimport tornado.ioloop\nos.kill(os.getpid(), signal.SIGTERM)\nsignal.pause()",
    "at_exit": "import atexit, threading, time\natexit.register(lambda: print(__name__))\n"
    "threading.Thread(target=lambda: (time.sleep(0.05), print('last', __name__))).start()",
}


SECOND_TIER = {"exit", "exit_with_a_message", "syntax", "interrupt", "at_exit"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.second_tier] * (name in SECOND_TIER)) for name in ENDS]
)
def test_a_program_ends_and_knows_itself_as_without_the_runner(name: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(ENDS[name])
    options, arguments = ("-X", "dev", "-W", "ignore::ImportWarning"), (program, "-v", "--", "-m", "x")
    assert outcome(python(*options, *RUNNER, *arguments)) == outcome(python(*options, *arguments))


def test_a_module_runs_as_with_python_m(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(ABOUT_ITSELF)
    arguments = "-m", "package", "-m", "-v", "-h"
    ours = python(*RUNNER, *arguments, folder=tmp_path)
    assert outcome(ours) == outcome(python(*arguments, folder=tmp_path))
    assert ours.stdout.startswith(f"['{tmp_path}/package/__main__.py', '-m', '-v', '-h'] ['{tmp_path}', ")


@pytest.mark.second_tier
@pytest.mark.parametrize("before", [["-Wignore", "-um"], ["-X", "utf8", "-m"]], ids=" ".join)
def test_options_of_python_are_passed_on(before: list[str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(ABOUT_ITSELF + "print(sys.stdout.write_through)")
    options = [*before[:-1], *["-u"] * (before[-1] == "-um")]
    assert outcome(python(*before, "iostreamsrv.tornado", program)) == outcome(python(*options, program))
    assert outcome(python(*before[:-1], f"{before[-1]}iostreamsrv.tornado", program)) == outcome(
        python(*options, program)
    )


def test_v_says_once_what_was_replaced(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import subprocess, sys, tornado.web\nsubprocess.check_call([sys.executable, '-c', 'import tornado.web'])"
    )
    said = python(*RUNNER, "-v", program).stderr.splitlines()
    assert "tornado.iostream.IOStream -> iostreamsrv.iostream.IOStream" in said
    assert "tornado.tcpserver.TCPServer -> iostreamsrv.tornado.servers.TCPServer" in said
    assert "tornado.httpserver.HTTPServer -> iostreamsrv.tornado.servers.HTTPServer" in said
    assert "tornado.process.PipeIOStream -> iostreamsrv.iostream.PipeIOStream" in said
    assert len(said) == len(set(said))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: PROGRAM"),
        (["--nonsense", "x.py"], "unrecognized arguments: --nonsense|the following arguments are required"),
    ],
)
def test_a_wrong_command_line_ends_with_the_usage(arguments: list[str], message: str) -> None:
    ended = python(*RUNNER, *arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: python -m iostreamsrv.tornado [-v] PROGRAM [ARGUMENT ...]\n")
    assert re.search(message, ended.stderr)


@pytest.mark.parametrize("option", ["-E", "-S"])
def test_an_option_of_python_that_prevents_it_is_an_error(option: str) -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; from iostreamsrv.tornado.__main__ import main; main(['x.py'])"
    ended = python(option, "-c", code)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].endswith(
        "-E, -I and -S are not possible: they ignore PYTHONPATH or sitecustomize"
    )


def test_another_sitecustomize_runs_as_well(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('here', __name__, __file__, flush=True)\nanother = True\n")
    child = (
        "import sitecustomize; from tornado.iostream import IOStream; print(sitecustomize.another, IOStream.__module__)"
    )
    program = tmp_path / "program.py"
    program.write_text(f"import subprocess, sys\nsubprocess.check_call([sys.executable, '-c', {child!r}])")
    theirs, ours = python(program, path=str(tmp_path)), python(*RUNNER, program, path=str(tmp_path))
    here = f"here sitecustomize {tmp_path}/sitecustomize.py\n"
    assert outcome(theirs) == (0, f"{here}{here}True tornado.iostream\n", "")
    # The runner is a Python as well, before it becomes the program.
    assert outcome(ours) == (0, f"{here}{here}{here}True iostreamsrv.iostream\n", "")


@pytest.mark.second_tier
def test_one_that_fails_is_reported_as_ever(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import no_such_module\n")
    (tmp_path / "program.py").write_text("from tornado.iostream import IOStream\nprint(IOStream.__module__)")
    ours = python(*RUNNER, "program.py", folder=tmp_path, path=str(tmp_path))
    assert (ours.returncode, ours.stdout) == (0, "iostreamsrv.iostream\n")
    assert ours.stderr.count("Error in sitecustomize; set PYTHONVERBOSE for traceback:\n") == 2
    assert "No module named 'no_such_module'" in ours.stderr


def test_a_python_without_this_package_has_tornados_classes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (tmp_path / "tornado").mkdir()
    (tmp_path / "tornado" / "__init__.py").write_text("version_info = (1, 0)")
    code = "import tornado; print(tornado.version_info, tornado.__loader__.exec_module.__name__)"
    child = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(PROJECT / "iostreamsrv" / "tornado" / "child")},
        capture_output=True,
        text=True,
    )
    assert outcome(child) == (0, "(1, 0) exec_module\n", "")


def test_a_tornado_that_is_imported_before_the_sitecustomize_is_replaced_at_once() -> None:
    """A .pth file of the installation may import it."""
    program = (
        "import sys, tornado.iostream; sys.modules.pop('sitecustomize', None); sys.path.insert(0, sys.argv[1]);"
        "import sitecustomize; print(tornado.iostream.IOStream.__module__)"
    )
    command = [sys.executable, "-c", program, str(FOLDER)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "iostreamsrv.iostream\n"
