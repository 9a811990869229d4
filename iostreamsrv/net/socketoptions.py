"""The socket options that follow from a server's options."""

import socket
import struct

from ..options import Keepalive, ServerOptions

_TCP_KEEPIDLE = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # the latter is macOS's name


def set_socket_options(sock: socket.socket, options: ServerOptions) -> None:
    """Set the socket options of a listener or a connection.

    On Linux, BSD, macOS and Windows a TCP connection inherits all of them from its listener, so they cost nothing per
    client.

    :raises OSError: the kernel refuses a value.
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
        # Only 0, which makes close() reset the connection: with a longer time the kernel's close() blocks.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _set_keepalive(sock: socket.socket, keepalive: object) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, isinstance(keepalive, Keepalive))
    if isinstance(keepalive, Keepalive) and _TCP_KEEPIDLE is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_KEEPIDLE, keepalive.idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, keepalive.interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, keepalive.probes)
