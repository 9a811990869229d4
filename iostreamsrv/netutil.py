"""Listening sockets of every kind, and the addresses behind a name."""

import tornado.netutil

from .net.acceptor import add_accept_handler
from .net.bind import bind_sockets, bind_unix_socket
from .net.inherited import inherited_sockets, socket_from_fd
from .net.resolve import Endpoint, resolve
from .runtime.exports import names_of

__all__ = [
    "Endpoint",
    "add_accept_handler",
    "bind_sockets",
    "bind_unix_socket",
    "inherited_sockets",
    "resolve",
    "socket_from_fd",
]

__getattr__, __dir__ = names_of(tornado.netutil, globals())
