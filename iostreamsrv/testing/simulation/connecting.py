"""How simulated sockets listen, connect and are accepted.

A listener queues as many as its backlog and one more. Then a SYN is dropped, and tried again after 1, 3, 7 s and so on.
A Unix socket says EAGAIN at once.
"""

import errno
import socket
from typing import Any

from .flow import CONNECTED, CONNECTING, LISTENING, NEW, Flow
from .polling import ALL, HANGUP, PEER_ENDED, READ, WRITE, fail
from .socketbase import Address, SocketBase

SYN_RETRY = 1.0
"""Seconds until a SYN is sent again for the first time; each time twice as long."""

SYN_TRIES = 6
"""How often. Then the connect has timed out, after 127 seconds."""

MOST_BACKLOG = 4096
"""Linux' somaxconn."""


class ConnectingSocket(SocketBase):
    """A socket that can listen and connect."""

    # ---- listening

    def bind(self, address: Address) -> None:
        self._check_open()
        self.address = self.network.bind(self, address)
        self.host = "unix" if self.unix else self.address[0]

    def listen(self, backlog: int = 128) -> None:
        self._check_open()
        if self.address in ("", ("0.0.0.0", 0), ("::", 0)):
            self.bind("" if self.unix else (self.address[0], 0))
        self.backlog = min(max(backlog, 0), MOST_BACKLOG)
        if self.state != LISTENING:
            self.network.listen(self)
            self.state = LISTENING

    def has_room(self) -> bool:
        """Whether the backlog has room for one more."""
        return len(self.queue) + self.half_open <= self.backlog

    def accept(self) -> tuple[Any, Address]:
        self._check_open()
        if self.state != LISTENING:
            fail(errno.EINVAL)
        if not self.queue:
            self._would_block()
        self._fail("accept")
        connection = self.queue[0]
        self.network.new_number(connection)
        self.queue.popleft()
        self.network.note(self.name, f"accepts {connection.name}")
        return connection, connection.peer_address

    def _child(self, client: "ConnectingSocket") -> "ConnectingSocket":
        """This end of a connection from ``client``."""
        child = type(self)(self.network, self.address_family)
        child.blocking_for = 0.0 if self.blocking_for == 0.0 else None
        child.options = dict(self.options)
        child.resets = self.resets
        child.address = client.peer_address
        child.peer_address, child.peer_label = client.address, client.label
        child.host = "unix" if self.unix else client.peer_address[0]
        child.state = CONNECTED
        return child

    # ---- connecting

    def connect(self, address: Address) -> None:
        number = self.connect_ex(address)
        if number:
            fail(number)

    def connect_ex(self, address: Address) -> int:
        self._check_open()
        if self.blocking_for != 0.0:
            self._would_block()
        if self.state != NEW:
            return errno.EISCONN if self.state == CONNECTED else errno.EALREADY
        if self.unix:
            return self._connect_unix(address)
        address = tuple(address)
        if self.address[1] == 0:
            self.bind(self.network.source_for(self.address_family, address))
        self.peer_address = address
        self.draw = self.network.draws_of(self.name)
        self.state = CONNECTING
        self.network.note(self.name, "connects")
        self._send_syn(0)
        return errno.EINPROGRESS

    def _connect_unix(self, address: Address) -> int:
        listener = self.network.listener(self.address_family, address)
        if listener is None:
            return errno.ECONNREFUSED
        if not listener.has_room():
            return errno.EAGAIN
        self.host = "unix"
        self.label = "" if self.address else self.network.new_label()
        self.peer_address = listener.address
        self._join(listener)
        listener.queue.append(self._peer())
        self.state = CONNECTED
        listener.wake(READ)
        self.wake(ALL & ~(HANGUP | PEER_ENDED))
        return 0

    def _peer(self) -> "ConnectingSocket":
        assert self.outflow is not None
        peer = self.outflow.target
        assert isinstance(peer, type(self))
        return peer

    def _join(self, listener: "ConnectingSocket") -> None:
        """Make the other end, and a flow in each direction."""
        child = listener._child(self)
        child.draw = self.draw
        there = Flow(self.network, self, child, self.name, self.draw, self.unix)
        back = Flow(self.network, child, self, child.name, self.draw, self.unix)
        there.bandwidth = back.bandwidth = self.bandwidth
        self.outflow, self.inflow = there, back
        child.inflow, child.outflow = there, back
        for end in (self, child):
            for (level, option), value in end.options.items():
                if level == socket.SOL_SOCKET and option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    end.apply_option(option, value)
        self.network.connected(self, child)

    def _send_syn(self, tries: int) -> None:
        network = self.network
        network.at(network.now + network.delay(self.draw), lambda: self._syn_arrives(tries))

    def _syn_arrives(self, tries: int) -> None:
        if self.state != CONNECTING:
            return
        network = self.network
        listener = network.listener(self.address_family, self.peer_address)
        away = network.apart(self.host, self.peer_address[0])
        if away or (listener is not None and not listener.has_room()):
            if tries >= SYN_TRIES:
                return self.break_off(errno.ETIMEDOUT)
            network.at(network.now + SYN_RETRY * 2**tries, lambda: self._syn_arrives(tries + 1))
        elif listener is None:
            network.at(network.now + network.delay(self.draw), lambda: self.break_off(errno.ECONNREFUSED))
        else:
            listener.half_open += 1
            network.at(network.now + network.delay(self.draw), lambda: self._syn_is_answered(listener))

    def _syn_is_answered(self, listener: "ConnectingSocket") -> None:
        listener.half_open -= 1
        if self.state != CONNECTING:
            return
        if listener.closed:
            return self.break_off(errno.ECONNREFUSED)
        self._join(listener)
        self.state = CONNECTED
        network, peer = self.network, self._peer()
        network.note(self.name, "is connected")
        listener.half_open += 1
        network.at(network.now + network.delay(self.draw), lambda: listener._is_established(peer))
        self.wake(WRITE)

    def _is_established(self, connection: "ConnectingSocket") -> None:
        self.half_open -= 1
        if self.closed:
            return connection.give_up()
        self.queue.append(connection)
        self.wake(READ)
