"""The command ``python -m iostreamsrv``."""

import json
import os
import platform
import re
import ssl
import subprocess
import sys

import cryptography
import pytest
import tornado

import iostreamsrv
from iostreamsrv import cores
from tests.support import PROJECT


def typed(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What ``python -m iostreamsrv`` does with these arguments."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "iostreamsrv", *arguments],
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_info_tells_versions_one_a_line() -> None:
    done = typed("info")
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["version"] == iostreamsrv.__version__
    assert lines["core"].split()[0] == cores.core
    assert lines["python"] == f"{platform.python_version()} ({platform.python_implementation()})"
    assert lines["tornado"] == tornado.version
    assert lines["cryptography"] == cryptography.__version__
    assert lines["openssl"] == ssl.OPENSSL_VERSION
    assert lines["hub"] in ("epoll", "loop")
    assert lines["path"] == str(PROJECT / "iostreamsrv")


def test_info_tells_why_it_is_the_python_core() -> None:
    assert "python (IOSTREAMSRV_PURE is set)" in typed("info", IOSTREAMSRV_PURE="1").stdout


def test_info_is_json_on_demand() -> None:
    done = typed("info", "--json", IOSTREAMSRV_PURE="1")
    found = json.loads(done.stdout)
    assert (found["core"], found["core_reason"]) == ("python", "IOSTREAMSRV_PURE is set")
    assert found["version"] == iostreamsrv.__version__
    assert {type(value) for value in found.values()} == {str}


def test_without_a_command_it_prints_its_help() -> None:
    done = typed()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == typed("--help").stdout
    assert "info" in done.stdout


@pytest.mark.parametrize("wrong", [["nothing"], ["info", "more"]])
def test_a_mistake_is_exit_code_2_and_one_line(wrong: list[str]) -> None:
    done = typed(*wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"iostreamsrv: .*\n", done.stderr)


def without_click(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What the command does where click is not installed."""
    program = "import sys; sys.modules['click'] = None; from iostreamsrv.cli import main; main()"
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"]])
def test_info_does_without_click(arguments: list[str]) -> None:
    done = without_click(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == typed(*arguments).stdout


@pytest.mark.parametrize("arguments", [[], ["serve", "chat:Chat"], ["info", "more"]])
def test_all_else_says_in_one_line_that_it_needs_click(arguments: list[str]) -> None:
    done = without_click(*arguments)
    needs = 'iostreamsrv: the command needs click: pip install "iostreamsrv[cli]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", needs)


def test_the_version_is_told() -> None:
    assert typed("--version").stdout == f"{iostreamsrv.__version__}\n"
