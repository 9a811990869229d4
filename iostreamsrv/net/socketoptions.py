"""What a server's options ask of the kernel."""

import socket
import struct

from ..options import Keepalive, ServerOptions

_TCP_KEEPIDLE = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # the latter is macOS's name


def set_socket_options(sock: socket.socket, options: ServerOptions) -> None:
    """Have ``sock``, a listener or a connection, as ``options`` want it.

    A TCP connection inherits all of this from its listener, on Linux, BSD, macOS and Windows alike, so that it costs
    nothing for each client.

    :raises OSError: the kernel does not take it.
    """
    if options.send_buffer_size is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer_size)
    if options.receive_buffer_size is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.receive_buffer_size)
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, options.nodelay)
    _set_keepalive(sock, options.keepalive)
    if not options.linger:
        # Only to have closes reset the connection: with more seconds than 0 the kernel's lingering blocks.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _set_keepalive(sock: socket.socket, keepalive: object) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, isinstance(keepalive, Keepalive))
    if isinstance(keepalive, Keepalive) and _TCP_KEEPIDLE is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_KEEPIDLE, keepalive.idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, keepalive.interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, keepalive.probes)
