"""The options of a server: names, defaults, limits, and the reasons for them.

Invalid values raise `OptionError` here, before anything is bound.
"""

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, cast, get_args

from .errors import OptionError
from .runtime.checks import check_int, did_you_mean, is_int, is_number, nearest

MEBIBYTE = 1 << 20

READ_CHUNK_SIZE = 65536
"""Most bytes received at once. From 128 KiB on, malloc maps and unmaps memory for each call: four times slower."""

LINGER = 2.0
"""Seconds that a close waits for the peer's EOF: enough for a lost packet or two (nginx waits 5 or more)."""

WRITE_TIMEOUT = 30.0
"""Seconds within which a peer must receive some of the queued data."""

HANDSHAKE_TIMEOUT = 10.0
"""Seconds for a TLS handshake, which takes two round trips and some milliseconds (Netty has 10, Ranch 5)."""


Full = Literal["wait", "reject", "evict"]
"""What happens to a new client when the server is full."""


class Timeouts(NamedTuple):
    """How long a stream may wait for its client, in seconds; None for no limit. See `ServerOptions`."""

    idle: float | None
    read: float | None
    write: float | None


class Keepalive(NamedTuple):
    """TCP keepalive: when the kernel probes a silent peer. ::

        TCPServer(keepalive=Keepalive(idle=20, interval=5, probes=3))  # a lost peer is detected after 35 s

    :ivar idle: seconds of silence before the first probe; 60.
    :ivar interval: seconds between two probes; 10.
    :ivar probes: number of unanswered probes after which the connection fails with ETIMEDOUT; 6.
    """

    idle: int = 60
    interval: int = 10
    probes: int = 6


def check_size(name: str, value: float | None) -> int | None:
    """A size in bytes: an int, or a float's floor; None stays None, and ``math.inf`` becomes :data:`UNLIMITED`.

    :raises OptionError: if it is anything else, or less than 1.
    """
    if value is None:
        return None
    if not is_number(value) or not value >= 1:
        raise OptionError(name, value, "must be a number of bytes, 1 or more (math.inf for no limit)")
    return UNLIMITED if value >= UNLIMITED else int(value)


UNLIMITED = 1 << 62
"""What ``math.inf`` becomes: an integer above every real size."""


def check_timeout(name: str, value: float) -> float:
    """A duration in seconds.

    :raises OptionError: if it is not a number above 0, or infinite.
    """
    seconds = _seconds(value)
    if not 0 < seconds < math.inf:
        raise OptionError(name, value, "must be a number of seconds above 0 (None for no limit)")
    return seconds


def _seconds(value: object) -> float:
    if not is_number(value):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_optional_timeout(name: str, value: float | None) -> float | None:
    """A duration in seconds, or None for no limit.

    :raises OptionError: if it is anything else.
    """
    return None if value is None else check_timeout(name, value)


def check_count(name: str, value: float | None) -> int | None:
    """A count, 1 or more; None stays None, and ``math.inf`` becomes :data:`UNLIMITED`.

    :raises OptionError: if it is anything else.
    """
    if value is None:
        return None
    if value == math.inf:
        return UNLIMITED
    return check_int(name, value, 1, hint=" (math.inf for no limit)")


def check_rate(name: str, value: float | None) -> float | None:
    """Bytes per second, or None for no limit.

    :raises OptionError: if it is anything else.
    """
    rate = 1.0 if value is None else _seconds(value)
    if not 0 < rate < math.inf:
        raise OptionError(name, value, "must be a number of bytes per second above 0 (None for no limit)")
    return None if value is None else rate


def check_when_full(name: str, value: object) -> Full:
    """One of :data:`Full`.

    :raises OptionError: if it is anything else.
    """
    for choice in get_args(Full):
        if value == choice:
            return cast(Full, choice)
    raise OptionError(name, value, "must be 'wait', 'reject' or 'evict'")


def check_flag(name: str, value: object) -> bool:
    """True or False, not merely a truthy or falsy value.

    :raises OptionError: if it is anything else.
    """
    if not isinstance(value, bool):
        raise OptionError(name, value, "must be True or False")
    return value


def check_keepalive(name: str, value: object) -> Keepalive | None:
    """True for the default, False or None for no keepalive, or three numbers, each up to the maximum of Linux.

    :raises OptionError: if it is anything else.
    """
    if value is True:
        return Keepalive()
    if value is False or value is None:
        return None
    highest = (32767, 32767, 127)
    if isinstance(value, tuple) and len(value) == 3 and all(map(is_int, value, (1, 1, 1), highest)):
        return Keepalive(*value)
    raise OptionError(
        name, value, "must be True, False or (idle, interval, probes): seconds from 1 to 32767, probes from 1 to 127"
    )


def check_kernel_size(name: str, value: object) -> int | None:
    """A buffer size in bytes, up to 2 GiB (the kernel usually grants less); None stays None.

    :raises OptionError: if it is anything else.
    """
    if value is None:
        return None
    return check_int(name, value, 1, (1 << 31) - 1, "a number of bytes", ", or None for the kernel's choice")


def check_linger(name: str, value: float) -> float:
    """A duration in seconds, or 0.

    :raises OptionError: if it is not a number, below 0, or infinite.
    """
    seconds = _seconds(value)
    if not 0 <= seconds < math.inf:
        raise OptionError(name, value, "must be a number of seconds, or 0 to close with a reset")
    return seconds


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The options of a `TCPServer`: its keyword arguments, and its attribute ``options``. ::

        server = EchoServer(max_buffer_size=4096, linger=5)
        assert server.options.max_write_buffer_size == 1 << 20

    :raises OptionError: if a value is invalid.

    :ivar max_buffer_size: most bytes that a stream buffers unread; 1 MiB. A read that needs more closes the stream,
        reason ``buffer_full``. (With Tornado's 100 MiB one client's endless line took 105 MB.)
    :ivar max_write_buffer_size: most bytes queued on a stream; 1 MiB. More raises `StreamBufferFullError` in the
        handler. A single larger write is accepted if the queue is empty, or has only what was corked.
    :ivar read_chunk_size: most bytes received at once; 64 KiB, and never more than half of ``max_buffer_size``.
    :ivar cork: whether replies to pipelined requests are sent together; True. See `BaseIOStream.write`.
    :ivar close_on_return: whether the stream is closed, after all output was sent, when a coroutine ``handle_stream``
        returns; True. It stays open if a read is pending or a close callback is set. A plain function never closes
        it. Tornado never closes: False.
    :ivar allow_half_open: whether a stream stays open after its client's EOF; False. See `BaseIOStream`.
    :ivar linger: seconds that a graceful close waits for the client's EOF after the client has received all output; 2.
        With 0 it closes with a reset, without waiting. Like the socket option of that name, but it never blocks the
        loop. A client that keeps sending extends it, up to 30 s.
    :ivar max_connections: most clients at a time, including those in a handshake. None: derived from the soft
        ``RLIMIT_NOFILE`` such that descriptors do not run out. 2 for each listener are subtracted, then 64, but at
        most half; the result is at most 10,000. 64 fewer if `handle_reject` may be called.
        `run` raises the soft limit first. ``math.inf`` for no limit. (Set a number if your handlers open files or
        connections for each client. `sendfile` takes a descriptor for each queued file, up to 16.)
    :ivar max_connections_per_ip: most clients at a time from one IPv4 address, or from one /64 of IPv6, the block that
        one customer usually has. With a PROXY header the client's address counts. Further clients are rejected,
        whatever ``when_full`` is. None: no limit.
    :ivar when_full: what happens to a new client when the server is full. "wait": it stays in the accept backlog
        until there is a place. "reject": it is closed, after `TCPServer.handle_reject`. "evict": it is accepted, and
        the stream that has waited longest for its client is closed, reason ``evicted``; if none is waiting, the new
        client is rejected.
    :ivar idle_timeout: seconds without received bytes, and without progress of queued output, after which a stream is
        closed, whatever its handler does; None. (Many protocols are silent for hours; ``keepalive`` detects lost
        clients.)
    :ivar read_timeout: seconds that a single read may take in all, including the wait for its first byte; None. It
        protects against clients that send a byte now and then. The stream is closed, while a read's own ``timeout``
        leaves it open.
    :ivar write_timeout: seconds after which a stream is closed with a reset if its client receives none of the queued
        data; 30. It also limits a graceful close, together with a minimum of 240 bytes per second over each minute;
        with None only that minimum applies.
    :ivar min_rate: least bytes per second that a client must send once a read has begun to receive, over each
        ``min_rate_window``; None. (Kestrel requires 240.) Unlike ``read_timeout`` it suits uploads of any length.
    :ivar min_rate_window: seconds over which ``min_rate`` is measured; 5.
    :ivar drain_timeout: seconds that `TCPServer.shutdown` gives handlers to finish; 15. None for no limit. Clients that
        are disconnected then get a reset if they have not received all output.
    :ivar drain_idle: seconds from the start of a shutdown in which a client may still begin a request; 0.5. After that,
        a handler that has replied and reads again gets a `StreamClosedError`.
    :ivar keepalive: how the kernel detects that a silent client is gone: True for ``Keepalive()``, which is 60 s of
        silence, then 6 probes, 10 s apart; a `Keepalive` or a tuple of three numbers; False for never.
    :ivar nodelay: whether small writes are sent at once, without Nagle's algorithm; True. The cork collects them
        already.
    :ivar send_buffer_size: bytes of the kernel's send buffer, ``SO_SNDBUF``; None: the kernel decides.
    :ivar receive_buffer_size: bytes of the kernel's receive buffer, ``SO_RCVBUF``; None: the kernel decides.
    :ivar handshake_timeout: seconds in which a client must complete its TLS handshake; 10. None for no limit.
    :ivar strict_validity: whether a certificate that has expired or is not valid yet raises; False: it is logged as an
        error and served.
    :ivar allow_legacy_tls: whether an `ssl.SSLContext` may allow TLS before 1.2; False.
    :ivar proxy_protocol: networks of the proxies in front of this server, such as ``["10.0.0.0/8"]``. Each connection
        must come from one of them, and begin with a PROXY header, version 1 or 2, which contains the client's address.
        Other connections are closed, reason ``proxy_error``. None: no header is expected.
    :ivar proxy_header_timeout: seconds in which that header must arrive; 5 (the specification asks for at least 3).
        None for no limit.
    """

    max_buffer_size: int = MEBIBYTE
    max_write_buffer_size: int = MEBIBYTE
    read_chunk_size: int = READ_CHUNK_SIZE
    cork: bool = True
    close_on_return: bool = True
    allow_half_open: bool = False
    linger: float = LINGER
    max_connections: float | None = None
    max_connections_per_ip: float | None = None
    when_full: Full = "wait"
    idle_timeout: float | None = None
    read_timeout: float | None = None
    write_timeout: float | None = WRITE_TIMEOUT
    min_rate: float | None = None
    min_rate_window: float = 5.0
    drain_timeout: float | None = 15.0
    drain_idle: float = 0.5
    keepalive: bool | tuple[int, int, int] | None = True
    nodelay: bool = True
    send_buffer_size: int | None = None
    receive_buffer_size: int | None = None
    handshake_timeout: float | None = HANDSHAKE_TIMEOUT
    strict_validity: bool = False
    allow_legacy_tls: bool = False
    proxy_protocol: list[str] | tuple[str, ...] | None = None
    proxy_header_timeout: float | None = 5.0

    def __post_init__(self) -> None:
        for check, names in CHECKS:
            for name in names:
                object.__setattr__(self, name, check(name, getattr(self, name)))
        for name, default in SIZES.items():
            object.__setattr__(self, name, check_size(name, getattr(self, name)) or default)

    @property
    def timeouts(self) -> Timeouts:
        """``idle_timeout``, ``read_timeout`` and ``write_timeout``: the defaults of a server's streams."""
        return Timeouts(self.idle_timeout, self.read_timeout, self.write_timeout)

    @classmethod
    def of(cls, keywords: dict[str, Any]) -> "ServerOptions":
        """Options from the keywords of a call.

        :raises OptionError: if a value is invalid.
        :raises TypeError: if there is no such option; the nearest name is suggested.
        """
        return cls().replaced(keywords)

    @classmethod
    def of_class(cls, server: type) -> "ServerOptions":
        """Options from the attributes of a class of servers and of its bases.

        An attribute whose name resembles an option causes a `UserWarning`: subclasses may have any attributes.

        :raises OptionError: if a value is invalid.
        """
        own = {}
        for each in reversed(server.__mro__):
            for name, value in vars(each).items():
                if hasattr(value, "__get__"):
                    continue  # a method, or a property
                if name in NAMES:
                    own[name] = value
                elif near := _option_resembling(name):
                    text = f"{each.__name__}.{name} is no option of a server: did you mean {near!r}?"
                    warnings.warn(text, stacklevel=4)
        return cls.of(own)

    def replaced(self, changes: dict[str, Any]) -> "ServerOptions":
        """The same options, but for ``changes``.

        :raises OptionError: if a value is invalid.
        :raises TypeError: if there is no such option; the nearest name is suggested.
        """
        for name in changes:
            if name not in NAMES:
                raise TypeError(f"no such option: {name!r} ({did_you_mean(name, NAMES)})")
        return replace(self, **changes)


TYPO_SIMILARITY = 0.9
"""How similar a misspelt attribute is to the option that was meant: one letter too many or too few."""

NAMES = tuple(field.name for field in fields(ServerOptions))


@functools.lru_cache
def _option_resembling(name: str) -> str | None:
    """The option that an attribute was probably meant to be. The search takes 0.1 ms, and each server asks again."""
    return nearest(name, NAMES, TYPO_SIMILARITY)


SIZES = {"max_buffer_size": MEBIBYTE, "max_write_buffer_size": MEBIBYTE, "read_chunk_size": READ_CHUNK_SIZE}
"""Options where None means the default, as in Tornado."""

CHECKS: tuple[tuple[Callable[[str, Any], Any], tuple[str, ...]], ...] = (
    (
        check_flag,
        ("cork", "close_on_return", "allow_half_open", "nodelay", "strict_validity", "allow_legacy_tls"),
    ),
    (check_kernel_size, ("send_buffer_size", "receive_buffer_size")),
    (check_count, ("max_connections", "max_connections_per_ip")),
    (check_when_full, ("when_full",)),
    (
        check_optional_timeout,
        (
            "idle_timeout",
            "read_timeout",
            "write_timeout",
            "drain_timeout",
            "handshake_timeout",
            "proxy_header_timeout",
        ),
    ),
    (check_timeout, ("min_rate_window", "drain_idle")),
    (check_rate, ("min_rate",)),
    (check_linger, ("linger",)),
    (check_keepalive, ("keepalive",)),
)

REPLACEABLE = frozenset(
    {
        "max_connections",
        "max_connections_per_ip",
        "when_full",
        "idle_timeout",
        "read_timeout",
        "write_timeout",
        "min_rate",
        "min_rate_window",
        "drain_timeout",
        "drain_idle",
        "handshake_timeout",
        "proxy_header_timeout",
        "max_buffer_size",
        "max_write_buffer_size",
        "read_chunk_size",
    }
)
"""Options that can be replaced while a server runs: limits and timeouts."""
