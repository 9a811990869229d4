"""The pages for those who come from another system promise what is there, and tested."""

import ast
import re
from pathlib import Path

import pytest

from iostreamsrv import styles
from tests.support import PROJECT

PAGES = [PROJECT / "docs" / "from" / name for name in ("rtthread.md", "simpletcp.md")]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def known_tests() -> set[str]:
    """The names of all tests of styles."""
    trees = [ast.parse(path.read_text()) for path in Path(__file__).parent.glob("test_*.py")]
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


@each_page
def test_every_name_of_ours_in_the_table_is_there(page: Path) -> None:
    rows = re.findall(r"^\| .* \| (.*) \| .*\|$", page.read_text(), re.MULTILINE)
    more = re.findall(r"^\| .* \| .* \| (.*) \|$", page.read_text(), re.MULTILINE)
    names = re.findall(r"`((?:BlockingServer|Handle|Notice|QueueServer|SendQueue)\.\w+)`", " ".join(rows + more))
    assert len(names) > 5
    instance = {"QueueServer.port"}
    for name in set(names) - instance:
        kind, attribute = name.split(".")
        assert hasattr(getattr(styles, kind), attribute), name


@each_page
def test_everything_that_one_gets_beyond_the_original_is_tested(page: Path) -> None:
    claims = page.read_text().partition("## Beyond the original\n")[2].strip().split("\n- ")
    assert len(claims) > 5
    known = known_tests()
    for claim in claims:
        named = re.findall(r"<!-- (\w+) -->", claim)
        assert named, f"not tested: {claim}"
        assert set(named) <= known
