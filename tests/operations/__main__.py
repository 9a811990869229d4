"""Take the figures of ours, gunicorn and uvicorn, each row in its full form, and print the table."""

import argparse
import signal
import sys
import time

from benchmarks import machine
from benchmarks.servers import MeasurementError
from benchmarks.table import write_docs
from tests.faults.probes import Figures
from tests.support.programs import heed_signals

from . import keeping, table, venv
from .catalogue import ROWS
from .rows import Row
from .services import KINDS, OURS, OURS_HTTP


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.operations",
        description=__doc__,
        epilog="rows:\n" + "\n".join(f"  {row.name}" for row in ROWS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="which; all, if none is named")
    parser.add_argument("--kind", action="append", choices=KINDS, help="whose; of all, if none is named")
    parser.add_argument(
        "--write-docs", action="store_true", help=f"write the newest figures of all rows into {table.DOCS.name}"
    )
    chosen = parser.parse_args()
    names = [row.name for row in ROWS]
    if unknown := [name for name in chosen.rows if name not in names]:
        parser.error(f"no such row: {', '.join(unknown)} (there are: {', '.join(names)})")
    return chosen


def main() -> int:
    if not sys.platform.startswith("linux"):
        print("The rows need Linux: they read /proc.", file=sys.stderr)
        return 2
    chosen = options()
    heed_signals()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by an exception: all services end
    machine.allow_files()
    kinds = set(chosen.kind or KINDS)
    if not kinds <= {OURS, OURS_HTTP} and not peers_installed():
        kinds &= {OURS, OURS_HTTP}
    rows = [row for row in ROWS if not chosen.rows or row.name in chosen.rows]
    results: keeping.Results = {}
    for row in rows:
        for kind in row.kinds:
            if kind in kinds:
                results[row.name, kind] = tried(row, kind)
                keeping.keep(row.name, kind, results[row.name, kind])
    about = machine.describe() | (venv.versions() if venv.is_installed() else {})
    print(table.report(rows, results, about))
    if chosen.write_docs:
        write_docs(table.report(ROWS, keeping.kept(), about), table.DOCS)
        print(f"written into {table.DOCS}", file=sys.stderr)
    ours = [(row, results[row.name, OURS]) for row in rows if OURS in kinds]
    return 1 if any(not tries or row.missed(tries) for row, tries in ours) else 0


def peers_installed() -> bool:
    """Install gunicorn and uvicorn, if they are not there; whether they are."""
    try:
        venv.install()
    except venv.InstallError as error:
        print(f"gunicorn and uvicorn are left out, they can't be installed: {error}", file=sys.stderr)
        return False
    return True


def tried(row: Row, kind: str) -> list[Figures]:
    began = time.monotonic()
    try:
        tries = row.tried(kind, full=True)
    except (OSError, AssertionError, MeasurementError) as error:
        tries, said = [], f"fails: {str(error)[-300:] or repr(error)}"
    else:
        said = f"{time.monotonic() - began:.0f} s"
        if kind == OURS and (missed := row.missed(tries)):
            said += f", missed: {missed}"
    print(f"{row.name}, {kind}: {said}", file=sys.stderr, flush=True)
    return tries


if __name__ == "__main__":
    sys.exit(main())
