"""The projects, and what runs of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

USES = Path(__file__).resolve().parent / "uses"
ABSENT = Path(__file__).resolve().parent / "absent"
"""Modules that a project's tests import and its sdist lacks."""


class Suite(NamedTuple):
    """Tests of a project's own, which its sdist carries, run by pytest in the sdist's folder."""

    distribution: str
    paths: Sequence[str]
    timeout: float
    """Seconds for the whole of it, on one side."""
    options: Sequence[str] = ()

    @property
    def name(self) -> str:
        return "suite"


class Use(NamedTuple):
    """A program in `uses`, which does what people do with the project, and prints a line for each check."""

    program: str
    timeout: float
    arguments: Sequence[str] = ()

    @property
    def name(self) -> str:
        return " ".join([self.program, *self.arguments])


class Project(NamedTuple):
    """One project: the distribution whose version is shown, and what is run."""

    name: str
    distribution: str
    runs: Sequence[Suite | Use]
    what: str
    """In the table: what is run."""


NEWER_TORNADO = "ignore:The method, uri, and version arguments:DeprecationWarning"
"""What jupyter_server's tests do that Tornado has deprecated since, and a warning is an error there."""

PROJECTS = (
    Project(
        "jupyter_server",
        "jupyter_server",
        [Suite("jupyter_server", ["tests"], 2400, ["--color=no", "-o", "log_cli=false", "-W", NEWER_TORNADO])],
        "its own tests",
    ),
    Project(
        "distributed",
        "distributed",
        [
            *(Use("distributed_comms.py", 300, [protocol]) for protocol in ("tcp", "tls", "ws", "wss")),
            *(Use("distributed_cluster.py", 900, [protocol]) for protocol in ("tcp", "tls", "ws")),
        ],
        "comms over tcp, tls, ws and wss; a LocalCluster over tcp, tls and ws",
    ),
    Project(
        "pynsq",
        "pynsq",
        [Use("pynsq_messages.py", 200, features) for features in ([], ["tls_v1"], ["deflate"], ["snappy"])],
        "a writer and a reader: plain, and with tls, deflate and snappy; nsqd is a small one of ours",
    ),
    Project(
        "thrift",
        "thrift",
        [
            Suite(
                "thrift",
                ["test/test_tornado_frame_size.py"],
                300,
                ["--rootdir=.", "-c", "/dev/null", "-o", f"pythonpath={ABSENT}"],
            ),
            Use("thrift_calls.py", 120),
        ],
        "its own tests of TTornado; a server and its clients",
    ),
    Project(
        "streamz",
        "streamz",
        [Suite("streamz", ["streamz"], 900)],
        "its own tests",
    ),
    Project(
        "bokeh",
        "bokeh",
        [Use("bokeh_serve.py", 240, [processes]) for processes in ("1", "2")],
        "`bokeh serve` with 1 and 2 processes: pages and sessions",
    ),
    Project(
        "panel",
        "panel",
        [Use("panel_serve.py", 240, [processes]) for processes in ("1", "2")],
        "`panel serve` with 1 and 2 processes: pages and sessions",
    ),
    Project("luigi", "luigi", [Use("luigi_live.py", 240)], "luigid and two workers"),
    Project("flower", "flower", [Use("flower_live.py", 240)], "flower and a celery worker"),
)
