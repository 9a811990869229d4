"""A part of a file that waits to be sent."""

import io
import os
import stat
from typing import Any

from ..errors import OptionError
from ..sansio.buffers import Region


class FileRegion(Region):
    """A part of a file, and how much of it is sent.

    A file with a descriptor is read through a duplicate of the descriptor, so its user may close the file as soon as
    the region is made. The duplicate is closed with the region. Any other file is read by ``seek`` and ``read``. A
    file's position is neither used nor moved.

    :ivar fd: the duplicate, or -1.
    :ivar offset: where the next byte is.
    :ivar left: how many bytes are still to be sent.
    :ivar sent: how many bytes are sent.
    """

    __slots__ = ("_file", "fd", "offset", "sent")

    def __init__(self, file: Any, offset: int = 0, count: int | None = None) -> None:
        """:raises OptionError: ``file`` is not open in binary mode, or not seekable; or a number is invalid."""
        self.fd = -1  # before anything is raised: __del__ looks at it
        check_amount("offset", offset)
        if count is not None:
            check_amount("count", count)
        self._file = file
        self.offset = offset
        self.sent = 0
        rest = max(0, self._open() - offset)
        self.left = rest if count is None else min(count, rest)

    def _open(self) -> int:
        """The size of the file."""
        file = self._file
        if isinstance(file, io.TextIOBase):
            raise OptionError("file", file, "must be opened in binary mode")
        number = _descriptor(file)
        if number < 0:
            return _size_by_seeking(file)
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise OptionError("file", file, "must be a regular file")
        self.fd = os.dup(number)
        return status.st_size

    def read(self, size: int) -> bytes:
        """The next bytes, at most ``size``; b"" if the file has become shorter. It gives the same bytes again until
        :meth:`advance`."""
        size = min(size, self.left)
        if self.fd >= 0:
            return os.pread(self.fd, size, self.offset)
        file = self._file
        position = file.tell()
        try:
            file.seek(self.offset)
            return bytes(file.read(size))
        finally:
            file.seek(position)

    def advance(self, count: int) -> None:
        """Record that the next ``count`` bytes are sent."""
        super().advance(count)
        self.offset += count
        self.sent += count

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def check_amount(name: str, value: object) -> None:
    """:raises OptionError: ``value`` is not a number of bytes."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OptionError(name, value, "must be a number of bytes, 0 or more")


def _descriptor(file: Any) -> int:
    """The file's descriptor; -1 if it has none."""
    try:
        readable = not hasattr(file, "readable") or file.readable()
        number: int = file.fileno()
    except (AttributeError, io.UnsupportedOperation):
        return -1
    except ValueError as error:  # it is closed
        raise OptionError("file", file, str(error)) from None
    if not readable:
        raise OptionError("file", file, "must be open for reading")
    return number


def _size_by_seeking(file: Any) -> int:
    try:
        position = file.tell()
        file.seek(0, io.SEEK_END)  # some return nothing
        size: int = file.tell()
        file.seek(position)
    except (AttributeError, OSError, ValueError):
        raise OptionError("file", file, "must be a binary file with seek() and tell()") from None
    return size
