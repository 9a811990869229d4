"""The program of the clients: an open loop, which connects by the clock, whatever has become of those before. ::

    python tests/operations/load.py '{"port": 8888, "rate": 200}' >outcomes.json

It ends ``most`` seconds after its start, or when its stdin does: then nobody connects any more, and whoever waits for
an answer gets ``PATIENCE`` seconds for it. The outcome of each client is on stdout; see :func:`main`.

It runs alone, without the package: so it costs little, and needs nothing that it measures.
"""

import errno
import heapq
import json
import selectors
import socket
import sys
import time
from typing import Any

PATIENCE = 8.0
"""Seconds for an answer."""

SOURCES = 50
"""Addresses of clients: each has ports of its own, and so they last for long."""

AT_ONCE = 10
"""Clients that connect before it looks who has an answer."""

CHUNK = 65536

LINE = b"hello\n"
HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Client:
    """A connection, and what has become of it.

    :ivar due: when it was to connect.
    :ivar outcome: "ok", or what went wrong: "refused", "reset", "cut" (the end came before the answer), "unanswered";
        "closed" for one that had all its answers, and wanted to stay.
    :ivar latencies: seconds from the time that an answer could have been asked for, to the answer.
    :ivar pids: which process gave each of the answers.
    :ivar ended: when it was over.
    """

    __slots__ = ("asked", "due", "ended", "latencies", "left", "outcome", "pids", "received", "socket", "staying")

    def __init__(self, due: float, talks: int) -> None:
        self.due = due
        self.asked = due
        self.left = talks
        self.outcome = ""
        self.ended = 0.0
        self.latencies: list[float] = []
        self.pids: list[int] = []
        self.received = b""
        self.staying = False
        self.socket: socket.socket


class Load:
    """All clients.

    :param port: of the server, on 127.0.0.1.
    :param rate: clients a second; 0: all at once.
    :param clients: how many at most; None: no limit.
    :param most: seconds until no one connects any more.
    :param silent: seconds for which a client says nothing after it has connected.
    :param talks: questions of a client.
    :param pause: seconds between two of them.
    :param stay: whether a client stays, and asks once more in the end.
    :param http: whether it speaks HTTP instead of lines.
    """

    def __init__(
        self,
        port: int,
        rate: float = 200.0,
        clients: int | None = None,
        most: float = 600.0,
        silent: float = 0.0,
        talks: int = 1,
        pause: float = 0.0,
        stay: bool = False,
        http: bool = False,
    ) -> None:
        self._address = ("127.0.0.1", port)
        self._interval = 1 / rate if rate else 0.0
        self._most_clients = sys.maxsize if clients is None else clients
        self._silent, self._talks, self._pause, self._stay = silent, talks, pause, stay
        self._http = http
        self._question = HTTP if http else LINE
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Client]] = []  # when a client asks, or connects
        self._number = 0
        self._began = time.monotonic()
        self._stops_at = self._began + most
        self._stopping = False
        self._open = self._served = 0
        self.most_served = 0
        self.clients: list[Client] = []

    def run(self) -> None:
        """Until the end of stdin, or of the time."""
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        last = self._began + PATIENCE
        while True:
            now = time.monotonic()
            if not self._stopping:
                self._connect_due(now)
                last = now + PATIENCE + self._silent
                all_done = len(self.clients) >= self._most_clients and not self._open
                if now >= self._stops_at or (all_done and not self._stay):
                    self._stop(now)
            while self._timers and self._timers[0][0] <= now:
                self._ask(heapq.heappop(self._timers)[2])
            if self._stopping and (not self._open or now > last):
                break
            for key, _ in self._selector.select(self._patience(now)):
                if key.data is None:
                    if not sys.stdin.buffer.raw.read(1):  # type: ignore[attr-defined]
                        self._stop(time.monotonic())
                elif isinstance(key.data, Client):
                    self._receive(key.data)
        for client in self.clients:
            if not client.outcome:
                self._end(client, "unanswered")

    def _patience(self, now: float) -> float:
        times = [now + 0.2, self._stops_at]
        if not self._stopping and len(self.clients) < self._most_clients:
            times.append(self._next_due())
        if self._timers:
            times.append(self._timers[0][0])
        return max(0.0, min(times) - now)

    def _next_due(self) -> float:
        return self._began + len(self.clients) * self._interval

    def _stop(self, now: float) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._selector.unregister(sys.stdin)
        for client in self.clients:
            if client.staying:
                client.staying = False
                client.left, client.asked = 1, now
                self._ask(client)

    def _connect_due(self, now: float) -> None:
        for _ in range(AT_ONCE):
            if len(self.clients) >= self._most_clients or self._next_due() > now:
                return
            self._connect(self._next_due())

    def _connect(self, due: float) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        sock.bind((f"127.0.0.{2 + len(self.clients) % SOURCES}", 0))
        client = Client(due if self._interval else time.monotonic(), self._talks)  # "all at once" takes its time here
        client.socket = sock
        self.clients.append(client)
        self._open += 1
        error = sock.connect_ex(self._address)
        if error not in (0, errno.EINPROGRESS):
            return self._failed(client, OSError(error, ""))
        self._selector.register(sock, selectors.EVENT_READ, client)
        client.asked = client.due + self._silent
        if self._silent:
            self._at(client.asked, client)
        else:
            self._ask(client)

    def _at(self, when: float, client: Client) -> None:
        self._number += 1
        heapq.heappush(self._timers, (when, self._number, client))

    def _ask(self, client: Client) -> None:
        if client.outcome:
            return
        try:
            client.socket.send(self._question)
        except BlockingIOError:  # not connected yet: on loopback that takes as long as the queue is full
            self._at(time.monotonic() + 0.005, client)
        except OSError as error:
            self._failed(client, error)

    def _receive(self, client: Client) -> None:
        try:
            data = client.socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            return self._failed(client, error)
        now = time.monotonic()
        if not data:
            return self._end(client, "closed" if client.staying else "cut")
        client.received += data
        pid = self._answer(client.received)
        if pid is None:
            return
        if not client.pids:
            self._served += 1
            self.most_served = max(self.most_served, self._served)
        client.received = b""
        client.pids.append(pid)
        client.latencies.append(now - client.asked)
        client.left -= 1
        if client.left > 0:
            client.asked = now + self._pause
            self._at(client.asked, client)
        elif self._stay and not self._stopping:
            client.staying = True
        else:
            self._end(client, "ok")

    def _answer(self, received: bytes) -> int | None:
        """The process that an answer names; None while it is not complete."""
        if not received.endswith(b"\n"):
            return None
        if not self._http:
            return int(received.split()[0])
        head, _, body = received.partition(b"\r\n\r\n")
        if not body:
            return None
        return int(body) if head.startswith(b"HTTP/1.1 200 ") else 0

    def _failed(self, client: Client, error: OSError) -> None:
        self._end(client, "refused" if error.errno == errno.ECONNREFUSED else "reset")

    def _end(self, client: Client, outcome: str) -> None:
        client.outcome, client.ended = outcome, time.monotonic()
        self._served -= bool(client.pids)
        self._open -= 1
        if client.socket.fileno() >= 0:
            if client.socket in self._selector.get_map():
                self._selector.unregister(client.socket)
            client.socket.close()


def main() -> None:
    """Print the outcome: {"clients": [[due, outcome, latencies, pids, ended]...], "most_served": ...}; times are of
    CLOCK_MONOTONIC. An answer that was no "200 OK" has a 0 for its process."""
    words: dict[str, Any] = json.loads(sys.argv[1])
    load = Load(**words)
    load.run()
    clients = [[each.due, each.outcome, each.latencies, each.pids, each.ended] for each in load.clients]
    json.dump({"clients": clients, "most_served": load.most_served}, sys.stdout)


if __name__ == "__main__":
    main()
