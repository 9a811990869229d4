"""What a server's options ask of the kernel."""

import socket
import struct

from .options import Keepalive, ServerOptions

_TCP_KEEPIDLE = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # the latter is macOS's name


def prepare_listener(listener: socket.socket, options: ServerOptions) -> None:
    """Make ``listener`` non-blocking, and have the connections that come from it as ``options`` want them.

    An accepted socket inherits all of this from its listener, on Linux, BSD, macOS and Windows alike, so that it costs
    nothing for each client.
    """
    listener.setblocking(False)
    if options.send_buffer_size is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer_size)
    if options.receive_buffer_size is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.receive_buffer_size)
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, options.nodelay)
    _set_keepalive(listener, options.keepalive)
    if not options.linger:
        # Only to have closes reset the connection: with more seconds than 0 the kernel's lingering blocks.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _set_keepalive(listener: socket.socket, keepalive: object) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, isinstance(keepalive, Keepalive))
    if isinstance(keepalive, Keepalive) and _TCP_KEEPIDLE is not None:
        listener.setsockopt(socket.IPPROTO_TCP, _TCP_KEEPIDLE, keepalive.idle)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, keepalive.interval)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, keepalive.probes)
