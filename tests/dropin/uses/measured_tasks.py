"""distributed's scheduler: ``serve PORT`` runs it, ``load PORT PID`` gives it a worker and tasks, and measures."""

import asyncio
import subprocess
import sys

from distributed import Client, Scheduler
from meter import Meter

COUNT = 10_000


def add_one(number: int) -> int:
    return number + 1


async def serve(port: str) -> None:
    async with Scheduler(host="127.0.0.1", port=int(port), dashboard=False) as scheduler:
        await scheduler.finished()


def load(port: str, pid: str) -> None:
    address = f"tcp://127.0.0.1:{port}"
    options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")
    worker = subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_worker", address, *options])
    try:
        with Client(address, timeout=60) as client:
            client.wait_for_workers(1, timeout=60)
            compute(client, range(-1000, 0))
            with Meter(int(pid)).measure(f"{COUNT:,} trivial tasks", COUNT):
                compute(client, range(COUNT))
    finally:
        worker.kill()
        worker.wait()


def compute(client: Client, numbers: range) -> None:
    assert client.gather(client.map(add_one, numbers)) == list(range(numbers.start + 1, numbers.stop + 1))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve(*sys.argv[2:]))
    else:
        load(*sys.argv[2:])
