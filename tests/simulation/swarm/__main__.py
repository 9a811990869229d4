"""Runs seeds of the swarm, and prints those that break an invariant."""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import count, islice

from .scenario import draw
from .world import problems_of

BATCH = 20


def run(seeds: range) -> list[tuple[int, list[tuple[str, str]]]]:
    """Run some seeds: those that failed, with their problems."""
    failed = []
    for seed in seeds:
        try:
            problems = problems_of(seed)
        except Exception as error:
            problems = [("exception", repr(error))]
        if problems:
            failed.append((seed, problems))
    return failed


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.swarm", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many, unless --seconds is given; 200")
    parser.add_argument("--first", type=int, default=0, help="the first; 0")
    parser.add_argument("--seconds", type=float, help="run for so long")
    parser.add_argument("--jobs", type=int, default=1, help="processes; 1")
    arguments = parser.parse_args()
    begun = time.monotonic()
    failed = seeds = 0
    with ProcessPoolExecutor(arguments.jobs) as pool:
        batches = (range(first, first + BATCH) for first in count(arguments.first, BATCH))
        if arguments.seconds is None:
            last = arguments.first + arguments.seeds
            batches = (range(b.start, min(b.stop, last)) for b in islice(batches, -(-arguments.seeds // BATCH)))
        running = {}
        for batch in islice(batches, 2 * arguments.jobs):
            running[pool.submit(run, batch)] = batch
        while running:
            future = next(iter(running))
            batch = running.pop(future)
            seeds += len(batch)
            for seed, problems in future.result():
                failed += 1
                print(f"seed {seed}: {draw(seed)}", *(f"    {name}: {text}" for name, text in problems), sep="\n")
                sys.stdout.flush()
            if arguments.seconds is None or time.monotonic() - begun < arguments.seconds:
                for following in islice(batches, 1):
                    running[pool.submit(run, following)] = following
    seconds = time.monotonic() - begun
    print(f"{seeds} seeds in {seconds:.1f} s: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
