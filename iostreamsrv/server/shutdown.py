"""The shutdown of a server: wait for its clients to finish, or cancel their handlers."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from ..errors import CloseReason
from ..events import Event
from ..iostream import IOStream
from ..runtime.cleanup import given_up
from ..runtime.clock import clock_of
from .connections import Connections

TICK = 0.02
"""Seconds between two checks of which clients are left: too short to be noticed at the end of a program."""

LINGER = 0.2
"""Seconds that a shutdown waits for the EOF of a client whose kernel has received everything. A close destroys nothing
then."""

CANCEL_GRACE = 1.0
"""Seconds that a cancelled handler has for its last writes. After them the shutdown does not wait for it."""

LAST_TURNS = 0.1
"""Seconds for handlers to notice that their streams are closed, after `CANCEL_GRACE` has passed."""


async def drain_or_cancel(connections: Connections, timeout: float | None, hint: str) -> None:
    """Let the clients finish, and disconnect those that are left after ``timeout`` seconds; None for no limit.

    :param hint: the end of the log line: how to end it sooner.
    """
    limit = "as long as they take" if timeout is None else f"up to {timeout:g} s"
    text = f"shutting down: {clients(connections.count())} may finish, {limit}{hint}"
    connections.events.emit(Event("shutdown", text, logging.INFO, reason=CloseReason.SHUTDOWN))
    if await drain(connections, connections.options.drain_idle, timeout):
        return
    if count := connections.count():
        text = f"shutting down: {clients(count)} not done within {timeout:g} s, and cut off"
        connections.events.emit(Event("shutdown", text, logging.WARNING, reason=CloseReason.DRAIN_TIMEOUT))
    await cancel_all(connections, CloseReason.DRAIN_TIMEOUT, graceful=True)


def clients(count: int) -> str:
    """So many clients, for people."""
    return "1 client" if count == 1 else f"{count} clients"


async def drain(connections: Connections, idle: float, timeout: float | None) -> bool:
    """Wait until all clients are gone; return whether they are.

    A client with a request in progress may finish it. A client without one may still begin a request for ``idle``
    seconds; afterwards it is closed as soon as its handler is back in a read. After those seconds a client that sends
    requests without a pause is closed, too, when its handler has answered one and reads again: otherwise busy clients
    would keep the server running forever.

    :param timeout: seconds after which to return False; None for no limit.
    """
    time = clock_of(asyncio.get_running_loop())
    begun = time()
    while not is_drained(connections):
        passed = time() - begun
        connections.track_answers()
        close_lingering(connections, LINGER)
        if timeout is not None and passed >= timeout:
            close_lingering(connections, 0)  # a client that has everything does not count as cut off
            return False
        if passed >= idle:
            _close_idle(connections, idle)
        await asyncio.sleep(TICK)
    return True


def is_drained(connections: Connections) -> bool:
    """Whether no client is left, and no task of one, except for handlers that wait for the shutdown themselves."""
    callers = connections.shutdown_callers
    waiting = [connections.handling[task] for task in connections.handling.keys() & callers]
    streams = len(connections.open) - sum(stream.id in connections.open for stream in waiting)
    return not (
        streams
        or connections.queued
        or connections.rejected
        or connections.starting
        or len(connections.handling) > len(waiting)
        or connections.closing.keys() - callers
    )


def close_lingering(connections: Connections, seconds: float) -> None:
    """Close the streams whose client has had everything for ``seconds``, and has not sent EOF."""
    for stream in [*connections.open.values(), *connections.rejected.values()]:
        if stream.has_lingered(seconds):
            stream.terminate(CloseReason.SHUTDOWN)


class _Everyone:
    """Contains every stream's id."""

    def __contains__(self, id: object) -> bool:
        return True


EVERYONE = _Everyone()


def _close_idle(connections: Connections, idle: float) -> None:
    """Close the streams without a request in progress, and those still being set up. From the first call on, a stream
    whose handler has answered and reads again is closed as well."""
    connections.closes_answered = EVERYONE
    for stream in list(connections.open.values()):
        close_if_idle(connections, stream, idle)


def close_if_idle(connections: Connections, stream: IOStream, idle: float) -> bool:
    """Close a stream if it has no request in progress; return whether it had none.

    :param idle: seconds that it may still begin one for, unless it has been answered since answers are tracked.
    """
    if connections.deadlines.is_armed(stream):
        if stream.idle_time < idle:
            return False
        stream.terminate(CloseReason.SHUTDOWN)
        return True
    if stream.close_reason is not None or not connections.is_idle(stream):
        return False
    if (stream.idle_time < idle and stream.is_unanswered()) or not connections.may_close(stream):
        return False
    if stream.unacknowledged():
        connections.close_gracefully(stream, CloseReason.SHUTDOWN)
    else:
        stream.terminate(CloseReason.SHUTDOWN)
    return True


def cancel_handler(connections: Connections, stream: IOStream) -> None:
    """Cancel the handler of a stream, which is then closed gracefully; if it has none, close it so.

    A handler that waits for the shutdown or the retirement itself is spared."""
    tasks = [task for task, served in connections.handling.items() if connections.current(served) is stream]
    for task in tasks:
        if task not in connections.shutdown_callers:
            task.cancel()
    if not tasks:
        connections.close_gracefully(stream, CloseReason.SHUTDOWN)


async def cancel_all(connections: Connections, reason: CloseReason, graceful: bool = False) -> None:
    """Cancel all handlers and close all streams; return when the handlers have ended.

    :param graceful: give the handlers time for their last writes before the streams are closed.
    """
    connections.cancel_reason = reason
    while connections.queued:
        connections.queued.pop()[2].close()
    spared = {asyncio.current_task(), *connections.shutdown_callers}
    running = [*connections.handling, *connections.closing, *connections.starting]
    ending = [task for task in running if task not in spared]
    for task in ending:
        task.cancel()
    connections.handshakes.clear()  # no handler follows them any more
    late = {each for each in ending if each in given_up}  # cancelled before, and still running
    if graceful:
        late |= await _wait([*{*ending} - late])
        closing = [task for task in connections.closing if task not in spared]
        await _wait(closing, LINGER)  # for the clients to read the last writes
        close_lingering(connections, LINGER)
        await _wait(closing, CANCEL_GRACE - LINGER)
    for stream in [*connections.open.values(), *connections.rejected.values()]:
        if graceful:
            stream.close_or_abort(reason)
            stream.discard_output()
        else:
            stream.terminate(reason)
    connections.cancel_reason = CloseReason.SHUTDOWN
    late |= await _wait([*{*ending, *connections.closing.keys() - spared} - late])
    given_up.update(await _wait([*late], LAST_TURNS))


async def _wait(futures: Sequence["asyncio.Future[Any]"], timeout: float = CANCEL_GRACE) -> "set[asyncio.Future[Any]]":
    """Wait for ``futures``; return those that are not done after ``timeout`` seconds."""
    return (await asyncio.wait(futures, timeout=timeout))[1] if futures else set()
