"""The bound sockets of a server, and their acceptors."""

import socket
import weakref
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from tornado.ioloop import IOLoop

from ..certs.certificates import Certificates
from ..certs.expiry import ExpiryTimer
from ..errors import ListenError, OptionError
from ..events import Event, Events
from ..net.acceptor import Acceptor, listen_if_bound, why_not_added
from ..options import ServerOptions
from ..runtime.addresses import show
from ..runtime.loops import asyncio_loop
from .connection import ConnectionSetup
from .limits import ConnectionLimits

Accepted = Callable[[ConnectionSetup, Context, socket.socket, Any], None]


class Listeners:
    """The bound sockets: those that are accepted on, and those that wait for `TCPServer.start`.

    :param accepted: called with each connection, its setup, and the context of which its client gets a copy.
    :param limits: decides whether one more connection may be accepted.
    :param default: the setup of listeners that are given no TLS options.
    """

    def __init__(self, accepted: Accepted, limits: ConnectionLimits, events: Events, default: ConnectionSetup) -> None:
        self._default = default
        self._setups: dict[ConnectionSetup, None] = {}  # of the bound sockets, in their order
        # of sockets closed since: a client that came through one may still be sending its PROXY header
        self._retired: weakref.WeakSet[ConnectionSetup] = weakref.WeakSet()
        self.suspended = False
        self._accepted = accepted
        self._limits = limits
        self._events = events
        self._acceptors: list[Acceptor] = []
        self._pending: list[tuple[socket.socket, ConnectionSetup]] = []
        self._expiry = ExpiryTimer(self._certificates)

    def __bool__(self) -> bool:
        """Whether the server accepts on any of them, or would if it were not suspended."""
        return bool(self._acceptors)

    @property
    def sockets(self) -> list[socket.socket]:
        """The sockets that are accepted on."""
        return [acceptor.listener for acceptor in self._acceptors]

    @property
    def addresses(self) -> list[Any]:
        """The bound addresses, as `socket.socket.getsockname` gives them."""
        return [listener.getsockname() for listener in (*self.sockets, *(held for held, _ in self._pending))]

    @property
    def setups(self) -> list[ConnectionSetup]:
        """The default, those of the bound sockets, and those of closed ones with a client that still sends a header."""
        retired = [setup for setup in self._retired if setup.reading_headers]
        return list(dict.fromkeys([self._default, *self._setups, *retired]))

    def setup_for(self, ssl_options: Any, options: ServerOptions) -> ConnectionSetup:
        """The setup for TLS options of a listener: None for the default, False for plain connections.

        :raises CertificateError: the options are unusable.
        """
        return self._default if ssl_options is None else ConnectionSetup.of(ssl_options, options)

    def set_default(self, setup: ConnectionSetup) -> None:
        """Use this setup for new clients of listeners that were given no TLS options."""
        self._default.certificates, self._default.trusted = setup.certificates, setup.trusted
        self._expiry.restart()

    def hold(self, sockets: list[socket.socket], setup: ConnectionSetup) -> None:
        """Keep sockets bound, with clients waiting in the backlog, until :meth:`take_held`."""
        self._pending += [(each, setup) for each in sockets]
        self._setups[setup] = None

    def take_held(self) -> list[tuple[socket.socket, ConnectionSetup]]:
        """Give the held sockets, for :meth:`accept_on`, and forget them."""
        pending, self._pending = self._pending, []
        return pending

    def accept_on(
        self,
        listeners: list[tuple[socket.socket, ConnectionSetup]],
        io_loop: IOLoop,
        prepare: Callable[[socket.socket], None],
    ) -> None:
        """Accept on all of these; those that are merely bound begin to listen. Their clients start with the context
        variables of this call.

        :param prepare: see `Acceptor`.
        :raises OptionError: a socket is closed, is neither listening nor bound, or was added before; then none is
            accepted on.
        :raises ListenError: the kernel refuses a socket option, or to listen; likewise.
        """
        known = {acceptor.listener.fileno() for acceptor in self._acceptors}
        for listener, _ in listeners:
            _check_listener(listener, known)
            known.add(listener.fileno())
        for listener, _ in listeners:
            listen_if_bound(listener)
        context = copy_context()
        acceptors = [
            self._acceptor(listener, partial(self._accepted, setup, context), prepare) for listener, setup in listeners
        ]
        self._acceptors += acceptors
        self._setups.update((setup, None) for _, setup in listeners)
        for acceptor in acceptors:
            self._start(acceptor, io_loop)
        self._expiry.start(asyncio_loop(io_loop))
        for address in [acceptor.listener.getsockname() for acceptor in acceptors]:  # a subscriber may stop the server
            self._events.emit(Event("listen", f"listening on {show(address)}", address=address))

    def _acceptor(
        self,
        listener: socket.socket,
        accepted: Callable[[socket.socket, Any], None],
        prepare: Callable[[socket.socket], None],
    ) -> Acceptor:
        limits = self._limits
        try:
            return Acceptor(listener, accepted, prepare, limits.may_accept, limits.mark_waiting, self._events)
        except OSError as error:
            address = show(listener.getsockname())
            raise ListenError(error.errno, f"cannot listen on {address}: {error.strerror}") from error

    def move_to(self, io_loop: IOLoop) -> None:
        """Accept on another loop."""
        for acceptor in self._acceptors:
            self._start(acceptor, io_loop)

    def _start(self, acceptor: Acceptor, io_loop: IOLoop) -> None:
        acceptor.start(io_loop)
        if self.suspended:
            acceptor.pause()

    def suspend(self) -> None:
        """Stop accepting; clients wait in the backlog."""
        self.suspended = True
        for acceptor in self._acceptors:
            acceptor.pause()

    def resume(self) -> None:
        """Accept again after :meth:`suspend`."""
        self.suspended = False
        self.resume_accepting()

    def resume_accepting(self) -> None:
        """Accept again where accepting has paused because the server was full."""
        if not self.suspended:
            for acceptor in self._acceptors:
                acceptor.resume()

    def accept_queued(self) -> None:
        """Accept all clients in the backlog, as far as there are descriptors."""
        for acceptor in self._acceptors:
            acceptor.accept_queued()

    def close(self) -> None:
        """Close all listeners."""
        acceptors, self._acceptors = self._acceptors, []
        for acceptor in acceptors:
            acceptor.close()
        for listener, _ in self.take_held():
            listener.close()
        self._retired.update(self._setups)
        self._setups.clear()
        self.suspended = False
        self._expiry.stop()

    def _certificates(self) -> list[Certificates]:
        return [setup.certificates for setup in self.setups if setup.certificates is not None]


def _check_listener(listener: socket.socket, known: set[int]) -> None:
    problem = why_not_added(listener)
    if problem is None and listener.fileno() in known:
        problem = "was added before"
    if problem is not None:
        raise OptionError("sockets", listener, problem)
