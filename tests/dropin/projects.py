"""The projects, and what runs of each."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

USES = Path(__file__).resolve().parent / "uses"
ABSENT = Path(__file__).resolve().parent / "absent"
"""Modules that a project's tests import and its sdist lacks."""


class Suite(NamedTuple):
    """Tests of a project's own, which its sdist carries, run by pytest in the sdist's folder."""

    distribution: str
    what: str
    """In the table: what is run."""
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
    what: str
    """In the table: what is run."""
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


NEWER_TORNADO = (
    *("-W", "ignore:The method, uri, and version arguments:DeprecationWarning"),
    *("-W", "ignore:The start_line argument to HTTPServerRequest:DeprecationWarning"),
)
"""What jupyter_server's tests do that Tornado has deprecated since, and a warning is an error there."""

PROJECTS = (
    Project(
        "jupyter_server",
        "jupyter_server",
        [
            Suite(
                "jupyter_server",
                "its own tests",
                ["tests"],
                2400,
                ["--color=no", "-o", "log_cli=false", *NEWER_TORNADO],
            )
        ],
    ),
    Project(
        "distributed",
        "distributed",
        [
            *(
                Use("distributed_comms.py", f"comms over {protocol}", 300, [protocol])
                for protocol in ("tcp", "tls", "ws", "wss")
            ),
            *(
                Use("distributed_cluster.py", f"a LocalCluster over {protocol}", 900, [protocol])
                for protocol in ("tcp", "tls", "ws")
            ),
        ],
    ),
    Project(
        "pynsq",
        "pynsq",
        [
            Use("pynsq_messages.py", "a writer and a reader (nsqd is a small one of ours)", 200),
            *(
                Use("pynsq_messages.py", f"the same, with {feature}", 200, [feature])
                for feature in ("tls_v1", "deflate", "snappy")
            ),
        ],
    ),
    Project(
        "thrift",
        "thrift",
        [
            Suite(
                "thrift",
                "its own tests of TTornado",
                ["test/test_tornado_frame_size.py"],
                300,
                ["--rootdir=.", "-c", "/dev/null", "-o", f"pythonpath={shlex.quote(str(ABSENT))}"],
            ),
            Use("thrift_calls.py", "a server and its clients", 120),
        ],
    ),
    Project(
        "streamz", "streamz", [Suite("streamz", "its own tests, but for those of data frames", ["streamz/tests"], 900)]
    ),
    Project(
        "bokeh",
        "bokeh",
        [
            Use("bokeh_serve.py", "`bokeh serve`: pages and sessions", 240, ["1"]),
            Use("bokeh_serve.py", "the same, with 2 processes", 240, ["2"]),
        ],
    ),
    Project(
        "panel",
        "panel",
        [
            Use("panel_serve.py", "`panel serve`: pages and sessions", 240, ["1"]),
            Use("panel_serve.py", "the same, with 2 processes", 240, ["2"]),
        ],
    ),
    Project("luigi", "luigi", [Use("luigi_live.py", "luigid and two workers", 240)]),
    Project("flower", "flower", [Use("flower_live.py", "flower and a celery worker", 240)]),
)
