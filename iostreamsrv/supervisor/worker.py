"""The program of a worker: it loads the user's server, and serves on the sockets of the service. ::

    python -m iostreamsrv.supervisor.worker CHANNEL TARGET

The supervisor starts it in a fresh interpreter; see :mod:`iostreamsrv.supervisor.spawn`. ``CHANNEL`` is the descriptor
of its end of a `Channel`, whose first message says all else.
"""

import asyncio
import errno
import math
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any

from ..certs.watching import FileWatch
from ..errors import ListenError, OptionError
from ..net.inherited import socket_from_fd
from ..observe import AccessLog
from ..runtime import lifeline
from ..runtime.logs import general, log_to_stderr
from ..runtime.loops import current_loop
from ..runtime.rlimit import raise_limit
from ..runtime.running import certificate_reload, run_to_end
from ..server.base import core_of
from ..server.handover import Giver, Taker, hands_over
from ..server.scoreboard import Scoreboard
from ..server.workers import WorkerSiblings
from ..tcpserver import TCPServer
from .channel import Channel, Message
from .settings import Settings
from .spawn import IGNORED
from .target import TargetError, load, server_of

CERTIFICATES_INTERVAL = 5.0
"""Seconds between two looks at the files of the certificates."""

LIFELINE_PATIENCE = 5.0
"""Seconds, besides the server's ``drain_timeout``, after which a worker without a supervisor ends, whatever it does."""


def main() -> int:
    """Serve until told to end; return the exit code."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the supervisor has blocked them meanwhile
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    messages = channel.wait()
    if not messages:
        return 0  # the supervisor has ended meanwhile
    job = messages[0]
    for fd in (channel.fileno(), job["lifeline"], job["scoreboard"], *(each["fd"] for each in job["listeners"])):
        os.set_inheritable(fd, False)  # programs that the target starts need none of them
    patience = Patience()
    lifeline.watch(job["lifeline"], patience.seconds)
    try:
        settings = Settings.from_json(job["settings"])
        if not job["listeners"]:
            raise ListenError(errno.EADDRNOTAVAIL, "there is no socket to listen on")
        server = server_of(load(settings.target), settings)
        log_to_stderr()  # unless the target has set up something
        worker = Worker(server, channel, job)
        patience.drain_timeout = server.options.drain_timeout
        raise_limit(server.options.max_connections)
        run_to_end(current_loop(), worker.serve())
    except TargetError as error:
        if error.details:
            print(error.details, file=sys.stderr, flush=True)
        return _failed(channel, error)
    except (OptionError, ListenError) as error:
        return _failed(channel, error)
    return 0


def _failed(channel: Channel, error: Exception) -> int:
    channel.send("failed", why=" ".join(str(error).split())[:1000])
    return 1


class Patience:
    """How long this process may take to end when its supervisor is gone: while the target is loaded, and then."""

    drain_timeout: float | None = 0.0

    def seconds(self) -> float:
        """Seconds, of which there may be no end."""
        return math.inf if self.drain_timeout is None else self.drain_timeout + LIFELINE_PATIENCE


class Worker:
    """Serves, and does what the supervisor says.

    :param job: the first message.
    """

    def __init__(self, server: TCPServer, channel: Channel, job: Message) -> None:
        self._server = server
        self._core = core_of(server)
        self._channel = channel
        self._job = job
        scoreboard = Scoreboard.open(job["scoreboard"])
        self._core.join(WorkerSiblings(scoreboard, job["row"], job["number"], job["generation"]))
        self._access_log = _access_log(server, job)
        self._metrics = _metrics_server(server, job)
        self._ending: asyncio.Task[None] | None = None  # what ends the server
        self._repaced: asyncio.Task[None] | None = None
        self._urgency = 0
        self._moving: set[asyncio.Task[None]] = set()  # what hands clients over, or takes some

    async def serve(self) -> None:
        """Serve until told to end, or the server stops itself."""
        loop = asyncio.get_running_loop()
        for listener in self._job["listeners"]:
            if not listener["metrics"]:
                self._server.add_socket(socket_from_fd(listener["fd"]), None if listener["tls"] else False)
            elif self._metrics is not None:
                self._metrics.add_socket(socket_from_fd(listener["fd"]))
        loop.add_signal_handler(signal.SIGTERM, self._drain_by_signal)
        loop.add_signal_handler(signal.SIGQUIT, self._end)
        loop.add_reader(self._channel, self._hear)
        timeout = self._core.options.drain_timeout
        self._watch_certificates(loop)
        self._channel.send("ready", drain_timeout=timeout, hands_over=hands_over(self._core.connections))
        await self._server.serve_forever()
        if self._ending is None:  # it has stopped itself
            self._channel.send("leaving")
        while self._ending is not None and not self._ending.done():
            await asyncio.wait([self._ending])
        if self._moving:
            await asyncio.wait(self._moving)
        await self._end_observing()

    async def _end_observing(self) -> None:
        if self._metrics is not None:
            self._metrics.stop()
            await self._metrics.close_all_connections()
        if self._access_log is not None:
            self._access_log.close()

    def _watch_certificates(self, loop: asyncio.AbstractEventLoop) -> None:
        files = FileWatch(lambda: [path for each in self._server.certificates for path in each.files])
        reload = certificate_reload(loop, self._server)

        def look() -> None:
            if files.has_changed():
                reload()
            loop.call_later(CERTIFICATES_INTERVAL, look)

        look()

    # ---- what the supervisor says

    def _hear(self) -> None:
        messages = self._channel.receive()
        if messages is None:  # the supervisor is gone; the lifeline does what there is to do
            asyncio.get_running_loop().remove_reader(self._channel)
        for message in messages or ():
            if message["type"] == "retire":
                self._retire(message["timeout"], message["rate"])
            elif message["type"] in ("hand_over", "take_over"):
                self._move(message["type"])
            elif message["type"] == "reopen" and self._access_log is not None:
                self._access_log.reopen()
            elif message["type"] == "drain":
                self._drain()
            elif message["type"] == "end":
                self._end()

    def _move(self, word: str) -> None:
        """Hand clients over, or take some, over the socket that came with the word. (It comes without one if there was
        no descriptor to be had.)"""
        if not self._channel.descriptors:
            return
        other = socket.socket(fileno=self._channel.descriptors.pop(0))
        connections = self._core.connections
        moving = Giver(connections, other).give_all() if word == "hand_over" else Taker(connections, other).take_all()
        task = asyncio.get_running_loop().create_task(moving)
        self._moving.add(task)
        task.add_done_callback(self._moving.discard)

    def _retire(self, timeout: float, rate: float) -> None:
        if self._metrics is not None:
            self._metrics.stop()  # the workers after this one answer
        if self._urgency == 0:
            self._urgency = 1
            self._end_by(self._core.retire(timeout, rate))
        elif self._urgency == 1:  # the same again, at another pace; the first one goes on, and must not be cancelled
            self._repaced = asyncio.get_running_loop().create_task(self._core.retire(timeout, rate))

    def _drain(self) -> None:
        if self._urgency < 2:
            self._urgency = 2
            self._end_by(self._shut_down())

    def _end(self) -> None:
        if self._urgency < 3:
            self._urgency = 3
            self._end_by(self._close_all())

    def _drain_by_signal(self) -> None:
        self._channel.send("leaving")
        self._drain()

    async def _shut_down(self) -> None:
        await self._core.shutdown_as_overridden()

    async def _close_all(self) -> None:
        self._server.stop()
        await self._server.close_all_connections()

    def _end_by(self, how: Coroutine[Any, Any, None]) -> None:
        before, self._ending = self._ending, asyncio.get_running_loop().create_task(self._ended_by(how))
        if before is not None:
            before.cancel()

    async def _ended_by(self, how: Coroutine[Any, Any, None]) -> None:
        """End in this way; if that raises, as a user's method may, at once: the supervisor counts on it."""
        try:
            await how
        except Exception:
            general.exception("the server does not end as it was told to: it closes all of its clients")
            await self._close_all()


def _access_log(server: TCPServer, job: Message) -> AccessLog | None:
    """The access log that the settings ask for.

    :raises OptionError: opening its file fails.
    """
    settings = job["settings"]
    if settings["access_log"] is None:
        return None
    log = AccessLog(settings["access_log"], settings["access_log_format"], job["number"])
    log.attach(server)
    return log


def _metrics_server(server: TCPServer, job: Message) -> TCPServer | None:
    """The server for metrics, if there is a socket for it.

    :raises OptionError: prometheus-client is not installed. The command checks that, too, but an upgrade goes on with
        the settings of before.
    """
    if not any(listener["metrics"] for listener in job["listeners"]):
        return None
    try:
        from ..observe.metrics import metrics_server
    except ImportError:
        problem = 'needs prometheus-client: pip install "iostreamsrv[metrics]"'
        raise OptionError("metrics", job["settings"]["metrics"], problem) from None
    return metrics_server(server)


if __name__ == "__main__":
    sys.exit(main())
