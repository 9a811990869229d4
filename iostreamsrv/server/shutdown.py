"""The end of a server that lets its clients finish."""

import asyncio

from ..runtime.clock import clock_of
from .connections import SHUTDOWN_LINGER, Clients

TICK = 0.02
"""Seconds between two looks at who is left: too short to be noticed at the end of a program, and a shutdown is no place
to save work."""


async def drain(clients: Clients, idle: float, timeout: float | None) -> bool:
    """Wait until all clients have gone; whether they have.

    A client that has a request under way is waited for. One of which nothing has come is closed: for ``idle`` seconds
    from now it may still send what it was about to, afterwards it is closed as soon as its handler is back in a read.
    So is then one who asks again at once, when its handler has answered and reads again: or busy clients would keep the
    server for ever.

    :param timeout: seconds after which the rest is given up; None for no limit.
    """
    time = clock_of(asyncio.get_running_loop())
    begun = time()
    while not clients.all_gone():
        passed = time() - begun
        clients.note_written()
        clients.end_lingering(SHUTDOWN_LINGER)
        if timeout is not None and passed >= timeout:
            clients.end_lingering(0)  # who has all is not cut off
            return False
        if passed >= idle:
            clients.end_waiting(idle)
        await asyncio.sleep(TICK)
    return True
