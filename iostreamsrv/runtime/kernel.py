"""The kernel: what makes sockets and epolls. No other module of the package asks the system for them by itself.

**The loop decides**, as it does for the clock. A loop with an attribute ``kernel`` (a simulation) gives what runs in it
sockets and descriptors of its own. All other loops, and code outside any loop, have the system's. So a simulation and a
real server may run in one process, and nothing is patched globally.

What is called for each message (``recv``, ``send``) are methods of the socket, and do not pass through here.
"""

import asyncio
import contextlib
import os
import select
import socket
import sys
from functools import cached_property
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
    import termios
except ImportError:  # on Windows, which does not report what its kernel holds
    fcntl = None

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None


Socket = socket.socket
"""The type of sockets, where ``socket`` is a method."""


class ListeningSocket(socket.socket):
    """A socket to listen on, which knows its family and type.

    ``accept()`` asks for both, for each connection. `socket.socket` makes an enum of them each time, which takes 3 % of
    the time that a short connection costs a server.
    """

    @cached_property
    def family(self) -> int:  # type: ignore[override]
        """See `socket.socket`."""
        return super().family

    @cached_property
    def type(self) -> int:  # type: ignore[override]
        """See `socket.socket`."""
        return super().type


class Kernel:
    """The system's kernel.

    :ivar has_files: whether the path of a Unix socket is a file, and ``os.sendfile`` knows the sockets.
    :ivar has_threads: whether other threads may run beside the loop, such as the watchdog's.
    """

    has_files = True
    has_threads = True

    def socket(self, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A new socket.

        :raises OSError: there is no descriptor left, or no such family.
        """
        return socket.socket(family, kind)

    def listening_socket(self, family: int) -> Socket:
        """A new socket to listen on.

        :raises OSError: as for :meth:`socket`.
        """
        return ListeningSocket(family, socket.SOCK_STREAM)

    def epoll(self) -> "select.epoll":  # quoted: some systems have none
        """A new epoll."""
        return select.epoll()

    def open_spare(self) -> int:
        """A descriptor that is used for nothing, but to be closed when there is no other.

        :raises OSError: there is none left.
        """
        return os.open(os.devnull, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def close_spare(self, number: int) -> None:
        """Close what :meth:`open_spare` returned."""
        os.close(number)

    def descriptor_limit(self) -> int | None:
        """How many descriptors there may be (RLIMIT_NOFILE); None for no limit."""
        if resource is None:
            return None
        soft: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return None if soft == resource.RLIM_INFINITY else soft

    def unsent(self, number: int) -> int:
        """Bytes that the kernel has taken for a socket and the peer has not acknowledged; 0 if it does not say."""
        if fcntl is None or number < 0:
            return 0
        count = bytearray(4)
        with contextlib.suppress(OSError):
            fcntl.ioctl(number, termios.TIOCOUTQ, count)
        return int.from_bytes(count, sys.byteorder)


SYSTEM = Kernel()


def kernel_of(loop: asyncio.AbstractEventLoop) -> Kernel:
    """The kernel of what runs in ``loop``."""
    kernel: Kernel = getattr(loop, "kernel", SYSTEM)
    return kernel


def current_kernel() -> Kernel:
    """The kernel of the loop that runs in this thread; without one the system's."""
    loop = asyncio._get_running_loop()
    return SYSTEM if loop is None else kernel_of(loop)
