"""The bound sockets of a server, and who accepts on them."""

import socket
import weakref
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from tornado.ioloop import IOLoop

from ..certs.certificates import Certificates
from ..certs.expiry import ExpiryTimer
from ..errors import OptionError
from ..events import Event, Events
from ..net.acceptor import Acceptor, why_not_listening
from ..runtime.addresses import show
from ..runtime.loops import asyncio_loop
from .handshake import Greeter
from .limits import Permits

Accepted = Callable[[Greeter, Context, socket.socket, Any], None]


class Listeners:
    """What is bound: accepted on, or waiting for `TCPServer.start`.

    :param accepted: is given each connection, with who is to greet it, and the context that its client's is a copy of.
    :param permits: whether one more may be accepted.
    """

    def __init__(self, accepted: Accepted, permits: Permits, events: Events) -> None:
        self._greeters: set[Greeter] = set()  # of what is bound
        self._retired: weakref.WeakSet[Greeter] = weakref.WeakSet()  # a client that is greeted keeps its own
        self.suspended = False
        self._accepted = accepted
        self._permits = permits
        self._events = events
        self._acceptors: list[Acceptor] = []
        self._pending: list[tuple[socket.socket, Greeter]] = []
        self._expiry = ExpiryTimer(self._certificates)

    def __bool__(self) -> bool:
        """Whether any of them is accepted on, or would be if the server were not suspended."""
        return bool(self._acceptors)

    @property
    def addresses(self) -> list[Any]:
        """What is bound, as `socket.socket.getsockname` gives it."""
        sockets = [*(each.listener for each in self._acceptors), *(listener for listener, _ in self._pending)]
        return [listener.getsockname() for listener in sockets]

    @property
    def greeters(self) -> set[Greeter]:
        """Those of what is bound, and those of before that still greet a client."""
        return self._greeters | {greeter for greeter in self._retired if greeter.greeting}

    def hold(self, sockets: list[socket.socket], greeter: Greeter) -> None:
        """Let clients queue at these until :meth:`take_held`."""
        self._pending += [(each, greeter) for each in sockets]
        self._greeters.add(greeter)

    def take_held(self) -> list[tuple[socket.socket, Greeter]]:
        """What was held, for :meth:`accept_on`."""
        pending, self._pending = self._pending, []
        return pending

    def accept_on(
        self, listeners: list[tuple[socket.socket, Greeter]], io_loop: IOLoop, prepare: Callable[[socket.socket], None]
    ) -> None:
        """Accept on all of these. Their clients begin with the context variables that are set here.

        :param prepare: see `Acceptor`.
        :raises OptionError: one is closed, is not listening, or was added before; none is accepted on then.
        """
        known = {acceptor.listener.fileno() for acceptor in self._acceptors}
        for listener, _ in listeners:
            _check_listener(listener, known)
            known.add(listener.fileno())
        context = copy_context()
        acceptors = [
            Acceptor(
                listener,
                partial(self._accepted, greeter, context),
                prepare,
                self._permits.may_accept,
                self._permits.one_waits,
                self._events,
            )
            for listener, greeter in listeners
        ]
        self._acceptors += acceptors
        self._greeters.update(greeter for _, greeter in listeners)
        for acceptor in acceptors:
            self._start(acceptor, io_loop)
        self._expiry.start(asyncio_loop(io_loop))
        for address in [acceptor.listener.getsockname() for acceptor in acceptors]:  # a subscriber may stop the server
            self._events.emit(Event("listen", f"listening on {show(address)}", address=address))

    def move_to(self, io_loop: IOLoop) -> None:
        """Accept on another loop."""
        for acceptor in self._acceptors:
            self._start(acceptor, io_loop)

    def _start(self, acceptor: Acceptor, io_loop: IOLoop) -> None:
        acceptor.start(io_loop)
        if self.suspended:
            acceptor.pause()

    def suspend(self) -> None:
        """Accept nothing; clients queue."""
        self.suspended = True
        for acceptor in self._acceptors:
            acceptor.pause()

    def resume(self) -> None:
        """Accept again after :meth:`suspend`."""
        self.suspended = False
        self.go_on()

    def go_on(self) -> None:
        """There is a place again."""
        if not self.suspended:
            for acceptor in self._acceptors:
                acceptor.resume()

    def accept_queued(self) -> None:
        """Take in whoever queues, as far as there are places."""
        for acceptor in self._acceptors:
            acceptor.accept_queued()

    def close(self) -> None:
        """Close them all."""
        acceptors, self._acceptors = self._acceptors, []
        for acceptor in acceptors:
            acceptor.close()
        for listener, _ in self.take_held():
            listener.close()
        self._retired.update(self._greeters)
        self._greeters.clear()
        self.suspended = False
        self._expiry.stop()

    def _certificates(self) -> list[Certificates]:
        return [greeter.certificates for greeter in self.greeters if greeter.certificates is not None]


def _check_listener(listener: socket.socket, known: set[int]) -> None:
    problem = why_not_listening(listener)
    if problem is None and listener.fileno() in known:
        problem = "was added before"
    if problem is not None:
        raise OptionError("sockets", listener, problem)
