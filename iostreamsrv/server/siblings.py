"""What a server asks and tells the other processes that serve the same address, and the wait for its turn to accept."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Protocol

from ..errors import CloseReason
from ..runtime.clock import clock_of

LOOK_AGAIN = 0.001
"""Seconds between two looks whether it is this process's turn: a client waits meanwhile."""

LONGEST_WAIT = 0.01
"""Seconds after which a client is accepted that no other process has taken."""

ROOM_CHECK = 0.01
"""Seconds between two looks whether there is room, while a client waits: closes elsewhere do not wake this process."""


class Siblings(Protocol):
    """The other processes, for one server. A server that is alone has none: it asks none, and tells none."""

    def may_accept(self, open: int) -> bool:
        """Whether this process may accept one more, with so many open: it has not many more than the others."""

    def others(self) -> int:
        """How many connections the other processes have."""

    def of_host(self, host: str) -> int:
        """How many of them are from this host."""

    def waited_in_vain(self) -> None:
        """A client has waited for `LONGEST_WAIT`, and none has taken it: `may_accept` is true for one, or some."""

    def opened(self, open: int) -> None:
        """A connection was accepted; there are ``open`` now."""

    def closed(self, open: int, reason: CloseReason, seconds: float, received: int, sent: int) -> None:
        """A connection was closed: ``reason``, its duration and bytes; there are ``open`` now."""

    def resumed(self, open: int) -> None:
        """A connection has come from another process, which has accepted it; there are ``open`` now."""

    def handed_over(self, open: int, received: int, sent: int) -> None:
        """A connection with so many bytes goes on in another process; there are ``open`` now."""

    def count_host(self, host: str, change: int) -> None:
        """This process has one connection more, or one less (-1), from a host."""

    def rejected(self, open: int) -> None:
        """A connection was rejected; there are ``open`` now."""

    def failed(self) -> None:
        """A handler has raised an exception."""

    def blocked(self) -> None:
        """A handler has blocked the loop."""

    def handshaken(self, version: str | None) -> None:
        """A client has ended its handshake, with this version of TLS."""

    def listening(self, loop: asyncio.AbstractEventLoop, bytes_of_open: Callable[[], tuple[int, int]]) -> None:
        """This process accepts, in ``loop``.

        :param bytes_of_open: gives how many bytes its open connections have received and sent.
        """

    def stopped(self) -> None:
        """It accepts no longer."""


class Turn:
    """Waits until it is this process's turn to accept. The listeners are paused meanwhile.

    :param is_turn: whether it is.
    :param resume: has the listeners watched again. If no client waits there any more, nothing follows.
    """

    def __init__(self, siblings: Siblings, is_turn: Callable[[], bool], resume: Callable[[], None]) -> None:
        self._siblings = siblings
        self._is_turn = is_turn
        self._resume = resume
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def wait(self) -> None:
        """A client waits, and it is not our turn. May make it our turn."""
        loop = asyncio.get_running_loop()
        now = clock_of(loop)()
        if self._since is None:
            self._since = now
        elif now - self._since >= LONGEST_WAIT:
            self._since = None
            self._siblings.waited_in_vain()
            return
        if self._timer is None:
            self._schedule(loop)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(LOOK_AGAIN, self._look, loop, context=Context())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._is_turn():
            self._since = None
        elif self._since is not None and clock_of(loop)() - self._since < LONGEST_WAIT:
            return self._schedule(loop)
        self._resume()
        self._forget_soon(loop, 3)

    def _forget_soon(self, loop: asyncio.AbstractEventLoop, turns: int) -> None:
        """Forget the wait unless a client is found within a few turns of the loop: another process has taken it."""
        if turns:
            loop.call_soon(self._forget_soon, loop, turns - 1, context=Context())
        elif self._timer is None:
            self._since = None
