"""luigid and workers that get their tasks from it."""

import json
import signal
import sys
import tempfile
from pathlib import Path

from checks import check, until
from programs import free_port, get, is_up, python

TASKS = """
import luigi


class Leaf(luigi.Task):
    number = luigi.IntParameter()
    folder = luigi.Parameter()

    def output(self):
        return luigi.LocalTarget(f"{self.folder}/leaf-{self.number}")

    def run(self):
        with self.output().open("w") as output:
            output.write(str(self.number))


class Sum(luigi.Task):
    folder = luigi.Parameter()

    def requires(self):
        return [Leaf(number=number, folder=self.folder) for number in range(60)]

    def output(self):
        return luigi.LocalTarget(f"{self.folder}/sum")

    def run(self):
        total = 0
        for leaf in self.input():
            with leaf.open() as text:
                total += int(text.read())
        with self.output().open("w") as output:
            output.write(str(total))


class Fails(luigi.Task):
    def run(self):
        raise ZeroDivisionError("as it must")
"""


def main() -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tasks.py").write_text(TASKS)
        daemon = ["--port", str(port), "--address", "127.0.0.1", "--state-path", f"{folder}/state"]
        worker = ["-m", "luigi", "--module", "tasks", "--scheduler-host", "127.0.0.1", "--scheduler-port", str(port)]
        with python("-c", "from luigi.cmdline import luigid; luigid()", *daemon, folder=folder) as server:
            with check("start"):
                until(lambda: is_up(f"{base}/"))

            def rpc(method: str, **arguments: object) -> object:
                status, text = get(f"{base}/api/{method}", f"data={json.dumps(arguments)}".encode())
                assert status == 200, (status, text)
                return json.loads(text)["response"]

            with check("61 tasks, by two workers"):
                with (
                    python(*worker, "Sum", "--folder", folder, folder=folder) as one,
                    python(*worker, "Sum", "--folder", folder, folder=folder) as other,
                ):
                    for each in (one, other):
                        assert each.process.wait(60) == 0
                assert Path(folder, "sum").read_text() == str(sum(range(60)))
            with check("the tasks that are done"):
                assert len(rpc("task_list", status="DONE", upstream_status="")) == 61
            with check("a task that fails"):
                with python(*worker, "Fails", folder=folder) as failing:
                    failing.process.wait(60)
                assert len(rpc("task_list", status="FAILED", upstream_status="")) == 1
            with check("the graph"):
                assert len(rpc("graph")) >= 61
            with check("1,000 calls"):
                for _ in range(1000):
                    rpc("task_list", status="PENDING", upstream_status="")
            for page in ("static/visualiser/index.html", "static/visualiser/js/luigi.js"):
                with check(f"the page {page}"):
                    status, text = get(f"{base}/{page}")
                    assert status == 200 and text
            with check("SIGTERM ends it, and it saves its state"):
                server.end(signal.SIGTERM)
                assert Path(folder, "state").stat().st_size


if __name__ == "__main__":
    sys.exit(main())
