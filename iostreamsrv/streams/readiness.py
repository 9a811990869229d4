"""What a hub reports, and what it reports it to."""

from typing import Protocol

# Events as epoll numbers them, which are IOLoop.READ and IOLoop.WRITE as well.
READABLE = 0x001  # EPOLLIN
WRITABLE = 0x004  # EPOLLOUT
URGENT = 0x002  # EPOLLPRI: a receive ends at the urgent mark, however much lies behind it
BROKEN = 0x010 | 0x008  # EPOLLHUP | EPOLLERR: a send will say what it is
ENDED = 0x2000 | 0x010  # EPOLLRDHUP | EPOLLHUP: the peer sends no more, behind what is still unread
HANGUP = ENDED | BROKEN | URGENT  # a short read proves nothing any more


class Dispatched(Protocol):
    """What the hub needs of a stream.

    :ivar hub_key: for the hub to write: the descriptor the stream is registered under, or -1.
    """

    hub_key: int

    def fileno(self) -> int:
        """The descriptor."""

    def close(self) -> None:
        """What a loop that closes all it knows calls."""

    def lose_descriptor(self) -> None:
        """Somebody else has closed the descriptor: end without touching what may have its number by now."""

    def dispatch(self, events: int) -> None:
        """Do what the events allow. Never called from within a task."""

    def uncork(self) -> None:
        """Send what was corked."""

    def forget_output(self) -> None:
        """In a forked child: send nothing of what waits, as the parent does."""
