"""Simulated sockets: TCP as a program sees it, and Unix sockets.

A socket is a `socket.socket`, for those who ask ``isinstance``, but it has no descriptor of the system, and all its
methods are its own. Errors, and what epoll reports, are Linux':

- A FIN is EOF behind what came before it. A reset lets what came before be received, then it is ECONNRESET, once; if a
  FIN came before the reset, it is EPIPE, for the sender only.
- To close with unread bytes sends a reset, and so does what arrives at a socket that was closed.
- ``close`` sends what is in the send buffer, then FIN; with SO_LINGER of 0 seconds it sends a reset.
- A listener queues as many as its backlog and one more. Then a SYN is dropped, and tried again after 1, 3, 7 ... s. A
  Unix socket says EAGAIN at once.
"""

import errno
import os
import socket
import struct
from collections import deque
from typing import Any, NoReturn, Protocol

from .faults import BROKEN_ERRORS, Injector
from .flow import CONNECTED, CONNECTING, DEAD, LISTENING, NEW, Flow, Receiver, Wire
from .polling import ALL, ERROR, HANGUP, PEER_ENDED, READ, WRITE, Descriptors, File

SYN_RETRY = 1.0
"""Seconds until a SYN is sent again for the first time; each time twice as long."""

SYN_TRIES = 6
"""How often. Then the connect has timed out, after 127 seconds."""

MOST_BACKLOG = 4096
"""Linux' somaxconn."""

PEEK = int(socket.MSG_PEEK)

Address = Any


class SocketNetwork(Wire, Descriptors, Protocol):
    """What sockets need of the network.

    :ivar injector: decides whether calls fail.
    :ivar failing: whether they may.
    """

    injector: Injector
    failing: bool

    def new_number(self, file: File) -> int:
        """A descriptor.

        :raises OSError: there is none left.
        """

    def bind(self, socket: "SimulatedSocket", address: Address) -> Address:
        """Reserve an address; the address with its port."""

    def listen(self, socket: "SimulatedSocket") -> None:
        """Let connections to its address come to this socket."""

    def unlisten(self, socket: "SimulatedSocket") -> None:
        """No more."""

    def listener(self, family: int, address: Address) -> "SimulatedSocket | None":
        """Who listens on an address."""

    def source_for(self, family: int, address: Address) -> Address:
        """The address of an unbound socket that connects to ``address``."""

    def connected(self, client: "SimulatedSocket", server: "SimulatedSocket") -> None:
        """Note a connection."""


def _raise(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


class SimulatedSocket(Receiver, socket.socket):
    """A stream socket in a simulation."""

    def __init__(self, network: SocketNetwork, family: int, kind: int = socket.SOCK_STREAM) -> None:
        # Not socket.socket's, which would open a descriptor.
        File.__init__(self)
        if kind & ~(getattr(socket, "SOCK_NONBLOCK", 0) | getattr(socket, "SOCK_CLOEXEC", 0)) != socket.SOCK_STREAM:
            _raise(errno.EPROTONOSUPPORT)
        self.network = network
        self.unix = family not in (socket.AF_INET, socket.AF_INET6)
        self.host = ""
        self.bandwidth: float | None = None  # bytes per second in each direction, once connected
        self.state = NEW
        self.error = 0
        self._family = socket.AddressFamily(family)
        self._timeout: float | None = None
        self._address: Address = "" if self.unix else ("0.0.0.0" if family == socket.AF_INET else "::", 0)
        self._peer_address: Address = None
        self._options: dict[tuple[int, int], Any] = {}
        self._resets = False
        self._shut_read = self._shut_write = self._closed = False
        self._backlog = 0
        self._half_open = 0
        self._queue: deque[SimulatedSocket] = deque()
        self._in: Flow | None = None
        self._out: Flow | None = None

    # ---- what it is

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET, AF_INET6 or AF_UNIX."""
        return self._family

    @property
    def type(self) -> socket.SocketKind:
        """SOCK_STREAM."""
        return socket.SOCK_STREAM

    @property
    def proto(self) -> int:
        """IPPROTO_TCP; 0 for a Unix socket."""
        return 0 if self.unix else socket.IPPROTO_TCP

    @property
    def timeout(self) -> float | None:
        """See `gettimeout`."""
        return self._timeout

    @property
    def name(self) -> str:
        """For the trace: both addresses."""
        peer = "" if self._peer_address is None else f">{_shown(self._peer_address)}"
        return f"{_shown(self._address)}{peer}"

    def __repr__(self) -> str:
        return f"<SimulatedSocket {self.number} {self.name}>"

    def __enter__(self) -> "SimulatedSocket":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def setblocking(self, flag: bool) -> None:
        self._timeout = None if flag else 0.0

    def settimeout(self, value: float | None) -> None:
        self._timeout = value

    def gettimeout(self) -> float | None:
        return self._timeout

    def getblocking(self) -> bool:
        return self._timeout != 0.0

    def get_inheritable(self) -> bool:
        return False

    def set_inheritable(self, inheritable: bool) -> None:
        """It has no meaning."""

    def getsockname(self) -> Address:
        self._check_open()
        return self._address

    def getpeername(self) -> Address:
        self._check_open()
        if self.state != CONNECTED:
            _raise(errno.ENOTCONN)
        return self._peer_address

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        self._check_open()
        if level == socket.SOL_SOCKET:
            if option == socket.SO_ERROR:
                number, self.error = self.error, 0
                return number
            known = {
                socket.SO_TYPE: int(socket.SOCK_STREAM),
                socket.SO_ACCEPTCONN: int(self.state == LISTENING),
                getattr(socket, "SO_DOMAIN", -1): int(self._family),
                getattr(socket, "SO_PROTOCOL", -1): self.proto,
            }
            if option in known:
                return known[option]
        return self._options.get((level, option), bytes(size) if size else 0)

    def setsockopt(self, level: int, option: int, value: Any, size: int | None = None) -> None:
        self._check_open()
        self._fail("setsockopt")
        self._options[level, option] = value
        if level == socket.SOL_SOCKET:
            self._set(option, value)

    def _set(self, option: int, value: Any) -> None:
        if option == socket.SO_LINGER:
            on, seconds = struct.unpack("ii", value)
            self._resets = bool(on) and not seconds
        elif option == socket.SO_SNDBUF and self._out is not None:
            self._out.send_buffer = max(2 * value, 4608)  # Linux doubles it, for its own overhead, and has a least one
        elif option == socket.SO_RCVBUF and self._in is not None:
            self._in.receive_buffer = max(2 * value, 2304)

    # ---- faults

    def _check_open(self) -> None:
        if self._closed:
            _raise(errno.EBADF)

    def _fail(self, call: str) -> None:
        """Fail, if it is drawn that this call fails."""
        error = self.network.injector.error(call, self.name)
        if error is not None:
            if call == "accept" and error.errno == errno.ECONNABORTED:
                self._queue.popleft()._give_up()
            elif call != "accept" and error.errno in BROKEN_ERRORS:
                self._break(0)
            raise error

    def _would_block(self) -> NoReturn:
        if self._timeout != 0.0:
            raise RuntimeError("a blocking call on a simulated socket would stop the simulation: setblocking(False)")
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    # ---- listening

    def bind(self, address: Address) -> None:
        self._check_open()
        self._address = self.network.bind(self, address)
        self.host = "unix" if self.unix else self._address[0]

    def listen(self, backlog: int = 128) -> None:
        self._check_open()
        if self._address in ("", ("0.0.0.0", 0), ("::", 0)):
            self.bind("" if self.unix else (self._address[0], 0))
        self._backlog = min(max(backlog, 0), MOST_BACKLOG)
        if self.state != LISTENING:
            self.network.listen(self)
            self.state = LISTENING

    def has_room(self) -> bool:
        """Whether the backlog has room for one more."""
        return len(self._queue) + self._half_open <= self._backlog

    def accept(self) -> "tuple[SimulatedSocket, Address]":
        self._check_open()
        if self.state != LISTENING:
            _raise(errno.EINVAL)
        if not self._queue:
            self._would_block()
        self._fail("accept")
        connection = self._queue[0]
        self.network.new_number(connection)
        self._queue.popleft()
        self.network.note(self.name, f"accepts {connection.name}")
        return connection, connection._peer_address

    def _child(self, client: "SimulatedSocket") -> "SimulatedSocket":
        """This end of a connection from ``client``."""
        child = SimulatedSocket(self.network, self._family)
        child._timeout = 0.0 if self._timeout == 0.0 else None
        child._options = dict(self._options)
        child._resets = self._resets
        child._address = client._peer_address
        child._peer_address = client._address
        child.host = "unix" if self.unix else client._peer_address[0]
        child.state = CONNECTED
        return child

    # ---- connecting

    def connect(self, address: Address) -> None:
        number = self.connect_ex(address)
        if number:
            _raise(number)

    def connect_ex(self, address: Address) -> int:
        self._check_open()
        if self._timeout != 0.0:
            self._would_block()
        if self.state != NEW:
            return errno.EISCONN if self.state == CONNECTED else errno.EALREADY
        if self.unix:
            return self._connect_unix(address)
        address = tuple(address)
        if self._address[1] == 0:
            self.bind(self.network.source_for(self._family, address))
        self._peer_address = address
        self.state = CONNECTING
        self.network.note(self.name, "connects")
        self._send_syn(0)
        return errno.EINPROGRESS

    def _connect_unix(self, address: Address) -> int:
        listener = self.network.listener(self._family, address)
        if listener is None:
            return errno.ECONNREFUSED
        if not listener.has_room():
            return errno.EAGAIN
        self.host = "unix"
        self._peer_address = listener._address
        self._join(listener)
        listener._queue.append(self._peer())
        self.state = CONNECTED
        listener.wake(READ)
        self.wake(ALL & ~(HANGUP | PEER_ENDED))
        return 0

    def _peer(self) -> "SimulatedSocket":
        assert self._out is not None
        peer = self._out.target
        assert isinstance(peer, SimulatedSocket)
        return peer

    def _join(self, listener: "SimulatedSocket") -> None:
        """Make the other end, and a flow in each direction."""
        child = listener._child(self)
        there = Flow(self.network, self, child, self.name, self.unix)
        back = Flow(self.network, child, self, child.name, self.unix)
        there.bandwidth = back.bandwidth = self.bandwidth
        self._out, self._in = there, back
        child._in, child._out = there, back
        for end in (self, child):
            for (level, option), value in end._options.items():
                if level == socket.SOL_SOCKET and option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    end._set(option, value)
        self.network.connected(self, child)

    def _send_syn(self, tries: int) -> None:
        network = self.network
        network.at(network.now + network.delay(), lambda: self._syn_arrives(tries))

    def _syn_arrives(self, tries: int) -> None:
        if self.state != CONNECTING:
            return
        network = self.network
        listener = network.listener(self._family, self._peer_address)
        away = network.apart(self.host, self._peer_address[0])
        if away or (listener is not None and not listener.has_room()):
            if tries >= SYN_TRIES:
                return self._break(errno.ETIMEDOUT)
            network.at(network.now + SYN_RETRY * 2**tries, lambda: self._syn_arrives(tries + 1))
        elif listener is None:
            network.at(network.now + network.delay(), lambda: self._break(errno.ECONNREFUSED))
        else:
            listener._half_open += 1
            network.at(network.now + network.delay(), lambda: self._syn_is_answered(listener))

    def _syn_is_answered(self, listener: "SimulatedSocket") -> None:
        listener._half_open -= 1
        if self.state != CONNECTING:
            return
        if listener._closed:
            return self._break(errno.ECONNREFUSED)
        self._join(listener)
        self.state = CONNECTED
        network, peer = self.network, self._peer()
        network.note(self.name, "is connected")
        listener._half_open += 1
        network.at(network.now + network.delay(), lambda: listener._is_established(peer))
        self.wake(WRITE)

    def _is_established(self, connection: "SimulatedSocket") -> None:
        self._half_open -= 1
        if self._closed:
            return connection._give_up()
        self._queue.append(connection)
        self.wake(READ)

    # ---- receiving and sending

    def recv(self, size: int, flags: int = 0) -> bytes:
        flow = self._in
        if flow is None or self._closed:
            return self._recv_unconnected()
        if flow.size:
            if self.network.failing:
                self._fail("recv")
            return flow.receive(size, flags & PEEK)
        if self.error and not flow.ended:
            number, self.error = self.error, 0
            _raise(number)
        if flow.ended or self._shut_read or self.state == DEAD:
            return b""
        self._would_block()

    def _recv_unconnected(self) -> bytes:
        self._check_open()
        if self.error:
            number, self.error = self.error, 0
            _raise(number)
        if self.state == DEAD:
            return b""
        if self.state == CONNECTING:
            self._would_block()
        _raise(errno.ENOTCONN)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        with memoryview(buffer) as view, view.cast("B") as octets:
            chunk = self.recv(size or len(octets), flags)
            octets[: len(chunk)] = chunk
        return len(chunk)

    def send(self, data: Any, flags: int = 0) -> int:
        flow = self._out
        if flow is None or self.error or self._shut_write or self.state != CONNECTED:
            self._cannot_send()
        assert flow is not None
        if self.network.failing:
            self._fail("send")
        if not isinstance(data, bytes):
            data = memoryview(data).cast("B")
        if flow.direct and self._peer()._closed:
            _raise(errno.EPIPE)
        sent = flow.send(data)
        if not sent and len(data):
            self._would_block()
        return sent

    def _cannot_send(self) -> NoReturn:
        self._check_open()
        if self.error:
            number, self.error = self.error, 0
            _raise(number)
        if self.state == CONNECTING:
            self._would_block()
        _raise(errno.ENOTCONN if self.state == NEW and self.unix else errno.EPIPE)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """For what fits into the send buffer."""
        if self.send(data, flags) < len(memoryview(data).cast("B")):
            self._would_block()

    def sendmsg(self, buffers: Any, *arguments: Any) -> int:
        return self.send(b"".join(bytes(memoryview(buffer).cast("B")) for buffer in buffers))

    def unsent(self) -> int:
        """Bytes that were sent and not acknowledged (TIOCOUTQ)."""
        return 0 if self._out is None or self.state != CONNECTED else self._out.unsent()

    # ---- the end

    def shutdown(self, how: int) -> None:
        self._check_open()
        if self.state != CONNECTED or self._out is None or self._in is None:
            _raise(errno.ENOTCONN)
        if how in (socket.SHUT_WR, socket.SHUT_RDWR) and not self._shut_write:
            self._shut_write = True
            self.network.note(self.name, "FIN")
            self._out.end()
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            self._shut_read = True
        self.wake(ALL)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.unwatch()
        self.network.release(self)
        if self.state == LISTENING:
            self.network.unlisten(self)
            while self._queue:
                self._queue.popleft()._give_up()
        elif self.state == CONNECTED:
            self._end_connection()
        self.state = DEAD

    def _end_connection(self) -> None:
        assert self._in is not None and self._out is not None
        if self._in.size or self._resets:
            if self.unix and not self._in.size:
                return self._out.end()
            return self._send_reset()
        if not self._shut_write:
            self.network.note(self.name, "close")
            self._out.end()

    def _give_up(self) -> None:
        """Nobody accepts this any more."""
        self._closed = True
        if self.state == CONNECTED:
            self._send_reset()
            self.state = DEAD

    def _send_reset(self) -> None:
        assert self._out is not None
        self.network.note(self.name, "RST")
        self._out.reset()

    def detach(self) -> int:
        number = self.number
        self._closed = True
        self.unwatch()
        return number

    # ---- what the network tells

    def refuses(self) -> bool:
        """See `Receiver`."""
        if self.state == DEAD:
            if self._closed and self._out is not None and not self._resets:
                self._resets = True
                self._send_reset()
            return True
        return False

    def was_reset(self) -> None:
        """See `Receiver`."""
        assert self._in is not None
        self._break(errno.EPIPE if self._in.ended and not self.unix else errno.ECONNRESET)

    def can_send(self) -> None:
        """See `Sender`."""
        self.wake(WRITE)

    def timed_out(self) -> None:
        """See `Sender`."""
        self._break(errno.ETIMEDOUT)

    def _break(self, number: int) -> None:
        """There is no connection any more; with 0, this end has been told so."""
        if self.state == DEAD:
            return
        self.state = DEAD
        self.error = number
        if self._out is not None:
            if number in (0, errno.ETIMEDOUT):
                self._out.reset()
            else:
                self._out.discard()
        self.wake(ALL)

    def strike(self) -> None:
        """Both ends get a reset from somewhere on the way."""
        peer = self._peer()
        self.was_reset()
        self.network.at(self.network.now + self.network.delay(), peer.was_reset)

    def events(self, wanted: int = ALL) -> int:
        state = self.state
        if state == CONNECTED:
            return self._events_connected(wanted)
        if state == LISTENING:
            return READ if self._queue else 0
        if state == CONNECTING:
            return 0
        if state == NEW:
            return WRITE | HANGUP
        return READ | WRITE | HANGUP | PEER_ENDED | (ERROR if self.error else 0)

    def _events_connected(self, wanted: int) -> int:
        assert self._in is not None and self._out is not None
        events = 0
        if self._in.ended or self._shut_read:
            events = READ | PEER_ENDED
            if self._shut_write:
                events |= HANGUP
        elif self._in.size:
            events = READ
        if wanted & WRITE and (self._shut_write or self._out.is_writable()):
            events |= WRITE
        return events


def _shown(address: Address) -> str:
    if isinstance(address, tuple):
        return f"{address[0]}:{address[1]}"
    return str(address) or "unix"
