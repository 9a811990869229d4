"""The base of all transports."""

import errno
import os
from collections.abc import Callable
from typing import Protocol

from ...errors import CloseReason
from ..file_region import FileRegion

SMALL_FILE_CHUNK = 65536
"""Bytes of a file to read into memory at once, if the kernel cannot send the file."""


def would_block() -> BlockingIOError:
    """What a receive or a send raises that would have to wait."""
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def received(recv_into: Callable[[memoryview], int], size: int) -> bytes:
    """The up to ``size`` bytes that a ``recv_into`` receives: for what has no other way to receive."""
    scratch = bytearray(size)
    with memoryview(scratch) as view:
        count = recv_into(view)
    return bytes(scratch[:count])


class Carrier(Protocol):
    """What receives and sends each message: a transport or, for a plain socket, the socket itself."""

    def recv(self, size: int, /) -> bytes:
        """Receive up to ``size`` bytes; b"" at EOF; raise `BlockingIOError` if there are none now."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """As ``recv``, into ``buffer``; return how many bytes."""

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        """Send what can be sent now; return how many bytes."""


class Transport:
    """Moves bytes and never waits. Subclasses override what they support.

    :cvar has_half_close: whether output can end before input: :meth:`shutdown_write` works.
    :cvar layered: whether it does more than the kernel: it holds received bytes that :meth:`recv` has not given yet,
        and has output of its own, as TLS does. Only then does a stream call :meth:`pending` and the methods below it.
    :cvar empties: whether a receive that gives less than requested has emptied the kernel's buffer. (A terminal gives
        one line at a time, and a user's method may give any part.)
    :ivar incomplete: the last receive found bytes, but no data for the stream: a part of a TLS record, say.
    :ivar stuck: the last receive caused output of the transport's own, and the kernel has no room for it.
    :cvar file_chunk: most bytes of a file to send at once.
    """

    __slots__ = ()

    has_half_close = False
    layered = False
    empties = False
    file_chunk = SMALL_FILE_CHUNK
    incomplete = False
    stuck = False

    def carrier(self) -> Carrier:
        """The fastest object with the same ``recv`` and ``send``."""
        return self

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        raise NotImplementedError

    def recv(self, size: int) -> bytes:
        """Receive up to ``size`` bytes; b"" at EOF.

        :raises BlockingIOError: there are none now.
        :raises OSError: the connection is broken.
        """
        raise NotImplementedError

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:
        """As :meth:`recv`, into ``buffer``; return how many bytes, 0 at EOF."""
        chunk = self.recv(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send as much of ``data`` as can be sent now; return how many bytes.

        :raises BlockingIOError: none can be sent now (0 means the same).
        :raises OSError: the connection is broken.
        """
        raise NotImplementedError

    def sendfile(self, region: FileRegion, size: int) -> int | None:
        """Send up to ``size`` bytes of a file; return how many, 0 if there is no room, None if the file has become
        shorter."""
        chunk = region.read(size)
        return self.send(chunk) if chunk else None

    def shutdown_write(self) -> bool:
        """Send EOF. If other output must be sent first, return False; the caller calls again when there is room.

        :raises OSError: EOF could not be sent.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def reset(self) -> None:
        """Make :meth:`close` show the peer that data is missing, if the transport can."""

    def detach(self) -> None:
        """Give up the descriptor without closing it: other code has closed it, and its number may be reused."""

    def close(self) -> None:
        """Close the descriptor."""
        raise NotImplementedError

    def error(self) -> Exception | None:
        """The error pending on the descriptor, if any."""
        return None

    def has_input(self) -> bool:
        """Whether there is something to receive, as far as that is known without receiving."""
        return False

    def unsent(self) -> int:
        """Bytes that the kernel has taken and that a broken connection would lose."""
        return 0

    def untaken(self) -> int:
        """Bytes that count as sent and that the peer has not taken yet; 0 if that is not known."""
        return 0

    # ---- for layered transports

    def pending(self) -> bool:
        """Whether, after the last :meth:`recv`, another one may give more without a new event of the kernel."""
        return False

    def partial(self) -> int:
        """Bytes of a message that is not complete, so that :meth:`recv` has given nothing of it yet."""
        return 0

    def own_output(self) -> int:
        """Bytes of the transport's own output that the kernel has not taken yet."""
        return 0

    def committed(self) -> int:
        """How many of the next bytes to send are encrypted already, so that they must be sent."""
        return 0

    def flush(self) -> bool:
        """Send what waits in the transport; return whether all of it is sent.

        :raises OSError: the connection is broken.
        """
        return True

    def send_close_notify(self) -> bool:
        """Send close_notify, if the transport has it; return whether it is sent."""
        return True

    def leave_silently(self) -> None:
        """Make :meth:`close` send nothing to the peer."""

    def eof_reason(self) -> CloseReason:
        """How the peer's side ended: ``eof``, or ``truncated`` if the peer may not have sent everything."""
        return CloseReason.EOF
