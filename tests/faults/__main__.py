"""Probe ours, Tornado and asyncio, each with every fault in its full form, and print the table."""

import argparse
import sys
import time

from benchmarks import machine
from benchmarks.servers import MeasurementError
from benchmarks.table import write_docs
from tests.support.programs import heed_signals

from . import table
from .catalogue import PROBES
from .probes import Figures, Probe
from .servers import OURS


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        epilog="probes:\n" + "\n".join(f"  {probe.name}" for probe in PROBES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("probes", nargs="*", metavar="PROBE", help="which; all, if none is named")
    parser.add_argument("--write-docs", action="store_true", help=f"write the table into {table.DOCS.name}, too")
    chosen = parser.parse_args()
    names = [probe.name for probe in PROBES]
    if unknown := [name for name in chosen.probes if name not in names]:
        parser.error(f"no such probe: {', '.join(unknown)} (there are: {', '.join(names)})")
    if chosen.write_docs and chosen.probes:
        parser.error("--write-docs is for a run of all probes")
    return chosen


def main() -> int:
    if not sys.platform.startswith("linux"):
        print("The probes need Linux: they read /proc.", file=sys.stderr)
        return 2
    chosen = options()
    heed_signals()
    machine.allow_files()
    probes = [probe for probe in PROBES if not chosen.probes or probe.name in chosen.probes]
    results = {(probe.name, kind): tried(probe, kind) for probe in probes for kind in probe.kinds}
    text = table.report(probes, results, machine.describe())
    print(text)
    if chosen.write_docs:
        write_docs(text, table.DOCS)
        print(f"written into {table.DOCS}", file=sys.stderr)
    ours = [(probe, results[probe.name, OURS]) for probe in probes]
    return 1 if any(not tries or probe.missed(tries) for probe, tries in ours) else 0


def tried(probe: Probe, kind: str) -> list[Figures]:
    began = time.monotonic()
    try:
        tries = probe.tried(kind, full=True)
    except (OSError, AssertionError, MeasurementError) as error:
        tries, said = [], f"fails: {error!r}"
    else:
        said = f"{time.monotonic() - began:.0f} s"
    print(f"{probe.name}, {kind}: {said}", file=sys.stderr, flush=True)
    return tries


if __name__ == "__main__":
    sys.exit(main())
