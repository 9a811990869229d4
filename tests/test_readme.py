"""What the README shows is what one gets."""

import errno
import os
import re
import socket
from pathlib import Path

import pytest

from tests.programs import PROJECT, NotListening, Program

README = (PROJECT / "README.md").read_text()
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


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
        serve_and_talk(EXAMPLE.replace("8888", str(free_port())), tmp_path)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/streams.md"])
def test_every_file_that_a_page_links_to_exists(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (PROJECT / page).read_text())
    assert [link for link in links if not (PROJECT / page).parent.joinpath(link).exists()] == []


def test_every_target_that_the_pages_name_is_in_the_makefile() -> None:
    pages = README + (PROJECT / "CONTRIBUTING.md").read_text() + (PROJECT / ".ci" / "run").read_text()
    named = set(re.findall(r"^ {4}make ([a-z-]+)|`make ([a-z-]+)`", pages, re.MULTILINE))
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert named
    assert {first or second for first, second in named} <= set(targets)
