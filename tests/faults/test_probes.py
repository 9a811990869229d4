"""Ours reaches each threshold, in a process of its own; and would not, were it not for the guard of it.

Each probe has a small form here; ``IOSTREAMSRV_FULL=1`` makes it the full one. Nowhere else do tests measure time.
"""

import os
import resource
import sys
from collections.abc import Iterator

import pytest

from tests.support import PROJECT

from .catalogue import PROBES
from .probes import Guard, Probe, Trial

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it needs /proc")

ALL = os.environ.get("IOSTREAMSRV_FULL") == "1"


@pytest.fixture(scope="module", autouse=True)
def enough_descriptors() -> Iterator[None]:
    """For two thousand clients here, and in the server as many, which inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


COVERED = {
    "slow reader": "tests/server/test_slow_readers.py",
    "out of descriptors": "tests/styles/test_scenarios_turbo.py",
    "silent under TLS": "tests/server/test_tls_faults.py",
    "resets under TLS": "tests/server/test_tls_faults.py",
    "garbage to a TLS port": "tests/server/test_tls_faults.py",
    "PROXY header and ClientHello at once": "tests/server/test_tls_faults.py",
    "bare end": "tests/server/test_tls_faults.py",
    "KeyUpdate flood": "tests/server/test_tls_floods.py",
    "renegotiation flood": "tests/server/test_tls_floods.py",
}
"""Probes whose fault a test of the first tier does to a server as well: they run with the second."""


def test_what_is_covered_elsewhere_is_a_probe_and_a_file() -> None:
    assert COVERED.keys() <= {probe.name for probe in PROBES}
    assert [path for path in COVERED.values() if not (PROJECT / path).is_file()] == []


def alone_if_need_be(probe: Probe) -> list[pytest.MarkDecorator]:
    """In the full form whatever is a matter of time, and in the small one what others spoil by little."""
    alone = any(each.timed if ALL else each.quiet for each in probe.thresholds)
    return [pytest.mark.alone] if alone else []


@pytest.mark.parametrize(
    "probe",
    [
        pytest.param(
            probe,
            id=probe.name,
            marks=alone_if_need_be(probe) + ([] if probe.name in COVERED else [pytest.mark.first_tier]),
        )
        for probe in PROBES
    ],
)
def test_ours_reaches_the_thresholds(probe: Probe) -> None:
    assert probe.missed(probe.tried(full=ALL)) == {}


GUARDED = [(probe, guard) for probe in PROBES for guard in probe.guards]


@pytest.mark.parametrize(
    ("probe", "guard"),
    [
        pytest.param(probe, guard, id=f"{probe.name} without {guard.name}", marks=alone_if_need_be(probe))
        for probe, guard in GUARDED
    ],
)
def test_a_probe_notices_that_its_guard_is_off(probe: Probe, guard: Guard) -> None:
    assert guard.breaks in probe.missed([probe.measure(Trial(guard=guard))])


def test_each_probe_has_a_guard_that_it_notices() -> None:
    assert [probe.name for probe in PROBES if not probe.guards] == []
