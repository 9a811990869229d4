"""Metrics in the format of Prometheus, of all workers of a service at once: from the scoreboard, which they share.

Whichever worker is asked, the answer is that of the whole service. What dead workers have counted stays in it, so no
counter falls. Names and units are as Prometheus' conventions have them.
"""

from collections import Counter as Counts
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

import tornado.web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ..httpserver import HTTPServer
from ..runtime.clock import current_wall_time, real_time_ns
from ..server.base import core_of
from ..server.scoreboard import (
    ACCEPTED,
    BLOCKED,
    CELL_OF,
    DURATIONS,
    ERRORS,
    GROWING,
    LASTED,
    LASTED_SUM,
    LATE,
    RECEIVED,
    REJECTED,
    SENT,
    TLS_1_2,
    TLS_1_3,
    Scoreboard,
    State,
)
from ..server.workers import WorkerSiblings
from ..tcpserver import TCPServer

__all__ = ["application", "routes"]

PREFIX = "iostreamsrv_"


class Counter(NamedTuple):
    """One sum over all workers.

    :ivar cell: of the scoreboard.
    :ivar unit: what the number is divided by.
    """

    name: str
    about: str
    cell: int
    unit: float = 1


COUNTERS = (
    Counter("connections_accepted", "Connections that were accepted, with those that were rejected.", ACCEPTED),
    Counter("connections_rejected", "Connections that were rejected, because a limit was reached.", REJECTED),
    Counter("handler_errors", "Exceptions in handlers.", ERRORS),
    Counter("received_bytes", "Bytes from clients. Those of open connections are some seconds old.", RECEIVED),
    Counter("sent_bytes", "Bytes to clients. Those of open connections are some seconds old.", SENT),
    Counter("loop_blocked", "How often a handler has blocked its loop for half a second, or longer.", BLOCKED),
    Counter("loop_late_seconds", "By how much heartbeats, two a second for each worker, came too late.", LATE, 1e9),
)


class ServiceCollector(Collector):
    """Gives the metrics of a service to a registry of prometheus-client.

    :param server: the server in this process; its certificates are those of all workers. One that is alone begins to
        count.
    """

    def __init__(self, server: TCPServer) -> None:
        self._server = server
        if core_of(server).connections.limits.siblings is None:
            board = Scoreboard.create(1, inherited=True)  # which needs no descriptor
            core_of(server).join(WorkerSiblings(board, 0, 1))

    @property
    def _scoreboard(self) -> Scoreboard:
        """That of the service. A server that was alone may have joined others since."""
        siblings = core_of(self._server).connections.limits.siblings
        assert isinstance(siblings, WorkerSiblings)
        return siblings.scoreboard

    def collect(self) -> Iterable[Metric]:
        """All metrics, as of now."""
        board = self._scoreboard
        sums = dict(zip(GROWING, board.sums(GROWING), strict=True))
        yield from self._counters(sums)
        yield from self._durations(sums)
        yield from self._workers(board)
        yield from self._certificates()

    def _counters(self, sums: Mapping[int, int]) -> Iterator[Metric]:
        for counter in COUNTERS:
            yield CounterMetricFamily(PREFIX + counter.name, counter.about, value=sums[counter.cell] / counter.unit)
        closed = CounterMetricFamily(f"{PREFIX}connections_closed", "Closed connections, by reason.", labels=["reason"])
        for reason, cell in CELL_OF.items():
            closed.add_metric([str(reason)], sums[cell])
        yield closed
        about = "TLS handshakes that have succeeded. Those that failed are connections closed by tls_error."
        handshakes = CounterMetricFamily(f"{PREFIX}tls_handshakes", about, labels=["version"])
        handshakes.add_metric(["TLSv1.2"], sums[TLS_1_2])
        handshakes.add_metric(["TLSv1.3"], sums[TLS_1_3])
        yield handshakes

    def _durations(self, sums: Mapping[int, int]) -> Iterator[Metric]:
        buckets = list(zip((*map(str, DURATIONS), "+Inf"), accumulate(sums[cell] for cell in LASTED), strict=True))
        about = "How long closed connections were open."
        yield HistogramMetricFamily(f"{PREFIX}connection_duration_seconds", about, buckets, sums[LASTED_SUM] / 1e6)

    def _workers(self, board: Scoreboard) -> Iterator[Metric]:
        labels = ["worker", "generation"]
        opened = GaugeMetricFamily(f"{PREFIX}connections_open", "Open connections.", labels=labels)
        age = GaugeMetricFamily(f"{PREFIX}worker_heartbeat_age_seconds", "Time since its loop ran last.", labels=labels)
        workers = GaugeMetricFamily(f"{PREFIX}workers", "Workers.", labels=["generation", "state"])
        states: Counts[tuple[str, str]] = Counts()
        now = real_time_ns()
        for index in range(board.rows):
            row = board.row(index)
            names, open, beat = [str(row.number), str(row.generation)], row.open, row.heartbeat
            state = row.state  # last: the row of a dead worker is free before the rest of it is cleared
            if state != State.FREE:
                opened.add_metric(names, open)
                age.add_metric(names, max(now - beat, 0) / 1e9)
                states[names[1], State(state).name.lower()] += 1
        for key, count in states.items():
            workers.add_metric(list(key), count)
        yield from (opened, age, workers)

    def _certificates(self) -> Iterator[Metric]:
        about = "Time until the first of the certificates expires; negative afterwards."
        expiry = GaugeMetricFamily(f"{PREFIX}certificate_expiry_seconds", about)
        times = [each.expires_at for each in core_of(self._server).certificates if each.expires_at is not None]
        if times:
            expiry.add_metric([], min(times) - current_wall_time())
            yield expiry


LIMITS: dict[str, Any] = {
    "max_connections": 32,
    "when_full": "evict",
    "idle_timeout": 30.0,
    "max_buffer_size": 1 << 16,
}
"""Options of the server for metrics: it has few clients, and none may hold the others up. Prometheus, which often asks
each 15 s, keeps its connection."""


class MetricsHandler(tornado.web.RequestHandler):
    """``/metrics``."""

    def initialize(self, collector: ServiceCollector) -> None:
        """See `tornado.web.RequestHandler`."""
        self._registry = CollectorRegistry()
        self._registry.register(collector)

    def get(self) -> None:
        """The metrics, in the format that the client asks for."""
        encode, content_type = choose_encoder(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", content_type)
        self.write(encode(self._registry))


class HealthHandler(tornado.web.RequestHandler):
    """``/healthz`` and ``/readyz``: 200 "ok", or 503 and why not."""

    def initialize(self, server: TCPServer, ready: bool) -> None:
        """See `tornado.web.RequestHandler`.

        :param ready: whether the server must accept, too.
        """
        self._server = server
        self._ready = ready

    def get(self) -> None:
        """Answer."""
        problem = why_not_ready(self._server) if self._ready else None
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_status(200 if problem is None else 503)
        self.write(f"{problem or 'ok'}\n")


def why_not_ready(server: TCPServer) -> str | None:
    """Why a server accepts no clients; None if it does."""
    core = core_of(server)
    if core.connections.draining:
        return "shutting down"
    if not core.listeners:
        return "not listening"
    return "suspended" if core.listeners.suspended else None


def application(server: TCPServer) -> tornado.web.Application:
    """An application with ``/metrics``, ``/healthz`` and ``/readyz`` of a server.

    :param server: one of several workers, for which it has the metrics of all of them; or a server that is alone, which
        counts from this call on.
    """
    return tornado.web.Application(routes(server), log_function=lambda handler: None)


def metrics_server(server: TCPServer) -> HTTPServer:
    """A server for :func:`application`, within :data:`LIMITS`."""
    return HTTPServer(application(server), **LIMITS)


def routes(server: TCPServer) -> list[tuple[str, Any, dict[str, Any]]]:
    """The same, for an application of your own: ``tornado.web.Application([*routes(server), ...])``.

    :param server: see :func:`application`.
    """
    return [
        ("/metrics", MetricsHandler, {"collector": ServiceCollector(server)}),
        ("/healthz", HealthHandler, {"server": server, "ready": False}),
        ("/readyz", HealthHandler, {"server": server, "ready": True}),
    ]
