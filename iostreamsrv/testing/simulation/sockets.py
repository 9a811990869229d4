"""Simulated sockets: how they receive, send and end. Errors, and what epoll reports, are Linux':

- A FIN is EOF behind what came before it. A reset lets what came before be received, then it is ECONNRESET, once; if a
  FIN came before the reset, it is EPIPE, for the sender only.
- To close with unread bytes sends a reset, and so does what arrives at a socket that was closed.
- ``close`` sends what is in the send buffer, then FIN; with SO_LINGER of 0 seconds it sends a reset.
"""

import errno
import socket
from typing import Any, NoReturn

from .connecting import ConnectingSocket
from .flow import CONNECTED, CONNECTING, DEAD, LISTENING, NEW
from .polling import ALL, ERROR, HANGUP, PEER_ENDED, READ, WRITE, fail

PEEK = int(socket.MSG_PEEK)


class SimulatedSocket(ConnectingSocket):
    """A stream socket in a simulation."""

    # ---- receiving and sending

    def recv(self, size: int, flags: int = 0) -> bytes:
        flow = self.inflow
        if flow is None or self.closed:
            return self._recv_unconnected()
        if flow.size:
            if self.network.failing:
                self._fail("recv")
            inbox = flow.inbox
            if len(inbox) == 1 and flow.size <= size and not (flags or flow.pending or flow.direct):
                flow.size = 0
                return inbox.popleft()
            return flow.receive(size, flags & PEEK)
        if self.error and (self.unix or not flow.ended):
            number, self.error = self.error, 0
            fail(number)
        if flow.ended or self.shut_read or self.state == DEAD:
            return b""
        self._would_block()

    def _recv_unconnected(self) -> bytes:
        self._check_open()
        if self.error:
            number, self.error = self.error, 0
            fail(number)
        if self.state == DEAD:
            return b""
        if self.state == CONNECTING:
            self._would_block()
        fail(errno.ENOTCONN)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        with memoryview(buffer) as view, view.cast("B") as octets:
            chunk = self.recv(size or len(octets), flags)
            octets[: len(chunk)] = chunk
        return len(chunk)

    def send(self, data: Any, flags: int = 0) -> int:
        flow = self.outflow
        if flow is None or self.error or self.shut_write or self.state != CONNECTED:
            self._cannot_send()
        assert flow is not None
        if self.network.failing:
            self._fail("send")
        if type(data) is not bytes:
            data = memoryview(data).cast("B")
        if flow.direct and self._peer().closed:
            fail(errno.EPIPE)
        sent = flow.send(data)
        if not sent and len(data):
            self._would_block()
        return sent

    def _cannot_send(self) -> NoReturn:
        self._check_open()
        if self.error:
            number, self.error = self.error, 0
            fail(number)
        if self.state == CONNECTING:
            self._would_block()
        fail(errno.ENOTCONN if self.state == NEW and self.unix else errno.EPIPE)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """For what fits into the send buffer."""
        if self.send(data, flags) < len(memoryview(data).cast("B")):
            self._would_block()

    def sendmsg(self, buffers: Any, *arguments: Any) -> int:
        return self.send(b"".join(bytes(memoryview(buffer).cast("B")) for buffer in buffers))

    def unsent(self) -> int:
        """Bytes that were sent and not acknowledged (TIOCOUTQ)."""
        return 0 if self.outflow is None or self.state != CONNECTED else self.outflow.unsent()

    # ---- the end

    def shutdown(self, how: int) -> None:
        self._check_open()
        if self.state != CONNECTED or self.outflow is None:
            self.wake(ALL)
            fail(errno.ENOTCONN)
        if how in (socket.SHUT_WR, socket.SHUT_RDWR) and (self.unix or not self.shut_write):
            self.shut_write = True
            self.network.note(self.name, "FIN")
            self.outflow.end()
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            self.shut_read = True
            if self.unix:
                self._peer().shut_write = True
        self.wake(ALL)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.unwatch()
        self.network.release(self)
        if self.state == LISTENING:
            self.network.unlisten(self)
            while self.queue:
                self.queue.popleft().give_up()
        elif self.state == CONNECTED:
            self._end_connection()
        self.state = DEAD

    def _end_connection(self) -> None:
        assert self.inflow is not None and self.outflow is not None
        if self.unix:
            self._peer().shut_write = True
        if self.inflow.size or (self.resets and not self.unix):
            self._send_reset()
        elif self.unix or not self.shut_write:
            self.network.note(self.name, "close")
            self.outflow.end()

    def give_up(self) -> None:
        """End a connection that will not be accepted."""
        self.closed = True
        if self.state == CONNECTED:
            self._send_reset()
            self.state = DEAD

    def _send_reset(self) -> None:
        assert self.outflow is not None
        self.network.note(self.name, "RST")
        self.outflow.reset()

    def detach(self) -> int:
        number = self.number
        self.closed = True
        self.unwatch()
        return number

    # ---- what the network tells

    def refuses(self) -> bool:
        """See `End`."""
        if self.state == DEAD:
            if self.closed and self.outflow is not None and not self.resets:
                self.resets = True
                self._send_reset()
            return True
        return False

    def was_reset(self) -> None:
        """See `End`."""
        assert self.inflow is not None
        self.break_off(errno.EPIPE if self.inflow.ended and not self.unix else errno.ECONNRESET)

    def can_send(self) -> None:
        """See `End`."""
        self.wake(WRITE)

    def timed_out(self) -> None:
        """See `End`."""
        self.break_off(errno.ETIMEDOUT)

    def break_off(self, number: int) -> None:
        """There is no connection any more; with 0, this end has been told so."""
        if self.state == DEAD:
            return
        self.state = DEAD
        self.error = number
        if self.outflow is not None:
            if number in (0, errno.ETIMEDOUT):
                self.outflow.reset()
            else:
                self.outflow.discard()
        self.wake(ALL)

    def strike(self) -> None:
        """Both ends get a reset from somewhere on the way."""
        peer = self._peer()
        assert isinstance(peer, SimulatedSocket)
        self._reset_from_outside()
        self.network.at(self.network.now + self.network.delay(self.draw), peer._reset_from_outside)

    def _reset_from_outside(self) -> None:
        assert self.inflow is not None
        self.network.note(self.inflow.name, "RST from on the way arrives")
        self.was_reset()

    def events(self, wanted: int = ALL) -> int:
        inflow, outflow, state = self.inflow, self.outflow, self.state
        if state != CONNECTED or inflow is None or outflow is None:
            return self._events_unconnected()
        events = READ if inflow.size else 0
        if inflow.ended or self.shut_read:
            events = READ | PEER_ENDED | (HANGUP if self.shut_write else 0)
        if wanted & WRITE and (self.shut_write or outflow.is_writable()):
            events |= WRITE
        return events

    def _events_unconnected(self) -> int:
        state = self.state
        if state == LISTENING:
            return READ if self.queue else 0
        if state == CONNECTING:
            return 0
        if state == NEW:
            return WRITE | HANGUP
        return READ | WRITE | HANGUP | PEER_ENDED | (ERROR if self.error else 0)
