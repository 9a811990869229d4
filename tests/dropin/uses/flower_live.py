"""flower and a celery worker, over a Redis that is started here."""

import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from checks import check, until
from programs import free_port, get, is_up, python, running

TASKS = """
import celery

app = celery.Celery("tasks", broker="{broker}", backend="{broker}")


@app.task
def add(one, other):
    return one + other


@app.task
def fail():
    raise ZeroDivisionError("as it must")
"""

WORKER = ["worker", "--concurrency=1", "--task-events", "--hostname=worker@localhost", "--loglevel=INFO"]
"""It says that it is ready at this level only."""


def main() -> None:
    redis = shutil.which("redis-server")
    if redis is None:
        print("skipped flower\tthere is no redis-server")
        return
    redis_port, port = free_port(), free_port()
    base = f"http://127.0.0.1:{port}"
    broker = f"redis://127.0.0.1:{redis_port}/0"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tasks.py").write_text(TASKS.format(broker=broker))
        celery = ["-m", "celery", "-A", "tasks"]
        with (
            running(redis, "--port", str(redis_port), "--bind", "127.0.0.1", "--save", "", folder=folder),
            python(*celery, *WORKER, folder=folder) as worker,
            python(
                *celery,
                "flower",
                "--address=127.0.0.1",
                f"--port={port}",
                folder=folder,
                FLOWER_UNAUTHENTICATED_API="1",
            ) as flower,
        ):
            with check("start", 120):
                worker.match("ready", 55)
                until(lambda: is_up(f"{base}/"))
            with check("the worker"):
                until(lambda: b"worker@localhost" in get(f"{base}/api/workers?refresh=1")[1])
            with check("50 tasks"):
                for number in range(50):
                    arguments = json.dumps({"args": [number, 1]}).encode()
                    status, text = get(f"{base}/api/task/async-apply/tasks.add", arguments)
                    assert status == 200, (status, text)
                last = json.loads(text)["task-id"]
                until(lambda: json.loads(get(f"{base}/api/task/result/{last}?timeout=5")[1]).get("result") == 50)
            with check("a task that is waited for"):
                status, text = get(f"{base}/api/task/apply/tasks.add", json.dumps({"args": [20, 22]}).encode())
                assert status == 200 and json.loads(text)["result"] == 42
            with check("a task that fails"):
                status, text = get(f"{base}/api/task/apply/tasks.fail", b"{}")
                assert json.loads(text)["state"] == "FAILURE"
            with check("the tasks that it has seen"):
                until(lambda: len(json.loads(get(f"{base}/api/tasks?limit=100")[1])) >= 50)
            for page in (
                "workers",
                "tasks",
                "broker",
                "metrics",
                "healthcheck",
                "static/css/flower.css",
                "task/" + last,
            ):
                with check(f"the page {page.replace(last, 'ID')}"):
                    status, text = get(f"{base}/{page}")
                    assert status == 200 and text
            with check("100 pages"):
                began = time.monotonic()
                for _ in range(100):
                    assert get(f"{base}/healthcheck")[0] == 200
                assert time.monotonic() - began < 30
            with check("a page that is not there"):
                assert get(f"{base}/nothing")[0] == 404
            with check("SIGTERM ends it"):
                flower.end(signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
