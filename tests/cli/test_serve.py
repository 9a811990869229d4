"""``iostreamsrv serve``, up to where the supervisor begins; and what its page says."""

import os
import re
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from iostreamsrv.certificates import self_signed
from iostreamsrv.cli.commands import run
from iostreamsrv.cli.configuration import SETTINGS, flag
from iostreamsrv.cli.files import read_variables
from iostreamsrv.cli.serve import serve
from iostreamsrv.errors import ListenError
from iostreamsrv.supervisor.settings import Settings
from tests.support import PROJECT

CHAT = """
import iostreamsrv

class Chat(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        pass

class Listening(Chat):
    def __init__(self):
        super().__init__()
        self.listen(0, "127.0.0.1")

server = Chat(idle_timeout=60)
number = 5

async def handle(stream, address):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with ``chat.py`` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "chat.py").write_text(CHAT)
    yield tmp_path
    for name in "chat", "broken":
        sys.modules.pop(name, None)


Served = list[Settings]


@pytest.fixture
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    """What a supervisor was asked to do: this one does nothing, and returns 0."""
    asked: Served = []
    master = types.ModuleType("iostreamsrv.supervisor.master")
    master.serve_with = lambda settings, reread: asked.append(settings) or 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, master.__name__, master)
    return asked


Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    """What the command does with these words: its exit code, and what it says on stdout and stderr."""

    def typed(*words: str) -> tuple[int, str, str]:
        code = run(list(words))
        return code, *capsys.readouterr()

    return typed


def fails(typed: Typed, code: int, problem: str, *words: str) -> None:
    """The command ends with this code and one line, which begins with ``problem``."""
    found, out, said = typed("serve", *words)
    assert (found, out) == (code, "")
    assert said.startswith(f"iostreamsrv: {problem}")
    assert said.count("\n") == 1
    assert said.endswith("\n")


# ---- what the supervisor is asked to do


def test_a_target_is_enough(typed: Typed, served: Served) -> None:
    assert typed("serve", "chat:Chat") == (0, "", "")
    assert served == [Settings(target="chat:Chat")]


def test_every_flag_is_a_setting(typed: Typed, served: Served, folder: Path) -> None:
    (folder / "my.toml").write_text("ready_timeout = 5\n")
    (folder / ".env").write_text("IOSTREAMSRV_HANG_TIMEOUT=5\n")
    words = """serve chat:Chat --bind 127.0.0.1:0 --bind unix:x?mode=0660 --tls-cert c.pem --tls-key k.pem -w 3
    -c my.toml --set idle_timeout=5m --set cork=no --env-file .env --pid-file p --user root --group 0 --drain-timeout 4
    --kill-timeout 3 --retire-timeout none --worker-lifetime 1d --worker-max-rss 1G --worker-max-accepted 100
    --jitter 0.2 --control c --reload --metrics :9 --access-log - --access-log-format json"""
    try:
        assert typed(*words.split()) == (0, "", "")
    finally:
        os.environ.pop("IOSTREAMSRV_HANG_TIMEOUT", None)
    values = {
        "target": "chat:Chat",
        "binds": ["127.0.0.1:0", "unix:x?mode=0660"],
        "tls_cert": "c.pem",
        "tls_key": "k.pem",
        "workers": 3,
        "options": {"idle_timeout": 300, "cork": False},
        "pid_file": "p",
        "metrics": ":9",
        "access_log": "-",
        "access_log_format": "json",
        "control": "c",
        "user": "root",
        "group": "0",
        "drain_timeout": 4,
        "kill_timeout": 3,
        "ready_timeout": 5,
        "retire_timeout": None,
        "worker_lifetime": 86400,
        "worker_max_rss": 1 << 30,
        "worker_max_accepted": 100,
        "jitter": 0.2,
        "hang_timeout": 5,
        "reload": True,
    }
    assert set(values) == {*SETTINGS.values(), "options"}
    assert served == [Settings.of(values)]


def test_a_flag_takes_back_what_a_file_says(typed: Typed, served: Served, folder: Path) -> None:
    (folder / "iostreamsrv.toml").write_text('reload = true\npid_file = "p"\nhang_timeout = 5\n')
    assert typed("serve", "chat:Chat", "--no-reload", "--pid-file", "none", "--hang-timeout", "none")[0] == 0
    assert served == [Settings(target="chat:Chat", hang_timeout=None)]


def test_the_supervisor_says_how_it_ended(typed: Typed, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot_listen(settings: Settings, reread: object) -> int:
        raise ListenError(98, "cannot listen on 127.0.0.1:8888: Address already in use")

    master: Any = sys.modules["iostreamsrv.supervisor.master"]
    monkeypatch.setattr(master, "serve_with", lambda settings, reread: 3)
    assert typed("serve", "chat:Chat") == (3, "", "")
    monkeypatch.setattr(master, "serve_with", cannot_listen)
    fails(typed, 3, "cannot listen on 127.0.0.1:8888: Address already in use", "chat:Chat")


# ---- what is wrong before that


@pytest.mark.parametrize(
    "problem, words",
    [
        ("what is to be served? Name a server: iostreamsrv serve MODULE:TARGET", ""),
        ("target='chat': has no \":\"", "chat"),
        ("target='chat.py': is the path of a file", "chat.py"),
        ("No such option '--wrkers'", "chat:Chat --wrkers 3"),
        ("Option '--workers' requires an argument", "chat:Chat --workers"),
        ("Got unexpected extra argument", "chat:Chat chat:Chat"),
        ("workers=0: must be", "chat:Chat -w 0"),
        ("bind=':80': is there twice (from --bind)", "chat:Chat --bind :80 --bind :80"),
        ("bind='[::1]:80': is at the same place as ':80'", "chat:Chat --bind :80 --bind [::1]:80"),
        ("bind='localhost': must be", "chat:Chat --bind localhost"),
        (f"bind='unix:/{'a' * 110}': a Unix socket's path has at most", f"chat:Chat --bind unix:/{'a' * 110}"),
        ("set='idle_timout': a server has no such option: did you mean", "chat:Chat --set idle_timout=5"),
        ("--set cork: needs a value", "chat:Chat --set cork"),
        ("hang_timeout='x': must be a duration", "chat:Chat --hang-timeout x"),
        ("tls_key='k.pem': needs tls_cert", "chat:Chat --tls-key k.pem"),
        ("user='nobody-here': there is no such user (from --user)", "chat:Chat --user nobody-here"),
        ("group='nobody-here': there is no such group (from --group)", "chat:Chat --group nobody-here"),
        ("no.toml: No such file or directory", "chat:Chat -c no.toml"),
        ("no.env: No such file or directory", "chat:Chat --env-file no.env"),
    ],
)
def test_what_is_typed_wrong_is_exit_code_2_and_one_line(
    typed: Typed, served: Served, problem: str, words: str
) -> None:
    fails(typed, 2, problem, *words.split())
    assert served == []


def test_a_broken_file_is_named_with_the_line(typed: Typed, served: Served, folder: Path) -> None:
    (folder / "iostreamsrv.toml").write_text("workers = 2\nbind = [\n")
    fails(typed, 2, "iostreamsrv.toml:3: ", "chat:Chat")
    (folder / "iostreamsrv.toml").write_text("wrkers = 2\n")
    fails(typed, 2, "iostreamsrv.toml: there is no setting 'wrkers': did you mean 'workers'?", "chat:Chat")


def test_an_unknown_variable_is_named(typed: Typed, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IOSTREAMSRV_WRKERS", "2")
    fails(typed, 2, "there is no variable IOSTREAMSRV_WRKERS: did you mean 'IOSTREAMSRV_WORKERS'?", "chat:Chat")


def test_reload_without_watchfiles_says_what_to_install(
    typed: Typed, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    fails(typed, 2, '--reload needs watchfiles: pip install "iostreamsrv[reload]"', "chat:Chat", "--reload")


# ---- --check and --print


@pytest.mark.parametrize("target", ["chat:Chat", "chat:server", "chat:handle"])
def test_check_says_that_a_server_can_be_made(typed: Typed, served: Served, target: str) -> None:
    said = f"iostreamsrv: {target} can be served on 127.0.0.1:8888, unix:x by 2 workers\n"
    assert typed("serve", target, "--check", "-w", "2", "--bind", "127.0.0.1:8888", "--bind", "unix:x") == (0, said, "")
    assert served == []


def test_check_may_come_before_two_dashes(typed: Typed, served: Served) -> None:
    assert typed("serve", "--check", "--", "chat:Chat")[0] == 0
    assert served == []


def test_check_binds_nothing(typed: Typed, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        where = f"127.0.0.1:{busy.getsockname()[1]}"
        assert typed("serve", "chat:Chat", "--check", "--bind", where, "--bind", "unix:x", "--pid-file", "p")[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["chat.py"]


@pytest.mark.parametrize(
    "target, problem",
    [
        ("chta:Chat", "there is no module 'chta' in "),
        ("chat:Chta", "the module chat has no 'Chta': did you mean 'Chat'?"),
        ("chat:number", "is no server but an int"),
        ("chat:Listening", "listens already, on 127.0.0.1:"),
    ],
)
def test_check_says_why_a_target_cannot_be_served(typed: Typed, folder: Path, target: str, problem: str) -> None:
    fails(typed, 3, f"{target}: {problem}", target, "--check")


def test_check_reads_the_certificates(typed: Typed, folder: Path) -> None:
    fails(typed, 3, "certfile='c.pem': No such file", "chat:Chat", "--check", "--tls-cert", "c.pem")
    files = self_signed().write(folder)
    words = ["serve", "chat:Chat", "--check", "--tls-cert", files["certfile"]]
    assert typed(*words, "--tls-key", files["keyfile"])[0] == 0
    code, out, said = typed(*words)
    assert (code, out, said.count("\n")) == (3, "", 1)


def test_check_shows_the_traceback_of_code_that_raises(typed: Typed, folder: Path) -> None:
    (folder / "broken.py").write_text("raise RuntimeError('no database')\n")
    code, out, said = typed("serve", "broken:Chat", "--check")
    assert (code, out) == (3, "")
    first, *more = said.splitlines()
    assert first == "iostreamsrv: broken:Chat: the import of broken failed: RuntimeError: no database"
    assert more[0] == "Traceback (most recent call last):"
    assert more[1] == f'  File "{folder}/broken.py", line 1, in <module>'
    assert more[-1] == "RuntimeError: no database"


def test_print_shows_where_each_setting_is_from(typed: Typed, served: Served, folder: Path) -> None:
    (folder / "iostreamsrv.toml").write_text("jitter = 0.5\n")
    code, out, said = typed("serve", "chat:Chat", "--print", "-w", "2")
    assert (code, said, served) == (0, "", [])
    assert re.search(r"(?m)^workers = 2 +# --workers$", out)
    assert re.search(r"(?m)^jitter = 0.5 +# iostreamsrv.toml$", out)
    assert re.search(r"(?m)^reload = false +# default$", out)


def test_print_and_check_do_both(typed: Typed, folder: Path) -> None:
    code, out, _ = typed("serve", "chat:Chta", "--print", "--check")
    assert code == 3
    assert 'target = "chat:Chta"' in out


# ---- in a process of its own


def test_the_command_as_it_is_typed(tmp_path: Path) -> None:
    (tmp_path / "chat.py").write_text(CHAT)

    def done(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-W", "error", "-m", "iostreamsrv", "serve", *words]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONSAFEPATH": "1", "IOSTREAMSRV_SET_LINGER": "3"}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        return ended.returncode, ended.stdout, ended.stderr

    said = "iostreamsrv: chat:Chat can be served on 127.0.0.1:8888 by 1 worker\n"
    assert done("chat:Chat", "--check") == (0, said, "")
    code, out, problem = done("chat:Chat", "--workers", "x")
    assert (code, out) == (2, "")
    assert problem.startswith("iostreamsrv: workers='x': ")
    code, out, problem = done("chat:Nothing", "--check")
    assert (code, out) == (3, "")
    assert problem == "iostreamsrv: chat:Nothing: the module chat has no 'Nothing'\n"
    assert "linger = 3" in done("chat:Chat", "--print")[1]


# ---- the page

PAGE = (PROJECT / "docs" / "reference" / "command.md").read_text()
ROWS = [[cell.strip() for cell in row] for row in re.findall(r"(?m)^\|( `[-M][^|]*)\|([^|]*)\|([^|]*)\|[^|]+\|$", PAGE)]

ABOUT_THE_COMMAND = {"--check", "--print"}
"""Flags that are no settings."""


def flags() -> set[str]:
    options = [option for option in serve.params if isinstance(option, click.Option)]
    return {name for option in options for name in (*option.opts, *option.secondary_opts)}


def test_the_page_has_every_flag() -> None:
    shown = {name for row in ROWS for name in re.findall(r"`(--?[\w-]+)", row[0])}
    assert shown == flags() - ABOUT_THE_COMMAND
    assert all(f"`{name}`" in PAGE for name in ABOUT_THE_COMMAND)


def test_the_page_has_every_setting_beside_its_flag_with_its_default() -> None:
    shown = {name.strip("`"): (words, default.strip("`")) for words, name, default in ROWS if name}
    assert set(shown) == {*SETTINGS, "[set]", "env_file"}
    defaults = Settings(target="chat:Chat")
    for word, name in SETTINGS.items():
        words, default = shown[word]
        assert "MODULE:TARGET" in words if word == "target" else flag(word) in words
        if word in ("target", "drain_timeout"):
            assert default == ""
        elif word == "bind":
            assert default == defaults.binds[0].text
        else:
            assert getattr(Settings.of({"target": "chat:Chat", name: default}), name) == getattr(defaults, name)


def test_the_help_has_the_same_defaults() -> None:
    defaults = Settings(target="chat:Chat")
    told = {
        option.name: found[1]
        for option in serve.params
        if isinstance(option, click.Option) and (found := re.search(r"\[([\w.]+)\]$", option.help or ""))
    }
    assert len(told) > 8
    for name, default in told.items():
        assert name is not None
        assert getattr(Settings.of({"target": "chat:Chat", name: default}), name) == getattr(defaults, name)


def test_the_file_on_the_page_is_one(folder: Path, typed: Typed) -> None:
    (example,) = re.findall(r"(?s)```toml\n(.*?)```", PAGE)
    (folder / "iostreamsrv.toml").write_text(example)
    assert typed("serve", "--check")[::2] == (0, "")


def test_the_variables_on_the_page_are_some(folder: Path) -> None:
    (example,) = re.findall(r"(?s)```sh\n(.*?)```", PAGE)
    (folder / ".env").write_text(example)
    assert read_variables(".env") == {
        "DATABASE": "postgres://db/chat",
        "GREETING": 'two\nlines, "quoted"',
        "PATTERN": "all $is as it is",
        "IOSTREAMSRV_WORKERS": "4",
    }
