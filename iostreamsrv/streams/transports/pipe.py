"""One end of a pipe as a transport."""

import errno
import io
import os
import select
from typing import TypeVar

from .base import Transport

T = TypeVar("T")


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
        return _received(self._read(size))

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        try:
            count: int | None = self._file.readinto(buffer)
            return _received(count)
        except OSError as error:
            return len(self._nothing(error))

    def _read(self, size: int) -> bytes | None:
        try:
            return self._file.read(size)
        except OSError as error:
            return self._nothing(error)

    def _nothing(self, error: OSError) -> bytes:
        """What the writing end receives: EOF if the reader is gone, otherwise nothing."""
        if error.errno == errno.EBADF:
            poll = select.poll()
            poll.register(self._file.fileno(), 0)  # errors are always reported
            if poll.poll(0):
                return b""
            raise _blocked()
        raise error

    def send(self, data: bytes | bytearray | memoryview) -> int:
        return os.write(self._file.fileno(), data)

    def close(self) -> None:
        self._file.close()


def _received(data: T | None) -> T:
    if data is None:  # io.FileIO returns None if a read would block
        raise _blocked()
    return data


def _blocked() -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
