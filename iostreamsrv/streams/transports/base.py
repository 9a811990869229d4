"""What every transport can do."""

import errno
import os
from typing import ClassVar, Protocol

from ...errors import CloseReason
from ..file_region import FileRegion

SMALL_FILE_CHUNK = 65536
"""Bytes of a file that are read into memory at once, where the kernel cannot send them by itself."""


class Carrier(Protocol):
    """What each message passes: a transport, or, for a plain socket, the socket itself."""

    def recv(self, size: int, /) -> bytes:
        """Receive up to ``size`` bytes; b"" at EOF, `BlockingIOError` where there are none now."""

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        """Send what can be sent now: how many bytes."""


class Transport:
    """Moves bytes, without ever waiting. Subclasses override what they have.

    :cvar has_half_close: whether one direction can be ended: :meth:`shutdown_write` works.
    :cvar layered: whether it does more than the kernel: it holds bytes that were received and not given, and sends
        bytes that nobody wrote. Then a stream asks it for :meth:`pending` and the methods below that.
    :cvar empties: whether a receive that gives less than it was asked for has emptied the kernel's buffer. A terminal
        gives a line at a time, and a user's method as little as it likes.
    :ivar incomplete: the last receive found something, but no byte of it is data: a part of a TLS record, say.
    :ivar stuck: the last receive caused output of the transport's own, and the kernel has no room for it.
    :cvar file_chunk: most bytes of a file to send at once.
    """

    __slots__ = ()

    has_half_close: ClassVar[bool] = False
    layered: ClassVar[bool] = False
    empties: ClassVar[bool] = False
    file_chunk: ClassVar[int] = SMALL_FILE_CHUNK
    incomplete: bool = False
    stuck: bool = False

    def carrier(self) -> Carrier:
        """What has the same ``recv`` and ``send``, and is faster."""
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

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """As :meth:`recv`, into ``buffer``: how many bytes, 0 at EOF."""
        chunk = self.recv(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send what can be sent of ``data`` now: how many bytes.

        :raises BlockingIOError: none can be sent now (0 says the same).
        :raises OSError: the connection is broken.
        """
        raise NotImplementedError

    def sendfile(self, region: FileRegion, size: int) -> int | None:
        """Send up to ``size`` bytes of a file: how many, 0 where there is no room, None where it has become shorter."""
        chunk = region.read(size)
        return self.send(chunk) if chunk else None

    def shutdown_write(self) -> bool:
        """Send EOF; False if something has to leave before, so this is to be called again when there is room.

        :raises OSError: it could not be sent.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def reset(self) -> None:
        """Have :meth:`close` tell the peer that data is missing, where there is a way to."""

    def detach(self) -> None:
        """Leave the descriptor alone: somebody else has closed it, and its number may be another's."""

    def close(self) -> None:
        """Close the descriptor."""
        raise NotImplementedError

    def error(self) -> Exception | None:
        """The error pending on the descriptor, if any."""
        return None

    def has_input(self) -> bool:
        """Whether there is something to receive, or EOF, as far as one can see without receiving."""
        return False

    def unsent(self) -> int:
        """Bytes that the kernel has taken and that a broken connection would lose."""
        return 0

    def untaken(self) -> int:
        """Bytes that count as sent and that the peer has not taken yet; 0 where nobody can tell."""
        return 0

    # ---- for layered transports

    def pending(self) -> bool:
        """Whether :meth:`recv` may give more without the kernel saying so, as of the last one."""
        return False

    def partial(self) -> int:
        """Bytes that were received, and of which :meth:`recv` has given nothing yet."""
        return 0

    def own_output(self) -> int:
        """Bytes to be sent that nobody wrote, and that the kernel has not taken yet."""
        return 0

    def committed(self) -> int:
        """Bytes of what is to be sent next that must be sent, as a part of what they became is on its way."""
        return 0

    def flush(self) -> bool:
        """Send what waits in the transport; whether all of it has left.

        :raises OSError: the connection is broken.
        """
        return True

    def send_close_notify(self) -> bool:
        """Tell the peer that no more is sent, where the transport has words for it; whether these have left."""
        return True

    def leave_silently(self) -> None:
        """Close without telling the peer."""

    def eof_reason(self) -> CloseReason:
        """How the peer's side ended: ``eof``, or ``truncated`` where it is not certain that it has sent all."""
        return CloseReason.EOF
