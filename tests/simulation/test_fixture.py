"""The pytest fixture `simulation`: it runs tests of every kind, and says of one that fails what made it fail."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support import PROJECT

PATIENCE = 60

BEGINNING = """
import asyncio
import pytest
from iostreamsrv import TCPServer

SEEDS = []


class Echo(TCPServer):
    async def handle_stream(self, stream, address):
        while True:
            await stream.write(await stream.read_until(b"\\n"))


async def talk(sim, rounds=30):
    stream = await sim.connect(sim.serve(Echo()))
    for _ in range(rounds):
        await stream.write(b"hello\\n")
        assert await stream.read_until(b"\\n") == b"hello\\n"

"""


class Outcome:
    """What pytest has said.

    :param plugins: whether it loads the plugins that are installed, which takes as long as all the rest.
    """

    def __init__(self, folder: Path, source: str, *options: str, conftest: bool = True, plugins: bool = False) -> None:
        named = 'pytest_plugins = ["iostreamsrv.pytest_plugin"]\n'
        (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n" if conftest else "[pytest]\n")
        (folder / "conftest.py").write_text(named if conftest else "")
        (folder / "test_it.py").write_text((BEGINNING if conftest else BEGINNING + named) + source)
        environment = {"PYTHONPATH": str(PROJECT), "PYTEST_ADDOPTS": ""}
        if not plugins:
            environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:tornado", *options],
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        self.said = done.stdout
        self.complaints = done.stderr

    @property
    def counts(self) -> str:
        """The last line without the time."""
        return self.said.splitlines()[-1].partition(" in ")[0]


PASSING = """
async def test_a_coroutine(simulation):
    await talk(simulation)
    await simulation.sleep(3600)
    SEEDS.append(simulation.seed)


def test_a_plain_test(simulation):
    simulation.run(talk)


class TestInAClass:
    @pytest.mark.parametrize("rounds", [1, 2])
    @pytest.mark.simulation(stop=0.5, delay=0.1)
    async def test_a_method_with_other_arguments(self, simulation, rounds, tmp_path):
        assert simulation.faults.stop == 0.5
        await talk(simulation, rounds)
        assert simulation.struck
"""


@pytest.mark.second_tier
def test_tests_of_every_kind_run_on_it_if_their_own_file_names_the_plugin(tmp_path: Path) -> None:
    outcome = Outcome(tmp_path, PASSING, conftest=False)
    assert outcome.counts == "4 passed, 1 warning", outcome.said  # pytest learns the mark late


@pytest.mark.parametrize(
    "option, count, seeds",
    [
        pytest.param([], 4, "[0]", marks=pytest.mark.second_tier),
        (["--seeds=3"], 12, "[0, 1, 2]"),
        pytest.param(["--seed=x"], 4, "['x']", marks=pytest.mark.second_tier),
    ],
)
def test_each_runs_with_the_seeds_that_are_asked_for(tmp_path: Path, option: list[str], count: int, seeds: str) -> None:
    source = PASSING + f"\n\ndef test_the_seeds():\n    assert SEEDS == {seeds}\n"
    outcome = Outcome(tmp_path, source, *option, plugins=True)
    assert outcome.counts == f"{count + 1} passed", outcome.said


def test_a_number_of_seeds_below_one_is_refused(tmp_path: Path) -> None:
    outcome = Outcome(tmp_path, PASSING, "--seeds=0")
    assert "argument --seeds: must be 1 or more, not 0" in outcome.complaints


FAILING = """
@pytest.mark.simulation(stop=0.2, rst=0.03, delay=(0, 0.2))
async def test_it(simulation):
    try:
        await talk(simulation)
    except OSError:
        await simulation.sleep(10)
        [await talk_again() for talk_again in [lambda: simulation.sleep(1)] * 100]
        raise ValueError(f"after {simulation.struck}")
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The folder of a run in which a seed fails, and other tests pass."""
    folder = tmp_path_factory.mktemp("failed")
    return folder, Outcome(folder, FAILING + PASSING, "--seed=3", "--simulation-traces=out")


def test_tests_of_every_kind_run_on_it_without_another_plugin(failed: tuple[Path, Outcome]) -> None:
    _, outcome = failed
    assert outcome.counts == "1 failed, 4 passed", outcome.said


def test_a_failure_is_shown_with_the_first_faults_that_are_enough(failed: tuple[Path, Outcome]) -> None:
    said = failed[1].said
    found = re.search(r"seed 3: it fails after (\d+) faults, and the first (\d+) are enough:", said)
    assert found, said
    struck, needed = map(int, found.groups())
    assert 0 < needed < struck
    assert f"ValueError: after {needed}\n" in said
    faults = re.findall(r"^ +\d+\.\d{6}  .* fault (\d+): (\w+)$", said.partition("the end of")[0], re.MULTILINE)
    assert [int(number) for number, _ in faults] == list(range(1, needed + 1))
    assert faults[-1][1] == "rst"


def test_the_command_that_is_shown_fails_in_the_same_way(tmp_path: Path, failed: tuple[Path, Outcome]) -> None:
    first = failed[1].said
    report = re.search(r"^seed 3: .*?pytest \"(\S+)\" --seed 3$", first, re.DOTALL | re.MULTILINE)
    assert report, first
    again = Outcome(tmp_path, FAILING, report[1], "--seed", "3")
    assert again.counts == "1 failed"
    assert report[0] in again.said


def test_without_options_the_command_that_is_shown_has_none(tmp_path: Path) -> None:
    source = "async def test_it(simulation):\n    raise ValueError\n"
    said = Outcome(tmp_path, source, conftest=False).said
    assert said.count('to run it again: pytest "test_it.py::test_it[seed0]"\n') == 1, said


def test_the_trace_of_a_failure_is_written_where_the_option_says(failed: tuple[Path, Outcome]) -> None:
    folder, said = failed[0], failed[1].said
    assert "the trace: out/test_it.py-test_it-seed3.txt and .svg" in said
    text, picture = (folder / "out" / f"test_it.py-test_it-seed3.{kind}" for kind in ("txt", "svg"))
    assert {text, picture} == {*(folder / "out").iterdir()}
    assert "fault 1: " in text.read_text()
    ElementTree.parse(picture)


OTHER_ENDS = """
@pytest.mark.simulation(stop=1)
async def test_fails_anyway(simulation):
    await talk(simulation)
    raise ValueError


async def test_fails_without_faults(simulation):
    await talk(simulation)
    raise ValueError


async def test_differs(simulation):
    SEEDS.append(0)
    await talk(simulation, len(SEEDS))
    raise ValueError


async def test_skipped(simulation):
    pytest.skip("not here")


@pytest.mark.xfail(strict=True)
async def test_expected(simulation):
    assert False


def test_stuck(simulation):
    with pytest.raises(RuntimeError, match="all tasks wait"):
        simulation.run(lambda sim: asyncio.Event().wait())
"""


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run of tests that end otherwise."""
    return Outcome(tmp_path_factory.mktemp("others"), OTHER_ENDS)


def of_test(name: str, said: str) -> str:
    """What pytest says of the test with this name, which fails."""
    found = re.search(rf"^_+ {name}\[seed0\] _+$(.*?)(?=^_+ test_|^=)", said, re.DOTALL | re.MULTILINE)
    assert found, said
    return found[1]


def test_it_says_when_faults_have_nothing_to_do_with_it(others: Outcome) -> None:
    anyway = of_test("test_fails_anyway", others.said)
    assert re.search(r"seed 0: it fails without faults as well \(\d+ had struck\)", anyway)
    assert "seed 0: it fails; no fault has struck" in of_test("test_fails_without_faults", others.said)


def test_it_says_when_a_run_cannot_be_repeated(others: Outcome) -> None:
    unlike = "seed 0: a second run did not do the same, so something in it does not come from the seed"
    assert unlike in of_test("test_differs", others.said)
    assert unlike not in of_test("test_fails_anyway", others.said)


def test_a_test_may_skip_and_expect_errors_as_ever(others: Outcome) -> None:
    assert others.counts == "3 failed, 1 passed, 1 skipped, 1 xfailed"
