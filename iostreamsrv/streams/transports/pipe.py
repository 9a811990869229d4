"""One end of a pipe as a transport."""

import errno
import io
import os
import select

from .base import Transport, would_block


class PipeTransport(Transport):
    """One end of a pipe. A pipe has one direction, so there is no half-close.

    :param fd: the descriptor; it is made non-blocking.
    """

    __slots__ = ("_file",)

    def __init__(self, fd: int) -> None:
        self._file = io.FileIO(fd, "r+")
        os.set_blocking(fd, False)

    def fileno(self) -> int:
        return -1 if self._file.closed else self._file.fileno()

    def recv(self, size: int) -> bytes:
        try:
            data: bytes | None = self._file.read(size)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            # The writing end: there is nothing to receive, but EOF when the reader is gone.
            data = b"" if self._is_broken() else None
        if data is None:  # also how io.FileIO says that a read would block
            raise would_block()
        return data

    def _is_broken(self) -> bool:
        poll = select.poll()
        poll.register(self._file.fileno(), 0)  # errors are always reported
        return bool(poll.poll(0))

    def send(self, data: bytes | bytearray | memoryview) -> int:
        return os.write(self._file.fileno(), data)

    def close(self) -> None:
        self._file.close()
