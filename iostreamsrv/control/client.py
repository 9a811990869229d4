"""A client of the control socket, for scripts."""

import contextlib
import socket
from time import sleep
from types import EllipsisType, TracebackType
from typing import Any, Literal, Self

from ..runtime.clock import real_time
from .protocol import ENDED, INVALID, LONGEST_ANSWER, ControlError, Request, result_of

POLL = 0.05
"""Seconds between two attempts to connect to a service that replaces itself."""


class ControlClient:
    """Speaks to a service over its control socket, and waits for each answer. Use it in a ``with`` statement, or
    :meth:`close` it.

    :param path: the file of the socket: what ``--control`` says, or ``control.sock`` in ``RUNTIME_DIRECTORY``.
    :param timeout: seconds to wait for an answer; None for no limit. `reload` and `upgrade` have their own.
    :raises OSError: no service listens there, or this user may not use it.
    """

    def __init__(self, path: str, timeout: float | None = 10.0) -> None:
        self._path = path
        self._timeout = timeout
        self._connect()

    def _connect(self) -> None:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            end.settimeout(self._timeout)
            end.connect(self._path)
        except BaseException:
            end.close()
            raise
        self._end = end
        self._received = end.makefile("rb")
        self._asked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._received.close()
        self._end.close()

    def request(
        self, verb: str, arguments: dict[str, Any] | None = None, timeout: float | EllipsisType | None = ...
    ) -> Any:
        """Send a request, and return its result.

        :param verb: such as "show workers".
        :param timeout: seconds to wait for the answer; None for no limit. Default: that of the client.
        :raises ControlError: the service refuses, or fails.
        :raises TimeoutError: there is no answer in time. The client can be closed only, afterwards.
        """
        self._asked += 1
        self._end.settimeout(self._timeout if isinstance(timeout, EllipsisType) else timeout)
        line = b""
        with contextlib.suppress(ConnectionError):
            self._end.sendall(Request(verb, arguments or {}, self._asked).to_line())
            line = self._received.readline(LONGEST_ANSWER + 1)
        if not line.endswith(b"\n"):
            raise ControlError(INVALID if line else ENDED, "the connection has ended before the answer")
        return result_of(line)

    def workers(self) -> list[dict[str, Any]]:
        """All workers, those that retire included: ``number``, ``pid``, ``generation``, ``state``, ``open``,
        ``accepted``, ``closed``, ``rejected``, ``errors``, ``bytes_received``, ``bytes_sent``, ``heartbeat_age``
        (seconds; None before the first one) and ``rss`` (bytes; 0 where that is not known)."""
        found: list[dict[str, Any]] = self.request("show workers")["workers"]
        return found

    def stats(self) -> dict[str, int]:
        """The sums over all workers, the dead ones included: ``open``, ``accepted``, ``closed``, ``rejected``,
        ``errors``, ``bytes_received``, ``bytes_sent``. All but ``open`` never fall."""
        found: dict[str, int] = self.request("show stats")
        return found

    def config(self) -> dict[str, Any]:
        """The settings that count, by their names. The options of the server are those that were given."""
        found: dict[str, Any] = self.request("show config")
        return found

    def reload(self, timeout: float | None = None) -> None:
        """Replace all workers, and wait until the new ones serve.

        :param timeout: seconds to wait; None for no limit. The reload goes on after it.
        :raises ControlError: the new code did not start ("failed"), or the service ends ("refused").
        """
        self.request("reload", timeout=timeout)

    def upgrade(self, timeout: float | None = None) -> None:
        """Replace the supervisor, too, and wait until the new one answers.

        :param timeout: seconds to wait until the check is over, and again for the new supervisor (None: 30).
        :raises ControlError: the new code would not start ("failed"), or the service ends ("refused").
        :raises OSError: the new supervisor has no control socket.
        """
        try:
            self.request("upgrade", timeout=timeout)
        except ControlError as error:
            if error.code != ENDED:
                raise
        self.close()
        self._reconnect(real_time() + (30.0 if timeout is None else timeout))

    def _reconnect(self, deadline: float) -> None:
        while True:
            try:
                return self._connect()
            except OSError:
                if real_time() >= deadline:
                    raise
            sleep(POLL)

    def change_workers(self, change: Literal[1, -1]) -> int:
        """Have one worker more (1), or less (-1); return how many there are to be.

        :raises ControlError: it is the last one.
        """
        count: int = self.request("workers", {"change": change})["workers"]
        return count

    def drain(self) -> None:
        """Have the service shut down, as by SIGTERM. It accepts no more, and ends when its clients have left, or
        ``drain_timeout`` is over."""
        self.request("drain")
