"""Clients who go on in the next worker."""

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.probes import Figures, Threshold
from tests.support.waiting import waited

from .rows import Mutation, Row, Trial
from .services import OURS

PROGRAM = Path(__file__).with_name("talkers.py")


def measure(trial: Trial) -> Figures:
    """Reload while clients are in the middle of a conversation."""
    count, reloads = trial.size(60, 500), trial.size(2, 5)
    with trial.service("served:Counting").started() as service:
        words = json.dumps({"port": service.port, "clients": count})
        with subprocess.Popen(
            [sys.executable, str(PROGRAM), words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as talkers:
            try:
                time.sleep(1.5 + count * 0.002)
                for _ in range(reloads):
                    assert service.replaced(), service.said()
                    time.sleep(1.0)
                waited(lambda: len(service.servers()) == service.workers, 15)
                servers = service.servers()
                time.sleep(1.0)
                output, _ = talkers.communicate(timeout=60)
            finally:
                talkers.kill()
        found = json.loads(output)
    return {
        "clients": count,
        "closed": found["closed"],
        "answers that do not fit": found["wrong"],
        "not in the newest workers": sum(pid not in servers for pid in found["pids"]),
        "moves of a client": found["moves"] / count,
        "worst silence, ms": found["worst"] * 1000,
    }


LOSES_UNREAD_BYTES = Mutation(
    "answers that do not fit",
    "streams/sockets.py",
    "        self._give_input(detached.unread)\n",
    "",
)

ROWS: tuple[Row, ...] = (
    Row(
        "handover",
        "500 clients in the middle of a conversation, each with a line every quarter of a second, over 5 reloads. The"
        " server has `handle_handover` and `handle_resume`.",
        measure,
        (
            Threshold("closed", "=", 0),
            Threshold("answers that do not fit", "=", 0),
            Threshold("not in the newest workers", "=", 0),
            Threshold("worst silence, ms", "≤", 200, timed=True, quiet=True, full_only=True),
        ),
        mutations=(LOSES_UNREAD_BYTES,),
        kinds=(OURS,),
    ),
)
