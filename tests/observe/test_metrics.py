"""Metrics: one answer for all workers, whose counters never fall."""

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tornado.httpclient import AsyncHTTPClient

from iostreamsrv import IOStream, TCPServer
from iostreamsrv.certificates import self_signed
from iostreamsrv.httpserver import HTTPServer
from iostreamsrv.observe.metrics import application
from iostreamsrv.server.base import core_of
from iostreamsrv.server.scoreboard import Scoreboard, State
from iostreamsrv.server.workers import WorkerSiblings
from tests.support import PROJECT
from tests.support.listening import linux_only, unused_port
from tests.support.programs import Served, eventually
from tests.support.servers import Echo, Serving
from tests.support.waiting import eventually as soon
from tests.support.waiting import waited

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """All samples, by name and labels. Names, types and texts must be as Prometheus wants them."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        for sample in family.samples:
            assert sample.name.startswith("iostreamsrv_")
            assert sample.name.endswith("_total") == (family.type == "counter")
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of what has that name and these labels."""
    wanted = set(labels.items())
    return sum(value for (each, has), value in samples.items() if each == f"iostreamsrv_{name}" and wanted <= has)


# ---- a server that is alone


@pytest.fixture
def metrics() -> Iterator[list[HTTPServer]]:
    started: list[HTTPServer] = []
    yield started
    for each in started:
        each.stop()


async def scraped(server: HTTPServer) -> Samples:
    answer = await AsyncHTTPClient().fetch("http://{}:{}/metrics".format(*server.addresses[0]))
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return parsed(answer.body.decode())


def observed(server: TCPServer, metrics: list[HTTPServer]) -> HTTPServer:
    observer = HTTPServer(application(server))
    observer.listen(0, "127.0.0.1")
    metrics.append(observer)
    return observer


@pytest.mark.gen_test
async def test_a_server_counts_its_clients(serving: Serving, metrics: list[HTTPServer]) -> None:
    server = serving.started(Echo())
    observer = observed(server, metrics)
    first, second = serving.connect(server), serving.connect(server)
    await first.send_all(b"hello\n")
    assert await first.receive(6) == b"hello\n"
    samples = await scraped(observer)
    assert total(samples, "connections_open", worker="1") == 2
    assert total(samples, "connections_accepted_total") == 2
    first.close()
    await soon(lambda: len(server.streams) == 1)
    second.reset()
    await soon(lambda: not server.streams)
    samples = await scraped(observer)
    assert total(samples, "connections_open") == 0
    assert total(samples, "connections_closed_total") == 2
    assert total(samples, "connections_closed_total", reason="eof") == 1
    assert total(samples, "connections_closed_total", reason="reset") == 1
    assert total(samples, "connection_duration_seconds_count") == 2
    assert 0 < total(samples, "connection_duration_seconds_sum") < 30
    assert total(samples, "workers", state="ready") == 1


@pytest.mark.gen_test
async def test_metrics_may_be_asked_for_twice_and_late(serving: Serving, metrics: list[HTTPServer]) -> None:
    server = serving.started(Echo())
    peer = serving.connect(server)
    await soon(lambda: len(server.streams) == 1)
    first, second = observed(server, metrics), observed(server, metrics)
    other = serving.connect(server)
    await soon(lambda: len(server.streams) == 2)
    for each in first, second:
        samples = await scraped(each)
        assert total(samples, "connections_open") == 2
        assert total(samples, "connections_accepted_total") == 1
    peer.close()
    other.close()
    await soon(lambda: not server.streams)
    assert total(await scraped(first), "connections_open") == 0


@pytest.mark.gen_test
async def test_a_server_that_serves_with_others_goes_on_with_them(serving: Serving, metrics: list[HTTPServer]) -> None:
    board = Scoreboard.create(2, inherited=True)
    board.row(1).state, board.row(1).number, board.row(1).accepted = State.READY, 2, 5
    server = serving.started(Echo())
    early = observed(server, metrics)
    siblings = WorkerSiblings(board, 0, 1)
    core_of(server).join(siblings)
    late = observed(server, metrics)
    assert core_of(server).connections.limits.siblings is siblings
    for each in early, late:
        assert total(await scraped(each), "connections_accepted_total") == 5


@pytest.mark.gen_test
async def test_errors_handshakes_and_certificates(serving: Serving, metrics: list[HTTPServer], tmp_path: Path) -> None:
    server = TCPServer(ssl_options=self_signed("localhost", days=10).write(tmp_path))

    async def fail(stream: IOStream, address: Any) -> None:
        raise RuntimeError("on purpose")

    server.handle_stream = fail  # type: ignore[method-assign]
    serving.started(server)
    observer = observed(server, metrics)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(*server.addresses[0], ssl=context)
    writer.close()
    await soon(lambda: not server.streams)
    samples = await scraped(observer)
    assert total(samples, "handler_errors_total") == 1
    assert total(samples, "tls_handshakes_total", version="TLSv1.3") == 1
    assert 9 * 86400 < total(samples, "certificate_expiry_seconds") <= 10 * 86400


@pytest.mark.gen_test
async def test_who_does_not_accept_is_alive_but_not_ready(serving: Serving, metrics: list[HTTPServer]) -> None:
    server = serving.started(Echo())
    observer = observed(server, metrics)

    async def said(path: str) -> tuple[int, str]:
        answer = await AsyncHTTPClient().fetch("http://{}:{}".format(*observer.addresses[0]) + path, raise_error=False)
        return answer.code, answer.body.decode()

    assert await said("/readyz") == await said("/healthz") == (200, "ok\n")
    server.suspend()
    assert await said("/readyz") == (503, "suspended\n")
    assert await said("/healthz") == (200, "ok\n")
    server.resume()
    assert (await said("/readyz"))[0] == 200
    server.stop()
    assert await said("/readyz") == (503, "not listening\n")


@pytest.mark.gen_test
async def test_the_dashboard_and_the_page_know_these_metrics(
    serving: Serving, metrics: list[HTTPServer], tmp_path: Path
) -> None:
    server = serving.started(Echo(ssl_options=self_signed("localhost").write(tmp_path)))
    there = {name for name, _ in await scraped(observed(server, metrics))}
    dashboard = json.loads((PROJECT / "docs/howto/grafana.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(shown) > 10
    used = {name for expression in shown for name in re.findall(r"\biostreamsrv_\w+", expression)}
    assert used - there == set()
    page = (PROJECT / "docs/howto/monitoring.md").read_text().partition("## In a program")[0]
    told = set(re.findall(r"`(iostreamsrv_\w+)", page))
    of_histograms = {re.sub("_(bucket|sum|count)$", "", name) for name in there}
    assert told == of_histograms


# ---- under iostreamsrv serve


class Service(Served):
    def __init__(self, *options: str) -> None:
        self.metrics = f"127.0.0.1:{unused_port()}"
        super().__init__("tests.supervisor.served:Server", "--metrics", self.metrics, *options)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.metrics}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def scraped(self) -> Samples:
        status, text = self.get("/metrics")
        assert status == 200
        return parsed(text)


@pytest.mark.second_tier
@linux_only
def test_no_counter_falls_when_a_worker_is_killed_or_the_service_reloads() -> None:
    with Service("--workers", "2").listening() as service:
        before: Samples = {}
        count = 0

        def look() -> Samples:
            nonlocal before
            now = service.scraped()
            counters = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
            assert [key for key in counters if now[key] < before[key]] == []
            before = now
            return now

        for act in (None, "kill", "HUP", "USR2", "HUP", "kill"):
            if act == "kill":
                children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
                os.kill(int(children[0]), signal.SIGKILL)
            elif act is not None:
                lines = service.said().count("INFO reloaded: ")
                service.send_signal(getattr(signal, f"SIG{act}"))
                eventually(lambda lines=lines: service.said().count("INFO reloaded: ") > lines, service.said)
            for _ in range(10):
                with service.client() as client:
                    client.ask(b"x\n")
                count += 1
            assert waited(lambda count=count: total(look(), "connections_accepted_total") == count)
            assert waited(lambda count=count: total(look(), "connections_closed_total") == count)
            assert waited(lambda: total(look(), "workers", state="ready") == 2)
        assert service.end()[0] == 0


@pytest.mark.second_tier
@linux_only
def test_a_service_that_shuts_down_is_not_ready() -> None:
    with Service("--drain-timeout", "5").listening() as service, service.client() as client:
        client.ask(b"x\n")
        assert service.get("/readyz") == (200, "ok\n")
        client.send(b"half a line")  # so that it is worth waiting for
        time.sleep(0.2)
        service.send_signal(signal.SIGTERM)
        assert waited(lambda: service.get("/readyz") == (503, "shutting down\n"))
        assert service.get("/healthz") == (200, "ok\n")
        client.ask(b"\n")
        assert service.outcome()[0] == 0


@pytest.mark.second_tier
@linux_only
def test_garbage_and_a_client_that_hangs_hold_nobody_up() -> None:
    with Service().listening() as service:
        host, _, port = service.metrics.partition(":")
        hanging = [socket.create_connection((host, int(port)), 20) for _ in range(40)]
        try:
            for each in hanging:
                each.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
            for garbage in b"\x16\x03\x01" * 100, b"\r\n" * 100, b"GET / HTTP/9\r\n\r\n", bytes(1 << 17):
                with socket.create_connection((host, int(port)), 20) as bad:
                    bad.sendall(garbage)
            assert total(service.scraped(), "workers", state="ready") == 1
            with service.client() as client:
                client.ask(b"x\n")
        finally:
            for each in hanging:
                each.close()
        assert service.end()[0] == 0
        assert "Traceback" not in service.said()
