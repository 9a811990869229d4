"""Where settings come from, and which of them counts."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iostreamsrv.cli.configuration import Configuration, configure
from iostreamsrv.cli.files import ConfigurationError, read_toml, read_variables
from iostreamsrv.supervisor.settings import Settings

Write = Callable[[str, str | bytes], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file into the current folder, which is empty at first."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str | bytes) -> None:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def configured(environ: dict[str, str] | None = None, **flags: Any) -> Configuration:
    return configure({"target": "chat:Chat", **flags}, {} if environ is None else environ)


def settings(environ: dict[str, str] | None = None, **flags: Any) -> Settings:
    return configured(environ, **flags).checked()


def problem(environ: dict[str, str] | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        settings(environ, **flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- which counts


def test_the_command_line_counts_before_the_environment_and_that_before_the_file(write: Write) -> None:
    write("iostreamsrv.toml", 'workers = 2\njitter = 0.2\nuser = "root"\n')
    environ = {"IOSTREAMSRV_WORKERS": "3", "IOSTREAMSRV_JITTER": "0.3"}
    found = configured(environ, workers="4")
    made = found.checked()
    assert (made.workers, made.jitter, made.user, made.hang_timeout) == (4, 0.3, "root", 30)
    sources = {name: given.source for name, given in found.settings.items()}
    assert sources == {
        "target": "MODULE:TARGET",
        "workers": "--workers",
        "jitter": "IOSTREAMSRV_JITTER",
        "user": "iostreamsrv.toml",
    }


def test_options_of_the_server_are_merged_one_by_one(write: Write) -> None:
    write("iostreamsrv.toml", "[set]\ncork = false\nlinger = 1\nidle_timeout = 1\n")
    environ = {"IOSTREAMSRV_SET_LINGER": "2", "IOSTREAMSRV_SET_IDLE_TIMEOUT": "2"}
    found = configured(environ, set=("idle_timeout = 3", "max_connections=5"))
    assert found.checked().options == {"cork": False, "linger": 2, "idle_timeout": 3, "max_connections": 5}
    assert found.options["cork"].source == "iostreamsrv.toml"
    assert found.options["linger"].source == "IOSTREAMSRV_SET_LINGER"
    assert found.options["idle_timeout"].source == "--set"


def test_addresses_are_replaced_all_together(write: Write) -> None:
    write("iostreamsrv.toml", 'bind = [":80", ":81"]\n')
    assert [bind.text for bind in settings().binds] == [":80", ":81"]
    environ = {"IOSTREAMSRV_BIND": ":82,unix:/run/x?mode=0660&tls=off"}
    assert [bind.text for bind in settings(environ).binds] == [":82", "unix:/run/x?mode=0660&tls=off"]
    assert [bind.text for bind in settings(environ, bind=(":83",)).binds] == [":83"]


def test_one_address_needs_no_list(write: Write) -> None:
    write("iostreamsrv.toml", 'bind = ":80"\n')
    assert [bind.text for bind in settings().binds] == [":80"]


@pytest.mark.parametrize("typed", [{"drain_timeout": "3"}, {"set": ("drain_timeout=3",)}])
def test_the_drain_timeout_is_one_setting_under_two_names(write: Write, typed: dict[str, Any]) -> None:
    for file in "drain_timeout = 5\n", "[set]\ndrain_timeout = 5\n":
        write("iostreamsrv.toml", file)
        assert settings().drain_timeout == 5
        assert settings({"IOSTREAMSRV_SET_DRAIN_TIMEOUT": "4"}).drain_timeout == 4
        assert settings({"IOSTREAMSRV_DRAIN_TIMEOUT": "4"}, **typed).drain_timeout == 3


def test_a_name_that_is_no_option_is_none_even_if_it_is_a_setting(write: Write) -> None:
    assert problem(set=("workers=3",)).startswith("set='workers': a server has no such option")


def test_the_target_may_be_in_a_file_or_a_variable(write: Write) -> None:
    assert problem(target=None) == "what is to be served? Name a server: iostreamsrv serve MODULE:TARGET"
    assert settings({"IOSTREAMSRV_TARGET": "my:Own"}, target=None).target == "my:Own"
    write("iostreamsrv.toml", 'target = "file:Own"\n')
    assert settings(target=None).target == "file:Own"
    assert settings().target == "chat:Chat"


# ---- files


def test_a_pyproject_counts_if_there_is_no_own_file(write: Write) -> None:
    write("pyproject.toml", "[tool.ruff]\n[tool.iostreamsrv]\nworkers = 2\n[tool.iostreamsrv.set]\nlinger = 3\n")
    made = settings()
    assert (made.workers, made.options) == (2, {"linger": 3})
    write("iostreamsrv.toml", "jitter = 0.5\n")
    made = settings()
    assert (made.workers, made.jitter) == (1, 0.5)


@pytest.mark.parametrize("content", ["", "[tool.ruff]\n", "[tool]\niostreamsrv = 5\n"])
def test_a_pyproject_without_the_table_is_nothing(write: Write, content: str) -> None:
    write("pyproject.toml", content)
    assert read_toml(None) == ("iostreamsrv.toml", {})
    assert problem(config="pyproject.toml") == "pyproject.toml: has no [tool.iostreamsrv]"


def test_a_file_may_be_named(write: Write) -> None:
    write("iostreamsrv.toml", "workers = 2\n")
    write("other.toml", "jitter = 0.5\n")
    for made in settings(config="other.toml"), settings({"IOSTREAMSRV_CONFIG": "other.toml"}):
        assert (made.workers, made.jitter) == (1, 0.5)
    assert problem(config="no.toml") == "no.toml: No such file or directory"
    assert problem(config=".") == ".: Is a directory"


@pytest.mark.parametrize(
    "content, where",
    [
        ("workers = 2\njitter = \n", "iostreamsrv.toml:2: invalid value"),
        ("\n\nworkers 2\n", "iostreamsrv.toml:3: expected '=' after a key"),
        ("a = 1\na = 2\n", "iostreamsrv.toml:2: cannot overwrite a value"),
        ('bind = """\n\n', "iostreamsrv.toml:3: "),
        (b"workers = 1\n# \xff\n", "iostreamsrv.toml:2: is not UTF-8"),
    ],
)
def test_a_broken_file_is_named_with_the_line(write: Write, content: str | bytes, where: str) -> None:
    write("iostreamsrv.toml", content)
    assert problem().startswith(where)


@pytest.mark.parametrize(
    "content, said",
    [
        ("wrkers = 2", "there is no setting 'wrkers': did you mean 'workers'?"),
        ("drain-timeout = 2", "there is no setting 'drain-timeout': did you mean 'drain_timeout'?"),
        ("binds = 2", "there is no setting 'binds': did you mean 'bind'?"),
        ("options = 2", "there is no setting 'options'"),
        (
            "idle_timeout = 2",
            "there is no setting 'idle_timeout': it is an option of the server, and belongs into [set]",
        ),
        ("set = 5", "set must be a table: [set]"),
        ("env_file = 5", "env_file must be the path of a file"),
    ],
)
def test_an_unknown_key_is_named_with_its_file_and_the_nearest(write: Write, content: str, said: str) -> None:
    write("iostreamsrv.toml", content)
    assert problem() == f"iostreamsrv.toml: {said}"


# ---- variables


@pytest.mark.parametrize(
    "variable, hint",
    [
        ("IOSTREAMSRV_WRKERS", ": did you mean 'IOSTREAMSRV_WORKERS'?"),
        ("IOSTREAMSRV_SET_IDLE_TIMOUT", ": did you mean 'IOSTREAMSRV_SET_IDLE_TIMEOUT'?"),
        ("IOSTREAMSRV_IDLE_TIMEOUT", ": did you mean 'IOSTREAMSRV_SET_IDLE_TIMEOUT'?"),
        ("IOSTREAMSRV_Workers", ": did you mean 'IOSTREAMSRV_WORKERS'?"),
        ("IOSTREAMSRV_OPTIONS", ""),
        ("IOSTREAMSRV_", ""),
    ],
)
def test_an_unknown_variable_is_named_with_the_nearest(write: Write, variable: str, hint: str) -> None:
    found = problem({variable: "2"})
    assert found.startswith(f"there is no variable {variable}{hint}")


@pytest.mark.parametrize(
    "variable",
    [
        "IOSTREAMSRV_PURE",
        "IOSTREAMSRV_UPGRADE",
        "IOSTREAMSRV_BUILD",
        "IOSTREAMSRV_ALL",
        "IOSTREAMSRV_TORNADO_VERBOSE",
        "IOSTREAMSRV_SERVICE_HOST",
        "IOSTREAMSRV_SERVICE_PORT_HTTP",
        "IOSTREAMSRV_PORT",
        "IOSTREAMSRV_PORT_8888_TCP_ADDR",
        "WORKERS",
        "XIOSTREAMSRV_WORKERS",
    ],
)
def test_other_variables_are_left_alone(write: Write, variable: str) -> None:
    assert settings({variable: "tcp://10.0.0.1:8888"}) == settings()


def test_an_empty_variable_is_as_if_it_were_not_there(write: Write) -> None:
    assert settings({"IOSTREAMSRV_WORKERS": "", "IOSTREAMSRV_CONFIG": "", "IOSTREAMSRV_ENV_FILE": ""}) == settings()


# ---- values


def test_a_value_that_cannot_be_is_named_with_where_it_is_from(write: Write) -> None:
    assert problem({"IOSTREAMSRV_WORKERS": "x"}).endswith("for each core (from IOSTREAMSRV_WORKERS)")
    assert problem(hang_timeout="x").endswith("(from --hang-timeout)")
    assert problem(set=("linger=x",)).endswith("(from --set)")
    assert problem(set=("lnger=1",)).endswith("did you mean 'linger'? (from --set)")
    assert problem(target="chat").endswith("(from MODULE:TARGET)")
    assert problem(bind=(":80", ":80")) == "bind=':80': is there twice (from --bind)"
    write("iostreamsrv.toml", "workers = 0.5\n")
    assert problem().endswith("(from iostreamsrv.toml)")


def test_an_option_needs_a_value(write: Write) -> None:
    assert problem(set=("cork",)) == "--set cork: needs a value: --set cork=VALUE"


# ---- files of variables


def test_variables_are_read_as_a_shell_would(write: Write) -> None:
    write(
        ".env",
        """
        # a comment
        PLAIN=value
        export EXPORTED = spaces around
        COMMENT=before # after
        HASH=a#b
        EMPTY=
        ONLY= # nothing
        SINGLE='as \\n "is" # $HOME' # but this
        DOUBLE="two\\nlines, \\"quoted\\", \\\\n, \\q # $HOME"
        EQUALS=a=b
        """,
    )
    assert read_variables(".env") == {
        "PLAIN": "value",
        "EXPORTED": "spaces around",
        "COMMENT": "before",
        "HASH": "a#b",
        "EMPTY": "",
        "ONLY": "",
        "SINGLE": 'as \\n "is" # $HOME',
        "DOUBLE": 'two\nlines, "quoted", \\n, \\q # $HOME',
        "EQUALS": "a=b",
    }


@pytest.mark.parametrize("line", ["NAME", "=value", "1A=2", "A B=2", "A='open", 'A="open', "A='b' c", "A='b'c'"])
def test_a_line_that_is_no_variable_is_named(write: Write, line: str) -> None:
    write(".env", f"A=1\n{line}\n")
    assert problem(env_file=".env") == ".env:2: must be NAME=VALUE, in quotes or without"


def test_a_file_of_variables_has_settings_and_what_the_code_needs(write: Write) -> None:
    write(".env", "IOSTREAMSRV_WORKERS=2\nIOSTREAMSRV_JITTER=0.2\nDATABASE=db\nHOME=/nowhere\n")
    write("iostreamsrv.toml", 'env_file = ".env"\n')
    for given in {"env_file": ".env"}, {}:
        environ = {"IOSTREAMSRV_JITTER": "0.3", "HOME": "/root"}
        made = settings(environ, **given)
        assert (made.workers, made.jitter) == (2, 0.3)
        assert (environ["DATABASE"], environ["HOME"]) == ("db", "/root")
    assert problem(env_file="no.env") == "no.env: No such file or directory"


# ---- shown


def test_what_is_shown_is_a_file_with_the_same_settings(write: Write) -> None:
    found = configured(
        {"IOSTREAMSRV_BIND": ":80,unix:/run/x"},
        workers="3",
        worker_max_rss="1G",
        set=("keepalive=60,10,5", "max_connections=inf", "proxy_protocol=any", "min_rate=none", "when_full=evict"),
    )
    text = found.shown(found.checked())
    assert 'bind = [":80", "unix:/run/x"]' in text
    assert "# drain_timeout:" in text
    tomllib.loads(text)
    write("iostreamsrv.toml", text)
    assert settings(target=None) == found.checked()


def test_what_is_shown_says_where_it_is_from(write: Write) -> None:
    write("iostreamsrv.toml", "hang_timeout = '1m'\n[set]\nlinger = 3\n")
    found = configured({"IOSTREAMSRV_WORKERS": "2"}, set=("cork=no",), drain_timeout="none")
    lines = [line.split(None, 2) for line in found.shown(found.checked()).splitlines()]
    shown = {name: rest.split("#", 1) for name, _, rest in (line for line in lines if len(line) == 3)}
    assert {name: (value.strip(), source.strip()) for name, (value, source) in shown.items()} == {
        "target": ('"chat:Chat"', "MODULE:TARGET"),
        "bind": ('["127.0.0.1:8888"]', "default"),
        "workers": ("2", "IOSTREAMSRV_WORKERS"),
        **dict.fromkeys(("tls_cert", "tls_key", "pid_file", "metrics", "access_log"), ('"none"', "default")),
        **dict.fromkeys(("user", "group"), ('"none"', "default")),
        "access_log_format": ('"text"', "default"),
        "control": ('"auto"', "default"),
        "drain_timeout": ('"none"', "--drain-timeout"),
        "kill_timeout": ("2", "default"),
        "ready_timeout": ("30", "default"),
        "retire_timeout": ("3600", "default"),
        **dict.fromkeys(("worker_lifetime", "worker_max_rss", "worker_max_accepted"), ('"none"', "default")),
        "jitter": ("0.1", "default"),
        "hang_timeout": ("60", "iostreamsrv.toml"),
        "reload": ("false", "default"),
        "linger": ("3", "iostreamsrv.toml"),
        "cork": ("false", "--set"),
    }


def test_a_file_of_variables_is_read_anew_by_a_reload(write: Write) -> None:
    environ = {"HOME": "/root"}
    write(".env", "IOSTREAMSRV_WORKERS=2\nDATABASE=db\nHOME=/nowhere\n")
    assert settings(environ, env_file=".env").workers == 2
    write(".env", "IOSTREAMSRV_WORKERS=3\nHOME=/elsewhere\n")
    assert settings(environ, env_file=".env").workers == 3
    assert "DATABASE" not in environ
    assert environ["HOME"] == "/root"


def test_a_reload_that_is_refused_changes_no_variable(write: Write) -> None:
    environ: dict[str, str] = {}
    write(".env", "DATABASE=db\n")
    settings(environ, env_file=".env")
    before = dict(environ)
    write(".env", "DATABASE=other\nIOSTREAMSRV_WORKERS=none\n")
    assert problem(environ, env_file=".env").startswith("workers=")
    assert environ == before


def test_a_current_folder_that_cannot_be_searched_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", denied)
    assert problem() == "iostreamsrv.toml: Permission denied"
