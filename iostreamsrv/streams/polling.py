"""Reads an epoll and a clock. ``polling.pyx`` is the compiled twin, without objects for numbers."""

import select
from operator import call as read_clock

from .readiness import Dispatched

__all__ = ["poll", "read_clock"]


def poll(epoll: "select.epoll", streams: list[Dispatched | None], due: list[Dispatched]) -> bool:
    """Append to ``due`` each of ``streams`` that is ready, with its events in ``due_events``; one that is there already
    gets further events. The place of a stream in ``streams`` is its descriptor. Return whether every descriptor that is
    ready is known."""
    known = True
    for number, events in epoll.poll(0):
        stream = streams[number] if number < len(streams) else None
        if stream is None:
            known = False
            continue
        if not stream.due_events:
            due.append(stream)
        stream.due_events |= events
    return known
