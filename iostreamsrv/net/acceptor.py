"""The accept loop of one listener, and `add_accept_handler`."""

import contextlib
import errno
import logging
import os
import socket
from asyncio import TimerHandle
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from tornado.ioloop import IOLoop

from ..errors import ListenError, OptionError
from ..events import UNOWNED_EVENTS, Event, Events
from ..runtime.addresses import show
from ..runtime.clock import clock_of
from ..runtime.exports import set_module
from ..runtime.kernel import SYSTEM, kernel_of
from ..runtime.loops import asyncio_loop, current_loop
from .backlog import Backlog
from .bind import BACKLOG

ACCEPTS_PER_TURN = 16
"""Connections accepted per event: enough for a rush, and few enough not to delay existing clients."""

BACKOFF_FIRST = 0.1
BACKOFF_LONGEST = 1.0
"""Seconds to pause accepting when descriptors or memory ran out, doubled from first to longest until one accept
succeeds. The listener stays readable meanwhile, so trying again at once would spin. (Ranch and Go's net/http back off
likewise.)
"""

LOG_INTERVAL = 10.0
"""Seconds between two log lines about it."""

# The errors of accept(2), except BlockingIOError, in four kinds.
# The client left the queue before its turn, or its network failed. (accept(2) on Linux reports such errors, and its
# manual page says to try again.)
CLIENT_GONE = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPROTO,
        errno.ETIMEDOUT,
        getattr(errno, "ENONET", errno.ENETDOWN),  # which only Linux has
    }
)
INTERRUPTED = frozenset({errno.EINTR, errno.EPERM})  # EPERM: a firewall rule forbade this one connection
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
LISTENER_GONE = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})  # it was closed elsewhere


MAX_BACKLOG = 4096
"""Most connections that are accepted from the kernel's queue at once: Linux' default ``somaxconn``."""


class Acceptor:
    """Accepts the connections of ``listener`` in a loop, and calls ``accepted(connection, address)`` for each. They are
    non-blocking.

    The calls run in the context in which the acceptor was made, whichever code starts, pauses or resumes it.

    :param prepare: sets a socket's options. It is called for the listener, from which TCP connections inherit them, and
        for each connection that does not: one that was queued before, or of a Unix socket.
    :param may_accept: whether one more connection may be accepted. If not, nothing is accepted before :meth:`resume`,
        and clients wait in the kernel's queue.
    :param on_waiting: is called when a client has to wait there; it may make room.
    :param events: gets an event when descriptors run out.
    :param blocking: leave the connections as ``listener.accept()`` gives them.
    """

    def __init__(
        self,
        listener: socket.socket,
        accepted: Callable[[socket.socket, Any], None],
        prepare: Callable[[socket.socket], None] | None = None,
        may_accept: Callable[[], bool] = lambda: True,
        on_waiting: Callable[[], None] = lambda: None,
        events: Events = UNOWNED_EVENTS,
        blocking: bool = False,
    ) -> None:
        listener.setblocking(False)
        if prepare is not None:
            prepare(listener)
        self.listener = listener
        self._backlog = Backlog(listener, blocking)
        self._accepted = accepted
        self._prepare = prepare
        self._passes_on_options = listener.family in (socket.AF_INET, socket.AF_INET6)
        self._may_accept = may_accept
        self._on_waiting = on_waiting
        self._events = events
        self._context = copy_context()
        self._io_loop: IOLoop | None = None
        self._fd = listener.fileno()
        self._watching = False
        self._timer: TimerHandle | None = None
        self._backoff = BACKOFF_FIRST
        self._log_again_at = 0.0
        self._reserve = -1  # a spare descriptor, to accept and close a client when there is no other
        self._process = os.getpid()  # the process that registered the listener
        self._kernel = SYSTEM  # where the reserve is from

    def start(self, io_loop: IOLoop) -> None:
        """Accept on ``io_loop``, and no longer on the previous loop."""
        if self._io_loop is io_loop:
            return
        self.stop()
        self._io_loop = io_loop
        self._kernel = kernel_of(asyncio_loop(io_loop))
        self._take_reserve()
        self.resume()

    def stop(self) -> None:
        """Stop accepting; the listener stays open."""
        self.pause()
        self._io_loop = None
        self._drop_reserve()

    def close(self) -> None:
        """Stop accepting and close the listener."""
        self.stop()
        self.listener.close()

    def pause(self) -> None:
        """Accept nothing until :meth:`resume`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._watching:
            return
        inherited, self._watching = self._inherited, False
        if self._io_loop is None or asyncio_loop(self._io_loop).is_closed():
            return
        if inherited:  # remove it from the loop, but not from the epoll, which the parent shares
            self._io_loop.handlers.pop(self._fd, None)  # type: ignore[attr-defined]
        else:
            self._io_loop.remove_handler(self._fd)

    @property
    def _inherited(self) -> bool:
        """Whether this is a forked child whose parent accepts through the same epoll."""
        return self._watching and os.getpid() != self._process

    def resume(self) -> None:
        """Accept again. Does nothing if it is accepting, or was stopped."""
        if self._io_loop is not None and not self._watching and self._timer is None:
            self._watching, self._process = True, os.getpid()
            self._context.run(self._io_loop.add_handler, self.listener, self._on_ready, IOLoop.READ)

    def accept_queued(self) -> None:
        """Accept all connections in the kernel's queue, without asking ``may_accept``. Does nothing in a forked child,
        whose parent is still accepting.
        """
        if self._inherited:
            return
        self._context.copy().run(self._accept_all)

    def _accept_all(self) -> None:
        for _ in range(MAX_BACKLOG):
            if self._io_loop is None or not self._accept():
                return

    def _on_ready(self, _listener: object, _events: int) -> None:
        if not self._may_accept():
            self._on_waiting()
            if not self._watching or not self._may_accept():
                return self.pause()
        for _ in range(ACCEPTS_PER_TURN):
            if not self._accept():
                return
            # The callback may have paused it. Without capacity, the next event tells whether another client waits.
            if not self._watching or not self._may_accept():
                return

    def _accept(self) -> bool:
        """Accept one connection.

        :returns: whether there may be another one.
        """
        try:
            accepted = self._backlog.accept()
        except OSError as error:
            return self._failed(error)
        if accepted is None:
            if self._passes_on_options:
                self._prepare = None  # the queue is empty: later connections inherit the listener's options
            return False
        connection, address = accepted
        self._backoff = BACKOFF_FIRST
        if self._reserve < 0:  # there was no descriptor for it before
            self._take_reserve()
        if self._prepare is not None:
            with contextlib.suppress(OSError):  # the client may be gone
                self._prepare(connection)
        self._accepted(connection, address)
        return True

    def _failed(self, error: OSError) -> bool:
        if error.errno in CLIENT_GONE or error.errno in INTERRUPTED:
            return True
        if error.errno in EXHAUSTED:
            self._back_off(error)
        elif error.errno in LISTENER_GONE:
            self.stop()
        else:
            raise error
        return False

    # ---- out of descriptors

    def _back_off(self, error: OSError) -> None:
        assert self._io_loop is not None
        loop = asyncio_loop(self._io_loop)
        now = clock_of(loop)()
        if now >= self._log_again_at:
            self._log_again_at = now + LOG_INTERVAL
            self._events.emit(Event("limit", f"accepting is paused: {error}", logging.ERROR, error=error))
        if self._backoff >= BACKOFF_LONGEST:
            self._drop_oldest_waiting()
        self.pause()
        self._timer = loop.call_later(self._backoff, self._end_backoff, context=Context())
        self._backoff = min(self._backoff * 2, BACKOFF_LONGEST)

    def _end_backoff(self) -> None:
        self._timer = None
        self.resume()

    def _drop_oldest_waiting(self) -> None:
        """Close the client that has waited longest, using the spare descriptor: better than a wait in vain."""
        if self._reserve < 0:
            return
        self._drop_reserve()
        with contextlib.suppress(OSError):
            self.listener.accept()[0].close()
        self._take_reserve()

    def _take_reserve(self) -> None:
        with contextlib.suppress(OSError):
            self._reserve = self._kernel.open_spare()

    def _drop_reserve(self) -> None:
        if self._reserve >= 0:
            self._kernel.close_spare(self._reserve)
            self._reserve = -1


@set_module("iostreamsrv.netutil")
def add_accept_handler(sock: socket.socket, callback: Callable[[socket.socket, Any], None]) -> Callable[[], None]:
    """Accept on a listening socket while the current loop runs. ::

        (listener,) = bind_sockets(8888, "127.0.0.1")
        remove = add_accept_handler(listener, lambda connection, address: connection.close())

    :param sock: a listening socket, or one that is bound: that begins to listen. It becomes non-blocking; closing it
        remains the caller's job.
    :param callback: is called with each connection, a `socket.socket`, and its address as ``accept`` returns it. An
        exception in it is logged, and does not stop accepting. Each call runs in a copy of the current context.
    :returns: a function that stops accepting; calling it again does nothing.
    :raises OptionError: if ``sock`` is no stream socket that is listening or bound.
    :raises ListenError: if the kernel refuses to listen.
    """
    if (problem := why_not_added(sock)) is not None:
        raise OptionError("sock", sock, problem)
    listen_if_bound(sock)
    acceptor = Acceptor(sock, partial(_call_in_copy, copy_context(), callback), blocking=True)
    acceptor.start(current_loop())
    return acceptor.stop


def _call_in_copy(context: Context, callback: Callable[..., None], *arguments: Any) -> None:
    context.copy().run(callback, *arguments)


def listen_if_bound(listener: object) -> None:
    """Have a socket listen that is merely bound. (Tornado's servers accept it, and a program may call ``listen()``
    only after it has added the socket.)

    :raises ListenError: the kernel refuses.
    """
    if not isinstance(listener, socket.socket) or not _is_merely_bound(listener):
        return
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        address = show(listener.getsockname())
        raise ListenError(error.errno, f"cannot listen on {address}: {error.strerror}") from error


def _is_merely_bound(listener: socket.socket) -> bool:
    if why_not_listening(listener) != NOT_LISTENING:
        return False
    with contextlib.suppress(OSError):
        listener.getpeername()
        return False  # it is connected
    address = listener.getsockname()
    return bool(address[1] if isinstance(address, tuple) else address)


def why_not_added(listener: object) -> str | None:
    """Why a server cannot accept on ``listener``, even after :func:`listen_if_bound`; None if it can."""
    if isinstance(listener, socket.socket) and _is_merely_bound(listener):
        return None
    return why_not_listening(listener)


NOT_LISTENING = "is not listening"


def why_not_listening(listener: object) -> str | None:
    """Why a server cannot accept on ``listener``; None if it can."""
    if not isinstance(listener, socket.socket):
        return "must be a listening socket"
    if listener.fileno() < 0:
        return "is closed"
    if listener.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_STREAM:
        return "is not a stream socket"
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return NOT_LISTENING
    return None
