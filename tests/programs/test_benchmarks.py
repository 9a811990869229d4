"""The benchmarks themselves: that they run, and reckon right. How fast anything is, no test says."""

import dataclasses
import os
import shutil
import socket
import sys
import threading
from pathlib import Path

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("the benchmarks need Linux", allow_module_level=True)

from benchmarks import resp, table
from benchmarks.__main__ import NO_OPENSSL, Benchmark
from benchmarks.__main__ import run as run_benchmark
from benchmarks.echoes import ALL_LIMITS, NO_LIMITS
from benchmarks.floor import floor_program
from benchmarks.load import Kind, Load
from benchmarks.machine import Cores
from benchmarks.peers import (
    ALL,
    COPYING,
    FLOOR,
    LIMITED,
    OURS,
    PEERS,
    PROTOCOL,
    TORNADO,
    UNDER_TLS,
    UNLIMITED,
    Peer,
)
from benchmarks.results import Results, Run
from benchmarks.servers import MeasurementError, Server
from benchmarks.workloads import WORKLOADS, Figures, Rate, percentile
from iostreamsrv.options import REPLACEABLE, ServerOptions
from iostreamsrv.options import UNLIMITED as ENDLESS

pytestmark = pytest.mark.alone

SIZES = ("4", "8", "16")
NAMED = {
    "ours": OURS,
    "tornado": TORNADO,
    "protocol": PROTOCOL,
    "copying": COPYING,
    "unlimited": UNLIMITED,
    "limited": LIMITED,
    "floor": FLOOR,
}


def results(workload: str, **figures: list[Figures]) -> Results:
    made = Results()
    for name, runs in figures.items():
        for run in runs:
            made.add(workload, NAMED[name], Run(run, foreign=0.0))
    return made


@pytest.mark.parametrize("exponent", [1, 2])
def test_growth_is_the_exponent_of_a_power_law(exponent: int) -> None:
    made = results("line", ours=[{size: 3e-9 * int(size) ** exponent for size in SIZES}])
    assert made.growth("line", OURS) == pytest.approx(exponent)


def test_a_ratio_compares_runs_of_the_same_round() -> None:
    made = results(
        "echo",
        ours=[{"rate": 30.0}, {"rate": 3.0}, {"rate": 300.0}],
        tornado=[{"rate": 10.0}, {"rate": 1.0}, {"rate": 100.0}],
    )
    assert made.ratio("echo", OURS, "rate") == 3.0


def test_a_percentile_is_a_value_that_was_seen() -> None:
    ordered = [float(i) for i in range(1, 101)]
    assert (percentile(ordered, 0.50), percentile(ordered, 0.99), percentile([7.0], 0.99)) == (50.0, 99.0, 7.0)


def test_a_threshold_that_is_missed_is_called_missed() -> None:
    figures = {"cpu": 1.0, "load": 0.5}
    text = table.report(
        results("echo", ours=[{"rate": 2.0, **figures}], tornado=[{"rate": 1.0, **figures}]), {}, "once"
    )
    assert "| ≥ 2.60 times Tornado | 2.00 | 1.00 | **missed** |" in text


@pytest.mark.parametrize(
    ("workload", "base", "row"),
    [
        ("tls", "tornado", "≥ 2.60 times Tornado | 1.50 | 2.00 | **missed** |"),
        ("echo", "floor", "≥ 0.80 times C on epoll | 1.50 | 2.00 | met |"),
        ("tls-churn", "floor", "≤ 1.20 times C with OpenSSL | 0.50 |  | met |"),
        ("tls-churn", "tornado", "≤ 0.88 times Tornado | 0.50 |  | met |"),
        ("proxy-bulk", "protocol", "≥ 0.90 times a raw Protocol | 1.50 | 2.00 | met |"),
        ("broadcast", "tornado", "≥ 2.70 times Tornado | 1.50 | 2.00 | **missed** |"),
        ("file", "copying", "≥ 2.00 times read and write | 1.50 | 2.00 | **missed** |"),
    ],
)
def test_a_threshold_is_held_against_the_peer_it_names(workload: str, base: str, row: str) -> None:
    made = results(
        workload, ours=[{"rate": 3.0, "cpu": 1.0, "load": 0.5}], **{base: [{"rate": 2.0, "cpu": 2.0, "load": 0.5}]}
    )
    assert row in table.report(made, {}, "once")


def test_what_limits_cost_is_held_against_a_server_without_any() -> None:
    cpu = {"unlimited": 1.0, "ours": 1.05, "limited": 1.10}
    made = results("defaults", **{name: [{"rate": 1.0, "cpu": cpu[name], "load": 0.5}] for name in cpu})
    text = table.report(made, {}, "once")
    assert "with the default limits and timeouts | ≤ 1.08 times no limits | 1.05 |  | met |" in text
    assert "with all limits and timeouts | ≤ 1.08 times no limits | 1.10 |  | **missed** |" in text
    assert "| iostreamsrv, all limits | 1.00 | 1,100,000 | 1.10 |" in text


def test_very_many_connections_are_held_against_a_hundred() -> None:
    figures = {"rate": 20.0, "hundred": 40.0, "share": 0.5, "share by cpu": 0.4, "cpu": 1.0, "load": 0.5}
    text = table.report(results("held", ours=[figures]), {}, "once")
    assert "| echo, 10,000 connections, 64 bytes | ≥ 0.45 times with 100 | 0.50 | 0.40 | met |" in text
    assert "| iostreamsrv | 40.00 | 20.00 | 0.50 |" in text


def test_no_limits_are_none_and_all_limits_are_all() -> None:
    before_the_handler = {"handshake_timeout", "proxy_header_timeout"}
    in_a_shutdown = {"drain_timeout", "drain_idle"}
    how = {"when_full", "min_rate_window", "read_chunk_size"}
    assert set(NO_LIMITS) == REPLACEABLE - before_the_handler - in_a_shutdown - how
    none, every = ServerOptions.of(NO_LIMITS), ServerOptions.of(ALL_LIMITS)
    endless = {getattr(none, name) for name in NO_LIMITS}
    assert endless == {None, ENDLESS}
    assert not endless & {getattr(every, name) for name in NO_LIMITS}


def test_forwarders_have_tables_of_their_own() -> None:
    made = results("proxy-echo", tornado=[{"rate": 1.0, "cpu": 1.0, "load": 0.5}])
    text = table.report(made, {}, "once")
    assert "### Speed through a forwarder, times Tornado on asyncio" in text
    assert "### Speed, times Tornado on asyncio" not in text


def test_what_is_under_tls_has_tables_of_its_own() -> None:
    made = results("tls-bulk", tornado=[{"rate": 1.0, "cpu": 1.0, "load": 0.5}])
    text = table.report(made, {}, "once")
    assert "### Speed under TLS, times Tornado on asyncio" in text
    assert "### The server's CPU time under TLS for the same, times less than Tornado on asyncio" in text
    assert "### Speed, times Tornado on asyncio" not in text


def test_a_figure_that_others_or_the_load_may_have_spoilt_is_marked() -> None:
    made = Results()
    for peer in (OURS, TORNADO):
        made.add("echo", peer, Run({"rate": 1.0, "cpu": 1.0, "load": 0.99}, foreign=0.5))
    assert "| Tornado | 1.00^! |" in table.report(made, {}, "once")


def test_writing_the_docs_changes_only_what_is_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n", encoding="utf-8")
    table.write_docs("new", page)
    assert page.read_text(encoding="utf-8") == f"before\n{table.BEGIN}\n\nnew\n\n{table.END}\nafter\n"


def test_writing_docs_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks\n", encoding="utf-8")
    with pytest.raises(ValueError, match="to write between"):
        table.write_docs("new", page)
    assert page.read_text(encoding="utf-8") == "no marks\n"


def test_the_docs_have_the_marks() -> None:
    page = table.DOCS.read_text(encoding="utf-8")
    assert page.count(table.BEGIN) == page.count(table.END) == 1


@pytest.mark.parametrize("peer", ALL, ids=str)
def test_a_peer_answers_right_in_every_mode_it_is_measured_in(peer: Peer) -> None:
    if not peer.installed():
        pytest.skip(f"{peer} is not installed")
    modes = {workload.mode for workload in WORKLOADS.values() if peer in workload.peers}
    if peer == FLOOR and floor_program(tls=True) is None:  # there is no OpenSSL to compile with
        modes -= UNDER_TLS.keys()
    for mode in modes:
        Server(peer, mode, Cores.pick().server).stop()


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    compiled = Load.compiled(tmp_path_factory.mktemp("load"))
    if compiled is None:
        pytest.skip("there is no C compiler")
    return compiled


@pytest.fixture(scope="module")
def tls_load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    compiled = Load.compiled(tmp_path_factory.mktemp("load"), tls=True)
    if compiled is None:
        pytest.skip("there is nothing to compile OpenSSL programs with: apt-get install gcc libssl-dev")
    return compiled


def measure(workload: Rate, load: Load) -> Figures:
    workload = dataclasses.replace(workload, connections=min(workload.connections, 200))  # thousands take their time
    server = Server(OURS, workload.mode, Cores.pick().server)
    try:
        return workload.measure(server, load, 0.05)
    finally:
        server.stop()


RATES = [workload for workload in WORKLOADS.values() if isinstance(workload, Rate)]


@pytest.mark.parametrize("workload", [w for w in RATES if not w.tls], ids=lambda workload: workload.name)
def test_the_load_counts_what_comes_back(workload: Rate, load: Load) -> None:
    figures = measure(workload, load)
    assert figures["rate"] > 0
    assert figures["cpu"] > 0


@pytest.mark.parametrize("workload", [w for w in RATES if w.tls], ids=lambda workload: workload.name)
def test_the_load_counts_what_comes_back_under_tls(workload: Rate, tls_load: Load) -> None:
    figures = measure(workload, tls_load)
    assert figures["rate"] > 0
    assert figures["cpu"] > 0
    assert len(tls_load.ciphers) == 1


def test_servers_that_encrypt_differently_are_not_compared(tls_load: Load) -> None:
    other = Load(tls_load.program)
    other.ciphers.add("ANOTHER")
    with pytest.raises(MeasurementError, match=r"do not agree on a cipher: ANOTHER, TLS_"):
        measure(WORKLOADS["tls"], other)


def test_memory_under_tls_is_measured_with_clients_that_speak_it() -> None:
    # Enough of them to outweigh the memory that the start has left free, which they take first.
    workload = dataclasses.replace(WORKLOADS["tls-idle"], connections=300)
    server = Server(OURS, workload.mode, Cores.pick().server)
    try:
        figures = workload.measure(server, None, 0.05)
    finally:
        server.stop()
    assert figures["bytes"] > 5000


def test_without_openssl_what_is_under_tls_is_left_out_and_said(
    load: Load, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Benchmark, "run", lambda self: None)
    wanted = [WORKLOADS[name] for name in ("echo", "tls", "tls-churn", "tls-idle")]
    benchmark = Benchmark(wanted, load, None, 1, 0.05)
    assert [workload.name for workload in benchmark.workloads] == ["echo", "tls-idle"]
    assert not run_benchmark(benchmark, wanted)
    assert f"{NO_OPENSSL}: not measured without it: tls, tls-churn\n" in capsys.readouterr().err


@pytest.mark.parametrize("peer", PEERS, ids=str)
def test_a_forwarder_brings_back_what_goes_through_it(peer: Peer, load: Load) -> None:
    if not peer.installed():
        pytest.skip(f"{peer} is not installed")
    server = Server(peer, "forward", Cores.pick().server)
    try:
        counted = load.run(server, "lines", 5, 64, 4, 0.05)  # which looks at every byte
    finally:
        server.stop()
    assert counted.bytes > 0
    assert counted.load_cpu > 0


@pytest.mark.parametrize("peer", PEERS, ids=str)
def test_a_broadcast_reaches_all_clients(peer: Peer, load: Load) -> None:
    if not peer.installed():
        pytest.skip(f"{peer} is not installed")
    server = Server(peer, "broadcast", Cores.pick().server)
    try:
        counted = load.run(server, "broadcast", 5, 64, 4, 0.05)  # which goes on when all have it
    finally:
        server.stop()
    assert counted.bytes > 5 * 64 * 4


@pytest.mark.parametrize("kind", ["lines", "file", "broadcast"])
def test_the_load_refuses_an_answer_that_is_not_what_it_should_be(kind: Kind, load: Load) -> None:
    class Forger:
        pid = os.getpid()
        upstream = None

        def __init__(self, listener: socket.socket) -> None:
            self.port: int = listener.getsockname()[1]
            self._listener = listener

        def answer(self) -> None:
            client, _ = self._listener.accept()
            with client:
                client.sendall(client.recv(64).upper())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        forger = Forger(listener)
        thread = threading.Thread(target=forger.answer)
        thread.start()
        with pytest.raises(MeasurementError, match="what it was not asked for"):
            load.run(forger, kind, 1, 64, 1, 0.05)
        thread.join()


@pytest.mark.skipif(
    shutil.which("redis-benchmark") is None, reason="no redis-benchmark here: apt-get install redis-tools"
)
@pytest.mark.parametrize("server", resp.SERVERS)
@pytest.mark.parametrize("command", resp.COMMANDS)
def test_each_server_of_resp_answers_redis_benchmark(server: str, command: str) -> None:
    figures = resp.measure(server, command, 4, 500, Cores.pick().server)
    assert figures.rate > 0
    assert figures.cost > 0
