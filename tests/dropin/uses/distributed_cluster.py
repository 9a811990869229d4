"""A LocalCluster of processes over tcp, tls, ws or wss: what people compute with it, and what breaks."""

import os
import signal
import sys
import urllib.request

import dask
import dask.array
import dask.bag
import numpy
from checks import check, until
from distributed import Client, Event, LocalCluster, Lock, Queue, Security, as_completed, wait

SIZE = 200_000_000
"""Bytes that are moved at once."""


def add_one(number: int) -> int:
    return number + 1


def checksum(array: numpy.ndarray) -> tuple[int, int]:
    return array.nbytes, int(array[::4096].sum())


def make_block() -> numpy.ndarray:
    return numpy.arange(SIZE // 8)


def fail() -> None:
    raise ZeroDivisionError("as it must")


class Counter:
    """An actor."""

    def __init__(self) -> None:
        self.count = 0

    def increment(self) -> int:
        self.count += 1
        return self.count


def compute(client: Client, protocol: str) -> None:
    few = protocol in ("ws", "wss")  # there a message may take 80 ms on Tornado: Nagle's algorithm
    count, chain = (1000, 50) if few else (10_000, 500)
    with check("arrays: a transposed product"):
        array = dask.array.arange(4_000_000, chunks=250_000).reshape(2000, 2000).rechunk((500, 500))
        expected = numpy.arange(4_000_000).reshape(2000, 2000)
        assert (array + array.T).sum().compute() == (expected + expected.T).sum()
        assert numpy.array_equal(array.T.rechunk((2000, 250)).compute(), expected.T)
    with check("bags: a shuffle"):
        bag = dask.bag.from_sequence(range(20_000), npartitions=16)
        groups = dict(
            bag.groupby(lambda number: number % 7, shuffle="tasks").starmap(lambda k, v: (k, len(v))).compute()
        )
        assert groups == {rest: len(range(rest, 20_000, 7)) for rest in range(7)}
    with check("bags: frequencies"):
        counts = dict(dask.bag.from_sequence("abracadabra" * 100, npartitions=8).frequencies().compute())
        assert counts == {"a": 500, "b": 200, "r": 200, "c": 100, "d": 100}
    with check(f"{count:,} small tasks", 240):
        assert client.gather(client.map(add_one, range(count))) == list(range(1, count + 1))
    with check("as_completed"):
        results = sorted(future.result() for future in as_completed(client.map(add_one, range(-1000, -700))))
        assert results == list(range(-999, -699))
    with check(f"a chain of {chain} tasks"):
        future = client.submit(add_one, 0)
        for _ in range(chain - 1):
            future = client.submit(add_one, future)
        assert future.result() == chain
    with check("a task that fails"):
        future = client.submit(fail, pure=False)
        wait(future)
        assert isinstance(future.exception(), ZeroDivisionError)


def move(client: Client) -> None:
    one, other = client.scheduler_info()["workers"]
    block = make_block()
    with check("scatter of 200 MB", 120):
        future = client.scatter(block, workers=[one], direct=True)
        assert client.submit(checksum, future, workers=[one]).result() == checksum(block)
    with check("gather of 200 MB", 120):
        assert numpy.array_equal(client.gather(future, direct=True), block)
    with check("200 MB from worker to worker", 120):
        assert client.submit(checksum, future, workers=[other], pure=False).result() == checksum(block)
    with check("gather of 200 MB through the scheduler", 120):
        made = client.submit(make_block, workers=[other], pure=False)
        assert numpy.array_equal(client.gather(made, direct=False), block)
    with check("scatter of 50 MB through the scheduler, to all", 120):
        part = block[: len(block) // 4].copy()
        spread = client.scatter(part, broadcast=True, direct=False)
        for worker in (one, other):
            assert client.submit(checksum, spread, workers=[worker], pure=False).result() == checksum(part)
    with check("500 pieces of 100 KB, each way", 120):
        pieces = [bytes([number % 256]) * 100_000 for number in range(500)]
        assert client.gather(client.scatter(pieces)) == pieces


def coordinate(client: Client) -> None:
    with check("client.run on the workers"):
        assert len(set(client.run(os.getpid).values())) == 2
    with check("client.run on the scheduler"):
        assert client.run_on_scheduler(os.getpid) == os.getpid()
    with check("a queue, a lock and an event"):
        queue, event = Queue("queue", client=client), Event("event", client=client)
        with Lock("lock"):
            for number in range(50):
                queue.put(number)
        assert [queue.get() for _ in range(50)] == list(range(50))
        event.set()
        assert event.wait(5)
    with check("an actor"):
        counter = client.submit(Counter, actor=True).result()
        assert [counter.increment().result() for _ in range(20)] == list(range(1, 21))
    with check("the workers' logs"):
        assert len(client.get_worker_logs()) == 2
    with (
        check("a second client"),
        Client(client.scheduler.address, security=client.security, set_as_default=False) as it,
    ):
        assert it.submit(add_one, 41).result() == 42


def look(client: Client, cluster: LocalCluster) -> None:
    dashboard = cluster.dashboard_link.rpartition("/")[0]
    for path in (
        "health",
        "status",
        "workers",
        "tasks",
        "system",
        "graph",
        "info/main/workers.html",
        "json/counts.json",
    ):
        with check(f"the scheduler's dashboard, {path}"):
            look_at(f"{dashboard}/{path}")
    with check("the scheduler's dashboard over a WebSocket"):
        from bokeh.client import pull_session

        session = pull_session(url=f"{dashboard}/individual-workers")
        assert session.document.roots
        session.close()
    for number, worker in enumerate(client.scheduler_info()["workers"].values()):
        with check(f"a worker's dashboard, {number}"):
            port = worker["services"]["dashboard"]
            look_at(f"http://127.0.0.1:{port}/status")


def look_at(url: str) -> None:
    with urllib.request.urlopen(url, timeout=30) as page:
        assert page.status == 200 and page.read()


def break_it(client: Client) -> None:
    with check("all workers restarted", 120):
        before = set(client.run(os.getpid).values())
        client.restart(timeout=60)
        assert not before & set(client.run(os.getpid).values())
        assert client.submit(add_one, 2, pure=False).result() == 3
    with check("a worker restarted", 120):
        name = next(iter(client.scheduler_info()["workers"].values()))["name"]
        before = set(client.run(os.getpid).values())
        assert client.restart_workers([name], timeout=60) == {name: "OK"}
        after = set(client.run(os.getpid).values())
        assert len(after) == 2 and len(after & before) == 1
    with check("a worker killed: its tasks run elsewhere", 120):
        futures = client.map(add_one, range(500, 700))
        wait(futures)
        victim = next(iter(client.run(os.getpid).values()))
        os.kill(victim, signal.SIGKILL)
        assert client.gather(client.map(add_one, futures)) == list(range(502, 702))
    with check("a worker killed: its nanny starts another", 120):
        until(lambda: len(client.scheduler_info()["workers"]) == 2 and victim not in client.run(os.getpid).values(), 60)
        assert client.submit(add_one, 1, pure=False).result() == 2


def resize(client: Client, cluster: LocalCluster) -> None:
    with check("a third worker, and back to two", 120):
        cluster.scale(3)
        client.wait_for_workers(3, timeout=60)
        assert client.gather(client.map(add_one, range(300), pure=False)) == list(range(1, 301))
        cluster.scale(2)
        until(lambda: len(client.scheduler_info()["workers"]) == 2)
        assert client.gather(client.map(add_one, range(300), pure=False)) == list(range(1, 301))


def main(protocol: str) -> None:
    dask.config.set({"distributed.admin.tick.limit": "30s"})
    # This time after a worker's end, 15 seconds by default, LocalCluster gives it up for good if it is not there: also
    # if it had come back, and the next check has just ended it again.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"})
    security = Security.temporary() if protocol in ("tls", "wss") else Security()
    cluster = client = None
    with check("start", 120):
        cluster = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            protocol=f"{protocol}://",
            security=security,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        )
        client = Client(cluster)
        assert cluster.scheduler_address.startswith(f"{protocol}://127.0.0.1:")
    if cluster is None or client is None:
        return
    compute(client, protocol)
    move(client)
    coordinate(client)
    look(client, cluster)
    resize(client, cluster)
    break_it(client)
    with check("end"):
        client.close()
        cluster.close()


if __name__ == "__main__":
    main(sys.argv[1])
