"""What the README shows is what one gets."""

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests.support.listening import unused_port
from tests.support.programs import PATIENCE, PROJECT, NotListening, Program

README = (PROJECT / "README.md").read_text()
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_echo_server_has_12_lines_at_most() -> None:
    assert len(EXAMPLE.splitlines()) <= 12


def serve_and_talk(source: str, folder: Path) -> None:
    script = folder / "server.py"
    script.write_text(source)
    with Program(script, folder=folder).listening() as program, program.client() as client:
        assert client.ask(b"hello\n") == b"hello\n"
        assert client.ask(b"one\ntwo\n") == b"one\n"
        assert client.line() == b"two\n"
        assert program.end() == (0, "", "")


def test_the_echo_server_runs_as_pasted(tmp_path: Path) -> None:
    try:
        serve_and_talk(EXAMPLE, tmp_path)
    except NotListening as error:
        if os.strerror(errno.EADDRINUSE) not in str(error):
            raise
        # Somebody has the README's port, `make run` in another terminal perhaps.
        serve_and_talk(EXAMPLE.replace("8888", str(unused_port())), tmp_path)


def is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here: apt-get install openssl")
@pytest.mark.skipif(not (PROJECT / ".venv/bin/python").exists(), reason="make has not made .venv here")
def test_the_lines_for_tls_run_as_pasted() -> None:
    (lines,) = re.findall(r"^    \$ (.*tls_echo.*)\n    \$ (openssl .*)\n    hello\n    hello\n", README, re.MULTILINE)
    pasted = "\n".join(lines)
    if not is_free(8888):  # somebody has the README's port, `make run` in another terminal perhaps
        port = str(unused_port())
        pasted = pasted.replace("tls_echo.py", f"tls_echo.py --port {port}").replace("8888", port)
    with subprocess.Popen(
        ["bash", "-c", pasted],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        watchdog = threading.Timer(PATIENCE, os.killpg, [shell.pid, signal.SIGKILL])
        watchdog.start()
        try:
            shell.stdin.write(b"hello\n")
            shell.stdin.flush()
            assert shell.stdout.readline() == b"listening on 127.0.0.1:%d\n" % int(re.findall(r":(\d+)", pasted)[0])
            assert shell.stdout.readline() == b"hello\n"
        finally:
            watchdog.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)  # at which the example removes its certificate


PAGES = [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")]


def headings(page: Path) -> set[str]:
    """The names under which one can link to the headings of a page."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_heading_that_a_page_links_to_exists(page: Path) -> None:
    for link, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text()):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not heading or heading in headings(target), f"{link}#{heading}"


def test_every_target_that_the_pages_name_is_in_the_makefile() -> None:
    pages = README + (PROJECT / "CONTRIBUTING.md").read_text() + (PROJECT / ".ci" / "run").read_text()
    named = set(re.findall(r"^ {4}make ([a-z-]+)|`make ([a-z-]+)`", pages, re.MULTILINE))
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert named
    assert {first or second for first, second in named} <= set(targets)
