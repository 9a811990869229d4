"""Runs the tests whose cases hypothesis generates again and again, each time with other cases. ``make fuzz`` does it on
a compiled core whose memory accesses are checked.

A case that fails is printed, with the command that runs it again. One that ends the process can't be: then the round
runs again, and its last case is printed.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from itertools import count

FILES = ["tests/sansio/test_machines.py", "tests/sansio/test_buffers.py", "tests/streams/test_model.py"]
"""What is compiled and has a model."""

ENVIRONMENT = {"IOSTREAMSRV_FUZZ": "1", "PYTHONUNBUFFERED": "1"}

TESTED, FAILED = 0, 1
"""How pytest ends if it ends by itself."""

REPORT = "ERROR: AddressSanitizer"
CASE = re.compile("Test case:|Trying example:")
"""Where hypothesis begins a case, in its output; some versions say the one, some the other."""


def run_round(seed: int, *options: str) -> tuple[int, str]:
    """One round of all tests: how it ended, and what it printed."""
    done = subprocess.run(
        [*command(seed), *options],
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout


def command(seed: int) -> list[str]:
    """What runs the cases of ``seed``."""
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "hypothesis", f"--hypothesis-seed={seed}"]
    return [sys.executable, "-m", "pytest", *options, *FILES]


def explain(seed: int, code: int, output: str) -> None:
    """Print what a round has found, and how to find it again."""
    print(output)
    if code != FAILED or REPORT in output:
        print(f"The process was ended ({code}). Its last case, in a second run:")
        _, output = run_round(seed, "-s", "--hypothesis-verbosity=debug")
        last = max((found.start() for found in CASE.finditer(output)), default=0)
        print(output[last : last + 20_000])
    settings = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
    print(f"Again: {settings} {shlex.join(command(seed))}")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="begin no round after these; 600")
    parser.add_argument("--first", type=int, default=int(time.time()), help="the first seed; the time")
    arguments = parser.parse_args()
    ends = time.monotonic() + arguments.seconds
    for seed in count(arguments.first):
        code, output = run_round(seed)
        if code != TESTED:
            explain(seed, code, output)
            return 1
        print(f"seed {seed}: {output.strip().splitlines()[-1]}", flush=True)
        if time.monotonic() >= ends:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
