"""The benchmarks themselves: that they run, and reckon right. How fast anything is, no test says."""

import dataclasses
import json
import os
import shutil
import socket
import sys
import threading
from pathlib import Path
from xml.etree import ElementTree

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("the benchmarks need Linux", allow_module_level=True)

from benchmarks import callgrind, charts, instructions, layers, resp, table
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
    H11,
    HTTPTOOLS,
    LIMITED,
    OURS,
    PEERS,
    PROTOCOL,
    TORNADO,
    UNDER_TLS,
    UNLIMITED,
    UVICORN,
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
    "h11": H11,
    "httptools": HTTPTOOLS,
    "uvicorn": UVICORN,
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
        ("broadcast", "floor", "≤ 1.20 times a bare loop of sends in C | 0.50 |  | met |"),
        ("http", "tornado", "≥ 1.50 times Tornado | 1.50 | 2.00 | met |"),
        ("resp", "tornado", "≥ 4.50 times Tornado | 1.50 | 2.00 | **missed** |"),
        ("resp-16", "tornado", "≥ 7.00 times Tornado | 1.50 | 2.00 | **missed** |"),
        ("file", "copying", "≥ 2.00 times read and write | 1.50 | 2.00 | **missed** |"),
    ],
)
def test_a_threshold_is_held_against_the_peer_it_names(workload: str, base: str, row: str) -> None:
    made = results(
        workload, ours=[{"rate": 3.0, "cpu": 1.0, "load": 0.5}], **{base: [{"rate": 2.0, "cpu": 2.0, "load": 0.5}]}
    )
    assert row in table.report(made, {}, "once")


@pytest.mark.parametrize(
    ("ours", "base", "row"),
    [
        ("h11", "tornado", "by http_hello.py (h11) | ≥ 2.90 times Tornado | 3.00 | 4.00 | met |"),
        ("httptools", "uvicorn", "on httptools | ≥ 1.00 times uvicorn with httptools on uvloop | 3.00 | 4.00 | met |"),
    ],
)
def test_other_servers_of_ours_are_held_to_targets_too(ours: str, base: str, row: str) -> None:
    figures = {ours: [{"rate": 3.0, "cpu": 1.0}], base: [{"rate": 1.0, "cpu": 4.0}]}
    assert row in table.report(results("http", **figures), {}, "once")


def test_where_all_is_measured_repeatedly_a_target_shows_each_figure() -> None:
    def rates(*ours: float) -> Results:
        return results(
            "echo",
            ours=[{"rate": rate, "cpu": 1.0} for rate in ours],
            tornado=[{"rate": 1.0, "cpu": 2.0} for _ in ours],
        )

    text = table.report(rates(2.0, 3.0, 4.0), {}, "thrice", [rates(2.0), rates(3.0), rates(4.0)])
    assert "|  | target | measured | each time | by CPU |  |" in text
    assert "| ≥ 2.60 times Tornado | 3.00 | 2.00 / 3.00 / 4.00 | 2.00 | met |" in text


def test_a_repeated_benchmark_takes_each_run_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Benchmark, "_measure", lambda self, workload, peer: Run({"bytes": 1.0}, 0.0))
    before = os.sched_getaffinity(0)
    try:
        benchmark = Benchmark([WORKLOADS["idle"]], None, None, 2, 0.05, repeat=3)
        benchmark.run()
    finally:
        os.sched_setaffinity(0, before)
    assert len(benchmark.results.runs["idle", OURS]) == 3  # one round is enough for memory
    assert [len(each.runs["idle", OURS]) for each in benchmark.each] == [1, 1, 1]


def measured(workload: str, rates: dict[Peer, list[float]]) -> dict[str, object]:
    """As ``--json`` writes it."""
    runs = {peer: [{"figures": {"rate": rate}, "foreign": 0.0} for rate in rates[peer]] for peer in rates}
    return {"measured": [{"workload": workload, **peer._asdict(), "runs": runs[peer]} for peer in runs]}


def test_a_chart_has_a_bar_for_each_server_in_relation_to_tornado() -> None:
    made = charts.panels(
        measured("echo", {OURS: [6.0, 9.0], TORNADO: [2.0, 3.0], FLOOR: [8.0, 12.0]}), ["echo", "churn"]
    )
    assert made == [charts.Panel("50x64", {OURS: 3.0, FLOOR: 4.0})]
    picture = ElementTree.fromstring(charts.drawn("Speed & more", made))
    bars = [float(bar.attrib["width"]) for bar in picture.iter("{http://www.w3.org/2000/svg}rect")]
    assert bars[0] / bars[1] == pytest.approx(3 / 4, abs=0.01)
    assert [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")] == [
        *("50x64", "iostreamsrv", "3.00", "C, epoll", "4.00")
    ]


def test_the_docs_have_all_charts(tmp_path: Path) -> None:
    charts.write(measured("echo", {OURS: [6.0], TORNADO: [2.0]}), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(charts.CHARTS)
    page = table.DOCS.read_text(encoding="utf-8")
    for name in charts.CHARTS:
        assert f"]({name})" in page
        assert (charts.FOLDER / name).exists()


PROFILE = """\
events: Ir
summary: 100

ob=(1) /lib/ours.so
fl=(1) a.c
fn=(1) first
1 10
cob=(2) /lib/libssl.so.3
cfn=(2) second
calls=1 50
* 70
+1 20
ob=(2)
fn=(2)
50 70
totals: 100
"""


def test_instructions_belong_to_the_object_that_has_them_and_not_to_its_callers() -> None:
    spent = callgrind.by_object(PROFILE.splitlines(keepends=True))
    assert spent == {"/lib/ours.so": 30, "/lib/libssl.so.3": 70}
    assert instructions.without_openssl(spent) == 30


def test_a_deviation_of_more_than_five_per_cent_fails_in_either_direction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "expected.json"
    assert instructions.record({"echo": 0.5, "tls": 1.0}, "3.13", file) == 0
    assert instructions.check({"echo": 0.52, "tls": 0.96}, "3.13", file) == 0
    capsys.readouterr()
    assert instructions.check({"echo": 0.53, "tls": 1.0}, "3.13", file) == 1
    assert "echo: 0.530 is +6.0% from the 0.500 expected: find out why" in capsys.readouterr().out
    assert instructions.check({"echo": 0.5, "tls": 0.94}, "3.13", file) == 1
    said = capsys.readouterr().out
    assert "tls: 0.940 is -6.0% from the 1.000 expected: keep it" in said
    assert said.count("\n") == 1
    assert "--write" in said


def test_a_version_without_expectations_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "expected.json"
    instructions.record({"echo": 0.5}, "3.9", file)
    instructions.record({"echo": 0.6}, "3.13", file)
    assert list(json.loads(file.read_text(encoding="utf-8"))) == ["3.9", "3.13"]
    assert instructions.check({"echo": 9.9}, "3.14", file) == 0
    assert "nothing of Python 3.14" in capsys.readouterr().out


def test_every_traffic_has_an_expectation_where_there_are_any() -> None:
    expected = json.loads(instructions.EXPECTED.read_text(encoding="utf-8"))
    assert expected
    assert all(set(figures) == set(callgrind.TRAFFIC) for figures in expected.values())


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind here: apt-get install valgrind")
def test_instructions_are_those_of_the_operations_alone(tmp_path: Path) -> None:
    counter = callgrind.Callgrind(tmp_path)
    few = dataclasses.replace(callgrind.TRAFFIC["pipelined"], warm=2, rounds=1)
    spent = sum(counter.instructions(PROTOCOL, few, Cores.pick().server).values())
    assert 1_000 < spent < 50_000  # the start alone is 300,000 for each of these


SAMPLES = """\
     7f0000000001 _PyEval_EvalFrameDefault (/usr/lib/libpython3.11.so.1.0)
     7f0000000002 PyObject_Malloc (/usr/lib/libpython3.11.so.1.0)
     7f0000000003 sock_send (/usr/lib/python3.11/lib-dynload/_socket.cpython-311.so)
     7f0000000004 take (/here/iostreamsrv/sansio/buffers.cpython-311.so)
     7f0000000005 write (/here/iostreamsrv/streams/writing.cpython-311.so)
 ffffffff81000001 tcp_sendmsg ([kernel.kallsyms])
 ffffffff81000002 [unknown] ([unknown])
     7f0000000006 aes (/usr/lib/libcrypto.so.3)
     55d000000001 _PyEval_EvalFrameDefault (/usr/bin/python3.11)
     55d000000002 PyObject_Free (/usr/bin/python3.11)
"""


def test_a_sample_belongs_to_the_layer_of_its_function() -> None:
    shares = layers.by_layer(SAMPLES.splitlines(keepends=True))
    assert shares == {
        "bytecode, of the handler and the loop": 0.2,
        "Python's objects, calls and memory": 0.2,
        "the C library and other modules": 0.1,
        "our parser and buffers": 0.1,
        "our streams and hub": 0.1,
        "the kernel": 0.2,
        "OpenSSL": 0.1,
    }
    assert "| the kernel | 0.40 µs (40%) |" in layers.table({"echo": {"the kernel": 4e-7, "OpenSSL": 6e-7}})


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


@pytest.mark.parametrize("peer", [*PEERS, FLOOR], ids=str)
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
