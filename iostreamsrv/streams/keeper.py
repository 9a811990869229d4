"""When a hub closes its epoll: some time after its last stream, and with its loop."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Protocol

KEPT = 1.0
"""Seconds for which a hub keeps its epoll after its last stream. For a server with one client after the other, to make
one for each takes a tenth of the time."""


class Keeping(Protocol):
    """The part of a hub that this module uses."""

    loop: asyncio.AbstractEventLoop
    time: Callable[[], float]

    def close_unused(self) -> None:
        """Close the epoll, unless it is in use."""


class Keeper:
    """Has a hub close an epoll that was not used for a while. One timer is enough for any number of clients that come
    one after the other."""

    __slots__ = ("_hub", "_unused_since", "_waiting")

    def __init__(self, hub: Keeping) -> None:
        self._hub = hub
        self._unused_since = 0.0
        self._waiting = False

    def keep(self) -> None:
        """The last stream is gone; there may be another one soon."""
        self._unused_since = self._hub.time()
        if not self._waiting:
            self._wait(KEPT)

    def _wait(self, seconds: float) -> None:
        self._waiting = True
        self._hub.loop.call_later(seconds, Wait(self), context=Context())

    def waited(self) -> None:
        """For the timer."""
        self._waiting = False
        left = self._unused_since + KEPT - self._hub.time()
        if left > 0:
            self._wait(left)
        else:
            self._hub.close_unused()

    def end_with_loop(self) -> None:
        """The timer is gone: close the epoll if the loop is closed."""
        if self._hub.loop.is_closed():
            self._hub.close_unused()


class Wait:
    """The callback of the timer. Nothing else holds it, and a loop that is closed lets go of its timers: no other of
    its ends is seen from outside."""

    __slots__ = ("_keeper",)

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def __call__(self) -> None:
        self._keeper.waited()

    def __del__(self) -> None:
        self._keeper.end_with_loop()
