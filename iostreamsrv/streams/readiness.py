"""The events that a hub reports, and the interface of the streams that it reports them to."""

# Events as epoll numbers them, which are IOLoop.READ and IOLoop.WRITE as well.
READABLE = 0x001  # EPOLLIN
WRITABLE = 0x004  # EPOLLOUT
URGENT = 0x002  # EPOLLPRI: urgent data; a receive stops at its mark, although more bytes may follow
BROKEN = 0x010 | 0x008  # EPOLLHUP | EPOLLERR: the next send raises the error
ENDED = 0x2000 | 0x010  # EPOLLRDHUP | EPOLLHUP: EOF follows the bytes that are still unread
HANGUP = ENDED | BROKEN | URGENT  # after any of these a short receive does not mean that there is no more


class Dispatched:
    """What the hub needs of a stream.

    :ivar hub_key: set by the hub: the descriptor that the stream is registered with, or -1.
    :ivar due_events: set by the hub: the events to dispatch, while the stream is queued for it; 0 otherwise.
    """

    __slots__ = ("due_events", "hub_key")

    due_events: int
    hub_key: int

    def fileno(self) -> int:
        """The descriptor."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the stream: called by `IOLoop.close` with ``all_fds=True``."""
        raise NotImplementedError

    def lose_descriptor(self) -> None:
        """Other code has closed the descriptor: close the stream, but not that number, which may be reused by now."""
        raise NotImplementedError

    def dispatch(self, events: int) -> None:
        """Do what the events allow. Never called from within a task."""
        raise NotImplementedError

    def uncork(self) -> None:
        """Send what was corked."""
        raise NotImplementedError

    def forget_output(self) -> None:
        """In a forked child: discard the output, because the parent sends it."""
        raise NotImplementedError
