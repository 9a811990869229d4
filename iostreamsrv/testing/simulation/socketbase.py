"""What a simulated socket is: its addresses, its options, and how its calls fail.

It is a `socket.socket`, for those who ask ``isinstance``, but it has no descriptor of the system, and all its methods
are its own.
"""

import errno
import socket
import struct
from collections import deque
from typing import Any, NoReturn, Protocol, Self

from ...streams.transports.base import would_block
from .faults import BROKEN_ERRORS, Injector
from .flow import CONNECTED, LISTENING, NEW, Draw, End, Flow, Wire
from .polling import Descriptors, File, fail

Address = Any


class SocketNetwork(Wire, Descriptors, Protocol):
    """What sockets need of the network.

    :ivar injector: decides whether calls fail.
    :ivar failing: whether they may.
    :ivar draw: draws for what belongs to no connection.
    """

    injector: Injector
    failing: bool
    draw: Draw

    def draws_of(self, name: str) -> Draw:
        """What draws for the connection of this name."""

    def new_number(self, file: File) -> int:
        """A descriptor.

        :raises OSError: there is none left.
        """

    def bind(self, socket: Any, address: Address) -> Address:
        """Reserve an address; the address with its port."""

    def listen(self, socket: Any) -> None:
        """Let connections to its address come to this socket."""

    def unlisten(self, socket: Any) -> None:
        """No more."""

    def listener(self, family: int, address: Address) -> Any:
        """Who listens on an address."""

    def source_for(self, family: int, address: Address) -> Address:
        """The address of an unbound socket that connects to ``address``."""

    def new_label(self) -> str:
        """A name for a Unix socket that has none."""

    def connected(self, client: Any, server: Any) -> None:
        """Note a connection."""


class SocketBase(End, socket.socket):
    """A stream socket of a simulation: what it is, and its options.

    :ivar state: whether it listens, connects, is connected.
    :ivar error: the errno that is pending (SO_ERROR).
    :ivar draw: what draws for its connection.
    :ivar bandwidth: bytes per second in each direction, once connected; None for no limit.
    :ivar inflow: what arrives.
    :ivar outflow: what is sent.
    :ivar queue: of a listener, what waits to be accepted.
    :ivar half_open: of a listener, connections whose handshake is not over.
    """

    def __init__(self, network: SocketNetwork, family: int, kind: int = socket.SOCK_STREAM) -> None:
        # Not socket.socket's, which would open a descriptor.
        File.__init__(self)
        if kind & ~(getattr(socket, "SOCK_NONBLOCK", 0) | getattr(socket, "SOCK_CLOEXEC", 0)) != socket.SOCK_STREAM:
            fail(errno.EPROTONOSUPPORT)
        self.network = network
        self.unix = family not in (socket.AF_INET, socket.AF_INET6)
        self.host = ""
        self.bandwidth: float | None = None
        self.draw = network.draw
        self.state = NEW
        self.error = 0
        self.address_family = socket.AddressFamily(family)
        self.blocking_for: float | None = None
        self.address: Address = "" if self.unix else ("0.0.0.0" if family == socket.AF_INET else "::", 0)
        self.peer_address: Address = None
        self.label = self.peer_label = ""  # of a Unix socket without a name, from its connect on
        self.options: dict[tuple[int, int], Any] = {}
        self.resets = False
        self.shut_read = self.shut_write = self.closed = False
        self.backlog = 0
        self.half_open = 0
        self.queue: deque[Any] = deque()
        self.inflow: Flow | None = None
        self.outflow: Flow | None = None

    # ---- what it is

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET, AF_INET6 or AF_UNIX."""
        return self.address_family

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
        return self.blocking_for

    @property
    def name(self) -> str:
        """For the trace: both addresses."""
        peer = "" if self.peer_address is None else f">{self.peer_name}"
        return f"{self.own_name}{peer}"

    @property
    def own_name(self) -> str:
        """For the trace: the address, or what stands for one."""
        return self.label or shown(self.address)

    @property
    def peer_name(self) -> str:
        """Likewise, of the peer."""
        return self.peer_label or shown(self.peer_address)

    def __repr__(self) -> str:
        return f"<SimulatedSocket {self.number} {self.name}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def setblocking(self, flag: bool) -> None:
        self.blocking_for = None if flag else 0.0

    def settimeout(self, value: float | None) -> None:
        self.blocking_for = value

    def gettimeout(self) -> float | None:
        return self.blocking_for

    def getblocking(self) -> bool:
        return self.blocking_for != 0.0

    def get_inheritable(self) -> bool:
        return False

    def set_inheritable(self, inheritable: bool) -> None:
        """It has no meaning."""

    def getsockname(self) -> Address:
        self._check_open()
        return self.address

    def getpeername(self) -> Address:
        self._check_open()
        if self.state != CONNECTED:
            fail(errno.ENOTCONN)
        return self.peer_address

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        self._check_open()
        if level == socket.SOL_SOCKET:
            if option == socket.SO_ERROR:
                number, self.error = self.error, 0
                return number
            known = {
                socket.SO_TYPE: int(socket.SOCK_STREAM),
                socket.SO_ACCEPTCONN: int(self.state == LISTENING),
                getattr(socket, "SO_DOMAIN", -1): int(self.address_family),
                getattr(socket, "SO_PROTOCOL", -1): self.proto,
            }
            if option in known:
                return known[option]
        return self.options.get((level, option), bytes(size) if size else 0)

    def setsockopt(self, level: int, option: int, value: Any, size: int | None = None) -> None:
        self._check_open()
        self._fail("setsockopt")
        self.options[level, option] = value
        if level == socket.SOL_SOCKET:
            self.apply_option(option, value)

    def apply_option(self, option: int, value: Any) -> None:
        if option == socket.SO_LINGER:
            on, seconds = struct.unpack("ii", value)
            self.resets = bool(on) and not seconds
        elif option == socket.SO_SNDBUF and self.outflow is not None:
            self.outflow.send_buffer = max(2 * value, 4608)  # as Linux, which has a least value
        elif option == socket.SO_RCVBUF and self.inflow is not None:
            self.inflow.receive_buffer = max(2 * value, 2304)

    # ---- faults

    def _check_open(self) -> None:
        if self.closed:
            fail(errno.EBADF)

    def _fail(self, call: str) -> None:
        """Fail, if it is drawn that this call fails."""
        error = self.network.injector.error(call, self.name)
        if error is not None:
            if call == "accept" and error.errno == errno.ECONNABORTED:
                self.queue.popleft().give_up()
            elif call != "accept" and error.errno in BROKEN_ERRORS:
                self.break_off(0)
            raise error

    def _would_block(self) -> NoReturn:
        if self.blocking_for != 0.0:
            raise RuntimeError("a blocking call on a simulated socket would stop the simulation: setblocking(False)")
        raise would_block()

    def break_off(self, number: int) -> None:
        """There is no connection any more; with 0, this end knows that already."""
        raise NotImplementedError

    def give_up(self) -> None:
        """End a connection that will not be accepted."""
        raise NotImplementedError


def shown(address: Address) -> str:
    if isinstance(address, tuple):
        return f"{address[0]}:{address[1]}"
    return str(address) or "unix"
