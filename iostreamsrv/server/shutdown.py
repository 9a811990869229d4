"""The end of a server: wait for its clients to finish, or cancel them."""

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
"""Seconds between two checks of which clients are left: too short to be noticed at the end of a program, and a shutdown
is no place to save work."""

LINGER = 0.2
"""Seconds that a client whose kernel has all that was sent may keep a shutdown waiting for its EOF. A close cannot
destroy anything on its way any more."""

CANCEL_GRACE = 1.0
"""Seconds that a cancelled handler has for its last words. One that takes longer is left alone."""

LAST_TURNS = 0.1
"""Seconds that handlers have to notice that their streams are closed, when they have had their time after a cancel."""


async def drain_or_cancel(connections: Connections, timeout: float | None, hint: str) -> None:
    """Let the clients finish, and cut off those that are left after ``timeout`` seconds; None for no limit.

    :param hint: what to do about it, for the log.
    """
    limit = "as long as they take" if timeout is None else f"up to {timeout:g} s"
    text = f"shutting down: {_clients(connections.count())} may finish, {limit}{hint}"
    connections.events.emit(Event("shutdown", text, logging.INFO, reason=CloseReason.SHUTDOWN))
    if await drain(connections, connections.options.drain_idle, timeout):
        return
    if count := connections.count():
        text = f"shutting down: {_clients(count)} not done within {timeout:g} s, and cut off"
        connections.events.emit(Event("shutdown", text, logging.WARNING, reason=CloseReason.DRAIN_TIMEOUT))
    await cancel_all(connections, CloseReason.DRAIN_TIMEOUT, graceful=True)


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


async def drain(connections: Connections, idle: float, timeout: float | None) -> bool:
    """Wait until all clients have gone; whether they have.

    A client with a request under way is waited for. One of which nothing has come is closed: for ``idle`` seconds it
    may still send what it was about to, afterwards it is closed as soon as its handler is back in a read. So is then a
    client that asks again at once, when its handler has answered and reads again: or busy clients would keep the server
    for ever.

    :param timeout: seconds after which to give up; None for no limit.
    """
    time = clock_of(asyncio.get_running_loop())
    begun = time()
    while not is_drained(connections):
        passed = time() - begun
        connections.track_answers()
        _close_lingering(connections, LINGER)
        if timeout is not None and passed >= timeout:
            _close_lingering(connections, 0)  # a client that has all is not cut off
            return False
        if passed >= idle:
            _close_idle(connections, idle)
        await asyncio.sleep(TICK)
    return True


def is_drained(connections: Connections) -> bool:
    """Whether no client is left, nor a task for one, except for clients whose handlers wait for the shutdown."""
    callers = connections.shutdown_callers
    waiting = [connections.handling[task].stream for task in connections.handling.keys() & callers]
    streams = len(connections.open) - sum(stream.id in connections.open for stream in waiting)
    return not (
        streams
        or connections.queued
        or connections.rejected
        or connections.starting
        or len(connections.handling) > len(waiting)
        or connections.closing.keys() - callers
    )


def _close_lingering(connections: Connections, seconds: float) -> None:
    """Close the streams whose client has had all for so long, and has not ended its side."""
    for stream in [*connections.open.values(), *connections.rejected.values()]:
        if stream.has_lingered(seconds):
            stream.terminate(CloseReason.SHUTDOWN)


def _close_idle(connections: Connections, idle: float) -> None:
    """Close the streams that only wait for their client, and those that have not begun with their handshake; from now
    on also those whose handler has answered and reads again."""
    connections.closes_answered = True
    for stream in list(connections.open.values()):
        if connections.deadlines.is_armed(stream):
            if stream.idle_time >= idle:
                stream.terminate(CloseReason.SHUTDOWN)
        elif stream.close_reason is not None or not connections.is_idle(stream):
            continue
        elif stream.idle_time >= idle or not stream.is_unanswered():
            _close_waiting(connections, stream)


def _close_waiting(connections: Connections, stream: IOStream) -> None:
    if not connections.may_close(stream):
        return
    if stream.unacknowledged():
        connections.close_gracefully(stream, CloseReason.SHUTDOWN)
    else:
        stream.terminate(CloseReason.SHUTDOWN)


async def cancel_all(connections: Connections, reason: CloseReason, graceful: bool = False) -> None:
    """Cancel all handlers and close all streams; return when the handlers have ended.

    :param graceful: let the handlers have their last words before the streams are closed.
    """
    connections.cancel_reason = reason
    while connections.queued:
        connections.queued.pop()[2].close()
    spared = {asyncio.current_task(), *connections.shutdown_callers}
    running = [*connections.handling, *connections.closing, *connections.starting]
    ending = [task for task in running if task not in spared]
    for task in ending:
        task.cancel()
    late = {each for each in ending if each in given_up}  # they have had their time
    if graceful:
        late |= await _wait([*{*ending} - late])
        closing = [task for task in connections.closing if task not in spared]
        await _wait(closing, LINGER)  # for the clients to read them
        _close_lingering(connections, LINGER)  # those that have all
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
    """Those that are not done by then."""
    return (await asyncio.wait(futures, timeout=timeout))[1] if futures else set()
