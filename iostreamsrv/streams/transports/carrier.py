"""The fastest way to receive from a socket and to send to it. ``carrier.pyx`` is the compiled twin."""

import operator
import socket

close_socket = operator.methodcaller("close")
"""Closes a socket; without a Python frame of our own."""


def carrier_of(sock: socket.socket) -> socket.socket:
    """What receives from ``sock`` and sends to it: here the socket itself."""
    return sock
