"""The pages for those who come from another system name nothing that is not there, and claim nothing untested."""

import re

import pytest

from iostreamsrv import IOStream, TCPServer
from iostreamsrv.styles import CallbackServer
from tests.support.programs import PROJECT

SYSTEMS = ["autoit", "control4", "turbo"]


def page(system: str) -> str:
    return (PROJECT / "docs" / "from" / f"{system}.md").read_text()


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_claim_of_a_page_has_its_scenario(system: str) -> None:
    claims = re.findall(r"^- (?:.|\n  )*", page(system).partition("## Beyond the original")[2], re.MULTILINE)
    tests = (PROJECT / "tests" / "styles" / f"test_scenarios_{system}.py").read_text()
    assert len(claims) >= 4
    for claim in claims:
        numbers = re.search(r"\(([\d, ]+)\)$", claim)
        assert numbers, f"no number: {claim}"
        for number in numbers[1].split(", "):
            assert f"def test_{system}_{number}_" in tests


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_name_of_ours_in_a_table_is_there(system: str) -> None:
    ours = " ".join(line.rpartition(" | ")[2] for line in page(system).splitlines() if line.startswith("|"))
    names = re.findall(r"\b(server|stream)\.(\w+)", ours)
    assert len(names) > 4
    stream_fields = {"opened_at", "read_chunk_size"}  # given to each stream, and not to the class
    missing = [
        name
        for owner, name in names
        if not hasattr(IOStream if owner == "stream" else TCPServer, name) and name not in stream_fields
    ]
    assert missing == []
    assert [name for name in re.findall(r"`(on_\w+)", ours) if not hasattr(CallbackServer, name)] == []
