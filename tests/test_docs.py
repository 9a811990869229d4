"""The Python blocks of docs/ do what the text block after each of them says."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.programs import PROJECT, Program

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
    shown: str


def blocks() -> list[Block]:
    found = []
    for page in sorted((PROJECT / "docs").glob("*.md")):
        text = page.read_text()
        for match in re.finditer(
            r"^```python\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", text, re.DOTALL | re.MULTILINE
        ):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(f"{page.name}:{line}", match[1], match[2] or ""))
    return found


def ids(block: Block) -> str:
    return block.where


HANDLERS = [block for block in blocks() if "def handle_stream" in block.source]
PROGRAMS = [block for block in blocks() if block not in HANDLERS]


def test_every_block_shows_what_it_does() -> None:
    assert HANDLERS
    assert PROGRAMS
    assert [block.where for block in blocks() if not block.shown] == []


@pytest.mark.parametrize("block", HANDLERS, ids=ids)
def test_a_handler_of_the_docs_says_what_they_show(block: Block, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block.source + SERVE)
    with Program(script, folder=tmp_path).listening() as program:
        with program.client() as client:
            for line in block.shown.splitlines():
                if line == "<end of stream>":
                    assert client.line() == b""
                elif line.startswith("< "):
                    assert client.line().decode() == line[2:] + "\n"
                else:
                    assert line.startswith("> ")
                    client.send(line[2:].encode() + b"\n")
        assert program.end() == (0, "", "")


@pytest.mark.parametrize("block", PROGRAMS, ids=ids)
def test_a_program_of_the_docs_prints_what_they_show(block: Block, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block.source)
    with Program(script, folder=tmp_path) as program:
        assert program.outcome() == (0, block.shown, "")
