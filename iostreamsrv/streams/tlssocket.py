"""The ``socket`` attribute of a stream under TLS."""

import ssl
from typing import Any


class TLSSocket:
    """The ``socket`` attribute of a stream under TLS: what can be asked of a socket, and of an `ssl.SSLSocket`.

    It has no method that would send or receive past TLS, or take the descriptor from the stream. The error for such a
    method names the stream's method to use instead. ``shutdown()`` ends the TCP connection without a close_notify, as
    that of an `ssl.SSLSocket` does.
    """

    __slots__ = ("__weakref__", "_raw", "_tls")

    def __init__(self, raw: Any, tls: ssl.SSLObject) -> None:
        self._raw = raw
        self._tls = tls

    def __getattr__(self, name: str) -> Any:
        if name in _OF_TLS:
            return getattr(self._tls, name)
        if name in _OF_SOCKET:
            return getattr(self._raw, name)
        instead = _INSTEAD.get(name)
        hint = f": it would bypass TLS, use the stream's {instead}" if instead else ""
        raise AttributeError(f"the socket of a stream under TLS has no {name!r}{hint}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._tls.version()} over {self._raw!r}>"


_OF_SOCKET = frozenset(
    {
        "family",
        "fileno",
        "get_inheritable",
        "getblocking",
        "getpeername",
        "getsockname",
        "getsockopt",
        "gettimeout",
        "proto",
        "set_inheritable",
        "setsockopt",
        "shutdown",
        "timeout",
        "type",
    }
)

_OF_TLS = frozenset(
    {
        "cipher",
        "compression",
        "context",
        "get_channel_binding",
        "get_unverified_chain",
        "get_verified_chain",
        "getpeercert",
        "pending",
        "selected_alpn_protocol",
        "selected_npn_protocol",
        "server_hostname",
        "server_side",
        "session",
        "session_reused",
        "shared_ciphers",
        "version",
    }
)

_READS = "read_bytes() or another of its reads"
_INSTEAD = {
    "close": "close() or aclose()",
    "connect": "connect()",
    "connect_ex": "connect()",
    "detach": "close() or aclose()",
    "do_handshake": "wait_for_handshake()",
    "dup": "methods only",
    "makefile": "read and write methods",
    "read": _READS,
    "recv": _READS,
    "recv_into": "read_into()",
    "recvfrom": _READS,
    "recvfrom_into": "read_into()",
    "recvmsg": _READS,
    "recvmsg_into": "read_into()",
    "send": "write()",
    "sendall": "write()",
    "sendfile": "sendfile()",
    "sendmsg": "write()",
    "sendmsg_afalg": "write()",
    "sendto": "write()",
    "setblocking": "methods, which never block",
    "settimeout": "timeouts (timeout=, set_timeouts())",
    "share": "methods only",
    "unwrap": "send_eof() or aclose()",
    "write": "write()",
}
"""For each method that is missing: what to use of the stream instead."""
