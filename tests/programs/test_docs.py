"""The Python blocks of docs/ do what the block after each of them says, and the reference has every public name.

A ``handle_stream`` is served, and a program that says "listening on" is started, and both are spoken to: a text block
has what a client sends (``>``) and gets (``<``), with the client's number in front where there are several, and
``<SIGTERM>`` where the server gets that; a console block what is typed (``$``) and shown. Any other program prints its
text block. Tests are run, and pass. What is on port 8888 gets one that is free.
"""

import contextlib
import functools
import importlib
import inspect
import os
import pydoc
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import iostreamsrv
from iostreamsrv.streams.served import ServedStream
from tests.support.listening import unused_port
from tests.support.programs import PATIENCE, PROJECT, Client, Program

DOCS = PROJECT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

SERVE = """

import iostreamsrv

server = iostreamsrv.TCPServer()
server.handle_stream = handle_stream
server.listen(0, "127.0.0.1")
print("listening on %s:%d" % server.addresses[0])
iostreamsrv.run(server)
"""
"""What a ``handle_stream`` of the docs is given to run."""


class Block(NamedTuple):
    where: str
    source: str
    language: str
    shown: str

    @property
    def kind(self) -> str:
        if "def test_" in self.source:
            return "tests"
        if self.language == "console":
            return "console"
        if "listening on" in self.source:
            return "server"
        whole = any(text in self.source for text in ("TCPServer", "BlockingServer", "run("))
        return "program" if whole else "handler"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(
            r"^```python\n(.*?)^```$(?:\n\n^```(text|console)\n(.*?)^```$)?", text, re.DOTALL | re.MULTILINE
        ):
            line = text.count("\n", 0, match.start()) + 1
            yield Block(f"{page.relative_to(DOCS)}:{line}", match[1], match[2] or "", match[3] or "")


BLOCKS = list(blocks())


def each(*kinds: str) -> pytest.MarkDecorator:
    wanted = [block for block in BLOCKS if block.kind in kinds]
    return pytest.mark.parametrize("block", wanted, ids=[block.where for block in wanted])


def test_every_block_shows_what_it_does() -> None:
    assert {block.kind for block in BLOCKS} == {"handler", "server", "program", "console", "tests"}
    assert [block.where for block in BLOCKS if not block.shown and block.kind != "tests"] == []


def pasted(block: Block, folder: Path, more: str = "") -> tuple[Path, str]:
    """The block in a file of the name its first line may give, and what is shown, both with a port that is free."""
    port = str(unused_port())
    named = re.match(r"# (\w+\.py)\n", block.source)
    script = folder / (named[1] if named else "block.py")
    script.write_text((block.source + more).replace("8888", port))
    return script, block.shown.replace("8888", port)


@each("handler", "server")
def test_a_server_of_the_docs_says_what_they_show(block: Block, tmp_path: Path) -> None:
    script, shown = pasted(block, tmp_path, SERVE if block.kind == "handler" else "")
    with Program(script, folder=tmp_path).listening() as program:
        before, signalled, after = shown.partition("<SIGTERM>\n")
        with contextlib.ExitStack() as stack:
            clients: dict[str, Client] = {}
            talk(before, clients, lambda: stack.enter_context(program.client()))
            if signalled:
                assert program.end() == (0, "", "")
            talk(after, clients, program.client)
        assert signalled or program.end() == (0, "", "")


def talk(shown: str, clients: dict[str, Client], connect: Callable[[], Client]) -> None:
    for line in shown.splitlines():
        match = re.fullmatch(r"(\d?)(?:([<>]) (.*)|<end of stream>)", line)
        assert match, f"neither >, nor <, nor an end: {line!r}"
        number, arrow, said = match.groups()
        if number not in clients:
            clients[number] = connect()
        if arrow == ">":
            clients[number].send(said.encode() + b"\n")
        else:
            assert clients[number].line().decode() == ("" if arrow is None else said + "\n")


@each("program")
def test_a_program_of_the_docs_prints_what_they_show(block: Block, tmp_path: Path) -> None:
    script, shown = pasted(block, tmp_path)
    with Program(script, folder=tmp_path) as program:
        assert program.outcome() == (0, shown, "")


@each("tests")
def test_the_tests_in_the_docs_pass(block: Block, tmp_path: Path) -> None:
    if "mark.asyncio" in block.source:  # tests/test_testing_plugins.py runs it as well, in a venv that has the plugin
        pytest.importorskip("pytest_asyncio")
    script, _ = pasted(block, tmp_path)
    outcome = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", script.name], tmp_path)
    assert outcome.returncode == 0, outcome.stdout
    assert re.search(r"\d passed", outcome.stdout)


@each("console")
def test_what_one_types_in_the_docs_shows_what_they_say(block: Block, tmp_path: Path) -> None:
    script, shown = pasted(block, tmp_path)
    typed = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", shown, re.MULTILINE)
    for command, _ in typed:
        for tool in re.findall(r"(?:^|\| )([\w-]+)", command):
            if shutil.which(tool, path=environment()["PATH"]) is None:
                pytest.skip(f"there is no {tool} here")
    (tmp_path / "iostreamsrv").symlink_to(PROJECT / "iostreamsrv")  # systemd passes no PYTHONPATH on
    with contextlib.ExitStack() as stack:
        if not typed[0][0].endswith(" &"):
            stack.enter_context(listening([sys.executable, script.name], tmp_path))
        for command, answer in typed:
            if command.endswith(" &"):
                stack.enter_context(listening(shlex.split(command.removesuffix(" &")), tmp_path))
            else:
                assert run(["bash", "-c", command], tmp_path).stdout == answer


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"}


def run(command: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3 * PATIENCE,  # pytest itself takes a while to start
    )


@contextlib.contextmanager
def listening(command: list[str], folder: Path) -> Iterator[None]:
    """A command that runs, from when it says that it is listening until SIGTERM, which all it started must take calmly.

    (The first process of several has no handler for it: the default one ends it.)
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    watchdog = threading.Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    try:
        with process.stdout:
            first = process.stdout.readline()
            assert "istening on" in first, first + process.stdout.read()
            yield
            os.killpg(process.pid, signal.SIGTERM)
            said = process.stdout.read()
            assert process.wait() in (0, -signal.SIGTERM), said
            assert "Traceback" not in said
    finally:
        watchdog.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# ---- the reference


def documented() -> set[str]:
    """The full name of everything the reference has an entry for."""
    names = set()
    for page in (DOCS / "reference").glob("*.md"):
        module = enclosing = ""
        entries = re.findall(r"^( *)\.\. (?:auto|py:)?(\w+):: ([\w.]+)(?:\(\))?$", page.read_text(), re.MULTILINE)
        for indent, kind, name in entries:
            if kind in ("currentmodule", "module"):
                module = name
            elif indent:
                names.add(f"{enclosing}.{name}")
            else:
                enclosing = f"{module}.{name}"
                names.add(enclosing)
    return names


@pytest.mark.parametrize(
    "module",
    [
        "iostreamsrv",
        "iostreamsrv.control",
        "iostreamsrv.observe",
        "iostreamsrv.observe.metrics",
        "iostreamsrv.testing",
        "iostreamsrv.pytest_plugin",
        "iostreamsrv.tornado",
    ],
)
def test_every_public_name_has_its_entry_in_the_reference(module: str) -> None:
    public = importlib.import_module(module).__all__
    assert public
    assert [name for name in public if f"{module}.{name}" not in documented()] == []


FOR_OTHER_ROOMS = {"dispatch", "forget_output", "lose_descriptor", "uncork", "enqueue", "take_buffered", "write_shared"}
"""Methods of a stream that have public names and are not for users, but for the hub and `iostreamsrv.compat`; nor are
those of `ServedStream`."""

CLASSES = ["IOStream", "PipeIOStream", "TCPClient", "TCPServer"]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_public_method_has_its_entry_in_the_reference(kind: str) -> None:
    entries = documented()
    bases = [each.__name__ for each in getattr(iostreamsrv, kind).__mro__]
    public = set(methods(getattr(iostreamsrv, kind))) - FOR_OTHER_ROOMS - set(vars(ServedStream))
    assert public
    assert [name for name in sorted(public) if not any(f"iostreamsrv.{base}.{name}" in entries for base in bases)] == []


def methods(kind: type) -> Iterator[str]:
    for name in dir(kind):
        found = inspect.getattr_static(kind, name)
        if not name.startswith("_") and (callable(found) or isinstance(found, property | functools.cached_property)):
            yield name


# ---- from Tornado


@pytest.mark.parametrize("package", ["tornado", "iostreamsrv"])
def test_every_name_in_the_table_of_names_is_there(package: str) -> None:
    names = re.findall(rf"`({package}\.[\w.]+)[`(]", (DOCS / "from_tornado.md").read_text())
    assert len(names) > 10
    assert [name for name in names if pydoc.locate(name) is None] == []
