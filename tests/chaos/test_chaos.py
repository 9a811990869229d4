"""Nothing is lost, doubled or reordered, and nothing is left behind, whatever the network does.

200 clients send messages through the proxy of `tests.chaos.network` to a server in a process of its own, which repeats
them; for 5 s, and with ``IOSTREAMSRV_FULL=1`` for 30 s.
"""

import asyncio
import os
import random
import resource
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from iostreamsrv.certificates import self_signed
from tests.chaos.network import KERNEL, Clients, Fate, Lost, some_messages
from tests.support.programs import ReportingServer

SECONDS = 30.0 if os.environ.get("IOSTREAMSRV_FULL") == "1" else 5.0
CLIENTS = 200

LONG = 300.0
"""Seconds after which the server is killed, and that a handshake may take: 200 at once, on a busy machine, and no
deadline is what is tested here."""


@pytest.fixture(autouse=True)
def enough_descriptors() -> Iterator[None]:
    """For three sockets of each client here, one in the server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def run(server: ReportingServer, seed: int, context: ssl.SSLContext | None = None, seconds: float = SECONDS) -> Clients:
    clients = Clients(server.addresses[0], seed, context)
    asyncio.run(clients.run(CLIENTS, seconds))
    return clients


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_nothing_is_lost_doubled_or_reordered_and_nothing_left_behind(kind: str, tmp_path: Path) -> None:
    pair = self_signed()
    files = pair.write(tmp_path) if kind == "tls" else None
    context = ssl.create_default_context(cadata=pair.certificate.decode()) if kind == "tls" else None
    options = {"ssl_options": files, "handshake_timeout": LONG, "send_buffer_size": KERNEL}
    with ReportingServer(LONG, "tests.chaos.network:FrameServer", **options) as server:
        clients = run(server, 1, context)
        reasons = server.settled()["reasons"]
        code, _, said = server.end()
    assert code == 0
    assert "Traceback" not in said, said
    assert clients.messages > 1_000
    ends = {f"{end} {direction}" for end in ("reset", "half-close") for direction in ("there", "back")}
    assert set(clients.ends) == {"", *ends}, "all of it has happened"
    assert {"eof", "reset"} <= set(reasons)


# ---- the test of the test


@pytest.mark.parametrize("fault", ["Losing", "Doubling", "Reordering"])
def test_a_server_at_fault_is_found_out(fault: str) -> None:
    with ReportingServer(LONG, f"tests.chaos.network:{fault}Server") as server:
        with pytest.raises(ExceptionGroup) as caught:
            run(server, 1)
        assert caught.group_contains(Lost)


def test_a_server_that_keeps_descriptors_is_found_out() -> None:
    with ReportingServer(LONG, "tests.chaos.network:LeakingServer") as server:
        run(server, 1, seconds=0)
        with pytest.raises(AssertionError, match=r"'descriptors': [1-9]"):
            server.settled(patience=1)


def test_a_connection_follows_from_its_name() -> None:
    def drawn(name: str) -> object:
        chance = random.Random(name)
        return some_messages(chance), [(fate.road, fate.end, fate.at) for fate in (Fate.of(chance), Fate.of(chance))]

    assert drawn("seed 1, client 2, connection 3") == drawn("seed 1, client 2, connection 3")
    assert drawn("seed 1, client 2, connection 3") != drawn("seed 2, client 2, connection 3")
