"""Every option of a server: one frozen place that knows their names, defaults, limits and reasons.

What is wrong raises `OptionError` here, before anything is bound.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, cast, get_args

from .errors import OptionError
from .runtime.checks import check_int, did_you_mean, is_int, is_number, nearest

MEBIBYTE = 1 << 20

READ_CHUNK_SIZE = 65536
"""Most that is received at once. From 128 KiB on malloc maps and unmaps memory for each call, at a quarter of the
speed.
"""

LINGER = 2.0
"""Seconds a close waits for the peer's end: the time of a lost packet or two (nginx gives 5 and more)."""

WRITE_TIMEOUT = 30.0
"""Seconds in which a peer must take something of what is sent to it."""

HANDSHAKE_TIMEOUT = 10.0
"""Seconds for a TLS handshake, which takes two round trips and some milliseconds (Netty has 10, Ranch 5)."""


Full = Literal["wait", "reject", "evict"]
"""What becomes of a client that comes to a server that is full."""


class Timeouts(NamedTuple):
    """How long a stream may wait for its client, in seconds; None: as long as it likes. See `ServerOptions`."""

    idle: float | None
    read: float | None
    write: float | None


class Keepalive(NamedTuple):
    """When the kernel asks a silent peer whether it is still there: in seconds, TCP only. ::

        TCPServer(keepalive=Keepalive(idle=20, interval=5, probes=3))  # who vanished is found after 35 s

    :ivar idle: silence before the first question; 60.
    :ivar interval: from one question to the next; 10.
    :ivar probes: questions without an answer after which the connection is broken, with ETIMEDOUT; 6.
    """

    idle: int = 60
    interval: int = 10
    probes: int = 6


def check_size(name: str, value: float | None) -> int | None:
    """A size in bytes: an int, or a float's floor; None stays None, and ``math.inf`` becomes :data:`UNLIMITED`.

    :raises OptionError: anything else, or less than 1.
    """
    if value is None:
        return None
    if not is_number(value) or not value >= 1:
        raise OptionError(name, value, "must be a number of bytes, 1 or more (math.inf for no limit)")
    return UNLIMITED if value == math.inf else int(value)


UNLIMITED = 1 << 62
"""What ``math.inf`` becomes: more bytes than there are, yet an integer."""


def check_timeout(name: str, value: float) -> float:
    """A duration in seconds.

    :raises OptionError: not a number, NaN, not above 0, or infinite.
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

    :raises OptionError: anything else.
    """
    return None if value is None else check_timeout(name, value)


def check_count(name: str, value: float | None) -> int | None:
    """How many: 1 or more; None stays None, and ``math.inf`` becomes :data:`UNLIMITED`.

    :raises OptionError: anything else.
    """
    if value is None:
        return None
    if value == math.inf:
        return UNLIMITED
    return check_int(name, value, 1, hint=" (math.inf for no limit)")


def check_rate(name: str, value: float | None) -> float | None:
    """Bytes in a second, or None for no limit.

    :raises OptionError: anything else.
    """
    rate = 1.0 if value is None else _seconds(value)
    if not 0 < rate < math.inf:
        raise OptionError(name, value, "must be a number of bytes per second above 0 (None for no limit)")
    return None if value is None else rate


def check_when_full(name: str, value: object) -> Full:
    """One of :data:`Full`.

    :raises OptionError: anything else.
    """
    for choice in get_args(Full):
        if value == choice:
            return cast(Full, choice)
    raise OptionError(name, value, "must be 'wait', 'reject' or 'evict'")


def check_flag(name: str, value: object) -> bool:
    """True or False, nothing that is merely like one.

    :raises OptionError: anything else.
    """
    if not isinstance(value, bool):
        raise OptionError(name, value, "must be True or False")
    return value


def check_keepalive(name: str, value: object) -> Keepalive | None:
    """True for the default, False or None for none, or three numbers: the most of each is what Linux takes.

    :raises OptionError: anything else.
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
    """A size in bytes for the kernel, which takes no more than 2 GiB (and as a rule gives less); None stays None.

    :raises OptionError: anything else.
    """
    if value is None:
        return None
    return check_int(name, value, 1, (1 << 31) - 1, "a number of bytes", ", or None for the kernel's choice")


def check_linger(name: str, value: float) -> float:
    """A duration in seconds, or 0.

    :raises OptionError: not a number, NaN, below 0, or infinite.
    """
    seconds = _seconds(value)
    if not 0 <= seconds < math.inf:
        raise OptionError(name, value, "must be a number of seconds, or 0 to close with a reset")
    return seconds


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The options of a `TCPServer`, which takes them as keywords and has them as ``options``. ::

        server = EchoServer(max_buffer_size=4096, linger=5)
        assert server.options.max_write_buffer_size == 1 << 20

    :raises OptionError: one of them cannot have this value.

    :ivar max_buffer_size: most bytes a stream holds unread; 1 MiB. (Tornado's 100 MiB let one client's line without an
        end take 105 MB.) A read that needs more closes the stream, reason ``buffer_full``.
    :ivar max_write_buffer_size: most bytes queued on a stream; 1 MiB. More raises `StreamBufferFullError` in the
        handler. One larger write into an empty queue is taken.
    :ivar read_chunk_size: most bytes received at once; 64 KiB, and never over half of ``max_buffer_size``.
    :ivar cork: whether replies to pipelined requests are sent together; True. See `BaseIOStream.write`.
    :ivar close_on_return: whether a stream is closed, after all it was given has left, once a coroutine
        ``handle_stream`` returns; True. It is left open all the same if a read is pending or a close callback is set,
        and a plain function never closes it. Tornado never closes: False.
    :ivar allow_half_open: whether a stream stays open when its client has ended its side; False. See `BaseIOStream`.
    :ivar linger: seconds an ordered close waits, after the client has all that was sent, for the client to end its
        side; 2. 0 closes with a reset and without waiting. What the socket option of that name does, but it never
        blocks the loop. A client that goes on sending prolongs it, up to 30 s.
    :ivar max_connections: most clients at a time, those in their handshake included. None: the soft ``RLIMIT_NOFILE``,
        less 2 for each listener; of that 64 less, but at least half of it, and at most 10,000: so that descriptors do
        not run out; `run` raises that limit first. Where clients may be rejected, and are told so (`handle_reject`), it
        is 64 less. ``math.inf`` for no limit. (An application that opens files or connections of its own for each
        client had better give a number; `sendfile` takes a descriptor for each file that waits, up to 16.)
    :ivar max_connections_per_ip: most clients at a time from one IPv4 address, or one /64 of IPv6, which is what one
        customer has. With a PROXY header it is the client's address that counts. More are rejected, whatever
        ``when_full`` says. None: no limit.
    :ivar when_full: what becomes of one client more. "wait": it stays in the kernel's queue until there is a place; the
        permit is taken before the accept. "reject": it is closed, after `TCPServer.handle_reject`. "evict": it is
        taken, and of the streams that wait for their client the one that has waited longest is closed, reason
        ``evicted``; if none waits, the newcomer is rejected.
    :ivar idle_timeout: seconds after which a stream is closed that has received nothing, and of whose queued bytes none
        has left, whatever its handler does meanwhile; None, as many protocols are silent for hours, and ``keepalive``
        finds those who are gone.
    :ivar read_timeout: seconds that one read may take in all, however often bytes come, and the wait for the first one
        included; None. The guard against clients that send a byte now and then: such a stream is closed, where a
        read's own ``timeout`` leaves it open.
    :ivar write_timeout: seconds after which a stream is closed, with a reset, if its client takes nothing of what is
        queued; 30. It also limits the end of a stream that is being closed in order, together with 240 bytes per second
        over each minute; None: only that.
    :ivar min_rate: bytes per second that a read must be given once it has begun to come, over each
        ``min_rate_window``; None. (Kestrel asks for 240.) Unlike ``read_timeout`` it suits uploads of any length.
    :ivar min_rate_window: seconds over which that is counted; 5.
    :ivar drain_timeout: seconds that `TCPServer.shutdown` gives handlers to finish; 15. None for no limit. Who is cut
        off then gets a reset, if there is something it has not taken.
    :ivar drain_idle: seconds from the beginning of a shutdown in which a client may still begin a request; 0.5. From
        then on a handler that has answered, and reads again, learns of the end.
    :ivar keepalive: how the kernel finds out that a silent client is gone: True for ``Keepalive()``, which is after 60
        s of silence and 6 questions, 10 s apart; a `Keepalive` or such a tuple of three; False for never.
    :ivar nodelay: whether small writes leave at once, without Nagle's algorithm; True. The cork gathers them already.
    :ivar send_buffer_size: bytes of the kernel's buffer for what is sent, ``SO_SNDBUF``; None: the kernel decides.
    :ivar receive_buffer_size: bytes of the kernel's buffer for what is received, ``SO_RCVBUF``; None: likewise.
    :ivar handshake_timeout: seconds in which a client must have done its TLS handshake; 10. None for no
        limit.
    :ivar strict_validity: whether a certificate that has expired, or is not valid yet, raises; False: it is an error in
        the log, and serves.
    :ivar allow_legacy_tls: whether an `ssl.SSLContext` may allow TLS before 1.2; False.
    :ivar proxy_protocol: networks, such as ``["10.0.0.0/8"]``, of the proxies in front of this server. Each connection
        must come from one of them, and begin with a PROXY header, version 1 or 2; the client's address is the one in
        it. All others are closed, reason ``proxy_error``. None: no header is looked for.
    :ivar proxy_header_timeout: seconds in which that header must have come; 5 (the specification asks for 3 at least).
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
        """``idle_timeout``, ``read_timeout`` and ``write_timeout``, for a stream that has none of its own."""
        return Timeouts(self.idle_timeout, self.read_timeout, self.write_timeout)

    @classmethod
    def of(cls, keywords: dict[str, Any]) -> "ServerOptions":
        """Options from the keywords of a call.

        :raises OptionError: a value that cannot be.
        :raises TypeError: a name there is not; the nearest one is suggested.
        """
        return cls().replaced(keywords)

    @classmethod
    def of_class(cls, server: type) -> "ServerOptions":
        """Options from the attributes of a class of servers and of its bases.

        An attribute may have any name, so one that merely resembles an option is a `UserWarning`.

        :raises OptionError: a value that cannot be.
        """
        own = {}
        for each in reversed(server.__mro__):
            for name, value in vars(each).items():
                if hasattr(value, "__get__"):
                    continue  # a method, or a property
                if name in NAMES:
                    own[name] = value
                elif near := nearest(name, NAMES, TYPO_SIMILARITY):
                    text = f"{each.__name__}.{name} is no option of a server: did you mean {near!r}?"
                    warnings.warn(text, stacklevel=4)
        return cls.of(own)

    def replaced(self, changes: dict[str, Any]) -> "ServerOptions":
        """The same options, but for ``changes``.

        :raises OptionError: a value that cannot be.
        :raises TypeError: a name there is not; the nearest one is suggested.
        """
        for name in changes:
            if name not in NAMES:
                raise TypeError(f"no such option: {name!r} ({did_you_mean(name, NAMES)})")
        return replace(self, **changes)


TYPO_SIMILARITY = 0.9
"""How much an attribute resembles an option that it was probably meant to be: one letter too many, or too few."""

NAMES = tuple(field.name for field in fields(ServerOptions))

SIZES = {"max_buffer_size": MEBIBYTE, "max_write_buffer_size": MEBIBYTE, "read_chunk_size": READ_CHUNK_SIZE}
"""Those of which None means the default, as Tornado has it."""

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
"""What can be replaced while a server runs: limits and timeouts."""
