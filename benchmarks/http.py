"""Hello over HTTP: a Tornado Application on iostreamsrv, on Tornado itself, and ``examples/http_hello.py``, under wrk.

``python -m benchmarks.http``. In every round each server has its turn, in a fresh process, on a core of its own; wrk
has another. What is shown is the median of the rounds: requests a second, the server's CPU time for one, and both in
relation to Tornado's.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from .hello import h11_on_iostreamsrv, httptools_on_iostreamsrv, tornado_itself, tornado_on_iostreamsrv
from .machine import cpu_seconds
from .outside import REFERENCE, Figures, begin, in_turns, lines, parser
from .servers import REPOSITORY, MeasurementError

CONNECTIONS = 50


SERVERS: dict[str, Any] = {
    "Tornado on iostreamsrv": tornado_on_iostreamsrv,
    "http_hello.py": h11_on_iostreamsrv,
    "httptools on iostreamsrv": httptools_on_iostreamsrv,
    REFERENCE: tornado_itself,
}


@contextlib.contextmanager
def started(name: str, core: int) -> Iterator[tuple[int, int]]:
    """Start a server in a separate process; yield its process id and its port."""
    command = [sys.executable, "-m", "benchmarks.http", "--serve", name]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        os.sched_setaffinity(process.pid, {core})
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.terminate()


def measure(name: str, seconds: int, core: int) -> Figures:
    with started(name, core) as (pid, port):
        load(port, 1)
        before = cpu_seconds(pid)
        requests, rate = load(port, seconds)
        return Figures(rate, (cpu_seconds(pid) - before) / requests)


def load(port: int, seconds: int) -> tuple[int, float]:
    """Run wrk for some seconds; return the number of requests, and the requests per second."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"http://127.0.0.1:{port}/"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    requests, rate = re.search(r"(\d+) requests in", said), re.search(r"Requests/sec: +([\d.]+)", said)
    if requests is None or rate is None or "Non-2xx" in said or "Socket errors" in said:
        raise MeasurementError(f"wrk said {said!r}")
    return int(requests[1]), float(rate[1])


def main() -> None:
    options = parser(__doc__, SERVERS)
    options.add_argument("--secs", type=int, default=3, help="how long a run counts; default: %(default)s")
    arguments = options.parse_args()
    cores = begin(arguments, SERVERS, "wrk", "wrk")
    if cores is not None:
        core = cores.server
        print(*lines(in_turns(SERVERS, arguments.rounds, lambda name: measure(name, arguments.secs, core))), sep="\n")


if __name__ == "__main__":
    main()
