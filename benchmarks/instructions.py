"""The bar on instructions: ``make instructions``, or ``python -m benchmarks.instructions``. It takes about a minute.

The compiled core's instructions per operation, in user space, are counted under callgrind and compared with those that
``instructions.json`` expects of this version of Python. One that is more than 5 % above or below fails: what became
slower is a regression, and what became faster is to be kept. ``--write`` writes what was counted into that file.

Instructions hardly depend on how busy a machine is, but they do on how Python was compiled: two builds of one version
can differ by a third. So each figure is divided by the instructions that a raw asyncio Protocol takes to echo a line,
in the same run on the same Python. OpenSSL's are left out, as it picks its code by the processor.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import iostreamsrv

from .callgrind import TRAFFIC, Callgrind, Spent
from .machine import Cores
from .peers import OURS, PROTOCOL
from .servers import MeasurementError

EXPECTED = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.05
YARDSTICK = "echo"
FOREIGN = ("libssl", "libcrypto")

Ratios = dict[str, float]
"""By traffic: instructions per operation, times those of the yardstick."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--write", action="store_true", help=f"write what was counted into {EXPECTED.name}")
    write: bool = options.parse_args().write
    if iostreamsrv.core != "compiled":
        print("instructions: not counted: the compiled core is not built here (make compiled)")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            callgrind = Callgrind(Path(folder))
        except MeasurementError as error:
            print(f"instructions: not counted: {error}")
            return 1 if write else 0
        counted = count(callgrind)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    print(f"of ours on Python {version}, times those:")
    print(*(f"  {TRAFFIC[name].title:36} {ratio:7.3f}" for name, ratio in counted.items()), sep="\n")
    return record(counted, version) if write else check(counted, version)


def count(callgrind: Callgrind) -> Ratios:
    """Count them, on two cores where there are two: how fast a server is does not matter."""
    cores = Cores.pick()
    jobs = [(PROTOCOL, TRAFFIC[YARDSTICK]), *((OURS, traffic) for traffic in TRAFFIC.values())]
    with ThreadPoolExecutor(len(set(cores))) as pool:
        spent = pool.map(lambda i: callgrind.instructions(*jobs[i], cores[i % 2]), range(len(jobs)))
        yardstick, *counted = map(without_openssl, spent)
    print(f"instructions of a raw Protocol's echo: {yardstick:,.0f}")
    return {name: each / yardstick for name, each in zip(TRAFFIC, counted, strict=True)}


def without_openssl(spent: Spent) -> float:
    return sum(count for path, count in spent.items() if not Path(path).name.startswith(FOREIGN))


def check(counted: Ratios, version: str, file: Path = EXPECTED) -> int:
    """Compare with what is expected; print what differs, and return the exit status."""
    expected = json.loads(file.read_text(encoding="utf-8")).get(version)
    if expected is None:
        print(f"instructions: not compared: {file.name} has nothing of Python {version}; to add it: --write")
        return 0
    problems = list(deviations(counted, expected))
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


def deviations(counted: Ratios, expected: Mapping[str, float]) -> Iterator[str]:
    """A line for each figure that is too high or too low."""
    for name, ratio in counted.items():
        change = ratio / expected[name] - 1
        if abs(change) > TOLERANCE:
            advice = "find out why" if change > 0 else "keep it"
            yield (
                f"instructions: {name}: {ratio:.3f} is {change:+.1%} from the {expected[name]:.3f} expected: {advice};"
                " if it is meant: python -m benchmarks.instructions --write"
            )


def record(counted: Ratios, version: str, file: Path = EXPECTED) -> int:
    """Write them as what is expected of this version of Python; return the exit status."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known[version] = {name: round(ratio, 3) for name, ratio in counted.items()}
    ordered = dict(sorted(known.items(), key=lambda item: [int(part) for part in item[0].split(".")]))
    file.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
    print(f"instructions: written into {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
