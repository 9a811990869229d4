"""The accept loop of one listener."""

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

from ..errors import OptionError
from ..events import UNOWNED_EVENTS, Event, Events
from ..runtime.clock import clock_of
from ..runtime.exports import set_module
from ..runtime.loops import asyncio_loop, current_loop

ACCEPTS_PER_TURN = 16
"""Connections taken before the loop has its turn: enough to work off a rush, few enough for those who are in
already.
"""

PAUSE_FIRST = 0.1
PAUSE_LONGEST = 1.0
"""Seconds not to accept for when descriptors or memory ran out, doubled from first to longest until one accept
succeeds. A listener stays readable meanwhile: whoever just tries again spins (Ranch and Go's net/http pause
likewise).
"""

QUIET = 10.0
"""Seconds in which that is logged once."""

# What accept(2) can fail with, but for a BlockingIOError, in four kinds:
# The client left the queue before its turn, or its network failed; accept(2) of Linux passes such errors on, and says
# to go on.
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
LISTENER_GONE = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})  # somebody closed it behind our back


QUEUE_MOST = 4096
"""Most connections that a listener's queue is taken to hold: Linux' ``somaxconn``."""


class Acceptor:
    """Accepts what comes to ``listener`` while a loop runs, and hands it to ``accepted(connection, address)``.

    It does so in the context in which it was made, whoever has it start, pause and resume.

    :param prepare: sets a socket's options. It is called for the listener, from which connections inherit them, and
        for each of those that do not: which were waiting before, or are no TCP connections.
    :param has_place: whether there is a place for one more; if there is none, nothing is accepted before
        :meth:`resume`, and clients wait in the kernel's queue.
    :param one_waits: is called when one waits there for a place; it may make room.
    :param events: who is told when descriptors run out.
    """

    def __init__(
        self,
        listener: socket.socket,
        accepted: Callable[[socket.socket, Any], None],
        prepare: Callable[[socket.socket], None] | None = None,
        has_place: Callable[[], bool] = lambda: True,
        one_waits: Callable[[], None] = lambda: None,
        events: Events = UNOWNED_EVENTS,
    ) -> None:
        listener.setblocking(False)
        if prepare is not None:
            prepare(listener)
        self.listener = listener
        self._accepted = accepted
        self._prepare = prepare
        self._passes_options_on = listener.family in (socket.AF_INET, socket.AF_INET6)
        self._has_place = has_place
        self._one_waits = one_waits
        self._events = events
        self._context = copy_context()
        self._io_loop: IOLoop | None = None
        self._fd = listener.fileno()
        self._watching = False
        self._timer: TimerHandle | None = None
        self._pause = PAUSE_FIRST
        self._quiet_until = 0.0
        self._reserve = -1  # a descriptor to give up for a client who is to be told that there is none
        self._process = os.getpid()  # in which it began to watch

    def start(self, io_loop: IOLoop) -> None:
        """Accept on ``io_loop``, and no longer on the loop before."""
        if self._io_loop is io_loop:
            return
        self.stop()
        self._io_loop = io_loop
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
        if inherited:  # the loop forgets the listener, but not its epoll, which is the parent's as well
            self._io_loop.handlers.pop(self._fd, None)  # type: ignore[attr-defined]
        else:
            self._io_loop.remove_handler(self._fd)

    @property
    def _inherited(self) -> bool:
        """Whether this is a forked child, and its parent accepts by the same epoll."""
        return self._watching and os.getpid() != self._process

    def resume(self) -> None:
        """Accept again. Nothing, if it does, or was stopped."""
        if self._io_loop is not None and not self._watching and self._timer is None:
            self._watching, self._process = True, os.getpid()
            self._context.run(self._io_loop.add_handler, self.listener, self._on_ready, IOLoop.READ)

    def accept_queued(self) -> None:
        """Accept all that waits in the kernel's queue, whether there are places or not. Nothing in a forked child,
        whose parent goes on accepting."""
        if self._inherited:
            return
        self._context.copy().run(self._accept_all)

    def _accept_all(self) -> None:
        for _ in range(QUEUE_MOST):
            if self._io_loop is None or not self._accept():
                return

    def _on_ready(self, _listener: object, _events: int) -> None:
        if not self._has_place():
            self._one_waits()
            if not self._watching or not self._has_place():
                return self.pause()
        for _ in range(ACCEPTS_PER_TURN):
            if not self._accept():
                return
            # The last client may have had it paused. Without a place, whether one waits is for the next event to say.
            if not self._watching or not self._has_place():
                return

    def _accept(self) -> bool:
        """Accept one; whether another one may be there."""
        try:
            connection, address = self.listener.accept()
        except BlockingIOError:
            if self._passes_options_on:
                self._prepare = None  # connections from now on have the listener's options
            return False
        except OSError as error:
            return self._failed(error)
        self._pause = PAUSE_FIRST
        if self._reserve < 0:  # there was none to be had before
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
            self._rest(error)
        elif error.errno in LISTENER_GONE:
            self.stop()
        else:
            raise error
        return False

    # ---- out of descriptors

    def _rest(self, error: OSError) -> None:
        assert self._io_loop is not None
        loop = asyncio_loop(self._io_loop)
        now = clock_of(loop)()
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET
            self._events.emit(Event("limit", f"accepting is paused: {error}", logging.ERROR, error=error))
        if self._pause >= PAUSE_LONGEST:
            self._shed()
        self.pause()
        self._timer = loop.call_later(self._pause, self._go_on, context=Context())
        self._pause = min(self._pause * 2, PAUSE_LONGEST)

    def _go_on(self) -> None:
        self._timer = None
        self.resume()

    def _shed(self) -> None:
        """Close the client that has waited longest, by means of the reserve: better it learns that than waits on."""
        if self._reserve < 0:
            return
        self._drop_reserve()
        with contextlib.suppress(OSError):
            self.listener.accept()[0].close()
        self._take_reserve()

    def _take_reserve(self) -> None:
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def _drop_reserve(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1


@set_module("iostreamsrv.netutil")
def add_accept_handler(sock: socket.socket, callback: Callable[[socket.socket, Any], None]) -> Callable[[], None]:
    """Accept on a listening socket while the current loop runs. ::

        (listener,) = bind_sockets(8888, "127.0.0.1")
        remove = add_accept_handler(listener, lambda connection, address: connection.close())

    :param sock: a listening socket. It becomes non-blocking; closing it remains the caller's job.
    :param callback: is called with each connection, a `socket.socket`, and its address as ``accept`` returns it. An
        exception in it is logged, and does not stop accepting. Each call runs in a copy of the current context.
    :returns: a function that stops accepting; calling it again does nothing.
    :raises OptionError: if ``sock`` is not a listening stream socket.
    """
    if (problem := why_not_listening(sock)) is not None:
        raise OptionError("sock", sock, problem)
    acceptor = Acceptor(sock, partial(_call_in_copy, copy_context(), callback))
    acceptor.start(current_loop())
    return acceptor.stop


def _call_in_copy(context: Context, callback: Callable[..., None], *arguments: Any) -> None:
    context.copy().run(callback, *arguments)


def why_not_listening(listener: object) -> str | None:
    """Why a server cannot accept on ``listener``; None if it can."""
    if not isinstance(listener, socket.socket):
        return "must be a listening socket"
    if listener.fileno() < 0:
        return "is closed"
    if listener.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_STREAM:
        return "is not a stream socket"
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "is not listening"
    return None
