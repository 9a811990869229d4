"""Programs that listen, started as a user starts them: in a process of their own, spoken to over real sockets."""

import ast
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from tests.support import PROJECT

PATIENCE = 100.0 if sys.flags.dev_mode else 20.0
"""Seconds after which a program that neither speaks nor ends is killed, so that its test fails instead of hanging. With
``-X dev`` the test's own process takes several times as long."""


def heed_signals() -> None:
    """Have the programs that this process starts take SIGINT and SIGHUP, also where it was started such that they are
    ignored (``nohup make test &``). A child inherits that a signal is ignored, and not how one is handled."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _ignore)


def _ignore(number: int, frame: object) -> None:
    """Do nothing."""


class NotListening(AssertionError):
    """A program did something else: the line it said, its exit code, the rest of its stdout, its stderr."""


class Program:
    """A Python program, which prints "listening on HOST:PORT", or the path of a Unix socket, for each of its sockets.

    Leaving the ``with`` kills it.

    :ivar addresses: (host, port), or the path, of each socket that :meth:`listening` has waited for.
    """

    def __init__(
        self,
        *arguments: str | Path,
        folder: Path = PROJECT,
        patience: float = PATIENCE,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.addresses: list[Any] = []
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        assert self._process.stdout is not None
        self._stdout = self._process.stdout
        self._watchdog = threading.Timer(patience, self._process.kill)
        self._watchdog.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill it, if it has not ended."""
        self._watchdog.cancel()
        self._process.kill()
        self._process.wait()
        self._stdout.close()
        self._stderr.close()

    def listening(self, sockets: int = 1) -> Self:
        """Wait until it listens on so many sockets.

        :raises NotListening: it does not.
        """
        for _ in range(sockets):
            line = self._stdout.readline()
            address = _address(line.removeprefix("listening on ").strip())
            if not line.startswith("listening on ") or address is None:
                outcome = self.outcome()
                self.close()
                raise NotListening(line, *outcome)
            self.addresses.append(address)
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    def client(self, number: int = 0, **options: Any) -> "Client":
        """A client of the socket with this number; ``options`` are those of `Client`."""
        return Client(self.addresses[number], **options)

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def line(self) -> str:
        """The next line on stdout, "" at its end."""
        return self._stdout.readline()

    def said(self) -> str:
        """All it has said on stderr so far."""
        descriptor = self._stderr.fileno()  # pread: the place where the program writes must stay
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()

    def wait_for(self, *texts: str) -> str:
        """All it has said on stderr, once each of the texts is in it."""
        eventually(lambda: all(text in self.said() for text in texts), self.said)
        return self.said()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal and wait for the outcome."""
        self.send_signal(number)
        return self.outcome()

    def outcome(self) -> tuple[int, str, str]:
        """When it has ended: its exit code and what it still said on stdout, and all it said on stderr."""
        said = self._stdout.read()
        code = self._process.wait()
        self._stderr.seek(0)
        return code, said, self._stderr.read()


LOGGED = r"[-\d]+ [:,\d]+ \[\d+\] "
"""The beginning of a line of a log: the time and the process."""


class Served(Program):
    """A server under ``iostreamsrv serve``, on a free port of 127.0.0.1; by one worker, unless ``options`` differ.

    Its outcome has no lines of the log below WARNING, and the others without time and process: what stderr has of a
    program that sets up no log.

    :param target: "module:Target".
    :param options: further words of the command line.
    """

    def __init__(self, target: str, *options: str, patience: float = PATIENCE) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.settimeout(0.1)
        path = f"{self._folder.name}/notify"
        self._notices.bind(path)
        words = ("-m", "iostreamsrv", "serve", target, "--bind", "127.0.0.1:0", *options)
        super().__init__(*words, patience=patience, environment={"NOTIFY_SOCKET": path})

    def close(self) -> None:
        super().close()
        self._notices.close()
        self._folder.cleanup()

    def listening(self, sockets: int = 1) -> Self:
        """Wait until all of its workers serve: what it says of its sockets comes before."""
        while not self._is_ready():
            if self._process.poll() is not None:
                outcome = self.outcome()
                self.close()
                raise NotListening("", *outcome)
        found = re.findall(r" INFO listening on (\S+), process \d+$", self.said(), re.MULTILINE)
        self.addresses += map(_address, found)
        assert len(self.addresses) == sockets, self.said()
        return self

    def _is_ready(self) -> bool:
        with contextlib.suppress(TimeoutError):
            return self._notices.recv(4096).startswith(b"READY=1\n")
        return False

    def outcome(self) -> tuple[int, str, str]:
        code, said, log = super().outcome()
        lines = re.sub(rf"^{LOGGED}INFO .*\n", "", log, flags=re.MULTILINE)
        return code, said, re.sub(rf"^{LOGGED}[A-Z]+ ", "", lines, flags=re.MULTILINE)


def _address(text: str) -> Any:
    """The address that a program says; None if it is none."""
    host, _, port = text.rpartition(":")
    if port.isdigit():
        return host.strip("[]"), int(port)
    return text if "/" in text else None


def eventually(condition: Callable[[], object], seen: Callable[[], object], patience: float = PATIENCE) -> None:
    """Return once ``condition`` holds; ``seen`` is what a failure shows."""
    late = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < late, seen()
        time.sleep(0.01)


REPORTING = """
import asyncio, collections, gc, json, os, pathlib, pkgutil, signal, sys

import iostreamsrv


class Server(iostreamsrv.TCPServer):
    reasons = collections.Counter()

    async def handle_stream(self, stream, address):
        try:
            while True:
                line = await stream.read_until(b"\\n")
                await stream.write(b"%r\\n" % self.about(stream, address) if line == b"?\\n" else line)
        except iostreamsrv.StreamClosedError as error:
            self.reasons[str(error.reason)] += 1
            raise

    def about(self, stream, address):
        tls = {}
        if isinstance(stream, iostreamsrv.SSLIOStream):
            tls = dict(version=stream.socket.version(), alpn=stream.alpn, peer=stream.peer_certificate)
        proxy = stream.proxy and stream.proxy.source
        return dict(address=address, remote=stream.remote_address, proxy=proxy, **tls)


def report(server):
    gc.collect()
    print(dict(
        descriptors=len(os.listdir("/proc/self/fd")),
        tasks=len(asyncio.all_tasks()),
        streams=len(server.streams),
        reasons=dict(server.reasons),
        resident=int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
    ))


async def main(options):
    server = (pkgutil.resolve_name(sys.argv[2]) if sys.argv[2:] else Server)(**options)
    server.listen(0, "127.0.0.1")
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, server.reload_certificates)
    loop.add_signal_handler(signal.SIGUSR1, report, server)
    gc.freeze()  # so that reports take little of the machine's time
    print("listening on %s:%d" % server.addresses[0])
    await server.serve_forever()


iostreamsrv.run(main(json.loads(sys.argv[1])))
"""


class ReportingProgram(Program):
    """A program that prints a dict for SIGUSR1."""

    def report(self) -> dict[str, Any]:
        """What it says of itself."""
        self.send_signal(signal.SIGUSR1)
        found: dict[str, Any] = ast.literal_eval(self.line())
        return found


class ReportingServer(ReportingProgram):
    """An echo server of lines, with options for `TCPServer`, that tells a client what it knows of it for "?", and
    reports its descriptors, tasks, streams, the reasons its streams ended for, and its resident bytes.

    :param server: another one, as "module:class", which has ``reasons``, too.
    """

    def __init__(self, patience: float = PATIENCE, server: str | None = None, **options: Any) -> None:
        super().__init__("-c", REPORTING, json.dumps(options, default=str), *filter(None, [server]), patience=patience)
        self.listening()
        self.at_first = self.report()

    def settled(self, patience: float = PATIENCE) -> dict[str, Any]:
        """Its report, once it holds no descriptors, tasks and streams but those it began with."""

        def left() -> dict[str, int]:
            report = self.report()
            return {key: report[key] - self.at_first[key] for key in ("descriptors", "tasks", "streams")}

        eventually(lambda: not any(left().values()), left, patience)
        return self.report()


class Client:
    """A connection to a program, at (host, port) or at the path of a Unix socket.

    :param tls: the context to make it one over TLS, which is to the host ``name``.
    :param source: the address it comes from.
    """

    def __init__(
        self, address: Any, tls: ssl.SSLContext | None = None, name: str = "localhost", source: str | None = None
    ) -> None:
        if isinstance(address, tuple):
            self.socket = socket.create_connection(address, PATIENCE, (source, 0) if source else None)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE)
            self.socket.connect(address)
        if tls is not None:
            try:
                self.socket = tls.wrap_socket(self.socket, server_hostname=name)
            except BaseException:
                self.socket.close()
                raise
        self._lines = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> bytes:
        """The next line, b"" at the end of the stream."""
        return self._lines.readline()

    def ask(self, data: bytes) -> bytes:
        """Send ``data`` and read a line."""
        self.send(data)
        return self.line()


@contextlib.contextmanager
def program(source: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program in a process of its own, with text pipes to read what it prints; killed if it is still there."""
    with subprocess.Popen(
        [sys.executable, "-u", "-W", "error", "-c", textwrap.dedent(source), *arguments],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def printed(process: "subprocess.Popen[str]") -> Any:
    """The next line that a `program` printed, as the Python value it is."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return ast.literal_eval(line)
